import numpy as np

from tests.conftest import make_dataset
from utils.review.suspects import count_label_issues, count_top_classes


def test_label_issues_by_hand():
    """Thresholds 0.6 and 0.7, and none for a class without samples."""
    probability = np.array([[0.9, 0.1, 0], [0.2, 0.75, 0.05], [0.7, 0.3, 0],
                            [0.3, 0.7, 0], [0.4, 0.65, 0], [0.25, 0.75, 0], [0.65, 0.7, 0]])
    labels = np.array([0, 0, 0, 1, 1, 1, 1])[:, None]
    # The second is of class 1; the fifth reaches neither threshold; the last is right after all.
    assert count_label_issues(probability, labels) == 1
    probability[6] = [0.75, 0.7, 0]
    assert count_label_issues(probability, labels) == 2
    # The last reaches the threshold of the other class alone, but its own is likelier all the same.
    probability = np.array([[0.95, 0.05], [0.95, 0.05], [0.55, 0.45], [0.7, 0.3], [0.6, 0.4]])
    assert count_label_issues(probability, np.array([0, 0, 0, 1, 1])[:, None]) == 0
    # The likeliest class of the first has no samples, so no threshold to reach.
    probability = np.array([[0.1, 0.2, 0.7], [0.6, 0.4, 0], [0.3, 0.7, 0]])
    assert count_label_issues(probability, np.array([0, 0, 1])[:, None]) == 0
    # The last two reach the threshold of class 0, which is 0.5, and no more.
    probability = np.array([[1, 0], [0, 1], [0.5, 0.5], [0.5, 0.5]])
    assert count_label_issues(probability, np.array([0, 0, 1, 1])[:, None]) == 3


def test_label_issues_are_those_of_the_confident_joint():
    """Against the definition, sample by sample."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        probability = rng.dirichlet(np.ones(5), 40)
        labels = rng.integers(0, 4, (40, 1))  # class 4 has no samples
        given = labels[:, 0]
        threshold = {label: probability[given == label, label].mean() for label in set(given.tolist())}
        expected = 0
        for row, label in zip(probability, given, strict=True):
            reached = [other for other, least in threshold.items() if row[other] >= least]
            counted = max(reached, key=lambda other: row[other]) if reached else label
            expected += counted != label and row.argmax() != label
        assert count_label_issues(probability, labels) == expected


def test_top_tenth_is_counted_by_class():
    dataset = make_dataset()
    influence = np.zeros(30)
    influence[[0, 1, 2]] = 1  # sample 0 is mislabelled
    counts = count_top_classes(dataset, influence)
    wrong, correct = counts.values()
    true = dataset.true_labels[:, 0]
    assert wrong.tolist() == np.bincount(true[:1], minlength=3).tolist()
    assert correct.tolist() == np.bincount(true[1:3], minlength=3).tolist()
