import numpy as np
import pytest

from tests.conftest import refused
from utils.review.rankings import AUTO, choose_ranking
from utils.review.run import LEARNED, agreement, load_run, trustworthy
from utils.training import dynamics


def with_epochs(run, epochs):
    """The run as if it had been trained for more epochs, of the same three checkpoints."""
    with np.load(run / "per_checkpoint.npz") as file:
        content = dict(file)
    content["epochs"] = np.linspace(1, epochs, 3).astype(int)
    np.savez(run / "per_checkpoint.npz", **content)
    with np.load(run / dynamics.FILE) as file:
        content = {name: np.resize(array.T, (epochs, 30)).T if array.ndim == 2 else array
                   for name, array in file.items()}
    np.savez(run / dynamics.FILE, **content)
    return run


@pytest.mark.parametrize(("epochs", "expected"), [(3, "self_confidence"), (30, "aum")])
def test_ranking_is_chosen_where_the_true_labels_are_unknown(run, epochs, expected):
    with_epochs(run, epochs)
    known = load_run(run)
    assert known.rank_by == "tracin" and known.reason
    asked = load_run(run, AUTO)
    (run / "y_train.npy").unlink()
    unknown = load_run(run)
    for chosen in (asked, unknown):
        assert (chosen.rank_by, chosen.reason) == (expected, choose_ranking(epochs, True).reason)
        assert np.array_equal(chosen.score, chosen.rankings[expected])
    named = load_run(run, "margin")
    assert (named.rank_by, named.reason) == ("margin", "")


@pytest.mark.parametrize("lacking", ["file", "one value"])
def test_choice_goes_without_training_statistics(run, lacking):
    with_epochs(run, 30)
    if lacking == "file":
        (run / dynamics.FILE).unlink()
    else:
        with np.load(run / dynamics.FILE) as file:
            content = dict(file)
        content["margin"][3, 1] = np.nan
        np.savez(run / dynamics.FILE, **content)
    assert load_run(run, AUTO).rank_by == "self_confidence"
    with refused("--rank_by", "aum", "tracin"):
        load_run(run, "aum")


@pytest.mark.parametrize(("disagreed", "expected"), [(0, 1.0), (7, 23 / 30), (8, 22 / 30), (30, 0.0)])
def test_agreement_and_whether_the_count_is_to_be_trusted(run, disagreed, expected):
    with np.load(run / "per_checkpoint.npz") as file:
        content = dict(file)
    likeliest = np.load(run / "y_shuffle_train.npy")[:, 0]
    likeliest[:disagreed] = (likeliest[:disagreed] + 1) % 3
    content["probability"] = np.eye(3)[likeliest].astype(content["probability"].dtype)
    np.savez(run / "per_checkpoint.npz", **content)
    loaded = load_run(run)
    assert agreement(loaded) == pytest.approx(expected)
    assert trustworthy(loaded) == (expected >= LEARNED)
