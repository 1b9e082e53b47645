"""Sources of images, and the training sets with label noise that are made of them."""
from collections.abc import Callable
from pathlib import Path

import numpy as np

from datasets import cifar, digits
from datasets.arrays import Dataset, Source, Split
from datasets.label_noise import asymmetric_labels, hardest_labels, next_class, shuffle_labels
from datasets.own import load_own
from utils.errors import UserError


def _cifar10(path: Path | None) -> Source:
    return Source(*cifar.load_cifar(cifar.CIFAR10, path), list(cifar.CIFAR10.names),
                  cifar.CIFAR10_CONFUSABLE)


def _cifar100(path: Path | None) -> Source:
    return Source(*cifar.load_cifar(cifar.CIFAR100, path), list(cifar.CIFAR100.names),
                  next_class(len(cifar.CIFAR100.names)))


def _digits(path: Path | None) -> Source:
    if path is not None:
        raise UserError(f"--dataset digits comes with scikit-learn and reads no --data, found {path}; "
                        "leave --data out")
    return Source(*digits.load_digits(), list(digits.NAMES), next_class(len(digits.NAMES)))


# name -> what reads its files, which are at a path or have a place of their own
DATASETS: dict[str, Callable[[Path | None], Source]] = {
    "cifar10": _cifar10, "cifar100": _cifar100, "digits": _digits}
NOISES = ("uniform", "asymmetric", "hardest")


def load_source(name: str, path: Path | None, val_fraction: float | None, strict: bool,
                rng: np.random.Generator) -> Source:
    """A known set of images, or one's own.

    Args:
        name: a key of ``DATASETS``, or the path of one's own images.
        path: where the files of a known set are, for those that read files.
        val_fraction, strict, rng: for one's own; see `datasets.own.load_own`.

    Raises:
        UserError: the source cannot be read.
    """
    if name in DATASETS:
        return DATASETS[name](path)
    return load_own(Path(name), val_fraction, strict, rng)


def make_dataset(source: Source, subset: int | None, shuffle_rate: float, rng: np.random.Generator,
                 noise: str = "uniform",
                 predict: Callable[[np.ndarray], np.ndarray] | None = None) -> Dataset:
    """The training set of a source, with label noise, and its test set.

    Args:
        source: where the images are from.
        subset: keep this many training samples, drawn at random, in their order; None keeps all.
        shuffle_rate: share that is mislabelled of every class that is; ``asymmetric`` noise spares some.
        rng: draws the samples, then the noise.
        noise: one of ``NOISES``; see `datasets.label_noise`.
        predict: gives a model's logits (N, C) for images (N, 3, 32, 32); for ``hardest``.

    Raises:
        UserError: the source is smaller than `subset`.
    """
    train, paths = source.train, source.paths
    if subset is not None:
        if subset > len(train.images):
            raise UserError(f"expected --subset of at most {len(train.images)}, the training "
                            f"samples there are, found {subset}")
        kept = np.sort(rng.choice(len(train.images), subset, replace=False))
        train = Split(train.images[kept], train.labels[kept])
        paths = paths and [paths[index] for index in kept]
    labels = {
        "uniform": lambda: shuffle_labels(train.labels, shuffle_rate, len(source.names), rng),
        "asymmetric": lambda: asymmetric_labels(train.labels, shuffle_rate, source.confusable, rng),
        "hardest": lambda: hardest_labels(train.labels, shuffle_rate, predict(train.images), rng),
    }[noise]()
    # Labels that were shuffled on purpose are measured against those that were given.
    known = source.trusted or shuffle_rate
    return Dataset(train.images, labels, train.labels if known else None, source.test, source.names,
                   paths, source.skipped)
