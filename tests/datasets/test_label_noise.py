import numpy as np
import pytest

from datasets.cifar import CIFAR10, CIFAR10_CONFUSABLE
from datasets.label_noise import asymmetric_labels, hardest_labels, shuffle_labels


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


def test_asymmetric_noise_gives_confusable_labels_only():
    labels = np.repeat([0, 1, 2], [100, 37, 50])[:, None]
    result = asymmetric_labels(labels, 0.2, {2: 0, 0: 1}, np.random.default_rng(0))
    changed = (labels != result)[:, 0]
    pairs, counts = np.unique(labels[changed, 0] * 10 + result[changed, 0], return_counts=True)
    assert dict(zip(pairs.tolist(), counts.tolist(), strict=True)) == {1: 20, 20: 10}
    positions = np.flatnonzero(changed[:100])
    assert positions.min() < 30 and positions.max() > 70


def test_hardest_noise_gives_the_likeliest_wrong_label():
    rng = np.random.default_rng(0)
    labels, probability = rng.integers(0, 4, (400, 1)), rng.random((400, 4))
    result = hardest_labels(labels, 0.25, probability, np.random.default_rng(1))
    changed = np.flatnonzero((labels != result)[:, 0])
    assert len(changed) == sum(round(0.25 * count) for count in np.bincount(labels[:, 0]))
    for index in changed:
        wrong = [label for label in range(4) if label != labels[index, 0]]
        assert result[index, 0] == max(wrong, key=lambda label: probability[index, label])
    other = hardest_labels(labels, 0.25, probability, np.random.default_rng(2))
    assert not np.array_equal(result, other)


def test_usual_map_of_cifar10():
    names = {CIFAR10.names[given]: CIFAR10.names[taken]
             for given, taken in CIFAR10_CONFUSABLE.items()}
    assert names == {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog",
                     "dog": "cat"}
