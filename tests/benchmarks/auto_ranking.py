"""Which ranking suits which run: the evidence behind ``--rank_by auto``.

    python -m tests.benchmarks.auto_ranking --data cifar-10-python.tar.gz

It trains, scores and measures run after run, a line of ``runs.jsonl`` each, resumes where it was
interrupted, and ends with a table.  The rule was chosen on the seeds 0 and 1; the table reports the
others too.
"""
import argparse
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from sklearn.svm import SVC

from datasets import DATASETS, arrays, load_source
from datasets.arrays import Dataset, Source, Split
from datasets.label_noise import asymmetric_labels, hardest_labels, shuffle_labels
from tests.benchmarks.experiment import script, train
from utils.review.detection import detection_metrics, rank
from utils.review.run import load_run
from utils.review.suspects import count_label_issues

SEEDS = (0, 2, 1, 3)
CHOSEN_ON = (0, 1)
RESULTS = "runs.jsonl"
SHOWN = 30
EASY = (0, 1, 6)
SEVEN = (0, 1, 2, 4, 6, 7, 8)
TEN = tuple(range(10))


@dataclass(frozen=True)
class Regime:
    """A set of images as users bring them, and a training as they run it.

    Attributes:
        source: "digits" or "cifar10".
        classes: those of the source that are kept, numbered anew.
        samples, epochs, nmaps, augmentation: as for train.py.
        noise: "uniform", "asymmetric" (next class, or the one CIFAR-10's resembles) or "hardest" (the
            one that a support vector machine trained on other images finds likeliest).
        rate: share of each class that is mislabelled.
    """

    source: str
    classes: tuple[int, ...]
    samples: int
    epochs: int
    nmaps: int = 16
    noise: str = "uniform"
    augmentation: bool = False
    rate: float = 0.06

    def __str__(self) -> str:
        kind = (", augmented" if self.augmentation else "") + (
            "" if self.noise == "uniform" else f", {self.noise}")
        return (f"{self.source}, {len(self.classes)} classes, {self.samples} images, "
                f"nmaps {self.nmaps}, {self.epochs} epochs{kind}")


REGIMES = (
    Regime("digits", TEN, 700, 2),
    Regime("digits", TEN, 700, 5),
    Regime("digits", TEN, 700, 12),
    Regime("digits", TEN, 700, 12, noise="hardest"),
    Regime("digits", TEN, 400, 30),
    Regime("cifar10", TEN, 2000, 5, nmaps=8),
    Regime("cifar10", SEVEN, 650, 10),
    Regime("cifar10", SEVEN, 600, 20, nmaps=8, noise="hardest", rate=0.1),
    Regime("cifar10", TEN, 800, 20, nmaps=8, noise="asymmetric", rate=0.1),
    Regime("cifar10", SEVEN, 210, 100, rate=0.1),
    Regime("cifar10", TEN, 3000, 6, nmaps=8),
    Regime("cifar10", SEVEN, 650, 30, nmaps=8),
    Regime("cifar10", SEVEN, 400, 40, nmaps=8, augmentation=True),
    Regime("cifar10", TEN, 1500, 15, nmaps=8),
    Regime("cifar10", EASY, 600, 30),
    Regime("cifar10", SEVEN, 650, 30),
    Regime("cifar10", SEVEN, 650, 60),
)


@cache
def load(name: str, data: Path | None) -> Source:
    """A known set of images, read once."""
    return load_source(name, data if DATASETS[name].reads_files else None, None, False,
                       np.random.default_rng(0))


def make_data(regime: Regime, seed: int, data: Path | None) -> Dataset:
    """The images of a run with noisy labels and the true ones, and a few images to test on."""
    rng = np.random.default_rng(seed)
    source = load(regime.source, data)
    known = source.train
    members = rng.permutation(np.flatnonzero(np.isin(known.labels[:, 0], regime.classes)))
    chosen, others = np.split(members, [regime.samples])
    renumber = np.full(10, -1)
    renumber[list(regime.classes)] = np.arange(len(regime.classes))
    images, true = known.images[chosen], renumber[known.labels[chosen]]
    if regime.noise == "hardest":
        others = others[:3000]
        machine = SVC().fit(known.images[others].reshape(len(others), -1) / 255,
                            renumber[known.labels[others, 0]])
        logits = machine.decision_function(images.reshape(len(images), -1) / 255)
        noisy = hardest_labels(true, regime.rate, logits, rng)
    elif regime.noise == "asymmetric":
        noisy = asymmetric_labels(true, regime.rate, source.confusable, rng)
    else:
        noisy = shuffle_labels(true, regime.rate, len(regime.classes), rng)
    return Dataset(images, noisy, true, Split(images[:50], true[:50]),
                   [str(label) for label in regime.classes])


def measure(regime: Regime, seed: int, folder: Path, data: Path | None) -> dict:
    """Train, score and rank what is not done yet; returns facts and metrics.

    The run itself never sees the true labels.
    """
    dataset = make_data(regime, seed, data)
    hidden = Dataset(dataset.images, dataset.labels, None, dataset.test, dataset.names)
    arrays.save(folder / "data", hidden)
    run_folder = folder / "run"
    train(run_folder, "--input", folder / "data", "--model", "resnet23", "--nmaps", regime.nmaps,
          "--train_epochs", regime.epochs, "--augmentation", regime.augmentation, "--seed", seed,
          "-c", "cpu")
    script("calculate_score.py", "--input", run_folder, "--checkpoint", run_folder, "--output",
           run_folder, "-c", "cpu", "--workers", 1)
    run = load_run(run_folder, "tracin")
    wrong = (dataset.labels != dataset.true_labels)[:, 0]
    scores = {name: {**detection_metrics(score, wrong), "first": int(wrong[rank(score)[:SHOWN]].sum())}
              for name, score in run.rankings.items()}
    probability = run.per_checkpoint.probability
    return {"regime": asdict(regime), "seed": seed, "wrong": int(wrong.sum()),
            "agreement": float((probability.argmax(axis=1) == dataset.labels[:, 0]).mean()),
            "checkpoints": len(run.per_checkpoint.epochs),
            "estimated": count_label_issues(probability, dataset.labels), "scores": scores}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="as for train.py")
    parser.add_argument("--output", type=Path, default=Path("auto_ranking"))
    args = parser.parse_args()
    results = args.output / RESULTS
    args.output.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    for seed in SEEDS:
        for regime in REGIMES:
            if any(run["seed"] == seed and Regime(**{**run["regime"], "classes": tuple(
                    run["regime"]["classes"])}) == regime for run in done):
                continue
            name = str(regime).replace(", ", "_").replace(" ", "_")
            run = measure(regime, seed, args.output / f"{name}_{seed}", args.data)
            with results.open("a") as file:
                file.write(json.dumps(run) + "\n")
            done.append(run)


if __name__ == "__main__":
    main()
