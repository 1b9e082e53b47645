"""Images of any size and mode, converted to square RGB."""
import errno
import functools
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile
from tqdm import tqdm

from datasets.arrays import SIDE
from utils.errors import RunError
from utils.files import release
from utils.processes import available_cores

IMAGES_PER_TASK = 16  # at most
WAITING = 10_000  # tasks for the cores at a time: each takes a kilobyte of memory
UNKNOWN_RANGE = ("I", "F")  # Pillow's modes of 32 bits
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # tags of TIFF


def to_rgb(image: Image.Image, white: int | None = None) -> Image.Image:
    """The image in 8-bit RGB, transparent pixels on white.

    Depths above 8 bits: 16-bit gray values are divided by 257, so that 65535 becomes 255, whatever the
    file format; Pillow itself keeps the upper 8 of the 16 bits of colours.  Files do not say how many of
    their 16 bits are used, so 10- or 12-bit values in them come out nearly black.  32-bit values have no
    known range: in each image alone, the smallest becomes 0 and the largest 255.

    Args:
        image: of any mode.
        white: the largest value that gray of more than 8 bits can have; None for 65535 in 16 bits, and
            for an unknown one in 32.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and white):
        gray = np.asarray(image).astype(np.uint32) * 255 // (white or 65535)
        image = Image.fromarray(gray.astype(np.uint8))
    elif image.mode in UNKNOWN_RANGE:
        values = np.array(image, np.float32)
        finite = values[np.isfinite(values)]
        low, high = (finite.min(), finite.max()) if finite.size else (0, 0)
        values = np.nan_to_num(values, copy=False, nan=low, posinf=high, neginf=low) - low
        image = Image.fromarray(np.round(values * (255 / ((high - low) or 1))).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def to_array(image: Image.Image, size: int = SIDE, white: int | None = None) -> np.ndarray:
    """The image as uint8 (3, size, size) RGB, resized with Pillow's antialiased bicubic filter.

    Args:
        image, white: as for `to_rgb`.
        size: in pixels.
    """
    resized = to_rgb(image, white).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(resized).transpose(2, 0, 1)


def from_pixels(pixels: np.ndarray, size: int) -> np.ndarray:
    """The image in pixels, uint8 (H, W) or (H, W, 3), as `to_array` returns it."""
    return to_array(Image.fromarray(np.ascontiguousarray(pixels)), size)


def convert(pixels: np.ndarray, size: int) -> np.ndarray:
    """Images, uint8 (N, 3, size, size), of pixels, uint8 (N, H, W) or (N, H, W, 3), as by `to_array`.

    They are a view where the pixels have the size already.
    """
    if pixels.shape[1:3] != (size, size):
        return decode(partial(from_pixels, size=size), pixels, size)[0]
    return pixels.transpose(0, 3, 1, 2) if pixels.ndim == 4 else \
        np.broadcast_to(pixels[:, None], (len(pixels), 3, size, size))


def read_image(path: Path, size: int = SIDE, stretched: list[Path] | None = None) -> np.ndarray:
    """Read an image file as `read_rgb` does, and resize it as `to_array` does."""
    return to_array(read_rgb(path, stretched), size)


def read_rgb(path: Path, stretched: list[Path] | None = None, least: int | None = None) -> Image.Image:
    """Read the first frame of an image file, upright, in its own size, as `to_rgb` returns it.

    Args:
        path: the file.
        stretched: gets `path` if the image's values, of unknown range, were scaled to the whole range.
        least: pixels that are enough for each side: a larger JPEG is decoded at half, a quarter or an
            eighth of its size, many times faster.

    Raises:
        Exception: whatever Pillow raises for a damaged file, another file or a decompression bomb.
    """
    if not path.is_file():  # reading a pipe would block
        raise ValueError("not a regular file")
    with Image.open(path, formats=_formats()) as image:
        if least:
            image.draft(None, (least, least))
        image.load()
        white, is_negative = _depth(image)
        if white is None and image.mode in UNKNOWN_RANGE and stretched is not None:
            stretched.append(path)
        try:
            upright = ImageOps.exif_transpose(image)
        except Exception:
            upright = image
        if white and is_negative:
            upright = Image.fromarray(white - np.asarray(upright, np.uint16))
        return to_rgb(upright, white)


def _depth(image: Image.Image) -> tuple[int | None, bool]:
    """The largest value that gray of more than 8 bits can have, if known, and whether 0 is its white."""
    if image.mode == "I" and image.format == "PPM":
        return 65535, False  # Pillow scales PGM files to 16 bits
    if image.mode.startswith("I;16") and isinstance(image, TiffImageFile):
        # Pillow neither scales 12 bits to 16 nor inverts more than 8.
        bits = image.tag_v2.get(BITS_PER_SAMPLE, (16,))
        return 2**bits[0] - 1, image.tag_v2.get(PHOTOMETRIC) == 0
    return None, False


@functools.cache
def _formats() -> tuple[str, ...]:
    """All formats that Pillow reads, except PostScript, which it would run in Ghostscript."""
    Image.init()
    return tuple(name for name in Image.ID if name != "EPS")


def decode(read: Callable[[Any], np.ndarray], sources: Sequence | np.ndarray, size: int = SIDE) \
        -> tuple[np.ndarray, dict[int, Exception]]:
    """Read many images on all cores, with a progress bar.

    Args:
        read: returns the image, uint8 (3, size, size), of a source.
        sources: N of them.
        size: in pixels.

    Returns:
        Images, uint8 (N, 3, size, size), and the exception of each that could not be read, by number.

    Raises:
        RunError: there is not enough memory for an image.
    """
    images, errors = np.zeros((len(sources), 3, size, size), np.uint8), {}

    def read_one(number: int):
        try:
            images[number] = read(sources[number])
        except Exception as error:  # untrusted files raise almost anything
            errors[number] = error
        if number % 1000 == 0:
            release(sources)

    on_all_cores(read_one, len(sources))
    for number, error in errors.items():
        if isinstance(error, MemoryError):
            raise RunError(f"out of memory while decoding {sources[number]}; make it smaller, or free "
                           "some memory") from error
        if isinstance(error, OSError) and error.errno == errno.EIO:  # the file may be an image
            raise RunError(f"cannot read {sources[number]}: {error}; check the disk, then run again") \
                from error
    return images, dict(sorted(errors.items()))


def on_all_cores(work: Callable[[int], object], count: int, images: int = 1):
    """Call `work` with 0 to `count` - 1, each for so many images, on all cores, with a progress bar."""
    cores = available_cores()
    # Small images take less time than a task; large ones should still show progress.
    step = max(1, min(IMAGES_PER_TASK, count // (100 * cores)))

    def work_on(start: int):
        for number in range(start, min(start + step, count)):
            work(number)

    # Pillow releases the GIL while it decodes and resizes.
    with (warnings.catch_warnings(), ThreadPoolExecutor(cores) as pool,
          tqdm(total=count, unit="image", unit_scale=images, leave=False, disable=None) as bar):
        warnings.simplefilter("ignore")  # about files that are readable nevertheless
        try:
            starts = range(0, count, step)
            for first in range(0, len(starts), WAITING):
                some = starts[first:first + WAITING]
                for start, _ in zip(some, pool.map(work_on, some), strict=True):
                    bar.update(min(step, count - start))
        except BaseException:  # an interrupt
            pool.shutdown(wait=False, cancel_futures=True)
            raise
