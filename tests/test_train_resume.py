"""Training that was killed, interrupted or out of space, and what a resumed run takes and refuses."""
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nnabla as nn
import numpy as np
import pytest

import train
from datasets import arrays
from tests.conftest import (
    OWN_FLAGS,
    ROOT,
    assert_same,
    contents,
    make_dataset,
    refused,
    start_training,
    train_flags,
)
from utils.training.checkpoint import find_checkpoints, newest_complete, run_key

KILL_AFTER = """
import os, signal, sys
import train
replace, name = os.replace, sys.argv[1]
def killing(source, destination):
    replace(source, destination)
    if os.path.basename(destination) == name:
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = killing
train.main(sys.argv[2:])
"""


def wait_for(path: Path, process: subprocess.Popen):
    """Wait until a file is written, or the process has ended."""
    while not path.exists() and process.poll() is None:
        time.sleep(0.005)


@pytest.mark.parametrize(("name", "complete"), [
    ("y_train.npy", 0), ("training_dynamics.npz", 0), ("states_000001.h5", 0), ("params_000001.h5", 0),
    ("checkpoint_000001.json", 1), ("states_000002.h5", 1), ("params_000002.h5", 1),
    ("checkpoint_000003.json", 3)])
def test_killed_run_resumes_bit_identical(finished_run, dataset_folder, tmp_path, name, complete):
    """Killed right after a file is written: data, training statistics, or a part of a checkpoint."""
    run = tmp_path / "run"
    process = subprocess.run([sys.executable, "-c", KILL_AFTER, name, *train_flags(dataset_folder, run)],
                             cwd=ROOT, check=False)
    assert process.returncode == -signal.SIGKILL
    assert (run / name).exists() and len(list(run.glob("checkpoint_*.json"))) == complete
    train.main(train_flags(dataset_folder, run, *(["--checkpoint", str(run)] if complete else [])))
    assert_same(finished_run, run)
    for file in ("x_train.npy", "y_train.npy", "y_shuffle_train.npy", "label_names.txt",
                 "training_dynamics.npz", "Training-loss.series.txt"):
        assert (run / file).read_bytes() == (finished_run / file).read_bytes(), file
    assert not list(run.glob(".partial-*"))


def test_resumed_run_without_its_dynamics_says_so(dataset_folder, tmp_path, capsys):
    run = tmp_path / "run"
    train.main(train_flags(dataset_folder, run, "--model_save_interval", "2"))
    for path in (*run.glob("*000003*"), run / "training_dynamics.npz"):
        path.unlink()
    train.main(train_flags(dataset_folder, run, "--checkpoint", str(run)))
    assert str(run / "training_dynamics.npz") in capsys.readouterr().out
    with np.load(run / "training_dynamics.npz") as file:
        assert np.isnan(file["loss"][:, :2]).all() and np.isfinite(file["loss"][:, 2]).all()


def test_run_from_before_there_were_all_arguments_goes_on(dataset_folder, tmp_path):
    run = tmp_path / "run"
    train.main(train_flags(dataset_folder, run, "--model_save_interval", "2"))
    for path in run.glob("*000003*"):
        path.unlink()
    path = run / "checkpoint_000002.json"
    description = json.loads(path.read_text())
    del description["arguments"]["noise"], description["arguments"]["val_fraction"]
    path.write_text(json.dumps(description))
    train.main(train_flags(dataset_folder, run, "--checkpoint", str(run)))
    assert [one.epoch for one in find_checkpoints(run)] == [2, 3]
    with np.load(run / "training_dynamics.npz") as file:
        assert np.isfinite(file["loss"]).all()


def test_run_of_nnabla_goes_on_bit_identical(dataset_folder, tmp_path):
    """Earlier versions had this engine alone, and did not say so."""
    through, resumed = tmp_path / "through", tmp_path / "resumed"
    train.main(train_flags(dataset_folder, through, "--engine", "nnabla"))
    shutil.copytree(through, resumed)
    for path in [*resumed.glob("*000002*"), *resumed.glob("*000003*")]:
        path.unlink()
    path = resumed / "checkpoint_000001.json"
    description = json.loads(path.read_text())
    assert (description.pop("engine"), description.pop("workers")) == ("nnabla", 1)
    path.write_text(json.dumps(description))
    nn.clear_parameters()
    train.main(train_flags(dataset_folder, resumed, "--checkpoint", str(resumed)))
    assert_same(through, resumed)
    assert find_checkpoints(resumed)[-1].description.engine == "nnabla"


def test_run_goes_on_by_another_engine_when_told(finished_run, dataset_folder, tmp_path, capsys):
    run = shutil.copytree(finished_run, tmp_path / "run")
    told = []
    for flags in ([], ["--engine", "nnabla"]):
        nn.clear_parameters()
        train.main(["--checkpoint", str(run / "checkpoint_000002.json"), "--input", str(dataset_folder),
                    "--output", str(run), "--monitor-path", str(run), "-c", "cpu", *flags])
        told.append(capsys.readouterr().out.splitlines())
    assert len(told[1]) == len(told[0]) + 1 and {"onnxruntime", "nnabla"} <= set(
        re.findall(r"\w+", told[1][0]))
    # They are checkpoints of one run, and each says what made it.
    assert [one.description.engine for one in find_checkpoints(run)] == ["onnxruntime"] * 2 + ["nnabla"]
    before, after = contents(finished_run), contents(run)
    for name in ("params_000003.h5", "affine/W"), ("params_000003.h5", "conv1/bn/var"):
        np.testing.assert_allclose(after[name], before[name], rtol=0.1, atol=0.02)


def cut_after_first_epoch(run: Path) -> dict[str, bytes]:
    """Remove the second checkpoint of a run; returns its files and the training statistics."""
    files = {path.name: path.read_bytes() for path in [*run.glob("*000002.h5"),
                                                       run / "training_dynamics.npz"]}
    for path in run.glob("*000002*"):
        path.unlink()
    return files


def resume(run: Path, *more: str):
    nn.clear_parameters()
    train.main(["--checkpoint", str(run), "--output", str(run), "--monitor-path", str(run), "-c", "cpu",
                *more])


def test_own_images_may_move_while_a_run_is_interrupted(own_images, tmp_path, monkeypatch):
    """Their digest decides, whatever their path, the working folder, and what is typed."""
    run, moved, other = tmp_path / "run", tmp_path / "moved", tmp_path / "x" / "other"
    other.mkdir(parents=True)
    (tmp_path / "link").symlink_to(other)
    monkeypatch.chdir(tmp_path)
    train.main(["--dataset", "images", "--output", str(run), "--monitor-path", str(run), *OWN_FLAGS])
    monkeypatch.chdir(other)
    before = cut_after_first_epoch(run)
    for name in [str(own_images), "../../images", f"{own_images}/../../{tmp_path.name}/images/"]:
        resume(run, "--dataset", name)
        assert find_checkpoints(run)[-1].description.dataset_path == name
        assert cut_after_first_epoch(run) == before, name
    with refused(str(run), "'images'", "--dataset"):
        resume(run)  # "images" is not in this folder
    monkeypatch.chdir(tmp_path)
    resume(run)
    assert cut_after_first_epoch(run) == before
    own_images.rename(moved)
    with refused(str(run), "'images'", "--dataset"):
        resume(run)
    # The system resolves a link before "..", unlike text.
    moved.rename(tmp_path / "x" / "images")
    (tmp_path / "images").mkdir()
    resume(run, "--dataset", "link/../images")
    assert cut_after_first_epoch(run) == before
    (tmp_path / "x" / "images" / "cat" / "0.png").unlink()
    with refused(str(run), "--dataset"):
        resume(run, "--dataset", "x/images")
    with refused("--dataset digits", str(run)):
        resume(run, "--dataset", "digits")


def test_images_of_a_run_that_an_earlier_version_began_may_move(own_images, tmp_path, monkeypatch):
    """It recorded their path, relative to the working folder, as a part of the run's key."""
    run = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    train.main(["--dataset", "images", "--output", str(run), "--monitor-path", str(run), *OWN_FLAGS])
    for path in run.glob("checkpoint_*.json"):
        description = json.loads(path.read_text())
        assert description.pop("dataset_path") == "images"
        description["arguments"]["dataset"] = "images"
        path.write_text(json.dumps(description))
    key = run_key(find_checkpoints(run)[-1].description)
    with np.load(run / "training_dynamics.npz") as file:
        arrays_kept = {**file, "run_sha256": key}
    np.savez_compressed(run / "training_dynamics.npz", **arrays_kept)
    before = cut_after_first_epoch(run)
    own_images.rename(tmp_path / "moved")
    resume(run, "--dataset", str(tmp_path / "moved"))
    after = cut_after_first_epoch(run)
    assert after["params_000002.h5"] == before["params_000002.h5"]
    with np.load(run / "training_dynamics.npz") as file:
        assert str(file["run_sha256"]) == key
        assert np.isfinite(file["loss"]).all() and file["loss"].shape == (40, 2)


def test_run_begins_again_from_the_same_images_by_another_path(own_images, tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(["images", str(own_images)]):
        nn.clear_parameters()
        train.main(["--dataset", name, "--output", str(run), "--monitor-path", f"{number}", *OWN_FLAGS])
    assert_same(tmp_path / "0", tmp_path / "1")


def test_dynamics_of_another_run_are_not_taken(dataset_folder, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    train.main(train_flags(dataset_folder, run, "--model_save_interval", "2"))
    nn.clear_parameters()
    train.main(train_flags(dataset_folder, other, "--seed", "1"))
    shutil.copy(other / "training_dynamics.npz", run)
    nn.clear_parameters()
    for path in run.glob("*000003*"):
        path.unlink()
    with refused(str(run / "training_dynamics.npz"), "--output"):
        train.main(train_flags(dataset_folder, run, "--checkpoint", str(run)))


def test_dynamics_of_an_earlier_run_are_not_overwritten(dataset_folder, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    train.main(train_flags(dataset_folder, run))
    before = (run / "training_dynamics.npz").read_bytes()
    nn.clear_parameters()
    with refused(str(run / "training_dynamics.npz"), "--output"):
        train.main([*train_flags(dataset_folder, run, "--seed", "1"), "--monitor-path", str(other)])
    assert (run / "training_dynamics.npz").read_bytes() == before and not other.exists()


def test_run_killed_in_the_middle_of_an_epoch_resumes_bit_identical(finished_run, dataset_folder,
                                                                    tmp_path):
    run = tmp_path / "run"
    process = start_training(dataset_folder, run)
    wait_for(run / "checkpoint_000001.json", process)
    process.kill()
    process.communicate()
    train.main(train_flags(dataset_folder, run, "--checkpoint", str(run)))
    assert_same(finished_run, run)


def test_resuming_from_an_older_checkpoint_ends_the_same(finished_run, dataset_folder, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    train.main(["--checkpoint", str(run / "checkpoint_000001.json"), "--input", str(dataset_folder),
                "--output", str(run), "--monitor-path", str(run), "-c", "cpu"])
    assert_same(finished_run, run)


def test_interrupt_is_one_line_and_resuming_works(finished_run, dataset_folder, tmp_path):
    run = tmp_path / "run"
    process = start_training(dataset_folder, run)
    wait_for(run / "checkpoint_000001.json", process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    if process.returncode == 0:
        pytest.skip("the run ended before the interrupt came")
    assert process.returncode == 130
    assert error.count("\n") == 1 and "--checkpoint" in error
    resumed = start_training(dataset_folder, run, "--checkpoint", str(run))
    resumed.communicate()
    assert resumed.returncode == 0
    assert_same(finished_run, run)


def test_full_disk_is_one_line_and_leaves_nothing_half_written(dataset_folder, tmp_path):
    """A limit on the size of files stands for the disk: the images do not fit."""
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    run = tmp_path / "run"
    process = start_training(dataset_folder, run, preexec_fn=limit)
    _, error = process.communicate()
    assert process.returncode == 1
    assert error.count("\n") == 1 and str(run / "x_train.npy") in error
    assert os.listdir(run) == []


def test_disk_that_fills_keeps_the_checkpoints_before(finished_run, tmp_path):
    """A limit on the size of files stands for the disk: the next checkpoint does not fit."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    code = f"""
import resource, signal, sys
from dataclasses import replace
from pathlib import Path
import utils
from models.registry import build_network
from utils import cli
from utils.training.checkpoint import find_checkpoints, load_checkpoint, save_checkpoint
from utils.training.engines import NnablaEngine
from utils.training.trainer import Trainer
run = Path({str(run)!r})
trainer = Trainer(NnablaEngine(build_network("resnet23", 3, 4)), False, 0)
last = find_checkpoints(run)[-1]
load_checkpoint(last, trainer.solver)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
history = last.description.history
cli.run(lambda: save_checkpoint(run, trainer.solver, replace(
    last.description, epoch=4, history=[*history, history[-1]])))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                            check=False)
    assert result.returncode == 1, result.stderr
    assert result.stderr.count("\n") == 1
    assert str(run / "states_000004.h5") in result.stderr
    assert not list(run.glob("*000004*")) and not list(run.glob(".partial-*"))
    assert newest_complete(run).epoch == 3


@pytest.mark.parametrize("more", [
    ["--seed", "4"], ["--model", "resnet56"], ["--nmaps", "8"], ["--train_epochs", "9"],
    ["--learning_rate", "0.1"], ["--train_batch_size", "10"], ["--augmentation", "False"]])
def test_flags_that_contradict_the_checkpoint_are_refused(finished_run, dataset_folder, tmp_path,
                                                          more):
    run = shutil.copytree(finished_run, tmp_path / "run")
    with refused(" ".join(more), str(run)):
        train.main(train_flags(dataset_folder, run, "--checkpoint", str(run), *more))


@pytest.mark.parametrize(("wrong", "facts"), [
    ({"model": "vgg"}, ["--model", "'vgg'"]),
    ({"train_epochs": "x"}, ["--train_epochs", "'x'"]),
    ({"train_batch_size": 0}, ["--train_batch_size", "'0'"]),
    ({"optimizer": "adam"}, ["--optimizer"]),
])
def test_recorded_arguments_are_read_like_a_command_line(finished_run, dataset_folder, tmp_path,
                                                         wrong, facts):
    run = shutil.copytree(finished_run, tmp_path / "run")
    path = run / "checkpoint_000003.json"
    description = json.loads(path.read_text())
    description["arguments"].update(wrong)
    path.write_text(json.dumps(description))
    with refused(*facts):
        train.main(train_flags(dataset_folder, run, "--checkpoint", str(path)))


def test_run_on_earlier_files_asks_for_them_again(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    with refused(str(run), "--input"):
        train.main(["--checkpoint", str(run), "--output", str(run), "-c", "cpu"])


def test_run_on_earlier_files_that_were_named_asks_for_them_again(dataset_folder, tmp_path):
    run = tmp_path / "run"
    (dataset_folder / "label_names.txt").write_text("".join(f"{digit}\n" for digit in range(10)))
    train.main(train_flags(dataset_folder, run, "--dataset", "digits"))
    with refused("--input"):
        train.main(["--checkpoint", str(run), "--output", str(run), "-c", "cpu"])


def test_resuming_on_other_data_is_refused(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    arrays.save(tmp_path / "other", make_dataset(seed=1))
    with refused(str(run), "--input"):
        train.main(train_flags(tmp_path / "other", run, "--checkpoint", str(run)))
    assert arrays.load(run).digest() == make_dataset().digest()


def test_new_run_does_not_overwrite_an_old_one(finished_run, dataset_folder, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    with refused(f"--checkpoint {run}", "--model_save_path"):
        train.main(train_flags(dataset_folder, run))
