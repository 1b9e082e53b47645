import errno
import struct
import threading
import time

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from datasets.images import decode, on_all_cores, read_image, to_array, to_rgb
from utils.errors import RunError


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
    values = np.array([[np.inf, -5.0, np.nan, 5.0, -np.inf]], np.float32)
    assert np.asarray(to_rgb(Image.fromarray(values)))[0, :, 0].tolist() == [255, 0, 0, 255, 0]


def write_tiff(path, values, bits, photometric):
    """An uncompressed TIFF of gray values (32, 32), of 12 or 16 bits."""
    flat = values.reshape(-1).astype(np.uint16)
    pixels = flat.astype("<u2").tobytes()
    if bits == 12:
        pairs = flat.reshape(-1, 2).astype(np.uint32)
        packed = pairs[:, 0] << 12 | pairs[:, 1]
        pixels = b"".join(int(three).to_bytes(3, "big") for three in packed)
    tags = [(256, 32), (257, 32), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1),
            (278, 32), (279, len(pixels))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels
                     + struct.pack("<H", len(tags)) + entries + bytes(4))


def test_16_bit_picture_is_the_same_from_every_container(tmp_path):
    values = (20000 + 300 * np.arange(32)[:, None] + 7 * np.arange(32)).astype(np.uint16)
    expected = values // 257
    for suffix in ("png", "tif", "jp2", "im"):
        Image.fromarray(values).save(tmp_path / f"gray.{suffix}")
    Image.fromarray(values.astype(">u2")).save(tmp_path / "big-endian.tif")
    header = b"32 32\n65535\n"
    (tmp_path / "gray.pgm").write_bytes(b"P5\n" + header + values.astype(">u2").tobytes())
    (tmp_path / "plain.pgm").write_bytes(b"P2\n" + header + " ".join(map(str, values.flat)).encode())
    write_tiff(tmp_path / "white-is-0.tif", 65535 - values, 16, 0)
    stretched = []
    for path in sorted(tmp_path.iterdir()):
        assert np.array_equal(read_image(path, stretched=stretched), np.stack([expected] * 3)), path.name
    assert stretched == []
    rgb = np.repeat(values.astype(">u2")[:, :, None], 3, axis=2)
    (tmp_path / "colour.ppm").write_bytes(b"P6\n" + header + rgb.tobytes())
    found = read_image(tmp_path / "colour.ppm").astype(int)
    assert np.abs(found - expected).max() <= 1  # Pillow converts colours itself


def test_known_depth_of_10_or_12_bits_takes_the_whole_range(tmp_path):
    values = (np.arange(1024).reshape(32, 32) * 4).astype(np.uint16)
    for maximum, scaled in ((4095, values), (1023, values // 4)):
        (tmp_path / "a.pgm").write_bytes(b"P5\n32 32\n%d\n" % maximum + scaled.astype(">u2").tobytes())
        gray = read_image(tmp_path / "a.pgm")[0].astype(int)
        assert np.abs(gray - scaled.astype(int) * 255 // maximum).max() <= 1
    write_tiff(tmp_path / "a.tif", values, 12, 1)
    assert np.array_equal(read_image(tmp_path / "a.tif")[0], values.astype(int) * 255 // 4095)


def test_values_of_unknown_range_are_told(tmp_path):
    values = np.arange(1024, dtype=np.int32).reshape(32, 32) * 1000
    stretched = []
    for name, array in (("i.tif", values), ("f.tif", values.astype(np.float32))):
        Image.fromarray(array).save(tmp_path / name)
        image = read_image(tmp_path / name, stretched=stretched)
        assert (image.min(), image.max()) == (0, 255)
    assert stretched == [tmp_path / "i.tif", tmp_path / "f.tif"]


def test_edge_in_a_large_image_is_antialiased():
    pixels = np.zeros((65, 64, 3), np.uint8)
    pixels[:, 31:] = 255  # from the middle of column 15
    row = to_array(Image.fromarray(pixels))[0, 10].astype(int)
    assert row[15] == 128
    assert row[:13].max() == 0 and row[18:].min() == 255


@pytest.mark.parametrize("size", [(96, 64), (33, 48), (16, 64), (8, 8)])
def test_images_are_resized_as_pillow_does(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    expected = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(to_array(Image.fromarray(pixels)), np.asarray(expected).transpose(2, 0, 1))


def test_fine_stripes_become_gray():
    stripes = np.zeros((96, 96, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(to_array(Image.fromarray(stripes)).astype(int)[:, :, 2:-2] - 127.5).max() < 20


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
    Image.new("L", (50, 50)).save(paths[11])
    Image.new("RGB", (40, 40), (12, 0, 0)).save(paths[12])  # large, but Pillow only warns
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1100)
    images, errors = decode(read_image, paths)
    assert list(errors) == [7, 9, 11]
    assert isinstance(errors[11], Image.DecompressionBombError)
    for number in set(range(40)) - set(errors):
        assert (images[number, 0] == number).all() and images[number, 1:].max() == 0


def test_damaged_exif_does_not_cost_the_image(tmp_path):
    Image.new("RGB", (32, 32), (1, 2, 3)).save(tmp_path / "a.png", exif=b"Exif\0\0no tiff")
    assert read_image(tmp_path / "a.png")[:, 0, 0].tolist() == [1, 2, 3]


def test_postscript_is_not_run(tmp_path, monkeypatch):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(UnidentifiedImageError):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("count", [0, 1, 999, 10_000])
def test_work_is_shared_in_tasks_of_which_few_wait(monkeypatch, count):
    monkeypatch.setattr("datasets.images.WAITING", 7)
    done = []
    on_all_cores(done.append, count)
    assert sorted(done) == list(range(count))


def test_all_cores_decode_at_a_time(monkeypatch):
    monkeypatch.setattr("datasets.images.available_cores", lambda: 3)
    meeting = threading.Barrier(3, timeout=10)

    def read(_):
        meeting.wait()
        return np.zeros((3, 32, 32), np.uint8)
    assert decode(read, range(6))[1] == {}


def test_interrupt_full_memory_and_failed_disk_end_the_decoding():
    read = []

    def interrupt(source):
        read.append(source)
        time.sleep(0.01)
        raise KeyboardInterrupt if source == 5 else ValueError
    with pytest.raises(KeyboardInterrupt):
        decode(interrupt, range(1000))
    assert len(read) < 100

    for error in (MemoryError(), OSError(errno.EIO, "Input/output error")):
        def fail(source, error=error):
            raise error if source == "b.png" else ValueError
        with pytest.raises(RunError, match=r"b\.png"):
            decode(fail, ["a.png", "b.png"])
