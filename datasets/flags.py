"""The flags of train.py that choose the data, and the data they choose."""
import argparse
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from datasets import DATASETS, NOISES, arrays, corrections, load_source, make_dataset
from datasets.arrays import Dataset
from datasets.own import VAL_FRACTION
from utils.cli import Parser, boolean, number
from utils.errors import UserError

# What a resumed run must have in common with the one that it goes on with.
RUN = ("dataset", "val_fraction", "subset", "shuffle_label", "shuffle_rate", "noise")
# What cannot be asked of the files of an earlier run.
NOT_WITH_INPUT = {"data", "val_fraction", "strict", "subset", "shuffle_rate", "noise", "noise_model"}


def add_data_flags(parser: Parser):
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", type=_dataset, default="cifar10", metavar="NAME|PATH",
                      help=f"images to train on: {', '.join(DATASETS)}; or your own: a folder with one "
                           "folder a class (or train and val folders of them), a .csv with columns path "
                           "and label, an .npz with x and y (default: %(default)s)")
    data.add_argument("--data", type=Path, metavar="PATH",
                      help="cifar10, cifar100: the official archive or the folder extracted from it "
                           "(default: NNabla's data home, downloaded if need be)")
    data.add_argument("--val_fraction", type=number(float, 0, 1), metavar="SHARE",
                      help="your own images: share of every class to test on and not to rank, drawn at "
                           f"random; 0 ranks all (default: {VAL_FRACTION}, or the val folder)")
    data.add_argument("--strict", type=boolean, nargs="?", const=True, default=False,
                      help="your own images: a file that is no image is an error, not skipped")
    data.add_argument("--subset", type=number(int, 1), metavar="N",
                      help="train on N samples drawn at random")
    data.add_argument("--input", type=Path, metavar="DIR",
                      help="train on the .npy files of an earlier run instead; --dataset then only "
                           "says what they are of")
    data.add_argument("--corrections", type=Path, metavar="CSV",
                      help="with --input: relabel and remove samples as a review or "
                           "mislabel_analysis.py --drop says")
    data.add_argument("--shuffle_label", type=boolean, default=None,
                      help="mislabel some training samples; False trains on the labels there are "
                           "(default: True, but for your own images only where --shuffle_rate or "
                           "--noise asks for it)")
    data.add_argument("--shuffle_rate", type=number(float, 0, 1), default=0.1,
                      help="share of a class that is mislabelled (default: %(default)s)")
    data.add_argument("--noise", choices=NOISES, default="uniform",
                      help="wrong labels: any other one; that of the class it is taken for, if any; "
                           "or the one that --noise_model finds likeliest (default: %(default)s)")
    data.add_argument("--noise_model", type=Path, metavar="PATH",
                      help="checkpoints of an earlier run, or one checkpoint_<epoch>.json, for "
                           "--noise hardest")
    data.add_argument("--augmentation", type=boolean, default=None,
                      help="scale and mirror training images at random (default: True, but False "
                           "for digits)")


def _dataset(text: str) -> str:
    """The name of a known set, or a relative path, for a run to be known again by."""
    if text in DATASETS:
        return text
    if not text:
        raise argparse.ArgumentTypeError("expected a name or a path, found nothing")
    relative = Path(os.path.relpath(text)).as_posix()
    return f"./{relative}" if relative in DATASETS else relative


def check_with_input(args: argparse.Namespace):
    """Of a run on the files of an earlier one, check the flags and clear what does not count.

    Raises:
        UserError: a flag cannot have an effect.
    """
    clash = sorted(args.given & NOT_WITH_INPUT)
    if clash:
        raise UserError(f"--input trains on the files of an earlier run, which --{clash[0]} "
                        "cannot change; leave one of them out")
    args.shuffle_rate = args.noise = None
    if "dataset" not in args.given:
        args.dataset = None


def complete_data_flags(args: argparse.Namespace):
    """Fill in the defaults that depend on other flags, and check what can be checked early.

    Raises:
        UserError: flags contradict each other, or there is no such source.
    """
    if args.corrections and (not args.input or args.shuffle_label is False):
        raise UserError("--corrections are of the labels in the files of an earlier run, found "
                        f"{'--shuffle_label False' if args.input else 'no --input'}; give the --input "
                        "that the review was made of, and the labels as they are")
    known = bool(args.input) or args.dataset in DATASETS
    for flag in {"val_fraction", "strict"} & args.given if known else ():
        raise UserError(f"--{flag} is for your own images, found --dataset {args.dataset}; leave it out")
    if not known and not Path(args.dataset).exists():
        raise UserError(f"expected {', '.join(DATASETS)} or the path of your own images as --dataset, "
                        f"found nothing at {args.dataset}; give one of them")
    if not known and args.data:
        raise UserError(f"--data is for cifar10 and cifar100, found --dataset {args.dataset}; leave it "
                        "out")
    if args.shuffle_label is None:
        args.shuffle_label = known or bool(args.given & {"shuffle_rate", "noise"})
    if not args.input and (args.noise == "hardest") != (args.noise_model is not None):
        raise UserError("--noise hardest and --noise_model PATH belong together, found "
                        f"{'no --noise_model' if args.noise == 'hardest' else 'another --noise'}; give "
                        "both or none")
    if args.augmentation is None:
        args.augmentation = args.dataset not in DATASETS or DATASETS[args.dataset].augmented


def check_outside(args: argparse.Namespace, folder: Path):
    """Check that a folder to write in is not among one's own images, where it would be a class.

    Raises:
        UserError: it is.
    """
    if args.input or args.dataset in DATASETS:
        return
    source = Path(args.dataset)
    if source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
        raise UserError(f"expected a folder to write in outside the images of --dataset {args.dataset}, "
                        f"found {folder}; give another")


def load_data(args: argparse.Namespace, rng: np.random.Generator,
              predict: Callable[[np.ndarray, int], np.ndarray]) -> Dataset:
    """The data the flags ask for.

    Args:
        args: with the flags of `add_data_flags`, completed.
        rng: draws the test set of one's own images, the subset and the noise.
        predict: gives the logits (N, C) of the noise model for images (N, 3, 32, 32) and C.

    Raises:
        UserError: they cannot be read, or are not what the flags ask for.
    """
    if args.input:
        dataset = arrays.load(args.input, test=True)
        if args.corrections:
            corrected = corrections.load(args.corrections, dataset)
            result = corrected.apply(dataset)
            print(f"corrections: {corrected.describe(dataset)}", flush=True)
            return result
        return dataset if args.shuffle_label else dataset.without_noise()
    source = load_source(args.dataset, args.data, args.val_fraction, args.strict, rng)
    rate = args.shuffle_rate if args.shuffle_label else 0.0
    return make_dataset(source, args.subset, rate, rng, args.noise,
                        lambda images: predict(images, len(source.names)))
