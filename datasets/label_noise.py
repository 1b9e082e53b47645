"""Wrong labels, added on purpose to measure how well they are found.

In each affected class of n samples, round(rate * n) at random positions are mislabelled.
"""
from collections.abc import Callable, Iterable, Mapping

import numpy as np


def next_class(classes: int) -> dict[int, int]:
    """Each class mapped to the next, where no confusable class is known."""
    return {label: (label + 1) % classes for label in range(classes)}


def shuffle_labels(labels: np.ndarray, rate: float, classes: int,
                   rng: np.random.Generator) -> np.ndarray:
    """Give a share of the samples of every class any other label (uniform label noise).

    The other classes are drawn evenly: the numbers of samples they get from a class differ by at most
    one.

    Args:
        labels: integers (N, 1) below `classes`.
        rate: from 0 to 1.
        classes: number of classes, at least 2.
        rng: draws the positions and the labels.

    Returns:
        The noisy labels, of the shape and type of `labels`, which is unchanged.
    """
    def others(label: int, chosen: np.ndarray) -> np.ndarray:
        wrong = rng.permutation(np.delete(np.arange(classes), label))
        return rng.permutation(np.resize(wrong, len(chosen)))
    return _mislabel(labels, rate, range(classes), rng, others)


def asymmetric_labels(labels: np.ndarray, rate: float, confusable: Mapping[int, int],
                      rng: np.random.Generator) -> np.ndarray:
    """Give a share of the samples of some classes the label of the class each is mistaken for.

    The noise of Patrini et al. 2017, arXiv:1609.03683.  Arguments and result are those of
    `shuffle_labels`.

    Args:
        confusable: class -> the class it is mistaken for; other classes keep their labels.
    """
    return _mislabel(labels, rate, sorted(confusable), rng,
                     lambda label, chosen: np.full(len(chosen), confusable[label]))


def hardest_labels(labels: np.ndarray, rate: float, logits: np.ndarray,
                   rng: np.random.Generator) -> np.ndarray:
    """Give a share of the samples of every class the wrong label that a model finds most likely.

    The noise of the TracIn paper (Pruthi et al. 2020, section 4.1).  Arguments and result are those
    of `shuffle_labels`.

    Args:
        logits: the model's logits, (N, C).
    """
    wrong = logits.astype(float)
    np.put_along_axis(wrong, labels, -np.inf, axis=1)
    return _mislabel(labels, rate, range(logits.shape[1]), rng,
                     lambda label, chosen: wrong[chosen].argmax(axis=1))


def _mislabel(labels: np.ndarray, rate: float, classes: Iterable[int], rng: np.random.Generator,
              wrong: Callable[[int, np.ndarray], np.ndarray]) -> np.ndarray:
    noisy = labels.copy()
    for label in classes:
        members = np.flatnonzero(labels[:, 0] == label)
        chosen = rng.choice(members, round(rate * len(members)), replace=False)
        noisy[chosen, 0] = wrong(label, chosen)
    return noisy
