"""Time and peak memory of a script by the number of samples, up to a million, of 32x32 random images.

    python -m tests.benchmarks.million analysis
    python -m tests.benchmarks.million analysis --samples 50000 --unknown

The runs are synthetic files of the shapes that train.py and calculate_score.py write, in a temporary
folder: nine checkpoints, 20 epochs, ten classes, a tenth of the labels wrong.  A million samples need
4 GB there.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets import arrays
from datasets.arrays import Dataset, Split
from tests.benchmarks.tables import markdown
from utils.tracin.scores import CheckpointScores, save_total
from utils.tracin.self_influence import self_influence
from utils.training.dynamics import TrainingDynamics, loss_and_margin

SAMPLES = (50_000, 200_000, 1_000_000)
CLASSES, CHECKPOINTS, EPOCHS, WRONG, BLOCK = 10, 9, 20, 0.1, 100_000
KEY = "synthetic"
# Runs a command and prints what it took.  A process of its own, because the system counts the memory of
# the one that starts a command as the command's.
MEASURE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


@dataclass(frozen=True)
class Cost:
    """What a script took: seconds by the clock and of the processors, and peak memory in MB."""

    seconds: float
    cpu: float
    memory: float


def measure(*command: object) -> Cost:
    """Run a script of the suite in a process of its own."""
    run = subprocess.run([sys.executable, "-c", MEASURE, sys.executable, *map(str, command)], check=True,
                         stdout=subprocess.PIPE, text=True)
    return Cost(*json.loads(run.stdout))


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


def analysis(folder: Path, samples: int, unknown: bool) -> Cost:
    """Measure mislabel_analysis.py.

    Args:
        folder: an empty one.
        samples: N.
        unknown: whether the true labels are unknown.
    """
    dataset = make_data(folder, samples)
    make_scores(folder, dataset, np.load(folder / arrays.TRUE_LABELS))
    if unknown:
        (folder / arrays.TRUE_LABELS).unlink()
    return measure("mislabel_analysis.py", "--run", folder)


SCRIPTS: dict[str, Callable[[Path, int, bool], Cost]] = {"analysis": analysis}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", choices=SCRIPTS)
    parser.add_argument("--samples", type=int, nargs="+", default=SAMPLES, help="growing numbers")
    parser.add_argument("--unknown", action="store_true", help="without the true labels")
    args = parser.parse_args()
    rows, before = [], (0, Cost(0, 0, 0))
    for samples in args.samples:
        with tempfile.TemporaryDirectory() as name:
            cost = SCRIPTS[args.script](Path(name), samples, args.unknown)
        more, last = samples - before[0], before[1]
        rows.append([f"{samples:,}", f"{cost.seconds:.1f}", f"{cost.cpu:.1f}", f"{cost.memory:,.0f}",
                     f"{1e6 * (cost.cpu - last.cpu) / more:.0f}",
                     f"{1e3 * (cost.memory - last.memory) / more:.2f}"])
        before = samples, cost
        print(f"{samples:,} samples: {cost}", file=sys.stderr, flush=True)
    print(markdown(["samples", "seconds", "CPU seconds", "peak MB", "CPU µs per further sample",
                    "kB per further sample"], rows))


if __name__ == "__main__":
    main()
