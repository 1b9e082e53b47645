"""The score files: written by calculate_score.py, read by mislabel_analysis.py."""
import hashlib
import io
import json
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
CHECKPOINT = "{:06d}_scores.npz"
PER_CHECKPOINT = "per_checkpoint.npz"
COLUMNS = ("influence", "loss", "margin", "error_norm")
# To be raised when the same content gives other scores.
VERSION = 1


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


def content_key(**content: object) -> str:
    """SHA-256 of what decides the scores at a checkpoint (JSON values), to know them again by."""
    return hashlib.sha256(json.dumps([VERSION, content], sort_keys=True).encode()).hexdigest()


class CheckpointScores:
    """The scores of N samples at one checkpoint, as far as they are computed, and the file of them.

    Args:
        folder: where the file is.
        epoch: the checkpoint's.
        key: what the scores are known again by; those that the file holds under another key, or
            a file that cannot be read, count for nothing.
        samples: N.
        classes: the number C of classes.

    Attributes:
        size: N.
        stale: whether the file holds something else.
    """

    def __init__(self, folder: Path, epoch: int, key: str, samples: int, classes: int):
        self.epoch, self.size, self._key = epoch, samples, key
        self._path = folder / CHECKPOINT.format(epoch)
        self._arrays = {name: np.full(samples, np.nan) for name in COLUMNS}
        self._arrays["probability"] = np.full((samples, classes), np.nan, np.float32)
        kept = self._read() if self._path.exists() else {}
        self.stale = self._path.exists() and not kept
        self._arrays |= kept

    def _read(self) -> dict[str, np.ndarray]:
        try:
            with np.load(self._path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in self._arrays}
                fits = str(file["key"]) == self._key
        except Exception:  # noqa: BLE001  a damaged archive raises almost anything
            return {}
        fits = fits and all(arrays[name].shape == array.shape and arrays[name].dtype == array.dtype
                            for name, array in self._arrays.items())
        return arrays if fits else {}

    def missing(self, start: int = 0, stop: int | None = None) -> int:
        """How many of the samples from `start` up to `stop` have no scores yet."""
        return int(np.isnan(self._arrays["influence"][start:stop]).sum())

    def add(self, start: int, stop: int, scores: "Scores"):
        """Take the scores of samples `start` up to `stop`."""
        for name, array in self._arrays.items():
            array[start:stop] = getattr(scores, name)

    def save(self):
        """Write the file.

        Raises:
            UserError: it cannot be written.
        """
        _save_archive(self._path, **self._arrays, key=self._key)

    def remove(self):
        """Remove the file."""
        self._path.unlink(missing_ok=True)

    def __getitem__(self, name: str) -> np.ndarray:
        """One of ``COLUMNS``, (N,), or ``probability``, (N, C)."""
        return self._arrays[name]


def save_epoch(folder: Path, checkpoint: CheckpointScores):
    """Write the self-influence at one checkpoint."""
    save_array(folder / EPOCH.format(checkpoint.epoch), checkpoint["influence"])


def save_total(folder: Path, checkpoints: list[CheckpointScores], learning_rates: list[float],
               digest: str):
    """Write ``per_checkpoint.npz``, with the digest of the data, then the sums.

    Raises:
        UserError: a file cannot be written.
    """
    columns = {name: np.stack([checkpoint[name] for checkpoint in checkpoints], axis=1)
               for name in COLUMNS}
    probability = sum(checkpoint["probability"].astype(float) for checkpoint in checkpoints)
    _save_archive(folder / PER_CHECKPOINT,
                  epochs=np.array([checkpoint.epoch for checkpoint in checkpoints]),
                  learning_rate=np.array(learning_rates), **columns,
                  probability=probability / len(checkpoints), data_sha256=digest)
    save_array(folder / TOTAL, columns["influence"].sum(axis=1))


def _save_archive(path: Path, **arrays: object):
    content = io.BytesIO()
    np.savez(content, **arrays)
    save_bytes(path, content.getbuffer())


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
