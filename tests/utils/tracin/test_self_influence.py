import numpy as np
import pytest

from utils.tracin.self_influence import Scores, output_error, self_influence, sum_over_checkpoints


def scores_of(logits, labels, gain=None):
    """The scores where the last layer passes its features on as logits."""
    classes = len(logits[0])
    return self_influence(np.array(logits, np.float32), np.eye(classes), np.zeros(classes),
                          np.array(labels), gain)


def test_scores_by_hand():
    """Two classes with equal logits, then with odds of 3 to 1; the features' squared norm is 25."""
    weight, bias = np.array([[4, 0], [-3, 0]]), np.array([0, 0])
    features, labels = np.array([[3, 4], [3, 4]], np.float32), np.array([[0], [1]])
    result = self_influence(features[:1], weight, bias, labels[:1])
    other = self_influence(features[1:], weight, np.array([np.log(3), 0]), labels[1:])
    result = Scores.concatenate([result, other])
    np.testing.assert_allclose(result.influence, [0.5 * 26, 1.125 * 26], rtol=1e-12)
    np.testing.assert_allclose(result.error_norm, [0.5**0.5, 1.125**0.5], rtol=1e-12)
    np.testing.assert_allclose(result.loss, [np.log(2), np.log(4)], rtol=1e-12)
    np.testing.assert_allclose(result.margin, [0, -np.log(3)], rtol=1e-12)
    np.testing.assert_allclose(result.probability, [[0.5, 0.5], [0.75, 0.25]], rtol=1e-6)
    assert (result.influence.dtype, result.probability.dtype) == (np.float64, np.float32)


def test_gain_is_taken_in_the_direction_of_the_error():
    directions = []

    def gain(direction):
        directions.append(direction)
        return np.array([7, 9])
    result = scores_of([[0, 0], [np.log(3), 0]], [[0], [1]], gain)
    np.testing.assert_allclose(result.influence, [0.5 * 7, 1.125 * 9], rtol=1e-6)
    root = 0.5**0.5
    np.testing.assert_allclose(directions, [[[-root, root], [root, -root]]], rtol=1e-6)


def test_error_of_zero_has_no_direction_and_a_score_of_zero():
    result = scores_of([[4000, 0]], [[0]], lambda direction: np.square(direction).sum(axis=1))
    assert result.influence.tolist() == [0]


def test_margin_is_the_lead_of_the_given_label_over_the_best_other():
    assert scores_of([[5, 2, 3]] * 3, [[0], [1], [2]]).margin.tolist() == [2, -3, -2]


def test_probabilities_are_not_negative():
    """Those of the other labels may add up to a little more than 1."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 20, (1000, 10)), rng.integers(0, 10, (1000, 1))
    error = output_error(logits, labels)
    assert np.take_along_axis(error, labels, axis=1).min() < -1
    probability = scores_of(logits, labels).probability
    assert probability.min() == 0 and probability.max() <= 1
    np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-6)


def test_large_logits_do_not_overflow():
    result = scores_of([[800, -800]], [[1]])
    assert result.loss.tolist() == [1600]
    assert result.influence.tolist() == [2 * (2 * 800**2 + 1)]


def test_error_is_exact_where_softmax_is_all_but_one():
    """exp(-60) is lost beside 1 in float64, and must not be in the difference to 1."""
    error = output_error(np.array([[60, 0]], np.float32), np.array([[0]]))
    np.testing.assert_allclose(error, [[-np.exp(-60), np.exp(-60)]], rtol=1e-12)
    assert scores_of([[60, 0]], [[0]]).error_norm == pytest.approx(2**0.5 * np.exp(-60), rel=1e-12)


def test_half_precision_features_are_scored_in_float64():
    features = np.full((1, 4096), 60, np.float16)  # their squared norm overflows half
    result = self_influence(features, np.zeros((4096, 2)), np.zeros(2), np.array([[0]]))
    assert result.influence.tolist() == [0.5 * (4096 * 3600 + 1)]


def test_slices_are_put_together_in_order():
    parts = [scores_of([[1, 0]], [[0]]), scores_of([[2, 0]], [[0]])]
    assert Scores.concatenate(parts).margin.tolist() == [1, 2]


def test_score_is_the_sum_over_checkpoints():
    assert sum_over_checkpoints([np.array([1, 2]), np.array([10, 20])]).tolist() == [11, 22]
