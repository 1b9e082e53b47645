import numpy as np
import pytest

from utils.review.detection import (
    bootstrap_intervals,
    detection_metrics,
    rank,
    recall_at,
    recall_curve,
)

# Ten samples, the second, fifth and eighth of them mislabelled.
SCORE = np.array([0.1, 0.9, 0.2, 0.3, 0.8, 0.4, 0.85, 0.5, 0.0, 0.6])
MISLABELLED = np.isin(np.arange(10), [1, 4, 7])


def test_ranking_is_by_falling_score_and_ties_keep_their_order():
    assert rank(SCORE).tolist() == [1, 6, 4, 9, 7, 5, 3, 2, 0, 8]
    assert rank(np.array([1.0, 2.0, 1.0, 2.0])).tolist() == [1, 3, 0, 2]


def test_recall_by_hand():
    third = 1 / 3
    assert recall_curve(SCORE, MISLABELLED) == pytest.approx(
        [0, third, third, 2 * third, 2 * third, 1, 1, 1, 1, 1, 1])
    assert [recall_at(SCORE, MISLABELLED, percentage) for percentage in (10, 20, 30, 100)] == \
        pytest.approx([third, third, 2 * third, 1])


def test_number_checked_is_rounded_down():
    score, mislabelled = np.arange(19.0), np.arange(19) == 17
    assert recall_at(score, mislabelled, 10) == 0  # 1.9 samples: the 18 alone
    assert recall_at(score, mislabelled, 11) == 1


def test_metrics_by_hand():
    metrics = detection_metrics(SCORE, MISLABELLED)
    assert list(metrics) == ["recall_at_10", "recall_at_20", "recall_at_30", "recall_at_mislabelled",
                             "auroc", "average_precision"]
    # Of 21 pairs, three are in the wrong order: sample 6 before 4, samples 6 and 9 before 7.
    assert metrics["recall_at_mislabelled"] == pytest.approx(2 / 3)
    assert metrics["auroc"] == pytest.approx(18 / 21)
    assert metrics["average_precision"] == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)


def test_perfect_and_reversed_rankings():
    perfect = detection_metrics(MISLABELLED.astype(float), MISLABELLED)
    assert perfect["auroc"] == perfect["recall_at_30"] == perfect["average_precision"] == 1
    assert detection_metrics(-MISLABELLED.astype(float), MISLABELLED)["auroc"] == 0


def make_ranking(kind):
    """Scores and which samples are mislabelled; all but `few` have more samples than there are bins."""
    rng = np.random.default_rng(1)
    count, share = {"few": (60, 0.3), "tied": (2000, 0.3), "rare": (2000, 0.005)}.get(kind, (2000, 0.2))
    mislabelled = rng.random(count) < share
    score = rng.normal(size=count) + 1.5 * mislabelled
    if kind == "first":  # all in one bin, if mislabelled ones had none of their own
        mislabelled = np.isin(np.argsort(-score), [0, 1, 3, 5, 7, 8])
    return np.round(2 * score) if kind == "tied" else score, mislabelled


@pytest.mark.parametrize("kind", ["few", "many", "tied", "rare", "first"])
def test_intervals_are_those_of_resampling_one_by_one(kind):
    score, mislabelled = make_ranking(kind)
    rng, values = np.random.default_rng(2), []
    for _ in range(500):
        drawn = np.sort(rng.integers(len(score), size=len(score)))
        if mislabelled[drawn].any():
            values.append(list(detection_metrics(score[drawn], mislabelled[drawn]).values()))
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    found = np.array(list(bootstrap_intervals(score, mislabelled).values())).T
    # An end is uncertain by about 4 % of the width, and may move by one sample that is found.
    steps = np.array([1, 1, 1, 1, 0, 0]) / mislabelled.sum()
    assert (np.abs(found - [low, high]) <= 0.12 * (high - low) + steps).all()


@pytest.mark.filterwarnings("error")
def test_resamples_without_a_mislabelled_sample_do_not_matter():
    mislabelled = np.arange(50) == 7
    ends = bootstrap_intervals(np.arange(50.0), mislabelled, 100)
    assert all(0 <= low <= high <= 1 for low, high in ends.values())


def test_intervals_hold_the_metrics_and_narrow_with_the_number_of_samples():
    rng = np.random.default_rng(0)
    widths = []
    for count in (100, 1600):
        mislabelled = np.arange(count) % 10 == 0
        score = rng.normal(size=count) + 1.5 * mislabelled
        metrics = detection_metrics(score, mislabelled)
        intervals = bootstrap_intervals(score, mislabelled, 200)
        assert list(intervals) == list(metrics)
        assert all(low <= metrics[name] <= high for name, (low, high) in intervals.items())
        widths.append(intervals["auroc"][1] - intervals["auroc"][0])
    assert 2 < widths[0] / widths[1] < 8  # four: the square root of sixteen
