"""Score every training sample by its self-influence, summed over the checkpoints of a run.

    python -u calculate_score.py --input output --checkpoint output --output output

The second of three steps: train.py comes before, mislabel_analysis.py after.
"""
import argparse
import time
from pathlib import Path

from tqdm import tqdm

from datasets import arrays
from datasets.arrays import Dataset
from models import MODELS, build_prediction, default_nmaps
from utils import checkpoint, cli, scores
from utils.checkpoint import Checkpoint
from utils.cli import Parser, UserError, boolean, number
from utils.context import set_context
from utils.self_influence import LastLayer


def get_args(argv=None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--input", type=Path, default=Path("output"), metavar="DIR",
                        help="the .npy files of the run: train.py's --output (default: %(default)s)")
    parser.add_argument("--checkpoint", type=Path, default=Path("tmp.monitor"), metavar="PATH",
                        help="its checkpoints: train.py's --model_save_path, or one checkpoint_<epoch>"
                             ".json (default: %(default)s)")
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
    checkpoints = checkpoint.find(args.checkpoint)
    dataset = arrays.load(args.input)
    check(args, checkpoints, dataset)
    print(f"{len(checkpoints)} checkpoints, {len(dataset.images)} samples, "
          f"{set_context(args.context, args.device_id, args.type_config)}", flush=True)
    score_checkpoints(args, checkpoints, dataset)


def check(args: argparse.Namespace, checkpoints: list[Checkpoint], dataset: Dataset):
    """Take model and width from the checkpoints, and refuse what contradicts them."""
    description = checkpoints[0].description
    if description:
        if "model" in args.given and args.model != description["model"]:
            raise UserError(f"--model {args.model} contradicts {args.checkpoint}, which holds a "
                            f"{description['model']}; leave the flag out")
        if description["model"] not in MODELS:
            raise UserError(f"{args.checkpoint} holds a {description['model']!r}; known: "
                            f"{', '.join(MODELS)}")
        args.model, args.nmaps = description["model"], description["nmaps"]
        args.classes = description["classes"]
        if description["data_sha256"] != dataset.digest():
            raise UserError(f"the images and labels in {args.input} are not those that "
                            f"{args.checkpoint} was trained on; give that run's --output")
    else:
        parameters = checkpoint.read_parameters(checkpoints[0].parameters)
        try:
            args.classes = len(parameters["affine/b"])
            args.nmaps = default_nmaps(args.model) and len(parameters["conv1/conv/W"])
        except KeyError as error:
            raise UserError(f"expected the parameters of {args.model} in "
                            f"{checkpoints[0].parameters}, found no {error}") from None
    largest = int(dataset.labels.max())
    if largest >= args.classes:
        raise UserError(f"expected labels below {args.classes}, the number of classes of the "
                        f"network, found {largest} in {args.input}; give the files it was trained on")
    count = len(dataset.images)
    if args.batch_size is None:
        args.batch_size = min(100, count)
    if args.batch_size > count:
        raise UserError(f"expected --batch_size of at most {count}, the samples there are, found "
                        f"{args.batch_size}")


def score_checkpoints(args: argparse.Namespace, checkpoints: list[Checkpoint], dataset: Dataset):
    """Score all samples at every checkpoint and write the sums."""
    prediction = build_prediction(args.model, args.classes, args.nmaps)
    scorer = LastLayer(prediction, args.batch_size)
    total = scores.Total(checkpoints, len(dataset.images), args.classes)
    begin = time.monotonic()
    with tqdm(total=len(checkpoints) * len(dataset.images), unit="sample", disable=None) as bar:
        for number_, current in enumerate(checkpoints, start=1):
            bar.set_description(f"checkpoint {number_}/{len(checkpoints)} (epoch {current.epoch})")
            checkpoint.load_parameters(current.parameters)
            result = scorer.score(dataset.images, dataset.labels, bar.update)
            total.add(result)
            if args.save_every_epoch:
                scores.save_epoch(args.output, current.epoch, result.influence)
            if bar.disable:
                spent = time.monotonic() - begin
                left = spent / number_ * (len(checkpoints) - number_)
                print(f"checkpoint {number_}/{len(checkpoints)} (epoch {current.epoch}): mean "
                      f"self-influence {result.influence.mean():.4g}, {left:.0f} s left", flush=True)
    total.save(args.output, dataset.digest())
    print(f"scored: {args.output / scores.TOTAL}", flush=True)


if __name__ == "__main__":
    cli.run(main)
