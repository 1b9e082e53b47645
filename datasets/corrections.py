"""Label corrections, ``corrections.csv``: written in the review, applied by the next training."""
import csv
import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from datasets.arrays import Dataset
from utils.errors import UserError
from utils.files import cell_text, read_table, text_cell, whole_file

APPLIED_FILE = "applied_corrections.csv"
COLUMNS = ("index", "path", "given_label", "decision", "new_label", "image_sha256")
DECISIONS = ("relabel", "remove", "fine")
ENCODING = "utf-8-sig"  # spreadsheets recognize UTF-8 by the mark
PAIRS_SHOWN = 5


def sample_digest(dataset: Dataset, index: int) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a sample's image, after a prefix.

    Without it spreadsheets would reformat digests that look like numbers.
    """
    return "sha256:" + hashlib.sha256(np.ascontiguousarray(dataset.images[index]).data).hexdigest()[:16]


@dataclass(frozen=True)
class Corrections:
    """Decisions about some samples of a dataset.

    Attributes:
        relabelled: index -> new label.
        removed: indices.
        fine: indices of samples whose labels are right.
    """

    relabelled: dict[int, int] = field(default_factory=dict)
    removed: list[int] = field(default_factory=list)
    fine: list[int] = field(default_factory=list)

    def apply(self, dataset: Dataset) -> Dataset:
        """The corrected training set; `dataset` is unchanged.

        A test set that is identical to the training set is corrected with it.

        Raises:
            UserError: a class has no sample left.
        """
        labels, kept = self.new_labels(dataset)
        images, labels = dataset.images[kept], labels[kept]
        true_labels = None if dataset.true_labels is None else dataset.true_labels[kept]
        test = dataset.test
        if test and np.array_equal(test.images, dataset.images):
            test = replace(test, images=images, labels=labels if true_labels is None else true_labels)
        return replace(dataset, images=images, labels=labels, true_labels=true_labels, test=test,
                       paths=dataset.paths and [dataset.paths[index] for index in kept])

    def new_labels(self, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
        """The labels (N, 1) as corrected, and the indices of the remaining samples.

        Raises:
            UserError: a class has no sample left.
        """
        labels = dataset.labels.copy()
        for index, label in self.relabelled.items():
            labels[index] = label
        kept = np.delete(np.arange(len(labels)), self.removed)
        empty = np.setdiff1d(dataset.labels, labels[kept])
        if len(empty):
            raise UserError(f"expected corrections that leave every class a sample, found none left of "
                            f"{dataset.names[empty[0]]!r}; keep one")
        return labels, kept

    def describe(self, dataset: Dataset) -> str:
        """One line: how many samples of `dataset` change, and how."""
        names, given = dataset.names, dataset.labels[:, 0]
        relabelled = Counter(f"from {names[given[index]]} to {names[label]}"
                             for index, label in self.relabelled.items())
        removed = Counter(f"of {names[given[index]]}" for index in self.removed)
        return (f"{len(self.relabelled)} relabelled{_counts(relabelled)}, {len(self.removed)} removed"
                f"{_counts(removed)}, {len(self.fine)} fine")


def _counts(counter: Counter) -> str:
    shown = [f"{count} {what}" for what, count in counter.most_common(PAIRS_SHOWN)]
    return f" ({', '.join(shown + ['...'] * (len(counter) > PAIRS_SHOWN))})" if shown else ""


def save(path: Path, dataset: Dataset, corrections: Corrections):
    """Write corrections as a CSV with ``COLUMNS``, in the order given within each decision.

    Raises:
        RunError: the file cannot be written.
    """
    rows = [(index, "relabel", dataset.names[label]) for index, label in corrections.relabelled.items()]
    rows += [(index, "remove", "") for index in corrections.removed]
    rows += [(index, "fine", "") for index in corrections.fine]
    with whole_file(path) as temporary, temporary.open("w", encoding=ENCODING, newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for index, decision, new in rows:
            writer.writerow([index, text_cell(dataset.paths[index] if dataset.paths else ""),
                             text_cell(dataset.names[dataset.labels[index, 0]]), decision,
                             text_cell(new), sample_digest(dataset, index)])


def load(path: Path, dataset: Dataset) -> Corrections:
    """Read the corrections of a dataset.

    Args:
        path: what the review page or ``mislabel_analysis.py`` wrote.
        dataset: the data they must belong to: every row's label and image are compared.

    Raises:
        UserError: the file cannot be read, belongs to other data, or has an impossible decision.
    """
    columns = [name for name in COLUMNS if name != "path"]
    rows = read_table(path, columns, "save it as CSV in UTF-8 with commas, or download it again from "
                      "the review page")
    result, seen = Corrections(), set()
    for line, row in rows:
        where = f"line {line} of {path}"
        if any(name not in row for name in columns):
            raise UserError(f"expected {len(COLUMNS)} values in {where}, found fewer; fix or remove it")
        index = _index(row["index"], len(dataset.labels), where)
        given, new = dataset.names[dataset.labels[index, 0]], cell_text(row["new_label"])
        if row["image_sha256"] != sample_digest(dataset, index):
            raise UserError(f"expected corrections of these images, found another one in {where}; give "
                            "the --input of that review")
        if cell_text(row["given_label"]) != given:
            raise UserError(f"expected the given label {given!r} in {where}, found "
                            f"{row['given_label']!r}; give the --input of that review, or, "
                            "where a spreadsheet changed it, download the corrections again")
        if index in seen:
            raise UserError(f"expected one row per sample, found index {index} again in {where}; remove "
                            "one")
        seen.add(index)
        if row["decision"] not in DECISIONS:
            raise UserError(f"expected {', '.join(DECISIONS)} as the decision in {where}, found "
                            f"{row['decision']!r}; fix or remove it")
        if row["decision"] == "relabel" and new != given:
            if new not in dataset.names:
                raise UserError(f"expected one of the {len(dataset.names)} classes as new_label in "
                                f"{where}, found {new!r}; fix or remove it")
            result.relabelled[index] = dataset.names.index(new)
        else:
            (result.removed if row["decision"] == "remove" else result.fine).append(index)
    return result


def _index(text: str, samples: int, where: str) -> int:
    index = int(text) if text.isascii() and text.isdigit() and len(text) < 18 else -1
    if not 0 <= index < samples:
        raise UserError(f"expected an index from 0 to {samples - 1} in {where}, found {text!r}; give "
                        "the --input of that review")
    return index
