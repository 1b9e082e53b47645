"""Rank the training samples by self-influence, and see how soon the mislabelled ones turn up.

    python mislabel_analysis.py --input output --output figure

The last of three steps: train.py and calculate_score.py come before.
"""
import argparse
from pathlib import Path

import numpy as np

from datasets import arrays, corrections
from datasets.arrays import Dataset
from datasets.corrections import Corrections
from utils import cli
from utils.cli import Parser, boolean, number
from utils.errors import UserError
from utils.files import check_folder, save_json
from utils.review import figures
from utils.review.detection import PERCENTAGES, bootstrap_intervals, detection_metrics, rank
from utils.review.page import save_review
from utils.review.rankings import BASELINES, rankings
from utils.review.suspects import count_label_issues, count_top_classes, save_extracted, save_suspects
from utils.tracin import scores
from utils.tracin.scores import PerCheckpoint
from utils.training import dynamics

REVIEW, DROP, RELABEL = "review.html", "drop.csv", "relabel.csv"
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
    parser.add_argument("--rank_by", metavar="NAME", default="tracin",
                        help="the score that orders the suspects, such as loss or aum; the README "
                             "lists them (default: %(default)s)")
    parser.add_argument("--review", type=number(int, 0), default=1000, metavar="N",
                        help="the first N suspects go on the page to review them on; 0 for no page "
                             "(default: %(default)s)")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--drop", type=number(float, 0, 1), metavar="SHARE",
                        help="write drop.csv, corrections that remove this share, the most suspicious")
    either.add_argument("--relabel", type=number(float, 0, 1), metavar="SHARE",
                        help="write relabel.csv, corrections that give this share the suggested labels")
    return parser.parse_args(argv)


def main(argv=None):
    args = get_args(argv)
    check_folder(args.output)
    dataset = arrays.load(args.input)
    score = scores.load_total(args.input, len(dataset.images))
    per_checkpoint = scores.load_per_checkpoint(args.input, score, len(dataset.names),
                                               dataset.digest())
    scores_by_name = rankings(score, per_checkpoint, dataset.labels,
                              dynamics.load(args.input, str(per_checkpoint.run_sha256)))
    if args.rank_by not in scores_by_name:
        raise UserError(f"expected --rank_by one of {', '.join(scores_by_name)}, which this run has; "
                        f"found {args.rank_by}")
    analyse(args, dataset, scores_by_name, per_checkpoint)


def analyse(args: argparse.Namespace, dataset: Dataset, scores_by_name: dict[str, np.ndarray],
            per_checkpoint: PerCheckpoint):
    """Write everything that was asked for, and print the metrics."""
    mislabelled = None
    if dataset.true_labels is not None and (dataset.true_labels != dataset.labels).any():
        mislabelled = (dataset.true_labels != dataset.labels)[:, 0]
    chosen = choose_corrections(args, dataset, scores_by_name[args.rank_by], per_checkpoint.probability)
    save_suspects(args.output / "suspects.csv", dataset, scores_by_name, args.rank_by, per_checkpoint)
    figures.score_distribution(args.output / "score_distribution.png", scores_by_name["tracin"],
                               mislabelled)
    save_what_to_correct(args, dataset, scores_by_name[args.rank_by], per_checkpoint, chosen)
    for old in args.output.glob(TOP_CLASSES.replace("{:06d}", "*")):
        old.unlink()  # an earlier analysis may have had other checkpoints
    if args.ckpt_analysis:
        for epoch, influence in zip(per_checkpoint.epochs, per_checkpoint.influence.T):
            figures.top_classes(args.output / TOP_CLASSES.format(epoch), epoch, dataset.names,
                                count_top_classes(dataset, influence))
    if args.save_extracted:
        save_extracted(args.output / "extracted_samples", dataset, scores_by_name[args.rank_by])
    save_json(args.output / "metrics.json", report(args.output, dataset, scores_by_name, args.rank_by,
                                                   mislabelled, per_checkpoint.probability))


def choose_corrections(args: argparse.Namespace, dataset: Dataset, score: np.ndarray,
                       probability: np.ndarray) -> Corrections:
    """What --drop or --relabel asks for.

    Raises:
        UserError: a class would have no sample left.
    """
    first = rank(score)[:round((args.drop or args.relabel or 0) * len(score))].tolist()
    if args.relabel is None:
        chosen = Corrections(removed=first)
    else:
        suggested = probability.argmax(axis=1)
        chosen = Corrections(relabelled={index: int(suggested[index]) for index in first
                                         if suggested[index] != dataset.labels[index, 0]})
    chosen.new_labels(dataset)
    return chosen


def save_what_to_correct(args: argparse.Namespace, dataset: Dataset, score: np.ndarray,
                         per_checkpoint: PerCheckpoint, chosen: Corrections):
    """Write the page to review, and the corrections that need no review."""
    page = args.output / REVIEW
    if args.review:
        save_review(page, dataset, score, args.rank_by, per_checkpoint, args.review)
    else:
        page.unlink(missing_ok=True)  # an earlier analysis may have had one
    if args.drop is not None or args.relabel is not None:
        path = args.output / (DROP if args.relabel is None else RELABEL)
        corrections.save(path, dataset, chosen)
        print(f"{path}: {chosen.describe(dataset)}")


def report(output: Path, dataset: Dataset, scores_by_name: dict[str, np.ndarray],
           rank_by: str, mislabelled: np.ndarray | None, probability: np.ndarray) -> dict:
    """Print where the results are and what they say, and draw the curve; returns the metrics."""
    issues = count_label_issues(probability, dataset.labels)
    agreement = (probability.argmax(axis=1) == dataset.labels[:, 0]).mean()
    samples, count = len(dataset.labels), 0 if mislabelled is None else int(mislabelled.sum())
    metrics = {"samples": samples, "mislabelled": count, "estimated_label_issues": issues, "scores": {}}
    curve = output / "score_curve.png"
    curve.unlink(missing_ok=True)  # an earlier analysis may have had one
    if dataset.true_labels is None:
        metrics["mislabelled"] = None
        print(f"{samples} samples, true labels unknown: ranked only, no curve")
    elif mislabelled is None:
        print(f"{samples} samples, none mislabelled: ranked only, no curve")
    elif mislabelled.all():
        print(f"{samples} samples, all mislabelled: ranked only, no curve")
    else:
        metrics["scores"] = measure(scores_by_name, mislabelled)
        figures.score_curve(curve, {name: scores_by_name[name]
                                    for name in (rank_by, "tracin", *BASELINES)
                                    if name in scores_by_name}, mislabelled)
        print(f"{samples} samples, {count} mislabelled, ranked by {rank_by}")
        print_metrics(metrics["scores"], rank_by)
    written = [output / "score_distribution.png", *([curve] if metrics["scores"] else [])]
    print("figures: " + ", ".join(map(str, written)))
    print(f"suspects, most suspicious first: {output / 'suspects.csv'}")
    if (output / REVIEW).exists():
        print(f"to review them, open in a browser: {output / REVIEW}")
    print(f"labels likely wrong, by the confident joint: {issues or 'none'} of {samples}"
          + f"; start with the first {issues}" * bool(issues))
    print(f"the networks agree with {agreement:.1%} of the labels; where that is little they have not "
          "learned the task, and neither count nor ranking is worth much: train longer")
    return metrics


def measure(scores_by_name: dict[str, np.ndarray], mislabelled: np.ndarray) -> dict[str, dict]:
    """The metrics of every score, with their 95 % intervals."""
    intervals = bootstrap_intervals(scores_by_name, mislabelled)
    return {name: {**detection_metrics(score, mislabelled),
                   **{f"{metric}_interval": ends for metric, ends in intervals[name].items()}}
            for name, score in scores_by_name.items()}


def print_metrics(metrics: dict[str, dict], rank_by: str):
    """Print what the ranking finds in words, and all scores in a table."""
    chosen = metrics[rank_by]
    for percentage in PERCENTAGES:
        print(f"checking {percentage} % of the data finds {chosen[f'recall_at_{percentage}']:.3f} of "
              "the mislabelled")
    print(f"AUROC {chosen['auroc']:.3f}, average precision {chosen['average_precision']:.3f}")
    print(f"\n{'found at':16}" + "".join(f"{f'{percentage} %':>7}" for percentage in PERCENTAGES)
          + f"{'AUROC':>8}")
    for name, values in metrics.items():
        recalls = "".join(f"{values[f'recall_at_{percentage}']:7.3f}" for percentage in PERCENTAGES)
        print(f"{name:16}{recalls}{values['auroc']:8.3f}")
    print()


if __name__ == "__main__":
    cli.run(main)
