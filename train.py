"""Train a network on images some of whose labels are wrong, and save checkpoints.

    python -u train.py --dataset digits --model resnet23 --nmaps 16 --train_epochs 12 \\
        --output output --monitor-path output

The first of three steps: calculate_score.py goes on with what this one writes.
"""
import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

import datasets
from datasets import arrays
from datasets.arrays import Dataset
from models import MODELS, build_prediction, default_nmaps, is_network
from utils import checkpoint, cli, onnx_export
from utils.cli import Parser, UserError, boolean, number
from utils.context import set_context
from utils.dynamics import FILE as DYNAMICS_FILE
from utils.dynamics import TrainingDynamics
from utils.engines import predict
from utils.files import check_folder
from utils.graph import Unsupported
from utils.learning_rate import learning_rate
from utils.monitor import TrainingLog
from utils.self_influence import loss_and_margin
from utils.training import Trainer

# What a resumed run must have in common with the one that it goes on with.
RUN = ("model", "nmaps", "seed", "dataset", "subset", "shuffle_label", "shuffle_rate", "noise",
       "augmentation", "train_epochs", "train_batch_size", "learning_rate", "type_config",
       "model_save_interval")


def build_parser() -> Parser:
    parser = Parser(description=__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", choices=list(datasets.DATASETS), default="cifar10",
                      help="images to train on (default: %(default)s)")
    data.add_argument("--data", type=Path, metavar="PATH",
                      help="cifar10: cifar-10-python.tar.gz or the folder extracted from it "
                           "(default: NNabla's data home, downloaded if need be)")
    data.add_argument("--subset", type=number(int, 1), metavar="N",
                      help="train on N samples drawn at random")
    data.add_argument("--input", type=Path, metavar="DIR",
                      help="train on the .npy files of an earlier run instead; --dataset then only "
                           "says what they are of")
    data.add_argument("--shuffle_label", type=boolean, default=True,
                      help="mislabel some training samples; False trains on the true labels "
                           "(default: %(default)s)")
    data.add_argument("--shuffle_rate", type=number(float, 0, 1), default=0.1,
                      help="share of a class that is mislabelled (default: %(default)s)")
    data.add_argument("--noise", choices=datasets.NOISES, default="uniform",
                      help="wrong labels: any other one; that of the class it is taken for, if any; "
                           "or the one that --noise_model finds likeliest (default: %(default)s)")
    data.add_argument("--noise_model", type=Path, metavar="PATH",
                      help="checkpoints of an earlier run, or one checkpoint_<epoch>.json, for "
                           "--noise hardest")
    data.add_argument("--augmentation", type=boolean, default=None,
                      help="scale and mirror training images at random (default: True, but False "
                           "for digits)")
    training = parser.add_argument_group("training")
    training.add_argument("--model", choices=list(MODELS), default="resnet56",
                          help="network (default: %(default)s)")
    training.add_argument("--nmaps", type=number(int, 2), default=None,
                          help="feature maps of resnet23 (default: 64)")
    training.add_argument("--train_epochs", type=number(int, 1), default=270,
                          help="epochs (default: %(default)s)")
    training.add_argument("--train_batch_size", type=number(int, 1), default=None,
                          help="samples an update (default: 500, but 16 for digits)")
    training.add_argument("--val_batch_size", type=number(int, 1), default=None,
                          help="samples at a time in tests (default: 100, or all where fewer)")
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
        clash = sorted(args.given & {"data", "subset", "shuffle_rate", "noise", "noise_model"})
        if clash:
            raise UserError(f"--input trains on the files of an earlier run, which --{clash[0]} "
                            "cannot change; leave one of them out")
        args.shuffle_rate = args.noise = None
        if "dataset" not in args.given:
            args.dataset = None
    return args


def main(argv=None):
    args = get_args(argv)
    resumed = resume_from(args) if args.checkpoint else None
    complete(args)
    train_and_evaluate(args, resumed)


def resume_from(args: argparse.Namespace) -> checkpoint.Checkpoint:
    """The newest checkpoint; the run's arguments take the values it was made with."""
    resumed = checkpoint.newest_complete(args.checkpoint)
    cli.take_recorded(args, build_parser(), RUN, resumed.description["arguments"],
                      str(args.checkpoint))
    if args.dataset is None and not args.input:
        raise UserError(f"{args.checkpoint} was trained on the files of an earlier run; give the "
                        "same --input again")
    args.model_save_path = args.model_save_path or resumed.parameters.parent
    return resumed


def complete(args: argparse.Namespace):
    """Fill in the defaults that depend on other arguments, and check what can be checked early."""
    digits = args.dataset == "digits"
    if not args.input and (args.noise == "hardest") != (args.noise_model is not None):
        raise UserError("--noise hardest and --noise_model PATH belong together, found "
                        f"{'no --noise_model' if args.noise == 'hardest' else 'another --noise'}; give "
                        "both or none")
    if args.nmaps is None:
        args.nmaps = default_nmaps(args.model)
    elif default_nmaps(args.model) is None:
        raise UserError(f"--nmaps {args.nmaps}: {args.model} has a fixed width; leave --nmaps out")
    elif args.nmaps % 2:
        raise UserError(f"expected an even --nmaps, found {args.nmaps}")
    if args.augmentation is None:
        args.augmentation = not digits
    if args.train_batch_size is None:
        args.train_batch_size = 16 if digits else 500
    if args.model_save_interval is None:
        args.model_save_interval = max(1, round(args.train_epochs / 9))
    args.model_save_path = args.model_save_path or args.monitor_path
    for folder in (args.output, args.monitor_path, args.model_save_path):
        check_folder(folder)
    checkpoint.check_unused(args.model_save_path, except_for=args.checkpoint)


def load_data(args: argparse.Namespace, rng: np.random.Generator) -> Dataset:
    """The data the arguments ask for, kept in the output."""
    if args.input:
        dataset = arrays.load(args.input, test=True)
        if not args.shuffle_label:
            dataset = dataset.without_noise()
    else:
        rate = args.shuffle_rate if args.shuffle_label else 0.0
        dataset = datasets.load_dataset(args.dataset, args.data, args.subset, rate, rng, args.noise,
                                        lambda images: noise_logits(args, images))
    if args.val_batch_size is None:
        args.val_batch_size = min(100, len(dataset.test.images))
    for name, split in [("train_batch_size", dataset), ("val_batch_size", dataset.test)]:
        if getattr(args, name) > len(split.images):
            raise UserError(f"expected --{name} of at most {len(split.images)}, the samples there "
                            f"are, found {getattr(args, name)}")
    return dataset


def noise_logits(args: argparse.Namespace, images: np.ndarray) -> np.ndarray:
    """The logits (N, C) of the newest checkpoint of --noise_model."""
    current = checkpoint.find(args.noise_model)[-1]
    made_with, classes = current.description, len(datasets.DATASETS[args.dataset][1])
    if made_with.get("classes") != classes or not is_network(made_with["model"], made_with["nmaps"]):
        raise UserError(f"expected a checkpoint_<epoch>.json of a network of {classes} classes in "
                        f"{args.noise_model}, found {made_with.get('model', 'no network')} with "
                        f"{made_with.get('classes', 'no')}; give the --model_save_path of a run with "
                        f"--dataset {args.dataset}")
    return predict(current, build_prediction(made_with["model"], classes, made_with["nmaps"]), images)


def train_and_evaluate(args: argparse.Namespace, resumed: checkpoint.Checkpoint | None):
    """Write the data, then train from the start or from a checkpoint, and save checkpoints."""
    rng = np.random.default_rng(args.seed)
    where = set_context(args.context, args.device_id, args.type_config)
    dataset = load_data(args, rng)
    description = {"model": args.model, "nmaps": args.nmaps, "classes": len(dataset.names),
                   "seed": args.seed, "data_sha256": dataset.digest(),
                   "arguments": {name: getattr(args, name) for name in RUN}}
    if resumed and resumed.description["data_sha256"] != description["data_sha256"]:
        raise UserError(f"the images and labels are not those that {args.checkpoint} was trained "
                        "on; give the same --data or --input, or train afresh")
    arrays.save(args.output, dataset, read_from=args.input)

    prediction = build_prediction(args.model, len(dataset.names), args.nmaps, rng)
    trainer = Trainer(prediction, args.augmentation, args.seed)
    history = []
    if resumed:
        checkpoint.load(resumed, trainer.solver)
        history = resumed.description["history"]
    run = checkpoint.run_key(description)
    dynamics = TrainingDynamics(len(dataset.images), args.train_epochs)
    if resumed and not dynamics.resume(args.output, run, len(history)):
        print(f"no {args.output / DYNAMICS_FILE} of the first {len(history)} epochs: there will be no "
              "ranking by what training saw", flush=True)
    log = TrainingLog(args.monitor_path, args.train_epochs, history)
    print(f"{args.model} on {where}: {dataset}, augmentation "
          f"{'on' if args.augmentation else 'off'}, batch {args.train_batch_size}, "
          f"{len(history)} of {args.train_epochs} epochs done", flush=True)
    for epoch in range(len(history), args.train_epochs):
        rate = train_epoch(args, trainer, dataset, log, dynamics, epoch)
        if (epoch + 1) % args.model_save_interval == 0 or epoch + 1 == args.train_epochs:
            dynamics.save(args.output, run)
            checkpoint.save(args.model_save_path, trainer.solver,
                            {"epoch": epoch + 1, "learning_rate": rate, **description,
                             "history": log.history})
    save_network(args.model_save_path, args.model, prediction)
    print(f"trained: {args.output} has the data, {args.model_save_path} the checkpoints",
          flush=True)


def save_network(folder: Path, model: str, prediction: Callable):
    """Write the trained network for NNabla's tools, and for others' where ONNX can say it."""
    checkpoint.save_network(folder / f"{model}_result.nnp", model, prediction)
    try:
        onnx_export.save_network(folder / f"{model}_result.onnx", prediction)
    except Unsupported as error:
        print(f"not written: {model}_result.onnx: {error}", flush=True)


def train_epoch(args: argparse.Namespace, trainer: Trainer, dataset: Dataset, log: TrainingLog,
                dynamics: TrainingDynamics, epoch: int) -> float:
    """Train and test once, show it and log it; returns the learning rate of the last update."""
    updates = math.ceil(len(dataset.images) / args.train_batch_size)

    def rate(update: int) -> float:
        return learning_rate(args.learning_rate, args.train_batch_size, epoch * updates + update,
                             args.train_epochs * updates)

    def observe(batch: np.ndarray, logits: np.ndarray):
        dynamics.record(epoch, batch, *loss_and_margin(logits, dataset.labels[batch]))

    with log.epoch(len(dataset.images)) as progress:
        train_loss, train_error = trainer.train_epoch(
            epoch, dataset.images, dataset.labels, args.train_batch_size, rate, progress, observe)
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
