"""The flags of calculate_score.py and its settings."""
import argparse
from dataclasses import dataclass, fields
from pathlib import Path

from models.registry import MODELS
from utils.cli import Boolean, Parser, add_context_flags, add_engine_flags, number
from utils.errors import UserError
from utils.tracin.engines import ENGINES
from utils.training.checkpoint import DESCRIPTION_PATTERN, PARAMETERS_PATTERN
from utils.training.settings import MONITOR_PATH

# Samples that are explained where --explain gives no number, and with --explain_test errors.
SUSPECTS, SUREST = 1000, 100
ERRORS = "errors"


def _test_index(text: str) -> int | str:
    """A value of --explain_test: the index of a test sample, or ``errors``."""
    if text == ERRORS:
        return text
    try:
        return number(int, 0)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; give indices of test images, or {ERRORS}") from None


def add_scoring_flags(parser: Parser):
    parser.group("network").add_argument(
        "--model", choices=list(MODELS), default="resnet56",
        help="network, for checkpoints without a description (default: %(default)s)")
    scoring = parser.group("scoring")
    scoring.add_argument("--layers", choices=["last", "all"], default="last",
                         help="layers whose gradient counts (default: %(default)s)")
    scoring.add_argument("--epochs", type=number(int, 0), nargs="+", metavar="E",
                         help="score the checkpoints of these epochs (default: all)")
    scoring.add_argument("--batch_size", type=number(int, 1),
                         help="samples per pass (default: a fast size for the device)")
    explaining = parser.group("explaining")
    explaining.add_argument("--explain", type=number(int, 1), nargs="?", const=0, metavar="N",
                            help="also find the training samples that speak for and against the labels "
                                 f"of the N with the highest scores (default N: {SUSPECTS:,}, or all "
                                 "if fewer)")
    explaining.add_argument("--explain_test", type=_test_index, nargs="+", metavar="I",
                            help=f"the same for these test images, or with {ERRORS} for those that the "
                                 f"last checkpoint gets wrong, the {SUREST} surest first")
    add_engine_flags(scoring, ENGINES, "library that computes the features (default: the first of "
                     f"{', '.join(ENGINES)} that supports --layers and --context)",
                     "processes, or threads of onnxruntime (default: one per core on the CPU, 1 on a "
                     "GPU); in an MPI job threads of each rank")
    scoring.add_argument("-s", "--seed", type=number(int, 0, 2**31 - 1), default=0,
                         help="accepted for compatibility with train.py; nothing here is random")
    add_context_flags(parser)
    parser.add_run_flag({"input": ".", "checkpoint": ".", "output": "."},
                        "the folder of the run: --input, --checkpoint and --output, unless they are "
                        "given")
    files = parser.group("files")
    files.add_argument("--input", type=Path, default=Path("output"), metavar="DIR",
                       help="the .npy files of the run: train.py's --output (default: %(default)s)")
    files.add_argument("--checkpoint", type=Path, metavar="PATH",
                       help="the checkpoints of the run: train.py's --model_save_path, or one "
                            "checkpoint_<epoch>.json (default: the input folder if it holds "
                            f"checkpoints, else {MONITOR_PATH})")
    files.add_argument("--output", type=Path, metavar="DIR",
                       help="folder for the scores (default: the input folder)")
    files.add_argument("--save_every_epoch", action=Boolean, default=True,
                       help="also keep the scores of each checkpoint (default: %(default)s)")


def default_checkpoint(folder: Path) -> Path:
    """Where the checkpoints are if --checkpoint does not say: the run's `folder` if it holds any."""
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    held = any(pattern.fullmatch(name) for name in names
               for pattern in (DESCRIPTION_PATTERN, PARAMETERS_PATTERN))
    return folder if held else MONITOR_PATH


@dataclass(frozen=True)
class ScoreSettings:
    """The arguments of calculate_score.py by their flags' names.

    Attributes:
        model_given: whether `model` was on the command line; otherwise it is the default.
        engine, epochs, batch_size, workers, context, device_id: None for the defaults, which depend on
            the checkpoints, the data, the device and the rank.
        explain: number of training samples to explain, 0 for the default, None for none.
        explain_test: indices of test samples to explain, or ``errors``; None for none.
    """

    input: Path
    checkpoint: Path
    output: Path
    model: str
    model_given: bool
    layers: str
    engine: str | None
    epochs: tuple[int, ...] | None
    batch_size: int | None
    workers: int | None
    save_every_epoch: bool
    explain: int | None
    explain_test: tuple[int | str, ...] | None
    context: str | None
    device_id: int | None
    type_config: str

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> "ScoreSettings":
        """The settings in the namespace of a `Parser` with the flags of `add_scoring_flags`."""
        values = {own.name: getattr(args, own.name) for own in fields(cls)
                  if own.name != "model_given"}
        values["output"] = args.output or args.input
        values["checkpoint"] = args.checkpoint or default_checkpoint(args.input)
        for name in ("epochs", "explain_test"):
            values[name] = None if values[name] is None else tuple(dict.fromkeys(values[name]))
        if args.layers == "all" and {"explain", "explain_test"} & args.given:
            raise UserError("expected --layers last with --explain and --explain_test, which compare "
                            "gradients by the last layer, found --layers all; leave one of them out")
        if args.explain_test and ERRORS in args.explain_test and len(values["explain_test"]) > 1:
            raise UserError(f"expected --explain_test {ERRORS} or numbers of test images, found both; "
                            "leave one of them out")
        return cls(**values, model_given="model" in args.given)
