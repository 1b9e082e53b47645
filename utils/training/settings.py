"""The flags of train.py that choose network and training, and the settings of a run."""
import argparse
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path

from datasets import flags
from datasets.arrays import SIDE, TRAIN_FEATURES, TRAIN_IMAGES, Dataset
from datasets.flags import LARGEST_SIDE, SIDE_STEP, DataSettings
from models.registry import MODELS, Model
from utils.backbone import choice
from utils.backbone.onnx_file import PIXELS
from utils.backbone.pretrained import PRETRAINED
from utils.cli import Parser, add_context_flags, add_engine_flags, number, take_recorded
from utils.errors import UserError
from utils.files import load_array
from utils.mpi import job
from utils.training.checkpoint import (
    DescribedCheckpoint,
    Description,
    newest_complete,
    newest_description,
)
from utils.training.engines import ENGINES, choose_engine

# Arguments that a resumed run must share with the run it resumes.
RUN = ("model", "nmaps", "seed", *flags.RUN, "backbone", "backbone_input", "backbone_output",
       "train_epochs", "train_batch_size", "learning_rate", "weight_decay", "type_config",
       "model_save_interval")
# Arguments that training on corrected data takes from the run that was corrected.
CORRECTED = ("model", "nmaps", "seed", "augmentation", "train_epochs", "train_batch_size",
             "learning_rate", "weight_decay", "model_save_interval")
MONITOR_PATH = Path("tmp.monitor")
# The default networks, and the flags whose defaults depend on the network.
ON_FEATURES, ON_IMAGES = "head", "resnet56"
DEFAULTS = ("train_epochs", "learning_rate", "weight_decay")
# What to try where training would take hours on a CPU.
FEW_EPOCHS, NARROW = 30, 16
# Bounds of the default --train_batch_size, and the default --val_batch_size.
SMALLEST_BATCH, LARGEST_BATCH = 16, 500
TEST_BATCH = 500


def add_training_flags(parser: Parser):
    network = parser.group("network")
    network.add_argument("--model", choices=list(MODELS), default=None,
                         help=f"network (default: {ON_FEATURES} with --backbone or an --input that has "
                              f"features, else {ON_IMAGES})")
    network.add_argument("--backbone", type=_backbone, metavar="NAME|PATH",
                         help=f"train on the features of a pretrained network: "
                              f"{', '.join(PRETRAINED)}, or an .onnx file with one image input")
    network.add_argument("--backbone_input", choices=list(PIXELS), default=None,
                         help="how pixels enter an .onnx file: scaled to a range, or by ImageNet's mean "
                              "and deviation (default: imagenet, or 0..255 where the file says uint8)")
    network.add_argument("--backbone_output", metavar="NAME", default=None,
                         help="which output of an .onnx file has the features (default: the only one)")
    network.add_argument("--nmaps", type=number(int, 2), default=None,
                         help="feature maps of resnet23 (default: 64)")
    training = parser.group("training")
    training.add_argument("--train_epochs", type=number(int, 1, 10**6), default=None,
                          help=f"epochs (default: {_defaults('train_epochs')})")
    training.add_argument("--train_batch_size", type=number(int, 1), default=None,
                          help="samples per update (default: a hundredth of all, from 16 to 500)")
    training.add_argument("--val_batch_size", type=number(int, 1), default=None,
                          help="samples per test batch (default: 500, or all if fewer)")
    training.add_argument("--learning_rate", type=number(float, 0, above=True), default=None,
                          help="learning rate at batch 500; it scales with the batch "
                               f"(default: {_defaults('learning_rate')})")
    training.add_argument("--weight_decay", type=number(float, 0), default=None,
                          help="factor of the weights in their gradients; not of biases and "
                               f"normalizations (default: {_defaults('weight_decay')})")
    training.add_argument("-s", "--seed", type=number(int, 0, 2**31 - 1), default=0,
                          help="determines subset, label noise, initial parameters, order and "
                               "augmentation (default: %(default)s)")
    add_engine_flags(training, ENGINES, "library that computes (default: that of the run to resume, "
                     f"else the first of {', '.join(ENGINES)} that supports --context and "
                     "--type-config)", "threads of onnxruntime; another number may round otherwise "
                     "(default: one per core, with MPI of the rank's share; at most those of the run to "
                     "resume, if it had as many ranks)")
    add_context_flags(parser)
    parser.add_run_flag({"output": ".", "monitor_path": ".", "model_save_path": "."},
                        "one folder for all files of the run: --output, --monitor-path and "
                        "--model_save_path, unless they are given")
    files = parser.group("files")
    files.add_argument("--output", type=Path, default=Path("output"), metavar="DIR",
                       help="folder for the .npy files (default: %(default)s)")
    files.add_argument("-m", "--monitor-path", type=Path, default=MONITOR_PATH,
                       metavar="DIR", help="folder for the training logs (default: %(default)s)")
    files.add_argument("-o", "--model_save_path", type=Path, default=None, metavar="DIR",
                       help="folder for the checkpoints (default: the monitor path)")
    files.add_argument("--model_save_interval", type=number(int, 1), default=None, metavar="E",
                       help="epochs between checkpoints (default: a ninth of all)")
    files.add_argument("--checkpoint", type=Path, nargs="?", default=None, metavar="PATH",
                       help="resume from the newest checkpoint in this folder, or from this "
                            "checkpoint_<epoch>.json; without PATH, where the checkpoints are written")


def _backbone(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("expected a name or a path, found nothing")
    return text


def _defaults(name: str) -> str:
    """The networks' defaults of a flag, in words."""
    return ", ".join(f"{getattr(entry, name):g} for {model}" for model, entry in MODELS.items())


def fill_defaults(args: argparse.Namespace):
    """Set the network and what depends on it, where no flag and no run to resume has.

    Raises:
        UserError: the flags contradict each other.
    """
    if args.model is None:
        has_features = args.backbone or (args.input and (args.input / TRAIN_FEATURES).exists())
        args.model = ON_FEATURES if has_features else ON_IMAGES
    entry = MODELS[args.model]
    for name in DEFAULTS:
        if getattr(args, name) is None:
            setattr(args, name, getattr(entry, name))
    _check_network(args, entry)
    if entry.on_features:
        args.augmentation = False


def _check_network(args: argparse.Namespace, entry: Model):
    """Refuse flags that contradict the network or the backbone."""
    if args.backbone and args.input and "backbone" not in args.given:
        raise UserError(f"expected no --input to resume {args.checkpoint}, which was trained on the "
                        f"features of --backbone {args.backbone}, found --input {args.input}; leave it "
                        "out")
    if args.backbone and args.input:
        raise UserError("--input trains on the files of an earlier run, which --backbone cannot change; "
                        "leave one of them out")
    if args.backbone and not entry.on_features:
        raise UserError(f"expected --model {ON_FEATURES} with --backbone, found --model {args.model}, "
                        "which is trained on images; leave one of them out")
    if entry.on_features and not (args.backbone or args.input):
        raise UserError(f"expected --backbone with --model {args.model}, which is trained on features, "
                        f"found none; give --backbone {next(iter(PRETRAINED))}")
    if entry.on_features and args.augmentation:
        raise UserError(f"--augmentation is for networks that are trained on images, found --model "
                        f"{args.model}, which is trained on features; leave it out")
    entry.check_precision(args.type_config)
    for name in ("backbone_input", "backbone_output"):
        if name in args.given and (not args.backbone or args.backbone in PRETRAINED):
            raise UserError(f"--{name} is for a --backbone of your own, an .onnx file, found "
                            f"{args.backbone or 'no --backbone'}; leave it out")
    if not args.backbone and args.image_size and (
            args.image_size % SIDE_STEP or not SIDE <= args.image_size <= LARGEST_SIDE):
        raise UserError(f"expected --image_size as a multiple of {SIDE_STEP} from {SIDE} to "
                        f"{LARGEST_SIDE}, found {args.image_size}; give one of them")


def take_resumed(args: argparse.Namespace, parser: Parser) -> DescribedCheckpoint:
    """Set the arguments that a run shares with the one at --checkpoint, which it resumes.

    One's own images may have moved: where they are given again, their digest decides, not their path.

    Returns:
        The checkpoint to resume from.

    Raises:
        UserError: there is none, an argument contradicts it, or its images are not where they were.
    """
    resumed = newest_complete(args.checkpoint)
    recorded, given = dict(resumed.description.arguments), "dataset" in args.given
    for name, path, is_path in [
            ("dataset", resumed.description.dataset_path, flags.is_path),
            ("backbone", resumed.description.backbone_path, choice.is_file)]:
        if path:
            recorded[name] = path
        if name in args.given and is_path(getattr(args, name)) and is_path(recorded.get(name)):
            recorded[name] = getattr(args, name)
    take_recorded(args, parser, RUN, recorded, str(args.checkpoint))
    if args.input:
        return resumed
    if args.dataset is None:
        raise UserError(f"{args.checkpoint} was trained on the files of an earlier run; give the "
                        "same --input again")
    if not given and flags.is_path(args.dataset) and not os.path.exists(args.dataset):
        raise UserError(f"expected the images of {args.checkpoint} where they were, at "
                        f"{args.dataset!a}, found nothing; give their path as --dataset")
    return resumed


def default_batch(samples: int) -> int:
    """``train.py --train_batch_size`` for a number of samples."""
    return min(max(samples // 100, SMALLEST_BATCH), LARGEST_BATCH, samples)


def take_corrected(args: argparse.Namespace, parser: Parser):
    """Set the arguments of network and training, unless they are given, to those of the --input run.

    Raises:
        UserError: there is no checkpoint and no --model, or the newest one's description cannot be read.
    """
    description = newest_description(args.input)
    if description is None and "model" in args.given:
        return
    if description is None:
        raise UserError(f"expected the checkpoints of that run in --input {args.input} to train as it "
                        "did, found none; give --model and the other flags of network and training")
    found = description.arguments
    other_model = "model" in args.given and args.model != found.get("model")
    usual = {"train_batch_size": default_batch(len(load_array(args.input / TRAIN_IMAGES)))}
    names = [name for name in CORRECTED if name not in args.given and name in found
             and not (name == "nmaps" and other_model) and found[name] != usual.get(name)]
    take_recorded(args, parser, names, {name: found[name] for name in names}, str(args.input))
    taken = " ".join(f"--{name} {getattr(args, name)}" for name in names
                     if getattr(args, name) is not None)
    print(f"network and training as in {args.input}, unless given: {taken}", flush=True)


@dataclass(frozen=True)
class TrainSettings:
    """The arguments of train.py by their flags' names, and what they resolve to.

    Attributes:
        backbone: a name or a path, None for a network on images or on the features of --input.
        image_size: None for the default.
        train_batch_size, val_batch_size: None for the defaults, which depend on the data.
        engine, workers, device_id: None for the defaults, which depend on the device (`for_device`) and
            on the rank.
        data: the settings of the data.
        resumed: the checkpoint to resume from, or None.
    """

    model: str
    nmaps: int | None
    seed: int
    backbone: str | None
    backbone_input: str | None
    backbone_output: str | None
    image_size: int | None
    train_epochs: int
    train_batch_size: int | None
    val_batch_size: int | None
    learning_rate: float
    weight_decay: float
    engine: str | None
    workers: int | None
    context: str | None
    device_id: int | None
    type_config: str
    output: Path
    monitor_path: Path
    model_save_path: Path
    model_save_interval: int
    data: DataSettings
    resumed: DescribedCheckpoint | None

    def for_device(self, context: str) -> "TrainSettings":
        """These settings with an engine and its threads.

        A resumed run keeps its own, unless a flag says otherwise, this machine has too few cores, or the
        number of ranks, whose threads share the cores, is another.

        Args:
            context: ``cpu`` or ``cudnn``, where the training will run.

        Raises:
            UserError: the engine does not support the context or the precision, or has no threads, or is
                not the one to resume and no flag said so.
        """
        began = self.resumed.description if self.resumed else None
        name = choose_engine(self.engine, context, self.type_config)
        if began and not self.engine:
            known = ENGINES.get(began.engine)
            if not known or context not in known.supports["context"]:
                raise UserError(f"expected to resume by the run's engine, {began.engine!a}, found "
                                f"--context {context}, which it does not support; give "
                                f"{'-c cpu, or ' if known else ''}--engine {name} to change it")
            name = began.engine
        most = job().cores if ENGINES[name].parallel else 1
        if self.workers and self.workers > 1 and not ENGINES[name].parallel:
            remedy = " or give --engine onnxruntime" if began and not self.engine else ""
            raise UserError(f"expected --workers 1 with --engine {name}, which has no threads"
                            f"{' and made the run to resume' if remedy else ''}, found --workers "
                            f"{self.workers}; leave the flag out{remedy}")
        usual = most
        if began and (began.engine, began.ranks) == (name, job().size):
            usual = min(began.workers or most, most)
        return replace(self, engine=name, workers=self.workers or usual)

    def changes(self) -> str:
        """What keeps a resumed run from the bits of one that ran through, in words; else nothing."""
        began = self.resumed.description if self.resumed else None
        if began and began.engine != self.engine:
            return (f"resuming with --engine {self.engine} a run of {began.engine!a}: the result will "
                    "differ in rounding from that of one engine")
        if began and began.ranks != job().size:
            return (f"resuming with {job().size} rank{'s' if job().size > 1 else ''} a run of "
                    f"{began.ranks}: the result will differ from that of one number of ranks")
        if began and began.workers and began.workers != self.workers:
            return (f"resuming with --workers {self.workers} a run of --workers {began.workers}: the "
                    "result may differ in rounding")
        return ""

    def for_dataset(self, dataset: Dataset) -> "RunSettings":
        """These settings with batch sizes for a dataset.

        Raises:
            UserError: a batch size is larger than the number of its samples, or smaller than the number
                of ranks.
        """
        samples, test_samples = len(dataset.images), len(flags.held_out(dataset).images)
        train_size = self.train_batch_size or default_batch(samples)
        if train_size < job().size:
            raise UserError(f"expected --train_batch_size of at least {job().size}, a sample per rank, "
                            f"found {train_size}; start fewer ranks, or give a larger one")
        test_size = self.val_batch_size or min(TEST_BATCH, test_samples)
        for name, size, largest in [("train_batch_size", train_size, samples),
                                    ("val_batch_size", test_size, test_samples)]:
            if size > largest:
                raise UserError(f"expected --{name} of at most {largest}, the number of samples, found "
                                f"{size}; give a smaller one")
        return RunSettings(**{**vars(self), "train_batch_size": train_size, "val_batch_size": test_size})


@dataclass(frozen=True)
class RunSettings(TrainSettings):
    """The settings of a run on a known device and known data, without None for defaults."""

    train_batch_size: int
    val_batch_size: int
    engine: str
    workers: int

    def shorter(self) -> str:
        """Flags that would shorten the training on a CPU, in words."""
        ways = ["--engine onnxruntime"] if self.engine == "nnabla" else []
        if self.resumed:  # it must stay the same network and number of epochs
            return " or ".join([*ways, "-c cudnn on a machine with a GPU"])
        ways += [f"--train_epochs {FEW_EPOCHS}"] if self.train_epochs > FEW_EPOCHS else []
        if self.model != "resnet23" or (self.nmaps or 0) > NARROW:
            ways.append(f"--model resnet23 --nmaps {NARROW}")
        if not self.data.input:
            ways.append("--subset N")
        return ", ".join([*ways, "or a GPU"])

    def describe(self, dataset: Dataset) -> Description:
        """The description of a run before its first epoch."""
        own = {field.name for field in fields(self)}
        arguments = {name: getattr(self if name in own else self.data, name) for name in RUN}
        path = self.data.dataset if flags.is_path(self.data.dataset) else None
        began = self.resumed.description if self.resumed else None
        if path and began and not began.dataset_path:
            # The path is in the key of a run that an earlier version began: keep it there.
            arguments["dataset"], path = began.arguments["dataset"], None
        elif path:
            arguments["dataset"] = None
        own_backbone = self.backbone if choice.is_file(self.backbone) else None
        if own_backbone:
            arguments["backbone"] = None
        return Description(epoch=0, model=self.model, nmaps=self.nmaps, classes=len(dataset.names),
                           learning_rate=0.0, seed=self.seed, data_sha256=dataset.digest(),
                           arguments=arguments, history=[], annotations=dataset.annotations(),
                           dataset_path=path, backbone_path=own_backbone, engine=self.engine,
                           workers=self.workers, ranks=job().size)
