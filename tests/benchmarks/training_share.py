"""Seconds per epoch, and the share of it that forward, backward and update alone would take.

    python -m tests.benchmarks.training_share
    python -m tests.benchmarks.training_share -c cudnn
    python -m tests.benchmarks.training_share --engine nnabla

Augmentation is measured by itself.  The rest is order, batches, copies and logging, as far as the
computing waits for them.
"""
import functools
import time
from collections.abc import Callable

import nnabla as nn
import numpy as np
from nnabla.ext_utils import import_extension_module

from datasets.arrays import IMAGE_SHAPE
from models.registry import build_network
from utils.cli import Parser
from utils.context import current_context, set_context
from utils.processes import available_cores
from utils.training.engines import ENGINES, choose_engine
from utils.training.trainer import Trainer, augment

REPEATS = 5
# ResNet23's nmaps, batch size, augmentation and number of images.
SETTINGS = {"cpu": [(16, 16, False, 1000), (16, 100, True, 1000), (64, 500, True, 1000)],
            "cudnn": [(64, 500, True, 50_000), (16, 16, False, 10_000)]}


def measure(make: Callable, nmaps: int, batch_size: int, augmentation: bool,
            samples: int) -> np.ndarray:
    """Seconds per epoch, and of its updates and its augmentation alone, (REPEATS, 3)."""
    nn.clear_parameters()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (samples, *IMAGE_SHAPE)).astype(np.uint8)
    labels = rng.integers(0, 10, (samples, 1))
    network = build_network("resnet23", 10, nmaps, rng)
    trainer = Trainer(make(network), augmentation, 0)
    parts = [bare_updates(make(network), trainer.solver, images[:batch_size], labels[:batch_size]),
             bare_augmentation(images[:batch_size]) if augmentation else lambda: None]
    synchronize = import_extension_module(current_context()).device_synchronize

    def timed(run: Callable[[], object], count: int) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            run()
        synchronize("0")
        return time.perf_counter() - begun
    times, updates = [], samples // batch_size
    for epoch in range(REPEATS + 1):
        train = functools.partial(trainer.train_epoch, epoch, images, labels, batch_size,
                                  lambda update: 0.01, lambda *update: None)
        alone = (timed(part, updates) * samples / (updates * batch_size) for part in parts)
        times.append([timed(train, 1), *alone])
    return np.array(times[1:])  # the first builds the graphs


def bare_updates(engine, solver, images: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    """Forward, backward and update of one batch, and nothing else."""
    engine.image(len(images)).d = images
    return functools.partial(engine.updater(solver), labels)


def bare_augmentation(images: np.ndarray) -> Callable[[], object]:
    augmented = augment(nn.Variable(images.shape), 0)
    augmented.parent.inputs[0].d = images
    return augmented.forward


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("-c", "--context", choices=["cpu", "cudnn"], default="cpu")
    parser.add_argument("--engine", choices=sorted(ENGINES))
    args = parser.parse_args()
    where = set_context(args.context, 0, "float")
    engine, threads = choose_engine(args.engine, args.context, "float"), available_cores()
    print(f"{where} by {engine}, {threads if ENGINES[engine].parallel else 1} threads")
    for setting in SETTINGS[args.context]:
        times = measure(lambda network: ENGINES[engine].make(network, threads, False), *setting)
        updates, augmentation = (times[:, column] / times[:, 0] for column in (1, 2))
        print("nmaps {}, batch {}, augmentation {}, {} images: ".format(*setting)
              + f"{np.median(times[:, 0]):.3g} s per epoch ({times[:, 0].min():.3g} to "
              f"{times[:, 0].max():.3g}), updates {np.median(updates):.1%} ({updates.min():.1%} to "
              f"{updates.max():.1%}), augmentation {np.median(augmentation):.1%}", flush=True)


if __name__ == "__main__":
    main()
