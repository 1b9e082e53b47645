"""Rank the training samples by self-influence, and see how soon the mislabelled ones turn up.

    python mislabel_analysis.py --input output --output figure

The last of three steps: train.py and calculate_score.py come before.
"""
import argparse
import csv
import re
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets import arrays
from datasets.arrays import Dataset
from utils import cli, figures, scores
from utils.cli import Parser, boolean
from utils.detection import detection_metrics, rank
from utils.files import save_json, whole_file, whole_folder
from utils.scores import PerCheckpoint

TOP_CLASSES = "{:06d}_top_influence_sample.png"


def get_args(argv=None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--input", type=Path, default=Path("output"), metavar="DIR",
                        help="the files of train.py and calculate_score.py (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("figure"), metavar="DIR",
                        help="where figures and tables go (default: %(default)s)")
    parser.add_argument("--ckpt_analysis", type=boolean, default=False,
                        help="one more figure a checkpoint: the classes of its top tenth "
                             "(default: %(default)s)")
    parser.add_argument("--save_extracted", type=boolean, default=False,
                        help="write the images, sorted into ten folders by score "
                             "(default: %(default)s)")
    return parser.parse_args(argv)


def main(argv=None):
    args = get_args(argv)
    dataset = arrays.load(args.input)
    score = scores.load_total(args.input, len(dataset.images))
    per_checkpoint = scores.load_per_checkpoint(args.input, score, len(dataset.names),
                                               dataset.digest())
    analyse(args, dataset, score, per_checkpoint)


def analyse(args: argparse.Namespace, dataset: Dataset, score: np.ndarray,
            per_checkpoint: PerCheckpoint):
    """Write everything that was asked for, and print the metrics."""
    mislabelled = None
    if dataset.true_labels is not None and (dataset.true_labels != dataset.labels).any():
        mislabelled = (dataset.true_labels != dataset.labels)[:, 0]
    save_suspects(args.output / "suspects.csv", dataset, score,
                  per_checkpoint.probability.argmax(axis=1))
    figures.score_distribution(args.output / "score_distribution.png", score, mislabelled)
    if args.ckpt_analysis:
        for epoch, influence in zip(per_checkpoint.epochs, per_checkpoint.influence.T):
            figures.top_classes(args.output / TOP_CLASSES.format(epoch), epoch, dataset.names,
                                count_top_classes(dataset, influence))
    if args.save_extracted:
        save_extracted(args.output / "extracted_samples", dataset, score)
    metrics = report(args.output, dataset, score, mislabelled)
    save_json(args.output / "metrics.json", metrics)


def report(output: Path, dataset: Dataset, score: np.ndarray,
           mislabelled: np.ndarray | None) -> dict:
    """Print where the results are and what they say, and draw the curve; returns the metrics."""
    count = 0 if mislabelled is None else int(mislabelled.sum())
    metrics = {"samples": len(score), "mislabelled": count, "scores": {}}
    curve = output / "score_curve.png"
    curve.unlink(missing_ok=True)  # an earlier analysis may have had one
    if dataset.true_labels is None:
        metrics["mislabelled"] = None
        print(f"{len(score)} samples, true labels unknown: ranked only, no curve")
    elif mislabelled is None:
        print(f"{len(score)} samples, none mislabelled: ranked only, no curve")
    elif mislabelled.all():
        print(f"{len(score)} samples, all mislabelled: ranked only, no curve")
    else:
        tracin = metrics["scores"]["tracin"] = detection_metrics(score, mislabelled)
        figures.score_curve(curve, score, mislabelled)
        print(f"{len(score)} samples, {count} mislabelled")
        for name, value in tracin.items():
            if name.startswith("recall_at_"):
                percentage = name.removeprefix("recall_at_")
                print(f"checking {percentage} % of the data finds {value:.3f} of the mislabelled")
        print(f"AUROC {tracin['auroc']:.3f}, average precision {tracin['average_precision']:.3f}")
    written = [output / "score_distribution.png", *([curve] if metrics["scores"] else [])]
    print("figures: " + ", ".join(map(str, written)))
    print(f"suspects, most suspicious first: {output / 'suspects.csv'}")
    return metrics


def save_suspects(path: Path, dataset: Dataset, score: np.ndarray, suggested: np.ndarray):
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


def count_top_classes(dataset: Dataset, influence: np.ndarray) -> dict[str, np.ndarray]:
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


def save_extracted(folder: Path, dataset: Dataset, score: np.ndarray):
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


if __name__ == "__main__":
    cli.run(main)
