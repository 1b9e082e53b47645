"""Per-sample training statistics for AUM and forgetting."""
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import open_npz, save_npz

FILE = "training_dynamics.npz"
MOST_EPOCHS = 10_000  # of a file that is read
LARGEST = float(np.finfo(np.float16).max)


def loss_and_margin(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cross entropy, and the given label's logit minus the largest other logit, float64 (B,) each.

    Args:
        logits: (B, C).
        labels: integers (B, 1).
    """
    logits = logits.astype(np.float64)
    labelled = np.take_along_axis(logits, labels, axis=1)[:, 0]
    largest = logits.max(axis=1)
    loss = np.log(np.exp(logits - largest[:, None]).sum(axis=1)) + largest - labelled
    np.put_along_axis(logits, labels, -np.inf, axis=1)
    return loss, labelled - logits.max(axis=1)


class TrainingDynamics:
    """Loss, margin and correctness of N samples in every epoch so far.

    They come from the forward passes of training itself: augmented images, batch normalization by
    the batch, the parameters before the update.

    Args:
        samples: N.
        epochs: E, the number of epochs in the whole run.

    Attributes:
        loss: cross entropy, float16 (N, E), NaN where unknown; zero after the last recorded epoch.
        margin: logit of the given label minus the largest other logit, float16 (N, E), likewise.
        correct: whether the given label had the largest logit, bool (N, E).
        epochs: number of recorded epochs.
    """

    def __init__(self, samples: int, epochs: int):
        # By epoch: zeros take memory once they are written to.
        self.loss, self.margin, self.correct = (np.zeros((epochs, samples), kind).T
                                                for kind in (np.float16, np.float16, bool))
        self.epochs = 0

    def _extend(self, epochs: int):
        for array in (self.loss, self.margin):
            array[:, self.epochs:epochs] = np.nan
        self.epochs = epochs

    def record(self, epoch: int, batch: np.ndarray, loss: np.ndarray, margin: np.ndarray):
        """Record a batch: the indices of its samples, their losses and margins, each (B,)."""
        if epoch >= self.epochs:
            self._extend(epoch + 1)
        self.loss[batch, epoch] = np.clip(loss, -LARGEST, LARGEST)
        self.margin[batch, epoch] = np.clip(margin, -LARGEST, LARGEST)
        self.correct[batch, epoch] = margin > 0

    def save(self, folder: Path, run: str):
        """Write ``training_dynamics.npz``: the epochs so far and the key of the run.

        Raises:
            RunError: it cannot be written.
        """
        arrays = [(name, getattr(self, name)[:, :self.epochs]) for name in ("loss", "margin", "correct")]
        save_npz(folder / FILE, [*arrays, ("run_sha256", np.array(run))], compressed=True)

    def resume(self, folder: Path, run: str, epoch: int) -> bool:
        """Read the first `epoch` epochs from an interrupted run's file; returns whether it has them."""
        self._extend(epoch)
        try:
            kept = load(folder, run, len(self.loss))
        except UserError:
            kept = None
        if kept is None or kept.epochs < epoch:
            return False
        for name in ("loss", "margin", "correct"):
            getattr(self, name)[:, :epoch] = getattr(kept, name)[:, :epoch]
        return True


def check_unused(folder: Path, run: str):
    """Refuse to overwrite the statistics of another run, whose rankings need them.

    Args:
        folder: the folder that a run will save to.
        run: the run's key (`checkpoint.run_key`).

    Raises:
        UserError: `folder` holds the file of another run.
    """
    path = folder / FILE
    try:
        with open_npz(path) as file:
            recorded = str(file["run_sha256"])
    except Exception:
        return
    if recorded != run:
        raise UserError(f"{path} belongs to another training run, whose rankings need it; give another "
                        "--output, or remove it")


def load(folder: Path, run: str, samples: int) -> TrainingDynamics | None:
    """The statistics of a run, or None if there is no file.

    Args:
        folder: ``train.py --output``.
        run: the key of the run that the file must belong to (`checkpoint.run_key`).
        samples: N.

    Raises:
        UserError: the file is damaged, of another run, or of other samples.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with open_npz(path, largest=2 * samples * MOST_EPOCHS + 999) as file:
            loss, margin, correct = (file[name] for name in ("loss", "margin", "correct"))
            recorded = str(file["run_sha256"])
    except Exception as error:  # a damaged archive raises almost anything
        raise UserError(f"cannot read {path}: {error}; remove it to continue without it, or train "
                        "again") from error
    if recorded != run:
        raise UserError(f"{path} belongs to another training run than the scores; remove it to continue "
                        "without it, or train again")
    if not (loss.dtype == margin.dtype == np.float16 and correct.dtype == bool
            and loss.shape == margin.shape == correct.shape
            and loss.ndim == 2 and len(loss) == samples and loss.size):
        raise UserError(f"expected float16, float16 and bool ({samples}, E) in {path}, found "
                        f"{loss.dtype} {loss.shape}, {margin.dtype} {margin.shape} and {correct.dtype} "
                        f"{correct.shape}; remove it to continue without it, or train again")
    result = TrainingDynamics(*loss.shape)
    result.loss, result.margin, result.correct, result.epochs = loss, margin, correct, loss.shape[1]
    return result
