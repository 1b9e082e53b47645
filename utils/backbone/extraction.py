"""The features of a run's images: computed once by a backbone, kept, and recognised.

``features.npz`` has what recognises the features in a folder:

    key                         SHA-256 of what computed them: the backbone, and Pillow's version
    train_originals, val_...    per image 16 bytes of the SHA-256 of its original, uint8 (N, 16)
    train_features, val_...     SHA-256 of features_train.npy, features_val.npy

While they are computed, those that are done are in a file of their own, from which an interrupted
extraction resumes (`records`).
"""
import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np
import PIL

from datasets.arrays import FEATURES_RECORD, TEST_FEATURES, TRAIN_FEATURES, Originals, Split
from datasets.images import from_pixels, on_all_cores, read_image
from utils.backbone.records import BLOCK, DIGEST, Records
from utils.context import memory_for
from utils.errors import RunError, UserError
from utils.files import load_array, open_npz, save_npz, sha256, whole_file

TRAIN, TEST = "train", "val"
FEATURES = {TRAIN: TRAIN_FEATURES, TEST: TEST_FEATURES}
PARTIAL = ".partial-features"
AHEAD = 16  # batches that are read before a backbone computes them that threads cannot share


class Backbone(Protocol):
    """A pretrained network.

    Attributes:
        size: height and width of the images.
        key: SHA-256 of everything that decides the features.
        batch: how many images to compute at a time.
        concurrent: whether threads may call `features` at the same time.
    """

    size: int
    key: str
    batch: int
    concurrent: bool

    def features(self, images: np.ndarray) -> np.ndarray:
        """The features, float32 (B, D), of images, uint8 (B, 3, size, size)."""


def extract(backbone: Backbone, folder: Path, train: Split, test: Split | None) \
        -> tuple[np.ndarray, np.ndarray | None]:
    """Compute the features of a run's images on all cores and write them to its folder.

    Images whose features are there already, by the content of their files, are not computed again, even
    if the features were copied from another run, and an interrupted extraction resumes where it stood.

    Args:
        backbone: computes them.
        folder: the run's.
        train, test: the two sets, with their originals.

    Returns:
        The features of each set, float32 (N, D), memory-mapped.

    Raises:
        UserError: the folder holds other features, a file cannot be read, or the features are not
            finite, or all the same.
        RunError: the files cannot be written, or memory is short.
    """
    sets = {part: one.originals for part, one in ((TRAIN, train), (TEST, test)) if one and one.originals}
    key = hashlib.sha256(f"{backbone.key} {PIL.__version__}".encode()).hexdigest()
    known, records = _recognise(folder, key), Records(folder / PARTIAL, key)
    if not records.rows:  # else a kill may have left new features beside what recognised the old ones
        _check_unused(folder, known)
    digests = _digests(sets)
    if not all(part in known and np.array_equal(known[part], digests[part]) for part in sets):
        try:
            for part in known:
                records.take(known[part], load_array(folder / FEATURES[part]))
            _compute(backbone, sets, digests, records)
            _save(folder, key, known | digests, records)
        finally:
            records.close()
    (folder / PARTIAL).unlink(missing_ok=True)
    features = {part: load_array(folder / FEATURES[part]) for part in sets}
    return features[TRAIN], features.get(TEST)


def _recognise(folder: Path, key: str) -> dict[str, np.ndarray]:
    """The digests of the originals, by set, whose features in a folder are as written under this key."""
    known = {}
    for part, name in FEATURES.items():
        try:
            with open_npz(folder / FEATURES_RECORD) as file:
                digests, written = file[f"{part}_originals"], str(file[f"{part}_features"])
                right = str(file["key"]) == key
            features = load_array(folder / name)
            if (right and digests.dtype == np.uint8 and digests.shape == (len(features), DIGEST)
                    and features.dtype == np.float32 and features.ndim == 2
                    and sha256(folder / name) == written):
                known[part] = digests
        except Exception:  # a damaged archive raises almost anything
            continue
    return known


def _check_unused(folder: Path, known: dict[str, np.ndarray]):
    names = [FEATURES[part] for part in FEATURES if part not in known]
    for name in names if known else [*names, FEATURES_RECORD]:
        if os.path.lexists(folder / name):
            raise UserError(f"expected no features but those of this --backbone, as written, in "
                            f"{folder}, found another {name}; give another --output, or remove them")


def _digests(sets: dict[str, Originals]) -> dict[str, np.ndarray]:
    """The first bytes of the SHA-256 of each original, by set, uint8 (N, DIGEST)."""
    digests: dict[str, np.ndarray] = {}
    for part, originals in sets.items():
        if digests and _are_same(originals, sets[TRAIN]):
            digests[part] = digests[TRAIN]
            continue
        digests[part] = found = np.zeros((len(originals), DIGEST), np.uint8)

        def digest_one(number: int, originals: Originals = originals, found: np.ndarray = found):
            with _reading(originals, number):
                found[number] = np.frombuffer(_digest(originals[number]), np.uint8)

        on_all_cores(digest_one, len(originals))
    return digests


def _are_same(some: Originals, others: Originals) -> bool:
    return some is others or (len(some) == len(others) and all(
        isinstance(one := some[number], Path) and one == others[number] for number in range(len(some))))


def _digest(original: Path | np.ndarray) -> bytes:
    if isinstance(original, Path):
        return bytes.fromhex(sha256(original))[:DIGEST]
    return hashlib.sha256(repr(original.shape).encode() + original.tobytes()).digest()[:DIGEST]


@contextmanager
def _reading(originals: Originals, number: int) -> Iterator[None]:
    """Turn what is raised while an original is read into one line."""
    try:
        yield
    except MemoryError as error:
        raise RunError(f"out of memory while decoding {_name(originals, number)}; make it smaller, or "
                       "free some memory") from error
    except Exception as error:  # untrusted files raise almost anything
        reason = ascii(str((isinstance(error, OSError) and error.strerror) or error))[1:-1]
        if isinstance(error, OSError) and error.errno == errno.EIO:
            raise RunError(f"cannot read {_name(originals, number)}: {reason}; check the disk, then run "
                           "again") from error
        raise UserError(f"cannot read {_name(originals, number)} any more: {reason}; run again when "
                        "nothing changes the images") from error


def _name(originals: Originals, number: int) -> str:
    original = originals[number]
    return ascii(str(original)) if isinstance(original, Path) else f"image {number}"


def _read(originals: Originals, number: int, digest: bytes, size: int) -> np.ndarray:
    """An original as the backbone sees it, uint8 (3, size, size)."""
    with _reading(originals, number):
        original = originals[number]
        if not isinstance(original, Path):
            return from_pixels(original, size)
        image = read_image(original, size)
        if _digest(original) != digest:
            raise ValueError("it has changed")
        return image


def _compute(backbone: Backbone, sets: dict[str, Originals], digests: dict[str, np.ndarray],
             records: Records):
    """Compute the features of each image that is not among the records, once."""
    missing: dict[bytes, tuple[Originals, int]] = {}
    for part, originals in sets.items():
        for number, digest in enumerate(digests[part]):
            if digest.tobytes() not in records.rows:
                missing.setdefault(digest.tobytes(), (originals, number))
    wanted = list(missing)
    if wanted:
        print(f"computing the features of {len(wanted):,} images", flush=True)
    recording = Lock()
    batches = [wanted[start:start + backbone.batch] for start in range(0, len(wanted), backbone.batch)]

    def read(batch: list[bytes]) -> np.ndarray:
        return np.stack([_read(*missing[digest], digest, backbone.size) for digest in batch])

    def compute(batch: list[bytes], images: np.ndarray):
        features = backbone.features(images)
        for digest, row in zip(batch, features, strict=False):  # `add` checks the shape
            if not np.isfinite(row).all():
                raise UserError(f"expected finite features, found NaN or infinity in those of "
                                f"{_name(*missing[digest])}; check --backbone and --backbone_input, or "
                                "remove the image")
        with recording:
            records.add(batch, features)

    def compute_here(some: list[list[bytes]]):
        images: list[np.ndarray] = [np.empty(0)] * len(some)

        def read_one(number: int):
            images[number] = read(some[number])

        on_all_cores(read_one, len(some), backbone.batch)
        for batch, one in zip(some, images, strict=True):
            compute(batch, one)

    with memory_for("--image_size", backbone.size, "run again"):
        if backbone.concurrent:
            on_all_cores(lambda number: compute(batches[number], read(batches[number])), len(batches),
                         backbone.batch)
            return
        for start in range(0, len(batches), AHEAD):
            compute_here(batches[start:start + AHEAD])


def _save(folder: Path, key: str, digests: dict[str, np.ndarray], records: Records):
    """Write the features of the sets, and what recognises them last.

    Raises:
        UserError: all images of the training set have the same features.
    """
    features, content = records.features(), {"key": np.array(key)}
    rows = {part: records.rows_of(digests[part]) for part in FEATURES if part in digests}
    _check_differ(features, rows[TRAIN])
    for part in rows:
        path = folder / FEATURES[part]
        _write_rows(path, features, rows[part])
        content |= {f"{part}_originals": digests[part], f"{part}_features": np.array(sha256(path))}
    save_npz(folder / FEATURES_RECORD, content.items())


def _check_differ(features: np.ndarray, rows: np.ndarray):
    if len(np.unique(rows)) > 1 and not any(
            (features[rows[start:start + BLOCK]] != features[rows[0]]).any()
            for start in range(0, len(rows), BLOCK)):
        raise UserError("expected features that differ between images, found the same for all; check "
                        "--backbone, --backbone_input and --backbone_output")


def _write_rows(path: Path, features: np.ndarray, rows: np.ndarray):
    """Write some rows of an array as an .npy file, of which only a block is in memory at a time."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(rows), features.shape[1])}
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(rows), BLOCK):
            file.write(features[rows[start:start + BLOCK]].tobytes())
