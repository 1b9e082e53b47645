"""Files are put together byte by byte: PyTorch is not needed to test what reads without it."""
import pickle
import struct

import numpy as np
import pytest

from models.state_dictionary import MAGIC, PROTOCOL, read
from tests.conftest import refused

FLOATS = np.arange(12, dtype="<f4") / 8
INTEGER = np.array([2**40], "<i8")


def text(value):
    return b"X" + struct.pack("<i", len(value)) + value.encode()


def number(value):
    return b"J" + struct.pack("<i", value) if abs(value) < 2**31 else pickle.dumps(value, 2)[2:-1]


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(key, count, offset, size, strides, kind="FloatStorage"):
    storage = text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(count)
    return (b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + b"NtQ" + number(offset) + numbers(size)
            + numbers(strides) + b"\x89ccollections\nOrderedDict\n)RtR")


def file(state, storages=(("7", FLOATS), ("8", INTEGER)), magic=MAGIC, little=True):
    """A state dictionary of these pickled tensors."""
    items = b"".join(text(name) + value for name, value in state.items())
    header = [pickle.dumps(value, 2) for value in (magic, PROTOCOL, {"little_endian": little})]
    return b"".join([
        *header, b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u.",
        pickle.dumps([key for key, _ in storages], 2),
        *(struct.pack("<q", len(array)) + array.tobytes() for _, array in storages)])


# A tuple of two of a tuple of two, and so on: a hundred deep.
NESTED = b")" + b"".join(b"q%c" % number + b"h%c" % number + b"\x86" for number in range(100))
TENSORS = {"weight": tensor("7", 12, 1, (2, 3), (3, 1)), "turned": tensor("7", 12, 0, (3, 4), (1, 3)),
           "count": tensor("8", 1, 0, (), (), "LongStorage")}


def test_tensors_are_views_of_their_storages():
    arrays = read(file(TENSORS))
    assert list(arrays) == list(TENSORS)
    assert np.array_equal(arrays["weight"], FLOATS[1:7].reshape(2, 3))
    assert np.array_equal(arrays["turned"], FLOATS.reshape(4, 3).T)
    assert arrays["count"].shape == () and arrays["count"] == 2**40
    assert {array.dtype for array in arrays.values()} == {np.dtype("f4"), np.dtype("i8")}


@pytest.mark.parametrize(("offset", "size", "strides"), [
    (0, (2, 3), (6, 2)), (6, (2, 3), (3, 1)), (11, (1,), (1,)), (0, (12,), (1,)), (3, (0,), (1,))])
def test_tensor_may_be_any_part_of_its_storage(offset, size, strides):
    array = read(file({"weight": tensor("7", 12, offset, size, strides)}, [("7", FLOATS)]))["weight"]
    assert array.shape == size
    assert all(array[place] == FLOATS[offset + np.dot(place, strides)] for place in np.ndindex(size))


@pytest.mark.parametrize(("offset", "size", "strides"), [
    (7, (2, 3), (3, 1)), (0, (2, 3), (10, 1)), (-1, (2,), (1,)), (0, (2,), (-1,)), (0, (-2,), (1,)),
    (0, (2**31 - 1,), (1,)), (0, (2**40, 2**40), (0, 0)), (0, (4, 4), (0, 0)), (2**62, (1,), (1,)),
    (0, (2,), (2**70,)), (0, (2, 3), (1,)), (0, (1,) * 40, (1,) * 40)])
def test_tensor_beyond_its_storage_is_refused(offset, size, strides):
    with refused(error=ValueError):
        read(file({"weight": tensor("7", 12, offset, size, strides)}, [("7", FLOATS)]))


def test_storage_has_one_size_for_all_its_tensors():
    state = {"weight": tensor("7", 2**40, 0, (2**40,), (0,)), "other": tensor("7", 12, 0, (12,), (1,))}
    with refused(error=ValueError):
        read(file(state, [("7", FLOATS)]))


@pytest.mark.parametrize("count", [11, 13, -1, 2**31 - 1, 2**60])
def test_storage_of_another_size_than_announced_is_refused(count):
    with refused(error=ValueError):
        read(file({"weight": tensor("7", count, 0, (1,), (1,))}, [("7", FLOATS)]))


def test_storages_of_each_others_sizes_are_refused():
    state = {"one": tensor("7", 11, 0, (1,), (1,)), "other": tensor("8", 13, 0, (1,), (1,))}
    with refused(error=ValueError):
        read(file(state, [("7", FLOATS), ("8", FLOATS)]))


@pytest.mark.parametrize("content", [
    file(TENSORS).replace(text("count"), number(3)), file(TENSORS).replace(b"tensor_v2", b"tensor_v3"),
    file(TENSORS, magic=1), file(TENSORS, little=False), file(TENSORS) + b"\0", b"",
    file(TENSORS, [("7", FLOATS)]), file(TENSORS, [("7", FLOATS), ("9", INTEGER)]),
    file({"weight": number(3)}), file({"weight": tensor("7", 12, 0, (1,), (1,), "CharStorage")}),
    b"PK\x03\x04" + bytes(100)])
def test_other_files_are_refused(content):
    with refused(error=ValueError):
        read(content)


@pytest.mark.parametrize("call", [
    b"cos\nmkdir\n(" + text("made") + b"tR", b"cos\nmkdir\n" + text("made") + b"\x85R",
    b"(" + text("made") + b"ios\nmkdir\n", b"cos\nmkdir\n(" + text("made") + b"t\x81"])
def test_no_code_runs(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    with refused(error=ValueError):
        read(file({**TENSORS, "more": call}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bomb", [
    number(1) + b"r\xff\xff\xff\x7f", b"\x8e" + struct.pack("<q", 2**40),
    b"\x96" + struct.pack("<q", 2**40), b"X" + struct.pack("<i", 2**31 - 1),
    NESTED, NESTED + b")R", NESTED + b"Q"])
def test_few_bytes_fill_neither_memory_nor_time(bomb):
    with refused(error=ValueError):
        read(file({"weight": bomb}))


def test_keys_that_take_forever_to_hash_are_refused():
    content = file(TENSORS)
    keys = pickle.dumps(["7", "8"], 2)
    for damaged in (content.replace(keys, b"\x80\x02](" + NESTED + b"e."),
                    content.replace(text("count"), NESTED), content.replace(text("8"), NESTED)):
        with refused(error=ValueError):
            read(damaged)


def test_damaged_file_raises_one_type_of_error():
    content = file(TENSORS)
    for length in range(len(content)):
        with refused(error=ValueError):
            read(content[:length])
    rng = np.random.default_rng(0)
    for _ in range(2000):
        damaged = bytearray(content)
        damaged[rng.integers(len(content) - FLOATS.nbytes - 24)] = rng.integers(256)
        try:
            assert sum(array.size for array in read(bytes(damaged)).values()) < len(content)
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 200
