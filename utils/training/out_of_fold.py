"""Probabilities of every sample's labels by networks that were trained without the sample.

The samples are divided into folds, and for each fold a network is trained on all others, with the
settings of the run's own network: cross-validation (Northcutt et al. 2021, arXiv:1911.00068, section 3).
"""
import io
import math
from collections.abc import Callable
from pathlib import Path

import nnabla as nn
import numpy as np
from tqdm import tqdm

from datasets.arrays import Dataset
from utils.errors import UserError
from utils.files import open_npz, save_bytes
from utils.training.learning_rate import learning_rate
from utils.training.trainer import Trainer, batches

FILE = "out_of_fold.npz"
FOLDS = 5
SCOPE = "out_of_fold"
# Not (seed, epoch): the order of an epoch's samples is drawn from that.
STREAM = (0, 1)
PREDICTED_AT_ONCE = 500


def draw_folds(labels: np.ndarray, seed: int, folds: int = FOLDS) -> np.ndarray:
    """Divide the samples at random into folds of equal sizes, each class evenly.

    Args:
        labels: integers (N, 1).
        seed: determines the folds, with the labels.
        folds: their number.

    Returns:
        The number of each sample's fold, integers (N,).  Folds, and each class's shares of them, differ
        by at most one sample.
    """
    shuffled = np.random.default_rng((seed, *STREAM)).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled, 0], kind="stable")]
    result = np.empty(len(labels), int)
    result[by_class] = np.arange(len(labels)) % folds
    return result


def predict(make_trainer: Callable[[np.ndarray], Trainer], dataset: Dataset, *, epochs: int,
            batch_size: int, base_rate: float, seed: int) -> np.ndarray:
    """Train a network without each fold and let it predict the fold, with a progress bar.

    Each network has a parameter scope of its own, which is empty again afterwards.

    Args:
        make_trainer: ``make_trainer(inputs)`` returns a trainer with new parameters in the current scope
            for a training set, which may decide some of them: its inputs (M, ...).
        dataset: N samples of C classes.
        epochs, batch_size, base_rate, seed: as in the training of the run.

    Returns:
        The softmax of the logits after the last epoch, float32 (N, C).

    Raises:
        UserError: a training diverged.
    """
    inputs, labels = dataset.inputs, dataset.labels
    fold, result = draw_folds(labels, seed), np.zeros((len(labels), len(dataset.names)), np.float32)
    with tqdm(total=min(FOLDS, len(labels)) * epochs, unit="epoch", desc="out of fold", leave=False,
              disable=None) as bar:
        for number in np.unique(fold):
            left_out, kept = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
            with nn.parameter_scope(SCOPE):
                seen = inputs[kept]
                trainer = make_trainer(seen)
                _train(trainer, seen, labels[kept], epochs, min(batch_size, len(kept)),
                       base_rate, bar.update)
                result[left_out] = _predict(trainer, inputs[left_out], labels[left_out])
                nn.clear_parameters()
    if not np.isfinite(result).all():
        raise UserError("expected finite probabilities out of fold, found NaN or infinity; lower "
                        f"--learning_rate {base_rate:g}")
    return result


def _train(trainer: Trainer, inputs: np.ndarray, labels: np.ndarray, epochs: int, batch_size: int,
           base_rate: float, done: Callable[[], object]):
    updates = math.ceil(len(inputs) / batch_size)
    for epoch in range(epochs):
        def rate(update: int, before: int = epoch * updates) -> float:
            return learning_rate(base_rate, batch_size, before + update, epochs * updates)
        trainer.train_epoch(epoch, inputs, labels, batch_size, rate, lambda *numbers: None)
        done()


def _predict(trainer: Trainer, inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The probabilities, float64 (N, C)."""
    evaluate = trainer.engine.evaluator()
    logits = np.concatenate([evaluate(inputs[batch], labels[batch])[0].copy()
                             for batch in batches(np.arange(len(inputs)), PREDICTED_AT_ONCE)])
    with np.errstate(all="ignore"):  # the caller finds what is not finite
        powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)


def save(folder: Path, run: str, probability: np.ndarray):
    """Write ``out_of_fold.npz``: the probabilities (N, C) and the key of the run.

    Raises:
        RunError: it cannot be written.
    """
    content = io.BytesIO()
    np.savez_compressed(content, probability=probability, run_sha256=run)
    save_bytes(folder / FILE, content.getbuffer())


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
        with open_npz(path) as file:
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
