"""Seconds an epoch of training, and the share of it that forward, backward and update would take alone.

    python -m tests.benchmarks.training_share
    python -m tests.benchmarks.training_share -c cudnn

The rest is what the computing waits for: order, batches, copies, augmentation, logging.
"""
import time
from collections.abc import Callable

import nnabla as nn
import numpy as np

from models import build_prediction
from utils.cli import Parser
from utils.context import set_context
from utils.training import Trainer

REPEATS = 5
# nmaps, batch, augmentation, images: of ResNet23.
SETTINGS = {"cpu": [(16, 16, False, 992), (16, 100, True, 1000), (64, 500, True, 1000)],
            "cudnn": [(64, 500, True, 50_000), (16, 16, False, 9_920)]}


def bare_epoch(trainer: Trainer, batch_size: int, updates: int):
    """The computing of an epoch and nothing else: one batch, which is there already."""
    graph = trainer._graph(batch_size, test=False)
    for _ in range(updates):
        trainer.solver.zero_grad()
        graph.loss.forward(clear_no_need_grad=True)
        graph.loss.backward(clear_buffer=True)
        trainer.solver.update()
        float(graph.loss.d)  # waits for a GPU, as training does


def timed(run: Callable, *args: object) -> float:
    begun = time.perf_counter()
    run(*args)
    return time.perf_counter() - begun


def measure(nmaps: int, batch_size: int, augmentation: bool, samples: int) -> np.ndarray:
    """Seconds of each of `REPEATS` epochs, and of their computing alone, (REPEATS, 2)."""
    nn.clear_parameters()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (samples, 3, 32, 32)).astype(np.uint8)
    labels = rng.integers(0, 10, (samples, 1))
    trainer = Trainer(build_prediction("resnet23", 10, nmaps, rng), augmentation, 0)
    times = np.array([
        (timed(trainer.train_epoch, epoch, images, labels, batch_size, lambda update: 0.01,
               lambda *update: None),
         timed(bare_epoch, trainer, batch_size, samples // batch_size)) for epoch in range(REPEATS + 1)])
    return times[1:]  # the first builds the graphs


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
