"""Explaining in tasks: each finds the strongest pairs of some samples in a slice of the training set."""
import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from utils.files import load_array
from utils.tasks import run_tasks
from utils.tracin import explanations
from utils.tracin.explanations import SIGNS, STRONGEST, UNFINISHED, Explanations, Unfinished
from utils.tracin.influence import SAMPLES_PER_PRODUCT, Gradients, Influence, Pairs
from utils.tracin.scores import content_key
from utils.tracin.scoring import SAVE_EVERY, CheckpointEngine, ScoringPlan, check_finite, read_samples
from utils.tracin.self_influence import to_probability
from utils.training.checkpoint import Checkpoint

# Training samples of a task, at most: each task loads all checkpoints, and its memory grows with them.
SAMPLES_PER_SLICE = 4096
# Explained samples of a task: a bound on memory, which the gradients of these at all checkpoints take.
EXPLAINED_PER_TASK = 4096


@dataclass(frozen=True)
class ExplainingPlan:
    """Everything that a process needs in order to explain samples; it is sent to other processes.

    Attributes:
        scoring: how to compute; its images and labels are the training set.
        checkpoints: whose influences are summed, by epoch.
        images, labels: the .npy files of the set of the explained samples, as in `ScoringPlan`.
        indices: of the explained samples, integers (N,).
    """

    scoring: ScoringPlan
    checkpoints: list[Checkpoint]
    images: Path
    labels: Path
    indices: np.ndarray

    @property
    def training(self) -> bool:
        """Whether the explained samples are training samples."""
        return self.images == self.scoring.images


class SliceExplainer:
    """Finds the strongest pairs of explained samples and slices of the training set.

    Raises:
        UserError, RunError: as for `CheckpointEngine`.
    """

    def __init__(self, plan: ExplainingPlan):
        self._plan, self._engine = plan, CheckpointEngine(plan.scoring)
        self._range: tuple[int, int] | None = None
        self._explained: list[Gradients] = []

    def __call__(self, first: int, last: int, start: int, stop: int) -> dict[str, Pairs]:
        """The strongest pairs of the explained samples `first` up to `last` and the training samples
        `start` up to `stop`, each with its place among all explained samples, by the names in `SIGNS`.

        Raises:
            UserError: a checkpoint cannot be read, or gives scores that are not finite.
            RunError: out of memory.
        """
        with self._engine.memory(), np.errstate(all="ignore"), threadpool_limits(1):
            if self._range != (first, last):
                self._explained = list(self._gradients(self._plan.images, self._plan.labels,
                                                       self._plan.indices[first:last]))
                self._range = first, last
            return self._strongest(first, last, start, stop)

    def _gradients(self, images: Path, labels: Path, chosen: slice | np.ndarray) -> Iterator[Gradients]:
        """The gradients of some samples at each checkpoint; equal features are the same object."""
        samples, last = read_samples(images, labels, chosen), None
        for checkpoint in self._plan.checkpoints:
            gradients = self._engine.at(checkpoint).gradients(*samples)
            check_finite(gradients.error, checkpoint)
            if last is not None and np.array_equal(last, gradients.features):
                gradients = replace(gradients, features=last)
            last = gradients.features
            yield gradients

    def _strongest(self, first: int, last: int, start: int, stop: int) -> dict[str, Pairs]:
        places = range(0, stop - start, SAMPLES_PER_PRODUCT)
        pieces = [slice(place, min(place + SAMPLES_PER_PRODUCT, stop - start)) for place in places]
        influences = [Influence(last - first, piece.stop - piece.start) for piece in pieces]
        scoring = self._plan.scoring
        with ThreadPoolExecutor(scoring.threads) as pool:
            others = self._gradients(scoring.images, scoring.labels, slice(start, stop))
            for explained, gradients in zip(self._explained, others, strict=True):
                list(pool.map(Influence.add, influences, itertools.repeat(explained),
                              map(gradients.take, pieces)))
            found = list(pool.map(lambda influence, piece: self._choose(
                influence, np.arange(start + piece.start, start + piece.stop), first, last),
                influences, pieces))
        return {name: Pairs.merge([pairs[name] for pairs in found], sign)
                for name, sign in SIGNS.items()}

    def _choose(self, influence: Influence, indices: np.ndarray, first: int,
                last: int) -> dict[str, Pairs]:
        cosine = influence.cosine
        if self._plan.training:  # a sample does not explain itself
            cosine[self._plan.indices[first:last, None] == indices] = np.nan
        candidates = np.broadcast_to(indices, cosine.shape), influence.total, cosine
        return {name: Pairs.of(*candidates, sign, STRONGEST) for name, sign in SIGNS.items()}


def explain(plan: ExplainingPlan, path: Path, origins: dict[str, str], key: str):
    """Find the strongest proponents and opponents of the plan's samples and write them.

    What is found before it ends is kept beside `path` and resumed from.

    Args:
        plan: what to explain, and how.
        path: file to write.
        origins: from `explanations.origin`.
        key: identifies everything that decides the explanations.

    Raises:
        RunError: a process died, or a file cannot be written; finished work is saved.
        UserError: as for `SliceExplainer`.
    """
    tasks = list(_tasks(plan))
    unfinished = Unfinished(path.with_name(UNFINISHED.format(path.name)),
                            content_key(explanations=key, tasks=tasks), len(plan.indices), len(tasks))
    numbers = {task: number for number, task in enumerate(tasks) if not unfinished.done[number]}
    if unfinished.done.any():
        print(f"resuming: {int(unfinished.done.sum())} of {len(tasks)} parts are kept", flush=True)
    files = [plan.scoring.images, plan.scoring.labels, plan.images, plan.labels]
    saved = time.monotonic()
    with (tqdm(total=sum(stop - start for _, _, start, stop in numbers), unit="sample", leave=False,
               disable=None) as bar,
          closing(run_tasks(SliceExplainer, plan, list(numbers), plan.scoring.processes, files))
          as ended):
        try:
            for task, found in ended:
                first, last, start, stop = task
                unfinished.add(numbers[task], first, last, found)
                bar.update(stop - start)
                if time.monotonic() - saved > SAVE_EVERY:
                    unfinished.save()
                    saved = time.monotonic()
        except BaseException:
            unfinished.save()
            raise
    probability = probabilities(plan, CheckpointEngine(plan.scoring))
    explanations.save(path, Explanations(plan.indices, probability, **unfinished.pairs), origins, key)
    unfinished.remove()


def _tasks(plan: ExplainingPlan) -> Iterator[tuple[int, int, int, int]]:
    """(first, last) of the explained samples and (start, stop) of the training samples of each task."""
    samples = len(load_array(plan.scoring.labels))
    pieces = -(-samples // (SAMPLES_PER_PRODUCT * plan.scoring.processes))
    length = min(SAMPLES_PER_SLICE, SAMPLES_PER_PRODUCT * pieces)
    for first in range(0, len(plan.indices), EXPLAINED_PER_TASK):
        for start in range(0, samples, length):
            yield (first, min(first + EXPLAINED_PER_TASK, len(plan.indices)), start,
                   min(start + length, samples))


def probabilities(plan: ExplainingPlan, engine: CheckpointEngine) -> np.ndarray:
    """The probabilities of the plan's samples at the newest checkpoint, float32 (N, C)."""
    parts = []
    for start in range(0, len(plan.indices), SAMPLES_PER_PRODUCT):
        images, labels = read_samples(plan.images, plan.labels,
                                      plan.indices[start:start + SAMPLES_PER_PRODUCT])
        with engine.memory(), np.errstate(all="ignore"), threadpool_limits(1):
            gradients = engine.at(plan.checkpoints[-1]).gradients(images, labels)
        check_finite(gradients.error, plan.checkpoints[-1])
        parts.append(to_probability(gradients.error, labels))
    return np.concatenate(parts)
