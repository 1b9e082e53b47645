"""Share of an epoch that forward, backward and update take; the rest is order, batches, logging.

    python -m tests.benchmarks.training_share
"""
import time

import nnabla as nn
import numpy as np

from models import build_prediction
from utils.training import Trainer

REPEATS = 5


def measure(nmaps: int, batch_size: int, augmentation: bool) -> list[float]:
    """The share in each of `REPEATS` epochs over 1,000 images, ResNet23 on the CPU."""
    nn.clear_parameters()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1000, 3, 32, 32)).astype(np.uint8)
    labels = rng.integers(0, 10, (1000, 1))
    trainer = Trainer(build_prediction("resnet23", 10, nmaps, rng), augmentation, 0)
    spent = [0.0]

    class Timed:
        """Passes calls on and adds up the time of those that compute."""

        def __init__(self, thing):
            self._thing = thing

        def __getattr__(self, name):
            value = getattr(self._thing, name)
            if name not in ("forward", "backward", "update", "zero_grad"):
                return value

            def timed(*args, **options):
                begin = time.perf_counter()
                value(*args, **options)
                spent[0] += time.perf_counter() - begin
            return timed

    trainer.solver = Timed(trainer.solver)
    graph = trainer._graph
    trainer._graph = lambda *args, **options: _with_loss(graph(*args, **options), Timed)
    shares = []
    for epoch in range(REPEATS + 1):
        spent[0], begin = 0.0, time.perf_counter()
        trainer.train_epoch(epoch, images, labels, batch_size, lambda update: 0.01,
                            lambda *update: None)
        shares.append(spent[0] / (time.perf_counter() - begin))
    return shares[1:]  # the first builds the graphs


def _with_loss(graph, wrap):
    return type(graph)(graph.image, graph.label, graph.logits, wrap(graph.loss))


if __name__ == "__main__":
    for setting in [(16, 16, False), (16, 100, True), (64, 500, True)]:
        shares = measure(*setting)
        print("nmaps {}, batch {}, augmentation {}: ".format(*setting)
              + f"median {np.median(shares):.1%}, from {min(shares):.1%} to {max(shares):.1%}")
