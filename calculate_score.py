"""Score every training sample by its self-influence, summed over the checkpoints of a run.

    python -u calculate_score.py --input output --checkpoint output --output output

The second of three steps: train.py comes before, mislabel_analysis.py after.
"""
import argparse
import datetime
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets import arrays
from datasets.arrays import Dataset
from models import MODELS, build_network, is_network
from utils import cli
from utils.cli import Parser, boolean, number
from utils.context import current_context, set_context
from utils.errors import UserError
from utils.files import check_folder
from utils.graph.functions import fingerprint
from utils.processes import available_cores
from utils.tracin import scores
from utils.tracin.scores import CheckpointScores
from utils.tracin.scoring import BATCH_SIZES, Setup, complete
from utils.training.checkpoint import (
    Checkpoint,
    check_parameters,
    find_checkpoints,
    parameters_digest,
    read_parameters,
    run_key,
)


def get_args(argv=None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--input", type=Path, default=Path("output"), metavar="DIR",
                        help="the .npy files of the run: train.py's --output (default: "
                             "%(default)s)")
    parser.add_argument("--checkpoint", type=Path, default=Path("tmp.monitor"), metavar="PATH",
                        help="its checkpoints: train.py's --model_save_path, or one "
                             "checkpoint_<epoch>.json (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("output"), metavar="DIR",
                        help="where the scores go (default: %(default)s)")
    parser.add_argument("--model", choices=list(MODELS), default="resnet56",
                        help="network, for checkpoints that do not say (default: %(default)s)")
    parser.add_argument("--layers", choices=["last", "all"], default="last",
                        help="layers whose gradient counts (default: %(default)s)")
    parser.add_argument("--engine", choices=["nnabla", "onnxruntime"],
                        help="what computes it (default: onnxruntime for the last layer on the CPU, "
                             "else nnabla)")
    parser.add_argument("--epochs", type=number(int, 0), nargs="+", metavar="E",
                        help="score the checkpoints of these epochs (default: all)")
    parser.add_argument("--batch_size", type=number(int, 1), default=None,
                        help="samples in a pass (default: what is fastest)")
    parser.add_argument("--workers", type=number(int, 1, 256), metavar="N",
                        help="processes, or threads of onnxruntime (default: one a core on the CPU, "
                             "1 on a GPU)")
    parser.add_argument("--save_every_epoch", type=boolean, default=True,
                        help="keep every checkpoint's scores too (default: %(default)s)")
    parser.add_argument("-s", "--seed", type=number(int, 0, 2**31 - 1), default=0,
                        help="taken for train.py's sake; nothing here is random")
    cli.add_context_flags(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = get_args(argv)
    check_folder(args.output)
    found = find_checkpoints(args.checkpoint)
    checkpoints = select(found, args)
    dataset = arrays.load(args.input)
    model, classes, nmaps = network_of(args, checkpoints[0])
    digest = dataset.digest()
    check(args, checkpoints[0], dataset, classes, digest)
    where = set_context(args.context, args.device_id, args.type_config)
    setup = prepare(args, build_network(model, classes, nmaps), len(dataset.images))
    check_parameters(checkpoints, setup.prediction)
    print(f"{model} on {where}: {setup.layers} layer{'s' * (setup.layers == 'all')} by {setup.engine}, "
          f"--workers {setup.workers}, {len(checkpoints)} checkpoint{'s' * (len(checkpoints) > 1)}, "
          f"{len(dataset.images):,} samples{unfinished(found[-1])}", flush=True)
    network = fingerprint(setup.prediction)
    results = [CheckpointScores(args.output, current.epoch, scores.content_key(
        data=digest, parameters=parameters_digest(current), network=network, layers=setup.layers,
        engine=[setup.engine, version(setup.engine)], context=setup.context,
        type_config=setup.type_config), len(dataset.images), classes) for current in checkpoints]
    report_kept(args, results)
    complete(setup, checkpoints, results,
             finished=lambda result, left: write_epoch(args, result, left))
    scores.save_total(args.output, results, [
        current.description.learning_rate if current.description else np.nan
        for current in checkpoints], digest,
        run_key(checkpoints[0].description))
    if not args.save_every_epoch:
        for result in results:
            result.remove()
    print(f"scored: {args.output / scores.TOTAL}", flush=True)


def select(found: list[Checkpoint], args: argparse.Namespace) -> list[Checkpoint]:
    """The checkpoints of --epochs, or all."""
    epochs = [current.epoch for current in found]
    missing = sorted(set(args.epochs or []).difference(epochs))
    if missing:
        raise UserError(f"expected --epochs among those of {args.checkpoint}, "
                        f"{', '.join(map(str, epochs))}; found {', '.join(map(str, missing))}")
    return [current for current in found if not args.epochs or current.epoch in args.epochs]


def unfinished(last: Checkpoint) -> str:
    """A word on it where the checkpoints do not reach the end of their run; else nothing."""
    arguments = last.description.arguments if last.description else {}
    planned = arguments.get("train_epochs", last.epoch)
    return f" (up to epoch {last.epoch} of {planned})" * (planned != last.epoch)


def network_of(args: argparse.Namespace, first: Checkpoint) -> tuple[str, int, int | None]:
    """Model, classes and width: what the checkpoint says, or --model and its parameters."""
    if not first.description:
        parameters = read_parameters(first)
        try:
            nmaps = len(parameters["conv1/conv/W"])
            return (args.model, len(parameters["affine/b"]),
                    None if MODELS[args.model].default_nmaps is None else nmaps)
        except KeyError as error:
            raise UserError(f"expected the parameters of {args.model} in {first.parameters}, found "
                            f"no {error}; give the --model it was trained with") from None
    model, nmaps = first.description.model, first.description.nmaps
    if "model" in args.given and args.model != model:
        raise UserError(f"--model {args.model} contradicts {args.checkpoint}, which holds a {model}; "
                        "leave the flag out")
    if not is_network(model, nmaps):
        raise UserError(f"{args.checkpoint} holds a network {model!r} with nmaps {nmaps}, expected "
                        f"one of {', '.join(MODELS)}; train again with this version")
    return model, first.description.classes, nmaps


def check(args: argparse.Namespace, first: Checkpoint, dataset: Dataset, classes: int,
          digest: str):
    """Refuse data that the checkpoints were not trained on, and batches larger than the data."""
    if first.description and first.description.data_sha256 != digest:
        raise UserError(f"the images and labels in {args.input} are not those that "
                        f"{args.checkpoint} was trained on; give that run's --output")
    largest = int(dataset.labels.max())
    if largest >= classes:
        raise UserError(f"expected labels below {classes}, the number of classes of the network, "
                        f"found {largest} in {args.input}; give the files it was trained on")
    if args.batch_size and args.batch_size > len(dataset.images):
        raise UserError(f"expected --batch_size of at most {len(dataset.images)}, the samples there "
                        f"are, found {args.batch_size}")


def prepare(args: argparse.Namespace, prediction: Callable, samples: int) -> Setup:
    """The flags, and what they are by default."""
    context = current_context()
    possible = args.layers == "last" and context == "cpu"
    engine = args.engine or ("onnxruntime" if possible else "nnabla")
    if engine == "onnxruntime" and not possible:
        raise UserError("--engine onnxruntime computes --layers last on the CPU (-c cpu), found "
                        f"--layers {args.layers} and the context {context}; leave --engine out")
    workers = args.workers or (available_cores() if context == "cpu" else 1)
    batch_size = args.batch_size or min(BATCH_SIZES[context, args.layers], samples)
    return Setup(prediction, args.input / arrays.TRAIN_IMAGES, args.input / arrays.TRAIN_LABELS,
                 args.layers, engine, batch_size, workers, context, args.device_id, args.type_config)


def write_epoch(args: argparse.Namespace, result: CheckpointScores, left: float):
    """Write the scores at one checkpoint, and say so."""
    if args.save_every_epoch:
        result.save_influence()
    tqdm.write(f"epoch {result.epoch}: mean self-influence {result['influence'].mean():.4g}, "
               f"{datetime.timedelta(seconds=round(left))} left")


def report_kept(args: argparse.Namespace, results: list[CheckpointScores]):
    """Say what is kept from an earlier run, and what of it is of no use."""
    stale = [str(result.epoch) for result in results if result.stale]
    if stale:
        print(f"computed anew: epoch {', '.join(stale)}, kept in {args.output} for other parameters, "
              "data or settings, or damaged", flush=True)
    finished = [result for result in results if not result.missing()]
    kept = sum(result.size - result.missing() for result in results)
    if kept:
        print(f"going on: {len(finished)} of {len(results)} checkpoints, {kept:,} of "
              f"{sum(result.size for result in results):,} scores are kept from before", flush=True)
    if args.save_every_epoch:
        for result in finished:
            result.save_influence()


if __name__ == "__main__":
    cli.run(main)
