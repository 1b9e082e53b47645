import mmap
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import refused
from utils.errors import UserError
from utils.files import (
    are_same,
    check_folder,
    load_array,
    open_npz,
    read_member,
    read_table,
    release,
    save_array,
    save_json,
    save_npz,
    save_text,
    slices,
    spot_check,
    take_rows,
    whole_file,
    whole_folder,
)


def test_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with whole_file(path) as temporary:
        temporary.write_text("content")
        assert not path.exists()
        assert temporary.suffix == ".txt"
    assert os.listdir(path.parent) == ["a.txt"]
    assert path.read_text() == "content"


def test_link_at_the_temporary_name_is_not_followed(tmp_path):
    """An archive may bring one."""
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / ".partial-a.txt").symlink_to(tmp_path / "elsewhere")
    save_text(tmp_path / "a.txt", "content")
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert (tmp_path / "a.txt").read_text() == "content" and not (tmp_path / "a.txt").is_symlink()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_keeps_the_old_file_and_leaves_no_other(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), whole_file(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_folder_is_replaced_only_when_it_is_whole(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(ValueError), whole_folder(folder) as temporary:
        (temporary / "new").touch()
        raise ValueError
    assert os.listdir(folder) == ["old"]
    with whole_folder(folder) as temporary:
        (temporary / "new").touch()
    assert os.listdir(folder) == ["new"]
    assert os.listdir(tmp_path) == ["folder"]


def test_what_cannot_be_written_is_told_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"{tmp_path}/file/a.npy"):
        save_array(tmp_path / "file" / "a.npy", np.zeros(3))
    with pytest.raises(UserError, match=f"{tmp_path}/file/folder"), \
            whole_folder(tmp_path / "file" / "folder"):
        pass


def test_arrays_and_json_are_read_as_they_were_written(tmp_path):
    save_array(tmp_path / "a.npy", np.arange(6).reshape(2, 3))
    assert np.array_equal(load_array(tmp_path / "a.npy"), [[0, 1, 2], [3, 4, 5]])
    assert isinstance(load_array(tmp_path / "a.npy"), np.memmap)
    save_json(tmp_path / "a.json", {"a": [1, None]})
    assert (tmp_path / "a.json").read_text() == '{\n "a": [\n  1,\n  null\n ]\n}\n'
    save_text(tmp_path / "a.txt", "ä\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa4\n"


def test_array_that_needs_pickle_is_refused_unread(tmp_path):
    class Exploit:
        def __reduce__(self):
            return open, (str(tmp_path / "created"), "w")
    np.save(tmp_path / "a.npy", np.array([Exploit()], object), allow_pickle=True)
    with pytest.raises(UserError, match=f"{tmp_path}/a.npy"):
        load_array(tmp_path / "a.npy")
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Exploit()))
    with pytest.raises(UserError, match=f"{tmp_path}/b.npy"):
        load_array(tmp_path / "b.npy")
    assert not (tmp_path / "created").exists()


def test_zip_and_damaged_headers_are_no_arrays(tmp_path):
    with (tmp_path / "a.npy").open("wb") as file:
        np.savez(file, a=np.zeros(3))
    save_array(tmp_path / "b.npy", np.zeros(3))
    (tmp_path / "b.npy").write_bytes((tmp_path / "b.npy").read_bytes().replace(b"}", b" "))
    for name in ("a.npy", "b.npy"):
        with pytest.raises(UserError, match=f"{tmp_path}/{name}"):
            load_array(tmp_path / name)


def test_folder_that_cannot_be_written_in_is_told_early(tmp_path):
    (tmp_path / "file").touch()
    check_folder(tmp_path / "a" / "b")
    with pytest.raises(UserError, match=f"{tmp_path}/file/a.*{tmp_path}/file"):
        check_folder(tmp_path / "file" / "a")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    for link in ("loop", "dangling"):
        with refused(str(tmp_path / link)):
            check_folder(tmp_path / link / "a")


def test_missing_and_truncated_arrays_are_told_in_one_line(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}/a.npy"):
        load_array(tmp_path / "a.npy")
    save_array(tmp_path / "a.npy", np.zeros(1000))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:500])
    with pytest.raises(UserError, match=f"{tmp_path}/a.npy"):
        load_array(tmp_path / "a.npy")
    (tmp_path / "b.npy").touch()
    with pytest.raises(UserError, match=f"{tmp_path}/b.npy"):
        load_array(tmp_path / "b.npy")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_released_pages_are_no_memory_in_use(tmp_path):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    np.save(tmp_path / "large.npy", np.ones(2**25, np.uint8))
    for array in (load_array(tmp_path / "large.npy"), load_array(tmp_path / "large.npy")[::2].T[5:]):
        assert array.sum() == len(array)
        before = resident()
        release(array)
        assert before - resident() > 2**24
        assert array.sum() == len(array)
    release(np.ones(3))  # nothing to do


LARGE = np.arange(3 * 2**20, dtype=np.uint64).reshape(-1, 2, 3, 1024)  # several pieces


def test_large_arrays_are_handled_in_pieces():
    pieces = list(slices(LARGE, doing="counting"))
    assert len(pieces) > 3
    assert np.array_equal(np.concatenate([LARGE[rows] for rows in pieces]), LARGE)
    assert list(slices(LARGE[:0], doing="counting")) == []
    other = LARGE.copy()
    assert are_same(LARGE, other) and not are_same(LARGE, other[:-1])
    other[-1, -1, -1, -1] += 1
    assert not are_same(LARGE, other)


def test_consecutive_rows_are_not_copied():
    chosen = np.delete(np.arange(len(LARGE)), [7, 300])
    assert np.array_equal(take_rows(LARGE, chosen), LARGE[chosen])
    assert np.array_equal(take_rows(LARGE, chosen[::-1]), LARGE[chosen[::-1]])
    view = take_rows(LARGE, np.arange(3, 90))
    assert np.array_equal(view, LARGE[3:90]) and np.shares_memory(view, LARGE)
    assert take_rows(LARGE, np.zeros(0, int)).shape == (0, 2, 3, 1024)


@pytest.mark.parametrize("array", [
    LARGE, LARGE.T, LARGE.transpose(0, 3, 1, 2), LARGE[::2, :, 1:, ::-1], LARGE[:0],
    np.broadcast_to(LARGE[:, :1], (512, 3, 3, 1024)), np.array("text")])
def test_arrays_of_any_strides_are_written_as_numpy_writes_them(tmp_path, array):
    expected = np.ascontiguousarray(array)[()] if array.ndim else array
    np.savez(tmp_path / "expected.npz", a=expected)
    save_npz(tmp_path / "found.npz", [("a", array)])
    assert (tmp_path / "found.npz").read_bytes() == (tmp_path / "expected.npz").read_bytes()
    if array.ndim:
        np.save(tmp_path / "expected.npy", expected)
        save_array(tmp_path / "found.npy", array)
        assert (tmp_path / "found.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()


@pytest.mark.parametrize(("save", "mapped"), [(np.savez, True), (np.savez_compressed, False)])
def test_members_of_an_archive_are_mapped_where_they_can_be(tmp_path, save, mapped):
    arrays = {"c": LARGE, "fortran": np.asfortranarray(LARGE[:9, 0, 0]), "none": LARGE[:0],
              "text": np.array(["a", "bc"]), "number": np.array(3)}
    save(tmp_path / "a.npz", **arrays)
    with open_npz(tmp_path / "a.npz") as file:
        found = {name: read_member(file, name) for name in arrays}
    for name, array in arrays.items():
        assert np.array_equal(found[name], array) and found[name].dtype == array.dtype, name
    assert isinstance(found["c"], np.memmap) == mapped


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_members_of_all_versions_are_read(tmp_path, version):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("a.npy", "w") as file:
        np.lib.format.write_array(file, LARGE, version)
    with open_npz(tmp_path / "a.npz") as file:
        assert np.array_equal(read_member(file, "a"), LARGE)


def test_damaged_members_of_an_archive_are_refused(tmp_path):
    save_npz(tmp_path / "a.npz", [("a", LARGE)])
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with open_npz(tmp_path / "a.npz") as file, pytest.raises(zipfile.BadZipFile):
        read_member(file, "a")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("a.npy", "w") as file:
        header = {"descr": "|O", "fortran_order": False, "shape": (1,)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(8))  # as long as a pointer
    with open_npz(tmp_path / "a.npz") as file, pytest.raises(ValueError, match="allow_pickle"):
        read_member(file, "a")


def test_archives_that_would_fill_the_memory_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", few=np.zeros(10), many=np.zeros(100_000))
    with open_npz(tmp_path / "a.npz", largest=800_128) as file:
        assert len(file["many"]) == 100_000
    with pytest.raises(ValueError, match="more"), open_npz(tmp_path / "a.npz", largest=800_127):
        pass


def test_rows_of_a_table_have_the_lines_they_start_on(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeff\n b ,a,c\n1,"x\r\ny",\r\n\n , ,\t\n2,3\n,,,,\n4,5,6,,\n'.encode())
    assert read_table(path, ("a", "b"), "mend it") == [
        (3, {"b": "1", "a": "x\r\ny", "c": ""}), (7, {"b": "2", "a": "3"}),
        (9, {"b": "4", "a": "5", "c": "6"})]


def test_bad_tables_are_told_in_one_line(tmp_path):
    path = tmp_path / "a.csv"
    for content, facts in [
            (b"", ["a, b", "a.csv", "mend it"]), (b"a,c\n", ["a, b", "'a', 'c'"]),
            (b"a,b,a\n", ["'a', 'b', 'a'"]), (b"a,b\n1,2\n1,2,3\n", ["line 3", "a.csv", " 2 ", " 3"]),
            (b"\xff", ["a.csv", "mend it"]), (b"a,b\n" + b"x" * 200_000, ["a.csv", "mend it"])]:
        path.write_bytes(content)
        with refused(*facts):
            read_table(path, ("a", "b"), "mend it")
    with refused(f"{tmp_path}/nowhere.csv"):
        read_table(tmp_path / "nowhere.csv", ("a", "b"), "mend it")


@pytest.mark.parametrize("size", [1, 70_000, 16 << 20])
def test_spot_check_tells_other_files(tmp_path, size):
    """Wherever they differ, up to 16 MiB; larger ones that differ in length or at the ends."""
    path = tmp_path / "file"
    assert spot_check(path) == ""
    content, found = bytearray(size), set()
    for place in (None, 0, size // 2, size - 1):
        changed = bytearray(content)
        if place is not None:
            changed[place] ^= 1
        path.write_bytes(changed)
        found.add(spot_check(path))
    path.write_bytes(content + b"\0")
    found.add(spot_check(path))
    assert len(found) == len({None, 0, size // 2, size - 1}) + 1
    path.write_bytes(content)
    assert spot_check(path) in found
