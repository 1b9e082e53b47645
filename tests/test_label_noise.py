import numpy as np
import pytest

from datasets.label_noise import shuffle_labels


def noisy(rate, seed=0, sizes=(100, 37, 5)):
    labels = np.repeat(np.arange(len(sizes)), sizes)[:, None]
    return labels, shuffle_labels(labels, rate, len(sizes), np.random.default_rng(seed))


@pytest.mark.parametrize(("rate", "counts"), [(0.1, [10, 4, 0]), (0.5, [50, 18, 2]),
                                              (1.0, [100, 37, 5]), (0.0, [0, 0, 0])])
def test_every_class_gets_its_share_of_wrong_labels(rate, counts):
    labels, result = noisy(rate)
    wrong = labels[:, 0][(labels != result)[:, 0]]
    assert np.bincount(wrong, minlength=3).tolist() == counts
    assert result.shape == labels.shape
    assert result.dtype == labels.dtype


def test_wrong_labels_are_spread_evenly_over_the_other_classes():
    labels = np.zeros((1000, 1), np.int64)
    result = shuffle_labels(labels, 0.9, 10, np.random.default_rng(0))
    assert np.bincount(result[:, 0]).tolist() == [100] * 10


def test_positions_and_labels_are_random_not_in_order():
    labels, result = noisy(0.2)
    positions = np.flatnonzero((labels != result)[:100, 0])
    assert positions.min() < 30 and positions.max() > 70
    given = result[positions, 0]
    assert len(set(given[:len(given) // 2].tolist())) == 2


def test_seed_decides_the_noise():
    assert np.array_equal(noisy(0.3, seed=1)[1], noisy(0.3, seed=1)[1])
    assert not np.array_equal(noisy(0.3, seed=1)[1], noisy(0.3, seed=2)[1])


def test_input_stays_as_it_is():
    labels = np.zeros((10, 1), np.int64)
    shuffle_labels(labels, 0.5, 3, np.random.default_rng(0))
    assert not labels.any()
