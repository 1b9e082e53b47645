"""What the analysis reads: a training set and its rankings."""
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets import arrays
from datasets.arrays import Dataset
from utils.cli import nearest
from utils.errors import UserError
from utils.review.rankings import rankings
from utils.tracin import scores
from utils.tracin.scores import PerCheckpoint
from utils.training import dynamics


@dataclass(frozen=True)
class Run:
    """A training set of N samples and their scores.

    Attributes:
        dataset: the N samples.
        rankings: by name, float (N,); higher is more suspicious.
        rank_by: the name of the ranking to use.
        per_checkpoint: the scores at each checkpoint.
    """

    dataset: Dataset
    rankings: dict[str, np.ndarray]
    rank_by: str
    per_checkpoint: PerCheckpoint

    @property
    def score(self) -> np.ndarray:
        """The ranking to use, float (N,)."""
        return self.rankings[self.rank_by]

    @property
    def mislabelled(self) -> np.ndarray | None:
        """Whether the label is wrong, bool (N,), None where the true labels are unknown."""
        true = self.dataset.true_labels
        return None if true is None else (true != self.dataset.labels)[:, 0]


def load_run(folder: Path, rank_by: str) -> Run:
    """Read the data and the scores of a run.

    Raises:
        UserError: a file is missing, damaged or of another run, or the run has no such ranking.
    """
    dataset = arrays.load(folder)
    total = scores.load_total(folder, len(dataset.images))
    per_checkpoint = scores.load_per_checkpoint(folder, total, len(dataset.names), dataset.digest())
    arrays.check_annotations(folder, dataset, per_checkpoint.annotations)
    by_name = rankings(total, per_checkpoint, dataset.labels,
                       dynamics.load(folder, per_checkpoint.run_sha256))
    if rank_by not in by_name:
        hint = nearest(rank_by, by_name)
        raise UserError(f"expected --rank_by to be one of the rankings of this run "
                        f"({', '.join(by_name)}), found {rank_by}{hint and f'; {hint}'}")
    return Run(dataset, by_name, rank_by, per_checkpoint)
