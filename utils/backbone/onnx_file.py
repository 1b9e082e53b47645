"""An untrusted ONNX file as a backbone."""
import hashlib
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError, Message

from utils.errors import UserError
from utils.files import sha256
from utils.graph.onnx_nodes import RUNTIME, make_session

PIXELS = ("imagenet", "0..1", "-1..1", "0..255")
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's R, G and B in 0..1
SIZE, LARGEST_SIZE = 224, 1024
LARGEST_FILE = 2**31 - 1  # bytes that protobuf reads; more weights are external data
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
DOMAINS = {"", "ai.onnx", "ai.onnx.ml", RUNTIME}  # of the operators built into ONNX Runtime
ENTRIES = {"location", "offset", "length", "checksum"}  # of external data, in ONNX
SHOWN = 300  # characters of a message of ONNX Runtime


class OnnxFile:
    """A backbone that ONNX Runtime computes on the CPU.

    The file is parsed and its operators, all built into ONNX Runtime, are run: nothing else in it is.
    They may nevertheless take any time and memory.

    Attributes:
        size: height and width of the images.
        batch: the images that one run of the model computes: as many as the file has fixed, else 1, so
            that features do not depend on what is computed beside them.
        concurrent: threads may call `features` at the same time.
        key: SHA-256 of what decides the features: the file and its external data, the size, how pixels
            enter, the output, and ONNX Runtime's version.
    """

    concurrent = True

    def __init__(self, path: Path, size: int | None = None, pixels: str | None = None,
                 output: str | None = None) -> None:
        """Load the file and run it once.

        Args:
            path: an ONNX file with one input, images (N, 3, H, W) or (N, H, W, 3), and an output
                (N, D), or (N, D, h, w), which is averaged over h and w.
            size: height and width of the images, if the file leaves them open; None for 224.
            pixels: how pixels enter, one of PIXELS; None for ``imagenet``, or as they are in uint8.
            output: the name of the output; None for the only one of those shapes.

        Raises:
            UserError: the file is missing, damaged, unsafe, or not of this kind.
        """
        content = _read(path)
        files = _check(path, content)
        try:
            self._session = make_session(content, threads=1, folder=path.parent)
        except Exception as error:  # ONNX Runtime's have no common type
            raise UserError(f"cannot load {path} with ONNX Runtime {onnxruntime.__version__}: "
                            f"{_reason(error)}; export it again, with opset_version=18") from error
        self._input, dtype = _image_input(path, self._session.get_inputs())
        self._channels_last = self._input.shape[1] != 3
        self.batch = _fixed(self._input.shape[0]) or 1
        self.size = _size(path, self._input.shape[1:3] if self._channels_last else
                          self._input.shape[2:], size)
        self._table, pixels = _table(path, dtype, pixels)
        self._output = self._choose_output(path, output)
        self.key = hashlib.sha256(repr((
            hashlib.sha256(content).hexdigest(), [(name, sha256(files[name])) for name in sorted(files)],
            self.size, pixels, self._output, onnxruntime.__version__)).encode()).hexdigest()

    def features(self, images: np.ndarray) -> np.ndarray:
        """The features of some images.

        Args:
            images: uint8 (B, 3, size, size), RGB.

        Returns:
            float32 (B, D).
        """
        batches = [images[start:start + self.batch] for start in range(0, len(images), self.batch)]
        parts = [self._run([self._output], batch)[0][:len(batch)] for batch in batches]
        features = np.concatenate(parts).astype(np.float32)
        return features.mean(axis=(2, 3)) if features.ndim == 4 else features

    def _run(self, outputs: list[str], images: np.ndarray) -> list[Any]:
        missing = self.batch - len(images)
        padded = np.concatenate([images, np.zeros((missing, *images.shape[1:]), np.uint8)])
        pixels = np.stack([self._table[channel][padded[:, channel]] for channel in range(3)],
                          axis=3 if self._channels_last else 1)
        return self._session.run(outputs, {self._input.name: pixels})

    def _choose_output(self, path: Path, name: str | None) -> str:
        names = [output.name for output in self._session.get_outputs()]
        if name is not None and name not in names:
            raise UserError(f"expected an output of {path} as --backbone_output, one of "
                            f"{', '.join(map(ascii, names))}, found {name}; give one of them")
        try:
            results = self._run(names, np.zeros((self.batch, 3, self.size, self.size), np.uint8))
        except Exception as error:  # ONNX Runtime's have no common type
            raise UserError(f"{path} cannot compute an image {self.size}x{self.size}: {_reason(error)}; "
                            "give the --image_size that it was made for") from error
        found = dict(zip(names, results, strict=True))
        usable = [one for one in found if self._is_usable(found[one]) and name in (None, one)]
        if len(usable) == 1:
            return usable[0]
        shapes = ", ".join(f"{one!a} {_shape(found[one])}" for one in found)
        if usable:
            raise UserError(f"expected the --backbone_output to use, as {path} has {len(usable)} of a "
                            f"possible shape, found none; give one: {shapes}")
        raise UserError(f"expected an output (N, D) or (N, D, h, h) of {path}, found {shapes}; export "
                        "the pooled features (of a transformer those of the class token, (N, D))")

    def _is_usable(self, result: Any) -> bool:
        # The maps of square images are square; others have the channels elsewhere.
        return (isinstance(result, np.ndarray) and result.dtype.kind == "f" and result.size > 0
                and len(result) == self.batch
                and (result.ndim == 2 or (result.ndim == 4 and result.shape[2] == result.shape[3])))


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"expected an ONNX file at --backbone {path}, found "
                        f"{'no regular file' if path.exists() else 'nothing'}; give the path of one")
    if path.stat().st_size > LARGEST_FILE:
        raise UserError(f"expected an ONNX file of at most {LARGEST_FILE:,} bytes at --backbone {path}, "
                        f"found {path.stat().st_size:,}; export it with external data")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read --backbone {path}: {error.strerror}; give another file") from error


def _check(path: Path, content: bytes) -> dict[str, Path]:
    """Check all that can be checked without ONNX Runtime.

    Returns:
        The files of the external data by their locations.
    """
    model = onnx.ModelProto()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # protobuf only warns of some damage
            model = onnx.ModelProto.FromString(content)
        messages = list(_messages(model))
    except (DecodeError, RuntimeWarning, SystemError, UnicodeError):
        model.Clear()
    if not (model.ir_version and model.opset_import and model.graph.node):
        raise UserError(f"expected an ONNX file at --backbone {path}, found another or one cut short, "
                        f"of {len(content):,} bytes; export or copy it again")
    defined = {(function.domain, function.name) for function in model.functions}
    _check_operators(path, [one for one in messages if isinstance(one, onnx.NodeProto)], defined)
    if any(isinstance(one, onnx.SparseTensorProto) for one in messages):
        # ONNX Runtime writes where their indices say, even outside its memory.
        raise UserError(f"expected dense tensors in {path}, found sparse ones; export it without them")
    tensors = [one for one in messages if isinstance(one, onnx.TensorProto)]
    files = _external_data(path, tensors)
    _check_sizes(path, tensors, files)
    return files


def _messages(message: Message) -> Iterator[Message]:
    """The messages within a message, at any depth, except those within tensors.

    Raises:
        UnicodeError: a text is not UTF-8.
    """
    for field, value in message.ListFields():
        for part in value if field.label == field.LABEL_REPEATED else [value]:
            if field.type == field.TYPE_STRING and isinstance(part, bytes):
                raise UnicodeError(field.name)
            if field.message_type:
                yield part
                if not isinstance(part, onnx.TensorProto):
                    yield from _messages(part)


def _check_operators(path: Path, nodes: list[onnx.NodeProto], defined: set[tuple[str, str]]):
    for node in nodes:
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in defined:
            raise UserError(f"expected operators of ONNX and ONNX Runtime in {path}, found "
                            f"{node.op_type!a} of {node.domain!a}; export it without custom operators")


def _external_data(path: Path, tensors: list[onnx.TensorProto]) -> dict[str, Path]:
    """The files of the external data by their locations, all in the folder of the ONNX file."""
    files = {}
    for tensor in tensors:
        if _is_external(tensor):
            _check_entries(path, tensor)
            location = _location(tensor)
            files[location] = path.parent / location
    for location, file in files.items():
        try:
            # ONNX Runtime takes some locations with * for addresses in memory.
            plain = not (set(location) & set("*\\") or ".." in PurePath(location).parts
                         or PurePath(location).is_absolute())
            inside = plain and file.resolve().is_relative_to(path.parent.resolve())
            exists = file.is_file()
        except (OSError, ValueError, RuntimeError):  # too long, a null character, a loop of links
            inside = exists = False
        if not inside:
            raise UserError(f"expected the external data of {path} in its folder, found them at "
                            f"{location!a}; put them beside it and export it again")
        if not exists:
            raise UserError(f"expected the external data of {path} at {location!a} beside it, found "
                            "nothing; copy them too")
    return files


def _is_external(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL or bool(tensor.external_data)


def _check_entries(path: Path, tensor: onnx.TensorProto):
    """Refuse entries that say where data are twice, of which readers choose differently, or otherwise.

    ONNX Runtime would also read weights laid out for its own kernels, which nothing checks.
    """
    found = [(entry.key, entry.value) for entry in tensor.external_data]
    keys = [key for key, _ in found]
    # Text that is not UTF-8 arrives as bytes.
    if not ("location" in keys and len(set(keys)) == len(keys) and set(keys) <= ENTRIES
            and all(isinstance(value, str) and value for _, value in found)):
        shown = ", ".join(f"{key!a} {value!a}" for key, value in found)[:SHOWN] or "none"
        raise UserError(f"expected the external data of {path} described by a location, an offset and a "
                        f"length, each once, found {shown} for {tensor.name!a}; export it again")


def _location(tensor: onnx.TensorProto) -> str:
    return next(entry.value for entry in tensor.external_data if entry.key == "location")


def _check_sizes(path: Path, tensors: list[onnx.TensorProto], files: dict[str, Path]):
    """Refuse tensors that say they are larger than what there is of them, before memory is allocated."""
    for tensor in tensors:
        external = _is_external(tensor)
        stored = files[_location(tensor)].stat().st_size if external else tensor.ByteSize()
        if math.prod(tensor.dims) > 8 * stored:  # no number takes less than a bit
            raise UserError(f"expected the data of every tensor in {path}, found {stored:,} bytes for "
                            f"{tensor.name!a}, {' x '.join(map(str, tensor.dims))} numbers; export or "
                            "copy it again")


def _image_input(path: Path, inputs: list[onnxruntime.NodeArg]) -> tuple[onnxruntime.NodeArg, type]:
    """The only input, and the type of its numbers."""
    found = ", ".join(f"{one.name!a} {one.type} {_shape(one)}" for one in inputs) or "none"
    if len(inputs) != 1:
        raise UserError(f"expected one input, images, of {path}, found {len(inputs)}: {found}; export "
                        "it with one")
    shape, dtype = inputs[0].shape, TYPES.get(inputs[0].type)
    if dtype is None:
        raise UserError(f"expected an input of float, float16 or uint8 of {path}, found {found}; export "
                        "it with one")
    if len(shape) != 4 or 3 not in (shape[1], shape[3]):
        raise UserError(f"expected images (N, 3, H, W) or (N, H, W, 3), 3 a fixed number, as the input "
                        f"of {path}, found {found}; export it so")
    return inputs[0], dtype


def _fixed(length: int | str | None) -> int:
    """The length of an axis, or 0 if it is free."""
    return length if isinstance(length, int) and length > 0 else 0


def _size(path: Path, sides: list, asked: int | None) -> int:
    fixed = sorted({_fixed(side) for side in sides} - {0})
    if len(fixed) > 1:
        raise UserError(f"expected square images as the input of {path}, found {sides[0]}x{sides[1]}; "
                        "export it for square ones")
    if fixed and asked not in (None, fixed[0]):
        raise UserError(f"expected --image_size {fixed[0]}, which is fixed in {path}, found {asked}; "
                        "leave it out, or export the file with a free size")
    size = fixed[0] if fixed else asked or SIZE
    if size > LARGEST_SIZE:
        raise UserError(f"expected images of at most {LARGEST_SIZE}x{LARGEST_SIZE} as the input of "
                        f"{path}, found {size}; give a smaller --image_size or export it so")
    return size


def _table(path: Path, dtype: type, pixels: str | None) -> tuple[np.ndarray, str]:
    """What enters for each pixel, (3, 256), and the name of that in PIXELS."""
    if pixels is None:
        pixels = "0..255" if dtype is np.uint8 else "imagenet"
    if dtype is np.uint8 and pixels != "0..255":
        raise UserError(f"expected --backbone_input 0..255 for {path}, whose input is uint8, found "
                        f"{pixels}; leave it out")
    values = np.arange(256.0) * np.ones((3, 1))
    if pixels == "imagenet":
        values = (values / 255 - np.reshape(MEAN, (3, 1))) / np.reshape(DEVIATION, (3, 1))
    elif pixels != "0..255":
        values = values / 255 if pixels == "0..1" else values / 127.5 - 1
    return values.astype(dtype), pixels


def _shape(value: Any) -> str:
    """The shape of an array or of an input as the file declares it, in words."""
    if not hasattr(value, "shape"):
        return "of no shape"
    dtype = f"{value.dtype} " if isinstance(value, np.ndarray) and value.dtype.kind != "f" else ""
    lengths = [ascii(length).strip("'") for length in value.shape]
    return f"{dtype}({', '.join(lengths)}{',' if len(lengths) == 1 else ''})"


def _reason(error: Exception) -> str:
    """What an exception of ONNX Runtime says of an untrusted file, in one line."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(str(error).split()))
    text = re.sub(r"^/\S+:\d+ .*?\) (?=[A-Z])", "", text)  # the place in its source
    return ascii(text)[1:-1][:SHOWN].rstrip(".")
