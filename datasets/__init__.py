"""Sources of images, by name, each a function that gives a training and a test set."""
from pathlib import Path
from typing import Callable

import numpy as np

from datasets import cifar10, digits
from datasets.arrays import Split
from utils.cli import UserError


def _load_digits(path: Path | None) -> tuple[Split, Split]:
    if path is not None:
        raise UserError(f"--dataset digits comes with scikit-learn and reads no --data, found {path}; "
                        "leave --data out")
    return digits.load_digits()


# name -> (loader, class names)
DATASETS: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "cifar10": (cifar10.load_cifar10, cifar10.NAMES),
    "digits": (_load_digits, digits.NAMES),
}


def load_dataset(name: str, path: Path | None, subset: int | None,
                 rng: np.random.Generator) -> tuple[Split, Split, list[str]]:
    """The training set, the test set and the class names of a source.

    Args:
        name: a key of ``DATASETS``.
        path: where its files are, for sources that read files.
        subset: keep this many training samples, drawn at random, in their order; None keeps all.
        rng: draws them.

    Raises:
        UserError: the source cannot be read, or is smaller than `subset`.
    """
    loader, names = DATASETS[name]
    train, test = loader(path)
    if subset is not None:
        if subset > len(train.images):
            raise UserError(f"expected --subset of at most {len(train.images)}, the training "
                            f"samples there are, found {subset}")
        kept = np.sort(rng.choice(len(train.images), subset, replace=False))
        train = Split(train.images[kept], train.labels[kept])
    return train, test, list(names)
