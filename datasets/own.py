"""Your own images: a folder of class folders, a CSV of paths and labels, or an .npz of arrays.

Files and names are untrusted.
"""
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.arrays import SKIPPED_FILE, Source, Split
from datasets.images import decode, read_image, to_array
from datasets.label_noise import next_class
from utils.errors import UserError
from utils.files import open_npz, read_table

VAL_FRACTION = 0.2
SPLITS = ("train", "val", "valid", "validation", "test")
SKIPPED_SHOWN, CLASSES_SHOWN = 10, 20


@dataclass(frozen=True)
class Listing:
    """N samples that are not read yet.

    Attributes:
        sources: the arguments of `read`, N of them.
        read: returns the image of a source, uint8 IMAGE_SHAPE.
        classes: the class name of each sample.
        paths: the file of each sample as the user knows it, or None if there are no files.
        held_out: whether each sample belongs to the test set, or None if nothing says so.
        classes_expected: names of classes that must have a sample.
    """

    sources: Sequence | np.ndarray
    read: Callable[[Any], np.ndarray]
    classes: list[str]
    paths: list[str] | None = None
    held_out: list[bool] | None = None
    classes_expected: tuple[str, ...] = ()


def load_own(path: Path, val_fraction: float | None, strict: bool, rng: np.random.Generator) -> Source:
    """The images of a folder, a .csv or an .npz; files that are not images are listed and skipped.

    Args:
        path: a folder with one folder per class, or with two, ``train`` and ``val``, of such folders; a
            CSV with columns ``path``, relative to it, and ``label``; or an .npz with ``x``, uint8
            (N, H, W, 3), (N, 3, H, W) or (N, H, W), and ``y``, integers (N,).
        val_fraction: share of every class that becomes the test set; None for 0.2.  With 0 the training
            set is the test set too.
        strict: a file that is not an image is an error.
        rng: draws the test set.

    Raises:
        UserError: it cannot be read, has fewer than two classes, or a class without images.
    """
    listing = _list(path)
    if val_fraction is not None and listing.held_out:
        raise UserError(f"{path} has a val folder, and --val_fraction {val_fraction} asks for another "
                        "test set; leave one of them out")
    _check_names(path, {*listing.classes, *listing.classes_expected})
    _class_names(path, listing, range(len(listing.classes)))  # before anything is decoded
    print(f"reading {len(listing.sources):,} samples of {_count(listing.classes)}", flush=True)
    images, errors = decode(listing.read, listing.sources)
    if listing.paths:
        errors |= {number: ValueError("its name is no line of UTF-8 text")
                   for number, name in enumerate(listing.paths) if not _is_line(name)}
    skipped = _report(listing, errors, strict)
    kept = np.array([number for number in range(len(images)) if number not in errors], int)
    names = _class_names(path, listing, kept)
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers[listing.classes[number]] for number in kept], np.int64)
    fraction = VAL_FRACTION if val_fraction is None else val_fraction
    held_out = np.array(listing.held_out)[kept] if listing.held_out else draw(labels, fraction, rng)
    train, test = (Split(images[kept[chosen]], labels[chosen, None]) for chosen in (~held_out, held_out))
    if fraction == 0:
        test = train
        print("none are held out: all are ranked, and the test error is that of the training images",
              flush=True)
    elif not held_out.any():
        raise UserError(f"expected at least one image to test on in {path}, found none; raise "
                        "--val_fraction or bring more images, or rank all with --val_fraction 0")
    else:
        print(f"{len(test.images):,} images are held out to test on, and will not be ranked"
              f"{'' if listing.held_out else ' (--val_fraction 0 ranks all)'}", flush=True)
    paths = listing.paths and [listing.paths[number] for number in kept[~held_out]]
    return Source(train, test, names, next_class(len(names)), paths, skipped, trusted=False)


def _count(classes: list[str]) -> str:
    """How many samples each class has, in words."""
    counts = Counter(classes)
    names = sorted(counts, key=_natural)
    listed = ", ".join(f"{name} {counts[name]:,}" for name in names[:CLASSES_SHOWN])
    return f"{len(names)} classes: {listed}{', ...' if len(names) > CLASSES_SHOWN else ''}"


def draw(labels: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Whether each sample is drawn, bool (N,): `fraction` of every class, but never all of it."""
    drawn = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(round(fraction * len(members)), len(members) - 1)
        drawn[rng.choice(members, count, replace=False)] = True
    return drawn


def _list(path: Path) -> Listing:
    if path.is_dir():
        return _list_folder(path)
    readers = {".csv": _list_table, ".npz": _list_arrays}
    if path.suffix.lower() in readers and path.is_file():
        return readers[path.suffix.lower()](path)
    raise UserError(f"expected a folder with one folder per class, a .csv or an .npz at {path}, found "
                    f"{'another file' if path.exists() else 'nothing'}; give one of them as --dataset")


def _list_folder(path: Path) -> Listing:
    parts = {path: False}
    splits = [folder for folder in _folders(path) if folder.name.casefold() in SPLITS]
    if any(_folders(folder) for folder in splits):
        parts = {folder: folder.name == "val" for folder in splits}
        names = [folder.name for folder in splits]
        if names not in (["train"], ["train", "val"]) or len(splits) < len(_folders(path)):
            others = ", ".join(ascii(folder.name) for folder in _folders(path))
            raise UserError(f"expected the folders train and val, or train alone, in {path}, found "
                            f"{others}; rename or move them")
    files: list[Path] = []
    classes: list[str] = []
    held_out: list[bool] = []
    expected: list[str] = []
    for part, held in parts.items():
        folders = _folders(part)
        if not folders:
            raise UserError(f"expected one folder of images per class in {part}, found none; sort the "
                            "images into folders named for their classes, or give a .csv"
                            f"{', or remove val' if held else ''}")
        beside = sorted(file.name for file in part.iterdir()
                        if not file.is_dir() and not file.name.startswith("."))
        if beside:
            more = f" and {len(beside) - 1} more" if len(beside) > 1 else ""
            print(f"left out, beside the class folders of {part}: {beside[0]!a}{more}", flush=True)
        expected += [folder.name for folder in folders if not held]
        for folder in folders:
            found = sorted(file for file in folder.rglob("*") if (file.is_symlink() or not file.is_dir())
                           and not any(name.startswith(".") for name in file.relative_to(path).parts))
            if not found:
                raise UserError(f"expected images in every class folder of {part}, found none in "
                                f"{folder.name!a}; add some or remove it")
            files += found
            classes += [folder.name] * len(found)
            held_out += [held] * len(found)
    return Listing(files, read_image, classes, [file.relative_to(path).as_posix() for file in files],
                   held_out if any(held_out) else None, tuple(expected))


def _folders(path: Path) -> list[Path]:
    return sorted(folder for folder in path.iterdir()
                  if folder.is_dir() and not folder.name.startswith("."))


def _list_table(path: Path) -> Listing:
    rows = read_table(path, ("path", "label"), "write the columns path,label, with commas, and a row an "
                      "image")
    for number, row in enumerate(rows, start=1):
        row["label"] = (row["label"] or "").strip()
        if not row["path"] or not row["label"]:
            raise UserError(f"expected a path and a label in row {number} of {path}, found "
                            f"{row['path']!a} and {row['label']!a}; complete or remove it")
    unknown = [row["path"] for row in rows if not os.path.isfile(path.parent / row["path"])]
    if unknown:
        raise UserError(f"expected files at the paths in {path}, relative to its folder, found none at "
                        f"{len(unknown)} of them, {unknown[0]!a} the first; fix or remove those rows")
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        file = os.path.realpath(path.parent / row["path"])
        if file in seen:
            raise UserError(f"expected every file once in {path}, found {row['path']!a} again in row "
                            f"{number}; remove one")
        seen.add(file)
    return Listing([path.parent / row["path"] for row in rows], read_image,
                   [row["label"] for row in rows], [row["path"] for row in rows])


def _list_arrays(path: Path) -> Listing:
    try:
        with open_npz(path) as file:
            x, y = file["x"], file["y"]
    except Exception as error:  # a damaged archive raises almost anything
        raise UserError(f"cannot read the arrays x and y in {path}: {error}; save them with "
                        "numpy.savez, x as uint8 and y as integers") from error
    if x.dtype != np.uint8 or not (x.ndim == 3 or (x.ndim == 4 and 3 in (x.shape[1], x.shape[3]))) \
            or 0 in x.shape:
        raise UserError(f"expected x in {path} as uint8 (N, H, W, 3), (N, 3, H, W) or (N, H, W), found "
                        f"{x.dtype} {x.shape}; save it so")
    if y.dtype.kind not in "iu" or y.shape not in ((len(x),), (len(x), 1)):
        raise UserError(f"expected y in {path} as integers ({len(x)},), one per image, found "
                        f"{y.dtype} {y.shape}; save it so")
    if x.ndim == 4 and x.shape[3] != 3:
        x = x.transpose(0, 2, 3, 1)
    return Listing(x, lambda image: to_array(Image.fromarray(np.ascontiguousarray(image))),
                   [str(label) for label in y.reshape(-1)])


def _report(listing: Listing, errors: dict[int, Exception], strict: bool) -> list[str]:
    """The files that are no images, a line each; the first are printed.

    Raises:
        UserError: there are some, and `strict`; or they are no files.
    """
    lines = [f"{ascii(listing.paths[number]) if listing.paths else f'image {number}'}: "
             + " ".join(str(error).split()) for number, error in sorted(errors.items())]
    if lines and (strict or not listing.paths):
        raise UserError(f"{len(lines)} of {len(listing.sources)} files are no images that can be read, "
                        f"the first {lines[0]}; remove them"
                        f"{', or leave --strict out' if strict else ''}")
    for line in lines[:SKIPPED_SHOWN]:
        print(f"skipped {line}", flush=True)
    if len(lines) > SKIPPED_SHOWN:
        print(f"skipped {len(lines) - SKIPPED_SHOWN} more, listed in {SKIPPED_FILE}", flush=True)
    return lines


def _check_names(path: Path, names: set[str]):
    folded: dict[str, str] = {}
    for name in sorted(names):
        if not _is_line(name):
            raise UserError(f"expected class names of one line of UTF-8 text in {path}, found "
                            f"{name!a}; rename it")
        other = folded.setdefault(unicodedata.normalize("NFC", name).casefold().strip(), name)
        if other != name:
            raise UserError(f"expected class names that differ in more than case and blanks in {path}, "
                            f"found {other!a} and {name!a}; make them one or rename one")


def _class_names(path: Path, listing: Listing, kept: Iterable[int]) -> list[str]:
    """The classes of the samples numbered `kept`, in their order.

    Raises:
        UserError: there are fewer than two, or a class has no sample to train on.
    """
    held_out = listing.held_out or [False] * len(listing.classes)
    names = {listing.classes[number] for number in kept if not held_out[number]}
    empty = sorted(set(listing.classes_expected) - names)
    if empty:
        raise UserError(f"expected images in every class folder of {path}, found none in {empty[0]!a}; "
                        "add some or remove it")
    unknown = sorted({listing.classes[number] for number in kept} - names)
    if unknown:
        raise UserError(f"expected the classes of {path / 'train'} in its val folder, found "
                        f"{unknown[0]!a}; remove or rename it")
    if len(names) < 2:
        raise UserError(f"expected at least 2 classes in {path}, found {len(names)}; a network cannot "
                        "learn to tell fewer apart")
    return sorted(names, key=_natural)


def _is_line(text: str) -> bool:
    """Whether it is one line of text that reads as it is stored.

    Control characters, text that is not Unicode and marks that change the direction of text are refused.
    """
    return text.splitlines() == [text] and not any(
        unicodedata.category(letter) in ("Cc", "Cs")
        or unicodedata.bidirectional(letter) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI",
                                                 "PDI") for letter in text)


def _natural(name: str) -> tuple:
    """Numbers in their order, and before words."""
    return (0, int(name), name) if re.fullmatch("-?[0-9]{1,18}", name) else (1, 0, name)
