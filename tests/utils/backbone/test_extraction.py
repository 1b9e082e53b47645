import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from datasets.arrays import FEATURES_RECORD, Originals
from datasets.images import read_image
from tests.conftest import ROOT, refused
from utils.backbone.extraction import PARTIAL, extract
from utils.errors import RunError
from utils.files import sha256

SIZE = 6
OUTPUTS = ("features_train.npy", "features_val.npy", FEATURES_RECORD)


class Means:
    """A backbone: the mean of each channel, and those of the image's left half.

    Attributes:
        calls: the number of images of each call.
        most: how many calls there were at the same time.
    """

    size = SIZE

    def __init__(self, key="0", batch=1, concurrent=True, then=None):
        self.key, self.batch, self.concurrent, self._then = key * 64, batch, concurrent, then
        self.calls, self.most, self._running = [], 0, 0

    def features(self, images):
        self.calls.append(len(images))
        self._running += 1
        time.sleep(0.003)
        self.most = max(self.most, self._running)
        self._running -= 1
        features = means_of(images)
        return features if self._then is None else self._then(sum(self.calls), features)


def means_of(images):
    assert images.dtype == np.uint8 and images.shape[1:] == (3, SIZE, SIZE)
    return np.concatenate([images.mean(axis=(2, 3)), images[..., :SIZE // 2].mean(axis=(2, 3))],
                          axis=1).astype(np.float32)


@dataclass
class Set:
    originals: list | Originals


def photos(folder, count, seed=0):
    """A set of photos, some turned by their EXIF data."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = [folder / f"{number}.{'png' if number % 2 else 'jpg'}" for number in range(count)]
    exif = Image.Exif()
    exif[274] = 6
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (9, 7, 3)).astype(np.uint8)).save(path, exif=exif)
    return Set(paths)


def expected(paths):
    return means_of(np.stack([read_image(path, size=SIZE) for path in paths]))


def contents(folder):
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


@pytest.fixture
def sets(tmp_path):
    return photos(tmp_path / "train", 20), photos(tmp_path / "val", 5, seed=1)


@pytest.fixture
def one_core(monkeypatch):
    monkeypatch.setattr("datasets.images.available_cores", lambda: 1)


@pytest.mark.parametrize(("batch", "concurrent"), [(1, True), (4, True), (3, False)])
def test_features_are_those_of_each_original_at_the_backbones_size(tmp_path, sets, monkeypatch, batch,
                                                                  concurrent):
    monkeypatch.setattr("datasets.images.available_cores", lambda: 4)
    backbone = Means(batch=batch, concurrent=concurrent)
    found = extract(backbone, tmp_path / "run", *sets)
    for features, one, name in zip(found, sets, OUTPUTS[:2], strict=True):
        assert features.dtype == np.float32
        assert np.array_equal(features, expected(one.originals))
        assert np.array_equal(np.load(tmp_path / "run" / name), features)
    assert sum(backbone.calls) == 25 and max(backbone.calls) == batch
    assert backbone.calls.count(batch) == 25 // batch
    assert (backbone.most > 1) == concurrent
    assert sorted(os.listdir(tmp_path / "run")) == sorted(OUTPUTS)


@pytest.mark.parametrize("shape", [(9, 7, 3), (9, 7)])
def test_originals_can_be_pixels(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, (5, *shape)).astype(np.uint8)
    features, none = extract(Means(), tmp_path, Set(Originals(pixels, np.arange(5))), None)
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path, image in zip(paths, pixels, strict=True):
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

    def computed(train, test):
        backbone = Means()
        features, held_out = extract(backbone, run, train, test)
        assert np.array_equal(features, expected(train.originals))
        assert np.array_equal(held_out, expected(test.originals))
        return sum(backbone.calls)

    assert computed(train, test) == 25
    before = [(run / name).stat().st_mtime_ns for name in OUTPUTS]
    assert computed(train, test) == 0
    assert [(run / name).stat().st_mtime_ns for name in OUTPUTS] == before
    more = photos(tmp_path / "more", 3, seed=2)
    assert computed(Set(more.originals + train.originals), test) == 3
    moved = Set(test.originals + train.originals[2:])
    assert computed(moved, more) == 0
    moved.originals[9].write_bytes(train.originals[0].read_bytes()[:-2] + b"ab")
    assert computed(moved, more) == 1


@pytest.mark.parametrize(("choose", "count"), [
    (lambda old, new: (old[:20], old[20:]), 0),  # the same
    (lambda old, new: (old[:20] + new, old[20:]), 3),
    (lambda old, new: (old[3:11], old[22:]), 0),  # fewer
    (lambda old, new: (new[:2] + old[24:] + old[:7], new[2:] + old[7:9]), 3),
    (lambda old, new: (new[:2], new[2:]), 3)])  # others
def test_copied_features_of_an_earlier_run_are_not_computed_again(tmp_path, sets, choose, count):
    extract(Means(), tmp_path / "earlier", *sets)
    before = contents(tmp_path / "earlier")
    (tmp_path / "run").mkdir()
    for path in (tmp_path / "earlier").glob("features*"):
        shutil.copy(path, tmp_path / "run")
    train, test = map(Set, choose(sets[0].originals + sets[1].originals,
                                  photos(tmp_path / "more", 3, seed=2).originals))
    backbone = Means()
    found = extract(backbone, tmp_path / "run", train, test)
    assert sum(backbone.calls) == count
    for features, one in zip(found, (train, test), strict=True):
        assert np.array_equal(features, expected(one.originals))
    extract(Means(), tmp_path / "whole", train, test)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert contents(tmp_path / "earlier") == before


def test_features_of_a_set_that_is_left_out_stay_recognised(tmp_path, sets):
    extract(Means(), tmp_path, *sets)
    before = contents(tmp_path)
    extract(Means(), tmp_path, Set(sets[0].originals[:4]), None)
    assert (tmp_path / OUTPUTS[1]).read_bytes() == before[OUTPUTS[1]]
    backbone = Means()
    extract(backbone, tmp_path, *sets)
    assert sum(backbone.calls) == 16 and contents(tmp_path) == before


def test_files_that_are_both_sets_are_read_once(tmp_path, sets, monkeypatch):
    read = []
    monkeypatch.setattr("utils.backbone.extraction.sha256",
                        lambda path: read.append(path) or sha256(path))
    train = sets[0]
    for test in (train, Set(list(train.originals))):
        features, held_out = extract(Means(), tmp_path / "run", train, test)
        assert np.array_equal(features, held_out) and len(features) == 20
        hashed = [path for path in read if path in train.originals]
        shutil.rmtree(tmp_path / "run")
        read.clear()
        assert len(hashed) == 40  # before and after they are decoded
    features, held_out = extract(Means(), tmp_path / "run", train, Set(train.originals[::-1]))
    assert np.array_equal(features[::-1], held_out)


CHANGES = [lambda content: content[:150] + bytes([content[150] ^ 1]) + content[151:],
           lambda content: b"", lambda content: content[:-4], None]


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("change", CHANGES)
def test_features_that_are_not_as_written_are_never_replaced(tmp_path, sets, name, change):
    run = tmp_path / "run"
    extract(Means(), run, *sets)
    right = contents(run)
    if change:
        (run / name).write_bytes(change(right[name]))
    else:
        (run / name).unlink()
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    backbone = Means()
    if change is None and name != FEATURES_RECORD:  # no features are lost
        extract(backbone, run, *sets)
        assert contents(run) == right
        return
    with refused(str(run), OUTPUTS[0] if name == FEATURES_RECORD else name, "--output"):
        extract(backbone, run, Set([tmp_path / "none"]), sets[1])
    assert backbone.calls == [] and {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("name", OUTPUTS[:2])
def test_features_of_another_backbone_are_never_replaced(tmp_path, sets, name):
    extract(Means(key="1"), tmp_path / "run", *sets)
    for other in set(OUTPUTS[:2]) - {name}:
        (tmp_path / "run" / other).unlink()
    with pytest.raises(KeyboardInterrupt):
        extract(Means(key="1", then=interrupt(1)), tmp_path / "others", *sets)
    shutil.copy(tmp_path / "others" / PARTIAL, tmp_path / "run")  # of that backbone too
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    backbone = Means()
    with refused(name, "--output"):
        extract(backbone, tmp_path / "run", *sets)
    assert backbone.calls == []
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def interrupt(after):
    def raise_after(done, features):
        if done > after:
            raise KeyboardInterrupt
        return features
    return raise_after


@pytest.mark.usefixtures("one_core")
def test_interrupted_extraction_resumes_with_the_same_bytes(tmp_path, sets):
    extract(Means(), tmp_path / "whole", *sets)
    with pytest.raises(KeyboardInterrupt):
        extract(Means(then=interrupt(12)), tmp_path / "run", *sets)
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

os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
folder = Path(sys.argv[1])
train, test = photos(folder / "train", 20), photos(folder / "val", 5, seed=1)
extract(Means(then=kill), folder / "run", train, test)
"""


def test_killed_extraction_resumes_with_the_same_bytes(tmp_path, sets):
    extract(Means(), tmp_path / "whole", *sets)
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    backbone = Means()
    extract(backbone, tmp_path / "run", *sets)
    assert 13 <= sum(backbone.calls) <= 16  # the last results may not have been collected
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("one_core")
def test_torn_or_damaged_records_are_computed_again(tmp_path, sets):
    extract(Means(), tmp_path / "whole", *sets)
    with pytest.raises(KeyboardInterrupt):
        extract(Means(then=interrupt(12)), tmp_path / "run", *sets)
    partial = (tmp_path / "run" / PARTIAL).read_bytes()
    shutil.rmtree(tmp_path / "run")
    record = 16 + 4 * 6 + 4
    header = len(partial) - 12 * record
    flipped = bytearray(partial)
    flipped[header + 5 * record + 20] ^= 1
    for content, kept in [(partial[:-1], 11), (partial[:header + record // 2], 0), (partial[:50], 0),
                          (b"", 0), (partial + bytes(1000), 12), (bytes(len(partial)), 0),
                          (bytes(flipped), 5), (partial + partial[header:], 12), (partial, 12)]:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / PARTIAL).write_bytes(content)
        backbone = Means()
        extract(backbone, tmp_path / "run", *sets)
        assert sum(backbone.calls) == 25 - kept
        assert contents(tmp_path / "run") == contents(tmp_path / "whole")
        shutil.rmtree(tmp_path / "run")


@pytest.mark.parametrize("has_records", [True, False])
@pytest.mark.parametrize("hard", [True, False])
def test_links_in_place_of_the_records_are_not_followed(tmp_path, sets, has_records, hard):
    secret, run = tmp_path / "secret", tmp_path / "run"
    run.mkdir()
    secret.write_bytes(b"precious" * 100)
    if has_records:
        with pytest.raises(KeyboardInterrupt):
            extract(Means(then=interrupt(12)), tmp_path / "other", *sets)
        secret.write_bytes((tmp_path / "other" / PARTIAL).read_bytes())
    before = secret.read_bytes()
    if hard:
        os.link(secret, run / PARTIAL)
    else:
        (run / PARTIAL).symlink_to(secret)
    backbone = Means()
    extract(backbone, run, *sets)
    assert (has_records and hard) or secret.read_bytes() == before
    assert (has_records and hard) or sum(backbone.calls) == 25
    assert sorted(os.listdir(run)) == sorted(OUTPUTS)


def test_link_to_nothing_in_place_of_the_records_is_replaced(tmp_path, sets):
    (tmp_path / PARTIAL).symlink_to(tmp_path / "secret")
    extract(Means(), tmp_path, *sets)
    assert not (tmp_path / "secret").exists()


@pytest.mark.usefixtures("one_core")
def test_records_of_another_backbone_are_not_used(tmp_path, sets):
    with pytest.raises(KeyboardInterrupt):
        extract(Means(then=interrupt(12)), tmp_path / "run", *sets)
    backbone = Means(key="1")
    extract(backbone, tmp_path / "run", *sets)
    assert sum(backbone.calls) == 25


@pytest.mark.usefixtures("one_core")
def test_kill_while_the_files_are_written_loses_nothing(tmp_path, sets, monkeypatch):
    extract(Means(), tmp_path / "whole", *sets)
    extract(Means(), tmp_path / "run", Set(sets[0].originals[4:]), sets[1])
    for name in OUTPUTS[1:]:
        def replace(old, new, name=name):
            if os.fspath(new).endswith(name):
                raise KeyboardInterrupt
            os.rename(old, new)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("os.replace", replace)
            extract(Means(), tmp_path / "run", *sets)
        assert (tmp_path / "run" / PARTIAL).exists()
        backbone = Means()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("os.replace", replace)
            extract(backbone, tmp_path / "run", *sets)
        assert backbone.calls == []
    extract(backbone, tmp_path / "run", *sets)
    assert backbone.calls == []
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("one_core")
def test_two_extractions_at_once_never_mix_their_records(tmp_path, sets):
    def other(done, features):
        if done == 12:
            with refused(str(tmp_path / "run"), "--output", error=RunError):
                extract(Means(), tmp_path / "run", *sets)
        return features

    features, _ = extract(Means(then=other), tmp_path / "run", *sets)
    assert np.array_equal(features, expected(sets[0].originals))
    extract(Means(), tmp_path / "run", Set(sets[0].originals[4:]), sets[1])


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
@pytest.mark.usefixtures("one_core")
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


@pytest.mark.usefixtures("one_core")
def test_file_that_vanishes_or_changes_meanwhile_is_named(tmp_path, sets):
    path = sets[0].originals[19]
    for change in (path.unlink, lambda: path.write_bytes(sets[0].originals[0].read_bytes())):
        content = path.read_bytes()

        def once(done, features, change=change):
            if done == 1:
                change()
            return features

        with refused(str(path)):
            extract(Means(then=once), tmp_path / "run", *sets)
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
