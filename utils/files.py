"""Files that are written whole or not at all, and untrusted files that are read."""
import csv
import errno
import hashlib
import json
import math
import mmap
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from utils.errors import RunError, UserError

SPOTS, SPOT_BYTES = 256, 1 << 16  # of `spot_check`
PIECE = 2**22  # bytes of a large array that are in memory at a time, about
PATIENCE = 2  # seconds without a progress bar
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
LOCAL_HEADER = struct.Struct("<26xHH")  # of a file in a .zip


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` if the block ends without an error.

    The temporary name keeps the suffix, from which many writers derive the format.

    Raises:
        RunError: the file cannot be written (no space, no permission); `path` stays as it was.
    """
    temporary = path.with_name(f".partial-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # an archive may bring a link, to write elsewhere
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        if temporary.is_file():
            temporary.unlink()
        if isinstance(error, OSError):
            raise RunError(cannot_write(path, error)) from error
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces the folder `path` if the block ends without an error.

    Raises:
        RunError: a file in it cannot be written; `path` stays as it was.
    """
    temporary, old = (path.with_name(f".{kind}-{path.name}") for kind in ("partial", "old"))
    try:
        for rest in (temporary, old):
            shutil.rmtree(rest, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise RunError(cannot_write(path, error)) from error
        raise


def cannot_write(path: Path, error: OSError) -> str:
    """Why a file cannot be written and what to do, in one line."""
    # On a full disk NumPy reports the number of items written instead of the system's reason.
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "requested and" in str(error)
    remedy = "free some space" if full else "give another folder"
    return f"cannot write {path}: {error.strerror or error}; {remedy}, then run again"


def check_folder(path: Path):
    """Check, before anything is computed, that a folder, which may not exist yet, can be written to.

    Raises:
        UserError: it cannot be written to.
    """
    existing = path
    while not os.path.lexists(existing) and existing != existing.parent:  # a link may lead nowhere
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"expected a folder to write in at {path}, found {existing}, which is "
                        f"{'read-only' if existing.is_dir() else 'not a folder'}; give another")


def save_array(path: Path, array: np.ndarray):
    """Write `array`, (N, ...), as an .npy file."""
    with whole_file(path) as temporary, temporary.open("wb") as file:
        _write_array(file, array)


def save_npz(path: Path, arrays: Iterable[tuple[str, object]], compressed: bool = False):
    """Write arrays by name as an .npz, one at a time, which numpy.savez would need all at once."""
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with whole_file(path) as temporary, zipfile.ZipFile(temporary, "w", kind) as archive:
        for name, array in arrays:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                _write_array(file, np.asanyarray(array))


def _write_array(file: IO[bytes], array: np.ndarray):
    """Write an .npy as numpy.save does, but always by rows, and arrays of any strides fast."""
    if not array.ndim:
        np.lib.format.write_array(file, array, allow_pickle=False)
        return
    np.lib.format.write_array_header_1_0(file, {
        **np.lib.format.header_data_from_array_1_0(array), "fortran_order": False})
    for rows in slices(array, doing="writing"):
        file.write(np.ascontiguousarray(array[rows]).data)


def save_bytes(path: Path, content: bytes | memoryview):
    """Write `content`.

    Writers that crash or print at length when the disk is full, such as HDF5's, write to memory first
    and leave the disk to this function.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def save_text(path: Path, text: str):
    """Write `text` as UTF-8."""
    save_bytes(path, text.encode())


def save_json(path: Path, content: object):
    """Write `content` as JSON."""
    save_text(path, json.dumps(content, indent=1) + "\n")


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def spot_check(path: Path) -> str:
    """SHA-256 of a file's size and of evenly spread blocks, at most 16 MiB; empty if it cannot be read.

    It tells whether two machines see the same file, in less time than hashing the file whole.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(str(size).encode())
            for number in range(SPOTS):
                file.seek(max(0, size - SPOT_BYTES) * number // (SPOTS - 1))
                digest.update(file.read(SPOT_BYTES))
    except OSError:
        return ""
    return digest.hexdigest()


def load_array(path: Path) -> np.ndarray:
    """Memory-map an untrusted .npy file.

    Raises:
        UserError: it is missing, damaged, or needs pickle.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise UserError(f"expected {path}, found nothing; run the step that writes it (train.py, "
                        "then calculate_score.py) or give the right folder") from None
    except Exception as error:  # a damaged header raises almost anything
        raise UserError(f"cannot read {path} as an array of numbers: {error}; write it again") \
            from error


@contextmanager
def open_npz(path: Path, largest: float = math.inf) -> Iterator[np.lib.npyio.NpzFile]:
    """Open an untrusted .npz file.

    Args:
        path: the file.
        largest: bytes that each array may have, with its header, once it is decompressed.

    Raises:
        Exception: almost anything, here or while an array is read, if the file is damaged.
    """
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is no .npz")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            if any(member.file_size > largest for member in arrays.zip.infolist()):
                raise ValueError("it holds more than these data allow")
            yield arrays


def read_member(file: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    """An array of an untrusted .npz: memory-mapped, read-only, unless compressed or of a rare kind.

    Raises:
        Exception: as for `open_npz`.
    """
    info = file.zip.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        return file[name]
    with file.zip.open(info) as member:
        read_header = HEADERS.get(np.lib.format.read_magic(member))
        if not read_header:
            return file[name]
        shape, is_fortran, kind = read_header(member)
        begin = member.tell()
    if kind.hasobject or begin + kind.itemsize * math.prod(shape) != info.file_size or not shape:
        return file[name]
    raw: Any = file.zip.fp
    raw.seek(info.header_offset)
    # A name and an extra field follow, whose lengths may differ from those in the list of contents.
    lengths = LOCAL_HEADER.unpack(raw.read(LOCAL_HEADER.size))
    start = info.header_offset + LOCAL_HEADER.size + sum(lengths)
    content, checksum = np.memmap(raw, np.uint8, "r", start, (info.file_size,)), 0
    for part in slices(content, doing="checking"):
        checksum = zlib.crc32(content[part].data, checksum)
    if checksum != info.CRC:
        raise zipfile.BadZipFile(f"the checksum of {name} is wrong")
    return np.memmap(raw, kind, "r", start + begin, shape, "F" if is_fortran else "C")


def text_cell(text: str) -> str:
    """Untrusted text as a cell of a CSV, with a ' before text that a spreadsheet would run."""
    try:
        float(text)
    except ValueError:
        return "'" + text if text.startswith(("=", "+", "-", "@", "'")) else text
    return text


def cell_text(cell: str) -> str:
    """The text of a cell that `text_cell` made."""
    return cell.removeprefix("'")


def cell_number(cell: str) -> int:
    """The number from 0 in an untrusted cell, -1 where there is none."""
    return int(cell) if cell.isascii() and cell.isdigit() and len(cell) < 18 else -1


def read_table(path: Path, columns: Sequence[str], advice: str) -> list[tuple[int, dict[str, str]]]:
    """The rows of an untrusted CSV in UTF-8, without those that hold nothing but blanks.

    Args:
        path: the file.
        columns: the required columns, in any order; there may be others.
        advice: what to do if it cannot be read.

    Returns:
        For each row the number of the line it starts on, from 1, and its cells by column.  A row that
        ends early lacks the last columns.

    Raises:
        UserError: it cannot be read, lacks a column or has one twice, or a row exceeds the header.
    """
    rows: list[tuple[int, list[str]]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader, line = csv.reader(file), 1
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    rows.append((line, cells))
                line = reader.line_num + 1
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give the path of a table") from error
    except (ValueError, csv.Error) as error:
        raise UserError(f"cannot read {path} as a CSV in UTF-8: {error}; {advice}") from error
    found = [name.strip() for name in rows[0][1]] if rows else []
    if any(found.count(name) != 1 for name in columns):
        raise UserError(f"expected the columns {', '.join(columns)} once each in {path}, found "
                        f"{', '.join(map(ascii, found)) or 'nothing'}; {advice}")
    for line, cells in rows[1:]:
        if any(cell.strip() for cell in cells[len(found):]):
            raise UserError(f"expected {len(found)} values in line {line} of {path}, as in its header, "
                            f"found {len(cells)}; put values with commas between quotation marks")
    return [(line, dict(zip(found, cells, strict=False))) for line, cells in rows[1:]]


def release(array: object):
    """Release the pages of a memory-mapped array that have been read, which count as memory in use.

    Anything else is left as it is.
    """
    base: object = array
    while isinstance(base, np.ndarray):  # a view of a view
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def slices(*arrays: np.ndarray, doing: str) -> Iterator[slice]:
    """Slices of the rows of large arrays of one length N, a few megabytes of the first at a time.

    After each, its pages are released where memory-mapped.  A progress bar appears after a while.

    Args:
        arrays: (N, ...) each.
        doing: what is done with them, for the progress bar.
    """
    array = arrays[0]
    step = max(1, PIECE * len(array) // max(1, array.nbytes))
    with tqdm(total=array.nbytes, desc=doing, unit="B", unit_scale=True, delay=PATIENCE, leave=False,
              disable=None) as bar:
        for start in range(0, len(array), step):
            stop = min(start + step, len(array))
            yield slice(start, stop)
            for one in arrays:
                release(one)
            bar.update(array.nbytes // len(array) * (stop - start))


def are_same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two large arrays have the same shape and values."""
    return one is other or (one.shape == other.shape and all(
        np.array_equal(one[rows], other[rows]) for rows in slices(one, other, doing="comparing")))


def take_rows(array: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Rows of a large array, (M, ...): a view where the indices, (M,), are consecutive, else a copy."""
    first = int(indices[0]) if len(indices) else 0
    if np.array_equal(indices, np.arange(first, first + len(indices))):
        return np.asarray(array)[first:first + len(indices)]
    result = np.empty((len(indices), *array.shape[1:]), array.dtype)
    for rows in slices(result, doing="copying"):
        result[rows] = array[indices[rows]]
        release(array)
    return result


class Rows:
    """Rows of a large array, (M, ...), that are copied only when they are read.

    Args:
        array: (N, ...).
        indices: which of them, integers (M,).
    """

    def __init__(self, array: np.ndarray, indices: np.ndarray):
        self._array, self._indices = array, indices
        self.shape = len(indices), *array.shape[1:]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self._array[self._indices[rows]]
