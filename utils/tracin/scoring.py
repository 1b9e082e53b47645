"""Scoring as tasks: the samples of one slice at one checkpoint, by however many processes."""
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.context import memory_for, set_context
from utils.errors import UserError
from utils.files import load_array
from utils.processes import run_tasks
from utils.tracin.engines import NnablaEngine, OnnxRuntimeEngine
from utils.tracin.scores import CheckpointScores
from utils.tracin.self_influence import Scores
from utils.training.checkpoint import Checkpoint, load_parameters

# Long enough that a slice's cost is the passes', short enough to show progress and share the work.
SAMPLES = 256
# Samples in a pass, by context and layers.  On the CPU they are what the caches hold (measured: 4 to
# 32 differ by a few per cent); on a GPU, what keeps it busy.
BATCH_SIZES = {("cpu", "last"): 16, ("cpu", "all"): 8, ("cudnn", "last"): 1000, ("cudnn", "all"): 64}
# Seconds of work on a checkpoint that a killed run may lose.
SAVE_EVERY = 10


@dataclass(frozen=True)
class Setup:
    """All that a process needs to know to score slices; it is sent to other processes.

    Attributes:
        prediction: ``prediction(image, test=True) -> (logits, h)``.
        images: the .npy file of the images, uint8 (N, 3, 32, 32).
        labels: that of the labels, integers (N, 1).
        layers: ``last`` or ``all``.
        engine: ``nnabla`` or ``onnxruntime``.
        batch_size: samples in a pass.
        workers: threads of ONNX Runtime, or processes of NNabla.
        context: ``cpu`` or ``cudnn``, with `device_id` and `type_config` as for `set_context`.
    """

    prediction: Callable
    images: Path
    labels: Path
    layers: str
    engine: str
    batch_size: int
    workers: int
    context: str
    device_id: int
    type_config: str

    @property
    def processes(self) -> int:
        """How many processes share the slices."""
        return 1 if self.engine == "onnxruntime" else self.workers


def slices(samples: int, batch_size: int) -> list[tuple[int, int]]:
    """(start, stop) of the slices of `samples`, whole batches each but for the last."""
    length = batch_size * max(1, SAMPLES // batch_size)
    return [(start, min(start + length, samples)) for start in range(0, samples, length)]


class SliceScorer:
    """Scores slices of the training set, one after the other, at whatever checkpoint is asked for.

    Raises:
        UserError: the network cannot be scored by this engine.
        RunError: the memory does not suffice.
    """

    def __init__(self, setup: Setup):
        set_context(setup.context, setup.device_id, setup.type_config)
        self._setup = setup
        self._loaded = None
        with self._memory():  # cuDNN takes some while a graph is made
            if setup.engine == "onnxruntime":
                self._engine = OnnxRuntimeEngine(setup.prediction, setup.batch_size, setup.workers)
            else:
                self._engine = NnablaEngine(setup.prediction, setup.batch_size, setup.layers)

    def _memory(self) -> AbstractContextManager:
        return memory_for("--batch_size", self._setup.batch_size,
                          "what was done is kept: run again with fewer --workers, if several, or")

    def __call__(self, current: Checkpoint, start: int, stop: int) -> Scores:
        """The scores of samples `start` up to `stop` at a checkpoint.

        Raises:
            UserError: the checkpoint cannot be read, or gives scores that are not finite.
            RunError: the memory does not suffice.
        """
        with self._memory():
            return self._score(current, start, stop)

    def _score(self, current: Checkpoint, start: int, stop: int) -> Scores:
        if current.parameters != self._loaded:
            self._loaded = None
            load_parameters(current)
            self._engine.load_parameters()
            self._loaded = current.parameters
        # The maps are closed after every slice, lest the images read so far count as memory in use.
        images = np.array(load_array(self._setup.images)[start:stop])
        labels = np.array(load_array(self._setup.labels)[start:stop], np.int64).reshape(-1, 1)
        with np.errstate(all="ignore"):
            result = self._engine.score(images, labels)
        if not np.isfinite(result.influence).all():
            raise UserError(f"the scores at {current.parameters} are not finite; leave this "
                            "checkpoint out with --epochs, or train again with a lower "
                            "--learning_rate")
        return result


def complete(setup: Setup, checkpoints: list[Checkpoint], results: list[CheckpointScores],
             finished: Callable[[CheckpointScores, float], object]):
    """Compute what is missing in the results, and keep it on the disk.

    Args:
        setup: how.
        checkpoints: those to score.
        results: one for each checkpoint.
        finished: called with each result that was not complete, as soon as it is complete and
            saved, and with an estimate of the seconds left.

    Raises:
        RunError: a process died; what was done is saved.
        UserError: whatever `SliceScorer` refuses, or a file cannot be written.
    """
    by_epoch = {result.epoch: result for result in results}
    tasks = [(current, *piece) for current in checkpoints
             for piece in slices(results[0].size, setup.batch_size)
             if by_epoch[current.epoch].missing(*piece)]
    total, done = sum(stop - start for _, start, stop in tasks), 0
    begin = saved = time.monotonic()
    unsaved = set()
    with (tqdm(total=total, unit="sample", leave=False, disable=None) as bar,
          closing(run_tasks(SliceScorer, setup, tasks, setup.processes)) as ended):
        try:
            for (current, start, stop), scores in ended:
                result = by_epoch[current.epoch]
                result.add(start, stop, scores)
                unsaved.add(result)
                done += stop - start
                bar.update(stop - start)
                whole = not result.missing()
                if whole or time.monotonic() - saved > SAVE_EVERY:
                    while unsaved:
                        unsaved.pop().save()
                    saved = time.monotonic()
                if whole:
                    finished(result, (saved - begin) / done * (total - done))
        finally:
            for result in unsaved:
                result.save()
