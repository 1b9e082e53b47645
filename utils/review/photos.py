"""The pictures of the review page: the original photos, made small, where they are still there."""
import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.arrays import TRAIN_IMAGES
from datasets.images import on_all_cores, read_rgb, to_array
from utils.files import release

LONGEST_SIDE = 256  # pixels of a photo on the page
LARGEST = 17_000  # bytes of a photo on the page: 1,000 of them, in base64, stay below 25 MB
THUMBNAIL_SIDE = 96  # pixels of a photo that is shown beside a suspect
PAGE = 28_000_000  # bytes of all pictures on a page, in base64
THUMBNAIL = (600, 2000)  # bytes of one that is shown beside a suspect: at least and at most allowed
QUALITIES = (90, 75, 60, 45, 30)  # of JPEG; the first that is small enough is taken
SMALL = 64  # pixels; images up to this side are kept exactly
# Mean absolute difference, of 255, between what was trained on and the file as it is read today.  It is
# below 1 where another version of Pillow or libjpeg rounds otherwise.
TOLERANCE = 3.0


def page_thumbnails(images: np.ndarray, indices: Sequence[int], files: Sequence[Path] | None,
                    pictures: Sequence[str]) -> list[str]:
    """The pictures of the samples that are shown beside others, as `page_pictures` returns them.

    Args:
        images, indices, files: as for `page_pictures`.
        pictures: those of the others.
    """
    largest = thumbnail_limit(len(indices), sum(map(len, pictures)))
    return page_pictures(images, indices, files, THUMBNAIL_SIDE, largest, "images that explain others")


def thumbnail_limit(count: int, taken: int) -> int:
    """Bytes that each of `count` thumbnails may have where the other pictures take `taken`.

    The more there are, the less each has, so that the page stays below about 30 MB.
    """
    least, most = THUMBNAIL
    return min(max((PAGE - taken) * 3 // 4 // max(count, 1), least), most)


def page_pictures(images: np.ndarray, indices: Sequence[int], files: Sequence[Path] | None,
                  side: int = LONGEST_SIDE, largest: int = LARGEST, who: str = "suspects") -> list[str]:
    """The pictures of some samples as data URIs, JPEG for photos and PNG for small images.

    A sample without a file, or whose file is missing, unreadable or no longer what was trained on, is
    shown as it was trained on; a line says how many files that concerns.

    Args:
        images: what was trained on, uint8 (N, 3, S, S).
        indices: the samples.
        files: where the N original files should be, None if there are none; they may be anything.
        side, largest: as for `encode`.
        who: the samples, as the line calls them.

    Returns:
        A URI per index.
    """
    pictures, lost = [""] * len(indices), []

    def make(place: int):
        trained = np.array(images[indices[place]])
        release(images)
        photo = Image.fromarray(np.ascontiguousarray(trained.transpose(1, 2, 0)))
        if files is not None:
            try:
                photo = _photo(files[indices[place]], trained, side)
            except Exception:  # untrusted files raise almost anything
                lost.append(place)
        pictures[place] = encode(photo, side, largest)

    on_all_cores(make, len(indices))
    if files is not None and lost:
        first = str(files[indices[min(lost)]])
        print(f"{len(lost):,} of {len(indices):,} {who} are shown from {TRAIN_IMAGES}: their files "
              f"are missing, unreadable or no longer what was trained on, the first {first!a}; put them "
              "back, or give --dataset where they are now, and run this again to see the photos",
              flush=True)
    return pictures


def _photo(path: Path, trained: np.ndarray, side: int) -> Image.Image:
    """The photo in a file, in no more detail than a picture of `side` pixels needs.

    Raises:
        Exception: whatever Pillow raises if it cannot be read.
        ValueError: it is not what was trained on.
    """
    size = trained.shape[-1]
    photo = read_rgb(path, least=max(2 * side, 4 * size))
    if np.abs(to_array(photo, size).astype(int) - trained).mean() > TOLERANCE:
        raise ValueError("another image")
    return photo


def encode(photo: Image.Image, side: int = LONGEST_SIDE, largest: int = LARGEST) -> str:
    """A photo as the URI of a JPEG, or, exactly, of a PNG where it is small.

    Args:
        photo: in RGB.
        side: pixels that its longest side has at most.
        largest: bytes that it has at most, where some quality allows it.
    """
    small = Image.fromarray(np.asarray(photo))  # without comments, profiles or other data of the file
    if max(small.size) <= SMALL and len(exact := _uri("png", small)) * 3 <= largest * 4:
        return exact
    for size in (side, side // 2):  # half as large only where the photo is like noise
        small.thumbnail((size, size), Image.Resampling.BICUBIC)
        for quality in QUALITIES:
            uri = _uri("jpeg", small, quality=quality, optimize=True)
            if len(uri) * 3 <= largest * 4:
                return uri
    return uri


def _uri(kind: str, image: Image.Image, **options) -> str:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
