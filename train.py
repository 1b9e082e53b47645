"""Find mislabelled images: train on the noisy set and save checkpoints.

    python -u train.py --dataset digits --model resnet23 --nmaps 16 --train_epochs 12 \\
        --output output --monitor-path output

The first of three steps; calculate_score.py continues with the files that this one writes.
"""
import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from datasets import arrays, flags
from datasets.arrays import Dataset
from datasets.corrections import APPLIED_FILE, carry_forward, save_decisions
from models.registry import MODELS, build_network, is_network
from utils import cli
from utils.cli import Parser
from utils.context import memory_for, set_context
from utils.errors import UserError
from utils.files import check_folder
from utils.graph import onnx_forward
from utils.graph.functions import Unsupported
from utils.tracin.engines import predict
from utils.tracin.self_influence import loss_and_margin
from utils.training import dynamics
from utils.training.checkpoint import (
    Description,
    check_unused,
    find_checkpoints,
    load_checkpoint,
    newest_complete,
    run_key,
    save_checkpoint,
    save_network,
)
from utils.training.dynamics import TrainingDynamics
from utils.training.learning_rate import learning_rate
from utils.training.log import TrainingLog
from utils.training.settings import RUN, RunSettings, TrainSettings, add_training_flags
from utils.training.trainer import Trainer


def build_parser() -> Parser:
    parser = Parser(description=__doc__)
    flags.add_data_flags(parser)
    add_training_flags(parser)
    return parser


def get_args(argv=None) -> argparse.Namespace:
    return build_parser().parse_args(argv)


def resolve(args: argparse.Namespace) -> TrainSettings:
    """The settings that the arguments, and the run to resume if any, amount to.

    Raises:
        UserError: arguments contradict each other or the run to resume, or a folder cannot be used.
    """
    args, resumed = argparse.Namespace(**vars(args)), None
    if args.checkpoint:
        resumed = newest_complete(args.checkpoint)
        cli.take_recorded(args, build_parser(), RUN, resumed.description.arguments,
                          str(args.checkpoint))
        if args.dataset is None and not args.input:
            raise UserError(f"{args.checkpoint} was trained on the files of an earlier run; give the "
                            "same --input again")
    data = flags.resolve(args, resumed=resumed is not None)
    values = {name: getattr(args, name) for name in TrainSettings.__dataclass_fields__
              if name in args}
    values["nmaps"] = MODELS[args.model].check_nmaps(args.nmaps)
    values["model_save_interval"] = args.model_save_interval or max(1, round(args.train_epochs / 9))
    values["model_save_path"] = args.model_save_path or (
        resumed.parameters.parent if resumed else args.monitor_path)
    values.update(data=data, resumed=resumed)
    settings = TrainSettings(**values)
    for folder in (settings.output, settings.monitor_path, settings.model_save_path):
        check_folder(folder)
        flags.check_outside(data, folder)
    check_unused(settings.model_save_path, except_for=args.checkpoint)
    return settings


def main(argv=None):
    train_and_evaluate(resolve(get_args(argv)))


def train_and_evaluate(chosen: TrainSettings):
    """Write the data, then train from the start or from a checkpoint, and save checkpoints."""
    rng = np.random.default_rng(chosen.seed)
    where = set_context(chosen.context, chosen.device_id, chosen.type_config)
    dataset = flags.load_data(chosen.data, rng, partial(noise_logits, chosen.data.dataset))
    settings = chosen.for_dataset(dataset)
    description = settings.describe(dataset)
    save_data(settings, dataset, description)
    network = build_network(settings.model, len(dataset.names), settings.nmaps, rng)
    trainer = Trainer(network, settings.data.augmentation, settings.seed,
                      settings.type_config == "half")
    log, record = start_or_resume(settings, trainer, len(dataset.images), run_key(description))
    done = len(log.history)
    print(f"{settings.model} on {where}: {dataset}, augmentation "
          f"{'on' if settings.data.augmentation else 'off'}, batch {settings.train_batch_size}, "
          f"{done} of {settings.train_epochs} epochs done", flush=True)
    for epoch in range(done, settings.train_epochs):
        rate = train_epoch(settings, trainer, dataset, log, record, epoch)
        if (epoch + 1) % settings.model_save_interval == 0 or epoch + 1 == settings.train_epochs:
            record.save(settings.output, run_key(description))
            save_checkpoint(settings.model_save_path, trainer.solver, replace(
                description, epoch=epoch + 1, learning_rate=rate, history=log.history))
    save_networks(settings.model_save_path, settings.model, network)
    print(f"trained: the data are in {settings.output}, the checkpoints in "
          f"{settings.model_save_path}", flush=True)


def noise_logits(dataset: str | None, noise_model: Path, images: np.ndarray,
                 classes: int) -> np.ndarray:
    """The logits (N, C) of the newest checkpoint of --noise_model."""
    checkpoint = find_checkpoints(noise_model)[-1]
    made_by = checkpoint.description
    if not made_by or made_by.classes != classes or not is_network(made_by.model, made_by.nmaps):
        found = f"{made_by.model} with {made_by.classes}" if made_by else "no description"
        raise UserError(f"expected a checkpoint_<epoch>.json of a network of {classes} classes in "
                        f"{noise_model}, found {found}; give the --model_save_path of a run with "
                        f"--dataset {dataset}")
    return predict(checkpoint, build_network(made_by.model, classes, made_by.nmaps), images)


def save_data(settings: TrainSettings, dataset: Dataset, description: Description):
    """Write the data to the output, unless that would mix two runs."""
    resumed = settings.resumed
    if resumed and resumed.description.data_sha256 != description.data_sha256:
        raise UserError(f"expected the images and labels that {resumed.parameters} was trained on, "
                        "found others; give the same --dataset, --data, --input and --corrections, or "
                        "leave --checkpoint out to start over")
    source, corrections = settings.data.input, settings.data.corrections
    applied = carry_forward(source, corrections) if source else []
    arrays.save(settings.output, dataset, read_from=source)
    dynamics.check_unused(settings.output, run_key(description))
    if applied:
        save_decisions(settings.output / APPLIED_FILE, applied)
    else:
        (settings.output / APPLIED_FILE).unlink(missing_ok=True)  # from an earlier training


def start_or_resume(settings: TrainSettings, trainer: Trainer, samples: int,
                    run: str) -> tuple[TrainingLog, TrainingDynamics]:
    """The log and the statistics of the epochs so far; `trainer` continues after them."""
    history: list[dict] = []
    record = TrainingDynamics(samples, settings.train_epochs)
    if settings.resumed:
        load_checkpoint(settings.resumed, trainer.solver)
        history = settings.resumed.description.history
        if not record.resume(settings.output, run, len(history)):
            print(f"{settings.output / dynamics.FILE} lacks the first {len(history)} epochs: no "
                  "ranking by training statistics will be available", flush=True)
    return TrainingLog(settings.monitor_path, settings.train_epochs, history), record


def save_networks(folder: Path, model: str, network: Callable):
    """Write the trained network as .nnp for NNabla's tools and, if ONNX supports it, as .onnx."""
    save_network(folder / f"{model}_result.nnp", model, network)
    try:
        onnx_forward.save_network(folder / f"{model}_result.onnx", network)
    except Unsupported as error:
        print(f"not written: {model}_result.onnx: {error}", flush=True)


def train_epoch(settings: RunSettings, trainer: Trainer, dataset: Dataset, log: TrainingLog,
                record: TrainingDynamics, epoch: int) -> float:
    """Train and test once, and log it; returns the learning rate of the last update."""
    batch_size, test_batch_size = settings.train_batch_size, settings.val_batch_size
    test = flags.held_out(dataset)
    updates = math.ceil(len(dataset.images) / batch_size)

    def rate(update: int) -> float:
        return learning_rate(settings.learning_rate, batch_size, epoch * updates + update,
                             settings.train_epochs * updates)

    def observe(batch: np.ndarray, logits: np.ndarray):
        record.record(epoch, batch, *loss_and_margin(logits, dataset.labels[batch]))

    with log.epoch(len(dataset.images)) as progress:
        with memory_for("--train_batch_size", batch_size, "start over"):
            train_loss, train_error = trainer.train_epoch(
                epoch, dataset.images, dataset.labels, batch_size, rate, progress, observe)
        with memory_for("--val_batch_size", test_batch_size, "run again"):
            test_loss, test_error = trainer.evaluate(test.images, test.labels, test_batch_size)
    if not math.isfinite(train_loss + test_loss):
        raise UserError(f"expected a finite loss, found {train_loss} in training and {test_loss} in "
                        f"testing in epoch {epoch + 1}; lower --learning_rate "
                        f"{settings.learning_rate:g}")
    log.add(train_loss, train_error, test_loss, test_error, rate(updates - 1))
    return rate(updates - 1)


if __name__ == "__main__":
    cli.run(main, "to resume: the same command with --checkpoint and the folder of checkpoints, or "
                  "without it if there are none yet")
