"""Rank the training samples by self-influence and measure how soon the mislabelled ones turn up.

    python mislabel_analysis.py --input output --output figure

The last of three steps, after train.py and calculate_score.py.
"""
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from datasets import corrections
from datasets.corrections import Corrections
from utils import cli
from utils.cli import Parser, boolean, number
from utils.files import check_folder, save_json
from utils.review import figures
from utils.review.detection import PERCENTAGES, bootstrap_intervals, detection_metrics, rank
from utils.review.page import save_review
from utils.review.rankings import AUTO, DEFAULT, RANKINGS, describe_rankings
from utils.review.run import Run, load_run
from utils.review.suspects import count_label_issues, count_top_classes, save_extracted, save_suspects

DISTRIBUTION, CURVE, METRICS = "score_distribution.png", "score_curve.png", "metrics.json"
SUSPECTS, REVIEW, DROP, RELABEL = "suspects.csv", "review.html", "drop.csv", "relabel.csv"
TOP_CLASSES, EXTRACTED = "{}_top_influence_sample.png", "extracted_samples"


@dataclass(frozen=True)
class Settings:
    """The flags of this script, by name."""

    input: Path
    output: Path
    ckpt_analysis: bool
    save_extracted: bool
    rank_by: str | None
    review: int
    drop: float | None
    relabel: float | None


def get_args(argv: Sequence[str] | None = None) -> Settings:
    parser = Parser(description=__doc__, epilog=describe_rankings())
    parser.add_argument("--input", type=Path, default=Path("output"), metavar="DIR",
                        help="folder with the files of train.py and calculate_score.py "
                             "(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("figure"), metavar="DIR",
                        help="folder for figures and tables (default: %(default)s)")
    parser.add_argument("--ckpt_analysis", type=boolean, default=False,
                        help="draw one more figure per checkpoint: the classes in its most suspicious "
                             "tenth (default: %(default)s)")
    parser.add_argument("--save_extracted", type=boolean, default=False,
                        help="write the images into ten folders, by score (default: %(default)s)")
    parser.add_argument("--rank_by", metavar="NAME",
                        help=f"ranking that orders the suspects, one of those below, or {AUTO} for the "
                             f"one that suits the run (default: {AUTO} where the true labels are "
                             f"unknown, else {DEFAULT})")
    parser.add_argument("--review", type=number(int, 0), default=1000, metavar="N",
                        help="number of suspects on the review page; 0 for no page "
                             "(default: %(default)s)")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--drop", type=number(float, 0, 1), metavar="SHARE",
                        help=f"write {DROP}: corrections that remove this most suspicious share")
    either.add_argument("--relabel", type=number(float, 0, 1), metavar="SHARE",
                        help=f"write {RELABEL}: corrections that give this most suspicious share the "
                             "suggested labels")
    args = parser.parse_args(argv)
    return Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})


def main(argv: Sequence[str] | None = None):
    settings = get_args(argv)
    check_folder(settings.output)
    run = load_run(settings.input, settings.rank_by)
    chosen = choose_corrections(run, settings.drop, settings.relabel)
    write_tables(settings, run, chosen)
    write_figures(settings, run)
    metrics = measure(run)
    report(settings.output, run, metrics)
    save_json(settings.output / METRICS, metrics)


def choose_corrections(run: Run, drop: float | None, relabel: float | None) -> Corrections:
    """The corrections for --drop or --relabel, before anything is written.

    Raises:
        UserError: a class would have no sample left.
    """
    labels, suggested = run.dataset.labels[:, 0], run.per_checkpoint.probability.argmax(axis=1)
    first = rank(run.score)[:round((drop or relabel or 0) * len(labels))].tolist()
    if relabel is None:
        chosen = Corrections(removed=first)
    else:
        chosen = Corrections(relabelled={index: int(suggested[index]) for index in first
                                         if suggested[index] != labels[index]})
    chosen.new_labels(run.dataset)
    return chosen


def write_tables(settings: Settings, run: Run, chosen: Corrections):
    """Write the suspects, the review page and the chosen corrections."""
    output = settings.output
    save_suspects(output / SUSPECTS, run.dataset, run.rankings, run.rank_by, run.per_checkpoint)
    if settings.review:
        save_review(output / REVIEW, run.dataset, run.score, run.rank_by, run.per_checkpoint,
                    settings.review)
    else:
        (output / REVIEW).unlink(missing_ok=True)  # from an earlier analysis
    if settings.drop is not None or settings.relabel is not None:
        path = output / (DROP if settings.relabel is None else RELABEL)
        corrections.save(path, run.dataset, chosen)
        print(f"{path}: {chosen.describe(run.dataset)}")


def write_figures(settings: Settings, run: Run):
    """Draw the figures that were asked for and write the images."""
    output, mislabelled = settings.output, run.mislabelled
    if mislabelled is not None and not mislabelled.any():
        mislabelled = None
    figures.score_distribution(output / DISTRIBUTION, run.rankings["tracin"], mislabelled)
    if mislabelled is None or mislabelled.all():
        (output / CURVE).unlink(missing_ok=True)  # from an earlier analysis
    else:
        on_curve = [run.rank_by, *(name for name, ranking in RANKINGS.items() if ranking.on_curve)]
        figures.score_curve(output / CURVE, {name: run.rankings[name] for name in on_curve
                                             if name in run.rankings}, mislabelled)
    for old in output.glob(TOP_CLASSES.format("*")):
        old.unlink()  # an earlier analysis may have had other checkpoints
    if settings.ckpt_analysis:
        per_checkpoint = run.per_checkpoint
        for epoch, influence in zip(per_checkpoint.epochs, per_checkpoint.influence.T, strict=True):
            figures.top_classes(output / TOP_CLASSES.format(f"{epoch:06d}"), epoch, run.dataset.names,
                                count_top_classes(run.dataset, influence))
    if settings.save_extracted:
        save_extracted(output / EXTRACTED, run.dataset, run.score)


def measure(run: Run) -> dict:
    """The content of ``metrics.json``: counts, and metrics of all rankings with 95 % intervals."""
    mislabelled, measured = run.mislabelled, {}
    if mislabelled is not None and mislabelled.any() and not mislabelled.all():
        intervals = bootstrap_intervals(run.rankings, mislabelled)
        for name, score in run.rankings.items():
            measured[name] = {**detection_metrics(score, mislabelled),
                              **{f"{metric}_interval": ends for metric, ends in intervals[name].items()}}
    return {"samples": len(run.score),
            "mislabelled": None if mislabelled is None else int(mislabelled.sum()),
            "estimated_label_issues": count_label_issues(run.per_checkpoint.probability,
                                                         run.dataset.labels),
            "scores": measured}


def report(output: Path, run: Run, metrics: dict):
    """Print the metrics and where the results are."""
    samples, mislabelled, issues = (metrics[name] for name in (
        "samples", "mislabelled", "estimated_label_issues"))
    if metrics["scores"]:
        print(f"{samples} samples, {mislabelled} mislabelled, ranked by {run.rank_by}")
        print_metrics(metrics["scores"], run.rank_by)
    else:
        kind = "true labels unknown" if mislabelled is None else f"{mislabelled or 'none'} mislabelled"
        print(f"{samples} samples, {kind}: ranked by {run.rank_by}, without metrics and curve")
    if run.reason:
        print(f"ranking {run.rank_by}: {run.reason}")
    drawn = [DISTRIBUTION, CURVE] if metrics["scores"] else [DISTRIBUTION]
    print("figures: " + ", ".join(str(output / name) for name in drawn))
    print(f"suspects, most suspicious first: {output / SUSPECTS}")
    if (output / REVIEW).exists():
        print(f"to review them, open in a browser: {output / REVIEW}")
    advice = f"; start with the first {issues}" if issues else ""
    print(f"estimated number of wrong labels (confident joint): {issues or 'none'} of {samples}{advice}")
    agreement = (run.per_checkpoint.probability.argmax(axis=1) == run.dataset.labels[:, 0]).mean()
    print(f"the networks agree with {100 * agreement:.1f} % of the labels (if this is low, they have "
          "not learned the task: train longer before trusting count or ranking)")


def print_metrics(metrics: dict[str, dict], rank_by: str):
    """Print the metrics of one ranking in words and those of all rankings in a table."""
    chosen = metrics[rank_by]
    for percentage in PERCENTAGES:
        print(f"checking {percentage} % of the samples finds {chosen[f'recall_at_{percentage}']:.3f} of "
              "the mislabelled ones")
    print(f"AUROC {chosen['auroc']:.3f}, average precision {chosen['average_precision']:.3f}")
    print(f"\n{'found at':16}" + "".join(f"{f'{percentage} %':>7}" for percentage in PERCENTAGES)
          + f"{'AUROC':>8}")
    for name, values in metrics.items():
        recalls = "".join(f"{values[f'recall_at_{percentage}']:7.3f}" for percentage in PERCENTAGES)
        print(f"{name:16}{recalls}{values['auroc']:8.3f}")
    print()


if __name__ == "__main__":
    cli.run(main)
