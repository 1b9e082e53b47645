"""The file of the probabilities by networks that were trained without the sample."""
from pathlib import Path

import numpy as np

from datasets.arrays import OUT_OF_FOLD
from utils.errors import UserError
from utils.files import open_npz, save_npz

FILE = OUT_OF_FOLD


def save(folder: Path, run: str, probability: np.ndarray):
    """Write ``out_of_fold.npz``: the probabilities (N, C) and the key of the run.

    Raises:
        RunError: it cannot be written.
    """
    save_npz(folder / FILE, [("probability", probability), ("run_sha256", run)], compressed=True)


def load(folder: Path, run: str, shape: tuple[int, int]) -> np.ndarray | None:
    """The probabilities of a run, float32 (N, C), or None if there is no file.

    Args:
        folder: ``train.py --output``.
        run: the key of the run that the file must belong to (`checkpoint.run_key`).
        shape: (N, C).

    Raises:
        UserError: the file is damaged, of another run, or does not hold probabilities.
    """
    path = folder / FILE
    if not path.exists():
        return None
    remedy = "remove it to continue without it, or train again"
    try:
        with open_npz(path, largest=4 * shape[0] * shape[1] + 999) as file:
            probability, recorded = file["probability"], str(file["run_sha256"])
    except Exception as error:  # a damaged archive raises almost anything
        raise UserError(f"cannot read {path}: {error}; {remedy}") from error
    if recorded != run:
        raise UserError(f"{path} belongs to another training run than the scores; {remedy}")
    if probability.dtype != np.float32 or probability.shape != shape:
        raise UserError(f"expected float32 {shape} in {path}, found {probability.dtype} "
                        f"{probability.shape}; {remedy}")
    if not (np.all(probability >= 0) and np.allclose(probability.sum(axis=1), 1, atol=1e-3)):
        raise UserError(f"expected probabilities that sum to 1 in {path}, found others; {remedy}")
    return probability
