import numpy as np

from tests.conftest import make_dataset
from utils.review.suspects import count_top_classes


def test_top_tenth_is_counted_by_class():
    dataset = make_dataset()
    influence = np.zeros(30)
    influence[[0, 1, 2]] = 1  # sample 0 is mislabelled
    counts = count_top_classes(dataset, influence)
    wrong, correct = counts.values()
    true = dataset.true_labels[:, 0]
    assert wrong.tolist() == np.bincount(true[:1], minlength=3).tolist()
    assert correct.tolist() == np.bincount(true[1:3], minlength=3).tolist()
