
import numpy as np
import pytest

from datasets import arrays
from tests.conftest import refused
from utils.tracin import scores
from utils.tracin.scores import COLUMNS, CheckpointScores
from utils.tracin.self_influence import Scores


def load(run):
    dataset = arrays.load(run)
    score = scores.load_total(run, len(dataset.images))
    return score, scores.load_per_checkpoint(run, score, len(dataset.names), dataset.digest())


def test_files_hold_what_the_design_says(run):
    total = np.load(run / "influence_all_epoch.npy")
    assert total.shape == (30,) and total.dtype == np.float64
    with np.load(run / "per_checkpoint.npz", allow_pickle=False) as file:
        assert file["epochs"].tolist() == [1, 2, 3]
        assert file["learning_rate"] == pytest.approx([0.008, 0.0008, 0.000008])
        for name in ("influence", "loss", "margin", "error_norm"):
            assert file[name].shape == (30, 3)
        assert file["probability"].shape == (30, 3)
        np.testing.assert_allclose(file["probability"].sum(axis=1), 1, rtol=1e-6)
        np.testing.assert_allclose(file["influence"].sum(axis=1), total)
        for column, epoch in enumerate([1, 2, 3]):
            one = np.load(run / f"{epoch:06d}_influence.npy")
            assert np.array_equal(one, file["influence"][:, column])
    score, per_checkpoint = load(run)
    assert np.array_equal(score, total)
    assert per_checkpoint.probability.shape == (30, 3)


@pytest.mark.parametrize(("content", "facts"), [
    (np.zeros(29), ["(30,)", "float64 (29,)"]),
    (np.zeros(30, int), ["(30,)", "int64 (30,)"]),
    (np.where(np.arange(30) < 17, np.nan, 0), [" 17 "]),
    (np.zeros(30), ["per_checkpoint.npz"]),
])
def test_sums_that_do_not_fit_are_refused(run, content, facts):
    np.save(run / "influence_all_epoch.npy", content)
    with refused(str(run / "influence_all_epoch.npy"), *facts):
        load(run)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text"])
def test_damaged_details_are_refused(run, content):
    (run / "per_checkpoint.npz").write_bytes(content)
    with refused(str(run / "per_checkpoint.npz")):
        load(run)


def test_a_sum_that_is_off_by_little_is_refused(run):
    total = np.load(run / "influence_all_epoch.npy")
    total[3] *= 1 + 1e-6
    np.save(run / "influence_all_epoch.npy", total)
    with refused(str(run / "influence_all_epoch.npy")):
        load(run)


@pytest.mark.parametrize("annotations", ["5", "[1]", "{"])
def test_annotations_that_are_no_object_are_refused(run, annotations):
    with np.load(run / "per_checkpoint.npz") as file:
        content = {**file, "annotations": annotations}
    np.savez(run / "per_checkpoint.npz", **content)
    with refused(str(run / "per_checkpoint.npz")):
        load(run)


def test_missing_details_and_other_arrays_are_refused(run):
    np.savez(run / "per_checkpoint.npz", epochs=np.arange(3))
    with refused(str(run / "per_checkpoint.npz")):
        load(run)
    (run / "per_checkpoint.npz").unlink()
    with refused(str(run / "per_checkpoint.npz"), "calculate_score.py"):
        load(run)


@pytest.mark.parametrize(("change", "facts"), [
    (lambda name, array: array[:, :0] if name in COLUMNS else
     array if name == "probability" else array[:0], ["(0,)"]),
    (lambda name, array: -array if name == "influence" else array, ["influence from 0", "-"]),
    (lambda name, array: 2 * array if name == "probability" else array, ["from 0 to 1"])],
    ids=["no checkpoint", "negative", "above 1"])
def test_scores_that_no_checkpoint_has_are_refused(run, change, facts):
    with np.load(run / "per_checkpoint.npz") as file:
        own = (*COLUMNS, "epochs", "learning_rate", "probability")
        content = {name: change(name, array) if name in own else array for name, array in file.items()}
    np.savez(run / "per_checkpoint.npz", **content)
    np.save(run / "influence_all_epoch.npy", content["influence"].sum(axis=1))
    with refused(str(run / "per_checkpoint.npz"), *facts):
        load(run)


def test_scores_of_other_labels_are_recognized(run):
    labels = np.load(run / "y_shuffle_train.npy")
    labels[3] = (labels[3] + 1) % 3
    np.save(run / "y_shuffle_train.npy", labels)
    with refused(str(run / "per_checkpoint.npz"), "calculate_score.py"):
        load(run)


def fill(result, value):
    size = result.size
    result.add(0, size, Scores(*(np.full(size, value + number, float) for number in range(4)),
                               np.full((size, 3), value, np.float32)))
    return result


def test_scores_of_a_checkpoint_are_known_again(tmp_path):
    fill(CheckpointScores(tmp_path, 5, "key", 8, 3), 0.5).save()
    again = CheckpointScores(tmp_path, 5, "key", 8, 3)
    assert (again.missing(), again.stale) == (0, False)
    assert again["margin"].tolist() == [2.5] * 8
    assert again["probability"].shape == (8, 3)
    other = CheckpointScores(tmp_path, 5, "other key", 8, 3)
    assert (other.missing(), other.stale) == (8, True)
    assert CheckpointScores(tmp_path, 6, "key", 8, 3).stale is False


@pytest.mark.parametrize("damage", [
    lambda path: path.write_bytes(b""), lambda path: path.write_bytes(path.read_bytes()[:-40]),
    lambda path: np.savez(path, key="key"),
    lambda path: np.savez(path, **{**np.load(path), "loss": np.zeros(7)}),
    lambda path: np.savez(path, **{**np.load(path), "loss": np.zeros(8, object)}),
    lambda path: np.savez(path, **{**np.load(path), "loss": np.zeros(8, complex)}),
])
def test_scores_that_cannot_be_read_count_for_nothing(tmp_path, damage):
    fill(CheckpointScores(tmp_path, 5, "key", 8, 3), 0.5).save()
    damage(tmp_path / "000005_scores.npz")
    result = CheckpointScores(tmp_path, 5, "key", 8, 3)
    assert (result.missing(), result.stale) == (8, True)


def test_key_tells_every_content_apart():
    keys = {scores.content_key(**content) for content in [
        {"data": "a", "parameters": "b"}, {"data": "b", "parameters": "a"}, {"data": "a"},
        {"data": "a", "parameters": "b", "network": ["resnet23", 10, 64]}]}
    assert len(keys) == 4
    assert scores.content_key(a=1, b=2) == scores.content_key(b=2, a=1)
