"""A file of the features computed so far, which stays readable whenever the process is killed."""
import io
import os
import sys
import time
import zlib
from pathlib import Path

import numpy as np

from utils.errors import RunError, UserError
from utils.files import cannot_write

if sys.platform != "win32":
    import fcntl

DIGEST = 16  # bytes that identify an image
BLOCK = 1000  # rows that are in memory at a time
SYNC = 5.0  # seconds between writes to the disk itself
HEADER = np.dtype([("key", "S64"), ("width", "<u4")])


class Records:
    """A file of one record per image, after a HEADER: its digest, its features, a checksum of both.

    Attributes:
        rows: the number of each image's record by its digest.
    """

    def __init__(self, path: Path, key: str) -> None:
        """Read the records of a file, if there are any under this key, up to the first torn one.

        Args:
            path: the file, written from the first `add` on; a symbolic link is ignored and replaced.
            key: SHA-256, in hexadecimal, of what computes the features.
        """
        self.rows: dict[bytes, int] = {}
        self._path, self._key, self._width = path, key.encode(), 0
        self._file: io.FileIO | None = None
        self._lock: int | None = None
        self._synced = time.monotonic()
        if path.is_file() and not path.is_symlink():  # an archive may bring links
            self._read(path.stat().st_size)

    def _read(self, size: int):
        header = np.fromfile(self._path, HEADER, 1)
        if not len(header) or header["key"][0] != self._key or not 0 < header["width"][0] < size:
            return
        self._width = int(header["width"][0])
        for record in self._map((size - HEADER.itemsize) // self._type.itemsize):
            digest = record["digest"].tobytes()
            if record["check"] != _checksum(record) or digest in self.rows:
                break
            self.rows[digest] = len(self.rows)

    @property
    def _type(self) -> np.dtype:
        return np.dtype([("digest", "u1", DIGEST), ("features", "<f4", (self._width,)),
                         ("check", "<u4")])

    def _map(self, count: int) -> np.ndarray:
        if not count:
            return np.zeros(0, self._type)
        return np.memmap(self._path, self._type, "r", HEADER.itemsize, (count,))

    def add(self, digests: list[bytes], features: np.ndarray):
        """Append the features, float32 (B, D), of images that are not there yet.

        Raises:
            UserError: they are not of that shape.
            RunError: they cannot be written, or another process writes there; those before them stay.
        """
        width = self._width or (features.shape[1] if features.ndim == 2 else 0)
        if features.dtype != np.float32 or features.shape != (len(digests), width) or not width:
            raise UserError(f"expected features float32 ({len(digests)}, {width or 'D'}) of the "
                            f"--backbone, found {features.dtype} {features.shape}; give one whose "
                            "features are as many for every image")
        self._width = width
        records = np.zeros(len(digests), self._type)
        records["digest"] = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST)
        records["features"] = features
        records["check"] = [_checksum(record) for record in records]
        try:
            self._append(records.tobytes())
        except OSError as error:
            raise RunError(cannot_write(self._path, error)) from error
        for digest in digests:
            self.rows[digest] = len(self.rows)

    def _append(self, content: bytes):
        if self._file is None:
            self._file = self._open()
        end = HEADER.itemsize + len(self.rows) * self._type.itemsize
        if not self.rows:
            content, end = np.array([(self._key, self._width)], HEADER).tobytes() + content, 0
        self._file.truncate(end)  # behind it may be a torn record
        self._file.seek(end)
        rest = memoryview(content)
        while rest:
            rest = rest[self._file.write(rest):]
        if time.monotonic() - self._synced > SYNC:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def _open(self) -> io.FileIO:
        """Open the file, unbuffered; one without records of this key, or a link, is replaced."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self._path.parent)
        if self.rows:
            return io.FileIO(self._path, "r+", opener=_without_links)
        self._path.unlink(missing_ok=True)
        return io.FileIO(self._path, "x")

    def take(self, digests: np.ndarray, features: np.ndarray):
        """Append what is not there yet.

        Args:
            digests: of N images, uint8 (N, DIGEST).
            features: of these, float32 (N, D).
        """
        for start in range(0, len(digests), BLOCK):
            keys = [digest.tobytes() for digest in digests[start:start + BLOCK]]
            new = {key: start + number for number, key in enumerate(keys) if key not in self.rows}
            if new:
                self.add(list(new), features[list(new.values())])

    def features(self) -> np.ndarray:
        """Those of all images, float32 (M, D), memory-mapped."""
        return self._map(len(self.rows))["features"]

    def rows_of(self, digests: np.ndarray) -> np.ndarray:
        """The rows of `features` that belong to digests, uint8 (N, DIGEST)."""
        return np.array([self.rows[digest.tobytes()] for digest in digests], np.int64)

    def close(self):
        """Close the file, and let others write to it."""
        if self._file:
            self._file.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _locked(folder: Path) -> int | None:
    """Lock a folder, where the system can, until the lock is closed or the process ends.

    Raises:
        RunError: another process has it.
    """
    if sys.platform == "win32":
        return None
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise RunError(f"expected no other run in {folder}, found one that computes features there; "
                       "wait for it, then run again, or give another --output") from error
    except OSError:  # some network file systems have no locks
        pass
    return lock


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0))


def _checksum(record: np.void) -> int:
    return zlib.crc32(record.tobytes()[:-4])
