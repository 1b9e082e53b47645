"""The run on all of CIFAR-10: its rankings in a small file, and figures and metrics from that.

    python -m tests.benchmarks.headline keep RUN
    python -m tests.benchmarks.headline
    python -m tests.benchmarks.headline draw tests/benchmarks/cifar10_136_epochs.npz --output DIR

``make headline`` makes the run and ends with the first two.  The second takes the longest run that was
kept.  README.md beside this file says how each was made.
"""
import argparse
import io
import sys
from pathlib import Path

import numpy as np

from tests.benchmarks.tables import ALL_LAYERS, METRICS, TRACIN_ALL_LAYERS, markdown
from utils import cli
from utils.errors import UserError
from utils.files import open_npz, save_bytes
from utils.review import figures
from utils.review.detection import bootstrap_intervals, detection_metrics
from utils.review.run import load_run
from utils.tracin.scores import load_total

HERE = Path(__file__).parent
FIGURES = HERE.parent.parent / "figure"
NAME = "cifar10_{}_epochs.npz"
LARGEST = 2_000_000  # bytes
SHOWN = ("tracin", "consensus", "aum", "loss")
# In the kept files beside the rankings.
OTHERS = {"labels", "true", "predicted", "test_error"}
NNABLA = ["NNabla's example, read off its figure (270 epochs)", "0.816", "0.967", "0.990", "0.982"]


def keep(run_folder: Path, output: Path) -> Path:
    """Write what figures and metrics need of a run; returns the file.

    It has ``labels`` and ``true``, uint8 (N, 1), ``test_error``, ``tracin``, float32 (N,), and by name
    every other ranking, uint16 (N,): equal where its scores are, and larger where they are, so that
    metrics stay exactly the same.

    Raises:
        UserError: the run lacks its true labels or scores by all layers, or has more than 256 classes.
    """
    run = load_run(run_folder)
    if run.dataset.true_labels is None or len(run.dataset.names) > 256:
        raise UserError(f"expected a run of a known set with at most 256 classes in {run_folder}, found "
                        f"another of {len(run.dataset.names)} classes; give that of make headline")
    rankings = run.rankings | {TRACIN_ALL_LAYERS: load_total(run_folder / ALL_LAYERS,
                                                             len(run.dataset.labels))}
    content = {name: np.unique(score, return_inverse=True)[1].astype(np.min_scalar_type(len(score)))
               for name, score in rankings.items()}
    content["tracin"] = rankings["tracin"].astype(np.float32)  # its distribution is drawn
    packed = io.BytesIO()
    np.savez_compressed(packed, labels=run.dataset.labels.astype(np.uint8),
                        true=run.dataset.true_labels.astype(np.uint8),
                        test_error=np.loadtxt(run_folder / "Test-error.series.txt")[-1, 1], **content)
    if packed.tell() > LARGEST:
        sys.exit(f"expected at most {LARGEST:,} bytes, found {packed.tell():,}")
    path = output / NAME.format(run.per_checkpoint.epochs.max())
    save_bytes(path, packed.getbuffer())
    return path


def longest() -> Path:
    """The kept file of the run with most epochs."""
    return max(HERE.glob(NAME.format("*")), key=lambda path: int(path.stem.split("_")[1]))


def metrics_table(scores: dict[str, np.ndarray], mislabelled: np.ndarray) -> str:
    """Markdown: the metrics of all rankings, best AUROC first, with 95 % bootstrap intervals."""
    metrics = {name: detection_metrics(score, mislabelled) for name, score in scores.items()}
    intervals = {name: bootstrap_intervals(score, mislabelled) for name, score in scores.items()}
    rows = []
    for name in sorted(scores, key=lambda name: metrics[name]["auroc"], reverse=True):
        cells = [f"{metrics[name][column]:.3f} ({low:.3f} to {high:.3f})"
                 for column in METRICS for low, high in [intervals[name][column]]]
        rows.append([f"`{name}`", *cells])
    return markdown(["ranking", *METRICS.values()], [*rows, NNABLA])


def draw(path: Path, output: Path):
    """Print the metrics of a kept run and draw the README's figures.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open_npz(path) as kept:
            mislabelled = (kept["labels"] != kept["true"])[:, 0]
            scores = {name: kept[name].astype(float) for name in kept.files if name not in OTHERS}
            if "test_error" in kept:
                print(f"test error {kept['test_error']:.3f}\n")
    except Exception as error:  # another file raises almost anything
        raise UserError(f"cannot read {path}: {error}; give what keep has written") from error
    print(metrics_table(scores, mislabelled))
    output.mkdir(parents=True, exist_ok=True)
    # Not score_curve.png: the analysis writes that by default, and would change the README's.
    figures.score_curve(output / "cifar10_score_curve.png",
                        {name: scores[name] for name in SHOWN if name in scores}, mislabelled)
    figures.score_distribution(output / "cifar10_score_distribution.png", scores["tracin"], mislabelled,
                               "tracin")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    keeper = commands.add_parser("keep", help="write the kept file of a run")
    keeper.add_argument("run", type=Path)
    keeper.add_argument("--output", type=Path, default=HERE)
    drawer = commands.add_parser("draw", help="print the metrics and draw the figures, the default")
    drawer.add_argument("file", type=Path, nargs="?", help="default: the longest run's")
    drawer.add_argument("--output", type=Path, default=FIGURES)
    args = parser.parse_args(sys.argv[1:] or ["draw"])
    if args.command == "keep":
        path = keep(args.run, args.output)
        print(f"{path}: {path.stat().st_size:,} bytes")
    else:
        draw(args.file or longest(), args.output)


if __name__ == "__main__":
    cli.run(main)
