import numpy as np

from utils.tracin.self_influence import Scores, make_scores, output_error


def test_scores_by_hand():
    """Two classes with equal logits, then with odds of 3 to 1; h = (3, 4) has the squared norm 25."""
    logits = np.array([[0, 0], [np.log(3), 0]], np.float32)
    labels = np.array([[0], [1]])
    error = output_error(logits, labels)
    np.testing.assert_allclose(error, [[-0.5, 0.5], [0.75, -0.75]], rtol=1e-6)
    result = make_scores(logits, labels, error, np.array([26, 1]))
    np.testing.assert_allclose(result.influence, [0.5 * 26, 1.125], rtol=1e-6)
    np.testing.assert_allclose(result.error_norm, [0.5**0.5, 1.125**0.5], rtol=1e-6)
    np.testing.assert_allclose(result.loss, [np.log(2), np.log(4)], rtol=1e-6)
    np.testing.assert_allclose(result.margin, [0, -np.log(3)], rtol=1e-6)
    np.testing.assert_allclose(result.probability, [[0.5, 0.5], [0.75, 0.25]], rtol=1e-6)
    assert result.probability.dtype == np.float32


def test_margin_is_the_lead_of_the_given_label_over_the_best_other():
    logits, labels = np.array([[5, 2, 3]] * 3, np.float32), np.array([[0], [1], [2]])
    result = make_scores(logits, labels, output_error(logits, labels), np.ones(3))
    assert result.margin.tolist() == [2, -3, -2]


def test_large_logits_do_not_overflow():
    logits, labels = np.array([[800, -800]], np.float32), np.array([[1]])
    result = make_scores(logits, labels, output_error(logits, labels), np.array([2]))
    assert result.loss.tolist() == [1600] and result.influence.tolist() == [4]


def test_error_is_exact_where_softmax_is_all_but_one():
    """exp(-60) is lost beside 1 in float64, and must not be in the difference to 1."""
    error = output_error(np.array([[60, 0]], np.float32), np.array([[0]]))
    np.testing.assert_allclose(error, [[-np.exp(-60), np.exp(-60)]], rtol=1e-12)


def test_slices_are_put_together_in_order():
    parts = [make_scores(logits, np.array([[0]]), np.array([[0, 0]]), np.array([1]))
             for logits in (np.array([[1, 0]]), np.array([[2, 0]]))]
    assert Scores.concatenate(parts).margin.tolist() == [1, 2]
