"""Rank the training samples by self-influence and measure how soon the mislabelled ones turn up.

    python mislabel_analysis.py --input output --output figure

The last of three steps, after train.py and calculate_score.py.
"""
import itertools
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from datasets import arrays, corrections
from datasets.arrays import Dataset
from datasets.corrections import Corrections
from datasets.export import add_export_flags, export
from datasets.flags import check_outside
from utils import cli
from utils.cli import Boolean, Parser, number
from utils.errors import UserError
from utils.files import check_folder, save_json
from utils.review import figures
from utils.review.detection import rank
from utils.review.errors_page import load_explained, save_errors
from utils.review.estimate import Estimate, estimate
from utils.review.page import download_name, save_review
from utils.review.rankings import AUTO, DEFAULT, RANKINGS, describe_rankings
from utils.review.report import (
    CURVE,
    DISTRIBUTION,
    DROP,
    METRICS,
    RELABEL,
    REVIEW,
    SUSPECTS,
    measure,
    print_report,
)
from utils.review.run import Run, load_run
from utils.review.suspects import (
    Facts,
    choose_corrections,
    count_top_classes,
    gather_facts,
    save_extracted,
    save_suspects,
)

EXPORT_FLAGS = {"run", "input", "dataset", "export", "corrections"}
LOOKED_AT = 1000  # suspects whose near-duplicates are looked for, at least
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
    dataset: Path | None
    export: Path | None
    corrections: Path | None


def get_args(argv: Sequence[str] | None = None) -> Settings:
    parser = Parser(description=__doc__, epilog=describe_rankings())
    review = parser.group("ranking and review")
    review.add_argument("--rank_by", metavar="NAME",
                        help=f"ranking that orders the suspects, one of those below, or {AUTO} for the "
                             f"one that suits the run (default: {AUTO} where the true labels are "
                             f"unknown, else {DEFAULT})")
    review.add_argument("--review", type=number(int, 0), default=1000, metavar="N",
                        help="number of suspects on the review page; 0 for no page "
                             "(default: %(default)s)")
    either = review.add_mutually_exclusive_group()
    either.add_argument("--drop", type=number(float, 0, 1), metavar="SHARE",
                        help=f"write {DROP}: corrections that remove this most suspicious share")
    either.add_argument("--relabel", type=number(float, 0, 1), metavar="SHARE",
                        help=f"write {RELABEL}: corrections that give this most suspicious share the "
                             "suggested labels")
    pictures = parser.group("figures")
    pictures.add_argument("--ckpt_analysis", action=Boolean, default=False,
                          help="draw one more figure per checkpoint: the classes in its most "
                               "suspicious tenth (default: %(default)s)")
    pictures.add_argument("--save_extracted", action=Boolean, default=False,
                          help="write the images into ten folders, by score (default: %(default)s)")
    add_export_flags(parser)
    parser.add_run_flag({"input": ".", "output": "report"},
                        "the folder of the run: --input, with --output in its folder report, unless "
                        "they are given")
    files = parser.group("files")
    files.add_argument("--input", type=Path, default=Path("output"), metavar="DIR",
                       help="folder with the files of train.py and calculate_score.py "
                            "(default: %(default)s)")
    files.add_argument("--output", type=Path, default=Path("figure"), metavar="DIR",
                       help="folder for figures and tables (default: %(default)s)")
    files.add_argument("--dataset", type=Path, metavar="PATH",
                       help="your own images, if they have moved since training")
    args = parser.parse_args(argv)
    others = sorted(args.given - EXPORT_FLAGS)
    if args.export and others:
        raise UserError(f"--export writes the corrected set and nothing else, found --{others[0]}; "
                        "leave one of them out")
    return Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})


def main(argv: Sequence[str] | None = None):
    settings = get_args(argv)
    if settings.export or settings.corrections:
        export_corrected(settings)
        return
    check_folder(settings.output)
    run = load_run(settings.input, settings.rank_by)
    run = replace(run, dataset=moved(settings, run.dataset))
    if run.dataset.source:
        check_outside(run.dataset.source, settings.output)
    facts = gather_facts(run.dataset, corrections.load_applied(settings.input), run.explanations,
                         rank(run.score)[:max(settings.review, LOOKED_AT)])
    explained = load_explained(settings.input, run)
    estimated = estimate(run.out_of_fold, run.dataset.labels)
    metrics = measure(run, estimated)
    write_tables(settings, run, facts, estimated)
    save_errors(settings.output, run, explained)
    write_figures(settings, run)
    print_report(settings.output, run, metrics, estimated)
    save_json(settings.output / METRICS, metrics)
    if settings.drop is not None or settings.relabel is not None:
        print(f"next: {training_command(settings)}")
    elif settings.review:
        print(f"next, after the review: {training_command(settings)}")
        print(f"or write the corrected set: {export_command(settings)}")


def moved(settings: Settings, dataset: Dataset) -> Dataset:
    """The data, with their source where --dataset says that it is now.

    Raises:
        UserError: there is nothing.
    """
    if settings.dataset and not os.path.exists(settings.dataset):
        raise UserError(f"expected the images that were trained on at --dataset {settings.dataset}, "
                        "found nothing; give the folder, .csv or .npz, where it is now")
    return replace(dataset, source=settings.dataset) if settings.dataset else dataset


def export_corrected(settings: Settings):
    """Write the corrected set.

    Raises:
        UserError: --corrections stands alone.
    """
    if settings.export is None:
        raise UserError("--corrections says what --export writes, found no --export; add it, or, to "
                        f"train on the corrections: {training_command(settings)}")
    dataset = moved(settings, arrays.load(settings.input))
    decided = corrections.load(settings.corrections, dataset) if settings.corrections else Corrections()
    applied = corrections.load_applied(settings.input)
    for line in export(settings.export, dataset, applied, decided):
        print(line)


def training_command(settings: Settings) -> str:
    """The command that trains on the corrected data, in a folder that is not there yet."""
    folder = settings.input if settings.input.name else settings.input.resolve()
    first = folder.with_name(re.sub(r"_\d+$", "", folder.name))
    start = first if first.name and first.is_dir() else folder  # the run whose rounds these are
    following = next(f"{start}_{number}" for number in itertools.count(2)
                     if not Path(f"{start}_{number}").exists())
    command = cli.other_script("train.py", "--run", following, "--input", settings.input,
                               "--corrections")
    if settings.corrections:
        return f"{command} {shlex.quote(str(settings.corrections))}"
    if settings.drop is None and settings.relabel is None:
        return f"{command} ~/Downloads/{download_name(settings.input)}"
    path = settings.output / (DROP if settings.relabel is None else RELABEL)
    return f"{command} {shlex.quote(str(path))}"


def export_command(settings: Settings) -> str:
    """The command that writes the corrected set to a folder beside the run's."""
    folder = settings.input if settings.input.name else settings.input.resolve()
    where = ["--dataset", settings.dataset] if settings.dataset else []
    command = cli.other_script("mislabel_analysis.py", "--run", settings.input, *where, "--export",
                               folder.with_name(f"{folder.name}_corrected"), "--corrections")
    return f"{command} ~/Downloads/{download_name(settings.input)}"


def write_tables(settings: Settings, run: Run, facts: Facts, estimated: Estimate | None):
    """Write the suspects, the review page and the corrections for --drop or --relabel."""
    output, twice = settings.output, int((facts.other_labels >= 0).sum())
    save_suspects(output / SUSPECTS, run.dataset, run.rankings, run.rank_by, run.judged, facts)
    if twice:
        print(f"{twice} samples have the same image as one with another label: see duplicate_of in "
              f"{output / SUSPECTS}")
    if settings.review:
        save_review(output / REVIEW, run.dataset, run.score, run.rank_by, run.judged,
                    settings.review, facts, estimated=estimated, reason=run.reason,
                    download=download_name(settings.input), files=run.dataset.files(),
                    margins=run.margins,
                    next_command=training_command(replace(settings, drop=None, relabel=None)))
    else:
        (output / REVIEW).unlink(missing_ok=True)  # from an earlier analysis
    if settings.drop is not None or settings.relabel is not None:
        chosen = choose_corrections(run, settings.drop, settings.relabel)
        path = output / (DROP if settings.relabel is None else RELABEL)
        corrections.save(path, run.dataset, chosen)
        print(f"{path}: {chosen.describe(run.dataset)}")


def write_figures(settings: Settings, run: Run):
    """Draw the figures that were asked for and write the images."""
    output, mislabelled = settings.output, run.mislabelled
    if mislabelled is not None and not mislabelled.any():
        mislabelled = None
    figures.score_distribution(output / DISTRIBUTION, run.score, mislabelled, run.rank_by)
    if mislabelled is None or mislabelled.all():
        figures.remove(output, CURVE)  # from an earlier analysis
    else:
        on_curve = [run.rank_by, *(name for name, ranking in RANKINGS.items() if ranking.on_curve)]
        figures.score_curve(output / CURVE, {name: run.rankings[name] for name in on_curve
                                             if name in run.rankings}, mislabelled)
    figures.remove(output, TOP_CLASSES.format("*"))  # an earlier analysis may have had other checkpoints
    if settings.ckpt_analysis:
        dataset, per_checkpoint = run.dataset, run.per_checkpoint
        classes = dataset.labels if dataset.true_labels is None else dataset.true_labels
        totals = np.bincount(classes[:, 0], minlength=len(dataset.names))
        for epoch, influence in zip(per_checkpoint.epochs, per_checkpoint.influence.T, strict=True):
            figures.top_classes(output / TOP_CLASSES.format(f"{epoch:06d}"), epoch, dataset.names,
                                count_top_classes(dataset, influence), totals)
    if settings.save_extracted:
        save_extracted(output / EXTRACTED, run.dataset, run.score)


if __name__ == "__main__":
    cli.run(main, led=True)
