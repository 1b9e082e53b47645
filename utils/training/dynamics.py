"""What training sees of every sample, epoch by epoch, kept for the rankings that are made of it."""
import io
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import open_npz, save_bytes

FILE = "training_dynamics.npz"
LARGEST = float(np.finfo(np.float16).max)


class TrainingDynamics:
    """Loss, margin and whether it was right, of N samples in the epochs so far.

    They are those of the forward passes of training itself: augmented images, batch normalization by
    the batch, the parameters of that moment.

    Args:
        samples: N.
        epochs: E, all that the run will have.

    Attributes:
        loss: cross entropy, float16 (N, E), NaN where it is not known.
        margin: logit of the given label less the largest other one, float16 (N, E), likewise.
        correct: whether the given label had the largest logit, bool (N, E).
        epochs: how many epochs are recorded.
    """

    def __init__(self, samples: int, epochs: int):
        self.loss, self.margin = (np.full((samples, epochs), np.nan, np.float16) for _ in range(2))
        self.correct = np.zeros((samples, epochs), bool)
        self.epochs = 0

    def record(self, epoch: int, batch: np.ndarray, loss: np.ndarray, margin: np.ndarray):
        """Take what a batch showed; `batch` are the numbers of its samples, all arrays (B,)."""
        self.loss[batch, epoch] = np.clip(loss, -LARGEST, LARGEST)
        self.margin[batch, epoch] = np.clip(margin, -LARGEST, LARGEST)
        self.correct[batch, epoch] = margin > 0
        self.epochs = epoch + 1

    def save(self, folder: Path, run: str):
        """Write ``training_dynamics.npz`` with the epochs so far and the key of the run.

        Raises:
            UserError: it cannot be written.
        """
        content = io.BytesIO()
        np.savez_compressed(content, loss=self.loss[:, :self.epochs],
                            margin=self.margin[:, :self.epochs],
                            correct=self.correct[:, :self.epochs], run_sha256=run)
        save_bytes(folder / FILE, content.getbuffer())

    def resume(self, folder: Path, run: str, epoch: int) -> bool:
        """Take the first `epoch` epochs from the file of an interrupted run; whether they are there."""
        self.epochs = epoch
        try:
            kept = load(folder, run)
        except UserError:
            kept = None
        if kept is None or kept.epochs < epoch or len(kept.loss) != len(self.loss):
            return False
        for name in ("loss", "margin", "correct"):
            getattr(self, name)[:, :epoch] = getattr(kept, name)[:, :epoch]
        return True


def check_unused(folder: Path, run: str):
    """Refuse to take the place of what another run has recorded, which its rankings need.

    Args:
        folder: where a run will save.
        run: its key (`checkpoint.run_key`).

    Raises:
        UserError: `folder` has the file of another run.
    """
    path = folder / FILE
    try:
        with open_npz(path) as file:
            recorded = str(file["run_sha256"])
    except Exception:  # noqa: BLE001  none there, or a damaged one, which raises almost anything
        return
    if recorded != run:
        raise UserError(f"{path} is of another training run, whose rankings need it; give another "
                        "--output, or remove it")


def load(folder: Path, run: str) -> TrainingDynamics | None:
    """What a run has recorded, or None where there is no file.

    Args:
        folder: ``train.py --output``.
        run: the key of the run it must belong to (`checkpoint.run_key`).

    Raises:
        UserError: the file is damaged, or of another run.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with open_npz(path) as file:
            loss, margin, correct = (file[name] for name in ("loss", "margin", "correct"))
            recorded = str(file["run_sha256"])
    except Exception as error:  # a damaged archive raises almost anything
        raise UserError(f"cannot read {path}: {error}; remove it to go without, or train again") \
            from error
    if recorded != run:
        raise UserError(f"{path} is of another training run than the scores; remove it to go without, "
                        "or train again")
    if not (loss.dtype == margin.dtype == np.float16 and correct.dtype == bool and loss.ndim == 2
            and loss.shape == margin.shape == correct.shape):
        raise UserError(f"expected float16, float16 and bool of one shape (N, E) in {path}, found "
                        f"{loss.dtype} {loss.shape}, {margin.dtype} {margin.shape} and {correct.dtype} "
                        f"{correct.shape}; remove it to go without, or train again")
    result = TrainingDynamics(*loss.shape)
    result.loss, result.margin, result.correct, result.epochs = loss, margin, correct, loss.shape[1]
    return result
