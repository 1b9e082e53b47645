import functools
from dataclasses import replace

import nnabla as nn
import numpy as np
import pytest

from datasets import arrays
from models.registry import build_network
from tests.conftest import make_dataset, refused
from utils.errors import RunError
from utils.tasks import run_tasks
from utils.tracin import scoring
from utils.tracin.engines import OnnxRuntimeEngine
from utils.tracin.scores import CheckpointScores
from utils.tracin.scoring import ScoringPlan, SliceScorer, score_missing, slices
from utils.training.checkpoint import check_parameters, find_checkpoints


@pytest.mark.parametrize(("samples", "batch_size", "expected"), [
    (600, 16, [(0, 256), (256, 512), (512, 600)]),
    (600, 100, [(0, 200), (200, 400), (400, 600)]),
    (600, 500, [(0, 500), (500, 600)]),
    (3, 3, [(0, 3)]),
])
def test_slices_are_whole_batches(samples, batch_size, expected):
    assert slices(samples, batch_size) == expected


@pytest.mark.parametrize("batch_size", [8, 256, 1000])
def test_every_slice_has_batches_for_all_threads(batch_size):
    pieces = slices(100_000, batch_size, threads=6)
    assert all(stop - start >= 6 * batch_size for start, stop in pieces[:-1])
    assert [start for start, _ in pieces[1:]] == [stop for _, stop in pieces[:-1]]
    assert all(start % batch_size == 0 for start, _ in pieces) and pieces[-1][1] == 100_000


@pytest.fixture
def scored(tmp_path):
    """A plan for 600 samples, a checkpoint of a network with fresh parameters, and empty results."""
    arrays.save(tmp_path, make_dataset(600))
    network = build_network("resnet23", 3, 4, np.random.default_rng(0))
    network(nn.Variable((1, 3, 32, 32)), test=True)
    nn.save_parameters(str(tmp_path / "params_7.h5"))
    checkpoint, = find_checkpoints(tmp_path)
    plan = ScoringPlan(build_network("resnet23", 3, 4), tmp_path / arrays.TRAIN_IMAGES,
                       tmp_path / arrays.TRAIN_LABELS, "last", "onnxruntime", 16, 1, "cpu", 0, "float")
    return plan, checkpoint, functools.partial(CheckpointScores, tmp_path, 7, "key", 600, 3)


def test_slice_is_scored_by_its_own_images_and_labels(scored):
    plan, checkpoint, _ = scored
    scorer = SliceScorer(plan)
    whole, part = scorer(checkpoint, 0, 600), scorer(checkpoint, 256, 300)
    np.testing.assert_allclose(part.influence, whole.influence[256:300], rtol=1e-12)
    assert len(set(whole.influence.tolist())) > 500


def test_parameters_replaced_after_the_check_are_refused(scored):
    plan, checkpoint, _ = scored
    checked, = check_parameters([checkpoint], plan.network)
    for variable in nn.get_parameters(grad_only=False).values():
        variable.d = variable.d / 2
    nn.save_parameters(str(checkpoint.parameters))
    with refused(str(checkpoint.parameters)):
        SliceScorer(plan)(checked, 0, 256)


def test_lack_of_memory_names_a_batch_size_to_try(scored, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("Failed to allocate memory for requested buffer of size 1000")
    plan, checkpoint, _ = scored
    monkeypatch.setattr(OnnxRuntimeEngine, "score", fail)
    with refused("--batch_size 16", "--workers", "--batch_size 8", error=RunError):
        SliceScorer(plan)(checkpoint, 0, 600)


def test_lack_of_memory_for_the_graph_names_a_batch_size_to_try(scored, monkeypatch):
    def fail(*args):
        raise RuntimeError("CUDNN_STATUS_ALLOC_FAILED")
    monkeypatch.setattr(OnnxRuntimeEngine, "__init__", fail)
    with refused("--batch_size 16", "--batch_size 8", error=RunError):
        SliceScorer(scored[0])


def test_scores_are_computed_where_they_are_asked_for(scored, monkeypatch):
    asked = []
    monkeypatch.setattr(scoring, "set_context", lambda *args: asked.append(args))
    SliceScorer(replace(scored[0], context="cudnn", device_id=1, type_config="half"))
    assert asked == [("cudnn", 1, "half")]


def test_what_was_done_when_a_process_died_is_kept(scored, monkeypatch):
    plan, checkpoint, results = scored
    expected = results()
    score_missing(plan, [checkpoint], [expected], lambda result, left: result.remove())
    calls = []

    def dies_after_two(*args):
        for number, ended in enumerate(run_tasks(*args)):
            if number == 2:
                raise RunError("a worker process died")
            yield ended
    monkeypatch.setattr(scoring, "run_tasks", dies_after_two)
    with pytest.raises(RunError):
        score_missing(plan, [checkpoint], [results()], lambda *call: calls.append(call))
    assert not calls
    assert results().missing() == 88 and results().missing(0, 512) == 0

    def counting(make, plan, tasks, *more):
        calls.extend(tasks)
        return run_tasks(make, plan, tasks, *more)
    monkeypatch.setattr(scoring, "run_tasks", counting)
    score_missing(plan, [checkpoint], [results()], lambda result, left: calls.append(result.epoch))
    assert [task if task == 7 else task[1:] for task in calls] == [(512, 600), 7]
    for name in ("influence", "loss", "margin", "error_norm", "probability"):
        assert np.array_equal(results()[name], expected[name])


def test_work_on_a_checkpoint_is_kept_from_time_to_time(scored, monkeypatch):
    plan, checkpoint, results = scored
    missing = []

    def watched(*args):
        for ended in run_tasks(*args):
            missing.append(results().missing())
            yield ended
    monkeypatch.setattr(scoring, "run_tasks", watched)
    monkeypatch.setattr(scoring, "SAVE_EVERY", 0)
    score_missing(plan, [checkpoint], [results()], lambda *call: None)
    assert missing == [600, 344, 88] and not results().missing()
