"""Labels for a known set that were made elsewhere, such as CIFAR-10N's: ``train.py --noisy_labels``."""
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.arrays import Dataset
from utils.cli import nearest
from utils.errors import UserError
from utils.files import cell_number, cell_text, load_array, open_npz, read_table

SUFFIXES = (".npy", ".npz", ".csv")
COLUMNS = ("index", "label")
HEADER_BYTES = 2**16  # at most, before the numbers of an array in an .npz
ARRAYS_SHOWN = 10
UNLIKELY = 0.5  # share of labels that differ, above which their order is in doubt


def check_file(path: Path):
    """Check, before any data are read, that there is a file of a kind that `load_labels` reads.

    Raises:
        UserError: there is none.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"expected a .npy, .npz or .csv as --noisy_labels, found {path}; read the "
                        "labels with the library that wrote them and save them with numpy.save")
    if not path.is_file():
        found = "nothing" if not os.path.lexists(path) else "a folder" if path.is_dir() else "no file"
        raise UserError(f"expected a file at --noisy_labels {path}, found {found}; give its path")


def load_labels(path: Path, true_labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Read untrusted labels of a whole training set.

    Args:
        path: an .npy of integers (N,) or (N, 1); an .npz with one such array; or a CSV with the columns
            ``index``, from 0, and ``label``, the number or the name of a class, at most one row per
            sample.
        true_labels: those of the set, integers (N, 1), which samples without a row keep.
        names: of its C classes.

    Returns:
        The labels, below C, int64 (N, 1).

    Raises:
        UserError: the file cannot be read, or its labels are not of this set.
    """
    check_file(path)
    if path.suffix.lower() == ".csv":
        return _read_table(path, true_labels, names)
    count = len(true_labels)
    labels = load_array(path) if path.suffix.lower() == ".npy" else _read_npz(path, count)
    if labels.dtype.kind not in "iu" or labels.shape not in ((count,), (count, 1)):
        raise UserError(f"expected integers ({count},) in {path}, one per sample of the whole training "
                        f"set, found {labels.dtype} {labels.shape}; save them so")
    wrong = labels[(labels < 0) | (labels >= len(names))]
    if len(wrong):
        raise UserError(f"expected labels from 0 to {len(names) - 1} in {path}, found {wrong[0]}; "
                        "number the classes as the data set does")
    return labels.astype(np.int64).reshape(-1, 1)


def remark(dataset: Dataset) -> str:
    """What is unusual in the number of labels that differ from the true ones, in words; else nothing."""
    differ, count = int((dataset.labels != dataset.true_labels).sum()), len(dataset.labels)
    if not differ:
        return (f"warning: all {count:,} noisy labels are the true ones; there is nothing to find, and "
                "the analysis will have no metrics")
    if differ > UNLIKELY * count:
        return (f"warning: {differ:,} of {count:,} noisy labels differ from the true ones; check that "
                "they are in the order of the training set")
    return ""


def _read_npz(path: Path, count: int) -> np.ndarray:
    try:
        with open_npz(path) as file:
            # What is packed in a few bytes could fill the memory.
            largest = max((member.file_size for member in file.zip.infolist()), default=0)
            found = [ascii(name) for name in file.files]
            fits = len(found) == 1 and largest <= HEADER_BYTES + 8 * count
            labels = file[file.files[0]] if fits else None
    except Exception as error:  # a damaged archive raises almost anything
        raise UserError(f"cannot read the labels in {path}: {error}; save them with numpy.save") \
            from error
    if len(found) != 1:
        shown = ", ".join(found[:ARRAYS_SHOWN]) + ", ..." * (len(found) > ARRAYS_SHOWN)
        raise UserError(f"expected one array in {path}, found {shown or 'none'}; keep one, saved with "
                        "numpy.save")
    if labels is None:
        raise UserError(f"expected integers ({count},) in {path}, one per sample of the whole training "
                        f"set, found {largest:,} bytes; save them so")
    return np.asarray(labels)  # a member that is no array is read as bytes


def _read_table(path: Path, true_labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    labels, seen = true_labels.astype(np.int64), set()
    numbers = {name: number for number, name in enumerate(names)}
    for line, cells in read_table(path, COLUMNS, "save a table with the columns index and label"):
        where = f"line {line} of {path}"
        written, name = (cell_text(cells.get(column, "").strip()) for column in COLUMNS)
        index, label = cell_number(written), numbers.get(name, cell_number(name))
        if not 0 <= index < len(labels):
            raise UserError(f"expected an index from 0 to {len(labels) - 1} in {where}, found "
                            f"{written!a}; fix or remove it")
        if index in seen:
            raise UserError(f"expected one row per sample, found index {index} again in {where}; remove "
                            "one")
        if not 0 <= label < len(names):
            raise UserError(f"expected a label from 0 to {len(names) - 1} or the name of a class in "
                            f"{where}, found {name!a}; "
                            f"{nearest(name, names) or 'fix it, or remove the row for the true label'}")
        seen.add(index)
        labels[index] = label
    return labels
