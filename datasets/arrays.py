"""The .npy files a run keeps: written by train.py, read by all three scripts."""
import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import load_array, release, save_array, save_text

IMAGE_SHAPE = (3, 32, 32)
TRAIN_IMAGES, TRAIN_LABELS, TRUE_LABELS = "x_train.npy", "y_shuffle_train.npy", "y_train.npy"
TEST_IMAGES, TEST_LABELS = "x_val.npy", "y_val.npy"
NAMES_FILE, PATHS_FILE, SKIPPED_FILE = "label_names.txt", "paths.txt", "skipped.txt"


@dataclass(frozen=True)
class Split:
    """Images, uint8 (N, *IMAGE_SHAPE) RGB, and labels, integers (N, 1)."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Source:
    """Images with the labels they came with.

    Attributes:
        train, test: the two sets.
        names: the names of the C classes.
        confusable: class -> the class it is mistaken for, for some classes.
        paths: the file of each training sample, or None if there are no files.
        skipped: a line per file that is not an image.
        trusted: whether the labels are known to be true.
    """

    train: Split
    test: Split
    names: list[str]
    confusable: dict[int, int]
    paths: list[str] | None = None
    skipped: list[str] = field(default_factory=list)
    trusted: bool = True


@dataclass(frozen=True)
class Dataset:
    """A training set, with the labels it is trained on beside the true ones, and a test set.

    `true_labels` is None if unknown; `test` is None if only the training set was loaded; `paths` are
    the files of the training samples, None if there are no files; `skipped` has a line per file that
    is not an image.
    """

    images: np.ndarray
    labels: np.ndarray
    true_labels: np.ndarray | None
    test: Split | None
    names: list[str]
    paths: list[str] | None = None
    skipped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        mislabelled = "an unknown number"
        if self.true_labels is not None:
            mislabelled = f"{int((self.labels != self.true_labels).sum()):,}"
        test = f", {len(self.test.images):,} test samples" if self.test else ""
        return f"{len(self.images):,} training samples, {mislabelled} mislabelled{test}"

    def without_noise(self) -> "Dataset":
        """The same data to train on the true labels.

        Raises:
            UserError: they are unknown.
        """
        if self.true_labels is None:
            raise UserError("--shuffle_label False needs the true labels in the --input folder "
                            f"({TRUE_LABELS}), found none; leave the flag out")
        return replace(self, labels=self.true_labels)

    def digest(self) -> str:
        """SHA-256 of the training images and the labels trained on, which identifies a run's data."""
        digest = hashlib.sha256(repr((self.images.shape, self.labels.shape)).encode())
        for start in range(0, len(self.images), 1000):
            digest.update(np.ascontiguousarray(self.images[start:start + 1000]).data)
            release(self.images)
        digest.update(np.ascontiguousarray(self.labels, "<i8").data)
        return digest.hexdigest()

    def annotations(self) -> dict[str, str]:
        """SHA-256 of the names, true labels and paths, which `digest` leaves out, by file name."""
        contents = {NAMES_FILE: _join(self.names).encode()}
        if self.true_labels is not None:
            contents[TRUE_LABELS] = np.ascontiguousarray(self.true_labels, "<i8").tobytes()
        if self.paths:
            contents[PATHS_FILE] = _join(self.paths).encode()
        return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def save(folder: Path, dataset: Dataset, read_from: Path | None = None):
    """Write the files of a run, unless the data were read from them.

    Raises:
        RunError: a file cannot be written.
        UserError: a file would overwrite the data of another run.
    """
    try:
        other = load(folder).digest() != dataset.digest()
    except UserError:  # none there, or left incomplete by a killed run
        other = False
    if read_from and read_from.resolve() == folder.resolve():
        if other:
            raise UserError("other labels (--shuffle_label False, --corrections) would replace those in "
                            f"{folder / TRAIN_LABELS}; give another --output")
        if not (folder / NAMES_FILE).exists():
            _save_lines(folder / NAMES_FILE, dataset.names)
        return
    if other:
        raise UserError(f"{folder} holds the data of another run, which its checkpoints and scores "
                        "need; give another --output, or remove them")
    _check_not_foreign(folder)
    save_array(folder / TRAIN_IMAGES, dataset.images)
    if dataset.true_labels is None:
        (folder / TRUE_LABELS).unlink(missing_ok=True)
    else:
        save_array(folder / TRUE_LABELS, dataset.true_labels)
    save_array(folder / TRAIN_LABELS, dataset.labels)
    if dataset.test:
        save_array(folder / TEST_IMAGES, dataset.test.images)
        save_array(folder / TEST_LABELS, dataset.test.labels)
    _save_lines(folder / NAMES_FILE, dataset.names)
    for name, lines in [(PATHS_FILE, dataset.paths), (SKIPPED_FILE, dataset.skipped)]:
        if lines:
            _save_lines(folder / name, lines)
        else:
            (folder / name).unlink(missing_ok=True)


def _check_not_foreign(folder: Path):
    """Refuse to overwrite files that no run has written: their names are common.

    A run writes its training images first, so no run, killed or not, leaves other files without them.

    Raises:
        UserError: there are some.
    """
    if (folder / TRAIN_IMAGES).exists():
        try:
            _load_images(folder / TRAIN_IMAGES)
            return
        except UserError:
            name: str | None = TRAIN_IMAGES
    else:
        name = next((name for name in (TRUE_LABELS, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS, NAMES_FILE,
                                       PATHS_FILE, SKIPPED_FILE) if (folder / name).exists()), None)
    if name:
        raise UserError(f"expected no files but those of a run in {folder}, found {name}, which no run "
                        "has written so; give another --output, or move it away")


def _save_lines(path: Path, lines: list[str]):
    save_text(path, _join(lines))


def _join(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def check_annotations(folder: Path, dataset: Dataset, recorded: dict[str, str]):
    """Check that the names, true labels and paths of a run are those that were recorded.

    Args:
        folder: the folder that `dataset` was read from.
        dataset: the data.
        recorded: `Dataset.annotations` of an earlier step; only files in both are compared.

    Raises:
        UserError: a file has changed.
    """
    for name, sha256 in dataset.annotations().items():
        if recorded.get(name, sha256) != sha256:
            raise UserError(f"expected {folder / name} as it was in the training, found another "
                            "content; restore it, or train again")


def load(folder: Path, test: bool = False) -> Dataset:
    """Read the files of a run, images memory-mapped.

    Args:
        folder: the ``--output`` of train.py.
        test: read the test set too.

    Raises:
        UserError: a file is missing, damaged, needs pickle, or does not fit the others.
    """
    if not folder.is_dir():
        raise UserError(f"expected the folder of a training run at --input {folder}, found none; give "
                        "the --run or --output of train.py")
    train = _load_split(folder, TRAIN_IMAGES, TRAIN_LABELS)
    true_labels = None
    if (folder / TRUE_LABELS).exists():
        true_labels = _load_labels(folder / TRUE_LABELS, len(train.images))
    held_out = _load_split(folder, TEST_IMAGES, TEST_LABELS) if test else None
    all_labels = [train.labels, train.labels if true_labels is None else true_labels,
                  held_out.labels if held_out else train.labels]
    largest = max(int(labels.max()) for labels in all_labels)
    names = _load_lines(folder / NAMES_FILE) or [str(label) for label in range(largest + 1)]
    if largest >= len(names):
        raise UserError(f"expected labels below {len(names)}, the number of names in "
                        f"{folder / NAMES_FILE}, found {largest}; use the files of one run")
    paths = _load_lines(folder / PATHS_FILE) or None
    if paths and len(paths) != len(train.images):
        raise UserError(f"expected {len(train.images)} lines in {folder / PATHS_FILE}, one per image, "
                        f"found {len(paths)}; use the files of one run, or remove it")
    return Dataset(train.images, train.labels, true_labels, held_out, names, paths)


def _load_split(folder: Path, images_name: str, labels_name: str) -> Split:
    images = _load_images(folder / images_name)
    return Split(images, _load_labels(folder / labels_name, len(images)))


def _load_images(path: Path) -> np.ndarray:
    images = load_array(path)
    if images.dtype != np.uint8 or images.shape[1:] != IMAGE_SHAPE or not len(images):
        raise UserError(f"expected uint8 images (N, {', '.join(map(str, IMAGE_SHAPE))}) in {path}, "
                        f"found {images.dtype} {images.shape}; write it with train.py")
    return images


def _load_labels(path: Path, count: int) -> np.ndarray:
    labels = np.array(load_array(path))
    if labels.dtype.kind not in "iu" or labels.shape not in ((count, 1), (count,)):
        raise UserError(f"expected integers ({count}, 1) in {path}, one per image, found "
                        f"{labels.dtype} {labels.shape}; use the files of one run")
    if labels.min() < 0:
        raise UserError(f"expected labels from 0 in {path}, found {labels.min()}; number the "
                        "classes from 0")
    return labels.astype(np.int64).reshape(-1, 1)


def _load_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as UTF-8 text: {error}; write one name per line") \
            from error
