"""What finds near-duplicates under two labels: features of the strongest pairs, or pixels of all?

    python -m tests.benchmarks.near_duplicates --data cifar-10-python.tar.gz

In each of three runs, altered copies of some images take the places of others, under another label than
their original.  Trained, scored and explained, the pairs found by `near_duplicates` are compared with
those that were made, for several thresholds.  Runs that `tests.benchmarks.explanations` left in the same
folder are reused.
"""
import argparse
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from datasets import arrays
from datasets.arrays import Dataset
from datasets.duplicates import most_alike
from datasets.images import resize
from tests.benchmarks import experiment
from tests.benchmarks.cleaning import DIGITS
from tests.benchmarks.experiment import train
from tests.benchmarks.explanations import all_gradients, explain, explained, run_of, scaled
from utils.backbone.pretrained import Pretrained

# By the name of the run: the run whose images it has, how many of them, copies of each kind, flags.
SHORT = [*experiment.TRAINING, "--train_epochs", "10"]
RUNS = {"head": (("cifar10", "uniform", 0), 10000, 40, []),
        "ResNet23, CIFAR-10": (("cifar10", "uniform", 0), 5000, 40, SHORT[2:]),
        "ResNet23, digits": (("digits", "uniform", 0), 1437, 10, DIGITS[2:])}
SIMILARITIES = -1, 0.7, 0.8, 0.9, 0.98
CORRELATIONS = 0.95, 0.97, 0.98, 0.99


def shifted(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.pad(np.asarray(image), ((1, 0), (1, 0), (0, 0)), mode="edge")[:-1, :-1])


def compressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=60)
    return Image.open(file)


def smaller(image: Image.Image) -> Image.Image:
    size, less = image.size, tuple(round(0.9 * length) for length in image.size)
    return image.resize(less, Image.Resampling.BICUBIC).resize(size, Image.Resampling.BICUBIC)


def cropped(image: Image.Image) -> Image.Image:
    width, height = image.size
    return image.crop((1, 1, width - 1, height - 1)).resize(image.size, Image.Resampling.BICUBIC)


ALTERATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 60": compressed, "10 % smaller, and back": smaller,
    "10 % brighter": lambda image: image.point(lambda value: min(round(1.1 * value), 255)),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "a pixel cropped all round": cropped, "shifted by a pixel": shifted}


def plant(dataset: Dataset, copies: int, rng: np.random.Generator) -> tuple[Dataset, np.ndarray]:
    """Put altered copies, `copies` of each kind, in the places of other images, under other labels.

    Returns:
        The images, and the indices of each original and its copy, (pairs, 2), one kind after the other.
    """
    images, labels = dataset.images.copy(), dataset.labels.copy()
    pairs = rng.permutation(len(images))[:2 * copies * len(ALTERATIONS)].reshape(-1, 2)
    kinds = np.repeat(list(ALTERATIONS), copies)
    for kind, (original, copy) in zip(kinds, pairs, strict=True):
        altered = ALTERATIONS[kind](Image.fromarray(images[original].transpose(1, 2, 0)))
        images[copy] = np.asarray(altered.convert("RGB")).transpose(2, 0, 1)
    classes = len(dataset.names)
    labels[pairs[:, 1], 0] = (labels[pairs[:, 0], 0] + rng.integers(1, classes, len(pairs))) % classes
    result = replace(dataset, images=images, labels=labels, true_labels=None, originals=None)
    if dataset.features is not None:
        backbone, features = Pretrained("efficientnet-lite0", 224), np.array(dataset.features)
        for copy in pairs[:, 1]:
            features[copy] = backbone.features(resize(images[[copy]], 224))[0]
        result = replace(result, features=features)
    return result, pairs


def prepare(folder: Path, name: str, output: Path, data: Path | None) -> np.ndarray:
    """Make the images of a run, train, score and explain what is not done yet; returns the pairs."""
    key, samples, copies, flags = RUNS[name]
    dataset = arrays.load(run_of(output, data, *key), test=True).take(np.arange(samples))
    if flags:
        dataset = replace(dataset, features=None, test=replace(dataset.test, features=None))
    planted, pairs = plant(dataset, copies, np.random.default_rng(0))
    arrays.save(folder / "data", planted)
    train(folder / "run", "--input", folder / "data", *flags, "-c", "cpu")
    explain(folder / "run")
    return pairs


def measure(folder: Path, pairs: np.ndarray) -> str:
    """Markdown: the share of the pairs of each kind that each rule names, and what else it names."""
    dataset, explanations = explained(folder / "run")
    suspects, labels, kinds = explanations.indices, dataset.labels, list(ALTERATIONS)
    *_, gradients = all_gradients(folder / "run")
    first, second = (scaled(gradients.features[pairs[:, side]], gradients.features) for side in (0, 1))
    other_of = dict([*pairs.tolist(), *pairs[:, ::-1].tolist()])
    places = {index: number for number, pair in enumerate(pairs.tolist()) for index in pair}

    def row(*cells: object) -> str:
        return "| " + " | ".join(map(str, cells)) + " |"

    def found(rule: str, indices: np.ndarray, partners: np.ndarray) -> str:
        right = [other_of.get(index) == partner
                 for index, partner in zip(indices.tolist(), partners.tolist(), strict=True)]
        found = np.isin(np.arange(len(pairs)), [places[index] for index in indices[right].tolist()])
        shares = found.reshape(len(kinds), -1).mean(axis=1)
        wrong = len(np.setdiff1d(indices, indices[right]))
        return row(rule, wrong, *(f"{share:.2f}" for share in shares))

    similarity = (first * second).sum(axis=1).reshape(len(kinds), -1)
    quantiles = [f"{np.quantile(kind, 0.1):.2f}, {np.median(kind):.2f}" for kind in similarity]
    known = np.array([index for index in suspects.tolist() if index in other_of], int)
    lines = [row("", "others", *kinds), "|---" * (2 + len(kinds)) + "|",
             row("similarity of the pairs: 10 %, median", "", *quantiles),
             found("among the suspects", known, np.array([other_of[index] for index in known], int))]
    both = explanations.opponents, explanations.proponents
    partners = np.concatenate([pairs.indices for pairs in both], axis=1).ravel()
    indices = np.repeat(suspects, len(partners) // len(suspects))
    features = scaled(gradients.features, gradients.features)
    similarity = (features[indices] * features[partners]).sum(axis=1)
    different = (partners >= 0) & (labels[indices, 0] != labels[partners, 0])
    for least in SIMILARITIES:
        kept = different & (similarity > least)
        rule = f"strongest pairs, similarity > {least}" if least > -1 else "strongest pairs"
        lines.append(found(rule, indices[kept], partners[kept]))
    partners, pixels = most_alike(dataset.images, labels, suspects)
    for least in CORRELATIONS:
        lines.append(found(f"all images, correlation > {least}", suspects[pixels > least],
                           partners[pixels > least]))
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="as for train.py")
    parser.add_argument("--output", type=Path, default=Path("explanations"))
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    args = parser.parse_args()
    for name in args.runs:
        folder = args.output / f"near_duplicates_{name.replace(', ', '_').replace(' ', '_')}"
        pairs = prepare(folder, name, args.output, args.data)
        print(f"\n{name}, {RUNS[name][1]:,} images, {RUNS[name][2]} copies of each kind:\n\n"
              + measure(folder, pairs), flush=True)


if __name__ == "__main__":
    main()
