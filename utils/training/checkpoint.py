"""Checkpoints: parameters, solver state, and a description of what made them."""
import hashlib
import io
import json
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import h5py
import nnabla as nn
import numpy as np

from models.registry import LARGEST_NMAPS, Network
from utils.errors import UserError
from utils.files import save_bytes, save_json
from utils.training.log import NAMES

PARAMETERS = "params_{:06d}.h5"
STATES = "states_{:06d}.h5"
DESCRIPTION = "checkpoint_{:06d}.json"
# NNabla's own example does not pad the epoch.
PARAMETERS_PATTERN = re.compile(r"params_(\d+)\.h5")
DESCRIPTION_PATTERN = re.compile(r"checkpoint_(\d{6,})\.json")

LONGEST_NAME = 100  # of an engine: it is printed
# Arguments that older descriptions lack, and the values that mean the same as their absence.
LATER_ARGUMENTS: dict[str, tuple] = {
    "noise": (None, "uniform"), "val_fraction": (None,), "image_size": (None, 32), "backbone": (None,),
    "backbone_input": (None,), "backbone_output": (None,), "weight_decay": (None, 0.0)}


def _is_integer(value: object, low: int, high: int = 2**31 - 1) -> bool:
    return type(value) is int and low <= value <= high


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


@dataclass(frozen=True)
class Description:
    """What made a checkpoint; ``checkpoint_<epoch>.json`` holds these fields.

    Attributes:
        epoch: completed epochs; 0 before training.
        model: the network's name in ``models.MODELS``.
        nmaps: its width, or None if that is fixed.
        classes: number of classes.
        learning_rate: the rate of the last update.
        seed: ``train.py --seed``.
        data_sha256: digest of the images and labels trained on (`Dataset.digest`).
        arguments: arguments of train.py that a resumed run must share, by name.
        history: per completed epoch a dictionary with the keys of ``log.NAMES``.
        annotations: digests of names, true labels and paths (`Dataset.annotations`); empty if unknown.
        dataset_path: ``train.py --dataset`` as typed, if it is a path.  It is not in `arguments`, where
            earlier versions put it, because images may move during a run: their digest identifies them.
        backbone_path: ``train.py --backbone`` likewise; the features are part of the data's digest.
        engine: what computed the last epochs, a name in ``engines.ENGINES``; ``nnabla`` where earlier
            versions recorded none.  It, `workers` and `ranks` are not in `arguments`, because they may
            change during a run.
        workers: by how many threads, or None if unknown.
        ranks: by how many processes of an MPI job, 1 without MPI.
        parameters_sha256, states_sha256: digests of the checkpoint's files, once they are written.

    Raises:
        ValueError: a value has the wrong type or is out of range; the message names the fields.
            Descriptions may come from untrusted files.
    """

    epoch: int
    model: str
    nmaps: int | None
    classes: int
    learning_rate: float
    seed: int
    data_sha256: str
    arguments: dict
    history: list[dict]
    annotations: dict[str, str] = field(default_factory=dict)
    dataset_path: str | None = None
    backbone_path: str | None = None
    engine: str = "nnabla"
    workers: int | None = None
    ranks: int = 1
    parameters_sha256: str = ""
    states_sha256: str = ""

    def __post_init__(self):
        valid = {
            "epoch": _is_integer(self.epoch, 0),
            "model": isinstance(self.model, str),
            "nmaps": self.nmaps is None or _is_integer(self.nmaps, 2, LARGEST_NMAPS),
            "classes": _is_integer(self.classes, 1, 100_000),
            "learning_rate": _is_number(self.learning_rate),
            "seed": _is_integer(self.seed, 0),
            "data_sha256": isinstance(self.data_sha256, str),
            "arguments": isinstance(self.arguments, dict),
            "history": isinstance(self.history, list) and len(self.history) == self.epoch and all(
                isinstance(record, dict) and all(_is_number(record.get(name)) for name in NAMES)
                for record in self.history),
            "annotations": isinstance(self.annotations, dict) and all(
                isinstance(text, str) for item in self.annotations.items() for text in item),
            "dataset_path": self.dataset_path is None or isinstance(self.dataset_path, str),
            "backbone_path": self.backbone_path is None or isinstance(self.backbone_path, str),
            "engine": isinstance(self.engine, str) and len(self.engine) <= LONGEST_NAME,
            "workers": self.workers is None or _is_integer(self.workers, 1),
            "ranks": _is_integer(self.ranks, 1),
            "parameters_sha256": isinstance(self.parameters_sha256, str),
            "states_sha256": isinstance(self.states_sha256, str)}
        wrong = [name for name, is_valid in valid.items() if not is_valid]
        if wrong:
            raise ValueError(f"missing or wrong {', '.join(wrong)}")

    @classmethod
    def from_json(cls, content: object) -> "Description":
        """The description in parsed JSON, which may lack only what has no value or no record.

        Raises:
            ValueError: it is not a description.
        """
        later = {"annotations": {}, "engine": "nnabla", "ranks": 1}
        found = {**later, **content} if isinstance(content, dict) else {}
        values: dict[str, Any] = {own.name: found.get(own.name) for own in fields(cls)}
        return cls(**values)

    def to_json(self) -> dict:
        return asdict(self)

    def run(self) -> dict:
        """The part that all checkpoints of a run have in common."""
        common = {name: getattr(self, name)
                  for name in ("model", "nmaps", "classes", "seed", "data_sha256")}
        return {**common, "arguments": {name: value for name, value in self.arguments.items()
                                        if value not in LATER_ARGUMENTS.get(name, ())}}


@dataclass(frozen=True)
class Checkpoint:
    """A network after `epoch` completed epochs.

    Attributes:
        epoch: completed epochs.
        parameters: the parameter file.
        states, description: None for parameters that NNabla's example wrote.
        sha256: digest of the parameter file, which every later read verifies: the one described or,
            without a description, that of the first read (see `check_parameters`); empty before.
    """

    epoch: int
    parameters: Path
    states: Path | None = None
    description: Description | None = None
    sha256: str = ""


@dataclass(frozen=True)
class DescribedCheckpoint(Checkpoint):
    """A checkpoint that train.py wrote, from which it can resume."""

    states: Path = field()  # required, unlike the inherited field
    description: Description = field()


def run_key(description: Description | None) -> str:
    """SHA-256 of what all checkpoints of a run have in common; empty without a description."""
    if description is None:
        return ""
    return hashlib.sha256(json.dumps(description.run(), sort_keys=True).encode()).hexdigest()


def save_checkpoint(folder: Path, solver, description: Description):
    """Write a checkpoint of the current parameters and of `solver`; the description comes last.

    Args:
        folder: the folder to write to.
        solver: the NNabla solver whose state is saved.
        description: what made the checkpoint; the digests are filled in here.

    Raises:
        UserError: a file cannot be written.
    """
    epoch = description.epoch
    parameters, states = io.BytesIO(), io.BytesIO()
    nn.save_parameters(parameters, extension=".h5")
    # The format of Solver.save_states, which writes to disk only.
    with h5py.File(states, "w") as file:
        for index, (name, state) in enumerate(solver.get_states().items()):
            group = file.create_group(name)
            group.attrs["index"] = index
            group["t"] = state.t
            for place, (key, variable) in enumerate(state.pstate.items()):
                group[key] = variable.d
                group[key].attrs["index"] = place
    # In this order, so that `check_unused` recognizes parameters that a killed run left behind.
    save_bytes(folder / STATES.format(epoch), states.getbuffer())
    save_bytes(folder / PARAMETERS.format(epoch), parameters.getbuffer())
    save_json(folder / DESCRIPTION.format(epoch), replace(
        description, parameters_sha256=hashlib.sha256(parameters.getbuffer()).hexdigest(),
        states_sha256=hashlib.sha256(states.getbuffer()).hexdigest()).to_json())


def newest_description(folder: Path) -> Description | None:
    """What made the newest checkpoint in a folder; None if no file there describes one.

    Raises:
        UserError: as for `find_checkpoints`.
    """
    described = folder.is_dir() and any(DESCRIPTION_PATTERN.fullmatch(file.name)
                                        for file in folder.iterdir())
    return find_checkpoints(folder)[-1].description if described else None


def find_checkpoints(path: Path) -> list[Checkpoint]:
    """The checkpoints in a folder, or the one that a ``checkpoint_*.json`` describes.

    If no file describes any, every ``params_*.h5`` file is a checkpoint.

    Returns:
        Checkpoints of one run, by epoch; at least one.

    Raises:
        UserError: there is none, they are of different runs, or a description cannot be read.
    """
    if path.is_dir():
        described = sorted(file for file in path.iterdir()
                           if DESCRIPTION_PATTERN.fullmatch(file.name))
    elif DESCRIPTION_PATTERN.fullmatch(path.name) and path.is_file():
        described = [path]
    else:
        raise UserError(f"expected a folder of checkpoints or a checkpoint_<epoch>.json at {path}, "
                        f"found {'another file' if path.exists() else 'nothing'}; give the "
                        "--model_save_path of a training run")
    if not described:
        return _find_undescribed(path)
    checkpoints: list[Checkpoint] = []
    for file in described:
        description = _read_description(file)
        parameters, states = (file.with_name(name.format(description.epoch))
                              for name in (PARAMETERS, STATES))
        checkpoints.append(DescribedCheckpoint(description.epoch, parameters, states, description,
                                               description.parameters_sha256))
    first, *others = checkpoints
    for other in others:
        if run_key(other.description) != run_key(first.description):
            raise UserError(f"checkpoints {first.epoch} and {other.epoch} in {path} come from "
                            "different runs; keep each run's checkpoints in a folder of its own")
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.epoch)


def _find_undescribed(folder: Path) -> list[Checkpoint]:
    by_epoch: dict[int, Path] = {}
    for file in sorted(folder.iterdir()):
        match = PARAMETERS_PATTERN.fullmatch(file.name)
        if match and by_epoch.setdefault(int(match[1]), file) != file:
            raise UserError(f"{by_epoch[int(match[1])]} and {file} are of the same epoch; keep one")
    if not by_epoch:
        raise UserError(f"expected checkpoints (params_<epoch>.h5) in {folder}, found none; give "
                        "the --model_save_path of a training run, or train first")
    return [Checkpoint(epoch, by_epoch[epoch]) for epoch in sorted(by_epoch)]


def _read_description(file: Path) -> Description:
    try:
        description = Description.from_json(json.loads(file.read_text(encoding="utf-8")))
        if file.name != DESCRIPTION.format(description.epoch):
            raise ValueError("missing or wrong epoch")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {file}: {error}; remove it to continue without this "
                        "checkpoint") from error
    return description


def newest_complete(path: Path) -> DescribedCheckpoint:
    """The newest checkpoint at `path` (see `find_checkpoints`) with all files that resuming needs.

    Raises:
        UserError: there is none.
    """
    for checkpoint in reversed(find_checkpoints(path)):
        if isinstance(checkpoint, DescribedCheckpoint) and checkpoint.states.is_file() \
                and checkpoint.parameters.is_file():
            return checkpoint
    raise UserError(f"expected params_<epoch>.h5, states_<epoch>.h5 and checkpoint_<epoch>.json of "
                    f"one epoch in {path}, found none to resume from; leave --checkpoint out to "
                    "start over")


def check_unused(folder: Path, except_for: Path | None):
    """Refuse to mix the checkpoints of a new run with older ones.

    Parameters and states without a description are no checkpoint: a run that was killed before its
    first checkpoint was complete left them.

    Args:
        folder: where the new checkpoints will go.
        except_for: the checkpoint, or the folder of checkpoints, that the new run resumes.

    Raises:
        UserError: `folder` holds others.
    """
    resumed = except_for.parent if except_for and except_for.is_file() else except_for
    if resumed and folder.resolve() == resumed.resolve():
        return
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    parameters = [match for match in map(PARAMETERS_PATTERN.fullmatch, names) if match]
    if any(map(DESCRIPTION_PATTERN.fullmatch, names)) or \
            any(STATES.format(int(match[1])) not in names for match in parameters):
        raise UserError(f"{folder} holds the checkpoints of an earlier run; add --checkpoint {folder} "
                        "to resume it, remove them, or give another --run or --model_save_path")


def read_parameters(checkpoint: Checkpoint) -> tuple[dict[str, np.ndarray], str]:
    """Read a checkpoint's parameter file once.

    Returns:
        Its arrays by name, such as ``conv1/conv/W``, and the SHA-256 of the bytes they come from.

    Raises:
        UserError: the file cannot be read, has another digest than the checkpoint, or holds NaN or
            infinity.
    """
    path = checkpoint.parameters
    content = _read_file(path)
    sha256 = _verify(path, content, checkpoint.sha256, described=checkpoint.description is not None)
    parameters = {}

    def collect(name: str, item: h5py.HLObject):
        if isinstance(item, h5py.Dataset):
            parameters[name] = item[...]

    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            file.visititems(collect)
    except Exception as error:  # a damaged file raises almost anything
        raise UserError(f"cannot read the parameters in {path}: {error}; copy or train this "
                        "checkpoint again") from error
    for name, array in parameters.items():
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise UserError(f"expected finite numbers in {path}, found others in {name}; train "
                            "again with a lower --learning_rate, or leave this checkpoint out")
    return parameters, sha256


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; copy the whole folder of "
                        "checkpoints, or train again") from error


def _verify(path: Path, content: bytes, expected: str, described: bool = True) -> str:
    """The SHA-256 of a file's content, which must be the expected one, if any."""
    sha256 = hashlib.sha256(content).hexdigest()
    if expected and sha256 != expected:
        source = "the one in the checkpoint_<epoch>.json beside it" if described \
            else "the one it had when it was first read"
        raise UserError(f"{path} is damaged or of another run: its SHA-256 is not {source}; copy or "
                        "train this checkpoint again")
    return sha256


def load_parameters(checkpoint: Checkpoint) -> str:
    """Give the parameters in the current scope the values of a checkpoint.

    Returns:
        The SHA-256 of the parameter file that was read.

    Raises:
        UserError: the file cannot be read, has another digest than the checkpoint, or its names or
            shapes are not those of the current parameters.
    """
    loaded, sha256 = read_parameters(checkpoint)
    expected = nn.get_parameters(grad_only=False)
    for name in sorted(loaded.keys() | expected.keys()):
        shapes = [str(parameters[name].shape) if name in parameters else "none"
                  for parameters in (expected, loaded)]
        if shapes[0] != shapes[1]:
            raise UserError(f"{checkpoint.parameters} is not of this network: expected shape "
                            f"{shapes[0]} for {name}, found {shapes[1]}; give the --model it was "
                            "trained with")
    for name, variable in expected.items():
        variable.d = loaded[name]
    return sha256


def check_parameters(checkpoints: list[Checkpoint], network: Network) -> list[Checkpoint]:
    """Load every checkpoint into a network once, to find damaged or foreign files early.

    Args:
        checkpoints: the last one's parameters stay in the current scope.
        network: the network.

    Returns:
        The checkpoints with the digests of the files that were read, so that a file that is replaced
        later is not taken for the one that was checked.

    Raises:
        UserError: as for `load_parameters`.
    """
    network(network.input(1), test=True)  # creates the parameters
    return [replace(checkpoint, sha256=load_parameters(checkpoint)) for checkpoint in checkpoints]


def load_checkpoint(checkpoint: DescribedCheckpoint, solver):
    """Restore the current parameters and the state of `solver` from a complete checkpoint.

    Raises:
        UserError: a file is damaged or of another network.
    """
    load_parameters(checkpoint)
    _verify(checkpoint.states, _read_file(checkpoint.states), checkpoint.description.states_sha256)
    try:
        solver.load_states(str(checkpoint.states))
    except Exception as error:  # NNabla raises anything, even if the digest is right
        raise UserError(f"cannot read the solver's state in {checkpoint.states}: {error}; remove "
                        f"checkpoint {checkpoint.epoch} to resume from the one before") from error
