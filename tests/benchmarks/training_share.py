"""Seconds per epoch, and the share of it that forward, backward and update alone would take.

    python -m tests.benchmarks.training_share
    python -m tests.benchmarks.training_share -c cudnn

The rest is order, batches, copies, augmentation and logging, as far as the computing waits for them.
"""
import time
from collections.abc import Callable

import nnabla as nn
import numpy as np
from nnabla.ext_utils import import_extension_module

from models import build_prediction
from utils.cli import Parser
from utils.context import current_context, set_context
from utils.training import Trainer, build_graph

REPEATS = 5
# Of ResNet23: nmaps, batch, augmentation, images.
SETTINGS = {"cpu": [(16, 16, False, 1000), (16, 100, True, 1000), (64, 500, True, 1000)],
            "cudnn": [(64, 500, True, 50_000), (16, 16, False, 10_000)]}


def measure(nmaps: int, batch_size: int, augmentation: bool, samples: int) -> np.ndarray:
    """Seconds of each of `REPEATS` epochs, and of the bare computing beside each, (REPEATS, 2)."""
    nn.clear_parameters()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (samples, 3, 32, 32)).astype(np.uint8)
    labels = rng.integers(0, 10, (samples, 1))
    trainer = Trainer(build_prediction("resnet23", 10, nmaps, rng), augmentation, 0)
    bare = bare_updates(trainer, images[:batch_size], labels[:batch_size])
    times = []
    for epoch in range(REPEATS + 1):
        begun = time.perf_counter()
        trainer.train_epoch(epoch, images, labels, batch_size, lambda update: 0.01,
                            lambda *update: None)
        trained = time.perf_counter()
        bare(samples // batch_size)
        times.append((trained - begun, (time.perf_counter() - trained) * samples
                      / (samples // batch_size * batch_size)))
    return np.array(times[1:])  # the first builds the graphs


def bare_updates(trainer: Trainer, images: np.ndarray, labels: np.ndarray) -> Callable[[int], object]:
    """Forward, backward and update of one batch again and again, and nothing else."""
    graph = build_graph(trainer.network, len(images), test=False)
    graph.image.d, graph.label.d = images, labels
    synchronize = import_extension_module(current_context()).device_synchronize

    def run(count: int):
        for _ in range(count):
            graph.loss.forward(clear_no_need_grad=True)
            trainer.solver.zero_grad()
            graph.loss.backward(clear_buffer=True)
            trainer.solver.update()
        synchronize("0")
    return run


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("-c", "--context", choices=["cpu", "cudnn"], default="cpu")
    args = parser.parse_args()
    print(set_context(args.context, 0, "float"))
    for setting in SETTINGS[args.context]:
        times = measure(*setting)
        shares = times[:, 1] / times[:, 0]
        print("nmaps {}, batch {}, augmentation {}, {} images: ".format(*setting)
              + f"{np.median(times[:, 0]):.3g} s an epoch ({times[:, 0].min():.3g} to "
              f"{times[:, 0].max():.3g}), computing {np.median(shares):.1%} ({shares.min():.1%} to "
              f"{shares.max():.1%})", flush=True)


if __name__ == "__main__":
    main()
