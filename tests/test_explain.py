"""calculate_score.py --explain and --explain_test."""
import shutil
import zipfile

import numpy as np
import pytest

import calculate_score
from datasets import arrays
from models.registry import build_network
from tests.conftest import make_dataset, refused
from utils.tracin import explaining, explanations
from utils.tracin.chosen import surest_errors
from utils.tracin.engines import NnablaEngine
from utils.training.checkpoint import find_checkpoints, load_parameters


def score(run, *more):
    calculate_score.main(["--run", str(run), "-c", "cpu", *map(str, more)])


def load(run, test=False):
    return explanations.load(run, arrays.load(run, test=test), np.load(run / "influence_all_epoch.npy"),
                             test)


def brute_force(run, images, labels):
    """Influence and cosine of every training sample on every one of some samples, (N, M), and the
    probabilities at the last checkpoint."""
    x, y = np.load(run / "x_train.npy"), np.load(run / "y_shuffle_train.npy")
    network = build_network("resnet23", 3, 4)
    network(network.input(1), test=True)
    engine = NnablaEngine(network, 10, "last")
    total, own, others = 0, 0, 0
    for checkpoint in find_checkpoints(run):
        load_parameters(checkpoint)
        engine.load_parameters()
        first, second = (engine.gradients(*pair) for pair in ((images, labels), (x, y)))
        vectors = [(gradients.error[:, :, None] * np.pad(gradients.features, ((0, 0), (0, 1)),
                                                         constant_values=1)[:, None]).reshape(
            len(gradients.error), -1) for gradients in (first, second)]
        total = total + vectors[0] @ vectors[1].T
        own, others = (part + np.square(vector).sum(axis=1)
                       for part, vector in zip((own, others), vectors, strict=True))
    return total, total / np.sqrt(own[:, None] * others), engine.score(images, labels).probability


def check(found, influence, cosine, probability):
    """Whether explanations are the strongest pairs of all."""
    np.testing.assert_allclose(found.probability, probability, atol=1e-6)
    for pairs, sign in ((found.proponents, 1), (found.opponents, -1)):
        strength = np.where(sign * cosine > 0, sign * cosine, np.nan)
        for row, values in enumerate(strength):
            order = np.argsort(-values, kind="stable")
            order = order[np.isfinite(values[order])][:8]
            count = len(order)
            np.testing.assert_allclose(pairs.cosine[row, :count], cosine[row, order], rtol=1e-5,
                                       atol=1e-6)
            found = pairs.indices[row, :count]
            np.testing.assert_allclose(pairs.cosine[row, :count], cosine[row, found], rtol=1e-5,
                                       atol=1e-6)
            np.testing.assert_allclose(pairs.influence[row, :count], influence[row, found], rtol=1e-4,
                                       atol=1e-6)
            assert len(set(pairs.indices[row, :count].tolist())) == count
            assert (pairs.indices[row, count:] == -1).all()
            for values in (pairs.influence, pairs.cosine):
                assert np.isnan(values[row, count:]).all() and np.isfinite(values[row, :count]).all()


@pytest.mark.parametrize("engine", ["nnabla", "onnxruntime"])
def test_suspects_are_explained_by_the_strongest_of_all_others(run, engine):
    score(run, "--explain", "12", "--engine", engine)
    found = load(run)
    total = np.load(run / "influence_all_epoch.npy")
    assert found.indices.tolist() == np.argsort(-total, kind="stable")[:12].tolist()
    x, y = np.load(run / "x_train.npy"), np.load(run / "y_shuffle_train.npy")
    influence, cosine, probability = brute_force(run, x[found.indices], y[found.indices])
    np.testing.assert_allclose(influence[range(12), found.indices], total[found.indices], rtol=1e-4)
    cosine[range(12), found.indices] = np.nan  # a sample does not explain itself
    check(found, influence, cosine, probability)


def test_identical_images_have_cosines_within_bounds(run):
    np.save(run / "x_train.npy", np.load(run / "x_train.npy")[np.arange(30) // 10])
    for path in [*run.glob("checkpoint_*.json"), run / "per_checkpoint.npz"]:  # which know the data
        path.unlink()
    score(run, "--explain", "--model", "resnet23")
    found = load(run)
    for pairs in (found.proponents, found.opponents):
        assert np.nanmax(np.abs(pairs.cosine)) <= 1
    assert np.nanmax(found.proponents.cosine) == 1


def test_number_may_be_left_out(run):
    """Then the first 1,000 are explained, or all."""
    score(run, "--explain")
    assert sorted(load(run).indices.tolist()) == list(range(30))


@pytest.fixture
def tested_run(run):
    """A run with test images that are not among its training images."""
    other = make_dataset(samples=10, seed=5)
    np.save(run / "x_val.npy", other.images)
    np.save(run / "y_val.npy", (other.true_labels + np.eye(10, 1, dtype=int)) % 3)
    return run


def test_test_samples_are_explained_in_the_order_given(tested_run):
    score(tested_run, "--explain_test", "7", "0", "7", "3")
    found = load(tested_run, test=True)
    assert found.indices.tolist() == [7, 0, 3]
    x, y = np.load(tested_run / "x_val.npy"), np.load(tested_run / "y_val.npy")
    check(found, *brute_force(tested_run, x[found.indices], y[found.indices]))


def test_test_errors_are_the_surest_first(tested_run):
    score(tested_run, "--explain_test", "errors")
    found, labels = load(tested_run, test=True), np.load(tested_run / "y_val.npy")[:, 0]
    everything = brute_force(tested_run, np.load(tested_run / "x_val.npy"), labels[:, None])
    wrong = np.flatnonzero(everything[2].argmax(axis=1) != labels)
    assert 0 < len(wrong) < 10
    assert sorted(found.indices.tolist()) == wrong.tolist()
    surest = found.probability.max(axis=1)
    assert (np.diff(surest) <= 0).all() and len(wrong) > 1
    check(found, *(array[found.indices] for array in everything))


def test_at_most_a_hundred_errors_are_explained():
    rng = np.random.default_rng(0)
    probability = rng.dirichlet([1, 1, 1], 500)
    labels = rng.integers(0, 3, (500, 1))
    chosen = surest_errors(probability, labels)
    assert len(chosen) == 100 and (probability[chosen].argmax(axis=1) != labels[chosen, 0]).all()
    wrong = np.flatnonzero(probability.argmax(axis=1) != labels[:, 0])
    left = np.setdiff1d(wrong, chosen)
    assert len(left) and probability[left].max() <= probability[chosen].max(axis=1).min()


def test_nothing_is_explained_where_no_test_sample_is_wrong(tested_run):
    labels = np.load(tested_run / "y_val.npy")
    _, _, probability = brute_force(tested_run, np.load(tested_run / "x_val.npy"), labels)
    np.save(tested_run / "y_val.npy", probability.argmax(axis=1)[:, None])
    score(tested_run, "--explain_test", "errors")
    assert not (tested_run / "explanations_test.npz").exists()


@pytest.mark.parametrize("change", [{"SAMPLES_PER_SLICE": 8, "SAMPLES_PER_PRODUCT": 4},
                                    {"SAMPLES_PER_PRODUCT": 7}, {"EXPLAINED_PER_TASK": 5}])
def test_explanations_do_not_depend_on_how_the_work_is_cut(run, monkeypatch, change):
    score(run, "--explain", "12", "--batch_size", "4")
    whole = load(run)
    (run / "explanations.npz").unlink()
    for name, value in change.items():
        monkeypatch.setattr(explaining, name, value)
    score(run, "--explain", "12", "--batch_size", "4")
    for kind in ("proponents", "opponents"):
        found, expected = getattr(load(run), kind), getattr(whole, kind)
        np.testing.assert_array_equal(found.indices, expected.indices)
        for name in ("influence", "cosine"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-9,
                                       atol=1e-12)


@pytest.mark.parametrize("engine", ["nnabla", "onnxruntime"])
def test_explanations_do_not_depend_on_workers(run, monkeypatch, engine):
    monkeypatch.setattr(explaining, "SAMPLES_PER_PRODUCT", 8)
    results = []
    for workers in ("2", "1"):
        score(run, "--explain", "12", "--batch_size", "8", "--engine", engine, "--workers", workers)
        results.append((run / "explanations.npz").read_bytes())
        (run / "explanations.npz").unlink()
    assert results[0] == results[1]


def test_kept_explanations_are_not_computed_again(run, monkeypatch):
    score(run, "--explain", "5")
    before = (run / "explanations.npz").read_bytes()
    monkeypatch.setattr("calculate_score.explain", None)
    score(run, "--explain", "5")
    score(run)
    assert (run / "explanations.npz").read_bytes() == before


def test_explanations_of_other_scores_are_removed_or_replaced(run):
    score(run, "--explain", "5")
    score(run, "--epochs", "2", "3")
    assert not (run / "explanations.npz").exists()
    score(run, "--explain", "5")
    whole = load(run)
    score(run, "--epochs", "2", "3", "--explain", "5")
    assert load(run).opponents.influence.tolist() != whole.opponents.influence.tolist()


def stop_at(monkeypatch, number):
    """Interrupt the task of that number; returns the tasks that begin, now and later."""
    original, calls = explaining.SliceExplainer.__call__, []

    def stop(self, *task):
        calls.append(task)
        if len(calls) == number:
            raise KeyboardInterrupt
        return original(self, *task)
    monkeypatch.setattr(explaining.SliceExplainer, "__call__", stop)
    return calls


def test_stopped_run_resumes_to_the_same_explanations(run, monkeypatch):
    monkeypatch.setattr(explaining, "SAMPLES_PER_SLICE", 8)
    score(run, "--explain", "12", "--batch_size", "8")
    whole = (run / "explanations.npz").read_bytes()
    (run / "explanations.npz").unlink()
    calls = stop_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        score(run, "--explain", "12", "--batch_size", "8")
    assert not (run / "explanations.npz").exists()
    score(run, "--explain", "12", "--batch_size", "8")
    assert len(calls) == 5 and calls[3] == calls[2]
    assert (run / "explanations.npz").read_bytes() == whole
    assert not list(run.glob(".unfinished*"))


def flip_last_bit(path, member):
    """Damage an array in an archive."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{member}.npy")
    content = bytearray(path.read_bytes())
    content[content.index(b"\n", info.header_offset) + info.file_size - 128] ^= 1
    path.write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match=member), np.load(path) as file:
        file[member]


@pytest.mark.parametrize("member", ["indices", "opponent_cosine", "data_sha256"])
def test_damaged_explanations_are_not_kept(run, member):
    score(run, "--explain", "5")
    path = run / "explanations.npz"
    whole = path.read_bytes()
    flip_last_bit(path, member)
    with refused(str(path), "--explain"):
        load(run)
    score(run, "--explain", "5")
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", ["all", "last", "shape"])
def test_damaged_unfinished_file_is_ignored(run, monkeypatch, damage):
    monkeypatch.setattr(explaining, "SAMPLES_PER_SLICE", 8)
    score(run, "--explain", "12")
    whole, path = (run / "explanations.npz").read_bytes(), run / ".unfinished-explanations.npz"
    (run / "explanations.npz").unlink()
    calls = stop_at(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        score(run, "--explain", "12")
    if damage == "all":
        path.write_bytes(b"PK")
    elif damage == "last":
        flip_last_bit(path, "opponents_cosine")
    else:
        with np.load(path) as file:
            content = dict(file)
        np.savez(path, **{**content, "opponents_cosine": np.ones(8)})
    score(run, "--explain", "12")
    assert len(calls) == 2 + 4  # nothing is kept of it
    assert (run / "explanations.npz").read_bytes() == whole


@pytest.mark.parametrize(("more", "facts"), [
    (["--explain", "31"], ["--explain", "30", "31"]),
    (["--explain", "0"], ["--explain", "'0'"]),
    (["--explain", "5", "--layers", "all"], ["--explain", "--layers all"]),
    (["--explain_test", "10"], ["--explain_test", "9", "10"]),
    (["--explain_test", "-1"], ["--explain_test", "-1"]),
    (["--explain_test", "wrong"], ["--explain_test", "wrong"]),
    (["--explain_test"], ["--explain_test"]),
    (["--explain_test", "errors", "3"], ["--explain_test errors"]),
])
def test_bad_calls_are_refused_before_anything_is_computed(tested_run, tmp_path, more, facts):
    with refused(*facts):
        score(tested_run, *more, "--output", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_training_images_are_no_test_images(run):
    shutil.copy(run / "x_train.npy", run / "x_val.npy")
    shutil.copy(run / "y_train.npy", run / "y_val.npy")
    with refused("--explain_test", str(run / "x_val.npy"), "--val_fraction"):
        score(run, "--explain_test", "1")


def test_labels_of_test_images_must_be_classes(tested_run):
    np.save(tested_run / "y_val.npy", np.full((10, 1), 3))
    (tested_run / "label_names.txt").write_text("a\nb\nc\nd\n")
    for path in tested_run.glob("checkpoint_*.json"):  # which know the names
        path.unlink()
    with refused("below 3", str(tested_run / "y_val.npy")):
        score(tested_run, "--explain_test", "1", "--model", "resnet23")


@pytest.mark.parametrize("flag", ["--explain", "--explain_test"])
@pytest.mark.parametrize("change", ["scores", "labels", "test", "damage", "shape", "range", "sign",
                                    "cosine", "probability", "bomb"])
def test_explanations_of_something_else_are_refused(tested_run, flag, change):
    run, test = tested_run, flag == "--explain_test"
    score(run, flag, "5")
    path = run / ("explanations_test.npz" if test else "explanations.npz")
    assert len(load(run, test).indices) == (1 if test else 5)
    if change == "scores":
        np.save(run / "influence_all_epoch.npy", np.load(run / "influence_all_epoch.npy") * 2)
    elif change == "labels":
        np.save(run / "y_shuffle_train.npy", np.load(run / "y_train.npy"))
    elif change == "test":
        np.save(run / "y_val.npy", np.load(run / "y_val.npy")[::-1])
    elif change == "damage":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        with np.load(path) as file:
            content = dict(file)
        if change == "shape":
            content["opponents"] = content["opponents"][:, :3]
        elif change == "range":
            content["opponents"][0, 0] = 30
        elif change == "sign":
            content["opponent_cosine"][0, 0] *= -1
        elif change == "cosine":
            content["proponent_cosine"][0, 0] = 1.1
        elif change == "probability":
            content["probability"][0, 0] = -0.1
        else:
            content["probability"] = np.zeros((1_000_000, 3), np.float32)
        np.savez_compressed(path, **content)
    if change == "test" and not test:
        assert load(run) is not None
        return
    with refused(str(path), flag):
        load(run, test)
