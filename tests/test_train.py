import json
from dataclasses import replace
from pathlib import Path

import nnabla as nn
import numpy as np
import pytest

import calculate_score
import mislabel_analysis
import train
from datasets import arrays, corrections
from datasets.arrays import Dataset, Split
from datasets.corrections import Corrections
from datasets.digits import load_digits
from datasets.images import read_image
from models.registry import build_network
from tests.conftest import (
    OWN_FLAGS,
    WatchedSolver,
    assert_same,
    contents,
    make_dataset,
    numbers,
    refused,
    train_flags,
    write_archive,
)
from utils.errors import RunError
from utils.training.checkpoint import find_checkpoints, load_parameters
from utils.training.trainer import Trainer


def test_two_runs_with_one_seed_are_bit_identical(finished_run, dataset_folder, tmp_path):
    train.main(train_flags(dataset_folder, tmp_path / "again"))
    assert_same(finished_run, tmp_path / "again")


def test_checkpoints_are_saved_at_the_interval_and_after_the_last_epoch(dataset_folder, tmp_path):
    run = tmp_path / "run"
    train.main(train_flags(dataset_folder, run, "--model_save_interval", "2"))
    assert [one.epoch for one in find_checkpoints(run)] == [2, 3]


def test_another_seed_gives_another_run(finished_run, dataset_folder, tmp_path):
    train.main(train_flags(dataset_folder, tmp_path / "other", "--seed", "1"))
    name = ("params_000003.h5", "affine/W")
    assert not np.array_equal(contents(finished_run)[name], contents(tmp_path / "other")[name])


def test_dynamics_are_those_of_every_sample_in_every_epoch(finished_run):
    """Its mean loss an epoch is the training loss that was logged."""
    with np.load(finished_run / "training_dynamics.npz") as file:
        assert file["loss"].shape == file["margin"].shape == file["correct"].shape == (30, 3)
        logged = np.loadtxt(finished_run / "Training-loss.series.txt")[:, 1]
        np.testing.assert_allclose(file["loss"].astype(float).mean(axis=0), logged, rtol=1e-3)
        errors = np.loadtxt(finished_run / "Training-error.series.txt")[:, 1]
        np.testing.assert_allclose(1 - file["correct"].mean(axis=0), errors, atol=1e-6)
        assert np.array_equal(file["correct"], file["margin"] > 0)


def test_hardest_noise_takes_the_likeliest_label_of_a_model(tmp_path):
    common = ["--dataset", "digits", "--subset", "300", "--model", "resnet23", "--nmaps", "4",
              "--train_epochs", "1", "--train_batch_size", "50", "-c", "cpu"]
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


@pytest.mark.parametrize("more", [["--noise", "hardest"], ["--noise_model", "somewhere"]])
def test_hardest_noise_and_its_model_belong_together(tmp_path, more):
    with refused("--noise hardest", "--noise_model"):
        train.main(["--dataset", "digits", "--output", str(tmp_path / "run"), *more])
    assert not (tmp_path / "run").exists()


def test_noise_model_of_other_classes_is_refused(finished_run, tmp_path):
    with refused("10", str(finished_run), "resnet23", "--model_save_path", "--dataset digits"):
        train.main(["--dataset", "digits", "--output", str(tmp_path / "run"), "--noise", "hardest",
                    "--noise_model", str(finished_run), "-c", "cpu", "--monitor-path",
                    str(tmp_path / "run")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["float", "half"])
def test_half_precision_scales_the_loss(dataset_folder, tmp_path, monkeypatch, kind):
    factors = []

    class Solver(WatchedSolver):
        def scale_grad(self, factor):
            factors.append(factor)

        def update(self):
            raise KeyboardInterrupt
    momentum = nn.solvers.Momentum
    monkeypatch.setattr(nn.solvers, "Momentum", lambda **options: Solver(momentum(**options)))
    monkeypatch.setattr(train, "set_context", lambda *args: "")
    with pytest.raises(KeyboardInterrupt):
        train.main([*train_flags(dataset_folder, tmp_path / "run"), "-t", kind])
    assert factors == {"float": [], "half": [2**-15]}[kind]


def test_logits_that_are_not_finite_end_the_epoch(dataset_folder, tmp_path, monkeypatch):
    updates = []

    class Solver(WatchedSolver):
        def update(self):
            updates.append(None)
            self.solver.update()
    momentum = nn.solvers.Momentum
    monkeypatch.setattr(nn.solvers, "Momentum", lambda **options: Solver(momentum(**options)))
    with refused("epoch 1", "--learning_rate 1e+300"):
        train.main(train_flags(dataset_folder, tmp_path / "run", "--learning_rate", "1e300",
                               "--train_batch_size", "2"))
    assert 1 <= len(updates) < 6  # of 15


@pytest.mark.parametrize(("what", "facts"), [
    ("train_epoch", ["--train_batch_size 8", "--train_batch_size 4"]),
    ("evaluate", ["--val_batch_size 12", "--val_batch_size 6"])])
def test_lack_of_memory_names_a_batch_size_to_try(dataset_folder, tmp_path, monkeypatch, what, facts):
    def fail(*arguments):
        raise RuntimeError("memory error in alloc")
    monkeypatch.setattr(Trainer, what, fail)
    with refused(*facts, error=RunError):
        train.main(train_flags(dataset_folder, tmp_path / "run"))


def test_noisy_labels_are_what_is_trained_on(finished_run, tmp_path):
    """Other noise over the same true labels gives other parameters."""
    dataset = make_dataset()
    labels = dataset.true_labels.copy()
    labels[1::5] = (labels[1::5] + 1) % 3
    arrays.save(tmp_path / "data", replace(dataset, labels=labels))
    train.main(train_flags(tmp_path / "data", tmp_path / "run"))
    name = ("params_000001.h5", "affine/W")
    assert not np.array_equal(contents(finished_run)[name], contents(tmp_path / "run")[name])


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


def test_given_labels_are_trained_on_and_measured_against_the_true_ones(tmp_path, capsys):
    """From a table of some samples; then a resume, the other scripts, and a round on corrections."""
    run, again, table = tmp_path / "run", tmp_path / "again", tmp_path / "labels.csv"
    common = ["--dataset", "digits", "--subset", "60", "--model", "resnet23", "--nmaps", "4",
              "--train_epochs", "2", "--train_batch_size", "20", "-c", "cpu", "--model_save_interval",
              "1", "--run"]
    split, _ = load_digits()
    given = split.labels[:, 0].copy()
    given[::7] = (given[::7] + 3) % 10
    table.write_text("index,label\n" + "".join(f"{index},{given[index]}\n"
                                               for index in range(0, 1437, 7)))
    train.main([*common, str(run), "--noisy_labels", str(table)])
    dataset = arrays.load(run)
    place = {image.tobytes(): index for index, image in enumerate(split.images)}
    kept = [place[image.tobytes()] for image in dataset.images]
    assert np.array_equal(dataset.true_labels, split.labels[kept])
    assert np.array_equal(dataset.labels[:, 0], given[kept])
    wrong = int((dataset.labels != dataset.true_labels).sum())
    assert wrong > 0 and str(wrong) in numbers(capsys.readouterr().out)

    # A resumed run needs these labels, whatever file they are in.
    result = (run / "params_000002.h5").read_bytes()
    for path in run.glob("*000002*"):
        path.unlink()
    resume = ["--run", str(run), "--checkpoint", "-c", "cpu"]
    np.save(tmp_path / "same.npy", given)
    np.save(tmp_path / "other.npy", (given + 1) % 10)
    for more, facts in [([], ["--noisy_labels"]),
                        (["--noisy_labels", str(tmp_path / "other.npy")], [str(run), "--noisy_labels"])]:
        nn.clear_parameters()
        with refused(*facts):
            train.main([*resume, *more])
    nn.clear_parameters()
    train.main([*resume, "--noisy_labels", str(tmp_path / "same.npy")])
    assert (run / "params_000002.h5").read_bytes() == result

    nn.clear_parameters()
    calculate_score.main(["--run", str(run), "-c", "cpu"])
    mislabel_analysis.main(["--run", str(run), "--drop", "0.1"])
    assert json.loads((run / "report" / "metrics.json").read_text())["mislabelled"] == wrong
    nn.clear_parameters()
    train.main(["--input", str(run), "--corrections", str(run / "report" / "drop.csv"), "--run",
                str(again), "-c", "cpu"])
    removed = corrections.load(run / "report" / "drop.csv", dataset).removed
    corrected = arrays.load(again)
    assert len(removed) == 6
    assert np.array_equal(corrected.labels, np.delete(dataset.labels, removed, axis=0))
    assert np.array_equal(corrected.true_labels, np.delete(dataset.true_labels, removed, axis=0))


def test_training_on_earlier_files_without_their_noise(dataset_folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "applied_corrections.csv").touch()  # of a training that was not finished
    train.main(train_flags(dataset_folder, tmp_path / "run", "--shuffle_label", "False"))
    assert not (tmp_path / "run" / "applied_corrections.csv").exists()
    dataset = arrays.load(tmp_path / "run")
    assert np.array_equal(dataset.labels, make_dataset().true_labels)
    with refused("--shuffle_label False", str(dataset_folder), "--output"):
        train.main(train_flags(dataset_folder, dataset_folder, "--shuffle_label", "False"))


@pytest.mark.parametrize(("more", "facts"), [
    (["--subset", "5"], ["--input", "--subset"]),
    (["--shuffle_rate", "0.2"], ["--input", "--shuffle_rate"]),
    (["--train_batch_size", "31"], ["--train_batch_size", "30", "31"]),
    (["--val_batch_size", "13"], ["--val_batch_size", "12", "13"]),
    (["--model", "resnet56"], ["--nmaps 4", "resnet56"]),
    (["--nmaps", "5"], ["--nmaps", "5"]),
    (["--nmaps", "5000"], ["--nmaps", "4096", "5000"]),
    (["--train_epochs", "9" * 20], ["--train_epochs", "1000000"]),
    (["--output", ""], ["--output"]),
    (["--engine", "nnabla", "--workers", "2"], ["--engine nnabla", "--workers 2"]),
    (["--workers", "0"], ["--workers", "'0'"]),
    (["--engine", "torch"], ["--engine", "nnabla", "onnxruntime", "'torch'"]),
    (["--checkpoint", "nowhere"], ["nowhere", "--model_save_path"]),
    (["--monitor-path", __file__], [__file__]),
    (["-o", __file__ + "/run"], [__file__ + "/run"]),
    (["--learning_rate", "1e300"], ["epoch 1", "--learning_rate 1e+300"]),
    # The loss stays finite, for ReLU turns NaN into 0.
    (["--learning_rate", "1e5"], ["epoch 1", "--learning_rate 100000", "conv1/"]),
    (["--dataset", "cifar10"], ["--dataset cifar10", "10", "3", "'class 0'"]),
])
def test_bad_calls_are_refused(dataset_folder, tmp_path, more, facts):
    with refused(*facts):
        train.main(train_flags(dataset_folder, tmp_path / "run", *more))
    # Everything but a learning rate is refused before anything is written.
    assert (tmp_path / "run").exists() == ("--learning_rate" in more)
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


@pytest.mark.parametrize(("more", "facts"), [
    (["--dataset", "mnist"], ["cifar10", "cifar100", "digits", "--dataset", "mnist"]),
    (["--dataset", ""], ["--dataset"]),
    (["--dataset", "digits", "--val_fraction", "0.1"], ["--val_fraction", "--dataset digits"]),
    (["--dataset", "digits", "--strict"], ["--strict", "--dataset digits"]),
    (["--dataset", ".", "--data", "somewhere"], ["--data ", "cifar10", "cifar100", "--dataset ."]),
    (["--dataset", ".", "--val_fraction", "-0.1"], ["--val_fraction", "'-0.1'"]),
    (["--dataset", ".", "--output", "a/b"], ["--dataset .", "a/b"]),
    (["--corrections", "a.csv"], ["--corrections", "--input"]),
    (["--input", ".", "--corrections", "a.csv", "--shuffle_label", "False"],
     ["--corrections", "--shuffle_label False"]),
    (["--dataset", "link/../there", "--output", "there/a"], ["--dataset link/../there", "there/a"]),
    (["--dataset", "classes", "--output", "b/c/a"], ["--dataset classes", "b/c/a"]),
    (["--image_size", "24"], ["--image_size", "32", "256", "24"]),
    (["--image_size", "36"], ["--image_size", "multiple of 8", "36"]),
    (["--image_size", "264"], ["--image_size", "256", "264"]),
    (["--input", ".", "--image_size", "64"], ["--input", "--image_size"]),
    (["--input", ".", "--strict"], ["--input", "--strict"]),
    (["--input", ".", "--noisy_labels", "a.npy"], ["--input", "--noisy_labels"]),
    (["--dataset", ".", "--noisy_labels", "a.npy"], ["--noisy_labels", "digits", "--dataset ."]),
    (["--noisy_labels", "a.npy"], ["--noisy_labels a.npy"]),
    (["--noisy_labels", "a.pt"], ["--noisy_labels", "a.pt", ".npz"]),
    *((["--noisy_labels", "a.npy", *more], ["--noisy_labels", more[0]]) for more in (
        ["--shuffle_label", "True"], ["--shuffle_label", "False"], ["--shuffle_rate", "0.1"],
        ["--noise", "uniform"], ["--noise", "hardest", "--noise_model", "b"], ["--noise_model", "b"]))])
def test_flags_of_the_data_that_make_no_sense_are_refused(tmp_path, monkeypatch, more, facts):
    monkeypatch.chdir(tmp_path)
    for folder in ("b/c", "b/there", "there", "classes"):
        Path(folder).mkdir(parents=True)
    Path("link").symlink_to("b/c")
    Path("there").rmdir()
    Path("there").symlink_to("b/there")
    Path("classes/cat").symlink_to(tmp_path / "b" / "c")
    with refused(*facts):
        train.resolve(train.get_args(more))


@pytest.mark.parametrize(("samples", "batch"), [(9, 9), (1437, 16), (10_000, 100), (60_000, 500)])
def test_default_batch_is_a_hundredth(tmp_path, monkeypatch, samples, batch):
    monkeypatch.chdir(tmp_path)
    images, labels = np.zeros((samples, 3, 32, 32), np.uint8), np.zeros((samples, 1), int)
    dataset = Dataset(images, labels, true_labels=labels, test=Split(images[:9], labels[:9]),
                      names=["a", "b"])
    settings = train.resolve(train.get_args([])).for_dataset(dataset)
    assert (settings.train_batch_size, settings.val_batch_size) == (batch, 9)


def test_own_images_keep_their_labels_and_their_files(own_images, tmp_path):
    run = tmp_path / "run"
    train.main(["--dataset", str(own_images), "--output", str(run), "--monitor-path", str(run),
                *OWN_FLAGS])
    assert not (run / "y_train.npy").exists()
    assert (run / "label_names.txt").read_text() == "cat\ndog\n"
    paths = (run / "paths.txt").read_text().splitlines()
    images, labels = np.load(run / "x_train.npy"), np.load(run / "y_shuffle_train.npy")[:, 0]
    assert len(paths) == len(set(paths)) == len(images) == 40  # all are ranked
    assert [path.split("/")[0] for path in paths] == [["cat", "dog"][label] for label in labels]
    for path, image in zip(paths, images, strict=True):
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


def test_own_images_with_the_older_default_resume(own_images, tmp_path):
    """Older versions recorded no share to test on for the default of that time, a fifth."""
    run = tmp_path / "run"
    common = ["--output", str(run), "--monitor-path", str(run)]
    train.main(["--dataset", str(own_images), *common, *OWN_FLAGS, "--val_fraction", "0.2"])
    result = (run / "params_000002.h5").read_bytes()
    for path in (*run.glob("*000002*"), run / "training_dynamics.npz"):
        path.unlink()
    description = json.loads((run / "checkpoint_000001.json").read_text())
    description["arguments"]["val_fraction"] = None
    (run / "checkpoint_000001.json").write_text(json.dumps(description))
    nn.clear_parameters()
    train.main(["--dataset", str(own_images), "--checkpoint", str(run), "-c", "cpu", *common])
    assert (run / "params_000002.h5").read_bytes() == result
    assert len(np.load(run / "x_train.npy")) == 32


def test_folder_called_like_a_known_set_is_ones_own(own_images, tmp_path, monkeypatch):
    own_images.rename(tmp_path / "digits")
    (tmp_path / "digits" / "dog" / "a.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(["./digits", str(tmp_path / "digits")]):
        nn.clear_parameters()
        train.main(["--dataset", name, "--output", f"run{number}", "--monitor-path", f"run{number}",
                    *OWN_FLAGS])
        run = tmp_path / f"run{number}"
        assert (len(np.load(run / "x_train.npy")), len(np.load(run / "x_val.npy"))) == (40, 40)
        assert (run / "label_names.txt").read_text() == "cat\ndog\n"
        assert not (run / "y_train.npy").exists()
        skipped, = (run / "skipped.txt").read_text().splitlines()
        assert "dog/a.txt" in skipped


def test_corrected_data_are_trained_on(run, tmp_path, capsys):
    analysis, again = tmp_path / "analysis", tmp_path / "again"
    mislabel_analysis.main(["--input", str(run), "--output", str(analysis), "--drop", "0.2"])
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    nn.clear_parameters()
    common = ["--corrections", str(analysis / "drop.csv")]
    capsys.readouterr()
    train.main(train_flags(run, again, *common))
    told = next(line for line in capsys.readouterr().out.splitlines() if "class " in line)
    assert {"0", "6"} <= set(numbers(told))
    assert (again / "applied_corrections.csv").read_bytes() == (analysis / "drop.csv").read_bytes()
    removed = np.argsort(-np.load(run / "influence_all_epoch.npy"), kind="stable")[:6]
    for name in ("x_train.npy", "y_train.npy", "y_shuffle_train.npy"):
        assert np.array_equal(np.load(again / name), np.delete(np.load(run / name), removed, axis=0))
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    for path in again.glob("*000003*"):
        path.unlink()
    nn.clear_parameters()
    with refused(str(again), "--corrections"):
        train.main(train_flags(run, again, "--checkpoint", str(again)))
    nn.clear_parameters()
    train.main(train_flags(run, again, "--checkpoint", str(again), *common))
    assert len(corrections.load_applied(again)) == 6
    # What was decided before the reviewed run stays known.
    earlier = corrections.Decision(9, "", "class x", "fine", "", "sha256:0123456789abcdef")
    corrections.save_decisions(run / "applied_corrections.csv", [earlier])
    nn.clear_parameters()
    train.main(train_flags(run, tmp_path / "third", *common))
    carried = corrections.load_applied(tmp_path / "third")
    assert carried[0] == earlier and len(carried) == 7
    with refused("--corrections", str(run), "--output"):
        train.main([*train_flags(run, run, *common), "--monitor-path", str(tmp_path / "m")])


def test_decisions_that_change_no_data_survive_a_resume_without_them(run, tmp_path):
    dataset = arrays.load(run)
    corrections.save(tmp_path / "right.csv", dataset, Corrections(fine=[4, 7]))
    flags = train_flags(run, tmp_path / "again", "--train_epochs", "1")
    train.main([*flags, "--corrections", str(tmp_path / "right.csv")])
    applied = (tmp_path / "again" / "applied_corrections.csv").read_bytes()
    nn.clear_parameters()
    train.main([*flags, "--checkpoint", str(tmp_path / "again")])
    assert (tmp_path / "again" / "applied_corrections.csv").read_bytes() == applied


def test_corrected_data_are_trained_on_as_the_run_was(run, tmp_path):
    flags = ["--input", str(run), "--corrections", "a.csv", "--output", str(tmp_path / "a"),
             "--monitor-path", str(tmp_path / "a")]
    description = find_checkpoints(run)[-1].description
    path = run / "checkpoint_000003.json"
    arguments = {**description.arguments, "seed": 7, "augmentation": False, "learning_rate": 0.25}
    path.write_text(json.dumps({**description.to_json(), "seed": 7, "arguments": arguments}))
    for older in (1, 2):
        (run / f"checkpoint_{older:06d}.json").unlink()

    def settings(*more):
        found = train.resolve(train.get_args([*flags, *more]))
        return (found.model, found.nmaps, found.seed, found.data.augmentation, found.train_epochs,
                found.train_batch_size, found.learning_rate)
    assert settings() == ("resnet23", 4, 7, False, 3, 8, 0.25)
    assert settings("--nmaps", "6", "--train_epochs", "9", "--seed", "0") == (
        "resnet23", 6, 0, False, 9, 8, 0.25)
    assert settings("--model", "resnet56") == ("resnet56", None, 7, False, 3, 8, 0.25)
    # A batch that was the default for the run stays the default for what is left of it.
    usual = {**arguments, "train_batch_size": 16}
    path.write_text(json.dumps({**description.to_json(), "seed": 7, "arguments": usual}))
    assert settings()[5] is None
    # Where the run's checkpoints are elsewhere, the flags must say what to train.
    path.unlink()
    with refused("--model", str(run)):
        settings()
    assert settings("--model", "resnet23") == ("resnet23", 64, 0, True, 270, None, 0.5)


def test_record_of_the_corrected_run_is_read_like_a_command_line(run, tmp_path):
    path = run / "checkpoint_000003.json"
    text = path.read_text().replace('"model": "resnet23"', '"model": "vgg"')
    for older in (1, 2):
        (run / f"checkpoint_{older:06d}.json").unlink()
    path.write_text(text)
    with refused("--model", "'vgg'"):
        train.resolve(train.get_args(["--input", str(run), "--corrections", "a.csv"]))


def test_earlier_files_without_corrections_are_trained_on_by_the_defaults(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = train.resolve(train.get_args(["--input", str(run)]))
    assert (settings.model, settings.train_epochs) == ("resnet56", 270)


def test_test_on_the_training_images_is_called_so(own_images, tmp_path, capsys):
    run = tmp_path / "run"
    train.main(["--dataset", str(own_images), "--output", str(run), "--monitor-path", str(run),
                "--val_fraction", "0", *OWN_FLAGS])
    lines = capsys.readouterr().out.splitlines()
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert len(epochs) == 2 and all("training" in line and "test" not in line for line in epochs)


def test_own_images_are_corrected(own_images, tmp_path):
    """All three scripts on images without true labels, and once more on corrected ones."""
    run, analysis, again = (tmp_path / name for name in ("run", "analysis", "again"))
    train.main(["--dataset", f"{own_images}/../images/", "--output", str(run), "--monitor-path",
                str(run), "--val_fraction", "0.2", *OWN_FLAGS])
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
