"""What a reviewer learns from explanations: which training samples speak for and against a label."""
from dataclasses import dataclass

import numpy as np

from utils.tracin.explanations import Explanations

SHOWN = 5  # opponents, and as many proponents, that are shown; the opponents among them vote


@dataclass(frozen=True)
class Reasons:
    """What speaks for and against the label of one sample.

    Attributes:
        opponents, proponents: indices of the `SHOWN` strongest ones, or fewer, strongest first.
        vote: the most frequent label of these opponents, -1 where there are none; see `vote`.
        votes: how many of them have it.
    """

    opponents: list[int]
    proponents: list[int]
    vote: int
    votes: int


UNEXPLAINED = Reasons([], [], -1, 0)


def reasons(explanations: Explanations, labels: np.ndarray) -> dict[int, Reasons]:
    """What speaks for and against the labels of the explained samples, by their index.

    Args:
        explanations: of training samples.
        labels: the given ones of all training samples, integers (M, 1).
    """
    opponents, proponents = (pairs.indices[:, :SHOWN] for pairs in (explanations.opponents,
                                                                     explanations.proponents))
    voted = vote(opponents, labels)
    votes = ((opponents >= 0) & (labels[opponents, 0] == voted[:, None])).sum(axis=1)
    return {int(index): Reasons(against[against >= 0].tolist(), speaking[speaking >= 0].tolist(),
                                int(label), int(count))
            for index, against, speaking, label, count in zip(
                explanations.indices, opponents, proponents, voted, votes, strict=True)}


def vote(opponents: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The most frequent label of the first five opponents of each sample.

    A tie goes to the tied label whose opponent is the strongest.

    Args:
        opponents: of N samples, strongest first, integers (N, k); -1 where there is none.
        labels: the given ones of all training samples, integers (M, 1).

    Returns:
        Integers (N,); -1 where a sample has no opponents.
    """
    first = opponents[:, :SHOWN]
    voted = np.where(first >= 0, labels[first, 0], -1)
    alike = (voted[:, :, None] == voted[:, None, :]) & (first >= 0)[:, :, None]
    return np.take_along_axis(voted, alike.sum(axis=2).argmax(axis=1)[:, None], axis=1)[:, 0]
