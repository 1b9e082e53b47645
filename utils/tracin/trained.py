"""What is scored: the data, the checkpoints and the network of one training run, which must fit."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets import arrays
from datasets.arrays import Dataset
from models.registry import MODELS, Network, is_network
from utils.errors import UserError
from utils.tracin import scores
from utils.tracin.settings import ScoreSettings
from utils.training.checkpoint import Checkpoint, read_parameters, run_key


def select_checkpoints(checkpoints: list[Checkpoint], epochs: Sequence[int] | None,
                       path: Path) -> list[Checkpoint]:
    """Return the checkpoints of some epochs, or all if `epochs` is None."""
    available = [checkpoint.epoch for checkpoint in checkpoints]
    missing = sorted(set(epochs or []).difference(available))
    if missing:
        raise UserError(f"expected --epochs among those of {path}, {', '.join(map(str, available))}; "
                        f"found {', '.join(map(str, missing))}; leave these out")
    return [checkpoint for checkpoint in checkpoints if not epochs or checkpoint.epoch in epochs]


def network_of(settings: ScoreSettings, first: Checkpoint) -> tuple[str, int, int | None]:
    """Return model, classes and width from the description, or from --model and the parameters."""
    if not first.description:
        parameters, _ = read_parameters(first)
        try:
            width = len(parameters["conv1/conv/W"])
            return (settings.model, len(parameters["affine/b"]),
                    None if MODELS[settings.model].default_nmaps is None else width)
        except KeyError as error:
            raise UserError(f"expected the parameters of {settings.model} in {first.parameters}, found "
                            f"no {error}; give the --model that they belong to") from None
    model, nmaps = first.description.model, first.description.nmaps
    if settings.model_given and settings.model != model:
        raise UserError(f"--model {settings.model} contradicts {settings.checkpoint}, which holds a "
                        f"{model}; leave the flag out")
    if not is_network(model, nmaps):
        raise UserError(f"{settings.checkpoint} holds a network {model!r} with nmaps {nmaps}, expected "
                        f"one of {', '.join(MODELS)}; train again with this version")
    return model, first.description.classes, nmaps


def inputs_of(model: str, dataset: Dataset, settings: ScoreSettings) -> np.ndarray:
    """What the network was trained on, (N, ...)."""
    if not MODELS[model].on_features:
        return dataset.images
    MODELS[model].check_precision(settings.type_config)
    if dataset.features is None:
        raise UserError(f"expected {settings.input / arrays.TRAIN_FEATURES}, which "
                        f"{settings.checkpoint} was trained on, found nothing; give that run's --output")
    return dataset.features


def check_data(settings: ScoreSettings, first: Checkpoint, dataset: Dataset, classes: int):
    """Refuse data that the checkpoints were not trained on, and batches larger than the data."""
    if first.description and first.description.data_sha256 != dataset.digest():
        arrays.check_features(settings.input, dataset, first.description.annotations)
        raise UserError(f"the images and labels in {settings.input} are not those that "
                        f"{settings.checkpoint} was trained on; give that run's --output")
    if first.description:
        arrays.check_annotations(settings.input, dataset, first.description.annotations)
    scores.check_unused(settings.output, dataset.digest(), run_key(first.description))
    largest = int(dataset.labels.max())
    if largest >= classes:
        raise UserError(f"expected labels below {classes}, the number of classes of the network, "
                        f"found {largest} in {settings.input}; give the files it was trained on")
    if settings.batch_size and settings.batch_size > len(dataset.images):
        raise UserError(f"expected --batch_size of at most {len(dataset.images)}, the number of "
                        f"samples, found {settings.batch_size}; give a smaller one")


def set_files(folder: Path, network: Network, test: bool = False) -> tuple[Path, Path]:
    """The .npy files of what enters the network and of the labels, of the training or the test set."""
    names = [(arrays.TRAIN_IMAGES, arrays.TEST_IMAGES), (arrays.TRAIN_FEATURES, arrays.TEST_FEATURES),
             (arrays.TRAIN_LABELS, arrays.TEST_LABELS)]
    images, features, labels = (folder / pair[test] for pair in names)
    return (images if len(network.shape) == 3 else features), labels
