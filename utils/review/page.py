"""The review page: one HTML file that needs neither network nor server."""
import base64
import io
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from datasets.arrays import Dataset
from datasets.corrections import COLUMNS, sample_digest
from utils.files import save_text
from utils.review.suspects import ranked_suspects
from utils.tracin.scores import PerCheckpoint

TEMPLATE = "page.html"


def save_review(path: Path, dataset: Dataset, score: np.ndarray, rank_by: str,
                per_checkpoint: PerCheckpoint, limit: int):
    """Write the page with the first `limit` suspects.

    Args:
        path: HTML file to write.
        dataset: N samples.
        score: float (N,); higher is more suspicious.
        rank_by: the score's name.
        per_checkpoint: the scores of the N samples at each checkpoint.
        limit: number of suspects.
    """
    suspects = [{**vars(suspect), "image_sha256": sample_digest(dataset, suspect.index),
                 "image": _png(dataset.images[suspect.index])}
                for suspect in ranked_suspects(dataset, score, per_checkpoint, limit)]
    # Class and file names are untrusted: autoescape protects the page, tojson the script.
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent),
                                     autoescape=True, undefined=jinja2.StrictUndefined)
    save_text(path, environment.get_template(TEMPLATE).render(
        suspects=suspects, names=dataset.names, rank_by=rank_by, samples=len(dataset.images),
        run=dataset.digest(), columns=COLUMNS))


def _png(image: np.ndarray) -> str:
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()
