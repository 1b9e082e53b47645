"""The review page: one HTML file that needs neither network nor server."""
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.arrays import Dataset
from datasets.corrections import COLUMNS, DECISIONS, DIGEST_PREFIX, digest_text
from datasets.duplicates import copy_numbers
from utils.review.estimate import Estimate
from utils.review.html import save_html
from utils.review.photos import page_pictures, page_thumbnails
from utils.review.suspects import SURE, Facts, Suspect, ranked_suspects
from utils.tracin.scores import PerCheckpoint

TEMPLATE = "page.html"
CHECK = 4  # how many digits of every sample's digest the page has, for those that it does not show
DOWNLOAD = "corrections.csv"
LONGEST_NAME = 60  # characters of a download's name
POINTS = 60  # of the line of margins, at most


def download_name(run: Path) -> str:
    """The name under which the page of a run saves its corrections: ``<folder>_corrections.csv``.

    Args:
        run: folder of the run.

    Returns:
        A file name of at most 60 ASCII letters, digits, ``_``, ``-`` and ``.``, which needs no quotes.
        A long folder's name keeps its end, where the number of the round is.
    """
    folder = re.sub(r"[^A-Za-z0-9_.-]", "_", Path(os.path.abspath(run)).name)
    folder = folder[-(LONGEST_NAME - len(DOWNLOAD) - 1):].lstrip(".-")
    return f"{folder}_{DOWNLOAD}" if folder else DOWNLOAD


def save_review(path: Path, dataset: Dataset, score: np.ndarray, rank_by: str,
                per_checkpoint: PerCheckpoint, limit: int, facts: Facts, *,
                estimated: Estimate | None = None, reason: str = "", next_command: str = "",
                download: str = DOWNLOAD, files: Sequence[Path] | None = None,
                margins: np.ndarray | None = None):
    """Write the page with the first suspects.

    Args:
        path: HTML file to write.
        dataset: N samples.
        score: float (N,); higher is more suspicious.
        rank_by: the score's name.
        per_checkpoint: the scores of the N samples at each checkpoint.
        limit: number of suspects that were not decided earlier; see `ranked_suspects`.
        facts: what else is known of the samples.
        estimated: the number of wrong labels, which a line marks in the order of rank; None for no line.
        reason: why the samples are ranked by this score, if there is something to say.
        next_command: what to run with the corrections, if there is something to say.
        download: file name of the corrections; see `download_name`.
        files: where the N original files should be, None if there are none; see `page_pictures`.
        margins: of the N samples in E epochs, float (N, E), NaN where unknown; None if there are none.
    """
    copies = copy_numbers(facts.digests, dataset.labels)
    ranked = list(ranked_suspects(dataset, score, per_checkpoint, facts, limit))
    pictures = page_pictures(dataset.images, [suspect.index for suspect in ranked], files)
    suspects = [{**_entry(suspect, dataset, facts), "copy": int(copies[suspect.index]),
                 "picture": picture, "margins": [] if margins is None else _line(margins[suspect.index])}
                for suspect, picture in zip(ranked, pictures, strict=True)]
    digits = facts.digests.astype(">u8").tobytes().hex().encode()
    twice = len(np.unique(facts.digests[facts.other_labels >= 0]))
    data = {
        "suspects": suspects, "named": _named(ranked, dataset, facts, files, pictures),
        "explained": facts.reasons is not None, "names": dataset.names, "run": dataset.digest(),
        "samples": len(dataset.images), "columns": COLUMNS, "kinds": DECISIONS,
        "checkpoints": len(per_checkpoint.epochs), "sureFrom": SURE,
        "estimated": estimated and vars(estimated),
        "nextCommand": next_command, "download": download,
        "applied": [[one.image_sha256, one.given_label, one.decision, one.new_label]
                    for one in facts.applied],
        "checks": {"length": CHECK, "start": len(DIGEST_PREFIX), "labels": dataset.labels[:, 0].tolist(),
                   "digits": np.frombuffer(digits, "S16").astype(f"S{CHECK}").tobytes().decode()}}
    save_html(path, TEMPLATE, rank_by=rank_by, reason=reason, twice=twice, data=data)


def _entry(suspect: Suspect, dataset: Dataset, facts: Facts) -> dict:
    """What is known of a suspect, as the page's script knows it."""
    twin, decided = suspect.duplicate_of, suspect.decided
    known = (facts.reasons or {}).get(suspect.index)
    return {**vars(suspect), "reasons": known and vars(known),
            "image_sha256": digest_text(facts.digests[suspect.index]),
            "decided": decided and {"decision": decided.decision, "given_label": decided.given_label,
                                    "new_label": decided.new_label},
            "twin": None if twin is None else {
                "index": twin, "path": dataset.paths[twin] if dataset.paths else None,
                "given_label": int(dataset.labels[twin, 0])}}


def _named(suspects: Sequence[Suspect], dataset: Dataset, facts: Facts, files: Sequence[Path] | None,
           pictures: Sequence[str]) -> dict[int, dict]:
    """By index, the samples that are no suspects themselves and speak for or against one.

    The arguments are those of `save_review`; `pictures` has those of the suspects.
    """
    known = facts.reasons or {}
    reasons = [known[suspect.index] for suspect in suspects if suspect.index in known]
    named = {index for one in reasons for index in (*one.opponents, *one.proponents)}
    named |= {one.near_duplicate_of for one in suspects if one.near_duplicate_of is not None}
    others = sorted(named - {suspect.index for suspect in suspects})
    thumbnails = page_thumbnails(dataset.images, others, files, pictures)
    return {index: {"path": dataset.paths[index] if dataset.paths else None,
                    "given_label": int(dataset.labels[index, 0]), "picture": picture}
            for index, picture in zip(others, thumbnails, strict=True)}


def _line(margins: np.ndarray) -> list[float]:
    """Margins (E,) as at most `POINTS` values; none if one of them is unknown.

    They are means of neighbouring epochs, but the first and the last are those of one epoch.
    """
    values = margins.astype(np.float64)
    if not np.isfinite(values).all():
        return []
    parts = np.array_split(values, min(POINTS, len(values)))
    means = [values[0], *(part.mean() for part in parts[1:-1]), values[-1]] if len(parts) > 1 else values
    return [round(float(value), 2) for value in means]
