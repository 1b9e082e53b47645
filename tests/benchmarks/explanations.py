"""Do a suspect's opponents know its true label, and does their vote tell sure suggestions from others?

    python -m tests.benchmarks.explanations --data cifar-10-python.tar.gz

It trains, scores and explains run after run, resumes where it was interrupted, and ends with the tables
in README.md beside this file.  The features of images that an earlier run has are copied from it.
"""
import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

import nnabla as nn
import numpy as np

import calculate_score
from datasets import arrays
from datasets.arrays import Dataset
from datasets.cifar import CIFAR10, load_cifar
from models.registry import build_network
from tests.benchmarks import experiment
from tests.benchmarks.cleaning import DIGITS
from tests.benchmarks.experiment import NOISE_MODEL, script, train
from utils.review.explained import vote
from utils.review.run import load_run
from utils.tracin import explanations, scores
from utils.tracin.explanations import Explanations
from utils.tracin.influence import Gradients, Influence, Pairs
from utils.tracin.scoring import CheckpointEngine
from utils.tracin.trained import inputs_of, network_of
from utils.training.checkpoint import check_parameters, find_checkpoints

HEADS = ["--dataset", "cifar10", *experiment.SUBSET, "--backbone", "efficientnet-lite0", "-c", "cpu"]
# Images, noise and seed.  "cifar10" trains heads, "resnet23" ResNet23 as `tests.benchmarks.experiment`.
RUNS = [*(("digits", "uniform", seed) for seed in range(5)),
        *(("cifar10", "uniform", seed) for seed in range(4)),
        ("cifar10", "asymmetric", 1), ("cifar10", "hardest", 1), ("resnet23", "uniform", 1)]
NEIGHBOURS = 15
PROBABILITIES = 0.5, 0.7, 0.8, 0.9


def run_of(output: Path, data: Path | None, images: str, noise: str, seed: int) -> Path:
    """Train, score and explain what is not done yet; returns the run's folder."""
    folder = output / f"{images}_{noise}_{seed}"
    flags = [*DIGITS, "--seed", seed] if images == "digits" else experiment.flags_of(data, seed)
    if images == "cifar10":
        flags = [*HEADS, "--seed", seed, "--noise", noise, *(["--data", data] if data else [])]
        known = output / f"{images}_uniform_{seed}"
        if noise == "hardest":
            train(output / NOISE_MODEL, *experiment.flags_of(data, 4), "--shuffle_label", False)
            flags += ["--noise_model", output / NOISE_MODEL]
        if not folder.exists() and known.exists():
            folder.mkdir(parents=True)
            for file in known.glob("features*"):
                shutil.copy(file, folder)
    if not any(folder.glob("*_result.nnp")):
        train(folder, *flags)
    explain(folder)
    return folder


def explain(folder: Path):
    """Score a run and explain its first suspects, unless that is done."""
    script("calculate_score.py", "--run", folder, "-c", "cpu", "--explain")


def explained(folder: Path) -> tuple[Dataset, Explanations]:
    """The training set of a run, and its explanations."""
    dataset = arrays.load(folder)
    found = explanations.load(folder, dataset, scores.load_total(folder, len(dataset.labels)))
    assert found is not None
    return dataset, found


def all_gradients(folder: Path) -> Iterator[Gradients]:
    """The gradients of all training samples of a run, checkpoint by checkpoint."""
    nn.clear_parameters()
    settings = calculate_score.get_args(["--run", str(folder), "-c", "cpu"])
    dataset, found = arrays.load(folder), find_checkpoints(folder)
    model, classes, nmaps = network_of(settings, found[0])
    inputs = inputs_of(model, dataset, settings)
    network = build_network(model, classes, nmaps, shape=inputs.shape[1:])
    engine = CheckpointEngine(calculate_score.make_plan(settings, network, len(inputs)))
    for checkpoint in check_parameters(found, network):
        yield engine.at(checkpoint).gradients(inputs, dataset.labels)


def strongest_and_nearest(folder: Path, explained: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The strongest opponents by influence itself, and the nearest neighbours by the last features.

    Args:
        folder: a run's.
        explained: indices of N training samples.

    Returns:
        Indices of training samples, integers (N, 8) and (N, `NEIGHBOURS`); no sample is its own.
    """
    influence: Influence | None = None
    for gradients in all_gradients(folder):
        influence = influence or Influence(len(explained), len(gradients.error))
        influence.add(Gradients(gradients.features[explained], gradients.error[explained]), gradients)
    assert influence is not None
    own, raw = (np.arange(len(explained)), explained), influence.total
    raw[own] = np.nan
    indices = np.broadcast_to(np.arange(raw.shape[1]), raw.shape)
    opponents = Pairs.of(indices, raw, raw, -1, explanations.STRONGEST).indices
    similarity = scaled(gradients.features[explained], gradients.features) @ \
        scaled(gradients.features, gradients.features).T
    similarity[own] = -np.inf
    return opponents, np.argsort(-similarity, axis=1)[:, :NEIGHBOURS]


def scaled(features: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Features (N, D), each standardized by those of the training set, every row of length 1."""
    deviation = training.std(axis=0)
    result = (features - training.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    return result / np.maximum(np.linalg.norm(result, axis=1, keepdims=True), np.finfo(float).tiny)


def majority(votes: np.ndarray) -> np.ndarray:
    """The most frequent label of each row (N, k), of equally frequent ones the first, (N,)."""
    counts = (votes[:, :, None] == votes[:, None, :]).sum(axis=2)
    return np.take_along_axis(votes, counts.argmax(axis=1)[:, None], axis=1)[:, 0]


def measure(folder: Path) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """What is right about the mislabelled suspects of a run, and what each rule says of suggestions."""
    run, (dataset, found) = load_run(folder, "tracin"), explained(folder)
    suspects, opponents, labels = found.indices, found.opponents.indices, dataset.labels
    given, true = labels[suspects, 0], dataset.true_labels[suspects, 0]
    probability = run.probability[suspects]
    suggested, likely = probability.argmax(axis=1), probability.max(axis=1)
    raw, nearest = strongest_and_nearest(folder, suspects)
    votes = {f"{size} by cosine": vote(opponents[:, :size], labels) for size in (5, 3, 1)}
    votes |= {"8 by cosine": majority(labels[opponents, 0]),
              "5 by influence": vote(raw, labels), "suggestion": suggested,
              f"{NEIGHBOURS} neighbours": majority(labels[nearest, 0])}
    wrong, differs, right = given != true, suggested != given, suggested == true
    facts = {"mislabelled": str(wrong.sum())}
    facts |= {name: f"{(vote == true)[wrong].mean():.3f}" for name, vote in votes.items()}
    facts |= {f"images, {name}": str(len(np.unique(indices[:, :5])))
              for name, indices in (("cosine", opponents), ("influence", raw))}
    facts["mislabelled opponents"] = \
        f"{(labels != dataset.true_labels)[opponents[:, :5], 0].mean():.2f}"

    def judged(sure: np.ndarray) -> dict[str, str]:
        def precision(among: np.ndarray) -> str:
            return f"{right[among].mean():.2f}" if among.any() else "-"
        yes, no = differs & sure, differs & ~sure
        return {"share": f"{sure[differs].mean():.2f}",
                "precision": f"{precision(yes)}, {precision(no)}",
                "of mislabelled": f"{precision(yes & wrong)}, {precision(no & wrong)}"}

    agrees = votes["5 by cosine"] == suggested
    supporters = (labels[opponents[:, :5], 0] == suggested[:, None]).sum(axis=1)
    rules = {"vote agrees": agrees}
    for name, sure in (("vote agrees", agrees), ("4 of 5 agree", supporters >= 4)):
        least = np.sort(likely[differs])[::-1][max(0, (sure & differs).sum() - 1)]
        rules |= {name: sure, f"{name}: as many by probability": likely >= least}
    for least in PROBABILITIES:
        rules |= {f"probability >= {least}": likely >= least,
                  f"probability >= {least}, vote agrees": agrees & (likely >= least)}
    return facts, {name: judged(sure) for name, sure in rules.items()}


def table(first: str, rows: dict[str, list[str]]) -> str:
    """Markdown: the rows by their names, under the names of the runs."""
    head = [first, *(" ".join(map(str, run)) for run in RUNS)]
    lines = [[name, *cells] for name, cells in rows.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="as for train.py")
    parser.add_argument("--output", type=Path, default=Path("explanations"))
    args = parser.parse_args()
    load_cifar(CIFAR10, args.data)  # downloads it, if need be
    results = [measure(run_of(args.output, args.data, *run)) for run in RUNS]
    print("right about the mislabelled suspects:\n")
    print(table("", {name: [facts[name] for facts, _ in results] for name in results[0][0]}))
    for figure in ("share", "precision", "of mislabelled"):
        print(f"\nsuggestions that differ from the given label, {figure}:\n")
        print(table("sure where", {rule: [rules[rule][figure] for _, rules in results]
                                   for rule in results[0][1]}))


if __name__ == "__main__":
    main()
