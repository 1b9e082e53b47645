"""A head on features of a backbone, from training to the analysis."""
import json
import shutil
from dataclasses import replace

import nnabla as nn
import numpy as np
import pytest

import calculate_score
import mislabel_analysis
import train
from datasets import arrays
from models.head import LENGTH
from tests.conftest import make_dataset, refused
from utils.training.out_of_fold import FILE


def start(data, run, *more):
    nn.clear_parameters()
    train.main(["--input", str(data), "--run", str(run), "-c", "cpu", "--train_epochs", "6", *more])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The files of a run on 60 samples of three classes, whose features tell them apart."""
    folder, dataset = tmp_path_factory.mktemp("features") / "data", make_dataset(60)
    features = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    features[:, :3] += 4 * np.eye(3, dtype=np.float32)[dataset.true_labels[:, 0]]
    features[:, 3] = 7
    arrays.save(folder, replace(dataset, features=features,
                                test=replace(dataset.test, features=features[:12])))
    return folder


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("head") / "run"
    start(data, run)
    nn.clear_parameters()
    calculate_score.main(["--run", str(run), "-c", "cpu"])
    return run


def test_head_is_what_features_are_trained_with_and_everything_follows(finished, few_resamples):
    with np.load(finished / FILE) as file:
        probability = file["probability"]
    true = np.load(finished / "y_train.npy")[:, 0]
    assert (probability.argmax(axis=1) == true).mean() > 0.9
    with np.load(finished / "per_checkpoint.npz") as file:
        influence, error_norm = file["influence"], file["error_norm"]
    np.testing.assert_allclose(influence, error_norm**2 * (LENGTH**2 + 1), rtol=1e-5)
    mislabel_analysis.main(["--run", str(finished), "--rank_by", "auto"])
    metrics = json.loads((finished / "report" / "metrics.json").read_text())
    assert metrics["ranked_by"] == "consensus" and "out_of_fold" in metrics["scores"]
    assert metrics["scores"]["out_of_fold"]["auroc"] > 0.9


@pytest.mark.parametrize("changed", ["features_val.npy", "x_val.npy"])
def test_test_samples_are_explained_by_the_features_that_were_made_in_training(finished, tmp_path,
                                                                               changed):
    run = shutil.copytree(finished, tmp_path / "run")
    flags = ["--run", str(run), "-c", "cpu", "--explain_test", "1"]
    calculate_score.main(flags)
    assert (run / "explanations_test.npz").exists()
    np.save(run / changed, np.load(run / changed)[::-1])
    with refused("features_val.npy"):
        calculate_score.main(flags)


def test_killed_run_makes_the_same_probabilities_again(finished, data, tmp_path):
    run = tmp_path / "run"
    start(data, run, "--engine", "onnxruntime")
    expected = (run / FILE).read_bytes()
    assert expected == (finished / FILE).read_bytes()
    for path in [run / FILE, *run.glob("*000006*"), *run.glob("*000005*")]:
        path.unlink()
    start(data, run, "--checkpoint")
    with np.load(run / FILE) as again, np.load(finished / FILE) as first:
        assert np.array_equal(again["probability"], first["probability"])
        assert str(again["run_sha256"]) == str(first["run_sha256"])
