"""Images of any size and mode, converted to 32x32 RGB."""
import errno
import functools
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
    """The image in 8-bit RGB, transparent pixels on white.

    16-bit values are divided by 257; values of other modes, whose range is unknown, are scaled so that
    the smallest becomes 0 and the largest 255.
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


def to_array(image: Image.Image) -> np.ndarray:
    """The image as uint8 IMAGE_SHAPE RGB, resized with Pillow's antialiased bicubic filter."""
    resized = to_rgb(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(resized).transpose(2, 0, 1)


def read_image(path: Path) -> np.ndarray:
    """Read the first frame of an image file, upright, as `to_array` returns it.

    Raises:
        Exception: whatever Pillow raises for a damaged file, another file or a decompression bomb.
    """
    if not path.is_file():  # reading a pipe would block
        raise ValueError("not a regular file")
    with Image.open(path, formats=_formats()) as image:
        image.load()
        try:
            upright = ImageOps.exif_transpose(image)
        except Exception:
            upright = image
        return to_array(upright)


@functools.cache
def _formats() -> tuple[str, ...]:
    """All formats that Pillow reads, except PostScript, which it would run in Ghostscript."""
    Image.init()
    return tuple(name for name in Image.ID if name != "EPS")


def decode(read: Callable[[object], np.ndarray], sources: Sequence | np.ndarray) \
        -> tuple[np.ndarray, dict[int, Exception]]:
    """Read many images on all cores, with a progress bar.

    Args:
        read: returns the image, uint8 IMAGE_SHAPE, of a source.
        sources: N of them.

    Returns:
        Images, uint8 (N, *IMAGE_SHAPE), and the exception of each that could not be read, by number.

    Raises:
        RunError: there is not enough memory for an image.
    """
    images, errors = np.zeros((len(sources), *IMAGE_SHAPE), np.uint8), {}

    def read_one(number: int):
        try:
            images[number] = read(sources[number])
        except Exception as error:  # untrusted files raise almost anything
            errors[number] = error

    # Pillow releases the GIL while it decodes and resizes.
    with warnings.catch_warnings(), ThreadPoolExecutor(available_cores()) as pool:
        warnings.simplefilter("ignore")  # about files that are readable nevertheless
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
        if isinstance(error, OSError) and error.errno == errno.EIO:  # the file may be an image
            raise RunError(f"cannot read {sources[number]}: {error}; check the disk, then run again") \
                from error
    return images, dict(sorted(errors.items()))
