"""Where images and labels come from, and the training sets with label noise made from them."""
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from datasets import cifar, digits
from datasets.arrays import SIDE, Dataset, Originals, Source, Split
from datasets.images import convert
from datasets.label_noise import asymmetric_labels, hardest_labels, next_class, shuffle_labels
from datasets.own import load_own
from utils.errors import UserError


def _load_cifar10(path: Path | None) -> Source:
    return Source(*cifar.load_cifar(cifar.CIFAR10, path), list(cifar.CIFAR10.names),
                  cifar.CIFAR10_CONFUSABLE)


def _load_cifar100(path: Path | None) -> Source:
    return Source(*cifar.load_cifar(cifar.CIFAR100, path), list(cifar.CIFAR100.names),
                  next_class(len(cifar.CIFAR100.names)))


def _load_digits(path: Path | None) -> Source:
    return Source(*digits.load_digits(), list(digits.NAMES), next_class(len(digits.NAMES)))


@dataclass(frozen=True)
class DataSet:
    """A known set of images.

    Attributes:
        names: its class names.
        load: returns it; the argument is the path of its files, or None for their default place.
        reads_files: whether it has files, which --data can name.
        augmented: whether training scales and mirrors its images by default.
    """

    names: tuple[str, ...]
    load: Callable[[Path | None], Source]
    reads_files: bool = True
    augmented: bool = True


DATASETS = {"cifar10": DataSet(cifar.CIFAR10.names, _load_cifar10),
            "cifar100": DataSet(cifar.CIFAR100.names, _load_cifar100),
            "digits": DataSet(digits.NAMES, _load_digits, reads_files=False, augmented=False)}
NOISES = ("uniform", "asymmetric", "hardest")


def load_source(name: str, path: Path | None, val_fraction: float | None, strict: bool,
                rng: np.random.Generator, size: int = SIDE) -> Source:
    """Load a known set of images, or your own.

    Args:
        name: a key of ``DATASETS``, or the path of your own images.
        path: the files of a known set, or None for their default place.
        val_fraction, strict, rng: for your own images; see `datasets.own.load_own`.
        size: of the images, in pixels.

    Raises:
        UserError: the source cannot be read.
    """
    if name in DATASETS:
        if path is not None and not DATASETS[name].reads_files:
            raise UserError(f"expected no --data with --dataset {name}, which reads no files, "
                            f"found {path}; leave --data out")
        source = DATASETS[name].load(path)
        return replace(source, train=_resized(source.train, size), test=_resized(source.test, size))
    return load_own(Path(name), val_fraction, strict, rng, size)


def _resized(split: Split, size: int) -> Split:
    pixels = split.images.transpose(0, 2, 3, 1)
    return replace(split, images=convert(pixels, size),
                   originals=Originals(pixels, np.arange(len(pixels))))


def make_dataset(source: Source, subset: int | None, shuffle_rate: float, rng: np.random.Generator,
                 noise: str = "uniform",
                 predict: Callable[[np.ndarray], np.ndarray] | None = None,
                 given: np.ndarray | None = None) -> Dataset:
    """Make the training set of a source, with label noise, and its test set.

    Args:
        source: the images and their labels.
        subset: keep this many training samples, drawn at random, in their order, and at least one of
            every class; None keeps all.
        shuffle_rate: share of each class to mislabel; ``asymmetric`` noise spares some classes.
        rng: draws the samples, then the noise.
        noise: one of ``NOISES``; see `datasets.label_noise`.
        predict: returns a model's logits (N, C) for images (N, 3, S, S); for ``hardest``.
        given: the labels to train on, integers (N, 1) for all samples of the source, in place of noise.

    Raises:
        UserError: the source is smaller than `subset`, or has more classes.
        ValueError: an unknown noise, or ``hardest`` without `predict`.
    """
    train, paths = source.train, source.paths
    if subset is not None:
        kept = _draw_subset(train.labels[:, 0], subset, source.names, rng)
        train, paths = train.take(kept), paths and [paths[index] for index in kept]
        given = None if given is None else given[kept]
    if given is not None:
        labels = given
    elif noise == "uniform":
        labels = shuffle_labels(train.labels, shuffle_rate, len(source.names), rng)
    elif noise == "asymmetric":
        labels = asymmetric_labels(train.labels, shuffle_rate, source.confusable, rng)
    elif noise == "hardest" and predict:
        labels = hardest_labels(train.labels, shuffle_rate, predict(train.images), rng)
    else:
        raise ValueError(f"expected one of {NOISES}, and predict for 'hardest', found {noise!r}")
    # Added noise is measured against the given labels.
    known = source.trusted or shuffle_rate
    return Dataset(train.images, labels, train.originals, true_labels=train.labels if known else None,
                   test=source.test, names=source.names, paths=paths, skipped=source.skipped,
                   source=source.path)


def _draw_subset(labels: np.ndarray, count: int, names: list[str],
                 rng: np.random.Generator) -> np.ndarray:
    """The indices, in order, of `count` samples drawn at random with at least one of every class.

    Raises:
        UserError: there are fewer samples, or more classes.
    """
    if count > len(labels):
        raise UserError(f"expected --subset of at most {len(labels)}, the number of training samples, "
                        f"found {count}; lower it")
    classes = len(np.unique(labels))
    if count < classes:
        raise UserError(f"expected --subset of at least {classes}, one sample of every class, found "
                        f"{count}; raise it")
    kept = rng.choice(len(labels), count, replace=False)
    missed = np.setdiff1d(labels, labels[kept])
    for label in missed:  # each takes a place of the class that has most
        most = np.bincount(labels[kept]).argmax()
        kept[np.flatnonzero(labels[kept] == most)[0]] = rng.choice(np.flatnonzero(labels == label))
    if len(missed):
        print(f"--subset {count} drew none of {', '.join(ascii(names[label]) for label in missed)}; one "
              "of each takes the place of another sample", flush=True)
    return np.sort(kept)
