import numpy as np
import pytest
from scipy.optimize import minimize

from utils.review import estimate as module
from utils.review.estimate import PRIOR, Estimate, count_wrong_labels, estimate, lacks


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def simulate(samples, transition, beta=1.0, seed=0):
    """Probabilities of a network that is right about its doubts at temperature 1 / beta, and labels."""
    rng = np.random.default_rng(seed)
    classes = len(transition)
    logits = 2.5 * rng.normal(size=(samples, classes))
    draw = [rng.choice(classes, p=row) for row in softmax(beta * logits)]
    labels = np.array([rng.choice(classes, p=transition[true]) for true in draw])
    return softmax(logits), labels[:, None], int((labels != draw).sum())


def uniform(rate, classes=5):
    return (1 - rate) * np.eye(classes) + rate / (classes - 1) * (1 - np.eye(classes))


@pytest.mark.parametrize("beta", [0.7, 1, 1.8])
@pytest.mark.parametrize("transition", [
    uniform(0.1), uniform(0.3), 0.9 * np.eye(5) + 0.1 * np.roll(np.eye(5), 1, axis=1)],
    ids=["uniform 10 %", "uniform 30 %", "next class 10 %"])
def test_number_of_wrong_labels_is_found(transition, beta):
    probability, labels, wrong = simulate(6000, transition, beta)
    assert count_wrong_labels(probability, labels) == pytest.approx(wrong, rel=0.15)


def test_right_labels_of_a_doubtful_network_are_not_counted():
    probability, labels, _ = simulate(6000, np.eye(5))
    assert (probability.argmax(axis=1) != labels[:, 0]).mean() > 0.25
    assert count_wrong_labels(probability, labels) < 0.01 * 6000


def test_fit_is_the_most_likely_one():
    """Against a general optimizer of the same posterior density."""
    probability, labels, _ = simulate(400, uniform(0.2, 3), seed=3)
    logs, given = np.log(probability), labels[:, 0]

    def joint(values):
        transition = softmax(values[1:].reshape(3, 3))
        return softmax(np.exp(values[0]) * logs), transition

    def loss(values):
        prior, transition = joint(values)
        chance = (prior * transition.T[given]).sum(axis=1)
        return -np.log(chance).sum() - PRIOR * np.log(np.diag(transition)).sum()

    best = minimize(loss, np.r_[0, (2 * np.eye(3)).ravel()], method="BFGS", options={"gtol": 1e-3})
    prior, transition = joint(best.x)
    posterior = prior * transition.T[given]
    posterior /= posterior.sum(axis=1, keepdims=True)
    expected = 400 - posterior[np.arange(400), given].sum()
    assert count_wrong_labels(probability, labels) == pytest.approx(expected, rel=0.01)


def test_large_sets_are_sampled(monkeypatch):
    probability, labels, _ = simulate(6000, uniform(0.2))
    whole = count_wrong_labels(probability, labels)
    order = np.argsort(labels[:, 0], kind="stable")  # as class folders are read
    monkeypatch.setattr(module, "LARGEST", 3000 * 5)
    sampled = count_wrong_labels(probability[order], labels[order])
    assert sampled != whole and sampled == pytest.approx(whole, rel=0.15)


def test_sample_of_a_large_set_has_all_classes_whatever_their_order(monkeypatch):
    """Every second sample of four classes in turn is of two of them; the wrong labels are not."""
    likeliest = np.resize(np.arange(4), 4000)
    labels = np.where(np.arange(4000) % 20 == 1, 0, likeliest)[:, None]  # 200 of class 1
    probability = 0.96 * np.eye(4)[likeliest] + 0.01
    monkeypatch.setattr(module, "LARGEST", 2000 * 4)
    assert count_wrong_labels(probability, labels) == pytest.approx(200, rel=0.1)


@pytest.mark.filterwarnings("error")
def test_certain_probabilities_and_missing_classes():
    labels = np.resize([0, 2], 300)[:, None]  # nobody is labelled 1 or 3
    probability = np.eye(4, dtype=np.float32)[labels[:, 0]]
    assert count_wrong_labels(probability, labels) == pytest.approx(0, abs=0.01)
    probability[:30] = np.eye(4)[1]
    assert count_wrong_labels(probability, labels) == pytest.approx(30, rel=0.1)
    assert count_wrong_labels(np.ones((20, 1)), np.zeros((20, 1), int)) == 0


def make(wrong, samples=900, classes=3):
    """Sure probabilities and labels, of which the first `wrong` are."""
    labels = np.resize(np.arange(classes), samples)[:, None]
    likeliest = labels[:, 0].copy()
    likeliest[:wrong] = (likeliest[:wrong] + 1) % classes
    return 0.97 * np.eye(classes, dtype=np.float32)[likeliest] + 0.03 / classes, labels


@pytest.mark.parametrize(("wrong", "least", "most"), [
    (90, pytest.approx(56, abs=6), pytest.approx(144, abs=12)), (18, 0, pytest.approx(29, abs=4)),
    (0, 0, 9)])
def test_estimate_is_a_number_and_a_range(wrong, least, most):
    found = estimate(*make(wrong))
    assert found == Estimate(pytest.approx(wrong, rel=0.1, abs=1), least, most)
    assert str(found.likely) in str(found) and str(found.most) in str(found)


def test_nothing_is_estimated_by_networks_that_were_trained_on_the_samples():
    labels = make(90)[1]
    assert estimate(None, labels) is None and "--backbone" in lacks(None, labels)


@pytest.mark.parametrize(("enough", "too_little", "facts"), [
    (make(360), make(361), ("agreement", "60%", "59.9%")),
    (make(90), make(90, samples=299), ("100 images per class", "99.7")),
    (make(90, 2000, 20), make(90, 2100, 21), ("20 classes", "21"))],
    ids=["agreement", "images per class", "classes"])
def test_nothing_is_estimated_from_too_little(enough, too_little, facts):
    assert estimate(*enough) and lacks(*enough) == ""
    assert estimate(*too_little) is None
    assert all(fact in lacks(*too_little) for fact in facts)


@pytest.mark.parametrize("classes", [2, 5])
def test_nothing_is_estimated_by_networks_that_know_only_that_one_class_is_large(classes):
    labels = np.where(np.arange(3000) % 5, 0, np.arange(3000) // 5 % classes)[:, None]
    shares = np.bincount(labels[:, 0], minlength=classes) / 3000
    probability = np.tile(shares, (3000, 1))
    assert (probability.argmax(axis=1) == labels[:, 0]).mean() >= 0.8
    assert estimate(probability, labels) is None


def test_estimate_is_at_most_the_number_of_samples(monkeypatch):
    monkeypatch.setattr(module, "ENOUGH_AGREEMENT", 0)
    assert estimate(*make(800)).most <= 900
