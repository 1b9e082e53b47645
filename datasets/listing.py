"""The samples that are listed: by a folder of class folders, a CSV of paths and labels, or an .npz.

Files and names are untrusted.
"""
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datasets import folders
from datasets.names import is_missing
from utils.errors import UserError
from utils.files import open_npz, read_member, read_table

BACKSLASHES = "; folders are separated by / here, but there is no file at that path either"


@dataclass(frozen=True)
class Listing:
    """N samples that are not read yet.

    Attributes:
        sources: the image file of each sample, or its pixels, uint8 (H, W) or (H, W, 3).
        classes: the class name of each.
        paths: the file of each as the user knows it, or None if there are no files.
        held_out: whether each belongs to the test set, or None if nothing says so.
        classes_expected: names of classes that must have a sample.
        unread: the folders that are not read, as the user knows them, and why.
        tops: the class folder of each, or None where there are no such folders.
    """

    sources: Sequence | np.ndarray
    classes: list[str]
    paths: list[str] | None = None
    held_out: list[bool] | None = None
    classes_expected: tuple[str, ...] = ()
    unread: dict[str, Exception] = field(default_factory=dict)
    tops: list[Path] | None = None


def list_images(path: Path) -> Listing:
    """What is listed at a path; see `datasets.own.load_own`.

    Raises:
        UserError: it cannot be read, or is none of the three.
    """
    if path.is_dir():
        return _list_folder(path)
    readers = {".csv": _list_table, ".npz": _list_arrays}
    if path.suffix.lower() in readers and path.is_file():
        return readers[path.suffix.lower()](path)
    raise UserError(f"expected a folder with one folder per class, a .csv or an .npz at {path}, found "
                    f"{'another file' if path.exists() else 'nothing'}; give one of them as --dataset")


def _list_folder(path: Path) -> Listing:
    found = folders.find(path)
    prefix = f"{path.as_posix().rstrip('/')}/"  # all are inside; relative_to would take much longer
    return Listing(found.files, found.classes,
                   [file.as_posix().removeprefix(prefix) for file in found.files],
                   found.held_out if any(found.held_out) else None, tuple(found.expected),
                   {folder.relative_to(path).as_posix(): why for folder, why in found.unread.items()},
                   found.tops)


def _list_table(path: Path) -> Listing:
    rows = read_table(path, ("path", "label"), "write the columns path,label, with commas, and a row "
                      "per image")
    files, labels, unknown = [], [], []
    seen: dict[str, int] = {}
    for line, row in rows:
        written, label = row.get("path", ""), row.get("label", "").strip()
        if not written.strip() or is_missing(label):
            raise UserError(f"expected a path and a label in line {line} of {path}, found {written!a} "
                            f"and {label!a}; complete or remove it"
                            f"{', or give the class another name' if label else ''}")
        file = _find(path.parent, written)
        if file is None:
            unknown.append((line, written))
            continue
        first = seen.setdefault(os.path.realpath(path.parent / file), line)
        if first != line:
            raise UserError(f"expected every file once in {path}, found the one of line {first}, "
                            f"{written!a}, again in line {line}; remove one")
        files.append(file)
        labels.append(label)
    if unknown:
        line, written = unknown[0]
        raise UserError(f"expected files at the paths in {path}, relative to its folder, found none at "
                        f"{len(unknown)} of them, {written!a} in line {line} the first; fix or remove "
                        f"those rows{BACKSLASHES if chr(92) in written else ''}")
    return Listing([path.parent / file for file in files], labels, files)


def _find(folder: Path, written: str) -> str | None:
    """The path of a file in a table as it can be opened, or None if there is no such file."""
    tries = dict.fromkeys((written, written.strip(), written.strip().replace("\\", "/")))
    return next((path for path in tries if os.path.isfile(folder / path)), None)


def _list_arrays(path: Path) -> Listing:
    advice = "save them with numpy.savez, x as uint8 and y as integers"
    try:
        with open_npz(path) as file:
            found = ", ".join(map(ascii, file.files)) or "none"
            arrays = [read_member(file, name) for name in ("x", "y") if name in file.files]
    except Exception as error:  # a damaged archive raises almost anything
        raise UserError(f"cannot read the arrays x and y in {path}: {error}; {advice}") from error
    if len(arrays) != 2:
        raise UserError(f"expected the arrays 'x' and 'y' in {path}, found {found}; {advice}")
    x, y = arrays
    if x.dtype != np.uint8 or not (x.ndim == 3 or (x.ndim == 4 and 3 in (x.shape[1], x.shape[3]))) \
            or 0 in x.shape:
        raise UserError(f"expected x in {path} as uint8 (N, H, W, 3), (N, 3, H, W) or (N, H, W), found "
                        f"{x.dtype} {x.shape}; save it so")
    if y.dtype.kind not in "iu" or y.shape not in ((len(x),), (len(x), 1)):
        raise UserError(f"expected y in {path} as integers ({len(x)},), one per image, found "
                        f"{y.dtype} {y.shape}; save it so")
    if x.ndim == 4 and x.shape[3] != 3:
        x = x.transpose(0, 2, 3, 1)
    names = {label: str(label) for label in np.unique(y).tolist()}  # one text for many samples
    return Listing(x, [names[label] for label in y.reshape(-1).tolist()])
