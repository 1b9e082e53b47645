"""Scoring in tasks: each scores one slice of the samples at one checkpoint, in some process."""
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from models.registry import Network
from utils.context import memory_for, set_context
from utils.errors import UserError
from utils.files import load_array
from utils.mpi import job
from utils.tasks import run_tasks
from utils.tracin.engines import ENGINES, AnyEngine
from utils.tracin.scores import CheckpointScores
from utils.tracin.self_influence import Scores
from utils.training.checkpoint import Checkpoint, load_parameters

# Long enough that the passes dominate a slice's cost, short enough to show progress and share work.
SAMPLES_PER_SLICE = 256
# Threads take batches of a slice until none is left; then some wait.
BATCHES_PER_THREAD = 4
# By context and layers.  On the CPU, as many as fit the caches (measured: 4 to 32 differ by a few per
# cent); on a GPU, enough to keep it busy.
SAMPLES_PER_PASS = {("cpu", "last"): 16, ("cpu", "all"): 8,
                    ("cudnn", "last"): 1000, ("cudnn", "all"): 64}
# Seconds of work on a checkpoint that a killed run may lose.
SAVE_EVERY = 10


@dataclass(frozen=True)
class ScoringPlan:
    """Everything that a process needs in order to score slices; it is sent to other processes.

    Attributes:
        network: the network to score.
        images: the .npy file of what enters the network, (N, ...).
        labels: the .npy file of the labels, integers (N, 1).
        layers: ``last`` or ``all``.
        engine: a name in ``ENGINES``.
        batch_size: samples per pass.
        workers: threads or processes, whichever the engine uses.
        context: ``cpu`` or ``cudnn``, with `device_id` and `type_config` as for `set_context`.
    """

    network: Network
    images: Path
    labels: Path
    layers: str
    engine: str
    batch_size: int
    workers: int
    context: str
    device_id: int | None
    type_config: str

    @property
    def processes(self) -> int:
        """The number of processes that share the slices: in an MPI job, of ranks."""
        own = self.workers if ENGINES[self.engine].parallel == "processes" else 1
        return max(own, job().size)

    @property
    def threads(self) -> int:
        """The number of threads of each engine."""
        return self.workers if ENGINES[self.engine].parallel == "threads" else 1


def slices(samples: int, batch_size: int, threads: int = 1) -> list[tuple[int, int]]:
    """(start, stop) of each slice of `samples`; all but the last are whole batches for all threads."""
    enough = BATCHES_PER_THREAD * threads if threads > 1 else 1
    length = batch_size * max(enough, SAMPLES_PER_SLICE // batch_size)
    return [(start, min(start + length, samples)) for start in range(0, samples, length)]


class CheckpointEngine:
    """A plan's engine at any checkpoint.

    Raises:
        UserError: the engine does not support the network.
        RunError: out of memory.
    """

    def __init__(self, plan: ScoringPlan):
        set_context(plan.context, plan.device_id, plan.type_config)
        self._plan = plan
        self._loaded: Path | None = None
        with self.memory():  # building a graph with cuDNN takes memory too
            self._engine = ENGINES[plan.engine].make(plan.network, plan.batch_size, plan.layers,
                                                     plan.threads)

    def at(self, checkpoint: Checkpoint) -> AnyEngine:
        """The engine with the parameters of a checkpoint.

        Raises:
            UserError: the checkpoint cannot be read.
        """
        if checkpoint.parameters != self._loaded:
            self._loaded = None
            load_parameters(checkpoint)
            self._engine.load_parameters()
            self._loaded = checkpoint.parameters
        return self._engine

    def memory(self) -> AbstractContextManager:
        """Turns an out-of-memory error into a `RunError` with a batch size to try."""
        return memory_for("--batch_size", self._plan.batch_size,
                          "finished work is kept: run again with fewer --workers, if several, or")


class SliceScorer:
    """Scores slices of the training set at any checkpoint.

    Raises:
        UserError, RunError: as for `CheckpointEngine`.
    """

    def __init__(self, plan: ScoringPlan):
        self._plan, self._engine = plan, CheckpointEngine(plan)

    def __call__(self, checkpoint: Checkpoint, start: int, stop: int) -> Scores:
        """Score samples `start` up to `stop` at a checkpoint.

        Raises:
            UserError: the checkpoint cannot be read, or gives scores that are not finite.
            RunError: out of memory.
        """
        with self._engine.memory():
            return self._score(checkpoint, start, stop)

    def _score(self, checkpoint: Checkpoint, start: int, stop: int) -> Scores:
        images, labels = read_samples(self._plan.images, self._plan.labels, slice(start, stop))
        with np.errstate(all="ignore"):
            result = self._engine.at(checkpoint).score(images, labels)
        check_finite(result.influence, checkpoint)
        return result


def read_samples(images: Path, labels: Path,
                 chosen: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Some of the samples in two .npy files: images (B, ...) and labels, int64 (B, 1)."""
    # The maps are closed here so that pages already read are released.
    return (np.array(load_array(images)[chosen]),
            np.array(load_array(labels)[chosen], np.int64).reshape(-1, 1))


def check_finite(scores: np.ndarray, checkpoint: Checkpoint):
    """Refuse scores that are not finite.

    Raises:
        UserError: there are some.
    """
    if not np.isfinite(scores).all():
        raise UserError(f"the scores at {checkpoint.parameters} are not finite; leave this "
                        "checkpoint out with --epochs, or train again with a lower --learning_rate")


def score_missing(plan: ScoringPlan, checkpoints: list[Checkpoint], results: list[CheckpointScores],
                  finished: Callable[[CheckpointScores, float], object]):
    """Compute and save the scores that the results lack.

    Args:
        plan: how to score.
        checkpoints: where to score.
        results: one per checkpoint.
        finished: called with each result that was incomplete, as soon as it is complete and saved,
            and with an estimate of the seconds left.

    Raises:
        RunError: a process died, or a file cannot be written; finished work is saved.
        UserError: as for `SliceScorer`.
    """
    by_epoch = {result.epoch: result for result in results}
    tasks = [(checkpoint, *piece) for checkpoint in checkpoints
             for piece in slices(results[0].size, plan.batch_size, plan.threads)
             if by_epoch[checkpoint.epoch].missing(*piece)]
    total, done = sum(stop - start for _, start, stop in tasks), 0
    begin = saved = time.monotonic()
    unsaved: set[CheckpointScores] = set()
    with (tqdm(total=total, unit="sample", leave=False, disable=None) as bar,
          closing(run_tasks(SliceScorer, plan, tasks, plan.processes, [plan.images, plan.labels]))
          as ended):
        try:
            for (checkpoint, start, stop), scores in ended:
                result = by_epoch[checkpoint.epoch]
                result.add(start, stop, scores)
                unsaved.add(result)
                done += stop - start
                bar.update(stop - start)
                complete = not result.missing()
                if complete or time.monotonic() - saved > SAVE_EVERY:
                    while unsaved:
                        unsaved.pop().save()
                    saved = time.monotonic()
                if complete:
                    finished(result, (saved - begin) / done * (total - done))
        finally:
            for result in unsaved:
                result.save()
