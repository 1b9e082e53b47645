"""Score every training sample by its self-influence, summed over the checkpoints of a run.

    python -u calculate_score.py --input output --checkpoint output --output output

The second of three steps: train.py comes before, mislabel_analysis.py after.
"""
import argparse
import datetime
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets import arrays
from datasets.arrays import Dataset
from models import MODELS, build_prediction, default_nmaps
from utils import checkpoint, cli, scores
from utils.checkpoint import Checkpoint
from utils.cli import Parser, UserError, boolean, number
from utils.context import set_context
from utils.files import check_folder
from utils.self_influence import LastLayer


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
    parser.add_argument("--layers", choices=["last"], default="last",
                        help="layers whose gradient counts (default: %(default)s)")
    parser.add_argument("--batch_size", type=number(int, 1), default=None,
                        help="samples at a time (default: 100, or all where fewer)")
    parser.add_argument("--save_every_epoch", type=boolean, default=True,
                        help="write <epoch>_influence.npy too (default: %(default)s)")
    parser.add_argument("-s", "--seed", type=number(int, 0, 2**31 - 1), default=0,
                        help="taken for train.py's sake; nothing here is random")
    cli.add_context_flags(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = get_args(argv)
    check_folder(args.output)
    checkpoints = checkpoint.find(args.checkpoint)
    dataset = arrays.load(args.input)
    model, classes, nmaps = network_of(args, checkpoints[0])
    check(args, checkpoints[0], dataset, classes)
    where = set_context(args.context, args.device_id, args.type_config)
    prediction = build_prediction(model, classes, nmaps)
    scorer = LastLayer(prediction, args.batch_size or min(100, len(dataset.images)))
    for current in checkpoints:  # a damaged one is found before anything is written
        checkpoint.load_parameters(current)
    print(f"{model} on {where}: {len(checkpoints)} checkpoints, {len(dataset.images):,} samples"
          f"{unfinished(checkpoints[-1])}", flush=True)
    score_checkpoints(args, checkpoints, dataset, scorer, scores.Total(
        [current.epoch for current in checkpoints],
        [current.description.get("learning_rate", np.nan) for current in checkpoints],
        len(dataset.images), classes))


def unfinished(last: Checkpoint) -> str:
    """A word on it where the checkpoints do not reach the end of their run; else nothing."""
    planned = last.description.get("arguments", {}).get("train_epochs", last.epoch)
    return f" (up to epoch {last.epoch} of {planned})" * (planned != last.epoch)


def network_of(args: argparse.Namespace, first: Checkpoint) -> tuple[str, int, int | None]:
    """Model, classes and width: what the checkpoint says, or --model and its parameters."""
    if not first.description:
        parameters = checkpoint.read_parameters(first)
        try:
            nmaps = len(parameters["conv1/conv/W"])
            return (args.model, len(parameters["affine/b"]),
                    None if default_nmaps(args.model) is None else nmaps)
        except KeyError as error:
            raise UserError(f"expected the parameters of {args.model} in {first.parameters}, found "
                            f"no {error}; give the --model it was trained with") from None
    model, nmaps = first.description["model"], first.description["nmaps"]
    if "model" in args.given and args.model != model:
        raise UserError(f"--model {args.model} contradicts {args.checkpoint}, which holds a {model}; "
                        "leave the flag out")
    if model not in MODELS or (nmaps is None) != (default_nmaps(model) is None):
        raise UserError(f"{args.checkpoint} holds a network {model!r} with nmaps {nmaps}, expected "
                        f"one of {', '.join(MODELS)}; train again with this version")
    return model, first.description["classes"], nmaps


def check(args: argparse.Namespace, first: Checkpoint, dataset: Dataset, classes: int):
    """Refuse data that the checkpoints were not trained on, and batches larger than the data."""
    if first.description and first.description["data_sha256"] != dataset.digest():
        raise UserError(f"the images and labels in {args.input} are not those that "
                        f"{args.checkpoint} was trained on; give that run's --output")
    largest = int(dataset.labels.max())
    if largest >= classes:
        raise UserError(f"expected labels below {classes}, the number of classes of the network, "
                        f"found {largest} in {args.input}; give the files it was trained on")
    if args.batch_size and args.batch_size > len(dataset.images):
        raise UserError(f"expected --batch_size of at most {len(dataset.images)}, the samples there "
                        f"are, found {args.batch_size}")


def score_checkpoints(args: argparse.Namespace, checkpoints: list[Checkpoint], dataset: Dataset,
                      scorer: LastLayer, total: scores.Total):
    """Score all samples at every checkpoint and write the sums."""
    begin = time.monotonic()
    with tqdm(total=len(checkpoints) * len(dataset.images), unit="sample", leave=False,
              disable=None) as bar:
        for done, current in enumerate(checkpoints, start=1):
            bar.set_description(f"checkpoint {done}/{len(checkpoints)}")
            checkpoint.load_parameters(current)
            with np.errstate(over="ignore", invalid="ignore"):
                result = scorer.score(dataset.images, dataset.labels, bar.update)
            if not np.isfinite(result.influence).all():
                raise UserError(f"the scores at {current.parameters} are not finite; leave this "
                                "checkpoint out, or train again with a lower --learning_rate")
            total.add(result)
            if args.save_every_epoch:
                scores.save_epoch(args.output, current.epoch, result.influence)
            left = (time.monotonic() - begin) / done * (len(checkpoints) - done)
            bar.write(f"checkpoint {done}/{len(checkpoints)} (epoch {current.epoch}): mean "
                      f"self-influence {result.influence.mean():.4g}, "
                      f"{datetime.timedelta(seconds=round(left))} left")
    total.save(args.output, dataset.digest())
    print(f"scored: {args.output / scores.TOTAL}", flush=True)


if __name__ == "__main__":
    cli.run(main)
