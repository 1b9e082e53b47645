"""Time and peak memory of each script by the number of samples, up to a million, of 32x32 random images.

    python -m tests.benchmarks.million training
    python -m tests.benchmarks.million scoring
    python -m tests.benchmarks.million analysis
    python -m tests.benchmarks.million analysis --samples 50000 --unknown

Training counts up to its first update: what depends on the number of images is done by then.  It starts
twice, the second time over the files of the first, as resuming does.  Scoring is by the last layer of a
small network at nine checkpoints; the analysis reads synthetic files of as many, of 20 epochs, ten
classes and a tenth of wrong labels.  A million samples need 9 GB on the disk.
"""
import argparse
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from datasets import arrays
from datasets.arrays import Dataset, Split
from tests.benchmarks.measuring import Cost, measure, save_fresh_parameters
from tests.benchmarks.tables import markdown
from utils.tracin.scores import CheckpointScores, save_total
from utils.tracin.self_influence import self_influence
from utils.training.dynamics import TrainingDynamics, loss_and_margin

SAMPLES = (50_000, 200_000, 1_000_000)
CLASSES, CHECKPOINTS, EPOCHS, WRONG, BLOCK = 10, 9, 20, 0.1, 100_000
KEY = "synthetic"
STARTED = "epochs done"  # printed before the first update
PIECE = 10_000  # rows that are written at a time


def make_data(folder: Path, samples: int, unknown: bool = False) -> Dataset:
    """Write random images and labels, some of them wrong, as train.py does; returns them mapped.

    Args:
        folder: of the run.
        samples: N.
        unknown: whether the true labels are not written.
    """
    rng = np.random.default_rng(0)
    true = rng.integers(CLASSES, size=(samples, 1))
    labels = np.where(rng.random((samples, 1)) < WRONG, (true + 1) % CLASSES, true)
    images = rng.integers(0, 256, (samples, 3, 32, 32), np.uint8)
    arrays.save(folder, Dataset(images, labels, true_labels=None if unknown else true,
                                test=Split(images[:1000], true[:1000]),
                                names=[f"class {label}" for label in range(CLASSES)]))
    return arrays.load(folder)


def make_scores(folder: Path, dataset: Dataset, true: np.ndarray):
    """Write the files of calculate_score.py and the training statistics.

    The networks are ever surer of the true class, and slowly memorize the wrong labels.

    Args:
        folder: of the run, with its data.
        dataset: the data.
        true: the true labels, integers (N, 1).
    """
    rng, samples = np.random.default_rng(1), len(dataset.labels)

    def logits(part: slice, progress: float) -> np.ndarray:
        values = rng.normal(size=(len(true[part]), CLASSES))
        for classes, sure in ((true, 2 * progress), (dataset.labels, progress**2)):
            rows = np.arange(len(values))
            values[rows, classes[part, 0]] += sure
        return values

    parts = [slice(start, min(start + BLOCK, samples)) for start in range(0, samples, BLOCK)]
    checkpoints = []
    for number in range(1, CHECKPOINTS + 1):
        checkpoint = CheckpointScores(folder, number, KEY, samples, CLASSES)
        for part in parts:
            values = logits(part, number / CHECKPOINTS)
            checkpoint.add(part.start, part.stop, self_influence(
                values, np.eye(CLASSES), np.zeros(CLASSES), dataset.labels[part]))
        checkpoint.save()
        checkpoints.append(checkpoint)
    save_total(folder, checkpoints, [0.1] * CHECKPOINTS, dataset.digest(), KEY, dataset.annotations())
    for checkpoint in checkpoints:
        checkpoint.remove()  # the analysis does not read them
    dynamics = TrainingDynamics(samples, EPOCHS)
    for epoch in range(EPOCHS):
        for part in parts:
            dynamics.record(epoch, np.arange(part.start, part.stop), *loss_and_margin(
                logits(part, (epoch + 1) / EPOCHS), dataset.labels[part]))
    dynamics.save(folder, KEY)


def write_rows(file, shape: tuple[int, ...], kind: str, high: int):
    """Write an .npy of random integers below `high`, a piece at a time."""
    rng = np.random.default_rng(0)
    np.lib.format.write_array_header_1_0(file, {"descr": np.dtype(kind).str, "fortran_order": False,
                                                "shape": shape})
    for start in range(0, shape[0], PIECE):
        rows = min(PIECE, shape[0] - start)
        file.write(rng.integers(0, high, (rows, *shape[1:]), kind).data)


def write_archive(path: Path, samples: int):
    """One's own images: an .npz with x, uint8 (N, 32, 32, 3), and y, integers (N,)."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, shape, kind, high in [("x", (samples, 32, 32, 3), "u1", 256),
                                        ("y", (samples,), "i8", CLASSES)]:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                write_rows(file, shape, kind, high)


def training(folder: Path, samples: int, unknown: bool) -> dict[str, Cost]:
    """The start of training on one's own images, and of training over the files that it has written."""
    write_archive(folder / "images.npz", samples)
    noise = ["--shuffle_label", False] if unknown else ["--shuffle_rate", WRONG]
    costs = {}
    for name in ("training starts", "starts again"):
        os.sync()
        costs[name] = measure("train.py", "--dataset", folder / "images.npz", "--run", folder / "run",
                              "-c", "cpu", "--model", "resnet23", "--nmaps", 4, *noise, until=STARTED)
    return costs


def scoring(folder: Path, samples: int, unknown: bool) -> dict[str, Cost]:
    """Scoring random images at checkpoints with fresh parameters; true labels are not read."""
    for name, shape, kind, high in [(arrays.TRAIN_IMAGES, (samples, 3, 32, 32), "u1", 256),
                                    (arrays.TRAIN_LABELS, (samples, 1), "i8", CLASSES)]:
        with (folder / name).open("wb") as file:
            write_rows(file, shape, kind, high)
    for epoch in range(1, CHECKPOINTS + 1):
        save_fresh_parameters(folder, epoch, "resnet23", 4)
    return {"scoring": measure("calculate_score.py", "--run", folder, "--model", "resnet23", "--layers",
                               "last", "-c", "cpu")}


def analysis(folder: Path, samples: int, unknown: bool) -> dict[str, Cost]:
    """The analysis of synthetic scores and training statistics."""
    dataset = make_data(folder, samples)
    make_scores(folder, dataset, np.load(folder / arrays.TRUE_LABELS))
    if unknown:
        (folder / arrays.TRUE_LABELS).unlink()
    return {"analysis": measure("mislabel_analysis.py", "--run", folder)}


# Each is given an empty folder, the number of samples, and whether the true labels are unknown.
SCRIPTS: dict[str, Callable[[Path, int, bool], dict[str, Cost]]] = {
    "training": training, "scoring": scoring, "analysis": analysis}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", choices=SCRIPTS)
    parser.add_argument("--samples", type=int, nargs="+", default=SAMPLES, help="growing numbers")
    parser.add_argument("--unknown", action="store_true", help="without the true labels")
    parser.add_argument("--folder", type=Path, help="for the files, which are removed afterwards")
    args = parser.parse_args()
    rows: list[list[str]] = []
    before: dict[str, tuple[int, Cost]] = {}
    for samples in args.samples:
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            costs = SCRIPTS[args.script](Path(name), samples, args.unknown)
        for step, cost in costs.items():
            fewer, last = before.get(step, (0, Cost(0, 0, 0)))
            more = samples - fewer
            rows.append([step, f"{samples:,}", f"{cost.seconds:.1f}", f"{cost.cpu:.1f}",
                         f"{cost.memory:,.0f}", f"{1e6 * (cost.cpu - last.cpu) / more:.0f}",
                         f"{1e3 * (cost.memory - last.memory) / more:.2f}"])
            before[step] = samples, cost
            print(f"{step}, {samples:,} samples: {cost}", file=sys.stderr, flush=True)
    print(markdown(["step", "samples", "seconds", "CPU seconds", "peak MB", "CPU µs per further sample",
                    "kB per further sample"], rows))


if __name__ == "__main__":
    main()
