"""The .npy files a run keeps: written by train.py, read by all three scripts."""
import functools
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from datasets.names import is_line
from utils.errors import UserError
from utils.files import are_same, load_array, save_array, save_text, slices, take_rows

SIDE = 32
IMAGE_SHAPE = (3, SIDE, SIDE)
TRAIN_IMAGES, TRAIN_LABELS, TRUE_LABELS = "x_train.npy", "y_shuffle_train.npy", "y_train.npy"
TEST_IMAGES, TEST_LABELS = "x_val.npy", "y_val.npy"
TRAIN_FEATURES, TEST_FEATURES = "features_train.npy", "features_val.npy"
NAMES_FILE, PATHS_FILE, SKIPPED_FILE = "label_names.txt", "paths.txt", "skipped.txt"
SOURCE_FILE = "source.txt"

# What train.py adds beside the data.
FEATURES_RECORD, OUT_OF_FOLD = "features.npz", "out_of_fold.npz"

AnySplit = TypeVar("AnySplit", bound="Split")


@dataclass(frozen=True)
class Originals:
    """What images were made from: image files, or their pixels, uint8 (H, W) or (H, W, 3).

    Attributes:
        sources: at least those, as (M, H, W[, 3]) where they are pixels.
        indices: which of them, integers (N,).
    """

    sources: Sequence[Path] | np.ndarray
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> Path | np.ndarray:
        return self.sources[self.indices[number]]


@dataclass(frozen=True)
class Split:
    """Images with labels.

    Attributes:
        images: uint8 (N, 3, S, S) RGB.
        labels: integers (N, 1).
        originals: what the images were made from; None where it is no longer needed.
        features: by a backbone, float32 (N, D), or None.
    """

    images: np.ndarray
    labels: np.ndarray
    originals: Originals | None = None
    features: np.ndarray | None = None

    @property
    def inputs(self) -> np.ndarray:
        """What a network is trained on: the features if there are any, else the images."""
        return self.images if self.features is None else self.features

    def take(self: AnySplit, kept: np.ndarray) -> AnySplit:
        """The samples with these indices, (M,), in their order; images are a view where possible."""
        originals = self.originals and replace(self.originals, indices=self.originals.indices[kept])
        return replace(self, images=take_rows(self.images, kept), labels=self.labels[kept],
                       originals=originals,
                       features=None if self.features is None else self.features[kept])

    def digest(self) -> str:
        """SHA-256 of the images, their features and labels, which identifies the data.

        It is computed once: the arrays must not change afterwards.
        """
        return self._digests[0]

    def feature_digest(self) -> str | None:
        """SHA-256 of the features with their images, None without features; computed once likewise."""
        return None if self.features is None else self._digests[1]

    @functools.cached_property
    def _digests(self) -> tuple[str, str | None]:
        digest = hashlib.sha256(repr((self.images.shape, self.labels.shape)).encode())
        features = None
        if self.features is not None:
            features = hashlib.sha256(repr(self.features.shape).encode())
            for rows in slices(self.features, doing="hashing"):
                features.update(np.ascontiguousarray(self.features[rows], "<f4").data)
        alone = features.hexdigest() if features else None
        for rows in slices(self.images, doing="hashing"):  # once for both: they may not fit in memory
            images = np.ascontiguousarray(self.images[rows], "u1").data
            digest.update(images)
            if features:
                features.update(images)
        digest.update(np.ascontiguousarray(self.labels, "<i8").data)
        if alone:
            digest.update(alone.encode())
        return digest.hexdigest(), features.hexdigest() if features else None


@dataclass(frozen=True)
class Source:
    """Images with the labels they came with.

    Attributes:
        train, test: the two sets.
        names: the names of the C classes.
        confusable: class -> the class it is mistaken for, for some classes.
        paths: of each training sample: its file, relative to the folder of `path` unless absolute, or
            its place in the arrays of an .npz; None for a known set.
        skipped: a line per file that is not an image.
        trusted: whether the labels are known to be true.
        path: one's own folder, .csv or .npz; None for a known set.
    """

    train: Split
    test: Split
    names: list[str]
    confusable: dict[int, int]
    paths: list[str] | None = None
    skipped: list[str] = field(default_factory=list)
    trusted: bool = True
    path: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Dataset(Split):
    """A training set, with the labels it is trained on beside the true ones, and a test set.

    Attributes:
        true_labels: integers (N, 1), or None if unknown.
        test: the test set, or None if only the training set was loaded.
        names: the names of the C classes.
        paths, skipped: as in `Source`.
        source: one's own folder, .csv or .npz, which may have moved since; None for a known set.
    """

    true_labels: np.ndarray | None
    test: Split | None
    names: list[str]
    paths: list[str] | None = None
    skipped: list[str] = field(default_factory=list)
    source: Path | None = None

    def __str__(self) -> str:
        mislabelled = "an unknown number"
        if self.true_labels is not None:
            mislabelled = f"{int((self.labels != self.true_labels).sum()):,}"
        test = f", {len(self.test.images):,} test samples" if self.test else ""
        return f"{len(self.images):,} training samples, {mislabelled} mislabelled{test}"

    def take(self, kept: np.ndarray) -> "Dataset":
        return replace(super().take(kept), paths=self.paths and [self.paths[index] for index in kept],
                       true_labels=None if self.true_labels is None else self.true_labels[kept])

    def sample_name(self, index: int) -> str:
        """What a user finds a training sample by: its path where there are paths, else its index."""
        return self.paths[index] if self.paths else str(index)

    def files(self) -> list[Path] | None:
        """Where the file of each sample should be, or None if there are no files.

        They may be missing, or differ from those that the images were made from.
        """
        if self.source is None or self.paths is None:
            return None
        kind = "" if os.path.isdir(self.source) else self.source.suffix.lower()
        folder = self.source.parent if kind == ".csv" else self.source
        return None if kind == ".npz" else [folder / path for path in self.paths]

    @functools.cached_property
    def tests_on_training_images(self) -> bool:
        """Whether the test set has the images of the training set, because none were held out.

        It is computed once: the arrays must not change afterwards.
        """
        return self.test is not None and are_same(self.images, self.test.images)

    def without_noise(self) -> "Dataset":
        """The same data to train on the true labels.

        Raises:
            UserError: they are unknown.
        """
        if self.true_labels is None:
            raise UserError("--shuffle_label False needs the true labels in the --input folder "
                            f"({TRUE_LABELS}), found none; leave the flag out")
        return replace(self, labels=self.true_labels)

    def annotations(self) -> dict[str, str]:
        """SHA-256 of names, true labels, paths, and features with their images, by file name."""
        contents = {NAMES_FILE: _join(self.names).encode()}
        if self.true_labels is not None:
            contents[TRUE_LABELS] = np.ascontiguousarray(self.true_labels, "<i8").tobytes()
        if self.paths:
            contents[PATHS_FILE] = _join(self.paths).encode()
        result = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        return result | self.feature_digests()

    def feature_digests(self) -> dict[str, str]:
        """SHA-256 of the features of the training and the test set with their images, by file name."""
        parts = {TRAIN_FEATURES: self, TEST_FEATURES: self.test}
        found = {name: part and part.feature_digest() for name, part in parts.items()}
        return {name: digest for name, digest in found.items() if digest}


def save(folder: Path, dataset: Dataset, read_from: Path | None = None):
    """Write the files of a run, unless they hold the same already.

    Raises:
        RunError: a file cannot be written.
        UserError: a file would overwrite the data of another run.
    """
    kept = _load_kept(folder)
    other = kept is not None and not _is_same(folder, kept, dataset)
    if read_from and read_from.resolve() == folder.resolve():
        if other:
            raise UserError("other labels (--shuffle_label False, --corrections), or images where there "
                            f"are features (--model), would replace those in {folder}; give another "
                            "--output")
        if not (folder / NAMES_FILE).exists():
            _save_lines(folder / NAMES_FILE, dataset.names)
        return
    if other:
        raise _other_run(folder)
    extracted = dataset.features is not None and _is_in(folder / TRAIN_FEATURES, dataset.features)
    _check_not_foreign(folder, () if extracted else (TRAIN_FEATURES, TEST_FEATURES, FEATURES_RECORD))
    if kept is None:
        save_array(folder / TRAIN_IMAGES, dataset.images)
    if dataset.true_labels is None:
        (folder / TRUE_LABELS).unlink(missing_ok=True)
    else:
        save_array(folder / TRUE_LABELS, dataset.true_labels)
    save_array(folder / TRAIN_LABELS, dataset.labels)
    _save_unless_there(folder / TRAIN_FEATURES, dataset.features)
    if dataset.test:
        _save_unless_there(folder / TEST_IMAGES, dataset.test.images)
        save_array(folder / TEST_LABELS, dataset.test.labels)
        _save_unless_there(folder / TEST_FEATURES, dataset.test.features)
    _save_lines(folder / NAMES_FILE, dataset.names)
    _save_source(folder, dataset.source)
    for name, lines in [(PATHS_FILE, dataset.paths), (SKIPPED_FILE, dataset.skipped)]:
        if lines:
            _save_lines(folder / name, lines)
        else:
            (folder / name).unlink(missing_ok=True)


def check_unused(folder: Path, dataset: Dataset):
    """Check, before features are computed, that a folder holds no data of another run.

    Raises:
        UserError: it does.
    """
    kept = _load_kept(folder)
    if kept and not _is_same(folder, *(replace(one, features=None) for one in (kept, dataset))):
        raise _other_run(folder)
    _check_not_foreign(folder)


def mapped(folder: Path, dataset: Dataset) -> Dataset:
    """A dataset that `save` has written to a folder, its images memory-mapped there."""
    images, test = load_array(folder / TRAIN_IMAGES), dataset.test
    if test and test.images is dataset.images:
        test = replace(test, images=images)
    elif test:
        test = replace(test, images=load_array(folder / TEST_IMAGES))
    return replace(dataset, images=images, test=test)


def _load_kept(folder: Path) -> Dataset | None:
    try:
        return load(folder)
    except UserError:  # none there, or left incomplete by a killed run
        return None


def _is_same(folder: Path, kept: Dataset, dataset: Dataset) -> bool:
    """Whether the training set that a folder keeps is that of a dataset: whether their digests are."""
    if (kept.features is None) != (dataset.features is None):
        return False
    return (np.array_equal(kept.labels, dataset.labels)
            and (dataset.features is None or _holds(folder / TRAIN_FEATURES, dataset.features))
            and _holds(folder / TRAIN_IMAGES, dataset.images))


def _holds(path: Path, array: np.ndarray) -> bool:
    """Whether a file holds an array, which may be mapped from it."""
    try:
        kept = load_array(path)
    except UserError:
        return False
    return kept.dtype == array.dtype and kept.shape == array.shape and (
        _is_in(path, array) or are_same(kept, array))


def _is_in(path: Path, array: np.ndarray) -> bool:
    return isinstance(array, np.memmap) and Path(str(array.filename)) == path.resolve()


def _other_run(folder: Path) -> UserError:
    return UserError(f"{folder} holds the data of another run, which its checkpoints and scores need; "
                     "give another --output, or remove them")


def _save_unless_there(path: Path, array: np.ndarray | None):
    if array is not None and not _holds(path, array):
        save_array(path, array)


def _save_source(folder: Path, source: Path | None):
    """Keep where one's own images are, relative to the folder, so that both can move together."""
    line = source and os.path.relpath(source, folder)
    if line and is_line(line):
        _save_lines(folder / SOURCE_FILE, [line])
    else:
        (folder / SOURCE_FILE).unlink(missing_ok=True)


def _check_not_foreign(folder: Path, more: Sequence[str] = ()):
    """Refuse to overwrite files that no run has written: their names are common.

    A run writes its training images first, so no run, killed or not, leaves other files without them,
    except features.

    Args:
        folder: where a new run will write.
        more: names of further files that must not be there.

    Raises:
        UserError: there are some.
    """
    names = [TRUE_LABELS, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS, NAMES_FILE, PATHS_FILE, SKIPPED_FILE,
             SOURCE_FILE, OUT_OF_FOLD, *more]
    if (folder / TRAIN_IMAGES).exists():
        try:
            _load_images(folder / TRAIN_IMAGES)
            return
        except UserError:
            name: str | None = TRAIN_IMAGES
    else:
        name = next((name for name in names if (folder / name).exists()), None)
    if name:
        raise UserError(f"expected no files but those of a run in {folder}, found {name}, which no run "
                        "has written so; give another --output, or move it away")


def _save_lines(path: Path, lines: list[str]):
    save_text(path, _join(lines))


def _join(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def check_features(folder: Path, dataset: Dataset, recorded: dict[str, str]):
    """Check that the features of a run, if any, are those that it was trained on.

    The arguments are those of `check_annotations`.

    Raises:
        UserError: they have changed, or are gone.
    """
    found = dataset.feature_digests()
    for name in (TRAIN_FEATURES, TEST_FEATURES):
        if name not in recorded or (name == TEST_FEATURES and dataset.test is None):
            continue
        if name not in found:
            raise UserError(f"expected the features that the run was trained on in {folder / name}, "
                            "found none; restore the file, or train again")
        if found[name] != recorded[name]:
            raise UserError(f"expected {folder / name} as it was in the training, found the features "
                            "of other images or another content; restore it, or train again")


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
    train = _load_split(folder, TRAIN_IMAGES, TRAIN_LABELS, TRAIN_FEATURES)
    true_labels = None
    if (folder / TRUE_LABELS).exists():
        true_labels = _load_labels(folder / TRUE_LABELS, len(train.images))
    held_out = _load_split(folder, TEST_IMAGES, TEST_LABELS, TEST_FEATURES) if test else None
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
    if held_out and (held_out.features is None) != (train.features is None):
        there, lacking = (TRAIN_FEATURES, TEST_FEATURES)[::-1 if train.features is None else 1]
        raise UserError(f"expected {lacking} beside {there} in {folder}, found none; restore it, or "
                        f"remove {there} too")
    if held_out and held_out.inputs.shape[1:] != train.inputs.shape[1:]:
        raise UserError(f"expected test samples {train.inputs.shape[1:]} in {folder}, as those to train "
                        f"on, found {held_out.inputs.shape[1:]}; use the files of one run")
    lines = _load_lines(folder / SOURCE_FILE)
    source = Path(os.path.normpath(folder / lines[0])) if lines and lines[0] else None
    return Dataset(train.images, train.labels, features=train.features, true_labels=true_labels,
                   test=held_out, names=names, paths=paths, source=source)


def _load_split(folder: Path, images_name: str, labels_name: str, features_name: str) -> Split:
    images = _load_images(folder / images_name)
    labels = _load_labels(folder / labels_name, len(images))
    path = folder / features_name
    return Split(images, labels, features=_load_features(path, len(images)) if path.exists() else None)


def _load_features(path: Path, count: int) -> np.ndarray:
    features = load_array(path)
    if features.dtype != np.float32 or features.ndim != 2 or len(features) != count or not features.size:
        raise UserError(f"expected float32 features ({count}, D) in {path}, one row per image, found "
                        f"{features.dtype} {features.shape}; use the files of one run")
    return features


def _load_images(path: Path) -> np.ndarray:
    images = load_array(path)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3 or not images.size \
            or images.shape[2] != images.shape[3]:
        raise UserError(f"expected uint8 images (N, 3, S, S) in {path}, found {images.dtype} "
                        f"{images.shape}; write it with train.py")
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
