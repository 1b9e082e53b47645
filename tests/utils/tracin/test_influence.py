"""Influence between samples, against the products of gradients of one sample each."""
import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest

from models.head import set_standardization
from models.registry import build_network
from utils.tracin.engines import NnablaEngine, OnnxRuntimeEngine
from utils.tracin.influence import Gradients, Influence, Pairs
from utils.training.checkpoint import find_checkpoints, load_parameters

ENGINES = {"nnabla": NnablaEngine, "onnxruntime": OnnxRuntimeEngine}


def plain_gradients(network, inputs, labels):
    """The definition: the gradient of each sample's loss by the last layer, float64 (N, P).

    It is float32, so the gradients of samples that the network is sure of have few digits.
    """
    image, label = network.input(1), nn.Variable((1, 1))
    logits, _ = network(image, test=True)
    loss = F.mean(F.softmax_cross_entropy(logits, label))
    result = []
    for image.d, label.d in zip(inputs[:, None], labels[:, None], strict=True):
        for parameter in nn.get_parameters().values():
            parameter.grad.zero()
        loss.forward()
        loss.backward()
        result.append(np.concatenate([nn.get_parameters()[name].g.ravel().astype(np.float64)
                                      for name in ("affine/W", "affine/b")]))
    return np.array(result)


def draw(shape, classes, count=40):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, classes, (count, 1))
    if len(shape) == 1:
        return rng.gamma(2, 3, (count, *shape)).astype(np.float32), labels
    return rng.integers(0, 256, (count, *shape)).astype(np.uint8), labels


@pytest.fixture(params=["resnet23", "resnet56", "head"])
def two_checkpoints(request, digits_run):
    """A network, 40 samples, and two functions that set its parameters."""
    name = request.param
    network = build_network(name, 10, rng=np.random.default_rng(0), shape=(6,) if name == "head" else
                            (3, 32, 32))
    network(network.input(1), test=True)
    inputs, labels = draw(network.shape, 10)
    if name != "head":
        inputs = np.concatenate([np.load(digits_run / name / "x_train.npy"), inputs[:10]])
        fresh = {key: variable.d.copy() for key, variable in nn.get_parameters(grad_only=False).items()}
        trained = find_checkpoints(digits_run / name)[0]

        def restore():
            for key, value in fresh.items():
                nn.get_parameters(grad_only=False)[key].d = value
        return network, inputs, labels, [restore, lambda: load_parameters(trained)]
    set_standardization(inputs)

    def draw_weights(seed):
        rng = np.random.default_rng(seed)
        for parameter in nn.get_parameters().values():
            parameter.d = rng.normal(size=parameter.shape)
    return network, inputs, labels, [lambda: draw_weights(0), lambda: draw_weights(1)]


@pytest.mark.parametrize("engine", ENGINES)
def test_influence_is_the_product_of_gradients_of_one_sample_each(two_checkpoints, engine):
    network, inputs, labels, checkpoints = two_checkpoints
    engine = ENGINES[engine](network, 7, "last", 2)
    influence, expected, squared = Influence(11, 29), np.zeros((11, 29)), np.zeros(40)
    doubtful = np.zeros(40, bool)
    for load in checkpoints:
        load()
        engine.load_parameters()
        gradients = engine.gradients(inputs, labels)
        influence.add(gradients.take(slice(0, 11)), gradients.take(slice(11, 40)))
        plain = plain_gradients(network, inputs, labels)
        expected += plain[:11] @ plain[11:].T
        squared += np.square(plain).sum(axis=1)
        doubtful |= np.linalg.norm(gradients.error, axis=1) > 0.01
    pairs = doubtful[:11, None] & doubtful[11:]
    norms = np.sqrt(squared[:11, None] * squared[11:])
    # What is near 0 is a difference of products that are not.
    np.testing.assert_array_less(np.abs(influence.total - expected)[pairs],
                                 (1e-5 * np.abs(expected) + 2e-6 * norms)[pairs])
    assert (pairs & (np.abs(expected) > 0.05 * norms)).mean() > 0.2
    np.testing.assert_allclose(influence.cosine[pairs], (expected / norms)[pairs], rtol=1e-5, atol=2e-6)
    assert (expected > 0).any() and (expected < 0).any()


@pytest.mark.parametrize("size", [(64, 10), (128, 3), (128, 10)])
def test_gradients_of_slices_are_those_of_the_whole_bit_by_bit(size):
    """BLAS rounds products of many rows and of few differently."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4096, size[0])).astype(np.float32)
    weight, bias, labels = rng.normal(size=size), np.zeros(size[1]), np.zeros((4096, 1), int)
    whole = Gradients.of(features, weight, bias, labels)
    for start in range(0, 4096, 512):
        piece = slice(start, start + 512)
        part = Gradients.of(features[piece], weight, bias, labels[piece])
        np.testing.assert_array_equal(part.error, whole.error[piece])


def test_influence_by_hand():
    """Two checkpoints; the features of the others change between them, or do not."""
    def gradients(features, error):
        return Gradients(np.array(features, np.float32), np.array(error, float))
    explained = gradients([[1, 2]], [[0.5, -0.5]])
    for second, total in (([[3, 1]], 6 * 0.5 + 6 * -0.5), ([[0, 2]], 6 * 0.5 + 5 * -0.5)):
        influence = Influence(1, 1)
        influence.add(explained, gradients([[3, 1]], [[0.2, -0.8]]))
        influence.add(explained, gradients(second, [[-0.5, 0.5]]))
        assert influence.total.item() == pytest.approx(total)
        own = 0.5 * 6 * 2
        other = 0.68 * 11 + 0.5 * (np.square(second).sum() + 1)
        assert influence.cosine.item() == pytest.approx(total / np.sqrt(own * other))


def test_features_may_change_on_either_side():
    """As those of test samples could, whose training samples are the same at both checkpoints."""
    def gradients(features):
        return Gradients(np.array([features], np.float32), np.array([[1.0, -1.0]]))
    fixed, influence = gradients([1, 2]), Influence(1, 1)
    for changing in ([3, 1], [0, 5]):
        influence.add(gradients(changing), fixed)
    assert influence.total.item() == pytest.approx(2 * (5 + 1) + 2 * (10 + 1))


def test_sample_without_gradient_has_no_cosine():
    influence = Influence(1, 1)
    influence.add(Gradients(np.ones((1, 2), np.float32), np.array([[0.5, -0.5]])),
                  Gradients(np.ones((1, 2), np.float32), np.zeros((1, 2))))
    assert influence.cosine.tolist() == [[0]]


COSINE = np.array([[0.1, np.nan, -0.3, 0.4, 0.4, 0, -0.3, 0.2],
                   [-0.1, -0.2, np.nan, -0.4, -0.5, 0, -0.6, -0.7]])


@pytest.mark.parametrize(("sign", "expected"), [(1, [[13, 14, 17], [-1, -1, -1]]),
                                                (-1, [[12, 16, -1], [17, 16, 14]])])
def test_strongest_by_hand(sign, expected):
    """Of equal cosines the lower index is first; zeros and NaN are neither."""
    indices = np.broadcast_to(np.arange(10, 18), COSINE.shape)
    found = Pairs.of(indices, 100 * COSINE, COSINE, sign, 3)
    assert found.indices.tolist() == expected
    for row, column in np.ndindex(2, 3):
        index = expected[row][column]
        cosine = np.nan if index < 0 else COSINE[row, index - 10]
        np.testing.assert_equal([found.influence[row, column], found.cosine[row, column]],
                                [100 * cosine, cosine])


@pytest.mark.parametrize("sign", [1, -1])
def test_strongest_of_parts_are_those_of_the_whole_in_any_order(sign):
    rng = np.random.default_rng(0)
    cosine = rng.integers(-9, 10, (5, 60)) / 10  # with many ties
    indices = np.broadcast_to(np.arange(60), cosine.shape)
    whole = Pairs.of(indices, cosine, cosine, sign, 8)
    cuts = [slice(0, 3), slice(3, 40), slice(40, 60)]
    for order in ([0, 1, 2], [2, 0, 1]):
        parts = [Pairs.of(indices[:, cuts[place]], cosine[:, cuts[place]], cosine[:, cuts[place]],
                          sign, 8) for place in order]
        merged = Pairs.merge(parts, sign)
        for name in ("indices", "influence", "cosine"):
            np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))
