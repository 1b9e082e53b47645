import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest

from models.head import LENGTH, set_standardization
from models.registry import MODELS, Network, build_network
from tests.conftest import refused
from utils.graph.functions import Unsupported
from utils.graph.onnx_forward import INPUT, to_onnx
from utils.graph.onnx_gradient import BatchGradients
from utils.graph.onnx_nodes import make_session
from utils.tracin.engines import NnablaEngine, OnnxRuntimeEngine


def build(features, classes=3):
    """The head for some features, its logits and what enters ``affine``."""
    network = build_network("head", classes, shape=features.shape[1:])
    x = network.input(len(features))
    x.d = features
    logits, h = network(x)
    set_standardization(features)
    F.sink(logits, h).forward()
    return network, logits.d, h.d


def make_features(count=40, size=6):
    return np.random.default_rng(0).gamma(2, 3, (count, size)).astype(np.float32)


def draw_weights():
    rng = np.random.default_rng(1)
    for parameter in nn.get_parameters().values():
        parameter.d = rng.normal(size=parameter.shape)


def test_features_are_standardized_and_scaled_to_one_length_by_hand():
    """Means 3 and 5, deviations 2 and 0; the third sample is the mean of all."""
    features = np.array([[1, 5], [5, 5], [3, 5], [1, 5], [5, 5]], np.float32)
    _, _, h = build(features)
    parameters = nn.get_parameters(grad_only=False)
    assert parameters["standardize/mean"].d.tolist() == [[3, 5]]
    assert parameters["standardize/deviation"].d == pytest.approx(np.array([[np.sqrt(16 / 5), 1]]))
    np.testing.assert_allclose(h[[0, 1, 3, 4]], LENGTH * np.array([[-1, 0], [1, 0], [-1, 0], [1, 0]]),
                               atol=1e-9)
    np.testing.assert_allclose(h[2], LENGTH * np.sqrt([0.5, 0.5]), rtol=1e-6)


def test_only_the_last_layer_is_trained_and_starts_at_zero():
    _, logits, h = build(make_features())
    assert list(nn.get_parameters()) == ["affine/W", "affine/b"]
    assert list(nn.get_parameters(grad_only=False)) == [
        "standardize/mean", "standardize/deviation", "length/W", "affine/W", "affine/b"]
    assert not logits.any()
    np.testing.assert_allclose(np.linalg.norm(h, axis=1), LENGTH, rtol=1e-6)


def test_statistics_of_large_and_distant_features_are_those_of_float64(tmp_path):
    """3,000 rows, which are read in pieces; their mean is a million times their deviation."""
    rng = np.random.default_rng(0)
    features = rng.normal([1e3, 0, 0.1], [1e-3, 1, 0], (3000, 3)).astype(np.float32)
    np.save(tmp_path / "features.npy", features)
    build(np.load(tmp_path / "features.npy", mmap_mode="r"))
    found = nn.get_parameters(grad_only=False)
    exact = features.astype(np.float64)
    np.testing.assert_allclose(found["standardize/mean"].d[0], exact.mean(axis=0), rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(found["standardize/deviation"].d[0, :2], exact.std(axis=0)[:2], rtol=1e-6)
    assert found["standardize/deviation"].d[0, 2] == 1  # 0.1 everywhere, not the rounding of its mean


def test_statistics_are_finite_where_sums_of_float32_would_not_be():
    features = np.full((4, 2), 1e38, np.float32)
    features[0] = -1e38
    _, logits, h = build(features)
    assert np.isfinite(logits).all() and np.isfinite(h).all()


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("make", [NnablaEngine, OnnxRuntimeEngine])
def test_scores_by_all_layers_are_those_by_the_last(make, layers):
    """Nothing else is trained: the squared error times 17."""
    features = make_features()
    network, _, _ = build(features)
    draw_weights()
    engine = make(network, 16, layers)
    engine.load_parameters()
    scores = engine.score(features, np.arange(40)[:, None] % 3)
    np.testing.assert_allclose(scores.influence, scores.error_norm**2 * (LENGTH**2 + 1), rtol=1e-5)


def test_translated_head_gives_the_same_logits():
    features = make_features()
    network, _, _ = build(features)
    draw_weights()
    x = network.input(40)
    x.d = features
    logits, _ = network(x, test=True)
    logits.forward()
    one = network.input(1)
    session = make_session(to_onnx(one, network(one, test=True)[0]), threads=1)
    np.testing.assert_allclose(session.run(None, {INPUT: features})[0], logits.d, rtol=1e-5, atol=1e-5)


def test_gradients_of_a_batch_are_those_of_nnabla():
    features = make_features()
    network, _, _ = build(features)
    draw_weights()
    labels = np.arange(40)[:, None] % 3
    found, loss = BatchGradients(network, 1)(features, labels)
    ours = {name: parameter.g.copy() for name, parameter in nn.get_parameters().items()}
    x, label = network.input(40), nn.Variable((40, 1))
    x.d, label.d = features, labels
    logits, _ = network(x)
    total = F.mean(F.softmax_cross_entropy(logits, label))
    for parameter in nn.get_parameters().values():
        parameter.grad.zero()
    total.forward()
    total.backward()
    np.testing.assert_allclose(found, logits.d, rtol=1e-5, atol=1e-5)
    assert loss == pytest.approx(float(total.d), rel=1e-5)
    for name, parameter in nn.get_parameters().items():
        np.testing.assert_allclose(ours[name], parameter.g, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("purpose", [
    lambda network: BatchGradients(network, 1), lambda network: OnnxRuntimeEngine(network, 4, "all"),
    lambda network: NnablaEngine(network, 4, "all")])
def test_no_gradient_passes_what_the_head_begins_with(purpose):
    def after_a_trained_layer(x, test=False):
        h = F.add_scalar(PF.affine(x, 4, name="first"), 2)
        return PF.affine(h, 3), h
    network = Network(after_a_trained_layer, (6,))
    network(network.input(1), test=True)
    with refused("AddScalar", "first/affine/W", error=Unsupported):
        purpose(network)


def test_entry_says_how_the_head_is_trained():
    entry = MODELS["head"]
    assert entry.on_features and entry.prepare is set_standardization
    assert (entry.train_epochs, entry.learning_rate, entry.weight_decay) == (30, 0.5, 2e-3)
