"""Checkpoints: parameters, solver state, and a description of what made them."""
import hashlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import nnabla as nn
import numpy as np
from nnabla.utils.save import save as nnabla_save

from utils.errors import UserError
from utils.files import save_bytes, save_json, whole_file
from utils.training.log import NAMES

PARAMETERS = "params_{:06d}.h5"
STATES = "states_{:06d}.h5"
DESCRIPTION = "checkpoint_{:06d}.json"
# NNabla's own example does not pad the epoch.
PARAMETERS_PATTERN = re.compile(r"params_(\d+)\.h5")
DESCRIPTION_PATTERN = re.compile(r"checkpoint_(\d{6,})\.json")


def _integer(low: int, high: int = 2**31 - 1) -> Callable:
    return lambda value: type(value) is int and low <= value <= high


def _history(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(record, dict) and all(type(record.get(key)) in (int, float) for key in NAMES)
        for record in value)


# What a description must hold, and how each value is recognized: it may come from a stranger.
DESCRIPTION_TYPES = {
    "epoch": _integer(1), "model": lambda value: isinstance(value, str),
    "nmaps": lambda value: value is None or _integer(2, 4096)(value) and value % 2 == 0,
    "classes": _integer(1, 100_000), "learning_rate": lambda value: type(value) in (int, float),
    "seed": _integer(0), "data_sha256": lambda value: isinstance(value, str),
    "parameters_sha256": lambda value: isinstance(value, str),
    "states_sha256": lambda value: isinstance(value, str),
    "arguments": lambda value: isinstance(value, dict), "history": _history}
# Arguments that older descriptions lack, and the values that say no more than their lack.
LATER_ARGUMENTS = {"noise": (None, "uniform"), "val_fraction": (None,)}


@dataclass(frozen=True)
class Checkpoint:
    """A network after `epoch` completed epochs.

    `description` is what `save` was given, with the digests of the files, or empty where there is
    none (parameters that NNabla's example wrote); `states` is None there too.
    """

    epoch: int
    parameters: Path
    states: Path | None = None
    description: dict = field(default_factory=dict)


def save(folder: Path, solver, description: dict):
    """Write a checkpoint of the current parameters and of `solver`; the description comes last.

    Args:
        folder: where to.
        solver: the NNabla solver whose state is saved.
        description: JSON with the keys of ``DESCRIPTION_TYPES`` but the digests.

    Raises:
        UserError: a file cannot be written.
    """
    epoch = description["epoch"]
    parameters, states = io.BytesIO(), io.BytesIO()
    nn.save_parameters(parameters, extension=".h5")
    # As Solver.save_states, which writes to disk only.
    with h5py.File(states, "w") as file:
        for index, (name, state) in enumerate(solver.get_states().items()):
            group = file.create_group(name)
            group.attrs["index"] = index
            group["t"] = state.t
            for place, (key, variable) in enumerate(state.pstate.items()):
                group[key] = variable.d
                group[key].attrs["index"] = place
    # In this order, for `check_unused` to know parameters that a killed run left.
    save_bytes(folder / STATES.format(epoch), states.getbuffer())
    save_bytes(folder / PARAMETERS.format(epoch), parameters.getbuffer())
    save_json(folder / DESCRIPTION.format(epoch), {
        **description, "parameters_sha256": hashlib.sha256(parameters.getbuffer()).hexdigest(),
        "states_sha256": hashlib.sha256(states.getbuffer()).hexdigest()})


def find(path: Path) -> list[Checkpoint]:
    """The checkpoints in a folder, or the one that a ``checkpoint_*.json`` describes.

    Where nothing is described, the ``params_*.h5`` files alone make the checkpoints.

    Returns:
        Checkpoints of one run, by epoch; at least one.

    Raises:
        UserError: there is none, they are not of one run, or a description cannot be read.
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
        return _undescribed(path)
    checkpoints = []
    for file in described:
        description = _read_description(file)
        epoch = description["epoch"]
        parameters, states = (file.with_name(name.format(epoch)) for name in (PARAMETERS, STATES))
        checkpoints.append(Checkpoint(epoch, parameters, states, description))
    first, *others = checkpoints
    for other in others:
        if run_of(other.description) != run_of(first.description):
            raise UserError(f"checkpoints {first.epoch} and {other.epoch} in {path} come from "
                            "different runs; keep each run's checkpoints in a folder of its own")
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.epoch)


def newest_complete(path: Path) -> Checkpoint:
    """The newest of the checkpoints that `find` finds which has all it takes to go on from it.

    Raises:
        UserError: there is none.
    """
    for checkpoint in reversed(find(path)):
        if checkpoint.states and checkpoint.states.is_file() and checkpoint.parameters.is_file():
            return checkpoint
    raise UserError(f"expected params_<epoch>.h5, states_<epoch>.h5 and checkpoint_<epoch>.json of "
                    f"one epoch in {path}, found none to resume from; leave --checkpoint out to "
                    "train afresh")


def check_unused(folder: Path, except_for: Path | None):
    """Refuse to mix the checkpoints of a new run with older ones.

    What a run left that was killed before its first checkpoint was complete is no checkpoint:
    parameters and states without a description.

    Args:
        folder: where the new ones will go.
        except_for: the checkpoint, or their folder, that the new run goes on from.

    Raises:
        UserError: `folder` holds others.
    """
    if except_for and folder.resolve() in (except_for.resolve(), except_for.resolve().parent):
        return
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    parameters = [match for match in map(PARAMETERS_PATTERN.fullmatch, names) if match]
    if any(map(DESCRIPTION_PATTERN.fullmatch, names)) or \
            any(STATES.format(int(match[1])) not in names for match in parameters):
        raise UserError(f"{folder} holds the checkpoints of an earlier run; add --checkpoint {folder} "
                        "to go on with it, remove them, or give another --model_save_path")


def run_of(description: dict) -> dict:
    """The part of a description that all checkpoints of a run have in common."""
    run = {key: description[key] for key in DESCRIPTION_TYPES
           if key in ("model", "nmaps", "classes", "seed", "data_sha256", "arguments")}
    # Descriptions did not always have all arguments.
    run["arguments"] = {name: value for name, value in run["arguments"].items()
                        if value not in LATER_ARGUMENTS.get(name, ())}
    return run


def run_key(description: dict) -> str:
    """SHA-256 of what all checkpoints of a run have in common; empty for an empty description."""
    if not description:
        return ""
    return hashlib.sha256(json.dumps(run_of(description), sort_keys=True).encode()).hexdigest()


def _undescribed(folder: Path) -> list[Checkpoint]:
    by_epoch: dict[int, Path] = {}
    for file in sorted(folder.iterdir()):
        match = PARAMETERS_PATTERN.fullmatch(file.name)
        if match and by_epoch.setdefault(int(match[1]), file) != file:
            raise UserError(f"{by_epoch[int(match[1])]} and {file} are of the same epoch; keep one")
    if not by_epoch:
        raise UserError(f"expected checkpoints (params_<epoch>.h5) in {folder}, found none; give "
                        "the --model_save_path of a training run, or train first")
    return [Checkpoint(epoch, by_epoch[epoch]) for epoch in sorted(by_epoch)]


def _read_description(file: Path) -> dict:
    advice = "remove it to go without this checkpoint"
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {file}: {error}; {advice}") from error
    if not isinstance(description, dict):
        raise UserError(f"expected a JSON object in {file}, found another value; {advice}")
    wrong = [key for key, valid in DESCRIPTION_TYPES.items() if not valid(description.get(key))]
    if not wrong and file.name != DESCRIPTION.format(description["epoch"]):
        wrong = ["epoch"]
    if not wrong and len(description["history"]) != description["epoch"]:
        wrong = ["history"]
    if wrong:
        raise UserError(f"{file}: missing or wrong {', '.join(wrong)}; {advice}")
    return description


def read_parameters(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint's parameter file by name, such as ``conv1/conv/W``.

    Raises:
        UserError: the file cannot be read, is not the one described, or holds NaN or infinity.
    """
    path = checkpoint.parameters
    content = _read_file(path, checkpoint.description.get("parameters_sha256"))
    parameters = {}

    def collect(name: str, item):
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
    return parameters


def _read_file(path: Path, sha256: str | None) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; copy the whole folder of "
                        "checkpoints, or train again") from error
    if sha256 and hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{path} is damaged or of another run: its SHA-256 is not the one in the "
                        "checkpoint_<epoch>.json beside it; copy or train this checkpoint again")
    return content


def digest(checkpoint: Checkpoint) -> str:
    """SHA-256 of a checkpoint's parameter file.

    Raises:
        UserError: the file cannot be read.
    """
    recorded = checkpoint.description.get("parameters_sha256")
    return hashlib.sha256(_read_file(checkpoint.parameters, recorded)).hexdigest()


def load_parameters(checkpoint: Checkpoint):
    """Give the parameters in the current scope the values of a checkpoint.

    Raises:
        UserError: the file cannot be used, or its names or shapes are not those of the network that
            was built.
    """
    found = read_parameters(checkpoint)
    expected = nn.get_parameters(grad_only=False)
    for name in sorted(found.keys() | expected.keys()):
        shapes = [str(parameters[name].shape) if name in parameters else "none"
                  for parameters in (expected, found)]
        if shapes[0] != shapes[1]:
            raise UserError(f"{checkpoint.parameters} is not of this network: expected shape "
                            f"{shapes[0]} for {name}, found {shapes[1]}; give the --model it was "
                            "trained with")
    for name, variable in expected.items():
        variable.d = found[name]


def check_parameters(checkpoints: list[Checkpoint], prediction: Callable):
    """Load the parameters of every checkpoint into a network, so as to find what is wrong with one.

    Args:
        checkpoints: the last one's parameters stay in the current scope.
        prediction: ``prediction(image, test=True) -> (logits, h)``.

    Raises:
        UserError: as for `load_parameters`.
    """
    prediction(nn.Variable((1, 3, 32, 32)), test=True)  # creates the parameters
    for checkpoint in checkpoints:
        load_parameters(checkpoint)


def load(checkpoint: Checkpoint, solver):
    """Put the parameters and the state of `solver` back to those of a checkpoint.

    Raises:
        UserError: a file is damaged or of another network.
    """
    load_parameters(checkpoint)
    _read_file(checkpoint.states, checkpoint.description["states_sha256"])
    try:
        solver.load_states(str(checkpoint.states))
    except Exception as error:  # whatever NNabla raises at a file with its own digest
        raise UserError(f"cannot read the solver's state in {checkpoint.states}: {error}; remove "
                        f"checkpoint {checkpoint.epoch} to resume from the one before") from error


def save_network(path: Path, name: str, prediction: Callable):
    """Write a network with the current parameters as .nnp, for NNabla's own tools.

    Args:
        path: the file to write.
        name: what the network is called in it; its input is ``x``, its output (logits) ``y``.
        prediction: ``prediction(image, test=True) -> (logits, h)``.
    """
    image = nn.Variable((1, 3, 32, 32))
    logits, _ = prediction(image, test=True)
    network = {"name": name, "batch_size": 1, "names": {"x": image}, "outputs": {"y": logits}}
    executor = {"name": "runtime", "network": name, "data": ["x"], "output": ["y"]}
    with whole_file(path) as temporary:
        nnabla_save(str(temporary), {"networks": [network], "executors": [executor]})
