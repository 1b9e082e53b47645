"""Train a network on images some of whose labels are wrong, and save checkpoints.

    python -u train.py --dataset digits --model resnet23 --nmaps 16 --train_epochs 12 \\
        --output output --monitor-path output

The first of three steps: calculate_score.py goes on with what this one writes.
"""
import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from datasets import arrays, flags
from datasets.arrays import Dataset
from models import MODELS, build_network, is_network
from utils import cli
from utils.cli import Parser, number
from utils.context import memory_for, set_context
from utils.errors import UserError
from utils.files import check_folder, save_bytes
from utils.graph import onnx_forward
from utils.graph.functions import Unsupported
from utils.tracin.engines import predict
from utils.tracin.self_influence import loss_and_margin
from utils.training import dynamics
from utils.training.checkpoint import (
    Checkpoint,
    Description,
    check_unused,
    find_checkpoints,
    load_checkpoint,
    newest_complete,
    run_key,
    save_checkpoint,
)
from utils.training.checkpoint import save_network as save_nnp
from utils.training.dynamics import TrainingDynamics
from utils.training.learning_rate import learning_rate
from utils.training.log import TrainingLog
from utils.training.trainer import Trainer

# What a resumed run must have in common with the one that it goes on with.
RUN = ("model", "nmaps", "seed", *flags.RUN, "augmentation", "train_epochs", "train_batch_size",
       "learning_rate", "type_config", "model_save_interval")
BATCH_SIZES = (16, 500)  # the smallest and the largest default


def build_parser() -> Parser:
    parser = Parser(description=__doc__)
    flags.add_data_flags(parser)
    training = parser.add_argument_group("training")
    training.add_argument("--model", choices=list(MODELS), default="resnet56",
                          help="network (default: %(default)s)")
    training.add_argument("--nmaps", type=number(int, 2), default=None,
                          help="feature maps of resnet23 (default: 64)")
    training.add_argument("--train_epochs", type=number(int, 1), default=270,
                          help="epochs (default: %(default)s)")
    training.add_argument("--train_batch_size", type=number(int, 1), default=None,
                          help="samples an update (default: a hundredth of all, from 16 to 500)")
    training.add_argument("--val_batch_size", type=number(int, 1), default=None,
                          help="samples at a time in tests (default: 500, or all where fewer)")
    training.add_argument("--learning_rate", type=number(float, 0, above=True), default=0.5,
                          help="learning rate at batch 500; it scales with the batch "
                               "(default: %(default)s)")
    training.add_argument("-s", "--seed", type=number(int, 0, 2**31 - 1), default=0,
                          help="decides subset, label noise, initial parameters, order and "
                               "augmentation (default: %(default)s)")
    cli.add_context_flags(parser)
    files = parser.add_argument_group("files")
    files.add_argument("--output", type=Path, default=Path("output"), metavar="DIR",
                       help="where the .npy files go (default: %(default)s)")
    files.add_argument("-m", "--monitor-path", type=Path, default=Path("tmp.monitor"),
                       metavar="DIR", help="where the training logs go (default: %(default)s)")
    files.add_argument("-o", "--model_save_path", type=Path, default=None, metavar="DIR",
                       help="where the checkpoints go (default: the monitor path)")
    files.add_argument("--model_save_interval", type=number(int, 1), default=None, metavar="E",
                       help="epochs from checkpoint to checkpoint (default: a ninth of all)")
    files.add_argument("--checkpoint", type=Path, default=None, metavar="PATH",
                       help="resume from the newest checkpoint in this folder, or from this "
                            "checkpoint_<epoch>.json")
    return parser


def get_args(argv=None) -> argparse.Namespace:
    args = build_parser().parse_args(argv)
    if args.input:
        flags.check_with_input(args)
    return args


def main(argv=None):
    args = get_args(argv)
    resumed = resume_from(args) if args.checkpoint else None
    complete(args)
    train_and_evaluate(args, resumed)


def resume_from(args: argparse.Namespace) -> Checkpoint:
    """The newest checkpoint; the run's arguments take the values it was made with."""
    resumed = newest_complete(args.checkpoint)
    cli.take_recorded(args, build_parser(), RUN, resumed.description.arguments,
                      str(args.checkpoint))
    if args.dataset is None and not args.input:
        raise UserError(f"{args.checkpoint} was trained on the files of an earlier run; give the "
                        "same --input again")
    args.model_save_path = args.model_save_path or resumed.parameters.parent
    return resumed


def complete(args: argparse.Namespace):
    """Fill in the defaults that depend on other arguments, and check what can be checked early."""
    flags.complete_data_flags(args)
    args.nmaps = MODELS[args.model].check_nmaps(args.nmaps)
    if args.model_save_interval is None:
        args.model_save_interval = max(1, round(args.train_epochs / 9))
    args.model_save_path = args.model_save_path or args.monitor_path
    for folder in (args.output, args.monitor_path, args.model_save_path):
        check_folder(folder)
        flags.check_outside(args, folder)
    check_unused(args.model_save_path, except_for=args.checkpoint)


def load_data(args: argparse.Namespace, rng: np.random.Generator) -> Dataset:
    """The data the arguments ask for, kept in the output."""
    dataset = flags.load_data(args, rng, lambda images, classes: noise_logits(args, images, classes))
    if args.train_batch_size is None:
        samples, (smallest, largest) = len(dataset.images), BATCH_SIZES
        args.train_batch_size = min(max(samples // 100, smallest), largest, samples)
    if args.val_batch_size is None:
        args.val_batch_size = min(500, len(dataset.test.images))
    for name, split in [("train_batch_size", dataset), ("val_batch_size", dataset.test)]:
        if getattr(args, name) > len(split.images):
            raise UserError(f"expected --{name} of at most {len(split.images)}, the samples there "
                            f"are, found {getattr(args, name)}")
    return dataset


def noise_logits(args: argparse.Namespace, images: np.ndarray, classes: int) -> np.ndarray:
    """The logits (N, C) of the newest checkpoint of --noise_model."""
    current = find_checkpoints(args.noise_model)[-1]
    made_with = current.description
    if not made_with or made_with.classes != classes or not is_network(made_with.model, made_with.nmaps):
        found = f"{made_with.model} with {made_with.classes}" if made_with else "no description"
        raise UserError(f"expected a checkpoint_<epoch>.json of a network of {classes} classes in "
                        f"{args.noise_model}, found {found}; give the --model_save_path of a run with "
                        f"--dataset {args.dataset}")
    return predict(current, build_network(made_with.model, classes, made_with.nmaps), images)


def train_and_evaluate(args: argparse.Namespace, resumed: Checkpoint | None):
    """Write the data, then train from the start or from a checkpoint, and save checkpoints."""
    rng = np.random.default_rng(args.seed)
    where = set_context(args.context, args.device_id, args.type_config)
    dataset = load_data(args, rng)
    start = Description(epoch=0, model=args.model, nmaps=args.nmaps, classes=len(dataset.names),
                        learning_rate=0.0, seed=args.seed, data_sha256=dataset.digest(),
                        arguments={name: getattr(args, name) for name in RUN}, history=[])
    if resumed and resumed.description.data_sha256 != start.data_sha256:
        raise UserError(f"the images and labels are not those that {args.checkpoint} was trained "
                        "on; give the same files by --dataset, --data, --input and --corrections, or "
                        "train afresh")
    run = run_key(start)
    arrays.save(args.output, dataset, read_from=args.input)
    dynamics.check_unused(args.output, run)
    if args.corrections:
        save_bytes(args.output / "applied_corrections.csv", args.corrections.read_bytes())

    prediction = build_network(args.model, len(dataset.names), args.nmaps, rng)
    trainer = Trainer(prediction, args.augmentation, args.seed, args.type_config == "half")
    history = []
    if resumed:
        load_checkpoint(resumed, trainer.solver)
        history = resumed.description.history
    record = TrainingDynamics(len(dataset.images), args.train_epochs)
    if resumed and not record.resume(args.output, run, len(history)):
        print(f"no {args.output / dynamics.FILE} of the first {len(history)} epochs: there will be no "
              "ranking by what training saw", flush=True)
    log = TrainingLog(args.monitor_path, args.train_epochs, history)
    print(f"{args.model} on {where}: {dataset}, augmentation "
          f"{'on' if args.augmentation else 'off'}, batch {args.train_batch_size}, "
          f"{len(history)} of {args.train_epochs} epochs done", flush=True)
    for epoch in range(len(history), args.train_epochs):
        rate = train_epoch(args, trainer, dataset, log, record, epoch)
        if (epoch + 1) % args.model_save_interval == 0 or epoch + 1 == args.train_epochs:
            record.save(args.output, run)
            save_checkpoint(args.model_save_path, trainer.solver, replace(
                start, epoch=epoch + 1, learning_rate=rate, history=log.history))
    save_network(args.model_save_path, args.model, prediction)
    print(f"trained: {args.output} has the data, {args.model_save_path} the checkpoints",
          flush=True)


def save_network(folder: Path, model: str, prediction: Callable):
    """Write the trained network for NNabla's tools, and for others' where ONNX can say it."""
    save_nnp(folder / f"{model}_result.nnp", model, prediction)
    try:
        onnx_forward.save_network(folder / f"{model}_result.onnx", prediction)
    except Unsupported as error:
        print(f"not written: {model}_result.onnx: {error}", flush=True)


def train_epoch(args: argparse.Namespace, trainer: Trainer, dataset: Dataset, log: TrainingLog,
                record: TrainingDynamics, epoch: int) -> float:
    """Train and test once, show it and log it; returns the learning rate of the last update."""
    updates = math.ceil(len(dataset.images) / args.train_batch_size)

    def rate(update: int) -> float:
        return learning_rate(args.learning_rate, args.train_batch_size, epoch * updates + update,
                             args.train_epochs * updates)

    def observe(batch: np.ndarray, logits: np.ndarray):
        record.record(epoch, batch, *loss_and_margin(logits, dataset.labels[batch]))

    with log.epoch(len(dataset.images)) as progress:
        with memory_for("--train_batch_size", args.train_batch_size, "train afresh"):
            train_loss, train_error = trainer.train_epoch(
                epoch, dataset.images, dataset.labels, args.train_batch_size, rate, progress, observe)
        with memory_for("--val_batch_size", args.val_batch_size, "run again"):
            test_loss, test_error = trainer.evaluate(dataset.test.images, dataset.test.labels,
                                                     args.val_batch_size)
    if not math.isfinite(train_loss + test_loss):
        raise UserError(f"the training loss is {train_loss} and the test loss {test_loss} in epoch "
                        f"{epoch + 1}; lower --learning_rate {args.learning_rate:g}")
    log.add(train_loss, train_error, test_loss, test_error, rate(updates - 1))
    return rate(updates - 1)


if __name__ == "__main__":
    cli.run(main, "to go on: the same command, and once there are checkpoints, with --checkpoint "
                  "and their folder")
