import errno
import json
import os
import re
import shutil

import h5py
import nnabla as nn
import numpy as np
import pytest

from models.registry import build_network
from tests.conftest import make_dataset
from utils.errors import UserError
from utils.training.checkpoint import (
    Checkpoint,
    check_unused,
    find_checkpoints,
    load_checkpoint,
    load_parameters,
    newest_complete,
    newest_description,
    read_parameters,
)
from utils.training.engines import NnablaEngine
from utils.training.trainer import Trainer


def build(nmaps=4, classes=3, model="resnet23"):
    network = build_network(model, classes, nmaps, np.random.default_rng(9))
    network(nn.Variable((1, 3, 32, 32)), test=True)


def test_checkpoint_says_what_made_it(run):
    found = find_checkpoints(run)
    assert [one.epoch for one in found] == [1, 2, 3]
    last = found[-1]
    assert last.parameters == run / "params_000003.h5"
    assert last.states == run / "states_000003.h5"
    description = last.description
    assert (description.model, description.nmaps, description.classes) == ("resnet23", 4, 3)
    assert description.data_sha256 == make_dataset().digest()
    # 30 samples in batches of 8 are 4 updates per epoch; the last of the 12 comes after 240/270.
    assert description.learning_rate == pytest.approx(0.5 * 8 / 500 / 1000)
    assert description.arguments["train_epochs"] == 3
    assert len(description.history) == 3
    assert str(run) not in (run / "checkpoint_000003.json").read_text()


def test_one_description_names_its_checkpoint_alone(run):
    found = find_checkpoints(run / "checkpoint_000002.json")
    assert [one.epoch for one in found] == [2]


@pytest.mark.parametrize("missing", ["params_000003.h5", "states_000003.h5",
                                     "checkpoint_000003.json"])
def test_run_goes_on_from_the_newest_complete_checkpoint(run, missing):
    (run / missing).unlink()
    assert newest_complete(run).epoch == 2


def test_checkpoint_without_parameters_is_not_passed_over_in_scoring(run):
    (run / "params_000002.h5").unlink()
    (run / "states_000001.h5").unlink()
    assert [one.epoch for one in find_checkpoints(run)] == [1, 2, 3]
    with pytest.raises(UserError, match=rf"params_000002\.h5.*{os.strerror(errno.ENOENT)}"):
        read_parameters(find_checkpoints(run)[1])


def test_parameters_of_nnablas_example_are_found_without_descriptions(run, tmp_path):
    for name in ("params_29.h5", "params_119.h5", "params_000270.h5"):
        shutil.copy(run / "params_000001.h5", tmp_path / name)
    found = find_checkpoints(tmp_path)
    assert [one.epoch for one in found] == [29, 119, 270]
    assert found[0].parameters.name == "params_29.h5" and not found[0].description
    with pytest.raises(UserError, match=r"--checkpoint\b"):
        newest_complete(tmp_path)
    shutil.copy(run / "params_000001.h5", tmp_path / "params_000029.h5")
    with pytest.raises(UserError, match=r"params_000029\.h5 .*params_29\.h5"):
        find_checkpoints(tmp_path)


def test_folder_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path))}\b.*--model_save_path"):
        find_checkpoints(tmp_path)
    with pytest.raises(UserError, match=r"nowhere\b.*--model_save_path"):
        find_checkpoints(tmp_path / "nowhere")
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match=r"a\.txt\b.*--model_save_path"):
        find_checkpoints(tmp_path / "a.txt")


def test_checkpoints_of_two_runs_are_not_mixed(run):
    path = run / "checkpoint_000002.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seed": 7}))
    with pytest.raises(UserError, match=rf"\b1 .*\b2 .*{re.escape(str(run))}"):
        find_checkpoints(run)


@pytest.mark.parametrize("content", [
    "", "[]", "{}", '{"epoch": 2}', "\xff", "[" * 100_000, '{"epoch": "../../etc/passwd"}'])
def test_damaged_description_is_named(run, content):
    (run / "checkpoint_000002.json").write_text(content, encoding="latin1")
    with pytest.raises(UserError, match=r"checkpoint_000002\.json"):
        find_checkpoints(run)


@pytest.mark.parametrize("wrong", [
    {"nmaps": 0}, {"nmaps": -4}, {"nmaps": True}, {"nmaps": 10**9}, {"classes": 0},
    {"epoch": True}, {"history": []}, {"history": [{}, {}]}, {"arguments": []}, {"seed": -1},
    {"engine": 1}, {"engine": "x" * 1000}, {"workers": 0}])
def test_wrong_value_in_a_description_is_named(run, wrong):
    path = run / "checkpoint_000002.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **wrong}))
    with pytest.raises(UserError, match=rf"checkpoint_000002\.json.*\b{next(iter(wrong))}\b"):
        find_checkpoints(run)


def test_description_of_another_epoch_is_refused(run):
    shutil.copy(run / "checkpoint_000003.json", run / "checkpoint_000002.json")
    with pytest.raises(UserError, match=r"checkpoint_000002\.json.*\bepoch\b"):
        find_checkpoints(run)


def test_new_run_does_not_mix_with_old_checkpoints(run, tmp_path):
    remedy = rf"--checkpoint {re.escape(str(run))} .*--model_save_path"
    with pytest.raises(UserError, match=remedy):
        check_unused(run, None)
    with pytest.raises(UserError, match=remedy):
        check_unused(run, tmp_path)
    check_unused(run, run)
    check_unused(run, run / "checkpoint_000003.json")
    check_unused(tmp_path / "new", None)
    (run / "inside").mkdir()
    with pytest.raises(UserError, match=remedy):
        check_unused(run, run / "inside")


def test_newest_description_is_that_of_the_last_epoch(run, tmp_path):
    assert newest_description(run).epoch == 3
    (run / "checkpoint_000003.json").unlink()
    assert newest_description(run).epoch == 2
    (run / "checkpoint_000002.json").write_text("{}")
    with pytest.raises(UserError, match=r"checkpoint_000002\.json"):
        newest_description(run)
    for path in run.glob("checkpoint_*.json"):
        path.unlink()
    assert newest_description(run) is newest_description(tmp_path / "nowhere") is None


def test_what_a_run_left_before_its_first_checkpoint_is_no_checkpoint(run):
    for path in run.glob("checkpoint_*.json"):
        path.unlink()
    check_unused(run, None)
    (run / "states_000002.h5").unlink()
    with pytest.raises(UserError, match=re.escape(f"--checkpoint {run} ")):
        check_unused(run, None)


def test_loading_gives_the_saved_values_and_nnabla_reads_them_too(run):
    build()
    load_parameters(find_checkpoints(run)[1])
    loaded = {name: value.d.copy() for name, value in nn.get_parameters(grad_only=False).items()}
    nn.clear_parameters()
    nn.load_parameters(str(run / "params_000002.h5"))
    for name, value in nn.get_parameters(grad_only=False).items():
        assert np.array_equal(value.d, loaded[name])
    assert set(loaded) == set(nn.get_parameters(grad_only=False))


@pytest.mark.parametrize(("options", "message"), [
    ({"nmaps": 8}, r"\(8, 3\) .*affine/W.* \(4, 3\)"),
    ({"classes": 4}, r"\(4, 4\) .*affine/W.* \(4, 3\)"),
    ({"model": "resnet56", "nmaps": None}, "16_conv10/conv1/bn/beta"),
])
def test_parameters_of_another_network_are_refused(run, options, message):
    build(**options)
    with pytest.raises(UserError, match=message):
        load_parameters(find_checkpoints(run)[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_parameters_that_are_not_finite_name_the_checkpoint(run, value):
    path = run / "params_000002.h5"
    with h5py.File(path, "r+") as file:
        file["conv2/conv1/conv/W"][0, 0] = value
    with pytest.raises(UserError, match=r"params_000002\.h5.*conv2/conv1/conv/W"):
        read_parameters(Checkpoint(2, path))


@pytest.mark.parametrize("name", ["params_000002.h5", "states_000002.h5"])
@pytest.mark.parametrize("damage", ["cut", "other epoch", "empty"])
def test_files_other_than_those_described_are_refused(run, name, damage):
    if damage == "empty":
        h5py.File(run / name, "w").close()
    else:
        content = (run / name).read_bytes()
        other = (run / name.replace("2", "1")).read_bytes()
        (run / name).write_bytes(content[:3000] if damage == "cut" else other)
    trainer = Trainer(NnablaEngine(build_network("resnet23", 3, 4)), False, 0)
    with pytest.raises(UserError, match=re.escape(name)):
        load_checkpoint(find_checkpoints(run)[1], trainer.solver)


@pytest.mark.parametrize("content", [b"", b"text", "cut"])
def test_damaged_parameters_without_description_are_named(run, content):
    path = run / "params_000002.h5"
    path.write_bytes(path.read_bytes()[:3000] if content == "cut" else content)
    with pytest.raises(UserError, match=r"params_000002\.h5"):
        read_parameters(Checkpoint(2, path))


def test_files_are_as_nnabla_writes_them(run, tmp_path):
    """NNabla itself, saving the same parameters and states, writes the same content."""
    trainer = Trainer(NnablaEngine(build_network("resnet23", 3, 4)), False, 0)
    load_checkpoint(find_checkpoints(run)[2], trainer.solver)
    nn.save_parameters(str(tmp_path / "params_000003.h5"))
    trainer.solver.save_states(str(tmp_path / "states_000003.h5"))
    for name in ("params_000003.h5", "states_000003.h5"):
        assert contents(run / name) == contents(tmp_path / name)


def contents(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: (
            dict(item.attrs), item[...].tolist() if isinstance(item, h5py.Dataset) else None)}))
    return found


def test_saved_network_computes_what_the_trained_one_does(run):
    from nnabla.utils.nnp_graph import NnpLoader
    build()
    load_parameters(find_checkpoints(run)[2])
    images = make_dataset().images[:1]
    image = nn.Variable(images.shape)
    logits, _ = build_network("resnet23", 3, 4)(image, test=True)
    image.d = images
    logits.forward()
    nn.clear_parameters()
    network = NnpLoader(str(run / "resnet23_result.nnp")).get_network("resnet23", batch_size=1)
    network.inputs["x"].d = images
    network.outputs["y"].forward()
    assert np.array_equal(network.outputs["y"].d, logits.d)
