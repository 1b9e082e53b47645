"""State dictionaries as PyTorch wrote them before version 1.6, read without PyTorch.

Such a file is a sequence of five pickles, then the numbers:

    a magic number, the version of the protocol, facts about the machine that wrote it,
    the dictionary: name -> tensor, which is a view (offset, size, strides) of a storage,
    the keys of the storages; then each storage, its number of elements as int64 before its elements

A pickle could run any code, so these are not unpickled by Python's module: an interpreter of the few
opcodes in them builds dictionaries, lists, tuples, strings, numbers, storages and tensors.
"""
import io
import pickletools
import struct
from typing import Any, NamedTuple

import numpy as np

MAGIC, PROTOCOL = 0x1950a86a20f9469cfc6c, 1001
STORAGES: dict[str, np.dtype] = {"torch FloatStorage": np.dtype("<f4"),
                                 "torch LongStorage": np.dtype("<i8")}
DICTIONARY, TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class _Wrong(ValueError):
    """What is wrong, in a few words."""


class _Name(str):
    """A function or type by its name; nothing is imported."""


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    """What the file says of a tensor, unchecked."""

    storage: _Storage
    offset: int  # of elements, as the strides
    size: tuple[int, ...]
    strides: tuple[int, ...]

    def view(self, numbers: np.ndarray) -> np.ndarray:
        """The tensor's array; NumPy refuses offsets, sizes and strides that leave `numbers`."""
        length = numbers.itemsize
        strides = tuple(stride * length for stride in self.strides)
        array: np.ndarray = np.ndarray(self.size, numbers.dtype, numbers.data, self.offset * length,
                                       strides)
        if array.size > numbers.size:  # a stride of 0 could fill the memory of who copies it
            raise _Wrong("it has a tensor of more elements than its storage")
        return array


def read(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of an untrusted state dictionary, by name.

    Args:
        content: the file.

    Returns:
        Views of `content`, read-only, float32 or int64: no number is copied.

    Raises:
        ValueError: it is not such a file, is damaged, or holds something else; the message says what.
    """
    try:
        return _read(content)
    except _Wrong:
        raise
    except Exception as error:  # a damaged pickle can raise almost any error, of any length
        raise ValueError(f"it is damaged ({type(error).__name__})") from error


def _read(content: bytes) -> dict[str, np.ndarray]:
    file = io.BytesIO(content)
    header = [_load(file) for _ in range(3)]
    if header[:2] != [MAGIC, PROTOCOL] or header[2].get("little_endian") is not True:
        raise _Wrong("it does not start as a state dictionary of PyTorch before 1.6 does")
    state, keys = _load(file), _load(file)
    if type(state) is not dict or not all(type(tensor) is _Tensor for tensor in state.values()):
        raise _Wrong("it holds something other than tensors by their names")
    if type(keys) is not list or not all(type(key) is str for key in keys):  # tuples may be slow to hash
        raise _Wrong("it has storages without a key")
    storages = {tensor.storage.key: tensor.storage for tensor in state.values()}
    arrays: dict[str, np.ndarray] = {}
    position = file.tell()
    for key in keys:
        _, dtype, size = storages[key]
        if struct.unpack_from("<q", content, position) != (size,):
            raise _Wrong("a storage has another size than its tensors expect")
        arrays[key] = np.frombuffer(content, dtype, size, position + 8)
        position += 8 + arrays[key].nbytes
    if position != len(content):
        raise _Wrong(f"expected {position} bytes, found {len(content)}")
    return {name: tensor.view(arrays[tensor.storage.key]) for name, tensor in state.items()}


def _load(file: io.BytesIO) -> Any:
    """What the pickle at the file's position holds; the position is then behind it."""
    stack: list[Any] = []
    marks: list[int] = []  # the stack's heights
    memo: dict[Any, Any] = {}

    def since_mark() -> list:
        height = marks.pop()
        items = stack[height:]
        del stack[height:]
        return items

    for opcode, argument, _ in pickletools.genops(file):
        match opcode.name:
            case "PROTO":
                pass
            case "STOP":
                result, = stack
                return result
            case "MARK":
                marks.append(len(stack))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(CONSTANTS[opcode.name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE":
                stack.append(argument)
            case "GLOBAL":
                stack.append(_Name(argument))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                start = len(stack) - int(opcode.name[-1])
                stack[start:] = [tuple(stack[start:])]
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                items = since_mark()
                stack[-1].extend(items)
            case "SETITEM":
                marks.append(len(stack) - 2)
                _set_items(since_mark(), stack[-1])
            case "SETITEMS":
                _set_items(since_mark(), stack[-1])
            case "BINPERSID":
                stack.append(_storage(*stack.pop()))
            case "REDUCE":
                arguments, name = stack.pop(), stack.pop()
                stack.append(_call(name, arguments))
            case "BUILD":  # the dictionary's attribute, versions of the format
                stack.pop()
            case _:
                raise _Wrong(f"it has the opcode {opcode.name}")
    raise _Wrong("it ends early")


def _set_items(items: list, target: dict):
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) is not str:
            raise _Wrong("it has a key that is not a name")
        target[key] = value


def _storage(kind: object, name: object, key: object, place: object, size: object,
             view: object) -> _Storage:
    dtype = STORAGES.get(name) if type(name) is _Name else None
    if kind != "storage" or dtype is None or type(key) is not str or type(size) is not int \
            or view is not None:
        raise _Wrong("it has a storage of other numbers than float32 and int64")
    return _Storage(key, dtype, size)


def _call(name: object, arguments: tuple) -> dict | _Tensor:
    if type(name) is not _Name:
        raise _Wrong("it calls something without a name")
    if name == DICTIONARY and arguments == ():
        return {}
    if name != TENSOR:
        raise _Wrong(f"it calls {name[:60]!a}")
    return _Tensor(*arguments[:4])
