"""Which ranking suits which run: the evidence behind ``--rank_by auto``.

    python -m tests.benchmarks.auto_ranking --data cifar-10-python.tar.gz
    python -m tests.benchmarks.auto_ranking --data cifar-10-python.tar.gz --heads --output heads

It trains, scores and measures run after run, as many at a time as there are cores, writes a line of
``runs.jsonl`` for each, resumes where it was interrupted, and ends with the tables in README.md beside
this file.  The rule was chosen on seed 0.  With ``--heads`` it trains heads on the features of
EfficientNet-Lite0 instead of ResNet23.
"""
import argparse
import json
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from sklearn.svm import SVC

from datasets import DATASETS, arrays, load_source
from datasets.arrays import Dataset, Source, Split
from datasets.images import resize
from datasets.label_noise import asymmetric_labels, hardest_labels, shuffle_labels
from tests.benchmarks.experiment import runs_at_a_time, script, train
from utils.backbone.pretrained import Pretrained
from utils.review.detection import detection_metrics, rank
from utils.review.estimate import count_wrong_labels
from utils.review.run import agreement, load_run

# The rule was chosen on the first.
SEEDS = (0, 1, 2)
RESULTS = "runs.jsonl"
FIRST = 30
CHOSEN = "consensus"
SHOWN = ("tracin", "tracin_norms", "loss", "margin", "error_norm", "self_confidence", "aum", "aum_late",
         "forgetting", CHOSEN)
SHOWN_OF_HEADS = (*SHOWN, "out_of_fold")
METRICS = {"recall_at_10": "10 %", "recall_at_20": "20 %", "recall_at_30": "30 %", "auroc": "AUROC"}
# By their number; the three are easy to tell apart.
CLASSES = {3: (0, 1, 6), 7: (0, 1, 2, 4, 6, 7, 8), 10: tuple(range(10))}


@dataclass(frozen=True)
class Regime:
    """A set of images as users bring them, and a training as they run it.

    Attributes:
        source: "digits" or "cifar10".
        classes: how many of the source's classes are kept; they are renumbered.
        samples, epochs, nmaps, augmentation: as for train.py.
        noise: "uniform", "asymmetric" (next class, or the one CIFAR-10's resembles) or "hardest" (the
            one that a support vector machine trained on other images finds likeliest).
        rate: share of each class that is mislabelled.
        size: that of the images as they enter the backbone whose features a head is trained on; None for
            ResNet23 on the images.
    """

    source: str
    classes: int
    samples: int
    epochs: int
    nmaps: int = 16
    noise: str = "uniform"
    augmentation: bool = False
    rate: float = 0.06
    size: int | None = None

    def __str__(self) -> str:
        kind = (", augmented" if self.augmentation else "") + (
            "" if self.noise == "uniform" else f", {self.noise}")
        network = f"nmaps {self.nmaps}, {self.epochs} epochs" if self.size is None else \
            f"at {self.size}x{self.size}"
        return f"{self.source}, {self.classes} classes, {self.samples} images, {network}{kind}"

    @property
    def folder(self) -> str:
        return str(self).replace(", ", "_").replace(" ", "_")


REGIMES = (
    Regime("digits", 10, 700, 2),
    Regime("digits", 10, 700, 5),
    Regime("digits", 10, 700, 12),
    Regime("digits", 10, 700, 12, noise="hardest"),
    Regime("digits", 10, 400, 30),
    Regime("cifar10", 10, 2000, 5, nmaps=8),
    Regime("cifar10", 7, 650, 10),
    Regime("cifar10", 7, 600, 20, nmaps=8, noise="hardest", rate=0.1),
    Regime("cifar10", 10, 800, 20, nmaps=8, noise="asymmetric", rate=0.1),
    Regime("cifar10", 7, 210, 100, rate=0.1),
    Regime("cifar10", 10, 3000, 6, nmaps=8),
    Regime("cifar10", 7, 650, 30, nmaps=8),
    Regime("cifar10", 7, 400, 40, nmaps=8, augmentation=True),
    Regime("cifar10", 10, 1500, 15, nmaps=8),
    Regime("cifar10", 3, 600, 30),
    Regime("cifar10", 7, 650, 30),
    Regime("cifar10", 7, 650, 60),
)
HEADS = tuple(
    Regime("cifar10", classes, samples, 30, noise=noise, size=size,
           rate=0.2 if noise == "asymmetric" else 0.06)
    for classes, samples, size in [(7, 700, 224), (10, 300, 128), (10, 1000, 128), (10, 3000, 128)]
    for noise in ("uniform", "asymmetric", "hardest") if noise != "asymmetric" or classes == 10)


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
    classes = CLASSES[regime.classes]
    members = rng.permutation(np.flatnonzero(np.isin(known.labels[:, 0], classes)))
    chosen, others = np.split(members, [regime.samples])
    renumber = np.full(10, -1)
    renumber[list(classes)] = np.arange(len(classes))
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
        noisy = shuffle_labels(true, regime.rate, len(classes), rng)
    features = None if regime.size is None else make_features(images, regime.size)
    test = Split(images[:50], true[:50], features=None if features is None else features[:50])
    return Dataset(images, noisy, features=features, true_labels=true, test=test,
                   names=[str(label) for label in classes])


def make_features(images: np.ndarray, size: int) -> np.ndarray:
    """Those of EfficientNet-Lite0, float32 (N, 1280)."""
    return np.concatenate([load_backbone(size).features(resize(images[start:start + 100], size))
                           for start in range(0, len(images), 100)])


@cache
def load_backbone(size: int) -> Pretrained:
    return Pretrained("efficientnet-lite0", size)


def measure(regime: Regime, seed: int, folder: Path, data: Path | None) -> dict:
    """Train, score and rank what is not done yet; returns facts and metrics.

    The run itself never sees the true labels.
    """
    dataset = make_data(regime, seed, data)
    hidden = replace(dataset, true_labels=None)
    arrays.save(folder / "data", hidden)
    run_folder = folder / "run"
    network = [] if regime.size else ["--model", "resnet23", "--nmaps", regime.nmaps,
                                      "--augmentation", regime.augmentation]
    train(run_folder, "--input", folder / "data", *network, "--train_epochs", regime.epochs,
          "--seed", seed, "-c", "cpu")
    script("calculate_score.py", "--input", run_folder, "--checkpoint", run_folder, "--output",
           run_folder, "-c", "cpu", "--workers", 1)
    run = load_run(run_folder, "tracin")
    wrong = (dataset.labels != dataset.true_labels)[:, 0]
    scores = {name: {**detection_metrics(score, wrong), "first": int(wrong[rank(score)[:FIRST]].sum())}
              for name, score in run.rankings.items()}
    return {"regime": asdict(regime), "seed": seed, "wrong": int(wrong.sum()),
            "agreement": agreement(run), "scores": scores,
            "in sample": round(count_wrong_labels(run.per_checkpoint.probability, dataset.labels)),
            "estimated": round(count_wrong_labels(run.probability, dataset.labels))}


def shown(run: dict) -> tuple[str, ...]:
    return SHOWN_OF_HEADS if "out_of_fold" in run["scores"] else SHOWN


def runs_table(runs: dict[Regime, list[dict]]) -> str:
    """Markdown: the wrong labels among the first 30 with each seed, by ranking; ``auto``'s in bold."""
    rankings = shown(next(iter(runs.values()))[0])
    facts = ["wrong", *(["in sample"] if rankings == SHOWN_OF_HEADS else []), "estimated", "agreement"]
    head = ["run", *facts, *(f"`{name}`" for name in rankings)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for regime, seeds in runs.items():
        cells = [str(regime)] + [" / ".join(str(round(run[name], 2)) for run in seeds)
                                 for name in facts]
        for name in rankings:
            found = " / ".join(str(run["scores"][name]["first"]) for run in seeds)
            cells.append(f"**{found}**" if name == CHOSEN else found)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def means_table(runs: list[dict]) -> str:
    """Markdown: means over the runs, and how far AUROC stays behind that of each run's best ranking."""
    lines = ["| " + " | ".join(["ranking", f"first {FIRST}", *METRICS.values(), "AUROC behind the best"])
             + " |", "|---" * (3 + len(METRICS)) + "|"]
    rankings = shown(runs[0])
    for name in rankings:
        scores = [run["scores"][name] for run in runs]
        behind = [max(run["scores"][other]["auroc"] for other in rankings) - score["auroc"]
                  for run, score in zip(runs, scores, strict=True)]
        lines.append(f"| `{name}` | {np.mean([score['first'] for score in scores]):.1f} | " + " | ".join(
            f"{np.mean([score[metric] for score in scores]):.3f}" for metric in METRICS)
            + f" | {np.mean(behind):.3f}, at most {max(behind):.3f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="as for train.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="default: %(default)s")
    parser.add_argument("--heads", action="store_true", help="heads on the features of a backbone")
    parser.add_argument("--output", type=Path, default=Path("auto_ranking"))
    args = parser.parse_args()
    regimes = HEADS if args.heads else REGIMES
    args.output.mkdir(parents=True, exist_ok=True)
    results = args.output / RESULTS
    runs = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(Regime(**run["regime"]), run["seed"]): run for run in runs}
    load("cifar10", args.data)  # downloads it, if need be, before several would at once
    for size in {regime.size for regime in regimes} - {None}:
        load_backbone(size)  # no two threads may build graphs at once
    with runs_at_a_time() as pool:
        futures = {(regime, seed): pool.submit(
            measure, regime, seed, args.output / f"{regime.folder}_{seed}", args.data)
            for seed in args.seeds for regime in regimes if (regime, seed) not in done}
        for key, future in futures.items():
            done[key] = future.result()
            with results.open("a") as file:
                file.write(json.dumps(done[key]) + "\n")
    print(runs_table({regime: [done[regime, seed] for seed in args.seeds] for regime in regimes}))
    for seed in args.seeds:
        print(f"\nmeans of seed {seed}:\n\n{means_table([done[regime, seed] for regime in regimes])}")


if __name__ == "__main__":
    main()
