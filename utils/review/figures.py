"""The figures of the analysis."""
from pathlib import Path

import matplotlib
import numpy as np
from scipy.stats import gaussian_kde

from utils.files import whole_file
from utils.review.detection import PERCENTAGES, recall_at, recall_curve

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

CORRECT, WRONG = "tab:blue", "tab:orange"
# Scores span many orders of magnitude: those below this share of the largest are drawn as equal.
SMALLEST_SHARE = 1e-8


def _save(figure: plt.Figure, path: Path):
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)


def score_distribution(path: Path, score: np.ndarray, mislabelled: np.ndarray | None):
    """Histogram and density of the self-influence of correctly and wrongly labelled samples.

    Args:
        path: PNG file to write.
        score: float (N,); higher is more suspicious.
        mislabelled: bool (N,), or None for one distribution of all samples.
    """
    floor = max(float(score.max()), float(np.finfo(float).tiny)) * SMALLEST_SHARE
    logarithm = np.log10(np.maximum(score, floor))
    if mislabelled is None:
        groups = [("all samples", CORRECT, logarithm)]
    else:
        groups = [("correctly labelled", CORRECT, logarithm[~mislabelled]),
                  ("wrongly labelled", WRONG, logarithm[mislabelled])]
    edges = np.linspace(logarithm.min() - 0.05, logarithm.max() + 0.05, 61)
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for name, colour, values in groups:
        if not len(values):
            continue
        axes.hist(10**values, bins=10**edges, weights=np.full(len(values), 1 / len(values)),
                  color=colour, alpha=0.4, label=f"{name} ({len(values):,})")
        if len(values) > 2 and np.ptp(values) > 0:
            places = np.linspace(edges[0], edges[-1], 400)
            density = gaussian_kde(values)(places) * (edges[1] - edges[0])
            axes.plot(10**places, density, color=colour)
    axes.set(xscale="log", xlabel="self-influence, summed over the checkpoints (log scale)",
             ylabel="share of the group", xlim=(10**edges[0], 10**edges[-1]))
    axes.legend()
    _save(figure, path)


def score_curve(path: Path, scores: dict[str, np.ndarray], mislabelled: np.ndarray):
    """Share of the mislabelled samples found against the share of the data checked.

    Args:
        path: PNG file to write.
        scores: by name, float (N,); higher is more suspicious.  The first is highlighted.
        mislabelled: bool (N,), true for at least one sample.
    """
    checked = np.linspace(0, 1, len(mislabelled) + 1)
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    axes.plot(checked, recall_curve(mislabelled.astype(float), mislabelled), color="tab:gray",
              linestyle="--", label="ideal")
    for number, (name, score) in enumerate(scores.items()):
        recalls = [recall_at(score, mislabelled, percentage) for percentage in PERCENTAGES]
        values = " / ".join(f"{recall:.3f}" for recall in recalls)
        axes.plot(checked, recall_curve(score, mislabelled), color=f"C{number}",
                  linewidth=1 if number else 2, zorder=2 if number else 3, label=f"{name}: {values}")
        if not number:
            axes.plot(np.array(PERCENTAGES) / 100, recalls, "o", color="C0", zorder=3)
    axes.plot([0, 1], [0, 1], color="tab:gray", linestyle=":", label="random order")
    axes.set(xlabel="share of the training data checked", ylabel="share of the mislabelled found",
             xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small",
                title=f"found at {' / '.join(map(str, PERCENTAGES))} %")
    _save(figure, path)


def top_classes(path: Path, epoch: int, names: list[str], counts: dict[str, np.ndarray]):
    """Bars of the classes in the most suspicious tenth at one checkpoint.

    Args:
        path: PNG file to write.
        epoch: the checkpoint's.
        names: the C class names.
        counts: label of the bars -> integers (C,); stacked.
    """
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.34 * len(names)), layout="constrained")
    places, left = np.arange(len(names)), np.zeros(len(names), np.int64)
    for (label, values), colour in zip(counts.items(), (WRONG, CORRECT), strict=False):
        axes.barh(places, values, left=left, color=colour, label=label)
        left = left + values
    axes.set(title=f"epoch {epoch}: the tenth of the samples with the highest self-influence",
             xlabel="samples")
    short = [name if len(name) <= 30 else name[:29] + "…" for name in names]
    axes.set_yticks(places, short, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    axes.invert_yaxis()
    axes.legend()
    _save(figure, path)
