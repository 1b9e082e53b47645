import numpy as np
from sklearn.datasets import load_digits as original

from datasets.digits import load_digits


def test_all_1797_digits_are_there_once_enlarged_to_rgb():
    train, test = load_digits()
    assert train.images.shape == (1437, 3, 32, 32) and test.images.shape == (360, 3, 32, 32)
    assert train.images.dtype == np.uint8 and train.images.min() == 0 and train.images.max() == 255
    assert np.array_equal(train.images[:, 0], train.images[:, 2])
    labels = np.concatenate([train.labels, test.labels])
    assert np.bincount(labels[:, 0]).tolist() == np.bincount(original().target).tolist()
    # Reduced again, every image is closest to an original one of its own label.
    small = np.concatenate([train.images, test.images])[:, 0].reshape(-1, 8, 4, 8, 4).mean((2, 4))
    distances = np.abs(small[:200, None] - original().images * (255 / 16)).mean((2, 3))
    assert distances.min(axis=1).max() < 20
    assert np.array_equal(original().target[distances.argmin(axis=1)], labels[:200, 0])


def test_division_is_stratified_and_always_the_same():
    train, test = load_digits()
    shares = np.bincount(test.labels[:, 0]) / np.bincount(train.labels[:, 0])
    assert shares.min() > 0.24 and shares.max() < 0.26
    assert np.array_equal(load_digits()[1].images, test.images)
