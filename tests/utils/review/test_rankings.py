from dataclasses import replace

import numpy as np
import pytest

from utils.review.rankings import RANKINGS, Ranking, choose_ranking, forgetting, rankings
from utils.tracin.scores import PerCheckpoint
from utils.training.dynamics import TrainingDynamics

# Two samples, three checkpoints, two classes.
PER_CHECKPOINT = PerCheckpoint(
    epochs=np.array([1, 2, 3]), learning_rate=np.array([0.1, 0.2, 0.4]),
    influence=np.array([[4.0, 9, 16], [1, 0, 1]]), loss=np.array([[1.0, 2, 3], [4, 5, 9]]),
    margin=np.array([[-1.0, 0, -2], [3, 3, 3]]), error_norm=np.array([[0.1, 0.2, 0.6], [0, 0, 0.3]]),
    probability=np.array([[0.25, 0.75], [0.5, 0.5]]), run_sha256=np.array(""))
TOTAL, LABELS = np.array([29.0, 2]), np.array([[1], [0]])


@pytest.fixture
def dynamics():
    result = TrainingDynamics(2, 4)
    for epoch, margin in enumerate([[1, -1], [-3, -1], [2, -2], [-4, -2]]):
        result.record(epoch, np.arange(2), np.zeros(2), np.array(margin))
    return result


def test_rankings_by_hand(dynamics):
    scores = rankings(TOTAL, PER_CHECKPOINT, LABELS, dynamics)
    expected = {"tracin": [29, 2], "tracin_weighted": [0.4 + 1.8 + 6.4, 0.5], "tracin_norms": [9, 2],
                "tracin_late": [25, 1], "loss": [2, 6], "margin": [1, -3], "error_norm": [0.3, 0.1],
                "self_confidence": [0.25, 0.5], "aum": [1, 1.5],
                "aum_late": [1, 2], "forgetting": [2, 4],
                # Of two samples: one is first by one of the two, the other by the other.
                "consensus": [3 / 4, 3 / 4]}
    assert list(scores) == [*expected, "random"]
    for name, values in expected.items():
        assert scores[name] == pytest.approx(values), name
    assert sorted(scores["random"].tolist()) == [0, 1]


def test_consensus_of_equal_scores_is_equal(dynamics):
    """The first and the second sample differ in nothing; the third is above them by one ranking."""
    three = {name: getattr(PER_CHECKPOINT, name)[[0, 0, 1]]
             for name in ("influence", "loss", "margin", "error_norm", "probability")}
    statistics = TrainingDynamics(3, 1)
    statistics.record(0, np.arange(3), np.zeros(3), np.array([1, 1, -1]))
    scores = rankings(np.array([2.0, 2, 3]), replace(PER_CHECKPOINT, **three),
                      LABELS[[0, 0, 1]], statistics)
    # By error_norm their ranks are 2.5, 2.5 and 1, by aum_late 1.5, 1.5 and 3.
    assert scores["consensus"] == pytest.approx(np.array([4, 4, 4]) / 6)


def test_what_is_not_known_is_left_out(dynamics):
    without_rates = replace(PER_CHECKPOINT, learning_rate=np.array([0.1, np.nan, 1]))
    assert "tracin_weighted" not in rankings(TOTAL, without_rates, LABELS, dynamics)
    dynamics.margin[0, 0] = np.nan
    for gaps in (dynamics, None):
        assert not {"aum", "aum_late", "forgetting", "consensus"} & set(
            rankings(TOTAL, PER_CHECKPOINT, LABELS, gaps))


def test_out_of_fold_ranking_is_that_of_cleanlab_by_hand(dynamics):
    """1 minus the given label's probability, without the rounding of float32."""
    probability = np.array([[0.75, 0.25], [1e-9, 1]], np.float32)
    scores = rankings(TOTAL, PER_CHECKPOINT, LABELS, dynamics, probability)
    assert scores["out_of_fold"].tolist() == [0.75, 1 - float(np.float32(1e-9))]
    assert scores["self_confidence"] == pytest.approx([0.25, 0.5])
    assert "out_of_fold" not in rankings(TOTAL, PER_CHECKPOINT, LABELS, dynamics)


def test_forgetting_events_by_hand():
    correct = np.array([[1, 0, 1, 0, 1], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 0, 0]], bool)
    assert forgetting(correct).tolist() == [2, 0, 5, 1]


def test_ranking_is_one_entry(monkeypatch):
    monkeypatch.setitem(RANKINGS, "first", Ranking("", lambda run: run.per_checkpoint.loss[:, 0]))
    scores = rankings(TOTAL, PER_CHECKPOINT, LABELS, None)
    assert scores["first"].tolist() == [1, 4] and list(scores)[-1] == "first"


@pytest.mark.parametrize(("dynamics", "expected"), [(True, "consensus"), (False, "self_confidence")])
def test_choice_suits_the_statistics(dynamics, expected):
    choice = choose_ranking(dynamics)
    assert choice.name == expected and choice.name in RANKINGS and choice.reason
