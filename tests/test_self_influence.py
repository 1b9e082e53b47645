import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest

import train
from datasets.arrays import Dataset, Split
from datasets.arrays import save as save_dataset
from datasets.digits import NAMES, load_digits
from models import build_prediction
from utils import checkpoint
from utils.self_influence import LastLayer, last_layer_scores


def gradient_norms(prediction, images, labels):
    """The definition: back-propagate each sample's loss by itself through the graph, float64 (N,)."""
    image, label = nn.Variable((1, 3, 32, 32)), nn.Variable((1, 1))
    logits, _ = prediction(image, test=True)
    loss = F.mean(F.softmax_cross_entropy(logits, label))
    scores = []
    for image.d, label.d in zip(images[:, None], labels[:, None]):
        for parameter in nn.get_parameters().values():
            parameter.grad.zero()
        loss.forward()
        loss.backward()
        scores.append(sum(np.square(parameter.g, dtype=np.float64).sum()
                          for name, parameter in nn.get_parameters().items()
                          if name.startswith("affine/")))
    return np.array(scores)


def random_samples(count=13, classes=10):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (count, 3, 32, 32)).astype(np.uint8)
    return images, rng.integers(0, classes, (count, 1))


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """Folders of ResNet23 and ResNet56 trained for an epoch on real digits."""
    folder = tmp_path_factory.mktemp("digits")
    split, test = load_digits()
    labels = split.labels[:60].copy()
    labels[::10] = (labels[::10] + 1) % 10
    save_dataset(folder / "data", Dataset(split.images[:60], labels, split.labels[:60],
                                          Split(test.images[:20], test.labels[:20]), list(NAMES)))
    for model in ("resnet23", "resnet56"):
        nn.clear_parameters()
        train.main(["--input", str(folder / "data"), "--model", model, "-c", "cpu",
                    "--train_epochs", "1", "--train_batch_size", "5", "--learning_rate", "0.5",
                    "--output", str(folder / model), "--monitor-path", str(folder / model)])
    return folder


@pytest.mark.parametrize("model", ["resnet23", "resnet56"])
@pytest.mark.parametrize("trained", [False, True])
def test_batched_scores_are_those_of_one_sample_at_a_time(model, trained, digits_run):
    prediction = build_prediction(model, 10, rng=np.random.default_rng(0))
    scorer = LastLayer(prediction, 5)
    images, labels = random_samples()
    if trained:
        checkpoint.load_parameters(checkpoint.find(digits_run / model)[0])
        images = np.load(digits_run / model / "x_train.npy")[:13]
        labels = np.load(digits_run / model / "y_shuffle_train.npy")[:13]
    scores = scorer.score(images, labels, lambda count: None).influence
    # Fresh parameters give logits of hundreds, which float32 resolves to 3e-5: a saturated
    # softmax, with scores such as 1e-70, cannot be told more exactly.
    np.testing.assert_allclose(scores, gradient_norms(prediction, images, labels), rtol=1e-6,
                               atol=1e-30)
    assert scores.max() > 0 and len(set(scores.tolist())) == 13


def test_scores_are_exact_where_the_network_is_sure():
    """Where softmax is nearly 1, the error is the difference of almost equal float32 numbers."""
    rng = np.random.default_rng(0)

    def prediction(image, test):
        h = F.reshape(image[:, :1, :4, :4], (image.shape[0], 16)) / 128 - 1
        return PF.affine(h, 10, rng=rng), h
    images, _ = random_samples(200)
    scorer = LastLayer(prediction, 100)
    nn.get_parameters()["affine/W"].d = rng.normal(0, 3, (16, 10))
    first = scorer.score(images, np.zeros((200, 1), int), lambda count: None)
    labels = first.probability.argmax(axis=1)[:, None]
    scores = scorer.score(images, labels, lambda count: None)
    assert (scores.error_norm < 1e-3).sum() > 10
    np.testing.assert_allclose(scores.influence, gradient_norms(prediction, images, labels),
                               rtol=1e-6)


def test_scores_do_not_depend_on_the_batch():
    prediction = build_prediction("resnet23", 10, 4, np.random.default_rng(0))
    images, labels = random_samples()
    counts = []
    results = [LastLayer(prediction, batch).score(images, labels, counts.append)
               for batch in (1, 4, 13)]
    assert counts == [1] * 13 + [4, 4, 4, 1] + [13]
    for name in ("influence", "loss", "margin", "error_norm", "probability"):
        for other in results[1:]:
            np.testing.assert_allclose(getattr(other, name), getattr(results[0], name), rtol=1e-6,
                                       atol=1e-30)
    assert results[0].probability.shape == (13, 10)


def test_scores_by_hand():
    """Two classes with equal logits, then with odds of 3 to 1; h = (3, 4) has the squared norm 25."""
    logits = np.array([[0, 0], [np.log(3), 0]], np.float32)
    probability = np.array([[0.5, 0.5], [0.75, 0.25]], np.float32)
    h = np.array([[3, 4], [0, 0]], np.float32)
    scores = last_layer_scores(logits, probability, h, np.array([[0], [1]]))
    np.testing.assert_allclose(scores.influence, [0.5 * 26, 1.125], rtol=1e-6)
    np.testing.assert_allclose(scores.error_norm, [0.5**0.5, 1.125**0.5], rtol=1e-6)
    np.testing.assert_allclose(scores.loss, [np.log(2), np.log(4)], rtol=1e-6)
    np.testing.assert_allclose(scores.margin, [0, -np.log(3)], rtol=1e-6)
    np.testing.assert_array_equal(scores.probability, [[0.5, 0.5], [0.75, 0.25]])


def test_margin_is_the_lead_of_the_given_label_over_the_best_other():
    logits = np.array([[5, 2, 3]] * 3, np.float32)
    scores = last_layer_scores(logits, np.full((3, 3), 1 / 3, np.float32),
                               np.zeros((3, 1), np.float32), np.array([[0], [1], [2]]))
    assert scores.margin.tolist() == [2, -3, -2]


def test_large_logits_do_not_overflow():
    logits = np.array([[800, -800]], np.float32)
    scores = last_layer_scores(logits, np.array([[1, 0]], np.float32), np.ones((1, 1), np.float32),
                               np.array([[1]]))
    assert scores.loss.tolist() == [1600] and scores.influence.tolist() == [4]


def test_labels_and_not_predictions_decide_the_score(digits_run):
    images, labels = random_samples()
    scorer = LastLayer(build_prediction("resnet23", 10), 13)
    checkpoint.load_parameters(checkpoint.find(digits_run / "resnet23")[0])
    first = scorer.score(images, labels, lambda count: None)
    labels[7] = (labels[7] + 1) % 10
    second = scorer.score(images, labels, lambda count: None)
    changed = np.flatnonzero(first.influence != second.influence)
    assert changed.tolist() == [7]
    assert np.array_equal(first.probability, second.probability)
