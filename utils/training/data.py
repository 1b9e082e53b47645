"""The data of a run: their features, and the files that are kept of them."""
from dataclasses import replace

from datasets import arrays, flags
from datasets.arrays import Dataset
from datasets.corrections import APPLIED_FILE, carry_forward, save_decisions
from models.registry import MODELS
from utils.backbone.choice import load_backbone
from utils.backbone.extraction import extract
from utils.context import current_context
from utils.errors import UserError
from utils.files import are_same
from utils.training import dynamics
from utils.training.checkpoint import Description, newest_description, run_key
from utils.training.settings import TrainSettings


def with_features(settings: TrainSettings, dataset: Dataset) -> Dataset:
    """The data with the features to train on, if the network is trained on features.

    They are those of the run to resume or of --input; otherwise the backbone computes them and writes
    them to the output.

    Raises:
        UserError: there are none, or they have changed since their run was trained.
    """
    source, name, test = settings.data.input, settings.backbone, flags.held_out(dataset)
    features, test_features = dataset.features, test.features
    if not MODELS[settings.model].on_features:
        features = test_features = None
    elif not source and (kept := _kept_features(settings, dataset)):
        features, test_features = kept.features, flags.held_out(kept).features
    elif name:
        arrays.check_unused(settings.output, dataset)
        backbone = load_backbone(name, current_context(), settings.image_size,
                                 settings.backbone_input, settings.backbone_output)
        features, test_features = extract(backbone, settings.output, dataset, test)
    elif features is None:
        raise UserError(f"expected features in --input {source}, found none; give a run that was made "
                        "with --backbone, or another --model")
    elif source and (made := newest_description(source)):
        arrays.check_features(source, arrays.load(source, test=True), made.annotations)
    test = replace(test, features=test_features, originals=None)
    return replace(dataset, features=features, originals=None, test=test)


def _kept_features(settings: TrainSettings, dataset: Dataset) -> Dataset | None:
    """The data with features of the run to resume; None if there are none, or of other test images.

    Raises:
        UserError: they are not those that the run was trained on.
    """
    if not settings.resumed or not (settings.output / arrays.TRAIN_FEATURES).exists():
        return None
    kept = arrays.load(settings.output, test=True)
    same_test = are_same(flags.held_out(kept).images, flags.held_out(dataset).images)
    if not same_test and are_same(kept.images, dataset.images):
        return None
    arrays.check_features(settings.output, kept, settings.resumed.description.annotations)
    return kept


def save_data(settings: TrainSettings, dataset: Dataset, description: Description) -> Dataset:
    """Write the data to the output, unless that would mix two runs; returns them memory-mapped there."""
    resumed = settings.resumed
    if resumed and resumed.description.data_sha256 != description.data_sha256:
        raise UserError(f"expected the images and labels that {resumed.parameters} was trained on, "
                        "found others; give the same --dataset, --data, --noisy_labels, --input and "
                        "--corrections, or leave --checkpoint out to start over")
    source, corrections = settings.data.input, settings.data.corrections
    applied = carry_forward(source, corrections) if source else []
    arrays.save(settings.output, dataset, read_from=source)
    dynamics.check_unused(settings.output, run_key(description))
    # A resumed run has its decisions already; --corrections need not be given again.
    if applied and not resumed:
        save_decisions(settings.output / APPLIED_FILE, applied)
    elif not resumed:
        (settings.output / APPLIED_FILE).unlink(missing_ok=True)  # from an earlier training
    return arrays.mapped(settings.output, dataset)
