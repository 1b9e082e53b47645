import numpy as np
import pytest
from PIL import Image

from datasets.images import decode, read_image, to_array, to_rgb


def flat(image):
    """The one colour that an image has."""
    colours = np.unique(np.asarray(image).reshape(-1, 3), axis=0)
    assert len(colours) == 1
    return colours[0].tolist()


@pytest.mark.parametrize(("mode", "colour", "expected"), [
    ("1", 1, [255, 255, 255]), ("L", 70, [70, 70, 70]), ("RGB", (1, 2, 3), [1, 2, 3]),
    ("RGBA", (10, 20, 30, 255), [10, 20, 30]), ("RGBA", (10, 20, 30, 0), [255, 255, 255]),
    ("LA", (9, 0), [255, 255, 255]), ("PA", (0, 0), [255, 255, 255]),
    ("CMYK", (0, 0, 0, 255), [0, 0, 0]), ("YCbCr", (255, 128, 128), [255, 255, 255]),
    ("HSV", (0, 255, 255), [255, 0, 0]), ("I;16", 257 * 40, [40, 40, 40]), ("I", 9, [0, 0, 0]),
    ("F", 0.5, [0, 0, 0])])
def test_every_mode_becomes_rgb(mode, colour, expected):
    assert flat(to_rgb(Image.new(mode, (5, 4), colour))) == expected


def test_palette_and_transparent_colour():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.info["transparency"] = 0
    assert np.asarray(to_rgb(image)).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_32_bit_values_take_the_whole_range():
    values = np.array([[-5.0, 0.0, 5.0]], np.float32)
    assert np.asarray(to_rgb(Image.fromarray(values)))[0, :, 0].tolist() == [0, 128, 255]


def test_large_images_are_averaged_over_areas():
    pixels = np.random.default_rng(0).integers(0, 256, (96, 64, 3)).astype(np.uint8)
    means = pixels.reshape(32, 3, 32, 2, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    assert np.abs(to_array(Image.fromarray(pixels)) - means).max() <= 1  # rounded once a side


def test_small_images_are_enlarged_bicubically():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    expected = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)
    difference = to_array(Image.fromarray(pixels)).astype(int) - np.asarray(expected).transpose(2, 0, 1)
    assert np.abs(difference).max() <= 1


def test_images_of_32_by_32_stay_as_they_are():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    assert np.array_equal(to_array(Image.fromarray(pixels)), pixels.transpose(2, 0, 1))


def test_photograph_is_turned_upright(tmp_path):
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png")
    assert image[:, :16].max() == 0 and image[:, 16:].min() == 255


def test_decode_keeps_the_order_and_says_what_failed(tmp_path, monkeypatch):
    paths = [tmp_path / f"{number}.png" for number in range(40)]
    for number, path in enumerate(paths):
        Image.new("RGB", (33, 31), (number, 0, 0)).save(path)
    paths[7].write_text("no image")
    paths[9].write_bytes(paths[9].read_bytes()[:-30])
    Image.new("L", (40, 40)).save(paths[11])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1100)
    images, errors = decode(read_image, paths)
    assert list(errors) == [7, 9, 11]
    assert isinstance(errors[11], Image.DecompressionBombWarning)
    for number in set(range(40)) - set(errors):
        assert (images[number, 0] == number).all() and images[number, 1:].max() == 0
