"""Label corrections, ``corrections.csv``: written in the review, applied by the next training."""
import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

import numpy as np

from datasets.arrays import Dataset, Split
from datasets.duplicates import image_digests
from utils.errors import UserError
from utils.files import cell_number, cell_text, read_table, text_cell, whole_file

APPLIED_FILE = "applied_corrections.csv"
COLUMNS = ("index", "path", "given_label", "decision", "new_label", "image_sha256")
DECISIONS = ("relabel", "remove", "fine")
ENCODING = "utf-8-sig"  # spreadsheets recognize UTF-8 by the mark
DIGEST_PREFIX = "sha256:"
PAIRS_SHOWN = 5


def sample_digest(dataset: Dataset, index: int) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a sample's image, after a prefix."""
    return digest_text(image_digests(dataset.images[index:index + 1])[0])


def digest_text(digest: np.uint64) -> str:
    """A digest of `image_digests` as the files have it.

    Without the prefix spreadsheets would reformat digests that look like numbers.
    """
    return f"{DIGEST_PREFIX}{int(digest):016x}"


@dataclass(frozen=True)
class Decision:
    """A row of a file of corrections; the fields are ``COLUMNS``.

    `index` and `path` are those of the data set that was reviewed.  In another one, the image's digest
    and the label tell which samples the decision is about.
    """

    index: int
    path: str
    given_label: str
    decision: str
    new_label: str
    image_sha256: str

    @property
    def label(self) -> str | None:
        """The label of the image once the decision is applied, None if it is removed."""
        return {"relabel": self.new_label, "fine": self.given_label}.get(self.decision)


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
        result = replace(dataset, labels=labels).take(kept)
        if not dataset.tests_on_training_images:
            return result
        true_labels = result.labels if result.true_labels is None else result.true_labels
        return replace(result, test=Split(result.images, true_labels, result.originals, result.features))

    def new_labels(self, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
        """The labels (N, 1) as corrected, and the indices of the remaining samples.

        Raises:
            UserError: a class has no sample left.
        """
        labels = _relabel(dataset.labels, self.relabelled)
        kept = np.delete(np.arange(len(labels)), self.removed)
        empty = np.setdiff1d(dataset.labels, labels[kept])
        if len(empty):
            raise UserError(f"expected corrections that leave every class a sample, found none left of "
                            f"{dataset.names[empty[0]]!r}; keep one")
        return labels, kept

    def keep_classes(self, dataset: Dataset, ranked: Iterable[int]) -> tuple["Corrections", list[int]]:
        """These corrections without those that would leave a class without a sample.

        Args:
            dataset: N samples.
            ranked: all their indices; the last one of a class that would be empty is kept.

        Returns:
            The corrections, and the indices of the samples that they leave alone for this reason.
        """
        labels = dataset.labels[:, 0]
        last = {int(labels[index]): index for index in ranked}
        relabelled, removed = dict(self.relabelled), dict.fromkeys(self.removed)
        kept: list[int] = []
        while True:
            after = np.delete(_relabel(labels, relabelled), list(removed))
            empty = np.setdiff1d(labels, after)
            if not len(empty):
                return Corrections(relabelled, list(removed), self.fine), kept
            for index in (last[label] for label in empty.tolist()):
                kept.append(index)
                # A sample that keeps its label can be missing in the class it was to go to: try again.
                relabelled.pop(index, None)
                removed.pop(index, None)

    def describe(self, dataset: Dataset) -> str:
        """One line: how many samples of `dataset` change, and how."""
        names, given = dataset.names, dataset.labels[:, 0]
        relabelled = Counter(f"from {names[given[index]]} to {names[label]}"
                             for index, label in self.relabelled.items())
        removed = Counter(f"of {names[given[index]]}" for index in self.removed)
        return (f"{len(self.relabelled)} relabelled{_counts(relabelled)}, {len(self.removed)} removed"
                f"{_counts(removed)}, {len(self.fine)} with the right label")


def _relabel(labels: np.ndarray, relabelled: dict[int, int]) -> np.ndarray:
    labels = labels.copy()
    for index, label in relabelled.items():
        labels[index] = label
    return labels


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
    save_decisions(path, (
        Decision(index, dataset.paths[index] if dataset.paths else "",
                 dataset.names[dataset.labels[index, 0]], decision, new, sample_digest(dataset, index))
        for index, decision, new in rows))


def save_decisions(path: Path, decisions: Iterable[Decision]):
    """Write decisions as a CSV with ``COLUMNS``.

    Raises:
        RunError: the file cannot be written.
    """
    with whole_file(path) as temporary, temporary.open("w", encoding=ENCODING, newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for decision in decisions:
            writer.writerow([text_cell(value) if isinstance(value, str) else value
                             for value in astuple(decision)])


def load(path: Path, dataset: Dataset) -> Corrections:
    """Read the corrections of a dataset.

    Args:
        path: what the review page or ``mislabel_analysis.py`` wrote.
        dataset: the data they must belong to: every row's label and image are compared.

    Raises:
        UserError: the file cannot be read, belongs to other data, or has an impossible decision.
    """
    result, seen = Corrections(), set()
    for where, one in _read(path, len(dataset.labels)):
        index, new, given = one.index, one.new_label, dataset.names[dataset.labels[one.index, 0]]
        if one.image_sha256 != sample_digest(dataset, index):
            raise UserError(f"expected corrections of these images, found another one in {where}; give "
                            "the --input of that review")
        if one.given_label != given:
            raise UserError(f"expected the given label {given!r} in {where}, found "
                            f"{one.given_label!r}; give the --input of that review, or, "
                            "where a spreadsheet changed it, download the corrections again")
        if index in seen:
            raise UserError(f"expected one row per sample, found index {index} again in {where}; remove "
                            "one")
        seen.add(index)
        if one.decision == "relabel" and new != given:
            if new not in dataset.names:
                raise UserError(f"expected one of the {len(dataset.names)} classes as new_label in "
                                f"{where}, found {new!r}; fix or remove it")
            result.relabelled[index] = dataset.names.index(new)
        else:
            (result.removed if one.decision == "remove" else result.fine).append(index)
    return result


def load_applied(folder: Path) -> list[Decision]:
    """The decisions that made the data of a run, oldest first; none where it has no such file.

    Raises:
        UserError: the file cannot be read.
    """
    path = folder / APPLIED_FILE
    return [one for _, one in _read(path)] if path.exists() else []


def carry_forward(folder: Path, corrections: Path | None) -> list[Decision]:
    """The decisions that make the data of the next run, oldest first.

    Args:
        folder: the run that was reviewed; what was applied to it stays known.
        corrections: the new decisions, if any.  They replace older ones about the same image at the
            same path with the same label.

    Raises:
        UserError: a file cannot be read.
    """
    new = [one for _, one in _read(corrections)] if corrections else []
    replaced = {(one.image_sha256, one.path, one.given_label) for one in new}
    return [one for one in load_applied(folder)
            if (one.image_sha256, one.path, one.given_label) not in replaced] + new


def decided_earlier(dataset: Dataset, digests: np.ndarray, applied: Iterable[Decision]) \
        -> dict[int, Decision]:
    """By index, the newest decision that gave or left a sample its label.

    Args:
        dataset: N samples.
        digests: theirs, of `image_digests`.
        applied: what was decided, oldest first.
    """
    outcome = {(one.image_sha256, one.label): one for one in applied if one.label is not None}
    found = {}
    known = [int(digest.removeprefix(DIGEST_PREFIX), 16) for digest, _ in outcome]
    for index in np.flatnonzero(np.isin(digests, np.array(known, np.uint64))).tolist():
        key = (digest_text(digests[index]), dataset.names[dataset.labels[index, 0]])
        if key in outcome:
            found[index] = outcome[key]
    return found


def _read(path: Path, samples: int | None = None) -> Iterator[tuple[str, Decision]]:
    """The rows of an untrusted file of corrections, each after a text that says where it is.

    Args:
        path: the file.
        samples: number of samples of the data it must belong to, None where they are others.
    """
    columns = [name for name in COLUMNS if name != "path"]
    rows = read_table(path, columns, "save it as CSV in UTF-8 with commas, or download it again from "
                      "the review page")
    for line, row in rows:
        where = f"line {line} of {path}"
        cells = {name: row.get(name, "") for name in COLUMNS}
        if any(name not in row for name in columns):
            raise UserError(f"expected {len(COLUMNS)} values in {where}, found fewer; fix or remove it")
        if cells["decision"] not in DECISIONS:
            raise UserError(f"expected {', '.join(DECISIONS)} as the decision in {where}, found "
                            f"{cells['decision']!a}; fix or remove it")
        if not re.fullmatch(f"{DIGEST_PREFIX}[0-9a-f]{{16}}", cells["image_sha256"]):
            raise UserError(f"expected {DIGEST_PREFIX} and 16 hexadecimal digits as image_sha256 in "
                            f"{where}, found {cells['image_sha256']!a}; download the file again")
        yield where, Decision(
            index=_index(cells["index"], samples, where), path=cell_text(cells["path"]),
            given_label=cell_text(cells["given_label"]), decision=cells["decision"],
            new_label=cell_text(cells["new_label"]), image_sha256=cells["image_sha256"])


def _index(text: str, samples: int | None, where: str) -> int:
    index = cell_number(text)
    if index < 0 or (samples is not None and index >= samples):
        limit = "" if samples is None else f" to {samples - 1}"
        raise UserError(f"expected an index from 0{limit} in {where}, found {text!r}; give "
                        "the --input of that review")
    return index
