"""From images to a review by the features of a backbone: the three scripts."""
import shutil
import subprocess
import sys
from pathlib import Path

import nnabla as nn
import numpy as np
import pytest
from PIL import Image

import calculate_score
import mislabel_analysis
import train
from datasets import arrays, corrections
from datasets.corrections import Corrections
from tests.conftest import ROOT, refused
from tests.utils.backbone.onnx_models import scaled, write_onnx

EPOCHS = ["--train_epochs", "4", "-c", "cpu"]


def start(*words, **options):
    nn.clear_parameters()
    train.main([*map(str, words), *EPOCHS])


def score(run, *words):
    nn.clear_parameters()
    calculate_score.main(["--run", str(run), "-c", "cpu", *map(str, words)])


@pytest.fixture(scope="session")
def head_images(tmp_path_factory) -> Path:
    """A folder with 20 dark cats and 20 bright dogs, a cat among the dogs, and an ONNX file."""
    folder, rng = tmp_path_factory.mktemp("head"), np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(20):
            dark = name == "cat" or number == 7
            pixels = rng.integers(0, 100, (48, 40, 3)) + (0 if dark else 100)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / name / f"{number}.png")
    write_onnx(folder / "means.onnx")
    return folder


@pytest.fixture(scope="session")
def finished_head(head_images) -> Path:
    """A folder with a run on the features of those images, and its scores."""
    run = head_images / "run"
    start("--dataset", head_images / "images", "--backbone", head_images / "means.onnx", "--run", run)
    score(run)
    return run


@pytest.fixture
def head_run(finished_head, tmp_path) -> Path:
    return shutil.copytree(finished_head, tmp_path / "run")


def test_wrong_label_is_found(finished_head, tmp_path, capsys):
    features = np.load(finished_head / "features_train.npy")
    assert features.shape == (40, 3) and features.dtype == np.float32
    assert not list(finished_head.glob(".partial*"))
    for ranking in ("tracin", "out_of_fold", "aum"):
        mislabel_analysis.main(["--run", str(finished_head), "--output", str(tmp_path / ranking),
                                "--rank_by", ranking])
        first = (tmp_path / ranking / "suspects.csv").read_text().splitlines()[1].split(",")
        assert "dog/7.png" in first
    assert np.load(finished_head / "out_of_fold.npz")["probability"].shape == (40, 2)


def test_all_layers_are_the_last_one(head_run, tmp_path):
    """Nothing else of a head is trained."""
    for layers in ("last", "all"):
        score(head_run, "--layers", layers, "--output", tmp_path / layers)
    last, every = (np.load(tmp_path / layers / "influence_all_epoch.npy") for layers in ("last", "all"))
    np.testing.assert_allclose(every, last, rtol=1e-5)


def test_features_belong_to_their_images(finished_head, head_run, tmp_path):
    features = np.load(head_run / "features_train.npy")
    np.save(head_run / "features_train.npy", features[::-1].copy())
    with refused("features_train.npy"):
        score(head_run)
    with refused("features_train.npy"):
        start("--input", head_run, "--run", tmp_path / "again")
    assert not (tmp_path / "again").exists()
    (head_run / "features_train.npy").unlink()
    with refused("features_train.npy"):
        score(head_run)
    np.save(head_run / "features_train.npy", features)
    np.save(head_run / "x_train.npy", np.load(head_run / "x_train.npy")[::-1])
    for words in (["--input", head_run, "--run", tmp_path / "again"],
                  ["--run", head_run, "--checkpoint"]):
        with refused("features_train.npy"):
            start(*words)
    assert not (tmp_path / "again").exists()


def test_reviewed_images_are_trained_on_without_their_backbone(head_run, tmp_path):
    dataset = arrays.load(head_run)
    wrong, removed = dataset.paths.index("dog/7.png"), dataset.paths.index("cat/3.png")
    corrections.save(tmp_path / "a.csv", dataset, Corrections({wrong: 0}, [removed]))
    start("--input", head_run, "--corrections", tmp_path / "a.csv", "--run", tmp_path / "second")
    corrected = arrays.load(tmp_path / "second", test=True)
    kept = np.delete(np.arange(40), removed)
    assert np.array_equal(corrected.features, dataset.features[kept])
    assert np.array_equal(corrected.test.features, corrected.features)
    assert corrected.labels[corrected.paths.index("dog/7.png")] == 0
    score(tmp_path / "second")


def test_killed_run_ends_with_the_same_head(finished_head, head_images, tmp_path):
    """The backbone may have moved since."""
    moved = shutil.copy(head_images / "means.onnx", tmp_path / "moved.onnx")
    run = shutil.copytree(finished_head, tmp_path / "run")
    for name in ("params", "states", "checkpoint"):
        for epoch in (3, 4):
            next(run.glob(f"{name}_{epoch:06d}.*")).unlink()
    (run / "out_of_fold.npz").unlink()
    start("--run", run, "--checkpoint", "--dataset", head_images / "images", "--backbone", moved)
    for name in ("params_000004.h5", "out_of_fold.npz"):
        assert (run / name).read_bytes() == (finished_head / name).read_bytes()


@pytest.fixture
def stopped(head_images, tmp_path) -> Path:
    """A run that is tested on other photos, without its last checkpoints."""
    for part in ("train", "val"):
        shutil.copytree(head_images / "images", tmp_path / "photos" / part)
    start("--dataset", tmp_path / "photos", "--backbone", head_images / "means.onnx",
          "--run", tmp_path / "run")
    for path in [*tmp_path.glob("run/*_000003.*"), *tmp_path.glob("run/*_000004.*")]:
        path.unlink()
    return tmp_path / "run"


def test_run_resumes_on_the_test_images_that_there_are(stopped):
    photos = stopped.parent / "photos" / "val"
    (photos / "cat" / "3.png").unlink()
    Image.new("RGB", (40, 48), "red").save(photos / "dog" / "5.png")
    start("--run", stopped, "--checkpoint")
    kept = arrays.load(stopped, test=True).test
    assert len(kept.features) == len(kept.images) == 39
    red = (kept.images == np.array([255, 0, 0])[:, None, None]).all(axis=(1, 2, 3))
    assert red.sum() == 1 and kept.features[red, 0] > 2 and (kept.features[~red, 0] < 2).all()


@pytest.mark.parametrize("content", [None, 0, np.nan])
def test_features_of_the_test_set_belong_to_their_images(stopped, content):
    path = stopped / "features_val.npy"
    path.unlink()
    if content is not None:
        np.save(path, np.full((40, 3), content, np.float32))
    before = {one.name: one.read_bytes() for one in stopped.iterdir()}
    for words in (["--run", stopped, "--checkpoint"],
                  ["--input", stopped, "--run", stopped.parent / "again"]):
        with refused("features_val.npy"):
            start(*words)
    assert {one.name: one.read_bytes() for one in stopped.iterdir()} == before
    assert not (stopped.parent / "again").exists()


def test_input_does_not_resume_what_a_backbone_began(head_run):
    with refused("--input", str(head_run)):
        start("--input", head_run, "--run", head_run, "--checkpoint")


def test_report_is_not_written_among_the_images(head_images, finished_head):
    for place in ("report", "cat", "cat/report"):
        with refused("--dataset", str(head_images / "images" / place)):
            mislabel_analysis.main(["--run", str(finished_head),
                                    "--output", str(head_images / "images" / place)])
    assert sorted(path.name for path in (head_images / "images").iterdir()) == ["cat", "dog"]


def test_other_backbone_needs_another_folder(head_images, head_run, tmp_path):
    """And never harms the run that is there."""
    images, means = head_images / "images", head_images / "means.onnx"
    before = {path.name: path.read_bytes() for path in head_run.iterdir()}
    other = scaled(tmp_path / "other.onnx", (1.0, 2.0, 3.0))
    with refused("--checkpoint", str(head_run)):
        start("--dataset", images, "--backbone", means, "--run", head_run)
    with refused("--output"):  # the checkpoints elsewhere
        start("--dataset", images, "--backbone", other, "--output", head_run, "-m", tmp_path / "a")
    with refused("--output"):
        start("--dataset", images, "--model", "resnet23", "--nmaps", "4", "--output", head_run,
              "-m", tmp_path / "a")
    start("--dataset", images, "--backbone", other, "--run", head_run, "--checkpoint")
    after = {path.name: path.read_bytes() for path in head_run.iterdir() if path.suffix != ".nnp"}
    changed = [name for name, content in after.items() if before[name] != content]
    assert changed == ["source.txt"]  # the run was copied to another place


@pytest.mark.parametrize("name", ["features_train.npy", "features.npz", "out_of_fold.npz"])
def test_files_of_ones_own_are_not_overwritten(head_images, tmp_path, name):
    run = tmp_path / "run"
    run.mkdir()
    (run / name).write_bytes(b"mine")
    for words in (["--backbone", head_images / "means.onnx"], ["--model", "resnet23", "--nmaps", "4"]):
        with refused(name, str(run)):
            start("--dataset", head_images / "images", "--run", run, *words)
    assert [path.name for path in run.iterdir()] == [name]
    assert (run / name).read_bytes() == b"mine"


def test_features_of_a_round_belong_to_their_images(head_run, tmp_path):
    start("--input", head_run, "--run", tmp_path / "second")
    features = np.load(tmp_path / "second" / "features_train.npy")
    np.save(tmp_path / "second" / "features_train.npy", features[::-1].copy())
    with refused("features_train.npy"):
        start("--input", tmp_path / "second", "--run", tmp_path / "third")
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(("more", "facts"), [
    (["--nmaps", "4"], ["--nmaps 4", "head"]),
    (["--augmentation", "True"], ["--augmentation", "head"]),
    (["--model", "resnet23"], ["--backbone", "resnet23"]),
    (["--backbone", "efficientnet-lite1"], ["efficientnet-lite0", "'efficientnet-lite1'"]),
    (["--backbone", ""], ["--backbone"]), (["--backbone", "b" * 300], ["efficientnet-lite0"]),
    (["--dataset", "d" * 300], ["--dataset", "digits"]),
    (["--backbone", "efficientnet-lite0", "--backbone_input", "0..1"],
     ["--backbone_input", "efficientnet"]),
    (["--backbone", "efficientnet-lite0", "--image_size", "100"], ["--image_size", "32", "100"]),
    (["-t", "half"], ["--type-config", "half"]),
    (["--train_batch_size", "41"], ["--train_batch_size", "40", "41"]),
    (["--backbone_output", "b"], ["--backbone_output", "'means'", "b"]),
    (["--input", "."], ["--input", "--backbone"]),
    (["--learning_rate", "1e300"], ["epoch 1", "--learning_rate 1e+300"]),
])
def test_bad_calls_are_refused(head_images, tmp_path, more, facts):
    with refused(*facts):
        start("--dataset", head_images / "images", "--backbone", head_images / "means.onnx",
              "--run", tmp_path / "run", *more)
    left = {path.name.partition("_")[0] for path in tmp_path.glob("run/*")}
    assert left <= ({"features"} if "--learning_rate" not in more else left - {"checkpoint", "params"})


def test_head_needs_features(head_images, tmp_path):
    with refused("--model head", "--backbone efficientnet-lite0"):
        start("--dataset", head_images / "images", "--model", "head", "--run", tmp_path / "run")


def test_known_set_by_its_backbone(tmp_path):
    """Digits with labels that are made wrong, by the network that comes with the requirements."""
    run = tmp_path / "run"
    nn.clear_parameters()
    train.main(["--dataset", "digits", "--subset", "60", "--backbone", "efficientnet-lite0",
                "--image_size", "32", "--run", str(run), "-c", "cpu"])
    assert np.load(run / "features_train.npy").shape == (60, 1280)
    assert np.load(run / "x_train.npy").shape == (60, 3, 32, 32)
    score(run)
    mislabel_analysis.main(["--run", str(run)])
    assert "tracin" in (run / "report" / "metrics.json").read_text()


def test_interrupt_during_the_extraction_loses_nothing(head_images, tmp_path):
    """The command that is printed resumes: what was computed is not computed again."""
    code = """
import sys, train
from utils.backbone import extraction
add = extraction.Records.add
def stop(records, digests, features):
    if len(records.rows) == 9:
        raise KeyboardInterrupt
    add(records, digests, features)
extraction.Records.add = stop
from utils import cli
cli.run(train.main, train.how_to_resume)
"""
    words = ["--dataset", head_images / "images", "--backbone", head_images / "means.onnx",
             "--run", tmp_path / "run", *EPOCHS]
    result = subprocess.run([sys.executable, "-c", code, *map(str, words)], cwd=ROOT,
                            capture_output=True, text=True)
    assert result.returncode == 130 and "features" in result.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".partial-features"]
    start(*words)
    assert len(np.load(tmp_path / "run" / "features_train.npy")) == 40
