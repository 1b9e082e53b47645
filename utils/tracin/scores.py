"""The score files: written by calculate_score.py, read by mislabel_analysis.py."""
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import load_array, open_npz, read_member, release, save_array, save_npz
from utils.tracin.self_influence import Scores, sum_over_checkpoints

TOTAL = "influence_all_epoch.npy"
EPOCH = "{:06d}_influence.npy"
CHECKPOINT = "{:06d}_scores.npz"
PER_CHECKPOINT = "per_checkpoint.npz"
# One number per sample each; `probability` has one per class.
COLUMNS = tuple(own.name for own in fields(Scores) if own.name != "probability")
# Increase it when the same content gives other scores.
VERSION = 2
ROUNDING = 1e-5  # of a mean of probabilities


@dataclass(frozen=True)
class PerCheckpoint:
    """The scores of N samples at each of K checkpoints.

    Attributes:
        epochs: integers (K,).
        learning_rate: float (K,), NaN where a checkpoint does not record it.
        influence: self-influence, float (N, K); higher is more suspicious.
        loss: cross entropy, float (N, K); higher is more suspicious.
        margin: logit of the given label minus the largest other one, float (N, K); lower is more
            suspicious.
        error_norm: norm of softmax(logits) - onehot(label), float (N, K); higher is more suspicious.
        probability: mean over the checkpoints of the probability of each class, float (N, C).
        run_sha256: the key of the training run, empty if unknown.
        annotations: `Dataset.annotations` of the run, empty if unknown.
    """

    epochs: np.ndarray
    learning_rate: np.ndarray
    influence: np.ndarray
    loss: np.ndarray
    margin: np.ndarray
    error_norm: np.ndarray
    probability: np.ndarray
    run_sha256: str = ""
    annotations: dict[str, str] = field(default_factory=dict)


def content_key(**content: object) -> str:
    """SHA-256 of everything that decides the scores at a checkpoint, as JSON values."""
    return hashlib.sha256(json.dumps([VERSION, content], sort_keys=True).encode()).hexdigest()


class CheckpointScores:
    """The scores of N samples at one checkpoint that are computed so far, and their file.

    They are in memory only while they are being computed.

    Args:
        folder: the file's folder.
        epoch: the checkpoint's epoch.
        key: identifies the content; scores under another key and unreadable files are ignored.
        samples: N.
        classes: the number C of classes.

    Attributes:
        size: N.
        stale: whether the file holds something else.
    """

    def __init__(self, folder: Path, epoch: int, key: str, samples: int, classes: int):
        self.epoch, self.size, self._key = epoch, samples, key
        self._kinds: dict[str, tuple[tuple[int, ...], np.dtype]] = {
            **dict.fromkeys(COLUMNS, ((samples,), np.dtype(np.float64))),
            "probability": ((samples, classes), np.dtype(np.float32)), "key": ((), np.array(key).dtype)}
        self._path, self._influence = (folder / name.format(epoch) for name in (CHECKPOINT, EPOCH))
        kept = self._read() if self._path.exists() else None
        self.stale = self._path.exists() and kept is None
        self._todo = np.ones(samples, bool) if kept is None else ~np.isfinite(kept["influence"])
        self._arrays: dict[str, np.ndarray] | None = None

    def _read(self, *names: str) -> dict[str, np.ndarray] | None:
        """Some arrays of the file, or all, mapped; None if it is damaged or holds something else."""
        arrays = {}
        try:
            with open_npz(self._path) as file:
                for name in {**dict.fromkeys(names or self._kinds), "key": None}:
                    shape, kind = self._kinds[name]
                    # Reject zip bombs before decompressing.
                    most = math.prod(shape) * kind.itemsize + 999
                    if file.zip.getinfo(f"{name}.npy").file_size > most:
                        return None
                    arrays[name] = read_member(file, name)
                    if (arrays[name].shape, arrays[name].dtype) != (shape, kind):
                        return None
        except Exception:
            return None
        return arrays if arrays.pop("key") == self._key else None

    def missing(self, start: int = 0, stop: int | None = None) -> int:
        """The number of samples from `start` up to `stop` without scores."""
        return int(self._todo[start:stop].sum())

    def add(self, start: int, stop: int, scores: Scores):
        """Add the scores of samples `start` up to `stop`."""
        if self._arrays is None:
            kept = None if self._todo.all() else self._read()
            self._arrays = {name: np.array(kept[name]) if kept else np.full(shape, np.nan, kind)
                            for name, (shape, kind) in self._kinds.items() if name != "key"}
            self._todo[:] = ~np.isfinite(self._arrays["influence"])
        for name, array in self._arrays.items():
            array[start:stop] = getattr(scores, name)
        self._todo[start:stop] = False

    def save(self):
        """Write the file.

        Raises:
            RunError: it cannot be written.
        """
        save_npz(self._path, {**self._arrays, "key": self._key}.items())
        if not self.missing():
            self._arrays = None

    def save_influence(self):
        """Write the self-influence alone, as ``<epoch>_influence.npy``."""
        save_array(self._influence, self["influence"])

    def remove(self):
        """Remove both files."""
        for path in (self._path, self._influence):
            path.unlink(missing_ok=True)

    def __getitem__(self, name: str) -> np.ndarray:
        """One of ``COLUMNS``, (N,), or ``probability``, (N, C), of the saved file, memory-mapped.

        Raises:
            UserError: the file has changed.
        """
        arrays = self._read(name)
        if arrays is None:
            raise UserError(f"{self._path} was changed or removed while it was needed; run again")
        return arrays[name]


def save_total(folder: Path, checkpoints: list[CheckpointScores], learning_rates: list[float],
               digest: str, run: str, annotations: dict[str, str]):
    """Write ``per_checkpoint.npz``, with what identifies the data and the run, then the sums.

    Raises:
        RunError: a file cannot be written.
        UserError: the file of a checkpoint's scores has changed.
    """
    def arrays() -> Iterator[tuple[str, object]]:  # one at a time, to save memory
        yield "epochs", [checkpoint.epoch for checkpoint in checkpoints]
        yield "learning_rate", np.array(learning_rates, float)
        for name in COLUMNS:
            yield name, np.stack([checkpoint[name] for checkpoint in checkpoints], axis=1)
        probability = sum_over_checkpoints(checkpoint["probability"] for checkpoint in checkpoints)
        probability /= len(checkpoints)
        yield "probability", probability
        yield "data_sha256", digest
        yield "run_sha256", run
        yield "annotations", json.dumps(annotations)
    save_npz(folder / PER_CHECKPOINT, arrays())
    total = sum_over_checkpoints(checkpoint["influence"] for checkpoint in checkpoints)
    save_array(folder / TOTAL, total)


def check_unused(folder: Path, digest: str, run: str):
    """Refuse to overwrite the scores of another run.

    Args:
        folder: where the new scores will go.
        digest: the digest of the data to score.
        run: the key of the training run, empty if unknown.

    Raises:
        UserError: `folder` holds others.
    """
    try:
        with open_npz(folder / PER_CHECKPOINT) as file:
            other = str(file["data_sha256"]), str(file["run_sha256"])
    except Exception:  # nothing there, or nothing that can be read
        return
    if other[0] != digest or (run and other[1] and other[1] != run):
        raise UserError(f"{folder} holds the scores of another run; give another --output, or remove "
                        f"{PER_CHECKPOINT} there")


def load_total(folder: Path, samples: int) -> np.ndarray:
    """The self-influence of every sample, summed over the checkpoints, float (N,).

    Args:
        folder: ``calculate_score.py --output``.
        samples: the number N of samples that the data beside it has.

    Raises:
        UserError: the file is missing, damaged, or does not fit.
    """
    score = np.array(load_array(folder / TOTAL))
    _check(folder / TOTAL, score, (samples,))
    return score


def load_per_checkpoint(folder: Path, total: np.ndarray, classes: int,
                        digest: str) -> PerCheckpoint:
    """Read the scores at each checkpoint.

    Args:
        folder: ``calculate_score.py --output``.
        total: the sums (N,) that must belong to them.
        classes: the number C of classes.
        digest: the digest of the data that was scored.

    Raises:
        UserError: the file is missing, damaged, or does not fit.
    """
    path = folder / PER_CHECKPOINT
    try:
        with open_npz(path) as file:
            arrays = {own.name: read_member(file, own.name) for own in fields(PerCheckpoint)
                      if own.type is np.ndarray}
            scored, run = str(file["data_sha256"]), str(file["run_sha256"])
            # Earlier versions did not record them.
            annotations = json.loads(str(file["annotations"])) if "annotations" in file else {}
            if not isinstance(annotations, dict):
                raise ValueError("its annotations are no JSON object")
    except FileNotFoundError:
        raise UserError(f"expected {path}, found nothing; run calculate_score.py first") from None
    except Exception as error:  # a damaged archive raises almost anything
        raise UserError(f"cannot read {path}: {error}; run calculate_score.py again") from error
    if scored != digest:
        raise UserError(f"{path} holds the scores of other images or labels than those beside it; "
                        "run calculate_score.py again")
    result = PerCheckpoint(**arrays, run_sha256=run, annotations=annotations)
    if result.epochs.ndim != 1 or result.epochs.dtype.kind not in "iu" or not len(result.epochs):
        raise UserError(f"expected integers (K,) as epochs in {path}, K at least 1, found "
                        f"{result.epochs.dtype} {result.epochs.shape}; run calculate_score.py again")
    for name in COLUMNS:
        _check(path, getattr(result, name), (len(total), len(result.epochs)))
    _check(path, np.nan_to_num(result.learning_rate), result.epochs.shape)
    _check(path, result.probability, (len(total), classes))
    for name, most in (("influence", np.inf), ("probability", 1 + ROUNDING)):
        least, largest = getattr(result, name).min(), getattr(result, name).max()
        if least < 0 or largest > most:
            found = least if least < 0 else largest
            raise UserError(f"expected {name} from 0{'' if most == np.inf else ' to 1'} in {path}, "
                            f"found {found:g}; run calculate_score.py again")
    if not np.allclose(sum_over_checkpoints(result.influence.T), total, rtol=1e-9, atol=0):
        raise UserError(f"expected the sums over the checkpoints of {path} in {folder / TOTAL}, found "
                        "others; run calculate_score.py again")
    for array in arrays.values():
        release(array)
    return result


def _check(path: Path, array: np.ndarray, shape: tuple[int, ...]):
    if array.dtype.kind != "f" or array.shape != shape:
        raise UserError(f"expected floats {shape} in {path}, found {array.dtype} {array.shape}; "
                        "run calculate_score.py on these data")
    if not np.isfinite(array).all():
        raise UserError(f"expected finite numbers in {path}, found "
                        f"{int((~np.isfinite(array)).sum())} others; run calculate_score.py again")
