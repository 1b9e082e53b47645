"""Checkpoints: parameters, solver state, and a description of what made them."""
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import nnabla as nn
import numpy as np
from nnabla.utils.save import save as nnabla_save

from utils.cli import UserError
from utils.files import save_json, whole_file

PARAMETERS = "params_{:06d}.h5"
STATES = "states_{:06d}.h5"
DESCRIPTION = "checkpoint_{:06d}.json"
# NNabla's own example does not pad the epoch.
PARAMETERS_PATTERN = re.compile(r"params_(\d+)\.h5")
DESCRIPTION_PATTERN = re.compile(r"checkpoint_(\d{6,})\.json")
DESCRIPTION_TYPES = {"epoch": int, "model": str, "nmaps": (int, type(None)), "classes": int,
                     "learning_rate": float, "seed": int, "data_sha256": str, "arguments": dict,
                     "history": list}


@dataclass(frozen=True)
class Checkpoint:
    """A network after `epoch` completed epochs.

    `description` is what `save` was given, or empty where there is none (parameters that NNabla's
    example wrote); `states` is None there too.
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
        description: JSON with at least the keys of ``DESCRIPTION_TYPES``.

    Raises:
        UserError: a file cannot be written.
    """
    epoch = description["epoch"]
    # In this order, for `check_unused` to know parameters that a killed run left.
    with whole_file(folder / STATES.format(epoch)) as path:
        solver.save_states(str(path))
    with whole_file(folder / PARAMETERS.format(epoch)) as path:
        nn.save_parameters(str(path))
    save_json(folder / DESCRIPTION.format(epoch), description)


def find(path: Path) -> list[Checkpoint]:
    """The complete checkpoints in a folder, or the one that a ``checkpoint_*.json`` describes.

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
        if parameters.is_file() and states.is_file():
            checkpoints.append(Checkpoint(epoch, parameters, states, description))
    if not checkpoints:
        raise UserError(f"{described[-1]} describes params_*.h5 and states_*.h5 files that are not "
                        "beside it; copy the whole folder, or train again")
    first = checkpoints[0]
    for other in checkpoints[1:]:
        if run_of(other.description) != run_of(first.description):
            raise UserError(f"checkpoints {first.epoch} and {other.epoch} in {path} come from "
                            "different runs; keep each run's checkpoints in a folder of its own")
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.epoch)


def arguments(checkpoint: Checkpoint, names: tuple[str, ...]) -> dict:
    """The arguments that a run must have to go on from a checkpoint, by `names`.

    Raises:
        UserError: the checkpoint was not made by a run with these arguments.
    """
    if not checkpoint.states:
        raise UserError(f"expected checkpoint_<epoch>.json and states_<epoch>.h5 beside "
                        f"{checkpoint.parameters}, found none to resume from; leave --checkpoint out "
                        "to train afresh")
    recorded = checkpoint.description["arguments"]
    if set(recorded) != set(names):
        raise UserError(f"{checkpoint.parameters} was made by another version of train.py; train "
                        "afresh")
    return recorded


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
    return {key: description[key] for key in DESCRIPTION_TYPES
            if key not in ("epoch", "learning_rate", "history")}


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
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file}: {error}; remove it to go without this checkpoint") \
            from error
    wrong = [key for key, kind in DESCRIPTION_TYPES.items()
             if not isinstance(description, dict) or not isinstance(description.get(key, ...), kind)]
    if not wrong and file.name != DESCRIPTION.format(description["epoch"]):
        wrong = ["epoch"]
    if wrong:
        raise UserError(f"{file}: missing or wrong {', '.join(wrong)}; remove it to go without "
                        "this checkpoint")
    return description


def read_parameters(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a parameter file by name, such as ``conv1/conv/W``.

    Raises:
        UserError: the file cannot be read, or holds NaN or infinity.
    """
    parameters = {}

    def collect(name: str, item):
        if isinstance(item, h5py.Dataset):
            parameters[name] = item[...]

    try:
        with h5py.File(path, "r") as file:
            file.visititems(collect)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"cannot read the parameters in {path}: {error}; copy or train this "
                        "checkpoint again") from error
    for name, array in parameters.items():
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise UserError(f"expected finite numbers in {path}, found others in {name}; train "
                            "again with a lower --learning_rate, or leave this checkpoint out")
    return parameters


def load_parameters(path: Path):
    """Give the parameters in the current scope the values in a file.

    Raises:
        UserError: names or shapes are not those of the network that was built.
    """
    found = read_parameters(path)
    expected = nn.get_parameters(grad_only=False)
    for name in sorted(found.keys() | expected.keys()):
        shapes = [str(parameters[name].shape) if name in parameters else "none"
                  for parameters in (expected, found)]
        if shapes[0] != shapes[1]:
            raise UserError(f"{path} is not of this network: expected shape {shapes[0]} for "
                            f"{name}, found {shapes[1]}; give the --model it was trained with")
    for name, variable in expected.items():
        variable.d = found[name]


def load(checkpoint: Checkpoint, solver):
    """Put the parameters and the state of `solver` back to those of a checkpoint.

    Raises:
        UserError: a file is damaged or of another network.
    """
    load_parameters(checkpoint.parameters)
    try:
        solver.load_states(str(checkpoint.states))
    except Exception as error:  # whatever NNabla raises at a damaged file
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
