"""Do a suspect's opponents know its true label, and does their vote tell sure suggestions from others?

    python -m tests.benchmarks.explanations --data cifar-10-python.tar.gz

It trains, scores and explains run after run, resumes where it was interrupted, and ends with the tables
in README.md beside this file.  The features of images that an earlier run has are copied from it.
"""
import argparse
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
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
from utils.review.run import Run, load_run
from utils.tracin import explanations, scores
from utils.tracin.explanations import Explanations
from utils.tracin.influence import Gradients, Influence, Strongest
from utils.tracin.scoring import CheckpointEngine
from utils.tracin.trained import inputs_of, network_of
from utils.training.checkpoint import check_parameters, find_checkpoints

HEADS = ["--dataset", "cifar10", *experiment.SUBSET, "--backbone", "efficientnet-lite0", "-c", "cpu"]
# Kind of images, noise and seed; whatever was chosen was chosen on seed 0.
RUNS = [*(("digits", "uniform", seed) for seed in range(5)),
        *(("cifar10", "uniform", seed) for seed in range(4)),
        ("cifar10", "asymmetric", 1), ("cifar10", "hardest", 1)]
NEIGHBOURS = 15


def run_of(output: Path, data: Path | None, images: str, noise: str, seed: int) -> Path:
    """Train, score and explain what is not done yet; returns the run's folder."""
    folder = output / f"{images}_{noise}_{seed}"
    flags = [*DIGITS, "--seed", seed]
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


def by_influence(folder: Path, explained: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The strongest opponents by influence itself, and the nearest neighbours by the last features.

    Args:
        folder: a run's.
        explained: indices of N training samples.

    Returns:
        Indices of training samples, integers (N, 8) and (N, `NEIGHBOURS`), neither with the sample itself.
    """
    influence: Influence | None = None
    for gradients in all_gradients(folder):
        influence = influence or Influence(len(explained), len(gradients.error))
        influence.add(Gradients(gradients.features[explained], gradients.error[explained]), gradients)
    raw = influence.total
    raw[np.arange(len(explained)), explained] = np.nan
    indices = np.broadcast_to(np.arange(raw.shape[1]), raw.shape)
    opponents = Strongest.of(indices, raw, raw, -1, explanations.STRONGEST).indices
    similarity = scaled(gradients.features[explained], gradients.features) @ \
        scaled(gradients.features, gradients.features).T
    similarity[np.arange(len(explained)), explained] = -np.inf
    return opponents, np.argsort(-similarity, axis=1)[:, :NEIGHBOURS]


def scaled(features: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Features (N, D), each standardized by those of the training set, every row of length 1."""
    deviation = training.std(axis=0)
    result = (features - training.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    return result / np.linalg.norm(result, axis=1, keepdims=True)
