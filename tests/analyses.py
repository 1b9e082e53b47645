"""An analysis of a run, and what it wrote and said."""
import csv
import json
from dataclasses import replace

import numpy as np

import mislabel_analysis
from datasets import arrays
from utils.review.detection import rank
from utils.tracin.explanations import STRONGEST, TRAIN, Explanations, Pairs, origin, save

# Those of a network that is trained on images.
RANKINGS = ["tracin", "tracin_weighted", "tracin_norms", "tracin_late", "loss", "margin", "error_norm",
            "self_confidence", "aum", "aum_late", "forgetting", "consensus", "random"]


def analyse(run, output, *more):
    mislabel_analysis.main(["--input", str(run), "--output", str(output), *more])
    return json.loads((output / "metrics.json").read_text())


def suspects(output):
    with (output / "suspects.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def words(text):
    return text.replace("%", " ").replace(",", " ").replace(";", " ").replace(":", " ").split()


def make_explanations(labels, indices, classes, seed=0):
    """Explanations of the samples `indices` by random other ones, no two of a row the same."""
    rng, count = np.random.default_rng(seed), len(indices)
    others = [np.delete(np.arange(len(labels)), index) for index in indices]
    drawn = np.array([rng.permutation(one)[:2 * STRONGEST] for one in others]).reshape(count, -1)
    kinds = []
    for sign, chosen in zip((1, -1), np.split(drawn, 2, axis=1), strict=True):
        cosine = sign * -np.sort(-rng.random(chosen.shape))
        kinds.append(Pairs(chosen, 10 * cosine, cosine))
    probability = rng.dirichlet(np.ones(classes), count).astype(np.float32)
    return Explanations(np.asarray(indices, np.int64), probability, *kinds)


def explain(run, count, **changes):
    """Write random explanations of a run's first `count` suspects, with `changes`, and return them."""
    dataset, total = arrays.load(run), np.load(run / "influence_all_epoch.npy")
    first = rank(total)[:count]
    explanations = replace(make_explanations(dataset.labels, first, len(dataset.names)), **changes)
    save(run / TRAIN, explanations, origin(dataset, total, False), "key")
    return explanations
