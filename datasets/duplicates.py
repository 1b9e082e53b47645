"""Images that are in a training set more than once, exactly or nearly."""
import hashlib

import numpy as np

from utils.files import release, slices

ROUNDING = 1e-4  # above the errors of a sum of products
FEW = 20  # scattered images that are read at a time: each maps more pages than it has
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
    found, correlation = most_alike(images, labels, chosen, NEAR)
    return np.where(correlation > NEAR, found, -1)


def most_alike(images: np.ndarray, labels: np.ndarray, chosen: np.ndarray,
               least: float = -1) -> tuple[np.ndarray, np.ndarray]:
    """For each of M samples, the one of another label whose pixels, mirrored or not, correlate most.

    Args:
        images, labels: of N samples, uint8 (N, 3, S, S) and integers (N, 1); where memory-mapped, few
            images are in memory at a time.
        chosen: the indices of the M samples.
        least: a correlation that is enough to be looked for; where there is none above it, what is
            returned is any.

    Returns:
        Its index, integers (M,), and the correlation, float32 (M,), -1 where there is no other label.
    """
    own = np.zeros((2, len(chosen), 3 * GRID**2 // 2), np.float32)
    for place in range(0, len(chosen), FEW):
        own[:, place:place + FEW] = _halves(images[chosen[place:place + FEW]])
        release(images)
    best, correlation = np.full(len(chosen), -1), np.full(len(chosen), -1, np.float32)
    outline = _outline(own)
    for part in slices(images if len(chosen) else images[:0], doing="looking for near-duplicates"):
        others = _halves(images[part])
        most = (outline @ _outline(others).T).max(axis=1)
        rows = np.flatnonzero(most > np.maximum(correlation, least) - ROUNDING)
        # Mirrored, the second half changes its sign.
        alike = own[0, rows] @ others[0].T + np.abs(own[1, rows] @ others[1].T)
        alike[labels[chosen[rows]] == labels[part, 0]] = -1
        largest = alike.argmax(axis=1)
        values = alike[np.arange(len(rows)), largest]
        better = values > correlation[rows]
        best[rows[better]], correlation[rows[better]] = part.start + largest[better], values[better]
    return best, correlation


def _halves(images: np.ndarray) -> np.ndarray:
    """Images (N, 3, S, S) reduced to `GRID` pixels a side, every channel of mean 0, of length 1 each.

    Returns:
        float32 (2, N, 3 GRID^2 / 2): what stays the same when an image is mirrored, and what changes its
        sign.
    """
    block = images.shape[-1] // GRID
    images = images[..., :GRID * block, :GRID * block].reshape(-1, 3, GRID, block, GRID * block)
    rows = np.zeros((len(images), 3, GRID, GRID * block), np.float32)
    for row in range(block):  # faster than one sum; whole numbers, which are exact
        rows += images[:, :, :, row]
    small = rows @ np.kron(np.eye(GRID, dtype=np.float32), np.ones((block, 1), np.float32)) / block**2
    small = small - small.mean(axis=(2, 3), keepdims=True)
    length = np.linalg.norm(small.reshape(len(small), -1), axis=1)
    small /= np.maximum(length, FLAT * (3 * GRID**2)**0.5).astype(np.float32)[:, None, None, None]
    left, right = small[..., :GRID // 2], small[..., :GRID // 2 - 1:-1]
    return np.stack([left + right, left - right]).reshape(2, len(small), -1) * np.float32(0.5**0.5)


def _outline(halves: np.ndarray) -> np.ndarray:
    """A few numbers of each image, whose products bound the correlations from above, float32 (N, D).

    They are the first half at half the resolution and the length of all that this lacks (by the
    inequality of Cauchy and Schwarz).

    Args:
        halves: from `_halves`.
    """
    pairs = [np.kron(np.eye(side // 2), np.full((2, 1), 0.5**0.5)) for side in (GRID, GRID // 2)]
    coarse = halves[0] @ np.kron(np.eye(3), np.kron(*pairs)).astype(np.float32)
    rest = np.square(halves).sum(axis=(0, 2)) - np.square(coarse).sum(axis=1)
    return np.column_stack([coarse, np.sqrt(np.maximum(rest, 0))])
