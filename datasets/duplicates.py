"""Images that are in a training set more than once."""
import hashlib

import numpy as np

from utils.files import release


def image_digests(images: np.ndarray) -> np.ndarray:
    """The first 64 bits of the SHA-256 of each image, uint64 (N,).

    Args:
        images: uint8 (N, 3, S, S); where memory-mapped, few are in memory at a time.
    """
    digests = np.empty(len(images), np.uint64)
    for start in range(0, len(images), 1000):
        for index, image in enumerate(np.ascontiguousarray(images[start:start + 1000]), start):
            digests[index] = int.from_bytes(hashlib.sha256(image.data).digest()[:8], "big")
        release(images)
    return digests


def other_labels(digests: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each sample, the index of one with the same image and another label, or -1, integers (N,).

    Identical images with the same label do not count: they are redundant, not wrong.

    Args:
        digests: of `image_digests`.
        labels: the given ones, integers (N, 1).
    """
    order = np.lexsort((labels[:, 0], digests))
    first, last = _ends(digests[order])
    ordered = labels[order, 0]
    partner = order[np.where(ordered == ordered[first], last, first)]
    result = np.empty(len(order), int)
    result[order] = np.where(ordered[first] == ordered[last], -1, partner)
    return result


def copy_numbers(digests: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each sample, the number of earlier ones with the same image and label, integers (N,).

    The arguments are those of `other_labels`.
    """
    order = np.lexsort((labels[:, 0], digests))  # stable: equal samples keep their order
    first = _ends(digests[order], labels[order, 0])[0]
    result = np.empty(len(order), int)
    result[order] = np.arange(len(order)) - first
    return result


def _ends(*sorted_by: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last place of the group of equal values that each place is in."""
    new = np.ones(len(sorted_by[0]), bool)
    new[1:] = np.any([values[1:] != values[:-1] for values in sorted_by], axis=0)
    starts = np.flatnonzero(new)
    group = np.cumsum(new) - 1
    return starts[group], np.append(starts[1:], len(new))[group] - 1
