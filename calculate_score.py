"""Score every training sample by its self-influence, summed over the checkpoints of a run.

    python -u calculate_score.py --input output --checkpoint output --output output

The second of three steps: train.py comes before, mislabel_analysis.py after.
"""
import datetime
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets import arrays
from datasets.arrays import Dataset
from models.registry import MODELS, Network, build_network, is_network
from utils import cli
from utils.cli import Parser
from utils.context import current_context, set_context
from utils.errors import UserError
from utils.files import check_folder
from utils.graph.functions import fingerprint
from utils.processes import available_cores
from utils.tracin import scores
from utils.tracin.engines import ENGINES, choose_engine
from utils.tracin.scores import CheckpointScores
from utils.tracin.scoring import SAMPLES_PER_PASS, ScoringPlan, score_missing
from utils.tracin.settings import ScoreSettings, add_scoring_flags
from utils.training.checkpoint import (
    Checkpoint,
    check_parameters,
    find_checkpoints,
    read_parameters,
    run_key,
)


def get_args(argv: Sequence[str] | None = None) -> ScoreSettings:
    parser = Parser(description=__doc__)
    add_scoring_flags(parser)
    return ScoreSettings.from_arguments(parser.parse_args(argv))


def main(argv: Sequence[str] | None = None):
    settings = get_args(argv)
    check_folder(settings.output)
    dataset = arrays.load(settings.input)
    available = find_checkpoints(settings.checkpoint)
    checkpoints = select(available, settings.epochs, settings.checkpoint)
    digest, samples = dataset.digest(), len(dataset.images)
    model, classes, nmaps = network_of(settings, checkpoints[0])
    check(settings, checkpoints[0], dataset, classes, digest)
    device = set_context(settings.context, settings.device_id, settings.type_config)
    inputs = inputs_of(model, dataset, settings)
    plan = make_plan(settings, build_network(model, classes, nmaps, shape=inputs.shape[1:]), samples)
    checkpoints = check_parameters(checkpoints, plan.network)
    print(f"{model} on {device}: {'all layers' if plan.layers == 'all' else 'last layer'} by "
          f"{plan.engine}, --workers {plan.workers}, {len(checkpoints)} "
          f"checkpoint{'s' if len(checkpoints) > 1 else ''}, {samples:,} samples"
          f"{unfinished(available[-1])}", flush=True)
    keys = content_keys(plan, checkpoints, digest)
    results = [CheckpointScores(settings.output, checkpoint.epoch, key, samples, classes)
               for checkpoint, key in zip(checkpoints, keys, strict=True)]
    report_kept(settings, results)
    score_missing(plan, checkpoints, results,
                  finished=lambda result, left: save_epoch(settings, result, left))
    rates = [checkpoint.description.learning_rate if checkpoint.description else np.nan
             for checkpoint in checkpoints]
    scores.save_total(settings.output, results, rates, digest, run_key(checkpoints[0].description),
                      dataset.annotations())
    if not settings.save_every_epoch:
        for result in results:
            result.remove()
    print(f"scored: {settings.output / scores.TOTAL}\n{next_step(settings)}", flush=True)


def next_step(settings: ScoreSettings) -> str:
    if settings.input.resolve() != settings.output.resolve():
        return ("mislabel_analysis.py reads data and scores from one folder: score again with "
                f"--output {settings.input}")
    return "next: " + cli.other_script("mislabel_analysis.py", "--run", settings.output)


def select(checkpoints: list[Checkpoint], epochs: Sequence[int] | None, path: Path) -> list[Checkpoint]:
    """Return the checkpoints of some epochs, or all if `epochs` is None."""
    available = [checkpoint.epoch for checkpoint in checkpoints]
    missing = sorted(set(epochs or []).difference(available))
    if missing:
        raise UserError(f"expected --epochs among those of {path}, {', '.join(map(str, available))}; "
                        f"found {', '.join(map(str, missing))}; leave these out")
    return [checkpoint for checkpoint in checkpoints if not epochs or checkpoint.epoch in epochs]


def unfinished(last: Checkpoint) -> str:
    """A note if the checkpoints do not reach the end of their run; else nothing."""
    arguments = last.description.arguments if last.description else {}
    planned = arguments.get("train_epochs", last.epoch)
    return f" (up to epoch {last.epoch} of {planned})" if planned != last.epoch else ""


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


def check(settings: ScoreSettings, first: Checkpoint, dataset: Dataset, classes: int,
          digest: str):
    """Refuse data that the checkpoints were not trained on, and batches larger than the data."""
    if first.description and first.description.data_sha256 != digest:
        arrays.check_features(settings.input, dataset, first.description.annotations)
        raise UserError(f"the images and labels in {settings.input} are not those that "
                        f"{settings.checkpoint} was trained on; give that run's --output")
    if first.description:
        arrays.check_annotations(settings.input, dataset, first.description.annotations)
    scores.check_unused(settings.output, digest, run_key(first.description))
    largest = int(dataset.labels.max())
    if largest >= classes:
        raise UserError(f"expected labels below {classes}, the number of classes of the network, "
                        f"found {largest} in {settings.input}; give the files it was trained on")
    if settings.batch_size and settings.batch_size > len(dataset.images):
        raise UserError(f"expected --batch_size of at most {len(dataset.images)}, the number of "
                        f"samples, found {settings.batch_size}; give a smaller one")


def make_plan(settings: ScoreSettings, network: Network, samples: int) -> ScoringPlan:
    """The flags, with their defaults resolved for the current context."""
    context = current_context()
    return ScoringPlan(
        network, settings.input / (arrays.TRAIN_IMAGES if len(network.shape) == 3
                                   else arrays.TRAIN_FEATURES), settings.input / arrays.TRAIN_LABELS,
        settings.layers, choose_engine(settings.engine, settings.layers, context),
        settings.batch_size or min(SAMPLES_PER_PASS[context, settings.layers], samples),
        settings.workers or (available_cores() if context == "cpu" else 1),
        context, settings.device_id, settings.type_config)


def content_keys(plan: ScoringPlan, checkpoints: list[Checkpoint], digest: str) -> list[str]:
    """One key per checked checkpoint, of everything that decides its scores."""
    network = fingerprint(plan.network)
    return [scores.content_key(
        data=digest, parameters=checkpoint.sha256, network=network, layers=plan.layers,
        engine=[plan.engine, ENGINES[plan.engine].version], context=plan.context,
        type_config=plan.type_config) for checkpoint in checkpoints]


def save_epoch(settings: ScoreSettings, result: CheckpointScores, left: float):
    """Save the scores at one checkpoint and print a line on them."""
    if settings.save_every_epoch:
        result.save_influence()
    tqdm.write(f"epoch {result.epoch}: mean self-influence {result['influence'].mean():.4g}, "
               f"{datetime.timedelta(seconds=round(left))} left")


def report_kept(settings: ScoreSettings, results: list[CheckpointScores]):
    """Print which scores of an earlier run are kept and which are recomputed."""
    stale = [str(result.epoch) for result in results if result.stale]
    if stale:
        print(f"recomputing: epoch {', '.join(stale)}; the scores in {settings.output} are damaged or "
              "of other parameters, data, settings or versions", flush=True)
    complete = [result for result in results if not result.missing()]
    kept = sum(result.size - result.missing() for result in results)
    if kept:
        print(f"resuming: {len(complete)} of {len(results)} checkpoints and {kept:,} of "
              f"{sum(result.size for result in results):,} scores are kept", flush=True)
    if settings.save_every_epoch:
        for result in complete:
            result.save_influence()


if __name__ == "__main__":
    cli.run(main)
