"""State dictionaries as PyTorch wrote them before version 1.6, read without PyTorch.

Such a file is a sequence of five pickles, then the numbers:

    a magic number, the version of the protocol, facts about the machine that wrote it,
    the dictionary: name -> tensor, which is a view (offset, size, strides) of a storage,
    the keys of the storages; then each storage, its number of elements as int64 before its elements
"""
import io
import pickle
from collections import OrderedDict
from typing import Any

import numpy as np

MAGIC, PROTOCOL = 0x1950a86a20f9469cfc6c, 1001


class _Unpickler(pickle.Unpickler):
    """Builds plain values and dictionaries; storages and tensors become tuples that describe them."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return self._tensor  # a bound method: a pickle could change a plain function
            case "torch", "FloatStorage":
                return "<f4"
            case "torch", "LongStorage":
                return "<i8"
        raise ValueError(f"it uses {f'{module}.{name}'[:60]!a}")

    def persistent_load(self, pid: Any) -> tuple:
        _, dtype, key, _, size, _ = pid
        return key, dtype, size

    def _tensor(self, storage: tuple, offset: int, size: tuple, strides: tuple, *_: Any) -> tuple:
        return storage, offset, size, strides


def read(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of a state dictionary, by name, float32 or int64: read-only views of `content`.

    No code in the file runs, but a malicious one could fill the memory: check its digest first.

    Raises:
        ValueError: it is not such a file, is damaged, or uses another class; the message says what.
    """
    try:
        return _read(content)
    except Exception as error:  # a damaged pickle can raise almost any error
        reason = f"{type(error).__name__}: {error}"[:100]
        raise ValueError(f"expected a state dictionary of PyTorch before 1.6, found {reason}") from error


def _read(content: bytes) -> dict[str, np.ndarray]:
    file = io.BytesIO(content)
    magic, protocol, machine, state, keys = (_Unpickler(file).load() for _ in range(5))
    if (magic, protocol, machine["little_endian"]) != (MAGIC, PROTOCOL, True):
        raise ValueError("another format")
    storages = {storage[0]: storage for storage, *_ in state.values()}
    numbers = {}
    position = file.tell()
    for storage in map(storages.__getitem__, keys):
        _, dtype, count = storage
        if np.frombuffer(content, "<i8", 1, position) != count:
            raise ValueError("a storage of another size than its tensors expect")
        numbers[storage] = np.frombuffer(content, dtype, count, position + 8)
        position += 8 + numbers[storage].nbytes
    if position != len(content):
        raise ValueError(f"{len(content)} bytes instead of {position}")
    return {name: _view(numbers[storage], *place) for name, (storage, *place) in state.items()}


def _view(numbers: np.ndarray, offset: int, size: tuple, strides: tuple) -> np.ndarray:
    """A tensor's array; NumPy refuses offsets, sizes and strides that leave `numbers`."""
    length = numbers.itemsize
    return np.ndarray(size, numbers.dtype, numbers.data, offset * length,
                      [stride * length for stride in strides])
