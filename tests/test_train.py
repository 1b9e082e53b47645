import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import nnabla as nn
import numpy as np
import pytest
from PIL import Image

import calculate_score
import mislabel_analysis
import train
from datasets import arrays, corrections
from datasets.arrays import Dataset, Split
from datasets.images import read_image
from models import build_network
from tests.conftest import ROOT, TRAIN_FLAGS, make_dataset, write_archive
from utils.errors import RunError, UserError
from utils.training.checkpoint import find_checkpoints, load_parameters, newest_complete
from utils.training.trainer import Trainer


def flags(data, run, *more):
    return [*TRAIN_FLAGS, "--input", str(data), "--output", str(run), "--monitor-path", str(run),
            *more]


def start(data, run, *more, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-u", ROOT / "train.py", *flags(data, run, *more)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def contents(run: Path) -> dict:
    """Every array in the run's checkpoints and solver states."""
    arrays_ = {}
    for path in sorted(run.glob("*.h5")):
        with h5py.File(path) as file:
            file.visititems(lambda name, item, path=path: arrays_.update(
                {(path.name, name): item[...]}) if isinstance(item, h5py.Dataset) else None)
    return arrays_


def assert_same(first: Path, second: Path):
    one, other = contents(first), contents(second)
    assert one.keys() == other.keys() and len(one) > 300
    for key, array in one.items():
        assert np.array_equal(array, other[key]), key


def test_two_runs_with_one_seed_are_bit_identical(finished_run, dataset_folder, tmp_path):
    train.main(flags(dataset_folder, tmp_path / "again"))
    assert_same(finished_run, tmp_path / "again")


def test_checkpoints_are_saved_at_the_interval_and_after_the_last_epoch(dataset_folder, tmp_path):
    run = tmp_path / "run"
    train.main(flags(dataset_folder, run, "--model_save_interval", "2"))
    assert [one.epoch for one in find_checkpoints(run)] == [2, 3]


def test_another_seed_gives_another_run(finished_run, dataset_folder, tmp_path):
    train.main(flags(dataset_folder, tmp_path / "other", "--seed", "1"))
    name = ("params_000003.h5", "affine/W")
    assert not np.array_equal(contents(finished_run)[name], contents(tmp_path / "other")[name])


KILL_AT_REPLACE = """
import os, sys
import calculate_score
import mislabel_analysis
import train
replace, left = os.replace, [int(sys.argv[1])]
def killing(*paths):
    replace(*paths)
    left[0] -= 1
    if not left[0]:
        os._exit(9)
os.replace = killing
train.main(sys.argv[2:])
"""


# The six files of data come first, then dynamics, states, parameters, description of each epoch.
@pytest.mark.parametrize("moment", [2, 7, 8, 9, 10, 11, 13, 18])
def test_killed_run_resumes_bit_identical(finished_run, dataset_folder, tmp_path, moment):
    """Killed right after a file took its place, whichever: data, states, parameters, description."""
    run = tmp_path / "run"
    process = subprocess.run([sys.executable, "-c", KILL_AT_REPLACE, str(moment),
                              *flags(dataset_folder, run)], cwd=ROOT, check=False)
    assert process.returncode == 9
    complete = len(list(run.glob("checkpoint_*.json")))
    assert complete == max(0, moment - 6) // 4
    train.main(flags(dataset_folder, run, *(["--checkpoint", str(run)] if complete else [])))
    assert_same(finished_run, run)
    for name in ("x_train.npy", "y_train.npy", "y_shuffle_train.npy", "label_names.txt",
                 "training_dynamics.npz"):
        assert (run / name).read_bytes() == (finished_run / name).read_bytes()
    loss = (run / "Training-loss.series.txt").read_text()
    assert loss == (finished_run / "Training-loss.series.txt").read_text()
    assert not list(run.glob(".partial-*"))


def test_dynamics_are_those_of_every_sample_in_every_epoch(finished_run):
    """Its mean loss an epoch is the training loss that was logged."""
    with np.load(finished_run / "training_dynamics.npz") as file:
        assert file["loss"].shape == file["margin"].shape == file["correct"].shape == (30, 3)
        logged = np.loadtxt(finished_run / "Training-loss.series.txt")[:, 1]
        np.testing.assert_allclose(file["loss"].astype(float).mean(axis=0), logged, rtol=1e-3)
        errors = np.loadtxt(finished_run / "Training-error.series.txt")[:, 1]
        np.testing.assert_allclose(1 - file["correct"].mean(axis=0), errors, atol=1e-6)
        assert np.array_equal(file["correct"], file["margin"] > 0)


def test_resumed_run_without_its_dynamics_says_so(dataset_folder, tmp_path, capsys):
    run = tmp_path / "run"
    train.main(flags(dataset_folder, run, "--model_save_interval", "2"))
    for path in (*run.glob("*000003*"), run / "training_dynamics.npz"):
        path.unlink()
    train.main(flags(dataset_folder, run, "--checkpoint", str(run)))
    assert "no ranking by what training saw" in capsys.readouterr().out
    with np.load(run / "training_dynamics.npz") as file:
        assert np.isnan(file["loss"][:, :2]).all() and np.isfinite(file["loss"][:, 2]).all()


def test_hardest_noise_takes_the_likeliest_label_of_a_model(tmp_path):
    common = ["--dataset", "digits", "--model", "resnet23", "--nmaps", "4", "--train_epochs", "1",
              "--train_batch_size", "50", "-c", "cpu"]
    first, second = tmp_path / "first", tmp_path / "second"
    train.main([*common, "--output", str(first), "--monitor-path", str(first)])
    nn.clear_parameters()
    train.main([*common, "--output", str(second), "--monitor-path", str(second), "--noise", "hardest",
                "--noise_model", str(first), "--shuffle_rate", "0.2"])
    nn.clear_parameters()
    images, true, given = (np.load(second / name) for name in ("x_train.npy", "y_train.npy",
                                                               "y_shuffle_train.npy"))
    assert (true != given).sum() == sum(round(0.2 * count) for count in np.bincount(true[:, 0]))
    image = nn.Variable((len(images), 3, 32, 32))
    logits, _ = build_network("resnet23", 10, 4)(image, test=True)
    load_parameters(find_checkpoints(first)[-1])
    image.d = images
    logits.forward()
    np.put_along_axis(logits.d, true, -np.inf, axis=1)
    wrong = (true != given)[:, 0]
    assert np.array_equal(logits.d.argmax(axis=1)[wrong], given[wrong, 0])


def test_run_from_before_there_were_all_arguments_goes_on(dataset_folder, tmp_path):
    run = tmp_path / "run"
    train.main(flags(dataset_folder, run, "--model_save_interval", "2"))
    for path in run.glob("*000003*"):
        path.unlink()
    path = run / "checkpoint_000002.json"
    description = json.loads(path.read_text())
    del description["arguments"]["noise"], description["arguments"]["val_fraction"]
    path.write_text(json.dumps(description))
    train.main(flags(dataset_folder, run, "--checkpoint", str(run)))
    assert [one.epoch for one in find_checkpoints(run)] == [2, 3]
    with np.load(run / "training_dynamics.npz") as file:
        assert np.isfinite(file["loss"]).all()


def test_dynamics_of_another_run_are_not_taken(dataset_folder, tmp_path, capsys):
    run, other = tmp_path / "run", tmp_path / "other"
    train.main(flags(dataset_folder, run, "--model_save_interval", "2"))
    nn.clear_parameters()
    train.main(flags(dataset_folder, other, "--seed", "1"))
    shutil.copy(other / "training_dynamics.npz", run)
    nn.clear_parameters()
    for path in run.glob("*000003*"):
        path.unlink()
    with pytest.raises(UserError, match="training_dynamics.npz is of another training run, whose rank"):
        train.main(flags(dataset_folder, run, "--checkpoint", str(run)))


def test_dynamics_of_an_earlier_run_are_not_overwritten(dataset_folder, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    train.main(flags(dataset_folder, run))
    before = (run / "training_dynamics.npz").read_bytes()
    nn.clear_parameters()
    with pytest.raises(UserError, match="is of another training run, .* give another --output"):
        train.main([*flags(dataset_folder, run, "--seed", "1"), "--monitor-path", str(other)])
    assert (run / "training_dynamics.npz").read_bytes() == before and not other.exists()


@pytest.mark.parametrize(("more", "found"), [(["--noise", "hardest"], "no --noise_model"),
                                             (["--noise_model", "somewhere"], "another --noise")])
def test_hardest_noise_and_its_model_belong_together(tmp_path, more, found):
    with pytest.raises(UserError, match=f"--noise_model PATH belong together, found {found}"):
        train.main(["--dataset", "digits", "--output", str(tmp_path / "run"), *more])
    assert not (tmp_path / "run").exists()


def test_noise_model_of_other_classes_is_refused(finished_run, tmp_path):
    with pytest.raises(UserError, match="network of 10 classes in .*, found resnet23 with 3; give the"):
        train.main(["--dataset", "digits", "--output", str(tmp_path / "run"), "--noise", "hardest",
                    "--noise_model", str(finished_run), "-c", "cpu", "--monitor-path",
                    str(tmp_path / "run")])
    assert not list(tmp_path.iterdir())


def test_run_killed_in_the_middle_of_an_epoch_resumes_bit_identical(finished_run, dataset_folder,
                                                                    tmp_path):
    run = tmp_path / "run"
    process = start(dataset_folder, run)
    for line in process.stdout:
        if line.startswith("epoch 2/3"):
            break
    process.kill()
    process.communicate()
    train.main(flags(dataset_folder, run, "--checkpoint", str(run)))
    assert_same(finished_run, run)


def test_resuming_from_an_older_checkpoint_ends_the_same(finished_run, dataset_folder, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    train.main(["--checkpoint", str(run / "checkpoint_000001.json"), "--input", str(dataset_folder),
                "--output", str(run), "--monitor-path", str(run), "-c", "cpu"])
    assert_same(finished_run, run)


def test_interrupt_is_one_line_and_resuming_works(finished_run, dataset_folder, tmp_path):
    run = tmp_path / "run"
    process = start(dataset_folder, run)
    for line in process.stdout:
        if line.startswith("epoch 2/3"):
            break
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    if process.returncode == 0:
        pytest.skip("the run ended before the interrupt came")
    assert process.returncode == 130
    assert error.count("\n") == 1
    assert "interrupted; to go on: the same command, and once there are checkpoints, with" in error
    assert start(dataset_folder, run, "--checkpoint", str(run)).wait() == 0
    assert_same(finished_run, run)


@pytest.mark.parametrize("kind", ["float", "half"])
def test_half_precision_scales_the_loss(dataset_folder, tmp_path, monkeypatch, kind):
    scales = []

    def update(self, graph, scale):
        scales.append(scale)
        raise KeyboardInterrupt
    monkeypatch.setattr(Trainer, "_update", update)
    monkeypatch.setattr(train, "set_context", lambda *args: "")
    with pytest.raises(KeyboardInterrupt):
        train.main([*flags(dataset_folder, tmp_path / "run"), "-t", kind])
    assert scales == [{"float": 1, "half": 2**15}[kind]]


@pytest.mark.parametrize("what, message", [
    ("train_epoch", "--train_batch_size 8; train afresh with --train_batch_size 4"),
    ("evaluate", "--val_batch_size 12; run again with --val_batch_size 6")])
def test_lack_of_memory_names_a_batch_size_to_try(dataset_folder, tmp_path, monkeypatch, what, message):
    def fail(*arguments):
        raise RuntimeError("memory error in alloc")
    monkeypatch.setattr(Trainer, what, fail)
    with pytest.raises(RunError, match=f"out of memory at {message}"):
        train.main(flags(dataset_folder, tmp_path / "run"))


def test_full_disk_is_one_line_and_leaves_nothing_half_written(dataset_folder, tmp_path):
    """A limit on the size of files stands for the disk: the images do not fit."""
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    run = tmp_path / "run"
    process = start(dataset_folder, run, preexec_fn=limit)
    _, error = process.communicate()
    assert process.returncode == 2
    assert error.count("\n") == 1 and "cannot write" in error and "x_train.npy" in error
    assert os.listdir(run) == []


def test_disk_that_fills_keeps_the_checkpoints_before(finished_run, tmp_path):
    """A limit on the size of files stands for the disk: the next checkpoint does not fit."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    code = f"""
import resource, signal, sys
from pathlib import Path
from dataclasses import replace
import utils
from models import build_network
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
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1
    assert f"cannot write {run}/states_000004.h5: " in result.stderr
    assert "free some space" in result.stderr
    assert not list(run.glob("*000004*")) and not list(run.glob(".partial-*"))
    assert newest_complete(run).epoch == 3


@pytest.mark.parametrize("more", [
    ["--seed", "4"], ["--model", "resnet56"], ["--nmaps", "8"], ["--train_epochs", "9"],
    ["--learning_rate", "0.1"], ["--train_batch_size", "10"], ["--augmentation", "False"]])
def test_flags_that_contradict_the_checkpoint_are_refused(finished_run, dataset_folder, tmp_path,
                                                          more):
    run = shutil.copytree(finished_run, tmp_path / "run")
    with pytest.raises(UserError, match=f"{more[0]} .*contradicts .*which was made with"):
        train.main(flags(dataset_folder, run, "--checkpoint", str(run), *more))


@pytest.mark.parametrize(("wrong", "message"), [
    ({"model": "vgg"}, "--model: invalid choice: 'vgg'"),
    ({"train_epochs": "x"}, "--train_epochs: expected an integer from 1, found 'x'"),
    ({"train_batch_size": 0}, "--train_batch_size: expected an integer from 1, found '0'"),
    ({"optimizer": "adam"}, "unknown argument --optimizer"),
])
def test_recorded_arguments_are_read_like_a_command_line(finished_run, dataset_folder, tmp_path,
                                                         wrong, message):
    run = shutil.copytree(finished_run, tmp_path / "run")
    path = run / "checkpoint_000003.json"
    description = json.loads(path.read_text())
    description["arguments"].update(wrong)
    path.write_text(json.dumps(description))
    with pytest.raises(UserError, match=message):
        train.main(flags(dataset_folder, run, "--checkpoint", str(path)))


def test_run_on_earlier_files_asks_for_them_again(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    with pytest.raises(UserError, match="trained on the files of an earlier run; give the same"):
        train.main(["--checkpoint", str(run), "--output", str(run), "-c", "cpu"])


def test_noisy_labels_are_what_is_trained_on(finished_run, tmp_path):
    """Other noise over the same true labels gives other parameters."""
    dataset = make_dataset()
    labels = dataset.true_labels.copy()
    labels[1::5] = (labels[1::5] + 1) % 3
    arrays.save(tmp_path / "data", replace(dataset, labels=labels))
    train.main(flags(tmp_path / "data", tmp_path / "run"))
    name = ("params_000001.h5", "affine/W")
    assert not np.array_equal(contents(finished_run)[name], contents(tmp_path / "run")[name])


def test_resuming_on_other_data_is_refused(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    arrays.save(tmp_path / "other", make_dataset(seed=1))
    with pytest.raises(UserError, match="not those that .* was trained on"):
        train.main(flags(tmp_path / "other", run, "--checkpoint", str(run)))
    assert arrays.load(run).digest() == make_dataset().digest()


def test_new_run_does_not_overwrite_an_old_one(finished_run, dataset_folder, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    with pytest.raises(UserError, match="holds the checkpoints of an earlier run"):
        train.main(flags(dataset_folder, run))


def test_cifar10_from_an_archive_with_noise_and_without(tmp_path):
    archive = write_archive(tmp_path / "a.tar.gz", records=8)
    common = ["--data", str(archive), "--model", "resnet23", "--nmaps", "2", "--train_epochs", "1",
              "--train_batch_size", "20", "--shuffle_rate", "0.5", "-c", "cpu"]
    for name, shuffle in [("noisy", "True"), ("clean", "False")]:
        run = tmp_path / name
        train.main([*common, "--shuffle_label", shuffle, "--output", str(run), "-m", str(run)])
    noisy, clean = arrays.load(tmp_path / "noisy"), arrays.load(tmp_path / "clean", test=True)
    wrong = (noisy.labels != noisy.true_labels)[:, 0]
    shares = [wrong[noisy.true_labels[:, 0] == label].sum() for label in range(10)]
    sizes = np.bincount(noisy.true_labels[:, 0], minlength=10)
    assert shares == [round(size / 2) for size in sizes]
    assert np.array_equal(clean.labels, clean.true_labels)
    assert np.array_equal(noisy.true_labels, clean.true_labels)
    assert clean.names[:2] == ["airplane", "automobile"] and len(clean.test.images) == 8
    assert (tmp_path / "noisy" / "resnet23_result.nnp").exists()
    assert (tmp_path / "noisy" / "resnet23_result.onnx").exists()


def test_training_on_earlier_files_without_their_noise(dataset_folder, tmp_path):
    train.main(flags(dataset_folder, tmp_path / "run", "--shuffle_label", "False"))
    dataset = arrays.load(tmp_path / "run")
    assert np.array_equal(dataset.labels, make_dataset().true_labels)
    with pytest.raises(UserError, match="would replace those in"):
        train.main(flags(dataset_folder, dataset_folder, "--shuffle_label", "False"))


@pytest.mark.parametrize(("more", "message"), [
    (["--subset", "5"], "--input trains on the files of an earlier run, which --subset"),
    (["--shuffle_rate", "0.2"], "which --shuffle_rate cannot change"),
    (["--train_batch_size", "31"], "--train_batch_size of at most 30, .* found 31"),
    (["--val_batch_size", "13"], "--val_batch_size of at most 12, .* found 13"),
    (["--model", "resnet56"], "--nmaps 4: resnet56 has a fixed width"),
    (["--nmaps", "5"], "expected an even --nmaps, found 5"),
    (["--checkpoint", "nowhere"], "nowhere, found nothing"),
    (["--monitor-path", __file__], "folder to write in at .*test_train.py.*no folder"),
    (["-o", __file__ + "/run"], "folder to write in at .*test_train.py.*no folder"),
    (["--learning_rate", "1e300"], "training loss is .* in epoch 1; lower --learning_rate"),
])
def test_bad_calls_are_refused(dataset_folder, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        train.main(flags(dataset_folder, tmp_path / "run", *more))
    assert not list(tmp_path.glob("run/checkpoint_*"))


def test_defaults_are_those_of_the_design(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = train.resolve(train.get_args([]))
    assert (settings.model, settings.data.dataset) == ("resnet56", "cifar10")
    assert settings.train_epochs == 270
    assert settings.monitor_path == settings.model_save_path == Path("tmp.monitor")
    assert (settings.data.shuffle_label, settings.data.shuffle_rate) == (True, 0.1)
    assert settings.model_save_interval == 30
    assert settings.data.augmentation is True and settings.nmaps is None
    settings = train.resolve(train.get_args(["--dataset", "digits", "--model", "resnet23"]))
    assert (settings.data.augmentation, settings.nmaps) == (False, 64)


@pytest.mark.parametrize(("more", "message"), [
    (["--dataset", "mnist"], "expected cifar10, cifar100, digits or the path .* nothing at mnist"),
    (["--dataset", ""], "--dataset: expected a name or a path, found nothing"),
    (["--dataset", "digits", "--val_fraction", "0.1"], "--val_fraction is for your own images"),
    (["--dataset", "digits", "--strict"], "--strict is for your own images"),
    (["--dataset", ".", "--data", "somewhere"], "--data is for cifar10"),
    (["--dataset", ".", "--val_fraction", "-0.1"], "expected a number from 0"),
    (["--dataset", ".", "--output", "a/b"], "outside the images of --dataset ., found a/b"),
    (["--corrections", "a.csv"], "--corrections are of the labels .* found no --input"),
    (["--input", ".", "--corrections", "a.csv", "--shuffle_label", "False"], "found --shuffle_label F"),
    (["--input", ".", "--strict"], "which --strict cannot change")])
def test_flags_of_the_data_that_make_no_sense_are_refused(tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        train.resolve(train.get_args(more))


@pytest.mark.parametrize(("samples", "batch"), [(9, 9), (1437, 16), (10_000, 100), (60_000, 500)])
def test_default_batch_is_a_hundredth(tmp_path, monkeypatch, samples, batch):
    monkeypatch.chdir(tmp_path)
    images, labels = np.zeros((samples, 3, 32, 32), np.uint8), np.zeros((samples, 1), int)
    dataset = Dataset(images, labels, labels, Split(images[:9], labels[:9]), ["a", "b"])
    settings = train.resolve(train.get_args([])).for_dataset(dataset)
    assert (settings.train_batch_size, settings.val_batch_size) == (batch, 9)


OWN_FLAGS = ["--model", "resnet23", "--nmaps", "4", "--train_epochs", "2", "-c", "cpu",
             "--model_save_interval", "1"]


@pytest.fixture
def own_images(tmp_path):
    rng = np.random.default_rng(0)
    for label, name in enumerate(["cat", "dog"]):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 100, (8, 8, 3)) + 100 * label
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


def test_own_images_keep_their_labels_and_their_files(own_images, tmp_path):
    run = tmp_path / "run"
    train.main(["--dataset", str(own_images), "--output", str(run), "--monitor-path", str(run),
                *OWN_FLAGS])
    assert not (run / "y_train.npy").exists()
    assert (run / "label_names.txt").read_text() == "cat\ndog\n"
    paths = (run / "paths.txt").read_text().splitlines()
    images, labels = np.load(run / "x_train.npy"), np.load(run / "y_shuffle_train.npy")[:, 0]
    assert len(paths) == len(set(paths)) == len(images) == 32
    assert [path.split("/")[0] for path in paths] == [["cat", "dog"][label] for label in labels]
    for path, image in zip(paths, images):
        assert np.array_equal(read_image(own_images / path), image)
    result = [path.read_bytes() for path in sorted(run.glob("params_*"))]
    for path in run.glob("*000002*"):
        path.unlink()
    nn.clear_parameters()
    train.main(["--checkpoint", str(run), "--output", str(run), "--monitor-path", str(run), "-c", "cpu"])
    assert [path.read_bytes() for path in sorted(run.glob("params_*"))] == result
    nn.clear_parameters()
    again = tmp_path / "again"
    train.main(["--input", str(run), "--output", str(again), "--monitor-path", str(again), *OWN_FLAGS])
    assert (again / "paths.txt").read_text().splitlines() == paths


def test_folder_called_like_a_known_set_is_ones_own(own_images, tmp_path, monkeypatch, capsys):
    own_images.rename(tmp_path / "digits")
    (tmp_path / "digits" / "dog" / "a.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(["./digits", str(tmp_path / "digits")]):
        nn.clear_parameters()
        train.main(["--dataset", name, "--output", f"run{number}", "--monitor-path", f"run{number}",
                    *OWN_FLAGS])
        assert "32 training samples, an unknown number mislabelled, 8 test" in capsys.readouterr().out
        assert (tmp_path / f"run{number}" / "skipped.txt").read_text().startswith("'dog/a.txt': cannot")


def test_corrected_data_are_trained_on(run, tmp_path, capsys):
    analysis, again = tmp_path / "analysis", tmp_path / "again"
    mislabel_analysis.main(["--input", str(run), "--output", str(analysis), "--drop", "0.2"])
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    nn.clear_parameters()
    common = ["--corrections", str(analysis / "drop.csv")]
    capsys.readouterr()
    train.main(flags(run, again, *common))
    out = capsys.readouterr().out
    assert re.match(r"corrections: 0 relabelled, 6 removed \([1-6] of class ", out)
    assert (again / "applied_corrections.csv").read_bytes() == (analysis / "drop.csv").read_bytes()
    assert "24 training samples" in out
    removed = np.argsort(-np.load(run / "influence_all_epoch.npy"), kind="stable")[:6]
    for name in ("x_train.npy", "y_train.npy", "y_shuffle_train.npy"):
        assert np.array_equal(np.load(again / name), np.delete(np.load(run / name), removed, axis=0))
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    for path in again.glob("*000003*"):
        path.unlink()
    nn.clear_parameters()
    with pytest.raises(UserError, match="not those that .* was trained on"):
        train.main(flags(run, again, "--checkpoint", str(again)))
    nn.clear_parameters()
    train.main(flags(run, again, "--checkpoint", str(again), *common))
    with pytest.raises(UserError, match="would replace those in .*; give another --output"):
        train.main([*flags(run, run, *common), "--monitor-path", str(tmp_path / "m")])


def test_own_images_are_corrected(own_images, tmp_path):
    """All three scripts on images without true labels, and once more on corrected ones."""
    run, analysis, again = (tmp_path / name for name in ("run", "analysis", "again"))
    train.main(["--dataset", f"{own_images}/../images/", "--output", str(run), "--monitor-path",
                str(run), *OWN_FLAGS])
    nn.clear_parameters()
    calculate_score.main(["--input", str(run), "--checkpoint", str(run), "--output", str(run),
                          "-c", "cpu"])
    mislabel_analysis.main(["--input", str(run), "--output", str(analysis), "--relabel", "0.5"])
    nn.clear_parameters()
    train.main(["--input", str(run), "--corrections", str(analysis / "relabel.csv"), "--output",
                str(again), "--monitor-path", str(again), *OWN_FLAGS])
    labels = [np.load(folder / "y_shuffle_train.npy") for folder in (run, again)]
    changed = corrections.load(analysis / "relabel.csv", arrays.load(run)).relabelled
    assert np.flatnonzero((labels[0] != labels[1])[:, 0]).tolist() == sorted(changed) != []
    assert not (again / "y_train.npy").exists()
    # The folder is known again by whatever path.
    for path in run.glob("*000002*"):
        path.unlink()
    nn.clear_parameters()
    train.main(["--dataset", str(own_images), "--checkpoint", str(run), "--output", str(run),
                "--monitor-path", str(run), "-c", "cpu"])


@pytest.mark.parametrize("more", [["--shuffle_label", "True"], ["--shuffle_rate", "0.1"],
                                  ["--noise", "asymmetric"]])
def test_own_labels_are_shuffled_when_asked_for(own_images, tmp_path, more):
    run = tmp_path / "run"
    train.main(["--dataset", str(own_images), "--output", str(run), "--monitor-path", str(run),
                *OWN_FLAGS, "--subset", "20", *more])
    given, labels = np.load(run / "y_train.npy")[:, 0], np.load(run / "y_shuffle_train.npy")[:, 0]
    paths = (run / "paths.txt").read_text().splitlines()
    assert [path.split("/")[0] for path in paths] == [["cat", "dog"][label] for label in given]
    counts = np.bincount(given)
    assert (given != labels).sum() == sum(round(0.1 * count) for count in counts) > 0
