"""What a reviewer learns from explanations: who speaks for and against a label, and how clearly."""
from dataclasses import dataclass

import numpy as np

from utils.tracin.explanations import Explanations

SHOWN = 5  # opponents, and as many proponents, that are shown; the opponents among them vote
NEAR_DUPLICATE = 0.98  # similarity above which two images count as almost the same


@dataclass(frozen=True)
class Reasons:
    """What speaks for and against the label of one sample.

    Attributes:
        opponents, proponents: indices of the `SHOWN` strongest ones, or fewer, strongest first.
        vote: the label of most of these opponents, -1 where there are none; see `vote`.
        votes: how many of them have it.
        near_duplicate: the index of a training sample with almost the same image and another label, or
            None.
    """

    opponents: list[int]
    proponents: list[int]
    vote: int
    votes: int
    near_duplicate: int | None


UNEXPLAINED = Reasons([], [], -1, 0, None)


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
    twins = near_duplicates(explanations, labels)
    return {int(index): Reasons(against[against >= 0].tolist(), speaking[speaking >= 0].tolist(),
                                int(label), int(count), int(twin) if twin >= 0 else None)
            for index, against, speaking, label, count, twin in zip(
                explanations.indices, opponents, proponents, voted, votes, twins, strict=True)}


def vote(opponents: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The label that most of the first five opponents of each sample have.

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


def sure(voted: np.ndarray | int, suggested: np.ndarray | int, given: np.ndarray | int) \
        -> np.ndarray | bool:
    """Whether the opponents' vote confirms a suggestion that differs from the given label.

    Args:
        voted: from `vote`, integers (N,) or one.
        suggested, given: labels, as many.

    Returns:
        bool, as many.
    """
    return (voted == suggested) & (suggested != given)


def near_duplicates(explanations: Explanations, labels: np.ndarray) -> np.ndarray:
    """For each explained sample, the index of one with almost the same image and another label, or -1.

    It is the most similar of the sample's proponents and opponents, above `NEAR_DUPLICATE`.  The
    arguments are those of `reasons`.

    Returns:
        Integers (N,).
    """
    both = explanations.opponents, explanations.proponents
    indices, similarity = (np.concatenate([getattr(pairs, name) for pairs in both], axis=1)
                           for name in ("indices", "similarity"))
    differs = labels[indices, 0] != labels[explanations.indices]
    similarity = np.where((indices >= 0) & differs, similarity, -1)
    best = similarity.argmax(axis=1)[:, None]
    found = np.take_along_axis(similarity, best, axis=1) > NEAR_DUPLICATE
    return np.where(found, np.take_along_axis(indices, best, axis=1), -1)[:, 0]
