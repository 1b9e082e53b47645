"""What the analysis reads: a training set and its rankings."""
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from datasets import arrays
from datasets.arrays import Dataset
from utils.cli import nearest
from utils.errors import UserError
from utils.review.rankings import AUTO, DEFAULT, NEEDS, RANKINGS, Choice, choose_ranking, rankings
from utils.tracin import explanations, scores
from utils.tracin.explanations import Explanations
from utils.tracin.scores import PerCheckpoint
from utils.training import dynamics, out_of_fold

# Below this agreement many suggestions are wrong, so that corrections without a review are warned of.
LEARNED = 0.75


@dataclass(frozen=True)
class Run:
    """A training set of N samples and their scores.

    Attributes:
        dataset: the N samples, and the test set where test samples are explained.
        rankings: by name, float (N,); higher is more suspicious.
        rank_by: the name of the ranking to use.
        reason: why that one, in words; empty where the user named it.
        per_checkpoint: the scores at each checkpoint.
        out_of_fold: probabilities by heads that were trained without the sample, float32 (N, C), or
            None.
        margins: of each sample in every epoch, float16 (N, E), NaN where unknown, or None.
        explanations: of the most suspicious samples by `tracin`, or None.
    """

    dataset: Dataset
    rankings: dict[str, np.ndarray]
    rank_by: str
    reason: str
    per_checkpoint: PerCheckpoint
    out_of_fold: np.ndarray | None = None
    margins: np.ndarray | None = None
    explanations: Explanations | None = None

    @property
    def probability(self) -> np.ndarray:
        """What suggests labels, (N, C): out of fold if possible, else the means over the checkpoints."""
        return self.per_checkpoint.probability if self.out_of_fold is None else self.out_of_fold

    @property
    def judged(self) -> PerCheckpoint:
        """`per_checkpoint` with `probability`, for what shows suspects."""
        return replace(self.per_checkpoint, probability=self.probability)

    @property
    def score(self) -> np.ndarray:
        """The ranking to use, float (N,)."""
        return self.rankings[self.rank_by]

    @property
    def mislabelled(self) -> np.ndarray | None:
        """Whether the label is wrong, bool (N,), None where the true labels are unknown."""
        true = self.dataset.true_labels
        return None if true is None else (true != self.dataset.labels)[:, 0]


def agreement(run: Run) -> float:
    """Share of the labels that the networks' probabilities agree with, from 0 to 1."""
    suggested = run.probability.argmax(axis=1)
    return float((suggested == run.dataset.labels[:, 0]).mean())


def load_run(folder: Path, rank_by: str | None = None) -> Run:
    """Read the data and the scores of a run.

    Args:
        folder: ``calculate_score.py --output``, with the data and the training statistics.
        rank_by: the name of a ranking, or ``AUTO`` for the one that suits the run; None for ``AUTO``
            where the true labels are unknown, else for `tracin`.

    Raises:
        UserError: a file is missing, damaged or of another run, or the run has no such ranking.
    """
    dataset = arrays.load(folder, test=(folder / explanations.TEST).exists())
    total = scores.load_total(folder, len(dataset.images))
    per_checkpoint = scores.load_per_checkpoint(folder, total, len(dataset.names), dataset.digest())
    arrays.check_annotations(folder, dataset, per_checkpoint.annotations)
    statistics = dynamics.load(folder, per_checkpoint.run_sha256, len(dataset.labels))
    without = out_of_fold.load(folder, per_checkpoint.run_sha256,
                               (len(dataset.labels), len(dataset.names)))
    by_name = rankings(total, per_checkpoint, dataset.labels, statistics, without)
    choice = Choice(DEFAULT, "the default where the true labels are known") if rank_by is None \
        else Choice(rank_by, "")
    if rank_by == AUTO or (rank_by is None and dataset.true_labels is None):
        choice = choose_ranking(dynamics="consensus" in by_name)
    if choice.name not in by_name:
        hint = nearest(choice.name, [AUTO, *by_name])
        if choice.name in RANKINGS:
            hint = f"that needs {NEEDS.get(choice.name, 'training statistics of all epochs')}"
        raise UserError(f"expected --rank_by to be {AUTO} or one of the rankings of this run "
                        f"({', '.join(by_name)}), found {rank_by!a}{hint and f'; {hint}'}")
    return Run(dataset, by_name, choice.name, choice.reason, per_checkpoint, without,
               statistics.margin if statistics else None, explanations.load(folder, dataset, total))
