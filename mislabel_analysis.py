"""Rank the training samples by self-influence, and see how soon the mislabelled ones turn up.

    python mislabel_analysis.py --input output --output figure

The last of three steps: train.py and calculate_score.py come before.
"""
import argparse
from pathlib import Path

import numpy as np

from datasets import arrays
from datasets.arrays import Dataset
from utils import cli, figures, scores
from utils.cli import Parser, boolean
from utils.detection import detection_metrics
from utils.files import check_folder, save_json
from utils.scores import PerCheckpoint
from utils.suspects import count_top_classes, save_extracted, save_suspects

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
    check_folder(args.output)
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
    for old in args.output.glob(TOP_CLASSES.replace("{:06d}", "*")):
        old.unlink()  # an earlier analysis may have had other checkpoints
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


if __name__ == "__main__":
    cli.run(main)
