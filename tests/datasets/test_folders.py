import errno
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from datasets.folders import find, is_system
from tests.conftest import refused
from tests.datasets.test_own import load, write_image


def make(root, *files):
    for number, file in enumerate(files):
        write_image(root / file, 50 + number)
    return root


def listed(path):
    found = find(path)
    return sorted((file.relative_to(path).as_posix(), name, held) for file, name, held in zip(
        found.files, found.classes, found.held_out, strict=True))


@pytest.mark.parametrize("name", [
    "@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot", "$RECYCLE.BIN", "$Recycle.Bin",
    "System Volume Information", "__MACOSX", "lost+found", ".Trash-1000", ".ipynb_checkpoints"])
def test_folders_of_systems_are_left_out_at_every_depth_and_told(tmp_path, capsys, name):
    make(tmp_path, "a/1.png", "b/2.png", "a/deep/3.png")
    expected = listed(tmp_path)
    assert capsys.readouterr().out == ""
    make(tmp_path, f"{name}/4.png", f"a/{name}/1.png/THUMB.jpg", f"a/deep/{name}/5.png")
    assert listed(tmp_path) == expected
    line, = capsys.readouterr().out.splitlines()
    assert f"{name!a} 3" in line


@pytest.mark.parametrize("name", ["Thumbs.db", "desktop.ini", ".DS_Store", "ehthumbs.db", "Icon\r",
                                  "._1.png", "1.png:Zone.Identifier"])
def test_files_of_systems_are_no_images_and_no_errors(tmp_path, capsys, name):
    make(tmp_path, "a/1.png", "b/2.png", "a/deep/3.png")
    for folder in (".", "a", "a/deep"):
        (tmp_path / folder / name).write_text("no image")
    source = load(tmp_path, 0.0, strict=True)
    assert source.paths == ["a/1.png", "a/deep/3.png", "b/2.png"] and not source.skipped
    assert f"{name!a} 3" in capsys.readouterr().out.splitlines()[0]


def test_systems_names_are_whole_names():
    assert not any(map(is_system, ["#1", "@home", "recycled", "trash", "lost", "snapshot", "1.db",
                                   "my @eaDir", "$100"]))


def test_splits_by_any_usual_name(tmp_path):
    for number, (train, test) in enumerate([
            ("train", "val"), ("Training", "Testing"), ("TRAIN", "valid"), ("seg_train", "seg_test"),
            ("train_images", "validation-images"), ("trainset", "testset"), ("train", "test")]):
        root = make(tmp_path / str(number), *(f"{part}/{name}/1.png" for part in (train, test)
                                              for name in "ab"))
        assert listed(root) == sorted((f"{part}/{name}/1.png", name, part == test)
                                      for part in (train, test) for name in "ab")


def test_val_and_test_folders_are_both_tested_on(tmp_path, capsys):
    make(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "test/b/1.png")
    source = load(tmp_path, 0.0)
    assert source.paths == ["train/a/1.png", "train/b/1.png"] and len(source.test.images) == 2
    assert "'test' and 'val'" in capsys.readouterr().out.splitlines()[-1]


def test_test_folder_without_classes_is_left_out_and_told(tmp_path, capsys):
    make(tmp_path, "seg_train/seg_train/a/1.png", "seg_train/seg_train/b/1.png",
         "seg_test/seg_test/a/1.png", "seg_pred/seg_pred/1.png", "seg_pred/seg_pred/2.png")
    assert listed(tmp_path) == [
        ("seg_test/seg_test/a/1.png", "a", True), ("seg_train/seg_train/a/1.png", "a", False),
        ("seg_train/seg_train/b/1.png", "b", False)]
    assert "'seg_pred'" in capsys.readouterr().out
    make(tmp_path / "other", "train/a/1.png", "train/b/1.png", "test/1.png")
    assert all(not held for *_, held in listed(tmp_path / "other"))
    assert "'test'" in capsys.readouterr().out


@pytest.mark.parametrize("others", [("Train",), ("val", "valid"), ("extra",), ("pred",)])
def test_splits_that_are_not_clear_are_refused(tmp_path, others):
    make(tmp_path, *(f"{part}/{name}/1.png" for part in ("train", *others) for name in "ab"))
    with refused(str(tmp_path), "'train'", *map(ascii, others)):
        find(tmp_path)


def test_split_without_train_is_refused(tmp_path):
    make(tmp_path, "val/a/1.png", "test/a/1.png")
    with refused("train", "'test', 'val'"):
        find(tmp_path)


def test_val_folder_without_images_is_refused(tmp_path):
    make(tmp_path, "train/cat/1.png", "train/dog/1.png")
    (tmp_path / "val").mkdir()
    with refused(f"{tmp_path}/val"):
        find(tmp_path)
    make(tmp_path, "val/cat/1.png")
    (tmp_path / "val" / "dog").mkdir()
    with refused(str(tmp_path), "'dog'"):
        find(tmp_path)


def test_class_may_be_called_like_a_split(tmp_path):
    make(tmp_path, "train/1.png", "test/2.png", "passenger train/3.png")
    assert [(name, held) for _, name, held in listed(tmp_path)] == [
        ("passenger train", False), ("test", False), ("train", False)]


def test_classes_one_folder_down_are_told(tmp_path):
    make(tmp_path, "fold1/a/1.png", "fold1/b/1.png", "fold2/a/2.png", "fold2/b/2.png", "fold2/c/2.png")
    with refused(str(tmp_path), "'fold1', 'fold2'", "'a', 'b'"):
        find(tmp_path)
    write_image(tmp_path / "fold1" / "3.png")  # an image of a class
    assert {name for _, name, _ in listed(tmp_path)} == {"fold1", "fold2"}
    make(tmp_path / "wrapped", "archive/pets/a/1.png", "archive/pets/b/1.png")
    (tmp_path / "wrapped" / "readme.txt").touch()
    with refused(f"{tmp_path}/wrapped", f"give {tmp_path}/wrapped/archive/pets "):
        find(tmp_path / "wrapped")


def test_one_folder_in_every_class_is_no_split(tmp_path):
    make(tmp_path, "a/images/1.png", "b/images/1.png")
    assert [name for _, name, _ in listed(tmp_path)] == ["a", "b"]


def test_links_to_class_folders_are_followed_and_loops_end(tmp_path):
    make(tmp_path, "set/a/1.png", "elsewhere/2.png")
    (tmp_path / "set" / "b").symlink_to(tmp_path / "elsewhere")
    for name in ("loop", "loop2"):
        (tmp_path / "set" / "a" / name).symlink_to("..")
    (tmp_path / "set" / "self").symlink_to("self")
    source = load(tmp_path / "set", 0.0)
    assert source.paths == ["a/1.png", "b/2.png"]
    assert [line.partition(": ")[0] for line in source.skipped] == ["'a/loop'", "'a/loop2'"]
    with refused("'a/loop'", "--strict"):
        load(tmp_path / "set", 0.0, strict=True)
    with refused("set/a", "none"):  # not a class that holds its own parent
        load(tmp_path / "set" / "a", 0.0)


@contextmanager
def unreadable(path):
    """Nobody may read `path`, and this process has the rights of a user who is not root."""
    rights, user = path.stat().st_mode, os.geteuid()
    path.chmod(0)
    try:
        if user == 0:
            os.seteuid(65534)
    except OSError as error:
        pytest.skip(f"needs an ordinary user: {error}")
    try:
        yield
    finally:
        os.seteuid(user)
        path.chmod(rights)


@pytest.mark.parametrize(("path", "paths"), [
    ("a/sub", ["a/1.png", "b/1.png"]), ("a/1.png", ["a/sub/2.png", "b/1.png"])])
def test_what_cannot_be_read_is_named_and_with_strict_an_error(tmp_path, monkeypatch, path, paths):
    make(tmp_path / "set", "a/1.png", "a/sub/2.png", "b/1.png")
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # an ordinary user may not enter the folders above
    assert len(load(Path("set"), 0.0, strict=True).paths) == 3
    with unreadable(tmp_path / "set" / path):
        source = load(Path("set"), 0.0)
        with refused(ascii(path), "--strict"):
            load(Path("set"), 0.0, strict=True)
    assert source.paths == paths
    line, = source.skipped
    assert line == f"{path!a}: {os.strerror(errno.EACCES)}"


@pytest.mark.parametrize("path", [".", "a", "train", "train/a"])
def test_class_or_set_that_cannot_be_read_is_refused(tmp_path, monkeypatch, path):
    make(tmp_path / "set", *(["train/a/1.png", "train/b/1.png", "val/a/1.png"] if "train" in path else
                             ["a/1.png", "b/1.png"]))
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    with unreadable(tmp_path / "set" / path), \
            refused(str(Path("set") / path), os.strerror(errno.EACCES)):
        load(Path("set"), 0.0)


def test_splits_without_class_folders_are_no_classes(tmp_path):
    make(tmp_path, "train/1.png", "Test/2.png")
    with refused(str(tmp_path), "'Test'", "'train'"):
        find(tmp_path)
    make(tmp_path, "bus/3.png")  # a train may be a vehicle
    assert [name for _, name, _ in listed(tmp_path)] == ["Test", "bus", "train"]
