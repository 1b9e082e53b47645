"""The flags of train.py that choose the data, and the data they choose."""
import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from datasets import DATASETS, NOISES, arrays, corrections, load_source, make_dataset, noisy_labels
from datasets.arrays import SIDE, Dataset, Split
from utils.cli import Boolean, Parser, nearest, number
from utils.errors import UserError

# Arguments that a resumed run must share with the run it resumes.
RUN = ("dataset", "val_fraction", "subset", "shuffle_label", "shuffle_rate", "noise", "augmentation",
       "image_size")
LARGEST_SIDE, SIDE_STEP = 256, 8
# Flags that cannot change the files of an earlier run.
NOT_WITH_INPUT = {"data", "val_fraction", "strict", "subset", "shuffle_rate", "noise", "noise_model",
                  "noisy_labels", "image_size"}
# Flags that choose the labels, as --noisy_labels does.
NOT_WITH_LABELS = {"shuffle_label", "shuffle_rate", "noise", "noise_model"}


@dataclass(frozen=True)
class DataSettings:
    """The arguments of `add_data_flags` by their flags' names, with every default resolved.

    Attributes:
        dataset: a key of ``DATASETS`` or a path; None if `input` alone says what to train on.
        shuffle_rate, noise: None if the labels are those of `input` or `noisy_labels`.
        image_size: side of the images in pixels, None for the default.
    """

    dataset: str | None
    data: Path | None
    val_fraction: float | None
    strict: bool
    subset: int | None
    input: Path | None
    corrections: Path | None
    shuffle_label: bool
    shuffle_rate: float | None
    noise: str | None
    noise_model: Path | None
    noisy_labels: Path | None
    augmentation: bool
    image_size: int | None


def add_data_flags(parser: Parser):
    data = parser.group("data")
    data.add_argument("--dataset", type=_dataset, default="cifar10", metavar="NAME|PATH",
                      help=f"images to train on: {', '.join(DATASETS)}; or your own: a folder with one "
                           "folder per class (or train and val folders of them), a .csv with columns "
                           "path and label, an .npz with x and y (default: %(default)s)")
    data.add_argument("--data", type=Path, metavar="PATH",
                      help=f"{_with_files()}: the official archive or the folder extracted from it "
                           "(default: NNabla's data home, downloaded if necessary)")
    data.add_argument("--val_fraction", type=number(float, 0, 1), metavar="SHARE",
                      help="your own images: share of every class to test on instead of ranking it, "
                           "drawn at random (default: 0, which ranks all but the images in val and test "
                           "folders)")
    data.add_argument("--strict", action=Boolean, default=False,
                      help="your own images: stop at a file that is not an image instead of skipping it")
    data.add_argument("--subset", type=number(int, 1), metavar="N",
                      help="train on N samples drawn at random")
    data.add_argument("--image_size", type=number(int, 1), metavar="S",
                      help=f"side of the images in pixels, a multiple of {SIDE_STEP} from {SIDE} to "
                           f"{LARGEST_SIDE}; with --backbone, of the images that enter it (default: "
                           f"{SIDE}, or what the backbone was made for)")
    data.add_argument("--input", type=Path, metavar="DIR",
                      help="train on the .npy files of an earlier run instead; --dataset then only "
                           "names what they hold")
    data.add_argument("--corrections", type=Path, metavar="CSV",
                      help="with --input: relabel and remove samples as a review or "
                           "mislabel_analysis.py decided (--drop, --relabel); network and training are "
                           "those of its newest checkpoint, unless given")
    data.add_argument("--shuffle_label", action=Boolean, default=None,
                      help="mislabel some training samples; False keeps the labels (default: True for "
                           "known sets; for your own images only with --shuffle_rate or --noise)")
    data.add_argument("--shuffle_rate", type=number(float, 0, 1), default=0.1,
                      help="share of every class to mislabel (default: %(default)s)")
    data.add_argument("--noise", choices=NOISES, default="uniform",
                      help="wrong labels: any other class; the class it resembles, if any; or "
                           "the one that --noise_model finds likeliest (default: %(default)s)")
    data.add_argument("--noise_model", type=Path, metavar="PATH",
                      help="for --noise hardest: checkpoints of an earlier run, or one "
                           "checkpoint_<epoch>.json")
    data.add_argument("--noisy_labels", type=Path, metavar="PATH",
                      help=f"{', '.join(DATASETS)}: train on these labels, and measure against the true "
                           "ones: an .npy or .npz of one integer per sample of the whole training set, "
                           "or a .csv with columns index and label for some (default: labels by "
                           "--noise)")
    plain = ", ".join(name for name, known in DATASETS.items() if not known.augmented)
    data.add_argument("--augmentation", action=Boolean, default=None,
                      help="scale and mirror training images at random (default: True, but False for "
                           f"{plain})")


def _with_files() -> str:
    return ", ".join(name for name, known in DATASETS.items() if known.reads_files)


def _dataset(text: str) -> str:
    """The name of a known set, or a path as it was typed."""
    if not text:
        raise argparse.ArgumentTypeError("expected a name or a path, found nothing")
    return text


def is_path(dataset: object) -> bool:
    """Whether a value of --dataset, perhaps an untrusted one, is the path of one's own images."""
    return isinstance(dataset, str) and dataset not in DATASETS


def resolve(args: argparse.Namespace, resumed: bool = False) -> DataSettings:
    """The settings of the data, checked as far as is possible without reading any.

    Args:
        args: parsed by a parser with the flags of `add_data_flags`.
        resumed: whether `args` already has the values that a run to resume recorded.

    Raises:
        UserError: flags contradict each other, or there is no such source.
    """
    _check(args)
    values = {name: getattr(args, name) for name in DataSettings.__dataclass_fields__}
    if (args.input or args.noisy_labels) and not resumed:
        values.update(shuffle_rate=None, noise=None)
    if args.input and not resumed:
        values["dataset"] = args.dataset if "dataset" in args.given else None
    if args.shuffle_label is None:
        known = bool(args.input) or args.dataset in DATASETS
        values["shuffle_label"] = known or bool(args.given & {"shuffle_rate", "noise"})
    if args.val_fraction is None and not (resumed or args.input or args.dataset in DATASETS):
        values["val_fraction"] = 0.0  # None is what runs of older versions recorded, for 0.2
    if args.augmentation is None:
        entry = DATASETS.get(values["dataset"])
        values["augmentation"] = entry is None or entry.augmented
    return DataSettings(**values)


def _check(args: argparse.Namespace):
    clash = sorted(args.given & NOT_WITH_INPUT) if args.input else []
    if clash:
        raise UserError(f"--input trains on the files of an earlier run, which --{clash[0]} "
                        "cannot change; leave one of them out")
    if args.corrections and (not args.input or args.shuffle_label is False):
        raise UserError("expected --corrections with the --input that was reviewed, found "
                        f"{'--shuffle_label False' if args.input else 'no --input'}; give that --input, "
                        "and keep its labels")
    clash = sorted(args.given & NOT_WITH_LABELS) if args.noisy_labels else []
    if clash:
        raise UserError(f"expected labels from one source, found --noisy_labels and --{clash[0]}; leave "
                        "one of them out")
    if not args.input and (args.noise == "hardest") != (args.noise_model is not None):
        raise UserError("expected --noise hardest and --noise_model PATH together, found "
                        f"{'no --noise_model' if args.noise == 'hardest' else 'another --noise'}; give "
                        "both or neither")
    if args.input or args.dataset in DATASETS:
        for flag in sorted({"val_fraction", "strict"} & args.given):
            raise UserError(f"--{flag} is for your own images, found --dataset {args.dataset}; leave it "
                            "out")
        if args.noisy_labels:
            noisy_labels.check_file(args.noisy_labels)
        return
    if not os.path.exists(args.dataset):
        raise UserError(f"expected {', '.join(DATASETS)} or the path of your own images as --dataset, "
                        f"found nothing at {args.dataset}; "
                        f"{nearest(args.dataset, DATASETS) or 'give one of them'}")
    if args.data:
        raise UserError(f"--data is for {_with_files()}, found --dataset {args.dataset}; leave it out")
    if args.noisy_labels:
        raise UserError(f"--noisy_labels is for {', '.join(DATASETS)}, whose true labels are known, "
                        f"found --dataset {args.dataset}; leave it out, and give your own images the "
                        "labels to train on")


def check_outside(source: Path, folder: Path):
    """Check that an output folder is not inside one's own images, where it would become a class.

    Args:
        source: one's own folder, .csv or .npz.
        folder: the output folder.

    Raises:
        UserError: it is.
    """
    # A class folder may be a link to a folder elsewhere.
    read = [source, *(path for path in source.iterdir() if path.is_dir())] \
        if os.path.isdir(source) else []
    if any(folder.resolve().is_relative_to(path.resolve()) for path in read):
        raise UserError(f"expected an output folder outside the images of --dataset {source}, found "
                        f"{folder}; give another")


def load_data(settings: DataSettings, rng: np.random.Generator,
              noise_logits: Callable[[Path, np.ndarray, int], np.ndarray]) -> Dataset:
    """The data that the settings ask for.

    Args:
        settings: from `resolve`.
        rng: draws the test set of one's own images, the subset and the noise.
        noise_logits: the logits (N, C) by the noise model, images (N, 3, S, S) and C.

    Raises:
        UserError: the data cannot be read, or are not what the settings ask for.
    """
    if settings.input:
        dataset = arrays.load(settings.input, test=True)
        _check_classes(settings, dataset.names)
        if settings.corrections:
            corrected = corrections.load(settings.corrections, dataset)
            result = corrected.apply(dataset)
            print(f"corrections: {corrected.describe(dataset)}", flush=True)
            return result
        return dataset if settings.shuffle_label else dataset.without_noise()
    name, model, path = settings.dataset, settings.noise_model, settings.noisy_labels
    rate, noise = (0.0, NOISES[0]) if path else (settings.shuffle_rate, settings.noise)
    if name is None or rate is None or noise is None:
        raise UserError("expected the --input or --noisy_labels that the run to resume was trained on, "
                        "found neither; give the same again")
    source = load_source(name, settings.data, settings.val_fraction, settings.strict, rng,
                         settings.image_size or SIDE)
    given = noisy_labels.load_labels(path, source.train.labels, source.names) if path else None
    dataset = make_dataset(source, settings.subset, rate if settings.shuffle_label else 0.0, rng, noise,
                           None if model is None else
                           lambda images: noise_logits(model, images, len(source.names)), given)
    remark = noisy_labels.remark(dataset) if path else ""
    if remark:
        print(remark, flush=True)
    return dataset


def _check_classes(settings: DataSettings, names: list[str]):
    """Check that the files of --input can be of the known set that --dataset calls them."""
    known = DATASETS[settings.dataset].names if settings.dataset in DATASETS else names
    numbered = [str(label) for label in range(len(names))]  # the files do not name them
    if list(known) != names and (len(known) != len(names) or names != numbered):
        raise UserError(f"expected the {len(known)} classes of --dataset {settings.dataset} in "
                        f"{settings.input}, found {len(names)}, {names[0]!a} the first; leave --dataset "
                        "out")


def describe(dataset: Dataset) -> str:
    """The sizes of a dataset in words, and what it is tested on."""
    if dataset.tests_on_training_images:
        return f"{replace(dataset, test=None)}, tested on the training images"
    return str(dataset)


def held_out(dataset: Dataset) -> Split:
    """The test set of a dataset.

    Raises:
        UserError: only the training set was loaded.
    """
    if dataset.test is None:
        raise UserError("expected a test set beside the training set, found none; load it too")
    return dataset.test
