import csv
import io
import os
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from datasets.own import draw, load_own
from utils.errors import UserError


def load(path, val_fraction=None, strict=False, seed=0):
    return load_own(path, val_fraction, strict, np.random.default_rng(seed))


def write_image(path, level=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), level).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Ten images of each of three classes; the level of each says which."""
    for label, name in enumerate(["cat", "dog", "10"]):
        for number in range(10):
            write_image(tmp_path / "images" / name / f"{number}.png", 50 * label + number)
    return tmp_path / "images"


def levels(split):
    return split.images[:, 0, 0, 0].tolist()


def test_folder_of_class_folders(folder, capsys):
    write_image(folder / "cat" / "more" / "deep.png", 49)
    write_image(folder / ".hidden" / "a.png")
    (folder / "cat" / ".DS_Store").write_text("no image")
    source = load(folder)
    assert source.names == ["10", "cat", "dog"]  # numbers before words
    assert (len(source.train.images), len(source.test.images)) == (25, 6)
    assert not source.trusted and source.confusable == {0: 1, 1: 2, 2: 0}
    for split in (source.train, source.test):
        for level, label in zip(levels(split), split.labels[:, 0]):
            assert source.names[label] == ["cat", "dog", "10"][level // 50]
    expected = {level: f"{['cat', 'dog', '10'][level // 50]}/{level % 50}.png" for level in range(150)}
    expected[49] = "cat/more/deep.png"
    assert [expected[level] for level in levels(source.train)] == source.paths
    assert capsys.readouterr().out == (
        "reading 31 samples of 3 classes: 10 10, cat 11, dog 10\n"
        "6 images are held out to test on, and will not be ranked (--val_fraction 0 ranks all)\n")


def test_all_images_are_ranked_where_none_are_held_out(folder, capsys):
    source = load(folder, val_fraction=0)
    assert len(source.train.images) == len(source.paths) == 30
    assert np.array_equal(source.train.images, source.test.images)
    assert np.array_equal(source.train.labels, source.test.labels)
    assert "none are held out: all are ranked" in capsys.readouterr().out


def test_files_beside_the_class_folders_are_named(folder, capsys):
    write_image(folder / "b\n.png")
    (folder / "c.txt").write_text("about")
    (folder / ".DS_Store").write_text("no image")
    assert len(load(folder).train.images) == 24
    assert capsys.readouterr().out.splitlines()[0] == (
        rf"left out, beside the class folders of {folder}: 'b\n.png' and 1 more")


def test_the_test_set_is_drawn_by_the_seed(folder):
    splits = [levels(load(folder, seed=seed).test) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    assert len(load(folder, val_fraction=0.5).test.images) == 15


def test_no_class_goes_to_the_test_set_whole():
    labels = np.array([0, 1, 1, 2, 2, 2, 2, 2, 2, 2])
    drawn = draw(labels, 0.9, np.random.default_rng(0))
    assert [int(drawn[labels == label].sum()) for label in range(3)] == [0, 1, 6]


def test_train_and_val_folders(folder, tmp_path):
    for name in ("cat", "dog"):
        write_image(tmp_path / "both" / "train" / name / "a.png", 1)
        write_image(tmp_path / "both" / "val" / name / "b.png", 2)
    source = load(tmp_path / "both")
    assert (levels(source.train), levels(source.test)) == ([1, 1], [2, 2])
    assert source.paths == ["train/cat/a.png", "train/dog/a.png"]
    with pytest.raises(UserError, match="val folder, and --val_fraction 0.3"):
        load(tmp_path / "both", val_fraction=0.3)
    write_image(tmp_path / "both" / "val" / "cow" / "b.png")
    with pytest.raises(UserError, match="expected the classes of .*train in its val .* found 'cow'"):
        load(tmp_path / "both")


def test_val_folder_without_images_is_refused(tmp_path):
    for name in ("cat", "dog"):
        write_image(tmp_path / "train" / name / "a.png", 1)
    (tmp_path / "val").mkdir()
    with pytest.raises(UserError, match="one folder of images a class in .*val, found none"):
        load(tmp_path)
    write_image(tmp_path / "val" / "cat" / "a.png", 1)
    (tmp_path / "val" / "dog").mkdir()
    with pytest.raises(UserError, match="every class folder of .*val, found none in 'dog'"):
        load(tmp_path)


def test_a_class_may_be_called_train(folder):
    (folder / "cat").rename(folder / "train")
    assert load(folder).names == ["10", "dog", "train"]


def test_train_alone_and_other_divisions(folder, tmp_path):
    (tmp_path / "both").mkdir()
    folder.rename(tmp_path / "both" / "train")
    source = load(tmp_path / "both")
    assert source.names == ["10", "cat", "dog"] and len(source.test.images) == 6
    for name in ("test", "Val", "valid"):
        write_image(tmp_path / "both" / name / "cat" / "a.png")
        with pytest.raises(UserError, match=f"train and val, or train alone, in .*'{name}'.*; rename"):
            load(tmp_path / "both")
        shutil.rmtree(tmp_path / "both" / name)


def test_numbers_are_classes_in_their_order(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((6, 8, 8), np.uint8), y=np.array([10, 9, 10, 9, 9, 10]))
    assert load(tmp_path / "a.npz").names == ["9", "10"]


def write_table(path, rows, header="path,label"):
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    path.write_bytes(b"\xef\xbb\xbf" + f"{header}\n{text.getvalue()}".encode())
    return path


def test_classes_are_counted_in_their_order(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", x=np.zeros((44, 8, 8), np.uint8), y=np.repeat(np.arange(22)[::-1], 2))
    load(tmp_path / "a.npz", val_fraction=0)
    listed = ", ".join(f"{number} 2" for number in range(20))
    assert capsys.readouterr().out.splitlines()[0] == f"reading 44 samples of 22 classes: {listed}, ..."


def test_link_to_a_listed_file_is_that_file(folder):
    (folder / "link.png").symlink_to("cat/1.png")
    with pytest.raises(UserError, match="every file once in .*'link.png' again in row 2"):
        load(write_table(folder / "list.csv", [("cat/1.png", "a"), ("link.png", "b")]))


def test_table_of_paths_and_labels(folder):
    rows = [(f"{name}/{number}.png", label) for number in range(10)
            for name, label in [("cat", "a cat, \"big\""), ("dog", "<b>")]]
    source = load(write_table(folder / "list.csv", rows))
    assert source.names == ["<b>", 'a cat, "big"']
    assert len(source.train.images) == 16
    for path, label in zip(source.paths, source.train.labels[:, 0]):
        assert dict(rows)[path] == source.names[label]


@pytest.mark.parametrize("shape", ["nhwc", "nchw", "nhw"])
def test_arrays(tmp_path, shape):
    x = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3)).astype(np.uint8)
    y = np.resize([7, -1], (20, 1))
    saved = {"nhwc": x, "nchw": x.transpose(0, 3, 1, 2), "nhw": x[..., 0]}[shape]
    np.savez_compressed(tmp_path / "a.npz", x=saved, y=y)
    source = load(tmp_path / "a.npz")
    assert source.names == ["-1", "7"] and source.paths is None
    assert (source.train.labels.sum(), source.test.labels.sum()) == (8, 2)
    known = {image.tobytes() for image in x.transpose(0, 3, 1, 2)}
    if shape == "nhw":
        known = {image.tobytes() for image in np.repeat(x[:, None, :, :, 0], 3, axis=1)}
    assert {image.tobytes() for image in source.train.images} < known


def test_file_that_is_no_image_is_skipped_with_its_name(folder, capsys):
    (folder / "cat" / "notes\n.txt").write_text("no image")
    for number in range(12):
        (folder / "dog" / f"x{number:02}.png").write_bytes(b"\x89PNG\r\n")
    write_image(folder / "dog" / os.fsdecode(b"\xff.png"))
    (folder / "dog" / "y.png").symlink_to("nowhere")
    os.mkfifo(folder / "cat" / "pipe")
    (folder / "dog" / "z.png").symlink_to("../cat/pipe")
    source = load(folder)
    assert len(source.train.images) == 24
    lines = capsys.readouterr().out.splitlines()[1:-1]
    assert lines[0].startswith("skipped 'cat/notes\\n.txt': ")
    assert lines[1] == "skipped 'cat/pipe': it is no file"
    assert lines[2].startswith("skipped 'dog/x00.png': cannot identify image file")
    assert len(lines) == 11 and lines[-1] == "skipped 7 more, listed in skipped.txt"
    assert [f"skipped {line}" for line in source.skipped[:10]] == lines[:10]
    assert source.skipped[-2] == "'dog/z.png': it is no file" and len(source.skipped) == 17
    with pytest.raises(UserError, match=r"17 of 47 files are no images .*first 'cat/notes\\n.txt'"):
        load(folder, strict=True)


def test_bad_folders_are_refused(folder, tmp_path, monkeypatch):
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="found none in 'empty'; add some or remove it"):
        load(folder)
    (folder / "empty").rename(folder / "Cat")
    write_image(folder / "Cat" / "a.png")
    with pytest.raises(UserError, match="more than case and blanks in .*, found 'Cat' and 'cat'"):
        load(folder)
    (folder / "Cat").rename(folder / "cat ")
    with pytest.raises(UserError, match="more than case and blanks in .*, found 'cat' and 'cat '"):
        load(folder)
    with pytest.raises(UserError, match="one folder of images a class in .*cat, found none"):
        load(folder / "cat")
    with pytest.raises(UserError, match="found nothing"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="found another file"):
        load(folder / "cat" / "0.png")
    write_image(tmp_path / "one" / "cat" / "a.png")
    monkeypatch.setattr("datasets.own.decode", lambda *_: pytest.fail("decoded before it was checked"))
    with pytest.raises(UserError, match="at least 2 classes in .*, found 1"):
        load(tmp_path / "one")
    monkeypatch.undo()
    write_image(tmp_path / "one" / "dog" / "a.png")
    with pytest.raises(UserError, match="at least one image to test on"):
        load(tmp_path / "one")
    write_image(tmp_path / "one" / "a\u2028b" / "a.png")
    with pytest.raises(UserError, match=r"one line of UTF-8 text in .*, found 'a\\u2028b'"):
        load(tmp_path / "one", 0.5)


def test_bad_tables_are_refused(folder):
    table = folder / "list.csv"
    with pytest.raises(UserError, match="none at 2 of them, 'cat/77.png' the first"):
        load(write_table(table, [("cat/1.png", "a"), ("cat/77.png", "b"), ("../x.png", "b")]))
    with pytest.raises(UserError, match="expected the columns path, label .*found 'path', 'class'"):
        load(write_table(table, [("cat/1.png", "a")], header="path,class"))
    with pytest.raises(UserError, match="a label in row 2 of .*found 'cat/2.png' and ''"):
        load(write_table(table, [("cat/1.png", "a"), ("cat/2.png", "")]))
    with pytest.raises(UserError, match="a label in row 1 of .*found 'cat/2.png' and ''"):
        load(write_table(table, [("cat/2.png",)]))
    table.write_bytes(b"path,label\n\xff,a\n")
    with pytest.raises(UserError, match="cannot read .*list.csv as a CSV in UTF-8"):
        load(table)
    with pytest.raises(UserError, match="class names of one line"):
        load(write_table(table, [("cat/1.png", "a\nb"), ("cat/2.png", "a\nb")]), 0.5)
    with pytest.raises(UserError, match="class names of one line"):
        load(write_table(table, [("cat/1.png", "\x1b[31mred"), ("cat/2.png", "b")]), 0.5)
    for again in ("cat/1.png", "dog/../cat/1.png", folder / "cat" / "1.png"):
        with pytest.raises(UserError, match="every file once in .*cat/1.png' again in row 2"):
            load(write_table(table, [("cat/1.png", "a"), (again, "b")]))
    for mark in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069":
        with pytest.raises(UserError, match="class names of one line"):
            load(write_table(table, [("cat/1.png", f"a{mark}b"), ("cat/2.png", "b")]), 0.5)
    with pytest.raises(UserError, match="columns path, label once each .*'label', 'label'"):
        load(write_table(table, [("cat/1.png", "a", "b")], header="path,label,label"))
    with pytest.raises(UserError, match="none at 1 of them"):
        load(write_table(table, [("a" * 300, "a"), ("cat/1.png", "b")]))
    table.write_text("")
    with pytest.raises(UserError, match="found nothing; write the columns path,label, with commas"):
        load(table)
    names = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    with pytest.raises(UserError, match=r"found 'cafe\\u0301' and 'caf\\xe9'"):
        load(write_table(table, [("cat/1.png", names[0]), ("cat/2.png", names[1])]))


def test_blanks_around_labels_and_headers_do_not_count(folder):
    rows = [(f"cat/{number}.png", ["a", " a "][number % 2]) for number in range(5)]
    rows += [(f"dog/{number}.png", "b") for number in range(5)]
    assert load(write_table(folder / "a.csv", rows, header="path, label")).names == ["a", "b"]


@pytest.mark.parametrize(("arrays", "message"), [
    ({"x": np.zeros((4, 8, 8)), "y": np.arange(4)}, "found float64 \\(4, 8, 8\\)"),
    ({"x": np.zeros((4, 8, 8, 4), np.uint8), "y": np.arange(4)}, "found uint8 \\(4, 8, 8, 4\\)"),
    ({"x": np.zeros((0, 8, 8), np.uint8), "y": np.arange(0)}, "found uint8 \\(0, 8, 8\\)"),
    ({"x": np.zeros((4, 8, 8), np.uint8), "y": np.arange(3)}, "as integers \\(4,\\).*int64 \\(3,\\)"),
    ({"x": np.zeros((4, 8, 8), np.uint8), "y": np.zeros(4)}, "found float64 \\(4,\\)"),
    ({"x": np.zeros((4, 8, 8), np.uint8), "y": np.array([1, "a", 2, None], object)}, "allow_pickle"),
    ({"images": np.zeros((4, 8, 8), np.uint8)}, "cannot read the arrays x and y"),
    ({"x": np.zeros((4, 8, 8), np.uint8), "y": np.zeros(4, int)}, "at least 2 classes"),
])
def test_bad_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "a.npz")
