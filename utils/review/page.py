"""The page on which a person reviews the suspects: one file, without network or server."""
import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import numpy as np
from PIL import Image

from datasets.corrections import COLUMNS, sample_digest
from utils.files import save_text
from utils.review.detection import rank

if TYPE_CHECKING:
    from datasets.arrays import Dataset
    from utils.tracin.scores import PerCheckpoint

TEMPLATE = "page.html"


def save_review(path: Path, dataset: "Dataset", score: np.ndarray, rank_by: str,
                per_checkpoint: "PerCheckpoint", limit: int):
    """Write the page with the first `limit` suspects.

    Args:
        path: HTML file to write.
        dataset: with N samples.
        score: float (N,); higher is more suspicious.
        rank_by: what the score is called.
        per_checkpoint: what the checkpoints said of the N samples.
        limit: how many suspects.
    """
    suspects = []
    for place, index in enumerate(rank(score)[:limit].tolist(), start=1):
        probability, given = per_checkpoint.probability[index], int(dataset.labels[index, 0])
        suspects.append({
            "rank": place, "index": index, "path": dataset.paths and dataset.paths[index],
            "score": float(score[index]), "given": given, "suggested": int(probability.argmax()),
            "given_probability": float(probability[given]),
            "suggested_probability": float(probability.max()),
            "disagreement": float((per_checkpoint.margin[index] < 0).mean()),
            "sha256": sample_digest(dataset, index), "image": _png(dataset.images[index])})
    # Class and file names come from anyone: autoescape for the page, tojson for the script.
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent),
                                     autoescape=True, undefined=jinja2.StrictUndefined)
    save_text(path, environment.get_template(TEMPLATE).render(
        suspects=suspects, names=dataset.names, rank_by=rank_by, samples=len(dataset.images),
        run=dataset.digest(), columns=COLUMNS))


def _png(image: np.ndarray) -> str:
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()
