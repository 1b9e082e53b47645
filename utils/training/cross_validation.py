"""Cross-validation: probabilities by networks that were trained without the sample.

The samples are divided into folds, and for each fold a network is trained on all others, with the
settings of the run's own network (Northcutt et al. 2021, arXiv:1911.00068, section 3).
"""
import math
from collections.abc import Callable

import nnabla as nn
import numpy as np
from tqdm import tqdm

from datasets.arrays import Dataset
from utils.errors import UserError
from utils.files import Rows
from utils.training.learning_rate import learning_rate
from utils.training.parallel import Ranks
from utils.training.trainer import Trainer, batches

FOLDS = 5
SCOPE = "cross_validation"
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


def predict(make_trainer: Callable[[Rows], Trainer], dataset: Dataset, *, epochs: int,
            batch_size: int, base_rate: float, seed: int, ranks: Ranks | None = None) -> np.ndarray:
    """Train a network without each fold and let it predict the fold, with a progress bar.

    Each network has a parameter scope of its own, which is empty again afterwards.  With several ranks
    each trains every R-th network alone, to the bits of one rank.

    Args:
        make_trainer: ``make_trainer(inputs)`` returns a trainer with new parameters in the current scope
            for a training set, which may decide some of them: its inputs (M, ...).
        dataset: N samples of C classes.
        epochs, batch_size, base_rate, seed: as in the training of the run.
        ranks: those that call this together, None without MPI.

    Returns:
        The softmax of the logits after the last epoch, float32 (N, C).

    Raises:
        UserError: a training diverged.
    """
    inputs, labels = dataset.inputs, dataset.labels
    fold, result = draw_folds(labels, seed), np.zeros((len(labels), len(dataset.names)), np.float32)
    own = np.unique(fold)[ranks.rank::ranks.size] if ranks else np.unique(fold)
    with tqdm(total=len(own) * epochs, unit="epoch", desc="out of fold", leave=False,
              disable=True if ranks and ranks.rank else None) as bar:
        for number in own:
            left_out, kept = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
            with nn.parameter_scope(SCOPE):
                seen = Rows(inputs, kept)  # a copy might not fit in memory
                trainer = make_trainer(seen)
                _train(trainer, seen, labels[kept], epochs, min(batch_size, len(kept)),
                       base_rate, bar.update)
                result[left_out] = _predict(trainer, Rows(inputs, left_out), labels[left_out])
                nn.clear_parameters()
    if ranks:
        ranks.sum_arrays(result)  # zeros where another rank predicts
    if not np.isfinite(result).all():
        raise UserError("expected finite probabilities out of fold, found NaN or infinity; lower "
                        f"--learning_rate {base_rate:g}")
    return result


def _train(trainer: Trainer, inputs: Rows, labels: np.ndarray, epochs: int, batch_size: int,
           base_rate: float, done: Callable[[], object]):
    updates = math.ceil(len(inputs) / batch_size)
    for epoch in range(epochs):
        def rate(update: int, before: int = epoch * updates) -> float:
            return learning_rate(base_rate, batch_size, before + update, epochs * updates)
        trainer.train_epoch(epoch, inputs, labels, batch_size, rate, lambda *numbers: None)
        done()


def _predict(trainer: Trainer, inputs: Rows, labels: np.ndarray) -> np.ndarray:
    """The probabilities, float64 (N, C)."""
    evaluate = trainer.engine.evaluator()
    logits = np.concatenate([evaluate(inputs[batch], labels[batch])[0].copy()
                             for batch in batches(np.arange(len(inputs)), PREDICTED_AT_ONCE)])
    with np.errstate(all="ignore"):  # the caller finds what is not finite
        powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)
