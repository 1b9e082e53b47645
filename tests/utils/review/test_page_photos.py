"""Which pictures the review page has: the original photos, where they are still there."""
import base64
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import mislabel_analysis
from datasets import arrays
from datasets.images import read_image, read_rgb
from tests.conftest import make_dataset, numbers
from tests.utils.review.conftest import open_page
from utils.review.photos import (
    THUMBNAIL_SIDE,
    encode,
    page_pictures,
    page_thumbnails,
    thumbnail_limit,
)


def opened(uri):
    kind, content = re.fullmatch(r"data:image/(png|jpeg);base64,([A-Za-z0-9+/=]+)", uri).groups()
    return kind, Image.open(io.BytesIO(base64.b64decode(content)))


def pixels(uri):
    return np.asarray(opened(uri)[1]).transpose(2, 0, 1)


@pytest.fixture
def photos(tmp_path):
    """Four photos, smooth and unlike each other, and what is trained on."""
    files = [tmp_path / f"{number}.jpg" for number in range(4)]
    rng = np.random.default_rng(0)
    for path in files:
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(path)
    return files, np.stack([read_image(path) for path in files])


def test_photo_is_shown_in_its_own_shape(photos, capsys):
    files, images = photos
    pictures = page_pictures(images, [2, 0], files)
    for picture, number in zip(pictures, [2, 0], strict=True):
        kind, image = opened(picture)
        assert kind == "jpeg" and image.size == (256, 192)
        original = Image.open(files[number]).resize((256, 192), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(image, int) - np.asarray(original, int)).mean() < 3
    assert capsys.readouterr().out == ""


def test_photo_is_upright_without_what_else_is_in_its_file(photos):
    files, images = photos
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    exif[0x010E] = "where I live"
    Image.open(files[0]).save(files[0], exif=exif, comment=b"who I am", quality=95)
    images[0] = read_image(files[0])
    picture, = page_pictures(images, [0], files)
    assert opened(picture)[1].size == (192, 256)
    content = base64.b64decode(picture.partition(",")[2])
    assert b"who I am" in files[0].read_bytes() and b"who I am" not in content
    assert b"where I live" in files[0].read_bytes() and b"where I live" not in content


def test_small_image_is_shown_exactly(tmp_path):
    original = np.random.default_rng(0).integers(0, 256, (64, 20, 3), np.uint8)
    Image.fromarray(original).save(tmp_path / "a.png")
    images = read_image(tmp_path / "a.png")[None]
    picture, = page_pictures(images, [0], [tmp_path / "a.png"])
    assert opened(picture)[0] == "png" and np.array_equal(pixels(picture), original.transpose(2, 0, 1))


@pytest.mark.parametrize("loss", ["missing", "damaged", "folder", "another"])
def test_lost_photo_is_shown_as_it_was_trained_on(photos, capsys, loss):
    files, images = photos
    if loss == "another":
        shutil.copy(files[0], files[3])
    else:
        files[3].unlink()
        if loss == "damaged":
            files[3].write_bytes(files[0].read_bytes()[:600])
        elif loss == "folder":
            files[3].mkdir()
    pictures = page_pictures(images, [1, 3], files)
    assert [opened(picture)[0] for picture in pictures] == ["jpeg", "png"]
    assert np.array_equal(pixels(pictures[1]), images[3])
    told, = capsys.readouterr().out.splitlines()
    assert numbers(told)[:2] == ["1", "2"] and str(files[3]) in told


def test_photo_that_another_library_decodes_a_little_differently_is_the_same(photos, capsys):
    files, images = photos
    rounded = images + np.random.default_rng(0).integers(-2, 3, images.shape)
    rounded = np.clip(rounded, 0, 255)
    pictures = page_pictures(rounded.astype(np.uint8), [0, 1, 2, 3], files)
    assert {opened(picture)[0] for picture in pictures} == {"jpeg"} and capsys.readouterr().out == ""


def test_images_without_files_are_shown_as_they_were_trained_on(photos, capsys):
    _, images = photos
    assert np.array_equal(pixels(page_pictures(images, [2], None)[0]), images[2])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("size", [(256, 256), (640, 480), (255, 257), (3000, 65), (65, 65)])
def test_thousand_photos_stay_below_25_mb(size):
    """Noise is what JPEG compresses worst."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    picture = encode(Image.fromarray(noise))
    assert 1000 < 1000 * len(picture) < 23e6 and max(opened(picture)[1].size) >= min(max(size), 128)


def test_thumbnail_is_the_photo_or_what_was_trained_on(photos, capsys):
    files, images = photos
    files[3].unlink()
    pictures = page_thumbnails(images, [3, 1], files, [])
    assert np.array_equal(pixels(pictures[0]), images[3])
    kind, image = opened(pictures[1])
    assert kind == "jpeg" and max(image.size) == THUMBNAIL_SIDE
    original = Image.open(files[1]).resize(image.size, Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(image, int) - np.asarray(original, int)).mean() < 4
    told, = capsys.readouterr().out.splitlines()
    assert numbers(told)[:2] == ["1", "2"] and str(files[3]) in told


def test_large_photo_is_read_small_and_looks_the_same(photos, capsys):
    files, images = photos
    large = Image.open(files[0]).resize((2000, 1500), Image.Resampling.BICUBIC)
    large.save(files[0], quality=95)
    assert read_rgb(files[0], least=187).size == (250, 188) and read_rgb(files[0]).size == (2000, 1500)
    images[0] = read_image(files[0])
    for picture in (*page_pictures(images, [0], files), *page_thumbnails(images, [0], files, [])):
        kind, image = opened(picture)
        assert kind == "jpeg" and image.width * 3 == image.height * 4
        expected = large.resize(image.size, Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(image, int) - np.asarray(expected, int)).mean() < 4
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("side", [8, 32, 64, 300])
def test_page_of_thousand_suspects_stays_about_30_mb(side):
    """With ten other images each, all of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    suspects = 1000 * len(encode(Image.fromarray(noise)))
    many, few = (encode(Image.fromarray(noise), THUMBNAIL_SIDE, thumbnail_limit(count, suspects))
                 for count in (10_000, 10))
    assert suspects + 10_000 * len(many) < 30e6
    assert len(many) <= len(few) < 4000 and opened(many)[1].width >= min(side, 48)
    if side == 8:
        assert np.array_equal(pixels(many), noise.transpose(2, 0, 1))


def test_page_shows_photos_smoothly_and_small_images_by_their_pixels(photos, make_page, tab, tmp_path):
    files, images = photos
    files[1].unlink()
    dataset = replace(make_dataset(4), images=images, names=["a", "b", "c"], paths=list("wxyz"))
    page = open_page(tab, make_page(tmp_path / "photos.html", dataset, files=files))
    shown = page.eval_on_selector_all("article img", """async all => {
        await Promise.all(all.map(one => one.decode()));
        return all.map(one => [one.naturalWidth, getComputedStyle(one).imageRendering]);
    }""")
    assert shown == [[256, "auto"], [32, "pixelated"], [256, "auto"], [256, "auto"]]


def test_analysis_finds_the_files_and_the_margins_of_the_run(run, tmp_path, capsys):
    images = arrays.load(run).images
    paths = [f"{number}.png" for number in range(len(images))]
    (tmp_path / "photos").mkdir()
    for path, image in zip(paths[:-2], images, strict=False):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / "photos" / path)
    (run / "paths.txt").write_text("\n".join(paths) + "\n")
    (run / "source.txt").write_text("../photos\n")
    mislabel_analysis.main(["--run", str(run)])
    told, = (line for line in capsys.readouterr().out.splitlines() if re.search(r"2[89]\.png", line))
    assert numbers(told)[:2] == ["2", str(len(images))]
    suspects = page_data(run / "report" / "review.html")["suspects"]
    assert {len(one["margins"]) for one in suspects} == {3}


def page_data(path):
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)[1])


def test_margins_are_means_of_neighbouring_epochs(dataset, make_page, tmp_path):
    margins = np.arange(200 * 120, dtype=np.float32).reshape(200, 120) / 4
    margins[1, 7] = np.nan
    data = page_data(make_page(tmp_path / "a.html", margins=margins))
    means = [0.12 + 0.5 * place for place in range(1, 59)]
    assert data["suspects"][0]["margins"] == [0, *means, 29.75]  # the ends are those of one epoch
    assert data["suspects"][1]["margins"] == []
    data = page_data(make_page(tmp_path / "a.html", margins=margins[:, :3]))
    assert data["suspects"][2]["margins"] == [60, 60.25, 60.5]
    assert page_data(make_page(tmp_path / "b.html"))["suspects"][0]["margins"] == []
