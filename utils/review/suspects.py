"""The ranked samples as a table, as corrections, as counts and as images."""
import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.arrays import Dataset
from datasets.corrections import Corrections, Decision, decided_earlier
from datasets.duplicates import image_digests, near_duplicates, other_labels
from utils.files import text_cell, whole_file, whole_folder
from utils.review.detection import rank
from utils.review.explained import UNEXPLAINED, Reasons, reasons
from utils.review.run import LEARNED, Run, agreement
from utils.tracin.explanations import Explanations
from utils.tracin.scores import PerCheckpoint

SPARED_SHOWN = 5
BLOCK = 10_000  # suspects whose attributes are in memory at a time
# From this probability on a suggestion is called sure: tests/benchmarks/README.md has what it is worth.
SURE = 0.8
NOBODY = np.empty(0, np.int64)
EXPLAINED = ("opponent", "proponent")  # columns of runs that have explanations


@dataclass(frozen=True)
class Facts:
    """What is known of the N samples beside their scores.

    Attributes:
        digests: of their images, uint64 (N,); see `datasets.duplicates.image_digests`.
        other_labels: the index of a sample with the same image and another label, or -1, integers (N,).
        applied: the decisions that made these data, oldest first.
        decided: by index, the newest of them that gave or left a sample its label.
        near_duplicates: the index of a sample with almost the same image and another label, by index of
            the samples that have one, as far as it was looked for.
        reasons: by index, of the explained samples; None where the run has no explanations.
    """

    digests: np.ndarray
    other_labels: np.ndarray
    applied: Sequence[Decision]
    decided: dict[int, Decision]
    near_duplicates: dict[int, int]
    reasons: dict[int, Reasons] | None = None


def gather_facts(dataset: Dataset, applied: Sequence[Decision] = (),
                 explanations: Explanations | None = None, first: np.ndarray = NOBODY) -> Facts:
    """Look for images that are there twice, and for what was decided about them in earlier rounds.

    Args:
        dataset: N samples.
        applied: from `datasets.corrections.load_applied`.
        explanations: of training samples, if the run has them.
        first: indices of the samples whose near-duplicates are looked for, integers (M,).
    """
    digests = image_digests(dataset.images)
    identical = other_labels(digests, dataset.labels)
    first = first[identical[first] < 0]
    near = near_duplicates(dataset.images, dataset.labels, first)
    return Facts(digests, identical, applied, decided_earlier(dataset, digests, applied),
                 dict(zip(first[near >= 0].tolist(), near[near >= 0].tolist(), strict=True)),
                 None if explanations is None else reasons(explanations, dataset.labels))


@dataclass(frozen=True)
class Suspect:
    """One row of ``suspects.csv`` and one tile of the review page.

    Attributes:
        rank: 1 is the most suspicious.
        index: the sample's.
        path: the sample's file, None if it has none.
        score: higher is more suspicious.
        given_label, suggested_label, true_label: numbers of classes.  The suggested label has the
            largest probability; the true one is None where unknown.
        given_probability, suggested_probability: out of fold, or means over the checkpoints.
        disagreement: share of the checkpoints where another logit exceeds the given label's.
        duplicate_of: the index of a sample with the same image and another label, None if there is
            none.  Identical images with the same label do not count: they are redundant, not wrong.
        decided: the decision of an earlier round that gave or left the sample its label, if any.
        opponent, proponent: the index of the strongest one, None if there is none or it is unknown.
        near_duplicate_of: the index of a sample with almost the same image and another label, None if
            there is none, if it was not looked for, or if there is a `duplicate_of`.
        sure: whether the suggestion differs from the given label and its probability is at least `SURE`.
    """

    rank: int
    index: int
    path: str | None
    score: float
    given_label: int
    suggested_label: int
    true_label: int | None
    given_probability: float
    suggested_probability: float
    disagreement: float
    duplicate_of: int | None
    decided: Decision | None
    opponent: int | None
    proponent: int | None
    near_duplicate_of: int | None
    sure: bool


def ranked_suspects(dataset: Dataset, score: np.ndarray, per_checkpoint: PerCheckpoint, facts: Facts,
                    limit: int | None = None) -> Iterator[Suspect]:
    """The samples, most suspicious first.

    Args:
        dataset: N samples.
        score: float (N,); higher is more suspicious.
        per_checkpoint: the scores of the N samples at each checkpoint.
        facts: what else is known of the samples.
        limit: number of samples that were not decided earlier.  Up to `limit` of those that were are
            among them, and up to `limit` with the same image under two labels follow.  None for all.
    """
    order = rank(score)
    places = _shown(order, facts, len(order) if limit is None else limit)
    for columns in _columns(dataset, score, per_checkpoint, facts, order, places):
        yield from itertools.starmap(Suspect, zip(*columns.values(), strict=True))


def _columns(dataset: Dataset, score: np.ndarray, per_checkpoint: PerCheckpoint, facts: Facts,
             order: np.ndarray, places: np.ndarray) -> Iterator[dict[str, list]]:
    """The attributes of the suspects at some `places` in `order`, by name in their order.

    Yields:
        Those of up to `BLOCK` suspects at a time.
    """
    true, paths, known = dataset.true_labels, dataset.paths, facts.reasons or {}
    for start in range(0, len(places), BLOCK):
        ranks = places[start:start + BLOCK]
        indices = order[ranks]
        rows, probability = np.arange(len(ranks)), per_checkpoint.probability[indices]
        given, suggested = dataset.labels[indices, 0], probability.argmax(axis=1)
        largest, numbers = probability[rows, suggested], indices.tolist()
        explained = [known.get(index, UNEXPLAINED) for index in numbers]
        yield {"rank": (ranks + 1).tolist(), "index": numbers,
               "path": [paths and paths[index] for index in numbers],
               "score": score[indices].tolist(), "given_label": given.tolist(),
               "suggested_label": suggested.tolist(),
               "true_label": [None] * len(ranks) if true is None else true[indices, 0].tolist(),
               "given_probability": probability[rows, given].tolist(),
               "suggested_probability": largest.tolist(),
               "disagreement": (per_checkpoint.margin[indices] < 0).mean(axis=1).tolist(),
               "duplicate_of": [None if other < 0 else other
                                for other in facts.other_labels[indices].tolist()],
               "decided": [facts.decided.get(index) for index in numbers],
               "opponent": [next(iter(one.opponents), None) for one in explained],
               "proponent": [next(iter(one.proponents), None) for one in explained],
               "near_duplicate_of": [facts.near_duplicates.get(index) for index in numbers],
               "sure": ((suggested != given) & (largest >= SURE)).tolist()}


def _shown(order: np.ndarray, facts: Facts, limit: int) -> np.ndarray:
    """The places in `order` of the samples that `ranked_suspects` returns, in order."""
    decided = np.zeros(len(order), bool)
    decided[list(facts.decided)] = True
    decided, twice = decided[order], facts.other_labels[order] >= 0
    first = np.cumsum(~decided) <= limit
    first &= ~decided | (np.cumsum(decided) <= limit)
    return np.flatnonzero(first | twice & (np.cumsum(twice & ~first) <= limit))


def save_suspects(path: Path, dataset: Dataset, scores: dict[str, np.ndarray], rank_by: str,
                  per_checkpoint: PerCheckpoint, facts: Facts):
    """Write all samples, most suspicious first: the fields of `Suspect`, `rank_by`, then all scores.

    `duplicate_of` and `decided` ("relabel" or "fine") are empty where there is none.  Where the run has
    explanations there are `opponent` and `proponent`, which are paths, as `near_duplicate_of` is, or
    indices where there are no paths.  `sure` is "sure" or empty.

    Args:
        path: CSV file to write.
        dataset: N samples.
        scores: by name, float (N,); higher is more suspicious.
        rank_by: the name of the score that orders the samples.
        per_checkpoint: the scores of the N samples at each checkpoint.
        facts: what else is known of the samples.
    """
    unknown = {"path": dataset.paths, "true_label": dataset.true_labels,
               **dict.fromkeys(EXPLAINED, facts.reasons)}
    shown = [field.name for field in fields(Suspect) if unknown.get(field.name, ...) is not None]
    order = rank(scores[rank_by])
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file, \
            tqdm(total=len(order), unit="sample", leave=False, disable=None) as bar:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*shown, "ranked_by", *scores])
        for columns in _columns(dataset, scores[rank_by], per_checkpoint, facts, order,
                                np.arange(len(order))):
            indices, cells = columns["index"], _cells(dataset, columns)
            by_name = {name: score[indices].tolist() for name, score in scores.items()}
            writer.writerows(zip(*(cells[name] for name in shown), [rank_by] * len(indices),
                                 *by_name.values(), strict=True))
            bar.update(len(indices))


def _cells(dataset: Dataset, columns: dict[str, list]) -> dict[str, list]:
    """The cells of ``suspects.csv`` for the `columns` of some suspects."""
    names = [text_cell(name) for name in dataset.names]
    cells = dict(columns)
    if dataset.paths:
        cells["path"] = [text_cell(path) for path in columns["path"]]
    for name in ("given_label", "suggested_label", "true_label"):
        cells[name] = [None if label is None else names[label] for label in columns[name]]
    for name in (*EXPLAINED, "near_duplicate_of"):
        cells[name] = [None if index is None else text_cell(dataset.sample_name(index))
                       for index in columns[name]]
    cells["decided"] = [one and one.decision for one in columns["decided"]]
    cells["sure"] = ["sure" if sure else None for sure in columns["sure"]]
    return cells


def choose_corrections(run: Run, drop: float | None, relabel: float | None) -> Corrections:
    """The corrections for ``mislabel_analysis.py --drop`` or ``--relabel``.

    It prints which of the share are left alone, and why, and warns where the networks know too little.

    Args:
        run: what is corrected.
        drop, relabel: the most suspicious share to remove or to give the suggested labels; one is None.
    """
    dataset, names = run.dataset, run.dataset.names
    labels, suggested = dataset.labels[:, 0], run.probability.argmax(axis=1)
    order = rank(run.score)
    if agreement(run) < LEARNED:
        print(f"warning: the networks agree with {100 * agreement(run):.1f} % of the labels: many of "
              "the first samples are labelled right and many suggestions are wrong; review them instead",
              flush=True)
    first = order[:round((drop or relabel or 0) * len(labels))]
    if relabel is None:
        chosen = Corrections(removed=first.tolist())
    else:
        differ = first[suggested[first] != labels[first]]
        chosen = Corrections(relabelled={index: int(suggested[index]) for index in differ.tolist()})
        if len(differ) < len(first):
            print(f"--relabel {relabel:g}: {len(first) - len(differ)} of the first {len(first)} samples "
                  "are left alone: the suggestion is their label")
    chosen, kept = chosen.keep_classes(dataset, order.tolist())
    if kept:
        spared = [f"sample {index} of {names[labels[index]]!a}" for index in kept[:SPARED_SHOWN]]
        print("left alone, as the least suspicious of a class that would have no sample left: "
              + ", ".join(spared + ["..."] * (len(kept) > SPARED_SHOWN)))
    return chosen


def count_top_classes(dataset: Dataset, influence: np.ndarray) -> dict[str, np.ndarray]:
    """Number of samples per class in the tenth with the highest self-influence.

    Args:
        dataset: N samples.
        influence: float (N,).

    Returns:
        By kind of sample, integers (C,).  Classes are true labels where known, else given ones.
    """
    top = rank(influence)[:max(1, len(influence) // 10)]
    given, classes = dataset.labels[top, 0], len(dataset.names)
    if dataset.true_labels is None:
        return {"by given label": np.bincount(given, minlength=classes)}
    true = dataset.true_labels[top, 0]
    return {"wrongly labelled, by true class": np.bincount(true[given != true], minlength=classes),
            "correctly labelled": np.bincount(true[given == true], minlength=classes)}


def save_extracted(folder: Path, dataset: Dataset, score: np.ndarray):
    """Write all images as PNG into ten folders by rank; ``top_010_percent`` is the most suspicious."""
    # Class names are untrusted, and file names have at most 255 bytes.
    names = [re.sub(r"[^\w-]+", "_", name).encode()[:60].decode(errors="ignore")
             for name in dataset.names]
    with whole_folder(folder) as temporary, tqdm(total=len(score), unit="image", leave=False,
                                                 disable=None) as bar:
        for decile, members in enumerate(np.array_split(rank(score), 10), start=1):
            for index in members:
                given = dataset.labels[index, 0]
                name = f"{index:06d}"
                kind = "unknown"
                if dataset.true_labels is not None:
                    true = dataset.true_labels[index, 0]
                    name += f"_true_{names[true]}"
                    kind = "correct_label" if given == true else "incorrect_label"
                target = temporary / f"top_{decile * 10:03d}_percent" / kind
                target.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.ascontiguousarray(dataset.images[index].transpose(1, 2, 0))) \
                    .save(target / f"{name}_given_{names[given]}.png")
                bar.update()
