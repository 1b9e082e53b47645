"""Seconds an epoch, and the share of it that forward, backward and update take.

    python -m tests.benchmarks.training_share
    python -m tests.benchmarks.training_share -c cudnn

The rest is what the computing waits for: order, batches, copies, augmentation, logging.
"""
import time
from collections.abc import Callable

import nnabla as nn
import numpy as np
from nnabla.ext_utils import import_extension_module

from models import build_prediction
from utils.cli import Parser
from utils.context import current_context, set_context
from utils.training import Trainer

REPEATS = 5
# Of ResNet23: nmaps, batch, augmentation, images.
SETTINGS = {"cpu": [(16, 16, False, 1000), (16, 100, True, 1000), (64, 500, True, 1000)],
            "cudnn": [(64, 500, True, 50_000), (16, 16, False, 10_000)]}


class Timed:
    """Passes calls on to `thing`, and adds up in `spent` the time of those that compute."""

    def __init__(self, thing: object, spent: list[float], synchronize: Callable):
        self._thing, self._spent, self._synchronize = thing, spent, synchronize

    def __getattr__(self, name: str):
        value = getattr(self._thing, name)
        if name not in ("forward", "backward", "update", "zero_grad"):
            return value

        def timed(*args, **options):
            begun = time.perf_counter()
            value(*args, **options)
            self._synchronize("0")
            self._spent[0] += time.perf_counter() - begun
        return timed


def measure(nmaps: int, batch_size: int, augmentation: bool, samples: int) -> np.ndarray:
    """Seconds of each of `REPEATS` epochs, and of the computing in them, (REPEATS, 2)."""
    nn.clear_parameters()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (samples, 3, 32, 32)).astype(np.uint8)
    labels = rng.integers(0, 10, (samples, 1))
    trainer = Trainer(build_prediction("resnet23", 10, nmaps, rng), augmentation, 0)
    spent, synchronize = [0.0], import_extension_module(current_context()).device_synchronize
    trainer.solver = Timed(trainer.solver, spent, synchronize)
    make_graph = trainer._graph

    def timed_graph(*args, **options):
        graph = make_graph(*args, **options)
        return type(graph)(graph.image, graph.label, graph.logits, Timed(graph.loss, spent, synchronize))
    trainer._graph = timed_graph
    times = []
    for epoch in range(REPEATS + 1):
        spent[0], begun = 0.0, time.perf_counter()
        trainer.train_epoch(epoch, images, labels, batch_size, lambda update: 0.01,
                            lambda *update: None)
        times.append((time.perf_counter() - begun, spent[0]))
    return np.array(times[1:])  # the first builds the graphs


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
