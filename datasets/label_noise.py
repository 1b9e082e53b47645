"""Wrong labels, put in on purpose, so that finding them can be measured."""
import numpy as np


def shuffle_labels(labels: np.ndarray, rate: float, classes: int,
                   rng: np.random.Generator) -> np.ndarray:
    """Give a share of the samples of every class another label (uniform label noise).

    In a class of n samples, round(rate * n) at random positions are mislabelled, and the other
    classes are drawn evenly: the numbers of samples they get differ by one at the most.

    Args:
        labels: integers (N, 1) below `classes`.
        rate: from 0 to 1.
        classes: number of classes, at least 2.
        rng: draws the positions and the labels.

    Returns:
        The noisy labels, of the shape and type of `labels`, which stays as it is.
    """
    noisy = labels.copy()
    for label in range(classes):
        members = np.flatnonzero(labels[:, 0] == label)
        count = round(rate * len(members))
        chosen = rng.choice(members, count, replace=False)
        others = rng.permutation(np.delete(np.arange(classes), label))
        noisy[chosen, 0] = rng.permutation(np.resize(others, count))
    return noisy
