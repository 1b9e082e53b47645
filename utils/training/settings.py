"""The flags of train.py that choose network and training, and the settings of a run."""
from dataclasses import dataclass, fields
from pathlib import Path

from datasets import flags
from datasets.arrays import Dataset
from datasets.flags import DataSettings
from models.registry import MODELS
from utils.cli import Parser, add_context_flags, number
from utils.errors import UserError
from utils.training.checkpoint import DescribedCheckpoint, Description

# Arguments that a resumed run must share with the run it resumes.
RUN = ("model", "nmaps", "seed", *flags.RUN, "train_epochs", "train_batch_size", "learning_rate",
       "type_config", "model_save_interval")
# Bounds of the default --train_batch_size, and the default --val_batch_size.
SMALLEST_BATCH, LARGEST_BATCH = 16, 500
TEST_BATCH = 500


def add_training_flags(parser: Parser):
    network = parser.group("network")
    network.add_argument("--model", choices=list(MODELS), default="resnet56",
                         help="network (default: %(default)s)")
    network.add_argument("--nmaps", type=number(int, 2), default=None,
                         help="feature maps of resnet23 (default: 64)")
    training = parser.group("training")
    training.add_argument("--train_epochs", type=number(int, 1), default=270,
                          help="epochs (default: %(default)s)")
    training.add_argument("--train_batch_size", type=number(int, 1), default=None,
                          help="samples per update (default: a hundredth of all, from 16 to 500)")
    training.add_argument("--val_batch_size", type=number(int, 1), default=None,
                          help="samples per test batch (default: 500, or all if fewer)")
    training.add_argument("--learning_rate", type=number(float, 0, above=True), default=0.5,
                          help="learning rate at batch 500; it scales with the batch "
                               "(default: %(default)s)")
    training.add_argument("-s", "--seed", type=number(int, 0, 2**31 - 1), default=0,
                          help="determines subset, label noise, initial parameters, order and "
                               "augmentation (default: %(default)s)")
    add_context_flags(parser)
    parser.add_run_flag({"output": ".", "monitor_path": ".", "model_save_path": "."},
                        "one folder for all files of the run: --output, --monitor-path and "
                        "--model_save_path, unless they are given")
    files = parser.group("files")
    files.add_argument("--output", type=Path, default=Path("output"), metavar="DIR",
                       help="folder for the .npy files (default: %(default)s)")
    files.add_argument("-m", "--monitor-path", type=Path, default=Path("tmp.monitor"),
                       metavar="DIR", help="folder for the training logs (default: %(default)s)")
    files.add_argument("-o", "--model_save_path", type=Path, default=None, metavar="DIR",
                       help="folder for the checkpoints (default: the monitor path)")
    files.add_argument("--model_save_interval", type=number(int, 1), default=None, metavar="E",
                       help="epochs between checkpoints (default: a ninth of all)")
    files.add_argument("--checkpoint", type=Path, nargs="?", default=None, metavar="PATH",
                       help="resume from the newest checkpoint in this folder, or from this "
                            "checkpoint_<epoch>.json; without PATH, where the checkpoints are written")


@dataclass(frozen=True)
class TrainSettings:
    """The arguments of train.py by their flags' names, and what they resolve to.

    Attributes:
        train_batch_size, val_batch_size: None for the defaults, which depend on the data.
        data: the settings of the data.
        resumed: the checkpoint to resume from, or None.
    """

    model: str
    nmaps: int | None
    seed: int
    train_epochs: int
    train_batch_size: int | None
    val_batch_size: int | None
    learning_rate: float
    context: str | None
    device_id: int
    type_config: str
    output: Path
    monitor_path: Path
    model_save_path: Path
    model_save_interval: int
    data: DataSettings
    resumed: DescribedCheckpoint | None

    def for_dataset(self, dataset: Dataset) -> "RunSettings":
        """These settings with batch sizes for a dataset.

        Raises:
            UserError: a batch size is larger than the number of its samples.
        """
        samples, test_samples = len(dataset.images), len(flags.held_out(dataset).images)
        train_size = self.train_batch_size or min(max(samples // 100, SMALLEST_BATCH), LARGEST_BATCH,
                                                  samples)
        test_size = self.val_batch_size or min(TEST_BATCH, test_samples)
        for name, size, largest in [("train_batch_size", train_size, samples),
                                    ("val_batch_size", test_size, test_samples)]:
            if size > largest:
                raise UserError(f"expected --{name} of at most {largest}, the number of samples, found "
                                f"{size}; give a smaller one")
        return RunSettings(**{**vars(self), "train_batch_size": train_size, "val_batch_size": test_size})


@dataclass(frozen=True)
class RunSettings(TrainSettings):
    """The settings of a run on known data: its batch sizes are known too."""

    train_batch_size: int
    val_batch_size: int

    def describe(self, dataset: Dataset) -> Description:
        """The description of a run before its first epoch."""
        own = {field.name for field in fields(self)}
        arguments = {name: getattr(self if name in own else self.data, name) for name in RUN}
        return Description(epoch=0, model=self.model, nmaps=self.nmaps, classes=len(dataset.names),
                           learning_rate=0.0, seed=self.seed, data_sha256=dataset.digest(),
                           arguments=arguments, history=[], annotations=dataset.annotations())
