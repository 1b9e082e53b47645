import csv
import io
import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from datasets.own import draw, load_own
from tests.conftest import numbers, refused
from utils.errors import UserError


def load(path, val_fraction=0.2, strict=False, seed=0):
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
            write_image(tmp_path / "images" / name / f"{number}.png", 50 * label + number + 70)
    return tmp_path / "images"


def levels(split):
    return [level - 70 for level in split.images[:, 0, 0, 0].tolist()]


def test_folder_of_class_folders(folder, capsys):
    write_image(folder / "cat" / "more" / "deep.png", 49 + 70)
    source = load(folder)
    assert source.names == ["10", "cat", "dog"]  # numbers before words
    assert (len(source.train.images), len(source.test.images)) == (25, 6)
    assert not source.trusted and source.confusable == {0: 1, 1: 2, 2: 0}
    for split in (source.train, source.test):
        for level, label in zip(levels(split), split.labels[:, 0], strict=True):
            assert source.names[label] == ["cat", "dog", "10"][level // 50]
    expected = {level: f"{['cat', 'dog', '10'][level // 50]}/{level % 50}.png" for level in range(150)}
    expected[49] = "cat/more/deep.png"
    assert [expected[level] for level in levels(source.train)] == source.paths
    counted, held_out = capsys.readouterr().out.splitlines()
    assert "31" in counted and "10 10, cat 11, dog 10" in counted
    assert "6" in held_out and "--val_fraction 0" in held_out


def test_all_images_are_ranked_where_none_are_held_out(folder):
    source = load(folder, val_fraction=0.0)
    assert len(source.train.images) == len(source.paths) == 30
    assert np.array_equal(source.train.images, source.test.images)
    assert np.array_equal(source.train.labels, source.test.labels)


def test_files_beside_the_class_folders_are_named(folder, capsys):
    write_image(folder / "b\n.png")
    (folder / "c.txt").write_text("about")
    (folder / ".DS_Store").write_text("no image")
    assert len(load(folder).train.images) == 24
    line = capsys.readouterr().out.splitlines()[0]
    assert str(folder) in line and r"'b\n.png'" in line and " 1 " in line


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
        write_image(tmp_path / "both" / "train" / name / "a.png", 71)
        write_image(tmp_path / "both" / "val" / name / "b.png", 72)
    source = load(tmp_path / "both", val_fraction=0.0)
    assert (levels(source.train), levels(source.test)) == ([1, 1], [2, 2])
    assert source.paths == ["train/cat/a.png", "train/dog/a.png"]
    assert load(tmp_path / "both", val_fraction=None).paths == source.paths  # a run of an older version
    with refused(f"{tmp_path}/both", "--val_fraction 0.3"):
        load(tmp_path / "both", val_fraction=0.3)
    write_image(tmp_path / "both" / "val" / "cow" / "b.png")
    with refused(f"{tmp_path}/both", "'cow'"):
        load(tmp_path / "both", 0.0)


def test_older_versions_default_is_a_fifth(folder):
    assert levels(load(folder, val_fraction=None).test) == levels(load(folder, val_fraction=0.2).test)


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
    line = capsys.readouterr().out.splitlines()[0]
    assert " 44 " in line and " 22 " in line and listed in line and "20 2" not in line


def test_link_to_a_listed_file_is_that_file(folder):
    (folder / "link.png").symlink_to("cat/1.png")
    with pytest.raises(UserError, match=r"list\.csv.*'link\.png'.* 3\b"):
        load(write_table(folder / "list.csv", [("cat/1.png", "a"), ("link.png", "b")]))


def test_table_of_paths_and_labels(folder):
    rows = [(f"{name}/{number}.png", label) for number in range(10)
            for name, label in [("cat", "a cat, \"big\""), ("dog", "<b>")]]
    source = load(write_table(folder / "list.csv", rows))
    assert source.names == ["<b>", 'a cat, "big"']
    assert len(source.train.images) == 16
    for path, label in zip(source.paths, source.train.labels[:, 0], strict=True):
        assert dict(rows)[path] == source.names[label]


def test_images_move_with_their_paths_past_skipped_files_and_the_test_set(folder, monkeypatch):
    monkeypatch.setattr("datasets.own.MOVED", 4)
    for name in ("10/3.png", "cat/0.png", "dog/9.png"):
        (folder / name).write_text("no image")
    source = load(folder)
    assert len(source.paths) == 21
    for path, level in zip(source.paths, levels(source.train), strict=True):
        name, number = path.removesuffix(".png").split("/")
        assert level == 50 * ["cat", "dog", "10"].index(name) + int(number)
    assert len({*levels(source.train), *levels(source.test)}) == 27


def test_damaged_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((20, 32, 32, 3), np.uint8), y=np.resize([0, 1], 20))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[5000] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with refused(f"{tmp_path}/a.npz"):
        load(tmp_path / "a.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("shape", ["nhwc", "nchw", "nhw"])
def test_arrays(tmp_path, shape, save):
    x = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3)).astype(np.uint8)
    y = np.resize([7, -1], (20, 1))
    saved = {"nhwc": x, "nchw": x.transpose(0, 3, 1, 2), "nhw": x[..., 0]}[shape]
    save(tmp_path / "a.npz", x=saved, y=y)
    source = load(tmp_path / "a.npz")
    assert source.names == ["-1", "7"] and source.paths[:2] == ["x[0]", "x[1]"]
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
    names = ["'cat/notes\\n.txt'", "'cat/pipe'", *(f"'dog/x{number:02}.png'" for number in range(12)),
             "'dog/y.png'", "'dog/z.png'", "'dog/\\udcff.png'"]
    assert [line.partition(": ")[0] for line in source.skipped] == names
    assert all(line.partition(": ")[2] for line in source.skipped)  # a reason each
    out = capsys.readouterr().out
    assert all(line in out for line in source.skipped[:10])
    assert not any(name in out for name in names[10:])
    assert any(" 7 " in line and "skipped.txt" in line for line in out.splitlines())
    with pytest.raises(UserError, match=r"17 .*'cat/notes\\n\.txt'.*--strict"):
        load(folder, strict=True)


def test_bad_folders_are_refused(folder, tmp_path, monkeypatch):
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=r"images.*'empty'"):
        load(folder)
    (folder / "empty").rename(folder / "cat ")
    write_image(folder / "cat " / "a.png")
    with pytest.raises(UserError, match=r"'cat'.*'cat '"):
        load(folder)
    with pytest.raises(UserError, match=f"{folder}/cat"):
        load(folder / "cat")
    with pytest.raises(UserError, match=f"{tmp_path}/nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"{folder}/cat/0.png"):
        load(folder / "cat" / "0.png")
    write_image(tmp_path / "one" / "cat" / "a.png")
    monkeypatch.setattr("datasets.own.decode", lambda *_: pytest.fail("decoded before it was checked"))
    with pytest.raises(UserError, match=r" 2 .*/one\b.* 1\b"):
        load(tmp_path / "one")
    monkeypatch.undo()
    write_image(tmp_path / "one" / "dog" / "a.png")
    with pytest.raises(UserError, match=r"/one.*--val_fraction 0"):
        load(tmp_path / "one")
    write_image(tmp_path / "one" / "a\u2028b" / "a.png")
    with pytest.raises(UserError, match=r"'a\\u2028b'"):
        load(tmp_path / "one", 0.5)


def test_bad_tables_are_refused(folder):
    table = folder / "list.csv"
    with pytest.raises(UserError, match=r" 2 .*'cat/77\.png'.* 3\b"):
        load(write_table(table, [("cat/1.png", "a"), ("cat/77.png", "b"), ("../x.png", "b")]))
    with pytest.raises(UserError, match=r"path, label.*'path', 'class'"):
        load(write_table(table, [("cat/1.png", "a")], header="path,class"))
    with pytest.raises(UserError, match=r" 3 .*'cat/2\.png'.*''"):
        load(write_table(table, [("cat/1.png", "a"), ("cat/2.png", "")]))
    with pytest.raises(UserError, match=r" 2 .*'cat/2\.png'.*''"):
        load(write_table(table, [("cat/2.png",)]))
    table.write_bytes(b"path,label\n\xff,a\n")
    with pytest.raises(UserError, match=r"list\.csv.*0xff"):
        load(table)
    with pytest.raises(UserError, match=r"'a\\nb'"):
        load(write_table(table, [("cat/1.png", "a\nb"), ("cat/2.png", "a\nb")]), 0.5)
    with pytest.raises(UserError, match=r"'\\x1b\[31mred'"):
        load(write_table(table, [("cat/1.png", "\x1b[31mred"), ("cat/2.png", "b")]), 0.5)
    for again in ("cat/1.png", "dog/../cat/1.png", folder / "cat" / "1.png"):
        with pytest.raises(UserError, match=r"\b2\b.*cat/1\.png'.* 3\b"):
            load(write_table(table, [("cat/1.png", "a"), (again, "b")]))
    for mark in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069":
        with pytest.raises(UserError, match=rf"'a\\u{ord(mark):x}b'"):
            load(write_table(table, [("cat/1.png", f"a{mark}b"), ("cat/2.png", "b")]), 0.5)
    with pytest.raises(UserError, match=r"path, label.*'label', 'label'"):
        load(write_table(table, [("cat/1.png", "a", "b")], header="path,label,label"))
    with pytest.raises(UserError, match=r" 1 .*'a{300}'"):
        load(write_table(table, [("a" * 300, "a"), ("cat/1.png", "b")]))
    with refused("line 3", "list.csv", " 2 ", " 3"):  # a comma that cuts a label
        load(write_table(table, [("cat/1.png", "a"), ("cat/2.png", "big", " red")]))
    table.write_text("")
    with pytest.raises(UserError, match=r"path, label.*list\.csv"):
        load(table)
    names = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    with pytest.raises(UserError, match=r"'cafe\\u0301'.*'caf\\xe9'"):
        load(write_table(table, [("cat/1.png", names[0]), ("cat/2.png", names[1])]))


def test_blanks_around_labels_and_headers_do_not_count(folder):
    rows = [(f"cat/{number}.png", ["a", " a "][number % 2]) for number in range(5)]
    rows += [(f"dog/{number}.png", "b") for number in range(5)]
    assert load(write_table(folder / "a.csv", rows, header="path, label")).names == ["a", "b"]


@pytest.mark.parametrize(("one", "other"), [("1", "1.0"), ("7", "007"), ("a cat", "a  cat"),
                                            ("caf\u00e9", "cafe\u0301"), ("it's", "it\u2019s")])
def test_labels_that_read_the_same_are_refused_in_every_source(folder, tmp_path, one, other):
    table = write_table(folder / "list.csv", [("cat/1.png", one), ("dog/1.png", other)])
    for name in (one, other):
        write_image(tmp_path / "folders" / name / "a.png")
    for source in (table, tmp_path / "folders"):
        with refused(str(source), ascii(one), ascii(other)):
            load(source, 0.0)


def test_labels_that_hardly_differ_are_classes_with_a_warning(folder, capsys):
    rows = [("cat/1.png", "A"), ("cat/2.png", "a"), ("cat/3.png", "b")]
    source = load(write_table(folder / "list.csv", rows), 0.0)
    assert source.names == ["A", "a", "b"] and source.train.labels[:, 0].tolist() == [0, 1, 2]
    warning, *_ = capsys.readouterr().out.splitlines()
    assert "'A'" in warning and "'a'" in warning and "'b'" not in warning


@pytest.mark.parametrize("label", ["nan", "NaN", "None", "null", "NA", "n/a", " "])
def test_missing_label_is_refused_in_a_table_and_a_class_as_a_folder(folder, tmp_path, capsys, label):
    rows = [("cat/1.png", "a"), ("cat/2.png", label), ("dog/1.png", "b")]
    with refused("line 3", "list.csv", "'cat/2.png'", ascii(label.strip())):
        load(write_table(folder / "list.csv", rows))
    if label not in ("n/a", " "):
        (folder / "10").rename(folder / label)
        assert label in load(folder).names
        assert any("warning" in line and ascii(label) in line
                   for line in capsys.readouterr().out.splitlines())


def test_lines_are_those_of_the_file_and_rows_of_blanks_are_empty(folder):
    text = 'path,label,note\ncat/1.png,a,"two\nlines"\n\n,,\n   \n ,\t,,,\ncat/2.png,b\ncat/3.png,\n'
    (folder / "list.csv").write_text(text)
    with refused("line 9", "'cat/3.png'"):
        load(folder / "list.csv", 0.0)
    (folder / "list.csv").write_text(text.replace("cat/3.png,\n", ""))
    assert load(folder / "list.csv", 0.0).paths == ["cat/1.png", "cat/2.png"]


def test_backslashes_and_blanks_in_paths_are_understood(folder):
    write_image(folder / "odd\\name.png", 50)
    rows = [("cat\\1.png", "a"), (" cat/2.png ", "a"), ("odd\\name.png", "b")]
    assert load(write_table(folder / "list.csv", rows), 0.0).paths == [
        "cat/1.png", "cat/2.png", "odd\\name.png"]
    with refused("line 2", r"'sub\\1.png'", " / "):
        load(write_table(folder / "list.csv", [("sub\\1.png", "a"), ("cat/2.png", "b")]))


def test_images_that_come_out_almost_black_are_told(folder, capsys):
    twelve_bits = np.arange(64, dtype=np.uint16).reshape(8, 8) * 64
    for number in (2, 5):
        Image.fromarray(twelve_bits).save(folder / "cat" / f"{number}.png")
    fourteen_bits = np.arange(64, dtype=np.uint16).reshape(8, 8) * 256
    Image.fromarray(fourteen_bits).save(folder / "dog" / "1.png")
    load(folder)
    warning, = (line for line in capsys.readouterr().out.splitlines() if "'cat/2.png'" in line)
    assert numbers(warning)[:2] == ["3", "30"]


def test_scaling_of_every_image_by_itself_is_told(folder, capsys):
    for number in (2, 5):
        Image.new("F", (8, 8), 50.0).save(folder / "cat" / f"{number}.tif")
        write_image(folder / "cat" / f"{number}.pgm", 50)
    load(folder)
    warning, = (line for line in capsys.readouterr().out.splitlines() if "32-bit" in line)
    assert " 2 " in warning and "'cat/2.tif'" in warning


@pytest.mark.parametrize(("arrays", "values"), [
    ({"x": np.zeros((4, 8, 8)), "y": np.arange(4)}, r"float64 \(4, 8, 8\)"),
    ({"x": np.zeros((4, 8, 8, 4), np.uint8), "y": np.arange(4)}, r"uint8 \(4, 8, 8, 4\)"),
    ({"x": np.zeros((0, 8, 8), np.uint8), "y": np.arange(0)}, r"uint8 \(0, 8, 8\)"),
    ({"x": np.zeros((4, 8, 8), np.uint8), "y": np.arange(3)}, r"\(4,\).*int64 \(3,\)"),
    ({"x": np.zeros((4, 8, 8), np.uint8), "y": np.zeros(4)}, r"float64 \(4,\)"),
    ({"x": np.zeros((4, 8, 8), np.uint8), "y": np.array([1, "a", 2, None], object)}, "allow_pickle"),
    ({"images": np.zeros((4, 8, 8), np.uint8)}, "'x' and 'y'.*a.npz.*'images'"),
    ({"x": np.zeros((4, 8, 8), np.uint8), "y": np.zeros(4, int)}, r" 2 .*a\.npz.* 1\b"),
])
def test_bad_arrays_are_refused(tmp_path, arrays, values):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=values):
        load(tmp_path / "a.npz")
