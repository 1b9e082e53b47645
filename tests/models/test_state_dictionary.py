"""Files are put together byte by byte: PyTorch is not needed to test what reads without it."""
import hashlib
import pickle
import struct

import numpy as np
import pytest

from models.state_dictionary import MAGIC, PROTOCOL, read
from tests.conftest import refused
from utils.backbone.pretrained import PRETRAINED

FLOATS = np.arange(12, dtype="<f4") / 8
INTEGER = np.array([2**40], "<i8")


def value(item):
    """A pickled value, to be put into a larger pickle."""
    return pickle.dumps(item, 2)[2:-1]


def tensor(key, count, offset, size, strides, kind="FloatStorage"):
    storage = value("storage") + f"ctorch\n{kind}\n".encode() + value(key) + value("cpu") + value(count)
    return (b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + b"NtQ" + value(offset) + value(size)
            + value(strides) + b"\x89ccollections\nOrderedDict\n)RtR")


def file(state, storages=(("7", FLOATS), ("8", INTEGER)), magic=MAGIC, little=True):
    """A state dictionary of these pickled tensors."""
    items = b"".join(value(name) + pickled for name, pickled in state.items())
    header = [pickle.dumps(item, 2) for item in (magic, PROTOCOL, {"little_endian": little})]
    return b"".join([
        *header, b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u.",
        pickle.dumps([key for key, _ in storages], 2),
        *(struct.pack("<q", len(array)) + array.tobytes() for _, array in storages)])


TENSORS = {"weight": tensor("7", 12, 1, (2, 3), (3, 1)), "turned": tensor("7", 12, 0, (3, 4), (1, 3)),
           "count": tensor("8", 1, 0, (), (), "LongStorage")}


def test_real_file_has_its_known_arrays():
    arrays = PRETRAINED["efficientnet-lite0"].read_state()
    assert len(arrays) == 296
    known = {"_conv_stem.weight": "8ba97205", "_fc.weight": "def206f6", "_bn0.running_var": "efe7876f"}
    assert known == {name: hashlib.sha256(arrays[name].tobytes()).hexdigest()[:8] for name in known}
    assert [arrays[name].shape for name in known] == [(32, 3, 3, 3), (1000, 1280), (32,)]
    assert arrays["_bn0.num_batches_tracked"].shape == ()


def test_tensors_are_views_of_their_storages():
    arrays = read(file(TENSORS))
    assert list(arrays) == list(TENSORS)
    assert np.array_equal(arrays["weight"], FLOATS[1:7].reshape(2, 3))
    assert np.array_equal(arrays["turned"], FLOATS.reshape(4, 3).T)
    assert arrays["count"].shape == () and arrays["count"] == 2**40
    assert {array.dtype for array in arrays.values()} == {np.dtype("f4"), np.dtype("i8")}


@pytest.mark.parametrize(("offset", "size", "strides"), [
    (7, (2, 3), (3, 1)), (0, (2, 3), (10, 1)), (-1, (2,), (1,)), (0, (2,), (-1,)), (2**62, (1,), (1,))])
def test_tensor_beyond_its_storage_is_refused(offset, size, strides):
    with refused(error=ValueError):
        read(file({"weight": tensor("7", 12, offset, size, strides)}, [("7", FLOATS)]))


@pytest.mark.parametrize("content", [
    file(TENSORS, magic=1), file(TENSORS, little=False), file(TENSORS) + b"\0",
    file(TENSORS, [("7", FLOATS)]),
    file({"sizes": tensor("7", 11, 0, (1,), (1,)), "swapped": tensor("8", 13, 0, (1,), (1,))},
         [("7", FLOATS), ("8", FLOATS)]),
    file({"weight": tensor("7", 12, 0, (1,), (1,), "CharStorage")}, [("7", FLOATS)]),
    b"PK\x03\x04" + bytes(100)])
def test_other_files_are_refused(content):
    with refused(error=ValueError):
        read(content)


def test_no_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused("os.system", error=ValueError):
        read(file({**TENSORS, "more": b"cos\nsystem\n" + value(("touch made",)) + b"R"}))
    assert not list(tmp_path.iterdir())


def test_truncated_file_is_refused_in_one_line():
    content = file(TENSORS)
    for length in range(len(content)):
        with pytest.raises(ValueError) as caught:
            read(content[:length])
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 200
