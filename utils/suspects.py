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


def save_suspects(path: Path, dataset: "Dataset", score: np.ndarray, suggested: np.ndarray):
    """Write all samples, most suspicious first; `suggested` (N,) holds a label for each."""
    known = dataset.true_labels is not None
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["rank", "index", "score", "given_label", "suggested_label"]
                        + ["true_label"] * known)
        for place, index in enumerate(rank(score), start=1):
            labels = [dataset.labels[index, 0], suggested[index]]
            labels += [dataset.true_labels[index, 0]] if known else []
            writer.writerow([place, index, float(score[index])]
                            + [dataset.names[label] for label in labels])


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
