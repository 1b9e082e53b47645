from dataclasses import replace
from functools import partial

import nnabla as nn
import numpy as np
import pytest

from models.head import LENGTH, set_standardization
from models.registry import build_network
from tests.conftest import make_dataset, refused
from utils.training import cross_validation
from utils.training.cross_validation import draw_folds, predict
from utils.training.engines import ENGINES
from utils.training.learning_rate import learning_rate
from utils.training.trainer import Trainer

SETTINGS = {"epochs": 3, "batch_size": 8, "base_rate": 10.0, "seed": 4}


def make_features(samples=30, size=5):
    """A data set of features that tell the classes apart, though not well."""
    dataset = make_dataset(samples)
    features = np.random.default_rng(1).normal(size=(samples, size)) + dataset.true_labels
    return replace(dataset, features=features.astype(np.float32))


def make_trainer(inputs, engine="onnxruntime", classes=3):
    network = build_network("head", classes, shape=inputs.shape[1:])
    made = ENGINES[engine].make(network, 1, False)
    set_standardization(inputs)
    return Trainer(made, False, SETTINGS["seed"], weight_decay=0.1)


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def by_hand(features, labels, unseen):
    """The probabilities of `unseen` by a head that is trained by the definition, in float64."""
    mean, deviation = features.mean(axis=0, dtype=float), features.std(axis=0, dtype=float)

    def scaled(x):
        x = (x - mean) / deviation
        return LENGTH * x / np.linalg.norm(x, axis=1, keepdims=True)
    x, one_hot = scaled(features), np.eye(3)[labels[:, 0]]
    weight, bias, velocity = np.zeros((5, 3)), np.zeros(3), [0.0, 0.0]
    updates, done = -(-len(x) // 8), 0
    for epoch in range(3):
        order = np.random.default_rng((4, epoch + 1)).permutation(len(x))
        for start in range(0, len(x), 8):
            batch = order[start:start + 8]
            error = (softmax(x[batch] @ weight + bias) - one_hot[batch]) / len(batch)
            gradients = x[batch].T @ error + 0.1 * weight, error.sum(axis=0)
            rate = learning_rate(10.0, 8, done, 3 * updates)
            velocity = [0.9 * old + rate * new for old, new in zip(velocity, gradients, strict=True)]
            weight, bias = weight - velocity[0], bias - velocity[1]
            done += 1
    return softmax(scaled(unseen) @ weight + bias)


class Counted(np.ndarray):
    """An array that notes how many rows are read at once."""

    most = 0

    def __getitem__(self, rows):
        result = np.asarray(self)[rows]
        Counted.most = max(Counted.most, len(result))
        return result


def test_features_of_a_fold_are_not_copied():
    """They may not fit in memory twice."""
    dataset = make_features(3000)
    expected = predict(make_trainer, dataset, **{**SETTINGS, "epochs": 1, "batch_size": 100})
    found = predict(make_trainer, replace(dataset, features=dataset.features.view(Counted)),
                    **{**SETTINGS, "epochs": 1, "batch_size": 100})
    assert np.array_equal(found, expected)
    assert 100 <= Counted.most <= 1024


@pytest.mark.parametrize("counts", [[50, 50], [7, 3, 1, 1, 40], [1, 2], [23]])
def test_folds_share_every_class_evenly(counts):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))[:, None]
    fold = draw_folds(labels, 0)
    shares = np.stack([np.bincount(fold[labels[:, 0] == label], minlength=5)
                       for label in range(len(counts))])
    assert shares.sum(axis=1).tolist() == counts
    assert np.ptp(shares, axis=1).max() <= 1 and np.ptp(shares.sum(axis=0)) <= 1


def test_folds_depend_on_the_seed_alone():
    labels = make_dataset(200).labels
    assert np.array_equal(draw_folds(labels, 1), draw_folds(labels, 1))
    assert (draw_folds(labels, 1) != draw_folds(labels, 2)).sum() > 100


@pytest.mark.parametrize("engine", list(ENGINES))
def test_each_fold_is_predicted_as_the_definition_does(engine):
    dataset = make_features()
    found = predict(partial(make_trainer, engine=engine), dataset, **SETTINGS)
    assert found.shape == (30, 3) and found.dtype == np.float32
    fold = draw_folds(dataset.labels, 4)
    for number in range(5):
        kept, left_out = fold != number, fold == number
        expected = by_hand(dataset.features[kept], dataset.labels[kept], dataset.features[left_out])
        np.testing.assert_allclose(found[left_out], expected, rtol=1e-3, atol=1e-5)
    assert found.std(axis=0).min() > 0.01


def test_it_is_deterministic_and_leaves_no_parameters():
    dataset = make_features()
    trainer = make_trainer(dataset.features)
    before = {name: parameter.d.copy() for name, parameter in nn.get_parameters(grad_only=False).items()}
    first = predict(make_trainer, dataset, **SETTINGS)
    after = nn.get_parameters(grad_only=False)
    assert before.keys() == after.keys()
    assert all(np.array_equal(after[name].d, value) for name, value in before.items())
    trainer.train_epoch(0, dataset.features, dataset.labels, 8, lambda update: 0.1,
                        lambda *numbers: None)
    assert np.array_equal(first, predict(make_trainer, dataset, **SETTINGS))


@pytest.mark.parametrize("poisoned", ["labels", "features"])
def test_nothing_of_a_fold_enters_its_own_probabilities(monkeypatch, poisoned):
    """All labels, or the features of one sample, of a fold are others; the folds are the same."""
    dataset = make_features()
    fold = draw_folds(dataset.labels, 4)
    monkeypatch.setattr(cross_validation, "draw_folds", lambda labels, seed: fold)
    first = predict(make_trainer, dataset, **SETTINGS)
    members = np.flatnonzero(fold == 2)
    changed = getattr(dataset, poisoned).copy()
    if poisoned == "labels":
        changed[members] = (changed[members] + 1) % 3
    else:
        changed[members[0]] *= 100
        members = members[1:]
    second = predict(make_trainer, replace(dataset, **{poisoned: changed}), **SETTINGS)
    assert np.array_equal(first[members], second[members])
    others = fold != 2
    assert (first[others] != second[others]).any(axis=1).all()


@pytest.mark.parametrize("samples", [3, 7])
def test_sets_smaller_than_the_folds_and_a_batch_are_predicted(samples):
    found = predict(make_trainer, make_features(samples), **SETTINGS)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)


def test_diverged_training_is_refused():
    with refused("--learning_rate 1e+38"), np.errstate(all="ignore"):
        predict(make_trainer, make_features(), **{**SETTINGS, "base_rate": 1e38})
