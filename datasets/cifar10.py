"""CIFAR-10 from its official archive (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html).

The batches in it are pickles, which could run any code: they are read by an unpickler that builds
lists, strings and arrays of integers alone.
"""
import hashlib
import io
import lzma
import os
import pickle
import re
import socket
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from datasets.arrays import IMAGE_SHAPE, Split
from utils.cli import UserError
from utils.files import whole_file

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Which class is taken for which: truck for automobile, bird for airplane, deer for horse, and cat and
# dog for each other (Patrini et al. 2017, arXiv:1609.03683).
CONFUSABLE = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"
TIMEOUT = 60  # seconds without a byte
FOLDER = "cifar-10-batches-py"
TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_BATCH = "test_batch"
# An official batch has 31 million bytes; a larger one is no batch but a way to fill the memory.
MAX_BATCH_BYTES = 64 * 2**20


def load_cifar10(path: Path | None = None) -> tuple[Split, Split]:
    """The training and the test set.

    Args:
        path: the archive, or the folder extracted from it, with any number of records; None for
            the official archive in NNabla's data home, downloaded if it is not there.

    Raises:
        UserError: it cannot be found, downloaded or read, or is not what it should be.
    """
    path = fetch_archive() if path is None else path
    read = read_folder if path.is_dir() else read_archive
    batches = read(path)
    missing = [name for name in (*TRAIN_BATCHES, TEST_BATCH) if name not in batches]
    if missing:
        raise UserError(f"expected {FOLDER}/{missing[0]} in {path}, found none; give the official "
                        "cifar-10-python.tar.gz or the folder extracted from it")
    train = [batches[name] for name in TRAIN_BATCHES]
    return (Split(np.concatenate([batch.images for batch in train]),
                  np.concatenate([batch.labels for batch in train])), batches[TEST_BATCH])


def fetch_archive(url: str = URL, md5: str = MD5) -> Path:
    """The archive in NNabla's data home, downloaded if it is not there or damaged.

    Raises:
        UserError: the download fails, or brings another file than the official one.
    """
    # Here, for the analysis to read a run's files without NNabla.
    from nnabla.utils.download import download, get_data_home

    path = Path(get_data_home()) / url.rsplit("/", 1)[-1]
    if path.exists():
        if _md5(path) == md5:
            return path
        damaged = path.with_name(path.name + ".damaged")
        os.replace(path, damaged)
        print(f"{path} had not the MD5 of the official archive: kept as {damaged.name}, "
              "downloading again", flush=True)
    with whole_file(path) as temporary:
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(TIMEOUT)
        try:
            download(url, str(temporary), open_file=False, allow_overwrite=True)
        # urllib and http.client raise OSError, HTTPException and ValueError, among others.
        except Exception as error:
            raise UserError(f"cannot download {url}: {error}; bring the archive yourself and name "
                            "it with --data, or try --dataset digits") from error
        finally:
            socket.setdefaulttimeout(timeout)
        found = _md5(temporary)
        if found != md5:
            raise UserError(f"expected the MD5 {md5} of what {url} brings, found {found} "
                            f"({temporary.stat().st_size} bytes); try again")
    return path


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def read_folder(path: Path) -> dict[str, Split]:
    """The batches in an extracted archive, by name."""
    inner = path / FOLDER
    folder = inner if inner.is_dir() else path
    batches = {}
    for name in (*TRAIN_BATCHES, TEST_BATCH):
        if (folder / name).is_file():
            try:
                with (folder / name).open("rb") as file:
                    batches[name] = read_batch(file, folder / name)
            except OSError as error:
                raise UserError(f"cannot read {folder / name}: {error}") from error
    return batches


def read_archive(path: Path) -> dict[str, Split]:
    """The batches in a tar archive, by name; nothing is extracted to disk."""
    batches = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                folder, _, name = member.name.removeprefix("./").partition("/")
                if folder == FOLDER and name in (*TRAIN_BATCHES, TEST_BATCH) and member.isreg():
                    batches[name] = read_batch(archive.extractfile(member), f"{path}:{member.name}")
    except FileNotFoundError:
        raise UserError(f"expected cifar-10-python.tar.gz or the folder extracted from it at --data "
                        f"{path}, found nothing; give its path") from None
    except (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).partition(":")[0]
        raise UserError(f"cannot read the archive {path}: {reason}; it is another file, damaged or "
                        "cut short: give the official cifar-10-python.tar.gz") from error
    return batches


def read_batch(file: BinaryIO, source: object) -> Split:
    """One batch: a pickled dictionary of ``data``, uint8 (n, 3072), and ``labels``, n integers.

    Raises:
        UserError: it is no such thing; `source` says where it came from.
    """
    content = file.read(MAX_BATCH_BYTES + 1)
    if len(content) > MAX_BATCH_BYTES:
        raise UserError(f"expected at most {MAX_BATCH_BYTES} bytes in {source}, found more; get the "
                        "official archive")
    try:
        batch = _Unpickler(content).load()
        pixels = batch["data"].array()
        labels = batch["labels"]
        if isinstance(labels, _Array):
            labels = labels.array()
        elif all(type(label) is int for label in labels):
            labels = np.array(labels, np.int64)
        else:
            raise pickle.UnpicklingError("it has labels that are no integers")
    # A damaged pickle ends in almost any exception.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"expected a pickled CIFAR-10 batch in {source}, found something else "
                        f"({reason}); get the official archive") from error
    size = int(np.prod(IMAGE_SHAPE))
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != size or not len(pixels):
        raise UserError(f"expected records of {size} bytes in {source}, found {pixels.dtype} "
                        f"{pixels.shape}; get the official archive")
    if labels.shape != (len(pixels),):
        raise UserError(f"expected {len(pixels)} labels in {source}, found {labels.shape}; get the "
                        "official archive")
    if labels.min() < 0 or labels.max() >= len(NAMES):
        wrong = labels[(labels < 0) | (labels >= len(NAMES))][0]
        raise UserError(f"expected labels from 0 to {len(NAMES) - 1} in {source}, found {wrong}; "
                        "get the official archive")
    return Split(pixels.reshape(-1, *IMAGE_SHAPE), labels.astype(np.int64)[:, None])


class _Unpickler(pickle._Unpickler):
    """Builds Python's own lists, dictionaries, strings and numbers, and `_Array` for an array.

    It is the one written in Python: that in C gives a few bytes gigabytes of memory if they name a
    large memo index.
    """

    def __init__(self, content: bytes):
        # "latin1" is what Python 2's byte strings need, those of array data among them.
        super().__init__(io.BytesIO(content), encoding="latin1")

    def find_class(self, module: str, name: str):
        try:
            return _GLOBALS[module.replace("numpy._core", "numpy.core"), name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a batch does not "
                                         "need") from None

    def load(self) -> dict:
        batch = super().load()
        return {key.decode("latin1") if isinstance(key, bytes) else key: value
                for key, value in batch.items()}


class _Array:
    """What a pickled array says of itself, held without calling NumPy."""

    def __init__(self, *_):
        self._state = None

    def __setstate__(self, state: tuple):
        self._state = state

    def array(self) -> np.ndarray:
        _, shape, dtype, fortran, content = self._state
        if isinstance(content, str):
            content = content.encode("latin1")
        array = np.frombuffer(content, dtype.dtype())
        return array.reshape(shape, order="F" if fortran else "C")


class _DType:
    """A pickled type of integers."""

    def __init__(self, name: str, *_):
        self._name = name
        self._order = "|"

    def __setstate__(self, state: tuple):
        self._order = state[1]

    def dtype(self) -> np.dtype:
        if not re.fullmatch("[iu][1248]", self._name) or self._order not in "<>|=":
            raise pickle.UnpicklingError(f"it has an array of {self._name!r}, not of integers")
        return np.dtype(self._name).newbyteorder(self._order)


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as Python 3 writes them for Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


_GLOBALS = {("numpy.core.multiarray", "_reconstruct"): _Array, ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _DType, ("_codecs", "encode"): _encode}
