"""The review page: one HTML file that needs neither network nor server."""
import base64
import io
import os
import re
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from datasets.arrays import Dataset
from datasets.corrections import COLUMNS, DECISIONS, DIGEST_PREFIX, digest_text
from datasets.duplicates import copy_numbers
from utils.files import save_text
from utils.review.suspects import Facts, Suspect, ranked_suspects
from utils.tracin.scores import PerCheckpoint

TEMPLATE = "page.html"
CHECK = 4  # how many digits of every sample's digest the page has, for those that it does not show
DOWNLOAD = "corrections.csv"
LONGEST_NAME = 60  # characters of a download's name


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
                per_checkpoint: PerCheckpoint, limit: int, facts: Facts, *, likely: int | None = None,
                reason: str = "", next_command: str = "", download: str = DOWNLOAD):
    """Write the page with the first suspects.

    Args:
        path: HTML file to write.
        dataset: N samples.
        score: float (N,); higher is more suspicious.
        rank_by: the score's name.
        per_checkpoint: the scores of the N samples at each checkpoint.
        limit: number of suspects that were not decided earlier; see `ranked_suspects`.
        facts: what else is known of the samples.
        likely: number of wrong labels by estimate, often too low, which a line marks in the order of
            rank; None for no line.
        reason: why the samples are ranked by this score, if there is something to say.
        next_command: what to run with the corrections, if there is something to say.
        download: file name of the corrections; see `download_name`.
    """
    copies = copy_numbers(facts.digests, dataset.labels)
    suspects = [_entry(suspect, dataset, facts, int(copies[suspect.index]))
                for suspect in ranked_suspects(dataset, score, per_checkpoint, facts, limit)]
    # Class and file names are untrusted: autoescape protects the page, tojson the script.
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent),
                                     autoescape=True, undefined=jinja2.StrictUndefined)
    start = len(DIGEST_PREFIX)
    twice = len(np.unique(facts.digests[facts.other_labels >= 0]))
    data = {
        "suspects": suspects, "names": dataset.names, "run": dataset.digest(),
        "samples": len(dataset.images), "columns": COLUMNS, "kinds": DECISIONS,
        "checkpoints": len(per_checkpoint.epochs), "likely": likely, "nextCommand": next_command,
        "download": download,
        "applied": [[one.image_sha256, one.given_label, one.decision, one.new_label]
                    for one in facts.applied],
        "checks": {"length": CHECK, "start": start, "labels": dataset.labels[:, 0].tolist(),
                   "digits": "".join(digest_text(digest)[start:start + CHECK]
                                     for digest in facts.digests)}}
    save_text(path, environment.get_template(TEMPLATE).render(
        rank_by=rank_by, reason=reason, twice=twice, data=data))


def _entry(suspect: Suspect, dataset: Dataset, facts: Facts, copy: int) -> dict:
    """A suspect as the page's script knows it."""
    twin, decided = suspect.duplicate_of, suspect.decided
    return {**vars(suspect), "image_sha256": digest_text(facts.digests[suspect.index]), "copy": copy,
            "image": _png(dataset.images[suspect.index]),
            "decided": decided and {"decision": decided.decision, "given_label": decided.given_label,
                                    "new_label": decided.new_label},
            "twin": None if twin is None else {
                "index": twin, "path": dataset.paths[twin] if dataset.paths else None,
                "given_label": int(dataset.labels[twin, 0])}}


def _png(image: np.ndarray) -> str:
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()
