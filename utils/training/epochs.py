"""The epochs of a run: a trainer, where it starts, and one epoch after the other, logged."""
import math
from functools import partial

import numpy as np

from datasets import flags
from datasets.arrays import Dataset
from models.registry import MODELS, Network
from utils import mpi
from utils.context import current_context, memory_for
from utils.errors import UserError
from utils.files import Rows
from utils.training import cross_validation, dynamics
from utils.training.checkpoint import load_checkpoint
from utils.training.dynamics import TrainingDynamics, loss_and_margin
from utils.training.engines import ENGINES
from utils.training.learning_rate import learning_rate
from utils.training.log import TrainingLog
from utils.training.parallel import Ranks
from utils.training.settings import RunSettings
from utils.training.trainer import Trainer


def make_trainer(settings: RunSettings, network: Network, inputs: np.ndarray | Rows,
                 ranks: Ranks | None = None) -> Trainer:
    """A trainer of a network with new parameters in the current scope, for the inputs (N, ...)."""
    engine = ENGINES[settings.engine].make(network, settings.workers, settings.type_config == "half")
    prepare = MODELS[settings.model].prepare
    if prepare:
        prepare(inputs)
    return Trainer(engine, settings.data.augmentation, settings.seed, settings.weight_decay, ranks)


def start_or_resume(settings: RunSettings, trainer: Trainer, dataset: Dataset,
                    run: str) -> tuple[TrainingLog, TrainingDynamics | None]:
    """The log and the statistics of the epochs so far; `trainer` continues after them.

    Only the first rank restores the checkpoint and has statistics, and its log alone writes.
    """
    history = settings.resumed.description.history if settings.resumed else []
    if mpi.job().rank:
        return TrainingLog(None, settings.train_epochs, history), None
    record = TrainingDynamics(len(dataset.images), settings.train_epochs)
    if settings.resumed:
        load_checkpoint(settings.resumed, trainer.solver)
        if not record.resume(settings.output, run, len(history)):
            print(f"{settings.output / dynamics.FILE} lacks the first {len(history)} epochs: no "
                  "ranking by training statistics will be available", flush=True)
    log = TrainingLog(settings.monitor_path, settings.train_epochs, history,
                      "training-set" if dataset.tests_on_training_images else "test",
                      settings.shorter() if current_context() == "cpu" else "")
    return log, record


def train_epoch(settings: RunSettings, trainer: Trainer, dataset: Dataset, log: TrainingLog,
                record: TrainingDynamics | None, epoch: int) -> float:
    """Train and test once, and log it; returns the learning rate of the last update."""
    batch_size, test_batch_size = settings.train_batch_size, settings.val_batch_size
    test = flags.held_out(dataset)
    updates = math.ceil(len(dataset.images) / batch_size)

    def rate(update: int) -> float:
        return learning_rate(settings.learning_rate, batch_size, epoch * updates + update,
                             settings.train_epochs * updates)

    def check_finite(found: str | None):
        if found:
            raise UserError(f"expected finite numbers, found NaN or infinity in {found} in epoch "
                            f"{epoch + 1}; lower --learning_rate {settings.learning_rate:g}")

    def observe(batch: np.ndarray, logits: np.ndarray):
        check_finite(None if np.isfinite(logits).all() else "the logits of training")
        if record:
            record.record(epoch, batch, *loss_and_margin(logits, dataset.labels[batch]))

    with log.epoch(len(dataset.images), len(test.images)) as progress:
        with memory_for("--train_batch_size", batch_size, "start over"):
            train_loss, train_error = trainer.train_epoch(
                epoch, dataset.inputs, dataset.labels, batch_size, rate, progress, observe)
        check_finite(trainer.diverged())
        with memory_for("--val_batch_size", test_batch_size, "run again"):
            test_loss, test_error = trainer.evaluate(test.inputs, test.labels, test_batch_size)
    check_finite(None if math.isfinite(train_loss + test_loss) else "the loss")
    log.add(train_loss, train_error, test_loss, test_error, rate(updates - 1))
    return rate(updates - 1)


def predict_out_of_fold(settings: RunSettings, network: Network, dataset: Dataset,
                        ranks: Ranks | None) -> np.ndarray | None:
    """The probabilities by heads trained without the sample, (N, C); None for a network on images."""
    if not MODELS[settings.model].on_features:
        return None
    return cross_validation.predict(
        partial(make_trainer, settings, network), dataset, epochs=settings.train_epochs,
        batch_size=settings.train_batch_size, base_rate=settings.learning_rate, seed=settings.seed,
        ranks=ranks)
