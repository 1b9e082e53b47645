"""Images of any size and mode, made 32x32 RGB."""
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from datasets.arrays import IMAGE_SHAPE
from utils.processes import available_cores

SIDE = IMAGE_SHAPE[-1]


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in 8-bit RGB, what is transparent shown on white.

    16-bit values are divided by 257; of 32-bit ones, whose range nobody knows, the smallest becomes 0
    and the largest 255.
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, np.float64))
        scale = 255 / (np.ptp(values) or 1)
        image = Image.fromarray(np.round((values - values.min()) * scale).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def to_array(image: Image.Image) -> np.ndarray:
    """The image as uint8 (3, 32, 32) RGB: each side averaged over areas if longer, else bicubic."""
    image = to_rgb(image)
    for size in ((SIDE, image.height), (SIDE, SIDE)):
        shrinks = size[0] < image.width or size[1] < image.height
        image = image.resize(size, Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def read_image(path: Path) -> np.ndarray:
    """The first picture of an image file, upright, as `to_array` gives it.

    Raises:
        Exception: whatever Pillow raises at a file that is no image, damaged, or a decompression bomb.
    """
    with Image.open(path) as image:
        return to_array(ImageOps.exif_transpose(image))


def decode(read: Callable[[object], np.ndarray], sources: Sequence) \
        -> tuple[np.ndarray, dict[int, Exception]]:
    """Read many images on all cores, with a progress bar.

    Args:
        read: gives an image, uint8 (3, 32, 32), for a source.
        sources: N of them.

    Returns:
        Images, uint8 (N, 3, 32, 32), and by number what was raised where there is none.
    """
    images, errors = np.zeros((len(sources), *IMAGE_SHAPE), np.uint8), {}

    def read_one(number: int):
        try:
            images[number] = read(sources[number])
        except Exception as error:  # noqa: BLE001  strangers' files raise almost anything
            errors[number] = error

    # Pillow lets other threads run while it decodes and scales.
    with warnings.catch_warnings(), ThreadPoolExecutor(available_cores()) as pool:
        warnings.simplefilter("ignore")  # oddities in files that can be read all the same
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            for _ in tqdm(pool.map(read_one, range(len(sources))), total=len(sources), unit="image",
                          leave=False, disable=None):
                pass
        except BaseException:  # an interrupt
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return images, dict(sorted(errors.items()))
