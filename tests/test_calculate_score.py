import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import h5py
import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest

import calculate_score
import mislabel_analysis
import train
from datasets import arrays
from models.registry import MODELS, Model
from tests.conftest import ROOT, children, gone, make_dataset, numbers, refused, train_flags


def score(run, output, *more):
    calculate_score.main(["--input", str(run), "--checkpoint", str(run), "--output", str(output),
                          "-c", "cpu", *more])


def total(folder):
    return np.load(folder / "influence_all_epoch.npy")


@pytest.mark.parametrize("more", [
    ["--batch_size", "7"], ["--model", "resnet23"], ["--layers", "last"], ["--workers", "1"],
    ["--workers", "3"], ["--engine", "onnxruntime"]])
def test_scores_do_not_depend_on_flags_that_change_nothing(run, tmp_path, more):
    score(run, tmp_path / "again", *more)
    np.testing.assert_allclose(total(tmp_path / "again"), total(run), rtol=1e-6)


@pytest.mark.parametrize("layers", ["last", "all"])
def test_scores_of_nnabla_do_not_depend_on_workers_or_batch(run, tmp_path, layers):
    """Two processes and batches of 4, the last one of 2, against one process and one batch."""
    flags = ["--layers", layers, "--engine", "nnabla"]
    score(run, tmp_path / "one", *flags, "--workers", "1", "--batch_size", "30")
    score(run, tmp_path / "two", *flags, "--workers", "2", "--batch_size", "4")
    np.testing.assert_allclose(total(tmp_path / "two"), total(tmp_path / "one"), rtol=1e-6)
    ratio = total(tmp_path / "one") / total(run)
    if layers == "all":
        assert (ratio > 2).all()
    else:  # the engine of `run` is the other one
        np.testing.assert_allclose(ratio, 1, rtol=1e-5)


def test_epochs_choose_checkpoints(run, tmp_path, capsys):
    score(run, tmp_path / "some", "--epochs", "3", "1", "--workers", "1")
    expected = np.load(run / "000001_influence.npy") + np.load(run / "000003_influence.npy")
    assert np.array_equal(total(tmp_path / "some"), expected)
    assert not (tmp_path / "some" / "000002_influence.npy").exists()
    with np.load(tmp_path / "some" / "per_checkpoint.npz") as file:
        assert file["epochs"].tolist() == [1, 3]
    first = numbers(capsys.readouterr().out.splitlines()[0])
    assert "2" in first and "3" not in first  # two checkpoints, and no word on an unfinished run


def test_single_checkpoint_is_scored_alone(run, tmp_path):
    calculate_score.main(["--input", str(run), "--checkpoint", str(run / "checkpoint_000002.json"),
                          "--output", str(tmp_path / "one"), "-c", "cpu"])
    assert np.array_equal(total(tmp_path / "one"), np.load(run / "000002_influence.npy"))


def test_scores_of_every_epoch_can_be_left_out(run, tmp_path):
    score(run, tmp_path / "new")
    score(run, tmp_path / "new", "--save_every_epoch", "False")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == \
        ["influence_all_epoch.npy", "per_checkpoint.npz"]


def test_checkpoints_of_nnablas_example_are_scored(run, tmp_path):
    """Without a description, --model names the network; width and classes are in the parameters."""
    old = tmp_path / "old"
    old.mkdir()
    for epoch, name in [(1, "params_29.h5"), (2, "params_59.h5"), (3, "params_119.h5")]:
        shutil.copy(run / f"params_{epoch:06d}.h5", old / name)
    flags = ["--input", str(run), "--checkpoint", str(old), "--output", str(old), "-c", "cpu"]
    calculate_score.main([*flags, "--model", "resnet23"])
    assert np.array_equal(total(old), total(run))
    with np.load(old / "per_checkpoint.npz") as file:
        assert file["epochs"].tolist() == [29, 59, 119]
        assert np.isnan(file["learning_rate"]).all()
    nn.clear_parameters()
    with refused(str(old / "params_29.h5"), "--model"):
        calculate_score.main(flags)


def test_model_that_contradicts_the_checkpoint_is_refused(run):
    with refused("--model resnet56", str(run), "resnet23"):
        score(run, run, "--model", "resnet56")


def test_data_of_another_run_are_refused(run, tmp_path):
    arrays.save(tmp_path / "other", make_dataset(seed=1))
    with refused(str(tmp_path / "other"), str(run)):
        calculate_score.main(["--input", str(tmp_path / "other"), "--checkpoint", str(run)])


@pytest.mark.parametrize(("more", "facts"), [
    (["--batch_size", "31"], ["--batch_size", "30", "31"]),
    (["--batch_size", "0"], ["--batch_size", "'0'"]),
    (["--workers", "0"], ["--workers", "256", "'0'"]),
    (["--epochs", "2", "9", "7"], ["--epochs", "1, 2, 3", "7, 9"]),
    (["--epochs"], ["--epochs"]),
    (["--layers", "first"], ["--layers", "'first'"]),
    (["--checkpoint", "nowhere"], ["nowhere", "--model_save_path"]),
    (["--input", "nowhere"], ["--input nowhere"]),
    (["--output", __file__], [__file__]),
])
def test_bad_calls_are_refused(run, tmp_path, more, facts):
    with refused(*facts):
        score(run, tmp_path / "new", *more)
    assert not (tmp_path / "new").exists()


def test_parameters_that_are_not_finite_name_the_checkpoint(run, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    for epoch in (1, 2):
        shutil.copy(run / f"params_00000{epoch}.h5", old / f"params_{epoch}.h5")
    for value in (np.nan, np.inf):
        with h5py.File(old / "params_2.h5", "r+") as file:
            file["conv2/conv1/bn/beta"][0, 1] = value
        with refused(str(old / "params_2.h5"), "conv2/conv1/bn/beta"):
            calculate_score.main(["--input", str(run), "--checkpoint", str(old), "--output",
                                  str(tmp_path / "new"), "--model", "resnet23", "-c", "cpu"])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", ["damaged", "of another epoch"])
def test_damaged_checkpoint_is_found_before_anything_is_written(run, tmp_path, content):
    """Also where the file can be read, and only its digest tells that it is not the one described."""
    path = run / "params_000003.h5"
    path.write_bytes(b"damaged" if content == "damaged" else (run / "params_000002.h5").read_bytes())
    with refused(str(path)):
        score(run, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_parameters_replaced_after_the_check_are_refused(run, tmp_path, monkeypatch):
    """No description tells their digest; their scores would be kept as those of the old ones."""
    old, path = tmp_path / "old", tmp_path / "old" / "params_1.h5"
    old.mkdir()
    shutil.copy(run / "params_000001.h5", path)
    monkeypatch.setattr(calculate_score, "report_kept",
                        lambda *args: shutil.copy(run / "params_000002.h5", path))
    with refused(str(path)):
        calculate_score.main(["--input", str(run), "--checkpoint", str(old), "--output", str(old),
                              "--model", "resnet23", "-c", "cpu"])
    assert [file.name for file in old.iterdir()] == ["params_1.h5"]


def test_unfinished_run_is_named(run, tmp_path, capsys):
    (run / "checkpoint_000003.json").unlink()
    score(run, tmp_path / "new", "--workers", "1")
    assert {"2", "3"} <= set(numbers(capsys.readouterr().out.splitlines()[0]))


def test_checkpoint_that_is_missing_is_not_passed_over(run):
    (run / "params_000002.h5").unlink()
    with refused(str(run / "params_000002.h5")):
        score(run, run)


def test_scores_that_are_not_finite_are_refused(run, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    shutil.copy(run / "params_000001.h5", old / "params_1.h5")
    with h5py.File(old / "params_1.h5", "r+") as file:
        file["conv8/conv3/bn/gamma"][...] = 3e38
    with refused(str(old / "params_1.h5"), "--epochs"):
        calculate_score.main(["--input", str(run), "--checkpoint", str(old), "--output", str(old),
                              "--model", "resnet23", "-c", "cpu"])
    assert [path.name for path in old.iterdir()] == ["params_1.h5"]


def strided(image, classes, test=False, rng=None):
    """A network that the registry does not have."""
    with nn.parameter_scope("conv1"):
        h = PF.convolution(image, 8, (5, 5), stride=(4, 4), rng=rng)
        h = F.relu(PF.batch_normalization(h, batch_stat=not test))
    return PF.affine(h, classes, rng=rng), h


def unknown(image, classes, test=False, rng=None):
    """One with a function that is not translated."""
    logits, h = strided(F.elu(image), classes, test, rng)
    return logits, h


def test_added_network_is_scored_with_no_further_work(dataset_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "strided", Model(strided))
    run = tmp_path / "run"
    train.main(["--model", "strided", "--train_epochs", "1", "--train_batch_size", "8", "-c", "cpu",
                "--input", str(dataset_folder), "--output", str(run), "--monitor-path", str(run)])
    assert (run / "strided_result.onnx").exists()
    for name, more in [("default", []), ("nnabla", ["--engine", "nnabla"]),
                       ("all", ["--layers", "all"])]:
        nn.clear_parameters()
        score(run, tmp_path / name, *more)
    np.testing.assert_allclose(total(tmp_path / "default"), total(tmp_path / "nnabla"), rtol=1e-5,
                               atol=1e-2)
    assert (total(tmp_path / "all") > total(tmp_path / "default")).all()


def test_added_network_that_cannot_be_taken_is_refused_by_name(dataset_folder, tmp_path, monkeypatch,
                                                               capsys):
    monkeypatch.setitem(MODELS, "unknown", Model(unknown))
    run = tmp_path / "run"
    train.main(["--model", "unknown", "--train_epochs", "1", "--train_batch_size", "8", "-c", "cpu",
                "--engine", "nnabla", "--input", str(dataset_folder), "--output", str(run),
                "--monitor-path", str(run)])
    said = capsys.readouterr().out
    assert any("unknown_result.onnx" in line and "ELU" in line for line in said.splitlines())
    assert not (run / "unknown_result.onnx").exists() and (run / "unknown_result.nnp").exists()
    for more, remedy in [([], "--engine nnabla"), (["--layers", "all"], "--layers last")]:
        nn.clear_parameters()
        with refused("ELU", remedy):
            score(run, tmp_path / "scores", *more)
    nn.clear_parameters()
    score(run, tmp_path / "scores", "--engine", "nnabla", "--workers", "1")
    assert len(total(tmp_path / "scores")) == 30


ORDER = ["influence_all_epoch.npy", "per_checkpoint.npz", "000001_influence.npy",
         "000001_scores.npz", "000002_influence.npy", "000002_scores.npz", "000003_influence.npy",
         "000003_scores.npz"]


def contents(folder):
    return {name: (folder / name).read_bytes() for name in ORDER}


def test_second_run_computes_nothing_and_ends_with_the_same_bytes(run, monkeypatch, capsys):
    expected = contents(run)
    (run / "000002_influence.npy").unlink()
    monkeypatch.setattr("utils.tracin.scoring.SliceScorer", None)  # not to be made
    score(run, run)
    assert contents(run) == expected
    assert numbers(capsys.readouterr().out).count("90") == 2  # 90 of 90 scores


def written(folder):
    """When the scores at each checkpoint were written, by epoch."""
    return {int(path.name[:6]): path.stat().st_mtime_ns for path in folder.glob("*_scores.npz")}


def change_parameters(run):
    """New parameters at epoch 2, as from a second training: description and all."""
    path, description = run / "params_000002.h5", run / "checkpoint_000002.json"
    with h5py.File(path, "r+") as file:
        file["affine/b"][0] += 0.5
    text = json.loads(description.read_text())
    text["parameters_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    description.write_text(json.dumps(text))


def change_data(name, place):
    def change(run):
        array = np.load(run / name)
        array[place] = (array[place] + 1) % 3
        np.save(run / name, array)
        digest = arrays.load(run).digest()
        for path in run.glob("checkpoint_*.json"):
            path.write_text(json.dumps({**json.loads(path.read_text()), "data_sha256": digest}))
        (run / "per_checkpoint.npz").unlink()  # as if scoring had been killed before its end
    return change


@pytest.mark.parametrize(("change", "more", "stale"), [
    (change_parameters, [], [2]),
    (change_data("x_train.npy", (7, 1, 3, 3)), [], [1, 2, 3]),
    (change_data("y_shuffle_train.npy", (7, 0)), [], [1, 2, 3]),
    (lambda run: None, ["--layers", "all"], [1, 2, 3]),
    (lambda run: None, ["--engine", "nnabla"], [1, 2, 3]),
    (lambda run: score(run, run, "--engine", "nnabla"), ["--layers", "all"], [1, 2, 3]),
    (lambda run: (run / "000003_scores.npz").write_bytes(b"damaged"), [], [3]),
    (lambda run: None, ["--batch_size", "7", "--workers", "1"], []),
])
def test_kept_scores_of_something_else_are_recognized(run, tmp_path, capsys, change, more, stale):
    change(run)
    before = written(run)
    nn.clear_parameters()
    capsys.readouterr()
    score(run, run, *more)
    after = written(run)
    assert [epoch for epoch in (1, 2, 3) if after[epoch] != before[epoch]] == stale
    # One line names the epochs and the folder; others name files in it.
    told = [line.replace(str(run), "") for line in capsys.readouterr().out.splitlines()
            if re.search(f"{re.escape(str(run))}(?!/)", line) and "mislabel_analysis.py" not in line]
    assert [numbers(line) for line in told] == ([[str(epoch) for epoch in stale]] if stale else [])
    nn.clear_parameters()
    score(run, tmp_path / "fresh", *more)
    np.testing.assert_allclose(total(run), total(tmp_path / "fresh"), rtol=0 if stale else 1e-6)


@pytest.mark.parametrize("other", ["data", "training"])
def test_scores_of_another_run_are_not_overwritten(run, tmp_path, other):
    if other == "data":
        save_data, flags = make_dataset(seed=1), []
    else:
        save_data, flags = make_dataset(), ["--seed", "5"]
    arrays.save(tmp_path / "data", save_data)
    nn.clear_parameters()
    train.main(train_flags(tmp_path / "data", tmp_path / "other", "--train_epochs", "1", *flags))
    nn.clear_parameters()
    before = contents(run)
    with refused(str(run), "--output"):
        calculate_score.main(["--input", str(tmp_path / "other"), "--checkpoint",
                              str(tmp_path / "other"), "--output", str(run), "-c", "cpu"])
    assert contents(run) == before


@pytest.mark.parametrize("name", ["label_names.txt", "y_train.npy"])
@pytest.mark.parametrize("step", [
    lambda run: score(run, run),
    lambda run: mislabel_analysis.main(["--input", str(run), "--output", str(run / "report")])])
def test_changed_names_and_true_labels_are_refused(run, name, step):
    path = run / name
    content = bytearray(path.read_bytes())
    content[-8] ^= 1  # still a label below 3, or a name
    path.write_bytes(content)
    with refused(str(path)):
        step(run)


@pytest.fixture(scope="module")
def larger_run(tmp_path_factory):
    """Data and two checkpoints of 600 samples, and their scores by all layers."""
    folder = tmp_path_factory.mktemp("larger")
    arrays.save(folder / "data", make_dataset(600))
    run = folder / "run"
    nn.clear_parameters()
    train.main(["--model", "resnet23", "--nmaps", "8", "--train_epochs", "2", "--train_batch_size",
                "100", "-c", "cpu", "--input", str(folder / "data"), "--output", str(run),
                "--monitor-path", str(run)])
    nn.clear_parameters()
    score(run, folder / "scores", "--layers", "all", "--engine", "nnabla")
    return folder


def start(larger_run, output):
    return subprocess.Popen(
        [sys.executable, "-u", ROOT / "calculate_score.py", "--input", larger_run / "run",
         "--checkpoint", larger_run / "run", "--output", output, "--layers", "all", "-c", "cpu",
         "--engine", "nnabla", "--workers", "2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process):
    while not condition() and process.poll() is None:
        time.sleep(0.005)


def resume_and_compare(larger_run, output, capfd, kept):
    """Resume a run that ended after `kept` of its two checkpoints: these are not computed again."""
    before = written(output) if output.exists() else {}
    capfd.readouterr()
    score(larger_run / "run", output, "--layers", "all", "--engine", "nnabla", "--workers", "1")
    said, complaints = capfd.readouterr()
    assert complaints == ""
    after = written(output)
    assert all(after[epoch] == before[epoch] for epoch in range(1, kept + 1))
    # Only the line on what is kept counts the scores of both checkpoints.
    told = [numbers(line) for line in said.splitlines() if "1,200" in numbers(line)]
    assert [line[0] for line in told] == ([str(kept)] if kept else [])
    names = [path.name for path in (larger_run / "scores").iterdir()]
    assert sorted(path.name for path in output.iterdir()) == sorted(names)
    for name in names:
        assert (output / name).read_bytes() == (larger_run / "scores" / name).read_bytes(), name


@pytest.mark.parametrize(("moment", "kept"), [
    (lambda output, process: len(children(process)) == 2, 0),
    (lambda output, process: (output / "000001_influence.npy").exists(), 1),
    (lambda output, process: (output / "000002_influence.npy").exists(), 2),
], ids=["workers started", "first checkpoint", "last checkpoint"])
def test_killed_run_goes_on_and_ends_with_the_same_bytes(larger_run, tmp_path, capfd, moment, kept):
    output, began = tmp_path / "scores", time.monotonic()
    process = start(larger_run, output)
    wait_for(lambda: moment(output, process.pid), process)
    workers, elapsed = children(process.pid), time.monotonic() - began
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL or kept == 2  # with which it is as good as done
    assert gone(workers, within=5 * elapsed)
    resume_and_compare(larger_run, output, capfd, kept)


def test_killed_worker_ends_the_run_with_one_line_and_nothing_lost(larger_run, tmp_path, capfd):
    output = tmp_path / "scores"
    process = start(larger_run, output)
    wait_for(lambda: (output / "000001_influence.npy").exists(), process)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    _, complaints = process.communicate()
    assert process.returncode == 1
    assert complaints.count("\n") == 1 and "--workers" in complaints and "--batch_size" in complaints
    assert not (output / "influence_all_epoch.npy").exists()
    resume_and_compare(larger_run, output, capfd, kept=1)


def test_interrupt_ends_the_run_with_one_line_and_nothing_lost(larger_run, tmp_path, capfd):
    output = tmp_path / "scores"
    process = start(larger_run, output)
    wait_for(lambda: (output / "000001_influence.npy").exists(), process)
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate()
    assert process.returncode == 130
    assert complaints.count("\n") == 1
    resume_and_compare(larger_run, output, capfd, kept=1)
