"""The files of explanations: written by calculate_score.py, read by mislabel_analysis.py."""
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from datasets.arrays import Dataset
from utils.errors import UserError
from utils.files import open_npz, save_npz
from utils.tracin.influence import Pairs

TRAIN, TEST = "explanations.npz", "explanations_test.npz"
FLAGS = "--explain", "--explain_test"
UNFINISHED = ".unfinished-{}"
LONGEST_TEXT = 999  # bytes that a SHA-256 and its header do not exceed
STRONGEST = 8  # proponents, and as many opponents, that are kept of each sample
SIGNS = {"proponents": 1, "opponents": -1}  # of their influence, by their names in `Explanations`


@dataclass(frozen=True)
class Explanations:
    """The training samples that speak for and against the labels of N samples.

    Attributes:
        indices: of the N samples, int64 (N,); among training samples the most suspicious come first.
        probability: of each class at the newest checkpoint, float32 (N, C).
        proponents: training samples that speak for the label.
        opponents: training samples that speak against it.
    """

    indices: np.ndarray
    probability: np.ndarray
    proponents: Pairs
    opponents: Pairs


def origin(dataset: Dataset, total: np.ndarray, test: bool) -> dict[str, str]:
    """What explanations belong to: SHA-256 of data and scores, by its name in the file.

    Args:
        dataset: the run's, with its test set if `test`.
        total: self-influence summed over the checkpoints, float64 (N,).
        test: whether test samples are explained.
    """
    scores = hashlib.sha256(np.ascontiguousarray(total, "<f8").data).hexdigest()
    result = {"data_sha256": dataset.digest(), "scores_sha256": scores}
    return result | ({"test_sha256": dataset.test.digest()} if test and dataset.test else {})


def save(path: Path, explanations: Explanations, origins: dict[str, str], key: str):
    """Write explanations.

    Args:
        path: the file.
        explanations: what to write.
        origins: from `origin`.
        key: identifies everything that decides the content.

    Raises:
        RunError: the file cannot be written.
    """
    arrays = {"indices": explanations.indices, "probability": explanations.probability}
    for kind in ("proponent", "opponent"):
        for name, array in vars(getattr(explanations, f"{kind}s")).items():
            arrays[f"{kind}s" if name == "indices" else f"{kind}_{name}"] = array
    save_npz(path, {**arrays, **origins, "key": key}.items())


def are_kept(key: str, folder: Path, dataset: Dataset, total: np.ndarray, test: bool) -> bool:
    """Whether a folder holds the explanations of this key, undamaged.

    The other arguments are those of `load`.
    """
    if _read_text(folder / (TEST if test else TRAIN), ["key"])["key"] != key:
        return False
    try:
        return load(folder, dataset, total, test) is not None
    except UserError:
        return False


def remove_others(path: Path, origins: dict[str, str]) -> bool:
    """Remove a file, if there is one, unless it belongs to `origins`; whether it was removed."""
    if not path.exists() or _read_text(path, origins) == origins:
        return False
    path.unlink()
    return True


def _read_text(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Some of the texts in a file, empty where they cannot be read."""
    try:
        with open_npz(path) as file:
            if any(file.zip.getinfo(f"{name}.npy").file_size > LONGEST_TEXT for name in names):
                raise ValueError
            return {name: str(file[name]) for name in names}
    except Exception:  # a damaged archive raises almost anything
        return dict.fromkeys(names, "")


def load(folder: Path, dataset: Dataset, total: np.ndarray, test: bool = False) -> Explanations | None:
    """Read the explanations in a folder, None if there are none.

    Args:
        folder: ``calculate_score.py --output``.
        dataset: the run's, with its test set if `test`.
        total: self-influence summed over the checkpoints, float64 (N,).
        test: whether to read those of test samples instead of training samples.

    Raises:
        UserError: the file is damaged, or of other data or scores.
    """
    path, flag = folder / (TEST if test else TRAIN), FLAGS[test]
    if not path.exists():
        return None
    remedy = f"run calculate_score.py {flag} again, or remove the file"
    explained = dataset.test if test and dataset.test else dataset
    largest = 8 * len(explained.labels) * max(STRONGEST, len(dataset.names)) + 999
    try:
        with open_npz(path, largest) as file:
            origins = {name: str(file[name]) for name in file.files if name.endswith("_sha256")}
            result = _read(file)
        _check(result, len(dataset.labels), len(explained.labels), len(dataset.names))
    except Exception as error:  # a damaged archive raises almost anything
        raise UserError(f"cannot read {path}: {error}; {remedy}") from error
    for name, sha256 in origin(dataset, total, test).items():
        if origins.get(name) != sha256:
            other = {"data": "training images or labels", "test": "test images or labels",
                     "scores": "scores"}[name.removesuffix("_sha256")]
            raise UserError(f"expected explanations of the data and scores beside it in {path}, found "
                            f"those of other {other}; {remedy}")
    return result


def _read(file: np.lib.npyio.NpzFile) -> Explanations:
    def pairs(kind: str) -> Pairs:
        return Pairs(file[f"{kind}s"], *(file[f"{kind}_{own.name}"] for own in fields(Pairs)
                                         if own.name != "indices"))
    return Explanations(file["indices"], file["probability"], pairs("proponent"), pairs("opponent"))


def _check(found: Explanations, samples: int, explained: int, classes: int):
    """Check the content of an untrusted file.

    Raises:
        ValueError: it is no explanation of `explained` samples by `samples` training samples.
    """
    count = len(found.indices)
    pairs = [array for kind in (found.proponents, found.opponents) for array in vars(kind).values()]
    valid = (
        found.indices.shape == (count,) and found.indices.dtype == np.int64
        and ((found.indices >= 0) & (found.indices < explained)).all()
        and found.probability.shape == (count, classes) and found.probability.dtype == np.float32
        and ((found.probability >= 0) & (found.probability <= 1)).all()
        and all(array.shape == (count, STRONGEST) for array in pairs))
    for name, sign in SIGNS.items() if valid else ():
        kind: Pairs = getattr(found, name)
        there = kind.indices != -1
        valid = valid and (
            kind.indices.dtype == np.int64 and (kind.indices[there] >= 0).all()
            and (kind.indices < samples).all()
            and all(array.dtype == np.float64 and np.isfinite(array[there]).all()
                    for array in (kind.influence, kind.cosine))
            and (sign * kind.influence[there] > 0).all() and (sign * kind.cosine[there] > 0).all()
            and (np.abs(kind.cosine[there]) <= 1).all())
    if not valid:
        raise ValueError("its arrays do not have the shapes and values of explanations")


class Unfinished:
    """The strongest pairs that are found so far, and their file.

    Args:
        path: the file; another key's, or one that cannot be read, is ignored.
        key: identifies everything that decides the content.
        samples: the number N of explained samples.
        tasks: the number of tasks.

    Attributes:
        done: which tasks are, bool (T,).
        pairs: by the names in `SIGNS`, of all N samples.
    """

    def __init__(self, path: Path, key: str, samples: int, tasks: int):
        self._path, self._key = path, key
        self.done = np.zeros(tasks, bool)
        self.pairs = {name: Pairs.empty(samples, STRONGEST) for name in SIGNS}
        for name, array in self._kept().items():
            self._arrays()[name][:] = array

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"done": self.done} | {
            f"{kind}_{name}": array for kind, pairs in self.pairs.items()
            for name, array in vars(pairs).items()}

    def _kept(self) -> dict[str, np.ndarray]:
        """The arrays in the file, none if it is another key's or one of them cannot be read."""
        if _read_text(self._path, ["key"])["key"] != self._key:
            return {}
        result = {}
        try:
            with open_npz(self._path) as file:
                for name, array in self._arrays().items():
                    # Before it is decompressed, which may be a zip bomb.
                    if file.zip.getinfo(f"{name}.npy").file_size > array.nbytes + 999:
                        return {}
                    result[name] = file[name]
                    if (result[name].shape, result[name].dtype) != (array.shape, array.dtype):
                        return {}
        except Exception:  # a damaged archive raises almost anything
            return {}
        return result

    def add(self, task: int, first: int, last: int, found: dict[str, Pairs]):
        """Add what a task found for samples `first` up to `last`."""
        for kind, sign in SIGNS.items():
            kept = self.pairs[kind]
            rows = Pairs(*(array[first:last] for array in vars(kept).values()))
            for name, array in vars(Pairs.merge([rows, found[kind]], sign)).items():
                getattr(kept, name)[first:last] = array
        self.done[task] = True

    def save(self):
        """Write the file.

        Raises:
            RunError: it cannot be written.
        """
        save_npz(self._path, {**self._arrays(), "key": self._key}.items())

    def remove(self):
        self._path.unlink(missing_ok=True)
