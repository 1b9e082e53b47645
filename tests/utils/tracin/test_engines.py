"""Exactness: what the engines compute for a batch against the definition, one sample at a time."""
import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from nnabla.ext_utils import get_extension_context

from models.registry import Network, build_network
from tests.utils.tracin.float64 import float64_scores
from utils.errors import UserError
from utils.tracin.engines import NnablaEngine, OnnxRuntimeEngine, choose_engine
from utils.tracin.self_influence import output_error
from utils.training.checkpoint import find_checkpoints, load_parameters

EVERY = ("nnabla last", "nnabla all", "onnxruntime last", "onnxruntime all")
ALL = ("influence", "loss", "margin", "error_norm", "probability")


def gradient_norms(network, images, labels, layers):
    """The definition: back-propagate each sample's loss by itself through the graph, float64 (N,)."""
    image, label = nn.Variable((1, 3, 32, 32)), nn.Variable((1, 1))
    logits, _ = network(image, test=True)
    loss = F.mean(F.softmax_cross_entropy(logits, label))
    result = []
    for image.d, label.d in zip(images[:, None], labels[:, None], strict=True):
        for parameter in nn.get_parameters().values():
            parameter.grad.zero()
        loss.forward()
        loss.backward()
        result.append(sum(np.square(parameter.g, dtype=np.float64).sum()
                          for name, parameter in nn.get_parameters().items()
                          if layers == "all" or name.startswith("affine/")))
    return np.array(result)


def make_engine(name, network, batch_size):
    """`name` is one of ``ENGINES``, a space and ``last`` or ``all``."""
    name, layers = name.split()
    make = {"nnabla": NnablaEngine, "onnxruntime": OnnxRuntimeEngine}[name]
    engine = make(network, batch_size, layers, 2)
    engine.load_parameters()
    return engine


def random_samples(count=13, classes=10):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (count, 3, 32, 32)).astype(np.uint8)
    return images, rng.integers(0, classes, (count, 1))


@pytest.fixture(params=[(model, trained) for model in ("resnet23", "resnet56")
                        for trained in (False, True)], ids=str)
def setting(request, digits_run):
    """A network, fresh or trained, and 13 samples."""
    model, trained = request.param
    network = build_network(model, 10, rng=np.random.default_rng(0))
    network(nn.Variable((1, 3, 32, 32)), test=True)
    images, labels = random_samples()
    if trained:
        load_parameters(find_checkpoints(digits_run / model)[0])
        images = np.load(digits_run / model / "x_train.npy")[:13]
        labels = np.load(digits_run / model / "y_shuffle_train.npy")[:13]
    return network, images, labels


def rounding(logits):
    """How far float32 may be off relative to a score, whose logits are off by some steps."""
    return 2e-6 + 4 * np.finfo(np.float32).eps * np.abs(logits).max()


@pytest.mark.parametrize("name", ["nnabla last", "nnabla all", "onnxruntime last"])
def test_batched_scores_are_those_of_one_sample_at_a_time(setting, name):
    """One sample at a time, everything is float32: two roundings, and 1 - p of few digits."""
    network, images, labels = setting
    scores = make_engine(name, network, 5).score(images, labels)
    expected = gradient_norms(network, images, labels, name.split()[1])
    _, logits = float64_scores(network, images, labels)
    plain = scores.error_norm > 0.01
    assert plain.sum() >= 6
    difference = np.abs(scores.influence - expected)[plain]
    assert (difference <= 4 * rounding(logits) * expected[plain]).all()
    assert scores.influence.max() > 0 and len(set(scores.influence.tolist())) == 13


@pytest.mark.parametrize("name", ["nnabla last", "onnxruntime last"])
def test_last_layer_is_exact_up_to_the_rounding_of_features(setting, name):
    """Also of samples that the network is sure of; what the scores should be is computed in float64."""
    network, images, labels = setting
    expected, logits = float64_scores(network, images, labels)
    scores = make_engine(name, network, 5).score(images, labels).influence
    assert (np.abs(scores - expected) <= rounding(logits) * expected).all()
    assert (np.abs(scores - expected)[expected > 1] <= 4e-6 * expected[expected > 1]).all()


@pytest.mark.parametrize("name", ["nnabla all", "onnxruntime all"])
def test_all_layers_are_exact_but_for_kinks(setting, name):
    """What a ReLU passes back may be decided by rounding; that shows in few samples, and little."""
    network, images, labels = setting
    expected, logits = float64_scores(network, images, labels, "all")
    scores = make_engine(name, network, 5).score(images, labels).influence
    difference = np.abs(scores - expected)
    assert (difference <= rounding(logits) * expected).sum() >= 10
    assert (difference <= 1e-2 * expected).all()


def test_scores_of_onnxruntime_are_those_of_nnabla(setting):
    network, images, labels = setting
    ours, nnablas = (make_engine(name, network, 5).score(images, labels)
                     for name in ("onnxruntime last", "nnabla last"))
    for name in ALL:
        np.testing.assert_allclose(getattr(ours, name), getattr(nnablas, name), rtol=1e-4, atol=1e-6)


def sure_network(spread=0.05):
    """A network that is sure of some of 200 samples, and these with the labels it predicts."""
    rng = np.random.default_rng(0)

    @Network
    def network(image, test):
        h = F.average_pooling(image, (8, 8))
        h = PF.convolution(h, 4, (1, 1), with_bias=False, rng=rng)
        return PF.affine(h, 10, rng=rng), h
    images, _ = random_samples(200)
    network(nn.Variable((1, 3, 32, 32)), test=True)
    nn.get_parameters()["affine/W"].d = rng.normal(0, spread, (64, 10))
    scores = make_engine("nnabla last", network, 100).score(images, np.zeros((200, 1), int))
    return network, images, scores.probability.argmax(axis=1)[:, None]


@pytest.mark.parametrize("name", EVERY)
def test_scores_are_exact_where_the_network_is_sure(name):
    """Where softmax is nearly 1, float32's 1 - p has few digits; those of the scores are as ever."""
    network, images, labels = sure_network()
    scores = make_engine(name, network, 100).score(images, labels)
    assert (scores.error_norm < 1e-3).sum() > 10
    exact, logits = float64_scores(network, images, labels)
    if name.endswith("all"):  # the gradient by the convolution, by hand
        pooled = images.reshape(-1, 3, 4, 8, 4, 8).mean((3, 5)).reshape(-1, 3, 16)
        by_features = output_error(logits, labels) @ nn.get_parameters()["affine/W"].d.T
        by_weight = np.einsum("bop,bip->boi", by_features.reshape(-1, 4, 16), pooled)
        exact += np.square(by_weight).sum((1, 2))
    assert (np.abs(scores.influence - exact) <= rounding(logits) * exact).all()


@pytest.mark.parametrize("name", ["nnabla last", "nnabla all"])
def test_half_precision_tells_samples_apart_where_the_network_is_sure(name):
    """Half has no number between 1 - 5e-4 and 1."""
    network, images, labels = sure_network(spread=0.02)
    expected = make_engine(name, network, 64).score(images, labels)
    with nn.context_scope(get_extension_context("cpu", type_config="half")):
        scores = make_engine(name, network, 64).score(images, labels)
    assert (expected.error_norm < 5e-4).sum() > 100
    np.testing.assert_allclose(scores.influence, expected.influence, rtol=0.3)


@pytest.mark.parametrize("name", EVERY)
def test_scores_do_not_depend_on_the_batch(name):
    network = build_network("resnet23", 10, 4, np.random.default_rng(0))
    images, labels = random_samples()
    results = [make_engine(name, network, batch).score(images, labels) for batch in (1, 4, 13)]
    for column in ALL:
        for other in results[1:]:
            np.testing.assert_allclose(getattr(other, column), getattr(results[0], column),
                                       rtol=1e-6, atol=1e-30)
    assert results[0].probability.shape == (13, 10)


@pytest.mark.parametrize("name", EVERY)
def test_labels_and_not_predictions_decide_the_score(digits_run, name):
    images, labels = random_samples()
    engine = make_engine(name, build_network("resnet23", 10), 13)
    load_parameters(find_checkpoints(digits_run / "resnet23")[0])
    engine.load_parameters()
    first = engine.score(images, labels)
    labels[7] = (labels[7] + 1) % 10
    second = engine.score(images, labels)
    changed = np.flatnonzero(first.influence != second.influence)
    assert changed.tolist() == [7]
    np.testing.assert_allclose(first.probability, second.probability, atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_new_parameters_give_new_scores(name):
    network = build_network("resnet23", 10, 4, np.random.default_rng(0))
    images, labels = random_samples()
    engine = make_engine(name, network, 13)
    engine.score(images, labels)
    rng = np.random.default_rng(1)
    for parameter in nn.get_parameters(grad_only=False).values():
        parameter.d = parameter.d * rng.uniform(0.5, 1.5, parameter.shape)
    engine.load_parameters()
    expected = make_engine(name, network, 13).score(images, labels)
    assert np.array_equal(engine.score(images, labels).influence, expected.influence)


@pytest.mark.parametrize("layers", ["last", "all"])
def test_scores_do_not_depend_on_the_number_of_threads(layers):
    network = build_network("resnet23", 10, 4, np.random.default_rng(0))
    images, labels = random_samples()
    one, four = (OnnxRuntimeEngine(network, 2, layers, threads) for threads in (1, 4))
    for engine in (one, four):
        engine.load_parameters()
    for name in ALL:
        assert np.array_equal(getattr(one.score(images, labels), name),
                              getattr(four.score(images, labels), name))


def test_half_precision_does_not_overflow():
    """Squared gradients of hundreds leave the range of half; the passes themselves do not."""
    network = build_network("resnet23", 10, 16, rng=np.random.default_rng(0))
    images, labels = random_samples(8)
    network(nn.Variable((1, 3, 32, 32)), test=True)
    nn.get_parameters(grad_only=False)["conv1/bn/var"].d = 1e4
    expected = make_engine("nnabla all", network, 8).score(images, labels).influence
    with nn.context_scope(get_extension_context("cpu", type_config="half")):
        scores = make_engine("nnabla all", network, 8).score(images, labels).influence
    assert expected.max() > 1000
    np.testing.assert_allclose(scores, expected, rtol=0.2)


def test_engine_supports_the_layers_and_the_context():
    """The default for each, and no other than the user's."""
    cases = [("last", "cpu"), ("all", "cpu"), ("last", "cudnn"), ("all", "cudnn")]
    assert [choose_engine(None, *case) for case in cases] == ["onnxruntime"] * 2 + ["nnabla"] * 2
    assert {choose_engine("nnabla", *case) for case in cases} == {"nnabla"}
    for layers, context in cases[2:]:
        with pytest.raises(UserError):
            choose_engine("onnxruntime", layers, context)


@pytest.mark.parametrize("name", ["nnabla all", "onnxruntime all"])
def test_network_of_an_affine_map_alone_is_scored(name):
    @Network
    def network(image, test):
        return PF.affine(image, 10, rng=np.random.default_rng(0)), image
    network(nn.Variable((1, 3, 32, 32)), test=True)
    nn.get_parameters()["affine/W"].d *= 1e-3
    images, labels = random_samples(5)
    np.testing.assert_allclose(make_engine(name, network, 3).score(images, labels).influence,
                               gradient_norms(network, images, labels, "all"), rtol=1e-5)
