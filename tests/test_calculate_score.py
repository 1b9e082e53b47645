import shutil

import h5py
import nnabla as nn
import numpy as np
import pytest

import calculate_score
from datasets import arrays
from tests.conftest import make_dataset
from utils.cli import UserError


def score(run, output, *more):
    calculate_score.main(["--input", str(run), "--checkpoint", str(run), "--output", str(output),
                          "-c", "cpu", *more])


def total(folder):
    return np.load(folder / "influence_all_epoch.npy")


@pytest.mark.parametrize("more", [["--batch_size", "7"], ["--model", "resnet23"], ["--layers", "last"]])
def test_scores_do_not_depend_on_flags_that_change_nothing(run, tmp_path, more):
    score(run, tmp_path / "again", *more)
    np.testing.assert_allclose(total(tmp_path / "again"), total(run), rtol=1e-6)


def test_single_checkpoint_is_scored_alone(run, tmp_path):
    calculate_score.main(["--input", str(run), "--checkpoint", str(run / "checkpoint_000002.json"),
                          "--output", str(tmp_path / "one"), "-c", "cpu"])
    assert np.array_equal(total(tmp_path / "one"), np.load(run / "000002_influence.npy"))


def test_scores_of_every_epoch_can_be_left_out(run, tmp_path):
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
    with pytest.raises(UserError, match="params_29.h5 is not of this network"):
        calculate_score.main(flags)


def test_model_that_contradicts_the_checkpoint_is_refused(run):
    with pytest.raises(UserError, match="--model resnet56 contradicts .*holds a resnet23"):
        score(run, run, "--model", "resnet56")


def test_data_of_another_run_are_refused(run, tmp_path):
    arrays.save(tmp_path / "other", make_dataset(seed=1))
    with pytest.raises(UserError, match="are not those that .* was trained on"):
        calculate_score.main(["--input", str(tmp_path / "other"), "--checkpoint", str(run)])


@pytest.mark.parametrize(("more", "message"), [
    (["--batch_size", "31"], "--batch_size of at most 30, .* found 31"),
    (["--batch_size", "0"], "expected an integer from 1, found '0'"),
    (["--layers", "first"], "--layers: invalid choice: 'first'"),
    (["--checkpoint", "nowhere"], "nowhere, found nothing"),
    (["--input", "nowhere"], "nowhere, found none"),
    (["--output", __file__], "folder to write in at .*test_calculate_score.py.*no folder"),
])
def test_bad_calls_are_refused(run, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        score(run, tmp_path / "new", *more)
    assert not (tmp_path / "new").exists()


def test_damaged_checkpoint_is_found_before_anything_is_written(run, tmp_path):
    (run / "params_000003.h5").write_bytes(b"damaged")
    with pytest.raises(UserError, match="params_000003.h5 is damaged or of another run"):
        score(run, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_unfinished_run_is_named(run, tmp_path, capsys):
    (run / "checkpoint_000003.json").unlink()
    score(run, tmp_path / "new")
    assert "2 checkpoints, 30 samples (up to epoch 2 of 3)" in capsys.readouterr().out


def test_checkpoint_that_is_missing_is_not_passed_over(run):
    (run / "params_000002.h5").unlink()
    with pytest.raises(UserError, match="cannot read .*params_000002.h5: No such file"):
        score(run, run)


def test_scores_that_are_not_finite_are_refused(run, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    shutil.copy(run / "params_000001.h5", old / "params_1.h5")
    with h5py.File(old / "params_1.h5", "r+") as file:
        file["conv8/conv3/bn/gamma"][...] = 3e38
    with pytest.raises(UserError, match="scores at .*params_1.h5 are not finite"):
        calculate_score.main(["--input", str(run), "--checkpoint", str(old), "--output", str(old),
                              "--model", "resnet23", "-c", "cpu"])
    assert [path.name for path in old.iterdir()] == ["params_1.h5"]
