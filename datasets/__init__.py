"""Sources of images, by name, each a function that gives a training and a test set."""
from collections.abc import Callable
from pathlib import Path

import numpy as np

from datasets import cifar10, digits
from datasets.arrays import Dataset, Split
from datasets.label_noise import asymmetric_labels, hardest_labels, shuffle_labels
from utils.cli import UserError


def _load_digits(path: Path | None) -> tuple[Split, Split]:
    if path is not None:
        raise UserError(f"--dataset digits comes with scikit-learn and reads no --data, found {path}; "
                        "leave --data out")
    return digits.load_digits()


# name -> (loader, class names, which class is taken for which)
DATASETS: dict[str, tuple[Callable, tuple[str, ...], dict[int, int]]] = {
    "cifar10": (cifar10.load_cifar10, cifar10.NAMES, cifar10.CONFUSABLE),
    "digits": (_load_digits, digits.NAMES, {digit: (digit + 1) % 10 for digit in range(10)}),
}
NOISES = ("uniform", "asymmetric", "hardest")


def load_dataset(name: str, path: Path | None, subset: int | None, shuffle_rate: float,
                 rng: np.random.Generator, noise: str = "uniform",
                 predict: Callable[[np.ndarray], np.ndarray] | None = None) -> Dataset:
    """The training set, with label noise, and the test set of a source.

    Args:
        name: a key of ``DATASETS``.
        path: where its files are, for sources that read files.
        subset: keep this many training samples, drawn at random, in their order; None keeps all.
        shuffle_rate: share that is mislabelled of every class that is; ``asymmetric`` noise spares some.
        rng: draws the samples, then the noise.
        noise: one of ``NOISES``; see `datasets.label_noise`.
        predict: gives a model's logits (N, C) for images (N, 3, 32, 32); for ``hardest``.

    Raises:
        UserError: the source cannot be read, or is smaller than `subset`.
    """
    loader, names, confusable = DATASETS[name]
    train, test = loader(path)
    if subset is not None:
        if subset > len(train.images):
            raise UserError(f"expected --subset of at most {len(train.images)}, the training "
                            f"samples there are, found {subset}")
        kept = np.sort(rng.choice(len(train.images), subset, replace=False))
        train = Split(train.images[kept], train.labels[kept])
    labels = {
        "uniform": lambda: shuffle_labels(train.labels, shuffle_rate, len(names), rng),
        "asymmetric": lambda: asymmetric_labels(train.labels, shuffle_rate, confusable, rng),
        "hardest": lambda: hardest_labels(train.labels, shuffle_rate, predict(train.images), rng),
    }[noise]()
    return Dataset(train.images, labels, train.labels, test, list(names))
