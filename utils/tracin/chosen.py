"""Which samples are explained: those of --explain and --explain_test."""
import numpy as np

from datasets import arrays
from datasets.arrays import Dataset
from datasets.flags import held_out
from utils.errors import UserError
from utils.files import load_array
from utils.tracin.explaining import ExplainingPlan, probabilities
from utils.tracin.scoring import CheckpointEngine, ScoringPlan
from utils.tracin.settings import ERRORS, SUREST, SUSPECTS, ScoreSettings
from utils.tracin.trained import set_files
from utils.training.checkpoint import Checkpoint


def check_chosen(settings: ScoreSettings, dataset: Dataset, classes: int):
    """Refuse samples that are not there, before anything is computed.

    Args:
        settings: the flags.
        dataset: the run's, with its test set if --explain_test is given.
        classes: the number of classes of the network.

    Raises:
        UserError: there are fewer training samples than --explain says, no such test samples as
            --explain_test says, or no test set beside the training set.
    """
    samples = len(dataset.labels)
    if (settings.explain or 0) > samples:
        raise UserError(f"expected --explain of at most {samples}, the number of samples, found "
                        f"{settings.explain}; give a smaller one, or leave the number out")
    if settings.explain_test is None:
        return
    labels = held_out(dataset).labels
    count, largest = len(labels), int(labels.max())
    if dataset.tests_on_training_images:
        raise UserError("expected test images for --explain_test in "
                        f"{settings.input / arrays.TEST_IMAGES}, found the training images, because "
                        "none were held out; train with --val_fraction 0.2, or give --explain")
    if largest >= classes:
        raise UserError(f"expected labels below {classes}, the number of classes of the network, found "
                        f"{largest} in {settings.input / arrays.TEST_LABELS}; give the files it was "
                        "trained on")
    outside = [index for index in settings.explain_test if index != ERRORS and int(index) >= count]
    if outside:
        raise UserError(f"expected --explain_test from 0 to {count - 1}, the test images in "
                        f"{settings.input}, found {outside[0]}; give other numbers, or {ERRORS}")


def choose(settings: ScoreSettings, plan: ScoringPlan, checkpoints: list[Checkpoint],
           total: np.ndarray, test: bool) -> ExplainingPlan:
    """What to explain for --explain or, if `test`, for --explain_test.

    Args:
        settings: the flags.
        plan: how the training set was scored.
        checkpoints: at which it was scored.
        total: self-influence summed over the checkpoints, float (M,).
        test: whether test samples are explained.
    """
    images, labels = set_files(settings.input, plan.network, test)

    def explaining(indices: np.ndarray) -> ExplainingPlan:
        return ExplainingPlan(plan, checkpoints, images, labels, indices)

    if not test:
        return explaining(most_suspicious(total, settings.explain or SUSPECTS))
    if settings.explain_test != (ERRORS,):
        return explaining(np.array(settings.explain_test, np.int64))
    given = np.array(load_array(labels), np.int64).reshape(-1, 1)
    everything = explaining(np.arange(len(given)))
    return explaining(surest_errors(probabilities(everything, CheckpointEngine(plan)), given))


def most_suspicious(total: np.ndarray, count: int) -> np.ndarray:
    """The `count` samples with the largest self-influence, (M,), or all if fewer."""
    return np.argsort(-total, kind="stable")[:count]


def surest_errors(probability: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The samples whose likeliest class is not their label, at most 100, the surest first.

    Args:
        probability: of each class, float (M, C).
        labels: integers (M, 1).
    """
    wrong = np.flatnonzero(probability.argmax(axis=1) != labels[:, 0])
    return wrong[np.argsort(-probability[wrong].max(axis=1), kind="stable")][:SUREST]
