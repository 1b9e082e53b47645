"""CIFAR-10 and CIFAR-100 from their official archives (Krizhevsky 2009,
https://www.cs.toronto.edu/~kriz/cifar.html).

The batches are pickles, which could run any code. The unpickler therefore only records what a pickle
says of its arrays; they are built afterwards, once checked.
"""
import hashlib
import io
import lzma
import os
import pickle
import pickletools
import socket
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from datasets.arrays import IMAGE_SHAPE, Split
from utils.errors import UserError
from utils.files import whole_file


@dataclass(frozen=True)
class Archive:
    """An official archive: its URL and contents.

    Attributes:
        url: its URL.
        md5: its official checksum.
        folder: the folder that holds all its files.
        train: the names of the batches of the training set.
        test: the name of the batch of the test set.
        label_key: the key of the labels in a batch.
        names: the class names.
        max_batch_bytes: size of the largest batch; a larger file could fill the memory.
    """

    url: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: str
    label_key: str
    names: tuple[str, ...]
    max_batch_bytes: int

    @property
    def file(self) -> str:
        return self.url.rsplit("/", 1)[-1]


CIFAR10 = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a", folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)), test="test_batch",
    label_key="labels", names=(
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    max_batch_bytes=64 * 2**20)
CIFAR100 = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85", folder="cifar-100-python",
    train=("train",), test="test", label_key="fine_labels", names=(
        "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle",
        "bottle", "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle",
        "caterpillar", "cattle", "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch",
        "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox",
        "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
        "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom",
        "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree",
        "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road",
        "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake",
        "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone",
        "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
        "willow_tree", "wolf", "woman", "worm"),
    max_batch_bytes=320 * 2**20)
# Which class is taken for which in CIFAR-10: truck for automobile, bird for airplane, deer for horse,
# and cat and dog for each other (Patrini et al. 2017, arXiv:1609.03683).
CIFAR10_CONFUSABLE = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
TIMEOUT = 60  # seconds without a byte
INTEGERS = tuple(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8))
MAX_MEMO = 2**20  # entries; the largest batch, CIFAR-100's training set, needs about 150,000
MAX_CALLS = 10  # per batch; an official one needs 2 to 5
MAX_TUPLES = 20  # per batch; an official one needs 6, and the time to hash nested ones doubles with each


def load_cifar(archive: Archive, path: Path | None = None) -> tuple[Split, Split]:
    """The training and the test set.

    Args:
        archive: which of the two.
        path: the archive, or the folder extracted from it, with any number of records; None for
            the official archive in NNabla's data home, downloaded if it is not there.

    Raises:
        UserError: the archive cannot be found, downloaded or read, or its contents are wrong.
    """
    path = fetch_archive(archive) if path is None else path
    read = read_folder if path.is_dir() else read_archive
    batches = read(archive, path)
    missing = [name for name in (*archive.train, archive.test) if name not in batches]
    if missing:
        raise UserError(f"expected {archive.folder}/{missing[0]} in {path}, found none; give the "
                        f"official {archive.file} or the folder extracted from it")
    train = [batches[name] for name in archive.train]
    return (Split(np.concatenate([batch.images for batch in train]),
                  np.concatenate([batch.labels for batch in train])), batches[archive.test])


def fetch_archive(archive: Archive) -> Path:
    """The archive in NNabla's data home, downloaded if it is not there or damaged.

    Raises:
        UserError: the download fails, or its MD5 is not the official archive's.
    """
    # Imported here so that the analysis can read a run's files without NNabla.
    from nnabla.utils.download import download, get_data_home

    path = Path(get_data_home()) / archive.file
    if path.exists():
        if _md5(path) == archive.md5:
            return path
        damaged = path.with_name(path.name + ".damaged")
        os.replace(path, damaged)
        print(f"{path} does not have the MD5 of the official archive: it is kept as {damaged.name} and "
              "downloaded again", flush=True)
    with whole_file(path) as temporary:
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(TIMEOUT)
        try:
            download(archive.url, str(temporary), open_file=False, allow_overwrite=True)
        # urllib and http.client raise OSError, HTTPException and ValueError, among others.
        except Exception as error:
            raise UserError(f"cannot download {archive.url}: {error}; download it by other means "
                            "and give its path as --data, or use --dataset digits") from error
        finally:
            socket.setdefaulttimeout(timeout)
        found = _md5(temporary)
        if found != archive.md5:
            raise UserError(f"expected a file with the MD5 {archive.md5} at {archive.url}, found "
                            f"{found} ({temporary.stat().st_size} bytes); try again")
    return path


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def read_folder(archive: Archive, path: Path) -> dict[str, Split]:
    """The batches in an extracted archive, by name."""
    inner = path / archive.folder
    folder = inner if inner.is_dir() else path
    batches = {}
    for name in (*archive.train, archive.test):
        if (folder / name).is_file():
            try:
                with (folder / name).open("rb") as file:
                    batches[name] = read_batch(archive, file, folder / name)
            except OSError as error:
                raise UserError(f"cannot read {folder / name}: {error}") from error
    return batches


def read_archive(archive: Archive, path: Path) -> dict[str, Split]:
    """The batches in a tar archive, by name; nothing is extracted to disk."""
    batches = {}
    try:
        with tarfile.open(path, "r:*") as file:
            for member in file:
                folder, _, name = member.name.removeprefix("./").partition("/")
                content = file.extractfile(member) if member.isreg() else None
                if folder == archive.folder and name in (*archive.train, archive.test) and content:
                    batches[name] = read_batch(archive, content, f"{path}:{member.name}")
    except FileNotFoundError:
        raise UserError(f"expected {archive.file} or the folder extracted from it at --data "
                        f"{path}, found nothing; give its path") from None
    except (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).partition(":")[0]
        raise UserError(f"cannot read the archive {path}: {reason}; the file may be damaged or cut "
                        f"short: give the official {archive.file}") from error
    return batches


def read_batch(archive: Archive, file: IO[bytes], source: object) -> Split:
    """One batch: a pickled dictionary of ``data``, uint8 (n, 3072), and n labels, integers.

    Raises:
        UserError: the file is not such a batch; the message names `source`.
    """
    content = file.read(archive.max_batch_bytes + 1)
    if len(content) > archive.max_batch_bytes:
        raise UserError(f"expected at most {archive.max_batch_bytes} bytes in {source}, found more; get "
                        "the official archive")
    try:
        batch = _unpickle(content)
        pixels, labels = batch["data"], batch[archive.label_key]
        if type(pixels) is not _Array:
            raise pickle.UnpicklingError("its data is not an array")
        pixels = pixels.build()
        if type(labels) is _Array:
            labels = labels.build()
        elif type(labels) is list and all(type(label) is int for label in labels):
            labels = np.array(labels, np.int64)
        else:
            raise pickle.UnpicklingError("its labels are not integers")
    except Exception as error:  # a damaged pickle can raise almost any error
        reason = f"{type(error).__name__}: {error}"[:200]  # may quote the file
        raise UserError(f"expected a pickled CIFAR batch in {source}, found something else "
                        f"({reason}); get the official archive") from error
    size = int(np.prod(IMAGE_SHAPE))
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != size or not len(pixels):
        raise UserError(f"expected records of {size} bytes in {source}, found {pixels.dtype} "
                        f"{pixels.shape}; get the official archive")
    if labels.shape != (len(pixels),):
        raise UserError(f"expected {len(pixels)} labels in {source}, found {labels.shape}; get the "
                        "official archive")
    if labels.min() < 0 or labels.max() >= len(archive.names):
        wrong = labels[(labels < 0) | (labels >= len(archive.names))][0]
        raise UserError(f"expected labels from 0 to {len(archive.names) - 1} in {source}, found "
                        f"{wrong}; get the official archive")
    return Split(pixels.reshape(-1, *IMAGE_SHAPE), labels.astype(np.int64)[:, None])


class _Type:
    """The type of an array as the pickle gives it: its name and its state, which has the byte order.

    NumPy's own type would take the whole state, which could corrupt memory.
    """

    __slots__ = ("_name", "_state")

    def __init__(self, name: object, *_: object) -> None:
        if type(name) is not str or name not in INTEGERS:
            raise pickle.UnpicklingError(f"it has an array of {_quoted(name)}, not of integers")
        self._name = name
        self._state: object = None

    def __setstate__(self, state: object) -> None:
        self._state = state

    def build(self) -> np.dtype:
        order = self._state[1] if type(self._state) is tuple and len(self._state) > 1 else None
        if type(order) is not str or order not in ("<", ">", "|"):
            raise pickle.UnpicklingError(f"it has an array of the byte order {_quoted(order)}")
        return np.dtype(order + self._name)


class _Array:
    """An array as the pickle gives it: its state, which has the shape, type and data.

    `build` alone works on the state, since a pickle can set it any number of times.
    """

    __slots__ = ("_state",)

    def __init__(self, *_: object) -> None:
        self._state: object = None

    def __setstate__(self, state: object) -> None:
        self._state = state

    def build(self) -> np.ndarray:
        if type(self._state) is not tuple or len(self._state) != 5:
            raise pickle.UnpicklingError("it has an array without a state of 5 items")
        _, shape, dtype, fortran, data = self._state
        if type(shape) is not tuple or not all(type(size) is int for size in shape):
            raise pickle.UnpicklingError("it has an array whose shape is not integers")
        if type(dtype) is not _Type:
            raise pickle.UnpicklingError("it has an array without a type")
        if type(data) is str:  # from Python 2
            data = data.encode("latin1")
        if type(data) is not bytes:
            raise pickle.UnpicklingError("it has an array whose data is not bytes")
        array = np.frombuffer(data, dtype.build()).reshape(shape, order="F" if fortran is True else "C")
        return array.astype(array.dtype.newbyteorder("="))  # a copy, for the caller to write to


def _encode(text: object, encoding: object) -> bytes:
    """Bytes as Python 3 writes them for Python 2; other codecs could double their input in each call."""
    if type(text) is not str or type(encoding) is not str or encoding != "latin1":
        raise pickle.UnpicklingError(f"it uses the encoding {_quoted(encoding)}")
    return text.encode("latin1")


def _quoted(value: object) -> str:
    """The start of a string; only the type of anything else, whose repr could fill the memory."""
    return repr(value[:20]) if type(value) is str else f"a {type(value).__name__}"


class _Function:
    """A function that a pickle can call but not change; BUILD can change a plain one."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> object:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it sets the state of a function")


# The type ndarray is only an argument of _reconstruct, which `_Array` ignores.
_ALLOWED: dict[tuple[str, str], _Function | None] = {
    ("numpy.core.multiarray", "_reconstruct"): _Function(_Array), ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _Function(_Type), ("_codecs", "encode"): _Function(_encode)}


class _Unpickler(pickle.Unpickler):
    """Calls only the functions in `_ALLOWED`, whatever the pickle names."""

    def find_class(self, module: str, name: str) -> _Function | None:
        try:
            return _ALLOWED[module.replace("numpy._core", "numpy.core"), name]
        except KeyError:
            raise pickle.UnpicklingError(f"it uses {module}.{name}, not needed in a batch") from None


def _unpickle(content: bytes) -> dict[str, Any]:
    """The dictionary in an untrusted pickle, of plain values and `_Array`s."""
    calls = tuples = 0
    # A few bytes could fill the memory, by a large memo index, an announced size or repeated copies, or
    # keep the processor busy, by nested tuples.
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and (argument or 0) >= MAX_MEMO:
            raise pickle.UnpicklingError(f"it has a memo index of {argument}")
        calls += opcode.name in ("REDUCE", "INST", "OBJ")
        if calls > MAX_CALLS:
            raise pickle.UnpicklingError(f"it has more than {MAX_CALLS} calls")
        tuples += opcode.name.startswith("TUPLE")
        if tuples > MAX_TUPLES:
            raise pickle.UnpicklingError(f"it has more than {MAX_TUPLES} tuples")
    # "latin1" decodes Python 2's byte strings, including array data.
    batch = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    if type(batch) is not dict:
        raise pickle.UnpicklingError("it is not a dictionary")
    return {key.decode("latin1") if isinstance(key, bytes) else key: value
            for key, value in batch.items()}
