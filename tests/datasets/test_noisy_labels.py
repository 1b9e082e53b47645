import io
import os
import zipfile

import numpy as np
import pytest

from datasets.noisy_labels import check_file, load_labels, remark
from tests.conftest import make_dataset, refused

TRUE = np.array([[0], [1], [2], [0], [1], [2]])
NAMES = ["cat", "dog", "2"]
GIVEN = [2, 1, 0, 0, 1, 1]


def write(path, content):
    """Write a table, an array, or the arrays of an .npz."""
    if isinstance(content, str):
        path.write_bytes(content.encode())
    elif path.suffix == ".npy":
        np.save(path, content)
    else:
        np.savez(path, *content)
    return path


@pytest.mark.parametrize(("name", "content"), [
    ("a.npy", np.array(GIVEN)), ("a.npy", np.array(GIVEN)[:, None]), ("A.NPY", np.array(GIVEN, ">i2")),
    ("a.npy", np.array(GIVEN, np.uint64)), ("a.npz", [np.array(GIVEN, np.uint8)]),
    ("a.npz", [np.array(GIVEN)[:, None]]),
    ("a.csv", "index,label\n0,2\n1,1\n2,0\n3,0\n4,1\n5,1\n"),
    ("a.csv", "\ufefflabel,by,index\r\n1,me,5\r\n2,me,0\r\ncat,you,2\r\n"),
    ("a.csv", "index,label\n 5 , dog \n2,'0\n0,2\n")])
def test_labels_of_every_kind_of_file(tmp_path, name, content):
    path = tmp_path / name
    if name == "A.NPY":
        path.write_bytes(write(tmp_path / "a.npy", content).read_bytes())
    else:
        write(path, content)
    labels = load_labels(path, TRUE, NAMES)
    assert (labels.dtype, labels[:, 0].tolist()) == (np.int64, GIVEN)
    labels[:] = 0  # a copy, which leaves the true labels alone
    assert TRUE[:, 0].tolist() == [0, 1, 2, 0, 1, 2]


def test_samples_without_a_row_keep_their_label(tmp_path):
    labels = load_labels(write(tmp_path / "a.csv", "index,label\n"), TRUE, NAMES)
    assert np.array_equal(labels, TRUE)


@pytest.mark.parametrize(("content", "facts"), [
    (np.array([0, 1]), ["(6,)", "int64 (2,)"]),
    (np.zeros((6, 2), int), ["(6,)", "(6, 2)"]),
    (np.zeros((1, 6), int), ["(6,)", "(1, 6)"]),
    (np.zeros((), int), ["(6,)", "()"]),
    (np.zeros((0,), int), ["(6,)", "(0,)"]),
    (np.array([0, 1, 2, 0, 1, 2.0]), ["integers", "float64 (6,)"]),
    (np.full(6, np.nan), ["integers", "float64"]),
    (np.zeros(6, bool), ["integers", "bool"]),
    (np.array(["cat"] * 6), ["integers", "<U3"]),
    (np.array([0, 1, 3, 0, 1, 2]), ["0 to 2", "found 3"]),
    (np.array([0, 1, -1, 0, 1, 2]), ["0 to 2", "found -1"]),
    (np.array([0, 1, 2**64 - 1, 0, 1, 2], np.uint64), ["0 to 2", f"found {2**64 - 1}"])])
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_arrays_that_are_not_the_labels_of_the_set_are_refused(tmp_path, content, facts, kind):
    path = write(tmp_path / f"a.{kind}", content if kind == "npy" else [content])
    with refused(str(path), *facts):
        load_labels(path, TRUE, NAMES)


@pytest.mark.parametrize(("text", "facts"), [
    ("", ["index", "label"]),
    ("index,labels\n0,1\n", ["index, label", "'labels'"]),
    ("0,1\n1,1\n", ["index, label", "'0'"]),
    ("index,label\n0,1\n6,1\n", ["0 to 5", "line 3", "'6'"]),
    ("index,label\n-1,1\n", ["line 2", "'-1'"]),
    ("index,label\n1.0,1\n", ["line 2", "'1.0'"]),
    ("index,label\n²,1\n", ["line 2", r"'\xb2'"]),
    (f"index,label\n{'9' * 5000},1\n", ["line 2"]),
    ("index,label\n0,3\n", ["0 to 2", "line 2", "'3'"]),
    ("index,label\n0,-1\n", ["line 2", "'-1'"]),
    ("index,label\n0,1.0\n", ["line 2", "'1.0'"]),
    ("index,label\n0,\n", ["line 2", "''"]),
    ("index,label\n0\n", ["line 2", "''"]),
    ("index,label\n0,nan\n", ["line 2", "'nan'"]),
    ("index,label\n0,Cat\n", ["line 2", "'Cat'", "cat"]),
    ("index,label\n0,1\n1,1\n0,2\n", ["index 0", "line 4"]),
    ("index,label\n0,1\n0,1\n", ["index 0", "line 3"]),
    ("index,label\n0,1,2\n", ["line 2", "3"])])
def test_rows_that_are_not_labels_of_the_set_are_refused(tmp_path, text, facts):
    path = write(tmp_path / "a.csv", text)
    with refused(str(path), *facts):
        load_labels(path, TRUE, NAMES)


@pytest.mark.parametrize(("arrays", "facts"), [
    ([np.array(GIVEN)] * 2, ["'arr_0'", "'arr_1'"]), ([], ["none"]),
    ([np.array(GIVEN)] * 30, ["'arr_0'", "..."]), ([np.array([{}])], ["numpy.save"])])
def test_archive_must_have_one_array(tmp_path, arrays, facts):
    path = write(tmp_path / "a.npz", arrays)
    with refused(str(path), *facts):
        load_labels(path, TRUE, NAMES)


def test_archive_that_unpacks_to_much_more_is_not_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, np.zeros(10**6, np.int64))
    read = []
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda self, *size: read.append(size) or b"")
    with refused(str(path), "(6,)", "8,000,128"):
        load_labels(path, TRUE, NAMES)
    assert not read


def header_of(shape):
    stream = io.BytesIO()
    header = {"descr": "<i8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.csv"])
@pytest.mark.parametrize("content", [b"\0\xff", b"PK\x03\x04" + b"\0" * 50, header_of((10**15,)),
                                     b"\x80\x04K\x01."])
def test_damaged_file_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with refused(str(path)):
        load_labels(path, TRUE, NAMES)
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("a.npy", content)
    with refused("b.npz"):
        load_labels(tmp_path / "b.npz", TRUE, NAMES)


@pytest.mark.parametrize(("name", "content"), [("a.npy", np.array(GIVEN)), ("b.npz", [np.array(GIVEN)])])
def test_file_of_another_kind_than_its_name_says_is_refused(tmp_path, name, content):
    other = {"a.npy": "a.npz", "b.npz": "b.npy"}[name]
    write(tmp_path / name, content).rename(tmp_path / other)
    with refused(str(tmp_path / other)):
        load_labels(tmp_path / other, TRUE, NAMES)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    with refused(str(tmp_path / name)):
        load_labels(tmp_path / name, TRUE, NAMES)


def test_file_that_cannot_be_labels_is_refused_before_it_is_read(tmp_path):
    for name in ("CIFAR-10_human.pt", "labels.pkl", "labels", "labels.txt"):
        with refused(".npy", ".npz", ".csv", "numpy.save", str(tmp_path / name)):
            check_file(tmp_path / name)
    (tmp_path / "folder.npy").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    for name in ("missing.npy", "folder.npy", "pipe.csv"):
        with refused(str(tmp_path / name)):
            check_file(tmp_path / name)


def test_only_an_unusual_number_of_wrong_labels_is_remarked_on():
    dataset = make_dataset()
    true, labels = dataset.true_labels, dataset.labels
    def remarked(wrong):
        labels[:] = true
        labels[:wrong] = (true[:wrong] + 1) % 3
        return remark(dataset)
    assert [bool(remarked(wrong)) for wrong in (0, 1, 15, 16, 30)] == [True, False, False, True, True]
    assert "16 of 30" in remarked(16)
