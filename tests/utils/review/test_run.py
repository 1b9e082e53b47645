import numpy as np
import pytest

from tests.conftest import refused
from utils.review.rankings import AUTO, choose_ranking
from utils.review.run import agreement, load_run
from utils.review.suspects import choose_corrections
from utils.training import dynamics, out_of_fold


def test_ranking_is_chosen_where_the_true_labels_are_unknown(run):
    known = load_run(run)
    assert known.rank_by == "tracin" and known.reason
    asked = load_run(run, AUTO)
    (run / "y_train.npy").unlink()
    unknown = load_run(run)
    for chosen in (asked, unknown):
        assert (chosen.rank_by, chosen.reason) == ("consensus", choose_ranking(True).reason)
        assert np.array_equal(chosen.score, chosen.rankings["consensus"])
    named = load_run(run, "margin")
    assert (named.rank_by, named.reason) == ("margin", "")


@pytest.mark.parametrize("lacking", ["file", "one value"])
def test_choice_goes_without_training_statistics(run, lacking):
    if lacking == "file":
        (run / dynamics.FILE).unlink()
    else:
        with np.load(run / dynamics.FILE) as file:
            content = dict(file)
        content["margin"][3, 1] = np.nan
        np.savez(run / dynamics.FILE, **content)
    assert load_run(run, AUTO).rank_by == "self_confidence"
    for name in ("aum", ""):
        with refused("--rank_by", f"'{name}'", "tracin"):
            load_run(run, name)


@pytest.mark.parametrize(("disagreed", "expected"), [(0, 1.0), (7, 23 / 30), (8, 22 / 30), (30, 0.0)])
def test_agreement_is_the_share_of_labels_that_are_likeliest(run, disagreed, expected):
    with np.load(run / "per_checkpoint.npz") as file:
        content = dict(file)
    likeliest = np.load(run / "y_shuffle_train.npy")[:, 0]
    likeliest[:disagreed] = (likeliest[:disagreed] + 1) % 3
    content["probability"] = np.eye(3)[likeliest].astype(content["probability"].dtype)
    np.savez(run / "per_checkpoint.npz", **content)
    loaded = load_run(run)
    assert agreement(loaded) == pytest.approx(expected)


def with_out_of_fold(run, disagreed):
    """The run with probabilities out of fold, which disagree with the labels of the first samples."""
    likeliest = np.load(run / "y_shuffle_train.npy")[:, 0]
    likeliest[:disagreed] = (likeliest[:disagreed] + 1) % 3
    probability = (0.05 + 0.85 * np.eye(3)[likeliest]).astype(np.float32)
    with np.load(run / "per_checkpoint.npz") as file:
        key = str(file["run_sha256"])
    out_of_fold.save(run, key, probability)
    return probability


@pytest.mark.parametrize(("disagreed", "expected"), [(0, 1.0), (12, 0.6), (13, 17 / 30)])
def test_what_was_trained_without_the_sample_suggests_labels(run, disagreed, expected):
    in_sample = load_run(run).probability
    probability = with_out_of_fold(run, disagreed)
    loaded = load_run(run)
    assert np.array_equal(loaded.probability, probability)
    assert np.array_equal(loaded.judged.probability, probability)
    assert np.array_equal(loaded.per_checkpoint.probability, in_sample)
    assert agreement(loaded) == pytest.approx(expected)
    chosen = choose_corrections(loaded, None, 1.0)
    labels = loaded.dataset.labels[:, 0]
    assert chosen.relabelled == {index: (labels[index] + 1) % 3 for index in range(disagreed)}


def test_head_has_the_ranking_of_cleanlab(run):
    with_out_of_fold(run, 5)
    expected = np.where(np.arange(30) < 5, 0.95, 0.1)
    np.testing.assert_allclose(load_run(run, "out_of_fold").score, expected, rtol=1e-6)


@pytest.mark.parametrize(("disagreed", "told"), [(7, ""), (8, "73.3 %")])
def test_relabelling_is_warned_of_where_the_heads_know_too_little(run, disagreed, told, capsys):
    with_out_of_fold(run, disagreed)
    choose_corrections(load_run(run), drop=0.1, relabel=None)
    out = capsys.readouterr().out
    assert told in out and bool(out) == bool(told)


def test_probabilities_of_another_run_are_refused(run):
    out_of_fold.save(run, "other", with_out_of_fold(run, 0))
    with refused(out_of_fold.FILE):
        load_run(run)
