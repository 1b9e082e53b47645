import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from datasets.images import read_image
from tests.conftest import ROOT, refused
from utils.backbone.extraction import FILE, PARTIAL, check, extract
from utils.errors import RunError

SIZE = 6
IMAGES = ("x_train.npy", "x_val.npy")
OUTPUTS = ("features_train.npy", "features_val.npy", FILE)


class Means:
    """A backbone: the mean of each channel, and those of the image's left half."""

    size = SIZE

    def __init__(self, key="0", batch=1, concurrent=True, then=None):
        self.key, self.batch, self.concurrent, self._then = key * 64, batch, concurrent, then
        self.calls, self.threads = [], set()

    def features(self, images):
        self.calls.append(len(images))
        self.threads.add(threading.current_thread())
        features = means_of(images)
        return features if self._then is None else self._then(sum(self.calls), features)


def means_of(images):
    assert images.dtype == np.uint8 and images.shape[1:] == (3, SIZE, SIZE)
    return np.concatenate([images.mean(axis=(2, 3)), images[..., :SIZE // 2].mean(axis=(2, 3))],
                          axis=1).astype(np.float32)


@dataclass
class Set:
    images: np.ndarray
    originals: list | np.ndarray


def photos(folder, count, seed=0):
    """Photos, some turned by their EXIF data, and the images of a run made from them."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = [folder / f"{number}.{'png' if number % 2 else 'jpg'}" for number in range(count)]
    exif = Image.Exif()
    exif[274] = 6
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (9, 7, 3)).astype(np.uint8)).save(path, exif=exif)
    return Set(np.stack([read_image(path) for path in paths]), paths)


def expected(paths):
    return means_of(np.stack([read_image(path, size=SIZE) for path in paths]))


def contents(folder):
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


@pytest.fixture
def sets(tmp_path):
    return photos(tmp_path / "train", 20), photos(tmp_path / "val", 5, seed=1)


@pytest.mark.parametrize(("batch", "concurrent", "workers"), [
    (1, True, 2), (1, True, None), (4, True, 2), (3, False, 2)])
def test_features_are_those_of_each_original_at_the_backbones_size(tmp_path, sets, batch, concurrent,
                                                                  workers):
    train, test = sets
    backbone = Means(batch=batch, concurrent=concurrent)
    found = extract(backbone, tmp_path / "run", train, test, workers)
    for features, one, name in zip(found, sets, OUTPUTS[:2], strict=True):
        assert features.dtype == np.float32
        assert np.array_equal(features, expected(one.originals))
        assert np.array_equal(np.load(tmp_path / "run" / name), features)
    assert sum(backbone.calls) == 25 and max(backbone.calls) == batch
    assert backbone.calls.count(batch) == 25 // batch
    assert (threading.main_thread() in backbone.threads) == (not concurrent)
    assert concurrent or len(backbone.threads) == 1
    assert sorted(os.listdir(tmp_path / "run")) == sorted(OUTPUTS)


@pytest.mark.parametrize("shape", [(9, 7, 3), (3, 9, 7), (9, 7)])
def test_originals_can_be_pixels(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, (5, *shape)).astype(np.uint8)
    features, none = extract(Means(), tmp_path, Set(np.zeros((5, 3, 4, 4), np.uint8), pixels), None)
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path, image in zip(paths, pixels.transpose(0, 2, 3, 1) if shape[0] == 3 else pixels,
                           strict=True):
        Image.fromarray(image).save(path)
    assert none is None and not (tmp_path / "features_val.npy").exists()
    assert np.array_equal(features, expected(paths))


def test_equal_files_are_computed_once(tmp_path, sets):
    train, test = sets
    shutil.copy(train.originals[3], train.originals[7])
    shutil.copy(train.originals[3], test.originals[0])
    backbone = Means()
    features, held_out = extract(backbone, tmp_path / "run", train, test)
    assert sum(backbone.calls) == 23
    assert np.array_equal(features, expected(train.originals))
    assert np.array_equal(held_out, expected(test.originals))
    test.originals[1:2] = photos(tmp_path / "more", 1, seed=2).originals
    held_out = extract(backbone, tmp_path / "run", train, test)[1]
    assert sum(backbone.calls) == 24
    assert np.array_equal(held_out, expected(test.originals))


def test_only_unknown_files_are_computed(tmp_path, sets):
    train, test = sets
    run = tmp_path / "run"

    def computed(train, test, **options):
        backbone = Means(**options)
        features, held_out = extract(backbone, run, train, test)
        assert np.array_equal(features, expected(train.originals))
        assert np.array_equal(held_out, expected(test.originals))
        for name, one in zip(IMAGES, (train, test), strict=True):
            np.save(run / name, one.images)
        check(run)
        return sum(backbone.calls)

    assert computed(train, test) == 25
    before = [(run / name).stat().st_mtime_ns for name in OUTPUTS]
    assert computed(train, test) == 0
    assert [(run / name).stat().st_mtime_ns for name in OUTPUTS] == before
    assert computed(Set(train.images ^ 1, train.originals), test) == 0
    more = photos(tmp_path / "more", 3, seed=2)
    grown = Set(np.concatenate([more.images, train.images]), more.originals + train.originals)
    assert computed(grown, test) == 3
    moved = Set(np.concatenate([test.images, train.images[2:]]), test.originals + train.originals[2:])
    assert computed(moved, Set(more.images, more.originals)) == 0
    moved.originals[9].write_bytes(train.originals[0].read_bytes()[:-2] + b"ab")
    assert computed(moved, Set(more.images, more.originals)) == 1
    assert computed(moved, Set(more.images, more.originals), key="1") == 26


def test_features_that_were_changed_are_computed_again(tmp_path, sets):
    train, test = sets
    run = tmp_path / "run"
    extract(Means(), run, train, test)
    right = contents(run)
    for name in OUTPUTS:
        for change in (lambda content: content[:150] + bytes([content[150] ^ 1]) + content[151:],
                       lambda content: b"", lambda content: content[:-4]):
            (run / name).write_bytes(change(right[name]))
            backbone = Means()
            extract(backbone, run, train, test)
            assert sum(backbone.calls) == 25
            assert contents(run) == right


def interrupt(after):
    def raise_after(done, features):
        if done > after:
            raise KeyboardInterrupt
        return features
    return raise_after


def test_interrupted_extraction_resumes_with_the_same_bytes(tmp_path, sets):
    extract(Means(), tmp_path / "whole", *sets)
    with pytest.raises(KeyboardInterrupt):
        extract(Means(then=interrupt(12)), tmp_path / "run", *sets, workers=1)
    assert os.listdir(tmp_path / "run") == [PARTIAL]
    backbone = Means()
    extract(backbone, tmp_path / "run", *sets)
    assert sum(backbone.calls) == 13
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path / "run")) == sorted(OUTPUTS)


KILLED = """
import os, pickle, signal, sys
from pathlib import Path
from tests.utils.backbone.test_extraction import Means, Set, extract, photos

def kill(done, features):
    if done > 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return features

folder = Path(sys.argv[1])
train, test = photos(folder / "train", 20), photos(folder / "val", 5, seed=1)
extract(Means(then=kill), folder / "run", train, test, workers=1)
"""


def test_killed_extraction_resumes_with_the_same_bytes(tmp_path, sets):
    extract(Means(), tmp_path / "whole", *sets)
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    backbone = Means()
    extract(backbone, tmp_path / "run", *sets)
    assert 13 <= sum(backbone.calls) <= 16  # the last results may not have been collected
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_torn_or_damaged_records_are_computed_again(tmp_path, sets):
    extract(Means(), tmp_path / "whole", *sets)
    with pytest.raises(KeyboardInterrupt):
        extract(Means(then=interrupt(12)), tmp_path / "run", *sets, workers=1)
    partial = (tmp_path / "run" / PARTIAL).read_bytes()
    shutil.rmtree(tmp_path / "run")
    record = 16 + 4 * 6 + 4
    header = len(partial) - 12 * record
    flipped = bytearray(partial)
    flipped[header + 5 * record + 20] ^= 1
    for content, kept in [(partial[:-1], 11), (partial[:header + record // 2], 0), (partial[:50], 0),
                          (b"", 0), (partial + bytes(1000), 12), (bytes(len(partial)), 0),
                          (bytes(flipped), 5), (partial, 12)]:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / PARTIAL).write_bytes(content)
        backbone = Means()
        extract(backbone, tmp_path / "run", *sets)
        assert sum(backbone.calls) == 25 - kept
        assert contents(tmp_path / "run") == contents(tmp_path / "whole")
        shutil.rmtree(tmp_path / "run")


def test_records_of_another_backbone_are_not_used(tmp_path, sets):
    with pytest.raises(KeyboardInterrupt):
        extract(Means(then=interrupt(12)), tmp_path / "run", *sets, workers=1)
    backbone = Means(key="1")
    extract(backbone, tmp_path / "run", *sets)
    assert sum(backbone.calls) == 25


def test_kill_while_the_files_are_written_loses_nothing(tmp_path, sets, monkeypatch):
    extract(Means(), tmp_path / "whole", *sets)
    extract(Means(key="1"), tmp_path / "run", *sets)
    for name in OUTPUTS[1:]:
        def replace(old, new, name=name):
            if os.fspath(new).endswith(name):
                raise KeyboardInterrupt
            os.rename(old, new)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("os.replace", replace)
            extract(Means(), tmp_path / "run", *sets)
        backbone = Means()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("os.replace", replace)
            extract(backbone, tmp_path / "run", *sets)
        assert backbone.calls == []
    extract(backbone, tmp_path / "run", *sets)
    assert backbone.calls == []
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_first_image_without_finite_features_is_named(tmp_path, sets, value):
    def spoil(done, features):
        return np.where(np.isin(features[:, :1], bad), np.float32(value), features)

    bad = expected(sets[0].originals)[[14, 11], 0]
    with refused(str(sets[0].originals[11]), "--backbone_input"):
        extract(Means(then=spoil), tmp_path / "run", *sets)
    assert os.listdir(tmp_path / "run") == [PARTIAL]


@pytest.mark.parametrize(("fact", "result"), [
    ("--backbone_input", lambda _, features: np.ones_like(features)),
    ("(1, 0)", lambda _, features: features[:, :0]), ("(6,)", lambda _, features: features[0]),
    ("(1, 4)", lambda done, features: features[:, :4 if done == 3 else 5]),
    ("float64", lambda _, features: features.astype(np.float64))])
def test_useless_features_are_refused(tmp_path, sets, fact, result):
    with refused("--backbone", fact):
        extract(Means(then=result), tmp_path / "run", *sets)
    assert not set(OUTPUTS) & set(os.listdir(tmp_path / "run") if (tmp_path / "run").exists() else [])


@contextmanager
def files_at_most(size):
    """Let no file grow beyond `size` bytes, as on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [10, 68 + 44 * 3 + 7])
def test_full_disk_is_one_line_and_loses_nothing(tmp_path, sets, size, capsys):  # prints to no file
    extract(Means(), tmp_path / "whole", *sets)
    with files_at_most(size), refused(PARTIAL, "space", error=RunError):
        extract(Means(), tmp_path / "run", *sets)
    backbone = Means()
    extract(backbone, tmp_path / "run", *sets)
    assert sum(backbone.calls) == (25 if size == 10 else 22)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_file_that_vanishes_or_changes_meanwhile_is_named(tmp_path, sets):
    path = sets[0].originals[19]
    for change in (path.unlink, lambda: path.write_bytes(sets[0].originals[0].read_bytes())):
        content = path.read_bytes()

        def once(done, features, change=change):
            if done == 1:
                change()
            return features

        with refused(str(path)):
            extract(Means(then=once), tmp_path / "run", *sets, workers=1)
        path.write_bytes(content)
        shutil.rmtree(tmp_path / "run")


def test_file_that_is_gone_or_no_image_is_named(tmp_path, sets):
    path = sets[0].originals[4]
    path.write_bytes(path.read_bytes()[:40])
    with refused(str(path)):
        extract(Means(), tmp_path / "run", *sets)
    path.unlink()
    with refused(str(path)):
        extract(Means(), tmp_path / "run", *sets)


def test_features_of_other_images_or_changed_are_refused(tmp_path, sets):
    run = tmp_path / "run"
    extract(Means(), run, *sets)
    for name, one in zip(IMAGES, sets, strict=True):
        np.save(run / name, one.images)
    check(run)
    for images, features, one in zip(IMAGES, OUTPUTS[:2], sets, strict=True):
        for other in (one.images[:-1], one.images[::-1], one.images ^ 1):
            np.save(run / images, other)
            with refused(str(run / features), str(run / images)):
                check(run)
        np.save(run / images, one.images)
        right = (run / features).read_bytes()
        changed = np.load(run / features)
        changed[3, 2] += 1
        for write in (lambda path, changed=changed: np.save(path, changed), lambda path: path.unlink(),
                      lambda path: path.write_bytes(b"")):
            write(run / features)
            with refused(str(run / features)):
                check(run)
            (run / features).write_bytes(right)
    check(run)


def test_features_without_what_recognises_them_are_not_checked(tmp_path, sets):
    np.save(tmp_path / OUTPUTS[0], np.zeros((20, 6), np.float32))
    for content in (None, b"", b"a"):
        if content is not None:
            (tmp_path / FILE).write_bytes(content)
        check(tmp_path)
