"""Training by the ranks of an MPI job: each computes its part of every batch.

Each has the whole network and updates it by the same gradients, so all ranks have the same parameters,
bit by bit.  The running statistics of batch normalization differ during an epoch and are averaged at its
end.  The first rank reads and writes the data, and the others map what it wrote.
"""
import hashlib
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import nnabla as nn
import numpy as np

from datasets import arrays
from datasets.arrays import Dataset
from utils import mpi
from utils.context import current_context
from utils.errors import RunError, UserError
from utils.files import spot_check
from utils.training.checkpoint import Description
from utils.training.settings import RunSettings, TrainSettings

DATA_FILES = (arrays.TRAIN_IMAGES, arrays.TRAIN_LABELS, arrays.TRUE_LABELS, arrays.TRAIN_FEATURES,
              arrays.TEST_IMAGES, arrays.TEST_LABELS, arrays.TEST_FEATURES, arrays.NAMES_FILE)


class Ranks:
    """The ranks that train a network together; every method is called by all of them.

    Args:
        comm: mpi4py's communicator of them.

    Attributes:
        rank: this one's number, from 0.
        size: their number R.
    """

    def __init__(self, comm: Any):
        from mpi4py import MPI

        self._comm, self._in_place = comm, MPI.IN_PLACE
        self.rank, self.size = comm.rank, comm.size
        self._buffer = np.empty(0, np.float32)

    def part(self, batch: np.ndarray) -> np.ndarray:
        """This rank's part of a batch, which is empty if there are too few samples."""
        return np.array_split(batch, self.size)[self.rank]

    def average_gradients(self, gradients: list[np.ndarray], logits: np.ndarray,
                          batch_size: int) -> np.ndarray:
        r"""Replace the gradients of the ranks' parts by those of the batch, in one all-reduce.

        The gradient of the mean loss of B samples, of which rank r has :math:`B_r`, is

        .. math:: g = \sum_r \frac{B_r}{B} g_r .

        Args:
            gradients: those of this rank, to be changed in place; without samples they do not count.
            logits: of this rank's part, (B_r, C).
            batch_size: B.

        Returns:
            The logits of the batch, float32 (B, C).
        """
        ends = np.cumsum([gradient.size for gradient in gradients])
        total, classes = int(ends[-1]), logits.shape[1]
        size = total + batch_size * classes
        if len(self._buffer) < size:
            self._buffer = np.empty(size, np.float32)
        buffer = self._buffer[:size]
        slices = np.split(buffer[:total], ends[:-1])
        if len(logits):
            for gradient, own in zip(gradients, slices, strict=True):
                np.multiply(gradient.ravel(), len(logits) / batch_size, out=own, dtype=np.float32)
        else:
            buffer[:total] = 0
        whole = buffer[total:].reshape(batch_size, classes)
        whole[...] = 0  # a number plus zeros is that number
        whole[self.part(np.arange(batch_size))] = logits
        self._sum(buffer)
        for gradient, averaged in zip(gradients, slices, strict=True):
            gradient[...] = averaged.reshape(gradient.shape)
        return whole.copy()

    def average(self, variables: list[nn.Variable]):
        """Replace the values of variables by their means over the ranks.

        Where all ranks have the same number, it stays, because sums in float64 and their quotient are
        exact then.
        """
        if variables:
            flat = _flatten(variables).astype(np.float64)
            self._sum(flat)
            _assign(variables, (flat / self.size).astype(np.float32))  # NNabla would keep more digits

    def broadcast(self, variables: list[nn.Variable]):
        """Give variables the values that they have on the first rank."""
        flat = _flatten(variables)
        mpi.wait_for_all()
        self._comm.Bcast(flat)
        _assign(variables, flat)

    def sum_arrays(self, array: np.ndarray):
        """Replace an array by its sum over the ranks."""
        mpi.wait_for_all()
        self._sum(array)

    def deal(self, results: list) -> list:
        """All results in order, of which the ranks have computed one each in turn.

        Args:
            results: those of this rank: number `rank`, `rank + R`, ...
        """
        dealt = self._comm.allgather(results)
        return [dealt[number % self.size][number // self.size]
                for number in range(sum(map(len, dealt)))]

    def check_same(self, variables: list[nn.Variable]):
        """Check that variables are the same, bit by bit, on all ranks.

        Raises:
            RunError: they are not.
        """
        digest = hashlib.sha256()
        for variable in variables:
            digest.update(np.ascontiguousarray(variable.data.get_data("r")).data)
        found = self._comm.allgather((digest.digest(), platform.node()))
        for rank, (other, host) in enumerate(found):
            if other != found[0][0]:
                raise RunError(f"expected the parameters of rank 0 ({found[0][1]}) on all ranks, found "
                               f"others on rank {rank} ({host}): its arithmetic, memory or network "
                               "differs; resume from the last checkpoint, without that machine if it "
                               "happens again")

    def _sum(self, array: np.ndarray):
        self._comm.Allreduce(self._in_place, array)


def _flatten(variables: list[nn.Variable]) -> np.ndarray:
    return np.concatenate([variable.d.ravel() for variable in variables]).astype(np.float32)


def _assign(variables: list[nn.Variable], flat: np.ndarray):
    start = 0
    for variable in variables:
        variable.d = flat[start:start + variable.size].reshape(variable.shape)
        start += variable.size


def ranks() -> Ranks | None:
    """The ranks of this process's job; None if it is the only one."""
    return Ranks(mpi.job().comm) if mpi.job().size > 1 else None


def hand_out(settings: RunSettings, description: Description):
    """Tell the other ranks, which are in `receive`, that the data are written.

    Raises:
        UserError: another rank sees other files, or none, or computes elsewhere.
    """
    mpi.wait_for_all()
    if mpi.job().size > 1:
        paths = [settings.output / name for name in DATA_FILES]
        seen = {path: spot_check(path) for path in paths if path.exists()}
        place = current_context(), platform.node()
        mpi.job().comm.bcast((settings, description, seen, place))
        _check_alike(seen, *place)


def receive(own: TrainSettings) -> tuple[RunSettings, Dataset, Description]:
    """Wait until the first rank has written the data, then map them.

    Args:
        own: the settings of this rank, of which those of its device are kept.

    Returns:
        The other settings and the description of the first rank, and the data.

    Raises:
        UserError: this rank or another sees other files than the first, or none, or computes elsewhere.
    """
    mpi.wait_for_all()
    settings, description, seen, place = mpi.job().comm.bcast(None)
    _check_alike(seen, *place)
    settings = replace(settings, context=own.context, device_id=own.device_id, engine=own.engine,
                       workers=own.workers)
    return settings, arrays.load(settings.output, test=True), description


def _check_alike(seen: dict[Path, str], context: str, host: str):
    """Check that every rank sees the files and has the context that the first one, on `host`, has.

    All ranks raise the same error.
    """
    problem = mpi.other_files(seen, host)
    if not problem and current_context() != context:
        problem = (f"expected to compute by {context} as on {host}, found {current_context()} on "
                   f"{platform.node()}; give -c cpu, or a GPU to every rank")
    problems = mpi.job().comm.allgather(problem)
    for rank, found in enumerate(problems):
        if found:
            raise UserError(f"rank {rank}: {found}")
