"""Your own images: from what is listed to the images, their labels and a test set."""
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np

from datasets.arrays import SIDE, SKIPPED_FILE, Originals, Source, Split
from datasets.images import convert, decode, read_image
from datasets.label_noise import next_class
from datasets.listing import Listing, list_images
from datasets.names import alike, is_line, is_missing, natural, same
from utils.errors import UserError
from utils.files import slices, take_rows

EARLIER_VAL_FRACTION = 0.2  # the default of runs that recorded none
SKIPPED_SHOWN, CLASSES_SHOWN = 10, 20
MOVED = 1000  # images at a time
DARK = 64  # 14-bit values in 16 bits become 63 at most


def load_own(path: Path, val_fraction: float | None, strict: bool, rng: np.random.Generator,
             size: int = SIDE) -> Source:
    """The images of a folder, a .csv or an .npz; files that are not images are listed and skipped.

    Args:
        path: a folder with one folder per class, or with a folder ``train`` of such folders and ``val``,
            ``test`` or both, which together are the test set; a CSV with columns ``path``, relative to
            it, and ``label``; or an .npz with ``x``, uint8 (N, H, W, 3), (N, 3, H, W) or (N, H, W), and
            ``y``, integers (N,).
        val_fraction: share of every class that becomes the test set where no folder does.  With 0 the
            training set is the test set too.  None for what older versions did: 0.2.
        strict: a file that is not an image, or a folder that cannot be read, is an error.
        rng: draws the test set.
        size: of the images, in pixels; smaller ones are enlarged.

    Raises:
        UserError: it cannot be read, has fewer than two classes, a class without images, or two classes
            whose names read the same.
    """
    listing = list_images(path)
    if val_fraction and listing.held_out:
        raise UserError(f"{path} has a folder to test on, and --val_fraction {val_fraction} asks for "
                        "another test set; leave one of them out")
    _check_names(path, {*listing.classes, *listing.classes_expected})
    _class_names(path, listing, range(len(listing.classes)))  # before anything is decoded
    print(f"reading {len(listing.sources):,} samples of {_count(listing.classes)}", flush=True)
    images, errors = _decode(listing, size)
    skipped = _report(listing, errors, strict)
    kept = np.delete(np.arange(len(images)), np.array(list(errors), int))
    _warn_if_dark(listing, images, kept)
    names = _class_names(path, listing, kept)
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers[listing.classes[number]] for number in kept], np.int64)
    fraction = EARLIER_VAL_FRACTION if val_fraction is None else val_fraction
    held_out = np.array(listing.held_out)[kept] if listing.held_out else draw(labels, fraction, rng)
    parts = zip(_divide(images, kept[~held_out], kept[held_out]), (~held_out, held_out), strict=True)
    train, test = (Split(some, labels[chosen, None], Originals(listing.sources, kept[chosen]))
                   for some, chosen in parts)
    if fraction == 0 and not listing.held_out:
        test = train
        print("none are held out: all are ranked, and the test error is that of the training images "
              "(--val_fraction 0.2 tests on a fifth instead)", flush=True)
    elif not held_out.any():
        raise UserError(f"expected at least one image to test on in {path}, found none; raise "
                        "--val_fraction or bring more images, or rank all with --val_fraction 0")
    else:
        print(f"{len(test.images):,} images are held out to test on, and will not be ranked"
              f"{_parts(listing) if listing.held_out else ' (--val_fraction 0 ranks all)'}", flush=True)
    paths = [listing.paths[number] if listing.paths else f"x[{number}]" for number in kept[~held_out]]
    return Source(train, test, names, next_class(len(names)), paths, skipped, trusted=False, path=path)


def _divide(images: np.ndarray, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The images of a training and a test set, by their numbers in ascending order.

    Decoded images, which must not be used afterwards, are moved to their places: together with a copy
    they would take twice the memory.
    """
    if images.base is not None or not len(train) or train[-1] - train[0] < len(train):
        return take_rows(images, train), take_rows(images, test)
    held_out = images[test]
    for start in range(0, len(train), MOVED):
        some = train[start:start + MOVED]
        images[start:start + len(some)] = images[some]
    return images[:len(train)], held_out


def draw(labels: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Whether each sample is drawn, bool (N,): `fraction` of every class, but never all of it."""
    drawn = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(round(fraction * len(members)), len(members) - 1)
        drawn[rng.choice(members, count, replace=False)] = True
    return drawn


def _count(classes: list[str]) -> str:
    """How many samples each class has, in words."""
    counts = Counter(classes)
    names = sorted(counts, key=natural)
    listed = ", ".join(f"{name} {counts[name]:,}" for name in names[:CLASSES_SHOWN])
    return f"{len(names)} classes: {listed}{', ...' if len(names) > CLASSES_SHOWN else ''}"


def _parts(listing: Listing) -> str:
    """Which folders are held out, in words."""
    held = {path.partition("/")[0] for path, is_held in zip(listing.paths or [], listing.held_out or [],
                                                            strict=True) if is_held}
    return f": those in {' and '.join(ascii(name) for name in sorted(held))}"


def _decode(listing: Listing, size: int) -> tuple[np.ndarray, dict[int, Exception]]:
    """The images (N, 3, size, size), and why some could not be read, by number."""
    if listing.paths is None:
        return convert(np.asarray(listing.sources), size), {}
    stretched: list[Path] = []
    images, errors = decode(partial(read_image, size=size, stretched=stretched), listing.sources, size)
    if stretched:
        first = listing.paths[list(listing.sources).index(min(stretched))]
        print(f"warning: {len(stretched):,} images, {first!a} among them, have 32-bit values of unknown "
              "range: in each alone, the smallest became black and the largest white; save them with 8 "
              "or 16 bits to keep their brightness", flush=True)
    return images, errors | {number: ValueError("its name is no line of UTF-8 text")
                             for number, name in enumerate(listing.paths) if not is_line(name)}


def _warn_if_dark(listing: Listing, images: np.ndarray, kept: np.ndarray):
    brightest = np.concatenate([images[rows].max(axis=(1, 2, 3))
                                for rows in slices(images, doing="checking")])
    dark = kept[brightest[kept] < DARK]
    if len(dark):
        first = ascii(listing.paths[dark[0]]) if listing.paths else f"image {dark[0]}"
        print(f"warning: {len(dark):,} of {len(kept):,} images are almost black, with no value above "
              f"{DARK - 1} of 255, the first {first}; if they hold 10, 12 or 14 bits in files of 16, "
              "multiply their values by 64, 16 or 4 and save them again", flush=True)


def _report(listing: Listing, errors: dict[int, Exception], strict: bool) -> list[str]:
    """A line per folder that is not read and file that is no image; the first are printed.

    Raises:
        UserError: there are some, and `strict`; or they are no files.
    """
    lines = [_skipped(folder, error) for folder, error in sorted(listing.unread.items())]
    lines += [_skipped(listing.paths[number] if listing.paths else f"image {number}", error)
              for number, error in sorted(errors.items())]
    if lines and (strict or not listing.paths):
        raise UserError(f"expected images that can be read, found {len(lines):,} files or folders that "
                        f"are not, the first {lines[0]}; remove them"
                        f"{', or leave --strict out' if strict else ''}")
    for line in lines[:SKIPPED_SHOWN]:
        print(f"skipped {line}", flush=True)
    if len(lines) > SKIPPED_SHOWN:
        print(f"skipped {len(lines) - SKIPPED_SHOWN} more, listed in {SKIPPED_FILE}", flush=True)
    return lines


def _skipped(name: str, error: Exception) -> str:
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    return f"{name!a}: {' '.join(reason.split())}"


def _check_names(path: Path, names: set[str]):
    """Refuse names of classes that cannot be told apart, and warn of those that hardly can.

    Raises:
        UserError: two names read the same, or one is not a line of text.
    """
    unclear = sorted(name for name in names if not is_line(name))
    if unclear:
        raise UserError(f"expected class names of one line of UTF-8 text in {path}, found "
                        f"{unclear[0]!a}; rename it")
    for one, other in same(names):
        raise UserError(f"expected class names that a reader can tell apart in {path}, found {one!a} "
                        f"and {other!a}; make them one or rename one")
    warnings = [f"{one!a} and {other!a} are two classes; make them one if they are not meant to differ"
                for one, other in alike(names)]
    warnings += [f"{name!a} is a class, although it looks like a missing label"
                 for name in sorted(names) if is_missing(name)]
    for warning in warnings[:SKIPPED_SHOWN]:
        print(f"warning: {warning}", flush=True)
    if len(warnings) > SKIPPED_SHOWN:
        print(f"warning: {len(warnings) - SKIPPED_SHOWN} more like these", flush=True)


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
    unknown = next((number for number in kept if listing.classes[number] not in names), None)
    if unknown is not None:
        raise UserError(f"expected only classes that are trained on among those tested on in {path}, "
                        f"found {listing.classes[unknown]!a}; remove or rename it")
    if len(names) < 2:
        raise UserError(f"expected at least 2 classes in {path}, found {len(names)}; a network cannot "
                        "learn to tell fewer apart")
    return sorted(names, key=natural)
