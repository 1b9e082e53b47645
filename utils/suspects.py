"""The ranked samples, as a table, as counts and as images."""
import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tqdm import tqdm

from utils.detection import rank
from utils.files import whole_file, whole_folder

if TYPE_CHECKING:
    from datasets.arrays import Dataset


def save_suspects(path: Path, dataset: "Dataset", scores: dict[str, np.ndarray], rank_by: str,
                  suggested: np.ndarray):
    """Write all samples, most suspicious first.

    Args:
        path: CSV file to write.
        dataset: with N samples.
        scores: by name, float (N,); higher is more suspicious.
        rank_by: the name of the one that orders the samples, called ``score`` in the table too.
        suggested: a label for each sample, (N,).
    """
    known = dataset.true_labels is not None
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["rank", "index", "score", "given_label", "suggested_label"]
                        + ["true_label"] * known + list(scores))
        for place, index in enumerate(rank(scores[rank_by]), start=1):
            labels = [dataset.labels[index, 0], suggested[index]]
            labels += [dataset.true_labels[index, 0]] if known else []
            writer.writerow([place, index, float(scores[rank_by][index])]
                            + [dataset.names[label] for label in labels]
                            + [float(score[index]) for score in scores.values()])


def count_top_classes(dataset: "Dataset", influence: np.ndarray) -> dict[str, np.ndarray]:
    """Samples of each class (C,) in the tenth with the highest `influence` (N,), by what they are.

    Classes are the true ones where those are known, else the given ones.
    """
    top = rank(influence)[:max(1, len(influence) // 10)]
    given, classes = dataset.labels[top, 0], len(dataset.names)
    if dataset.true_labels is None:
        return {"by given label": np.bincount(given, minlength=classes)}
    true = dataset.true_labels[top, 0]
    return {"wrongly labelled, by true class": np.bincount(true[given != true], minlength=classes),
            "correctly labelled": np.bincount(true[given == true], minlength=classes)}


def save_extracted(folder: Path, dataset: "Dataset", score: np.ndarray):
    """Write every image as PNG, sorted into ten folders, ``top_010_percent`` the most suspicious."""
    # Class names come from anyone, and file names end at 255 bytes.
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
