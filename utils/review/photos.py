"""The pictures of the review page: the original photos, made small, where they are still there."""
import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.arrays import TRAIN_IMAGES
from datasets.images import on_all_cores, read_rgb, to_array

LONGEST_SIDE = 256  # pixels of a photo on the page
LARGEST = 17_000  # bytes of a photo on the page: 1,000 of them, in base64, stay below 25 MB
QUALITIES = (90, 75, 60, 45, 30)  # of JPEG; the first that is small enough is taken
SMALL = 64  # pixels; images up to this side are kept exactly
# Mean absolute difference, of 255, between what was trained on and the file as it is read today.  It is
# below 1 where another version of Pillow or libjpeg rounds otherwise.
TOLERANCE = 3.0


def page_pictures(images: np.ndarray, indices: Sequence[int], files: Sequence[Path] | None,
                  side: int = LONGEST_SIDE) -> list[str]:
    """The pictures of some samples as data URIs, JPEG for photos and PNG for small images.

    A sample without a file, or whose file is missing, unreadable or no longer what was trained on, is
    shown as it was trained on; a line says how many files that concerns.

    Args:
        images: what was trained on, uint8 (N, 3, S, S).
        indices: the samples.
        files: where the N original files should be, None if there are none; they may be anything.
        side: of a photo, in pixels, at most.

    Returns:
        A URI per index.
    """
    if files is None:
        return [_as_trained(images[index], side) for index in indices]
    pictures, lost = [""] * len(indices), []

    def make(place: int):
        index = indices[place]
        try:
            pictures[place] = _photo(files[index], images[index], side)
        except Exception:  # untrusted files raise almost anything
            pictures[place] = _as_trained(images[index], side)
            lost.append(place)

    on_all_cores(make, len(indices))
    if lost:
        first = str(files[indices[min(lost)]])
        print(f"{len(lost):,} of {len(indices):,} images are shown from {TRAIN_IMAGES}: their files "
              f"are missing, unreadable or no longer what was trained on, the first {first!a}; put them "
              "back, or give --dataset where they are now, and run this again to see the photos",
              flush=True)
    return pictures


def _photo(path: Path, trained: np.ndarray, side: int) -> str:
    """The URI of a file.

    Raises:
        Exception: whatever Pillow raises if it cannot be read.
        ValueError: it is not what was trained on.
    """
    photo = read_rgb(path)
    if np.abs(to_array(photo, trained.shape[-1]).astype(int) - trained).mean() > TOLERANCE:
        raise ValueError("another image")
    return encode(photo, side)


def encode(photo: Image.Image, side: int = LONGEST_SIDE) -> str:
    """A photo as the URI of a JPEG of at most 17,000 bytes; small ones as PNG.

    Args:
        photo: in RGB.
        side: of the JPEG, in pixels, at most.
    """
    small = Image.fromarray(np.asarray(photo))  # without comments, profiles or other data of the file
    if max(small.size) <= SMALL:
        return _uri("png", small)
    for longest in (side, side // 2):  # half as large only where the photo is like noise
        small.thumbnail((longest, longest), Image.Resampling.BICUBIC)
        for quality in QUALITIES:
            uri = _uri("jpeg", small, quality=quality, optimize=True)
            if len(uri) * 3 <= LARGEST * 4:
                return uri
    return uri


def _as_trained(pixels: np.ndarray, side: int) -> str:
    return encode(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))), side)


def _uri(kind: str, image: Image.Image, **options) -> str:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
