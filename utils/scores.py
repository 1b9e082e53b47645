"""The score files: written by calculate_score.py, read by mislabel_analysis.py."""
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.cli import UserError
from utils.files import load_array, save_array, save_bytes

if TYPE_CHECKING:  # the analysis reads scores and never imports nnabla
    from utils.self_influence import Scores

TOTAL = "influence_all_epoch.npy"
EPOCH = "{:06d}_influence.npy"
PER_CHECKPOINT = "per_checkpoint.npz"
COLUMNS = ("influence", "loss", "margin", "error_norm")


@dataclass(frozen=True)
class PerCheckpoint:
    """What every checkpoint said of every sample.

    Attributes:
        epochs: integers (K,).
        influence: self-influence, float (N, K); higher is more suspicious.
        probability: mean over the checkpoints of the probability of each class, float (N, C).
    """

    epochs: np.ndarray
    influence: np.ndarray
    probability: np.ndarray


class Total:
    """Gathers the scores of one checkpoint after the other."""

    def __init__(self, epochs: list[int], learning_rates: list[float], samples: int, classes: int):
        self._epochs = np.array(epochs)
        self._learning_rate = np.array(learning_rates)
        self._columns = {name: np.empty((samples, len(epochs))) for name in COLUMNS}
        self._probability = np.zeros((samples, classes))
        self._done = 0

    def add(self, scores: "Scores"):
        """Add the scores at the next checkpoint."""
        for name, column in self._columns.items():
            column[:, self._done] = getattr(scores, name)
        self._probability += scores.probability
        self._done += 1

    def save(self, folder: Path, digest: str):
        """Write ``per_checkpoint.npz``, with the digest of the data, then the sums.

        Raises:
            UserError: a file cannot be written.
        """
        content = io.BytesIO()
        np.savez(content, epochs=self._epochs, learning_rate=self._learning_rate,
                 **self._columns, probability=self._probability / self._done, data_sha256=digest)
        save_bytes(folder / PER_CHECKPOINT, content.getbuffer())
        save_array(folder / TOTAL, self._columns["influence"].sum(axis=1))


def save_epoch(folder: Path, epoch: int, influence: np.ndarray):
    """Write the self-influence (N,) at one checkpoint."""
    save_array(folder / EPOCH.format(epoch), influence)


def load_total(folder: Path, samples: int) -> np.ndarray:
    """The self-influence of every sample, summed over the checkpoints, float (N,).

    Args:
        folder: what ``calculate_score.py --output`` was.
        samples: the number N of samples that the data beside it has.

    Raises:
        UserError: the file is missing, damaged, or does not fit.
    """
    score = np.array(load_array(folder / TOTAL))
    _check(folder / TOTAL, score, (samples,))
    return score


def load_per_checkpoint(folder: Path, total: np.ndarray, classes: int,
                        digest: str) -> PerCheckpoint:
    """What every checkpoint said of every sample.

    Args:
        folder: what ``calculate_score.py --output`` was.
        total: the sums (N,) that must belong to it.
        classes: the number C of classes.
        digest: that of the data the scores must belong to.

    Raises:
        UserError: the file is missing, damaged, or does not fit.
    """
    path = folder / PER_CHECKPOINT
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("epochs", "influence", "probability")}
            scored = str(file["data_sha256"])
    except FileNotFoundError:
        raise UserError(f"expected {path}, found nothing; run calculate_score.py first") from None
    except Exception as error:  # a damaged archive raises almost anything
        raise UserError(f"cannot read {path}: {error}; run calculate_score.py again") from error
    if scored != digest:
        raise UserError(f"{path} holds the scores of other images or labels than those beside it; "
                        "run calculate_score.py again")
    result = PerCheckpoint(**arrays)
    if result.epochs.ndim != 1 or result.epochs.dtype.kind not in "iu":
        raise UserError(f"expected integers (K,) as epochs in {path}, found {result.epochs.dtype} "
                        f"{result.epochs.shape}; run calculate_score.py again")
    _check(path, result.influence, (len(total), len(result.epochs)))
    _check(path, result.probability, (len(total), classes))
    if not np.allclose(result.influence.sum(axis=1), total):
        raise UserError(f"{path} and {folder / TOTAL} are of different runs; run "
                        "calculate_score.py again")
    return result


def _check(path: Path, array: np.ndarray, shape: tuple[int, ...]):
    if array.dtype.kind != "f" or array.shape != shape:
        raise UserError(f"expected floats {shape} in {path}, found {array.dtype} {array.shape}; "
                        "run calculate_score.py on these data")
    if not np.isfinite(array).all():
        raise UserError(f"expected finite numbers in {path}, found "
                        f"{int((~np.isfinite(array)).sum())} others; run calculate_score.py again")
