"""Images of any size and mode, made 32x32 RGB."""
import functools
import math
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from datasets.arrays import IMAGE_SHAPE
from utils.errors import RunError
from utils.processes import available_cores

SIDE = IMAGE_SHAPE[-1]


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in 8-bit RGB, what is transparent shown on white.

    16-bit values are divided by 257; of those of other ranges, which nobody knows, the smallest becomes
    0 and the largest 255.
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        values = np.array(image, np.float32)
        finite = values[np.isfinite(values)]
        low, high = (finite.min(), finite.max()) if finite.size else (0, 0)
        values = np.nan_to_num(values, copy=False, nan=low, posinf=high, neginf=low) - low
        image = Image.fromarray(np.round(values * (255 / ((high - low) or 1))).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def average_rows(pixels: np.ndarray) -> np.ndarray:
    """Areas of `pixels` (H, W, 3), H at least 32, averaged to 32 rows, float32 (32, W, 3).

    A row that lies in two areas counts in each by its part there.  (Pillow's box filter takes whole
    rows, which is another thing where H is no multiple of 32.)
    """
    rows = []
    for start, stop in zip(np.arange(SIDE) * len(pixels) / SIDE,
                           np.arange(1, SIDE + 1) * len(pixels) / SIDE):
        first, last = math.floor(start), math.ceil(stop)
        # Not as a product of matrices, whose threads would be in the way of the other images'.
        total = pixels[first:last].sum(axis=0, dtype=np.float32)
        total -= np.float32(start - first) * pixels[first] + np.float32(last - stop) * pixels[last - 1]
        rows.append(total / np.float32(stop - start))
    return np.stack(rows)


def to_array(image: Image.Image) -> np.ndarray:
    """The image as uint8 (3, 32, 32) RGB: each side averaged over areas if longer, else bicubic."""
    pixels = np.asarray(to_rgb(image))
    for _ in range(2):  # the height, then the width
        if len(pixels) > SIDE:
            pixels = average_rows(pixels)
        pixels = pixels.transpose(1, 0, 2)
    if pixels.dtype != np.uint8:
        pixels = np.round(pixels).astype(np.uint8)
    if pixels.shape[:2] != (SIDE, SIDE):
        pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels))
                            .resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return pixels.transpose(2, 0, 1)


def read_image(path: Path) -> np.ndarray:
    """The first picture of an image file, upright, as `to_array` gives it.

    Raises:
        Exception: whatever Pillow raises at a file that is no image, damaged, or a decompression bomb.
    """
    if not path.is_file():  # a pipe would keep the reader waiting
        raise ValueError("it is no file")
    with Image.open(path, formats=_formats()) as image:
        image.load()
        try:
            upright = ImageOps.exif_transpose(image)
        except Exception:
            upright = image
        return to_array(upright)


@functools.cache
def _formats() -> tuple[str, ...]:
    """All that Pillow reads, but PostScript, which it would have Ghostscript run."""
    Image.init()
    return tuple(name for name in Image.ID if name != "EPS")


def decode(read: Callable[[object], np.ndarray], sources: Sequence) \
        -> tuple[np.ndarray, dict[int, Exception]]:
    """Read many images on all cores, with a progress bar.

    Args:
        read: gives an image, uint8 (3, 32, 32), for a source.
        sources: N of them.

    Returns:
        Images, uint8 (N, 3, 32, 32), and by number what was raised where there is none.

    Raises:
        RunError: the memory does not suffice for an image.
    """
    images, errors = np.zeros((len(sources), *IMAGE_SHAPE), np.uint8), {}

    def read_one(number: int):
        try:
            images[number] = read(sources[number])
        except Exception as error:
            errors[number] = error

    # Pillow lets other threads run while it decodes and scales.
    with warnings.catch_warnings(), ThreadPoolExecutor(available_cores()) as pool:
        warnings.simplefilter("ignore")  # oddities in files that can be read all the same
        try:
            for _ in tqdm(pool.map(read_one, range(len(sources))), total=len(sources), unit="image",
                          leave=False, disable=None):
                pass
        except BaseException:  # an interrupt
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for number, error in errors.items():
        if isinstance(error, MemoryError):
            raise RunError(f"out of memory while decoding {sources[number]}; make it smaller, or free "
                           "some memory") from error
    return images, dict(sorted(errors.items()))
