"""Training that was killed, interrupted or out of space, and what a resumed run takes and refuses."""
import json
import os
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
from tests.conftest import ROOT, assert_same, make_dataset, refused, start_training, train_flags
from utils.training.checkpoint import find_checkpoints, newest_complete

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
from utils.training.trainer import Trainer
run = Path({str(run)!r})
trainer = Trainer(build_network("resnet23", 3, 4), False, 0)
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
