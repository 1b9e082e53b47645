"""On a GPU, against the CPU: ``python -m pytest -m gpu``."""
import os
import shutil
import subprocess
import sys

import nnabla as nn
import numpy as np
import pytest
from scipy.stats import spearmanr

import calculate_score
import train
from datasets import arrays
from datasets.digits import load_digits
from models.registry import build_network
from tests.conftest import ROOT, contents
from utils.context import current_context, set_context
from utils.tracin.engines import predict
from utils.tracin.explaining import ExplainingPlan, SliceExplainer
from utils.tracin.scoring import ScoringPlan, SliceScorer
from utils.training.checkpoint import find_checkpoints
from utils.training.engines import NnablaEngine
from utils.training.trainer import Trainer

pytestmark = pytest.mark.gpu
TRAIN = ["--dataset", "digits", "--subset", "600", "--model", "resnet23", "--nmaps", "16",
         "--train_epochs", "2", "--model_save_interval", "1"]
models = pytest.mark.parametrize("model", ["resnet23", "resnet56"])


@pytest.fixture(autouse=True)
def _back_to_the_cpu():
    yield
    set_context("cpu", 0, "float")


@models
def test_logits_are_those_of_the_cpu(digits_run, model):
    images = np.load(digits_run / model / "x_train.npy")
    current = find_checkpoints(digits_run / model)[-1]
    logits = {}
    for context in ("cpu", "cudnn"):
        set_context(context, 0, "float")
        assert current_context() == context
        logits[context] = predict(current, build_network(model, 10), images)
    np.testing.assert_allclose(logits["cudnn"], logits["cpu"], rtol=1e-4,
                               atol=1e-4 * np.abs(logits["cpu"]).max())


@models
@pytest.mark.parametrize("layers", ["last", "all"])
def test_scores_are_those_of_the_cpu(digits_run, model, layers):
    run = digits_run / model
    current, scores = find_checkpoints(run)[-1], {}
    for context in ("cpu", "cudnn"):
        nn.clear_parameters()
        plan = ScoringPlan(build_network(model, 10), run / arrays.TRAIN_IMAGES,
                           run / arrays.TRAIN_LABELS, layers, "nnabla", 16, 1, context, 0, "float")
        scores[context] = SliceScorer(plan)(current, 0, 30)
        assert current_context() == context
    for name in ("loss", "error_norm", "probability"):
        np.testing.assert_allclose(getattr(scores["cudnn"], name), getattr(scores["cpu"], name),
                                   rtol=1e-4, atol=1e-6, err_msg=name)
    error = np.abs(scores["cudnn"].influence / scores["cpu"].influence - 1)
    if layers == "last":
        assert error.max() < 1e-4
    else:
        # Where rounding takes an activation across ReLU's or max-pooling's kink, the gradient jumps:
        # parameters that differ by 3e-7 move some samples' scores by 1e-2, on the CPU alone.
        assert np.median(error) < 1e-4 and error.max() < 0.1


def trained(run, *more):
    """Train on digits, and give the mean training loss of both epochs."""
    nn.clear_parameters()
    train.main([*TRAIN, "--output", str(run), "--monitor-path", str(run), *more])
    return np.loadtxt(run / "Training-loss.series.txt", ndmin=2)[:, 1]


@models
def test_explanations_are_those_of_the_cpu(digits_run, model):
    run, found = digits_run / model, {}
    for context in ("cpu", "cudnn"):
        nn.clear_parameters()
        plan = ScoringPlan(build_network(model, 10), run / arrays.TRAIN_IMAGES,
                           run / arrays.TRAIN_LABELS, "last", "nnabla", 16, 1, context, 0, "float")
        explaining = ExplainingPlan(plan, find_checkpoints(run), plan.images, plan.labels, np.arange(9))
        found[context] = SliceExplainer(explaining)(0, 9, 0, 30)
    for kind in ("proponents", "opponents"):
        np.testing.assert_allclose(found["cudnn"][kind].cosine, found["cpu"][kind].cosine, atol=1e-4)


def test_an_epoch_of_training_goes_as_on_the_cpu(tmp_path):
    cpu, gpu = trained(tmp_path / "a", "-c", "cpu"), trained(tmp_path / "b", "-c", "cudnn")
    assert gpu[1] < gpu[0]
    # Rounding grows while training: parameters that differ by 1e-6 at the start make some per cent.
    np.testing.assert_allclose(gpu[0], cpu[0], rtol=0.1)


def test_half_precision_trains_and_scores(tmp_path):
    run = tmp_path / "run"
    losses = trained(run, "-c", "cudnn", "-t", "half")
    assert np.isfinite(losses).all() and losses[1] < losses[0]
    for layers in ("last", "all"):
        scores = {}
        for kind in ("float", "half"):
            nn.clear_parameters()
            calculate_score.main(["--input", str(run), "--checkpoint", str(run), "--layers", layers,
                                  "--output", str(tmp_path / layers / kind), "-c", "cudnn", "-t", kind])
            scores[kind] = np.load(tmp_path / layers / kind / "influence_all_epoch.npy")
        assert spearmanr(scores["half"], scores["float"]).statistic > 0.98


def test_half_precision_updates_as_float_does_at_the_default_width_and_batch():
    """If the loss were not scaled, the first convolution would move by several times what it should."""
    digits, _ = load_digits()
    images, labels, moved = digits.images, digits.labels, {}

    def update(trainer, samples, batch_size, rate):
        trainer.train_epoch(0, images[:samples], labels[:samples], batch_size, lambda update: rate,
                            lambda *update: None)
    set_context("cudnn", 0, "float")
    network = build_network("resnet23", 10, 64, np.random.default_rng(0))
    trainer = Trainer(NnablaEngine(network), False, 0)
    for _ in range(2):
        update(trainer, len(images), 16, 0.02)
    start = {name: value.d.copy() for name, value in nn.get_parameters(grad_only=False).items()}
    for kind in ("float", "half"):
        set_context("cudnn", 0, kind)
        for name, value in nn.get_parameters(grad_only=False).items():
            value.d = start[name]
        engine = NnablaEngine(build_network("resnet23", 10, 64), half=kind == "half")
        update(Trainer(engine, False, 0), 500, 500, 1)
        moved[kind] = {name: value.d - start[name] for name, value in nn.get_parameters().items()}
    for name, expected in moved["float"].items():
        error = np.linalg.norm(moved["half"][name] - expected) / np.linalg.norm(expected)
        assert error < 0.1, f"{name}: {error}"


def test_resumed_run_ends_like_one_that_ran_through(tmp_path):
    """With augmentation, and with cuDNN's deterministic algorithms, not those that are fastest now."""
    def start(run, *more):
        subprocess.run([sys.executable, ROOT / "train.py", *TRAIN, "--augmentation", "True", "-c",
                        "cudnn", "--output", run, "--monitor-path", run, *more], check=True,
                       env={**os.environ, "NNABLA_CUDNN_DETERMINISTIC": "1",
                            "NNABLA_CUDNN_ALGORITHM_BY_HEURISTIC": "1"})
    start(tmp_path / "through")
    shutil.copytree(tmp_path / "through", tmp_path / "resumed")
    for path in (tmp_path / "resumed").glob("*000002*"):
        path.unlink()
    start(tmp_path / "resumed", "--checkpoint", tmp_path / "resumed")
    through, resumed = contents(tmp_path / "through"), contents(tmp_path / "resumed")
    assert through.keys() == resumed.keys()
    for key, array in through.items():
        np.testing.assert_allclose(resumed[key], array, rtol=1e-4, atol=1e-6, err_msg=str(key))
