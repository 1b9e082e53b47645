"""The figures and metrics of the run on all of CIFAR-10 on a GPU, from the rankings that are kept of it.

    python -m tests.benchmarks.headline

README.md beside this file says how the run was made.
"""
from pathlib import Path

import numpy as np

from utils.review import figures
from utils.review.detection import detection_metrics

KEPT = Path(__file__).with_name("cifar10_57_epochs.npz")
FIGURES = Path(__file__).parent.parent.parent / "figure"
SHOWN = ("tracin", "aum", "loss", "forgetting")


def main():
    with np.load(KEPT, allow_pickle=False) as kept:
        mislabelled = (kept["labels"] != kept["true"])[:, 0]
        scores = {name: kept[name].astype(float) for name in kept.files
                  if name not in ("labels", "true", "predicted")}
    for name, score in scores.items():
        metrics = detection_metrics(score, mislabelled)
        print(f"{name:16}" + "".join(f"{value:7.3f}" for value in metrics.values()))
    figures.score_curve(FIGURES / "cifar10_score_curve.png", {name: scores[name] for name in SHOWN},
                        mislabelled)
    figures.score_distribution(FIGURES / "cifar10_score_distribution.png", scores["tracin"], mislabelled,
                               "tracin")


if __name__ == "__main__":
    main()
