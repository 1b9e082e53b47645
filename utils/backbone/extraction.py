"""The features of a run's images: computed once by a backbone, kept, and recognised.

``features.npz`` has what recognises the features in a folder:

    key                       SHA-256 of what computed them: the backbone, and Pillow's version
    train_originals, val_...  per image 16 bytes of the SHA-256 of its original, uint8 (N, 16)
    train_features, val_...   SHA-256 of features_train.npy, features_val.npy
    train_images, val_...     SHA-256 of the images beside them

While they are computed, those that are done are in a file of their own, from which an interrupted
extraction resumes (`records`).
"""
import errno
import hashlib
import io
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL
from PIL import Image
from tqdm import tqdm

from datasets import arrays
from datasets.images import read_image, to_array
from utils.backbone.records import BLOCK, DIGEST, Records
from utils.context import memory_for
from utils.errors import RunError, UserError
from utils.files import load_array, open_npz, release, save_bytes, sha256, whole_file
from utils.processes import available_cores

TRAIN, TEST = "train", "val"
FILES = {TRAIN: (arrays.TRAIN_FEATURES, arrays.TRAIN_IMAGES),
         TEST: (arrays.TEST_FEATURES, arrays.TEST_IMAGES)}
FILE, PARTIAL = "features.npz", ".partial-features"

Originals = Sequence[Path] | np.ndarray


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


class Samples(Protocol):
    """A training or test set: its images, uint8 (N, 3, S, S), and what they were made from.

    The originals are the paths of N files, or pixels, uint8 (N, H, W), (N, H, W, 3) or (N, 3, H, W).
    """

    @property
    def images(self) -> np.ndarray: ...

    @property
    def originals(self) -> Any: ...


def extract(backbone: Backbone, folder: Path, train: Samples, test: Samples | None,
            workers: int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Compute the features of a run's images on all cores and write them to its folder.

    Images whose features are there already, by the content of their files, are not computed again, and
    an interrupted extraction resumes where it stood.

    Args:
        backbone: computes them.
        folder: the run's.
        train, test: the two sets.
        workers: threads that decode and compute; None for one per core.

    Returns:
        Of each set the features, float32 (N, D), memory-mapped.

    Raises:
        UserError: a file cannot be read, or the features are not finite, or all the same.
        RunError: the files cannot be written, or memory is short.
    """
    sets = {TRAIN: train} if test is None else {TRAIN: train, TEST: test}
    key = hashlib.sha256(f"{backbone.key} {PIL.__version__}".encode()).hexdigest()
    workers = workers or available_cores()
    digests = {part: _digests(one.originals, workers) for part, one in sets.items()}
    kept = _read_kept(folder)
    if kept.get("key") != key or not all(_is_as_written(folder, kept, part) for part in _parts(kept)):
        kept = {}
    if not all(f"{part}_images" in kept and np.array_equal(kept[f"{part}_originals"], digests[part])
               and kept[f"{part}_images"] == _sha256_of(one.images) for part, one in sets.items()):
        records = Records(folder / PARTIAL, key)
        try:
            for part in _parts(kept):
                records.take(kept[f"{part}_originals"], load_array(folder / FILES[part][0]))
            _compute(backbone, sets, digests, records, workers)
        finally:
            records.close()
        _save(folder, key, sets, digests, records)
    (folder / PARTIAL).unlink(missing_ok=True)
    features = {part: load_array(folder / FILES[part][0]) for part in sets}
    return features[TRAIN], features.get(TEST)


def check(folder: Path):
    """Check that the features in a run's folder, if `extract` wrote them, are of the images beside them.

    Raises:
        UserError: they were changed, or belong to other images.
    """
    kept = _read_kept(folder)
    for part in _parts(kept):
        features, images = (folder / name for name in FILES[part])
        if not _is_as_written(folder, kept, part):
            raise UserError(f"expected {features} as it was extracted, found another content; restore "
                            "it, or train with --backbone again")
        if _sha256_of(load_array(images)) != kept[f"{part}_images"]:
            raise UserError(f"expected the images that {features} was extracted with in {images}, found "
                            "others; use the files of one run, or train with --backbone again")


def _digests(originals: Originals, workers: int) -> np.ndarray:
    """Of each original the first bytes of its SHA-256, uint8 (N, DIGEST)."""
    digests = np.zeros((len(originals), DIGEST), np.uint8)

    def digest_one(number: int):
        with _reading(originals, number):
            digests[number] = np.frombuffer(_digest(originals, number), np.uint8)

    for _ in _in_order(digest_one, range(len(originals)), workers):
        pass
    return digests


def _digest(originals: Originals, number: int) -> bytes:
    one = originals[number]
    return bytes.fromhex(_sha256_of(one) if isinstance(one, np.ndarray) else sha256(one))[:DIGEST]


def _sha256_of(array: np.ndarray) -> str:
    """SHA-256 of an array's type, shape and content."""
    digest = hashlib.sha256(repr((array.dtype.str, array.shape)).encode())
    for start in range(0, len(array), BLOCK):
        digest.update(np.ascontiguousarray(array[start:start + BLOCK]).data)
        release(array)
    return digest.hexdigest()


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
    return f"image {number}" if isinstance(originals, np.ndarray) else ascii(str(originals[number]))


def _read(originals: Originals, number: int, digest: bytes, size: int) -> np.ndarray:
    """An original as the backbone sees it, uint8 (3, size, size)."""
    with _reading(originals, number):
        if isinstance(originals, np.ndarray):
            pixels = originals[number]
            if pixels.ndim == 3 and pixels.shape[2] != 3:
                pixels = pixels.transpose(1, 2, 0)
            return to_array(Image.fromarray(np.ascontiguousarray(pixels)), size=size)
        image = read_image(originals[number], size=size)
        if _digest(originals, number) != digest:
            raise ValueError("it has changed")
        return image


def _in_order(function: Callable, items: Iterable, workers: int) -> Iterator[tuple]:
    """Each item with ``function(item)``, computed by threads that are a few items ahead."""
    pending: deque = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                pending.append((item, pool.submit(function, item)))
                if len(pending) > 2 * workers:
                    item, future = pending.popleft()
                    yield item, future.result()
            for item, future in pending:
                yield item, future.result()
        except BaseException:  # an interrupt too
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _compute(backbone: Backbone, sets: dict[str, Samples], digests: dict[str, np.ndarray],
             records: Records, workers: int):
    """Compute the features of each image that is not among the records, once."""
    missing: dict[bytes, tuple[Originals, int]] = {}
    for part, one in sets.items():
        for number, digest in enumerate(digests[part]):
            if digest.tobytes() not in records.rows:
                missing.setdefault(digest.tobytes(), (one.originals, number))
    wanted = list(missing)
    if wanted:
        print(f"computing the features of {len(wanted):,} images", flush=True)
    batches = [wanted[start:start + backbone.batch] for start in range(0, len(wanted), backbone.batch)]

    def decode(batch: list[bytes]) -> np.ndarray:
        return np.stack([_read(*missing[digest], digest, backbone.size) for digest in batch])

    def decode_and_compute(batch: list[bytes]) -> np.ndarray:
        return backbone.features(decode(batch))

    # Pillow and ONNX Runtime release the GIL.
    function = decode_and_compute if backbone.concurrent else decode
    with warnings.catch_warnings(), memory_for("--image_size", backbone.size, "run again"), tqdm(
            total=len(wanted), unit="image", leave=False, disable=None) as progress:
        warnings.simplefilter("ignore")  # about files that are readable nevertheless
        for batch, result in _in_order(function, batches, workers):
            features = result if backbone.concurrent else backbone.features(result)
            for digest, row in zip(batch, features, strict=False):  # `add` checks the shape
                if not np.isfinite(row).all():
                    raise UserError(f"expected finite features, found NaN or infinity in those of "
                                    f"{_name(*missing[digest])}; check --backbone and --backbone_input, "
                                    "or remove the image")
            records.add(batch, features)
            progress.update(len(batch))


def _read_kept(folder: Path) -> dict[str, Any]:
    """What recognises the features in a folder; empty if it cannot be read."""
    try:
        with open_npz(folder / FILE) as file:
            kept: dict[str, Any] = {name: file[name] if name.endswith("_originals") else str(file[name])
                                    for name in file.files}
        digests = [kept[f"{part}_originals"] for part in _parts(kept) if kept[f"{part}_features"]]
        right = all(array.dtype == np.uint8 and array.shape[1:] == (DIGEST,) for array in digests)
        return kept if right and kept["key"] else {}
    except Exception:  # a damaged archive raises almost anything
        return {}


def _parts(kept: dict[str, Any]) -> list[str]:
    return [part for part in (TRAIN, TEST) if f"{part}_images" in kept]


def _is_as_written(folder: Path, kept: dict[str, Any], part: str) -> bool:
    """Whether the features of a set are those that were written with `kept`."""
    path = folder / FILES[part][0]
    try:
        features = load_array(path)
    except UserError:
        return False
    return (sha256(path) == kept[f"{part}_features"] and features.dtype == np.float32
            and features.ndim == 2 and len(features) == len(kept[f"{part}_originals"]))


def _save(folder: Path, key: str, sets: dict[str, Samples], digests: dict[str, np.ndarray],
          records: Records):
    """Write the features of the sets, and what recognises them last.

    Raises:
        UserError: all images of the training set have the same features.
    """
    features, content = records.features(), {"key": np.array(key)}
    rows = {part: records.rows_of(digests[part]) for part in sets}
    _check_differ(features, rows[TRAIN])
    for part, one in sets.items():
        path = folder / FILES[part][0]
        _write_rows(path, features, rows[part])
        content |= {f"{part}_originals": digests[part], f"{part}_features": np.array(sha256(path)),
                    f"{part}_images": np.array(_sha256_of(one.images))}
    packed = io.BytesIO()
    np.savez(packed, **content)
    save_bytes(folder / FILE, packed.getbuffer())


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
