"""Images that are in a training set more than once, exactly or nearly."""
import hashlib

import numpy as np

from utils.files import slices

GRID = 8  # pixels a side that images are reduced to, to find near-duplicates
FLAT = 4  # levels of gray: images of less contrast resemble none
NEAR = 0.98  # correlation above which two images count as almost the same: tests/benchmarks/README.md


def image_digests(images: np.ndarray) -> np.ndarray:
    """The first 64 bits of the SHA-256 of each image, uint64 (N,).

    Args:
        images: uint8 (N, 3, S, S); where memory-mapped, few are in memory at a time.
    """
    digests = np.empty(len(images), np.uint64)
    for rows in slices(images, doing="hashing images"):
        content = b"".join(hashlib.sha256(image.data).digest()[:8]
                           for image in np.ascontiguousarray(images[rows]))
        digests[rows] = np.frombuffer(content, ">u8")
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


def near_duplicates(images: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """For each of M samples, the index of one with almost the same image and another label, or -1.

    Args:
        images, labels: of N samples, uint8 (N, 3, S, S) and integers (N, 1).
        chosen: the indices of the M samples.

    Returns:
        Integers (M,).
    """
    found, correlation = most_alike(images, labels, chosen)
    return np.where(correlation > NEAR, found, -1)


def most_alike(images: np.ndarray, labels: np.ndarray,
               chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of M samples, the one of another label whose pixels, mirrored or not, correlate most.

    Args:
        images, labels: of N samples, uint8 (N, 3, S, S) and integers (N, 1); where memory-mapped, few
            images are in memory at a time.
        chosen: the indices of the M samples.

    Returns:
        Its index, integers (M,), and the correlation, float32 (M,), -1 where there is no other label.
    """
    own = np.zeros((len(chosen), 3 * GRID**2), np.float32)
    for rows in slices(own, doing="looking for near-duplicates"):
        own[rows] = _reduced(images[chosen[rows]])
    best, correlation = np.full(len(chosen), -1), np.full(len(chosen), -1, np.float32)
    for rows in slices(images, doing="looking for near-duplicates"):
        others = _reduced(images[rows])
        mirrored = others.reshape(-1, 3, GRID, GRID)[..., ::-1].reshape(others.shape)
        both = np.maximum(own @ others.T, own @ mirrored.T)
        both[labels[chosen] == labels[rows, 0]] = -1
        largest = both.argmax(axis=1)
        values = both[np.arange(len(chosen)), largest]
        better = values > correlation
        best[better], correlation[better] = rows.start + largest[better], values[better]
    return best, correlation


def _reduced(images: np.ndarray) -> np.ndarray:
    """Images (N, 3, S, S) reduced to `GRID` pixels a side, every channel of mean 0, of length 1 each.

    Returns:
        float32 (N, 3 GRID^2).
    """
    block = images.shape[-1] // GRID
    images = images[..., :GRID * block, :GRID * block]
    # Rows first: many times faster than both at once, and sums of integers are exact.
    rows = images.reshape(-1, block, GRID * block).sum(axis=1, dtype=np.uint32)
    small = rows.reshape(len(images), 3, GRID, GRID, block).sum(axis=4, dtype=np.uint32)
    small = small.astype(np.float32) / np.float32(block**2)
    small = (small - small.mean(axis=(2, 3), keepdims=True)).reshape(len(images), -1)
    return small / np.maximum(np.linalg.norm(small, axis=1), FLAT * small.shape[1]**0.5)[:, None]
