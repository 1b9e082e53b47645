"""Gradients in ONNX Runtime against NNabla's own, on networks that the registry does not have.

NNabla computes a batch's variance as a difference of large sums in single precision, so it is the
less exact one where images are far from 0; `test_variance_is_exact_where_nnabla_s_is_not` measures
it.  All other tests use images around 0, for which both agree.
"""
from collections.abc import Callable

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import nnabla.solvers as S
import numpy as np
import pytest

from models.registry import build_network
from tests.conftest import refused
from utils.graph.functions import Unsupported
from utils.graph.onnx_gradient import BatchGradients
from utils.training.trainer import build_graph, set_images

Arrays = dict[str, np.ndarray]


def samples(count: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random images around 0, with channels of different means, and labels."""
    rng = np.random.default_rng(seed)
    images = rng.normal(rng.normal(0, 0.3, (count, 3, 1, 1)), 1, (count, 3, 32, 32))
    return images.astype(np.float32), rng.integers(0, 10, (count, 1))


def all_parameters() -> dict[str, nn.Variable]:
    return nn.get_parameters(grad_only=False)


def make_parameters(network: Callable, seed: int = 0) -> Arrays:
    """Create the network's parameters, none at a value where a term vanishes; returns a copy."""
    network(nn.Variable((1, 3, 32, 32)), test=False)
    rng = np.random.default_rng(seed)
    for name, parameter in all_parameters().items():
        shape = parameter.shape
        if name.endswith("/W"):
            inputs = shape[0] if len(shape) == 2 else np.prod(shape[1:])
            parameter.d = rng.normal(0, inputs ** -0.5, shape)
        elif name.endswith("/gamma"):
            parameter.d = rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape)
        else:
            parameter.d = rng.uniform(0.5, 1.5, shape)
    return values()


def values() -> Arrays:
    return {name: parameter.d.copy() for name, parameter in all_parameters().items()}


def set_values(start: Arrays):
    for name, parameter in all_parameters().items():
        parameter.d = start[name]


def gradients() -> Arrays:
    return {f"gradient by {name}": parameter.g.copy() for name, parameter in nn.get_parameters().items()
            if parameter.need_grad}


def nnabla_results(network: Callable, images: np.ndarray, labels: np.ndarray) -> Arrays:
    """Logits, loss, gradients and parameters after a pass through NNabla's own training graph."""
    graph = build_graph(network, len(images), test=False)
    set_images(graph, images, None)
    graph.label.d = labels
    for parameter in nn.get_parameters().values():
        parameter.g = 0
    graph.loss.forward()
    graph.loss.backward()
    return {"logits": graph.logits.d.copy(), "loss": graph.loss.d.copy(), **gradients(), **values()}


def results(batch_gradients: BatchGradients, images: np.ndarray, labels: np.ndarray) -> Arrays:
    """The same by ONNX Runtime."""
    for parameter in nn.get_parameters().values():
        parameter.g = 0
    batch_gradients.bind()
    logits, loss = batch_gradients(images, labels)
    assert logits.dtype == np.float32
    return {"logits": logits, "loss": np.array(loss), **gradients(), **values()}


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """That of two arrays relative to the norm of the second, or to 1 if that is 0."""
    return float(np.linalg.norm(found.astype(np.float64) - expected) / (np.linalg.norm(expected) or 1))


def assert_close(found: Arrays, expected: Arrays, bound: float = 3e-5):
    assert found.keys() == expected.keys()
    far = {name: distance(found[name], expected[name]) for name in expected}
    assert all(value < bound for value in far.values()), \
        {name: value for name, value in far.items() if not value < bound}


def assert_same_as_nnabla(network: Callable, images: np.ndarray, labels: np.ndarray):
    """Check all results at the current parameters."""
    start = values()
    expected = nnabla_results(network, images, labels)
    set_values(start)
    assert_close(results(BatchGradients(network, 1), images, labels), expected)


def convolution(h: nn.Variable, scope: str, maps: int = 6, kernel=(3, 3), **options) -> nn.Variable:
    with nn.parameter_scope(scope):
        return PF.convolution(h, maps, kernel, **options)


def normalization(h: nn.Variable, scope: str, test: bool, **options) -> nn.Variable:
    with nn.parameter_scope(scope):
        return PF.batch_normalization(h, batch_stat=not test, **options)


def head(h: nn.Variable, **options) -> tuple[nn.Variable, nn.Variable]:
    return PF.affine(h, 10, **options), h


def normalizations(image, test):
    """After an image, a convolution, another, a residual branch and an affine layer."""
    h = F.relu(normalization(F.average_pooling(image, (4, 4)), "image", test))
    h = convolution(h, "first", with_bias=False)
    h = F.relu(normalization(h, "first", test), inplace=True)
    h = convolution(h, "second", with_bias=False, pad=(1, 1))
    normalized = normalization(h, "second", test, eps=0.1, decay_rate=0.5)
    h = convolution(F.relu(F.add2(normalized, h)), "third", with_bias=False)  # used with and without
    # Nothing depends on the parameters of a normalization that another follows.
    h = F.relu(normalization(normalization(h, "third", test, fix_parameters=True), "twice", test))
    with nn.parameter_scope("hidden"):
        h = normalization(PF.affine(h, 7, with_bias=False), "bn", test)
    return head(F.relu(h))


def residuals(image, test):
    """Branches of different depth, a variable added to itself, and one that is used three times."""
    h = convolution(F.average_pooling(image, (4, 4)), "first")
    deep = convolution(F.relu(convolution(h, "second", pad=(1, 1))), "third", kernel=(1, 1))
    h = F.add2(F.add2(h, h), F.add2(deep, h))
    return head(F.relu(F.add2(h, F.add2(convolution(h, "fourth", kernel=(1, 1)), deep))))


def affine_layers(image, test):
    with nn.parameter_scope("wide"):
        h = PF.affine(F.average_pooling(image, (8, 8)), 9, with_bias=False)
    with nn.parameter_scope("narrow"):
        h = F.relu(PF.affine(F.add2(h, h), 8))
    return head(h, with_bias=False)


def shared_parameters(image, test):
    """Each kind of layer twice with the same parameters."""
    h = convolution(F.average_pooling(image, (4, 4)), "first", maps=3, pad=(1, 1))
    h = F.relu(convolution(h, "first", maps=3, pad=(2, 2)))
    h = F.relu(normalization(convolution(h, "second", with_bias=False), "shared", test))
    h = F.relu(normalization(convolution(h, "third", with_bias=False), "shared", test))
    with nn.parameter_scope("square"):
        h = PF.affine(F.relu(PF.affine(F.global_average_pooling(h), 6)), 6)
    return head(h)


def fixed_by_graph(image, test):
    """One of each kind of layer before and after trained ones, and a parameter fixed in one use."""
    h = F.relu(convolution(F.average_pooling(image, (4, 4)), "start", fix_parameters=True))
    h = convolution(F.relu(convolution(h, "trained")), "fixed", fix_parameters=True)
    h = F.relu(normalization(h, "fixed", test, fix_parameters=True))
    h = F.relu(PF.affine(h, 6, name="wide"))
    for fixed in (False, True, False):
        h = F.relu(PF.affine(h, 6, name="sometimes", fix_parameters=fixed))
    return head(F.relu(PF.affine(h, 6, name="fixed", fix_parameters=True)))


def cut(image, test):
    """No gradient goes through one of two branches."""
    h = convolution(F.average_pooling(image, (4, 4)), "first")
    left, right = convolution(h, "left"), convolution(h, "right")
    left.need_grad = False
    return head(F.relu(F.add2(left, right)))


NETWORKS = [normalizations, residuals, affine_layers, shared_parameters, fixed_by_graph, cut]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
def test_everything_is_nnabla_s(network):
    make_parameters(network)
    assert_same_as_nnabla(network, *samples())


POOLINGS = [
    (F.max_pooling, {"kernel": (2, 2)}),
    (F.max_pooling, {"kernel": (4, 1)}),
    (F.max_pooling, {"kernel": (3, 3)}),  # 32 = 10 * 3 + 2
    (F.max_pooling, {"kernel": (2, 2), "stride": (1, 1)}),
    (F.max_pooling, {"kernel": (3, 3), "stride": (2, 2)}),
    (F.max_pooling, {"kernel": (3, 3), "stride": (2, 2), "pad": (1, 1)}),
    (F.max_pooling, {"kernel": (2, 2), "pad": (1, 1)}),
    (F.max_pooling, {"kernel": (2, 3), "stride": (3, 4), "pad": (0, 1)}),
    (F.max_pooling, {"kernel": (32, 32)}),
    (F.average_pooling, {"kernel": (2, 2)}),
    (F.average_pooling, {"kernel": (5, 3)}),
    (F.average_pooling, {"kernel": (3, 3), "stride": (1, 2)}),
    (F.average_pooling, {"kernel": (3, 3), "stride": (2, 2), "pad": (1, 1)}),
    (F.average_pooling, {"kernel": (3, 2), "stride": (2, 1), "pad": (1, 1), "including_pad": False}),
    (F.average_pooling, {"kernel": (2, 2), "stride": (3, 3), "pad": (1, 0), "including_pad": False}),
    (F.average_pooling, {"kernel": (32, 32)}),
    (F.average_pooling, {"kernel": (32, 32), "pad": (2, 1), "stride": (1, 1)}),
    (F.global_average_pooling, {}),
]


@pytest.mark.parametrize("largest", [2, None], ids=["ties", "no ties"])
@pytest.mark.parametrize(("pooling", "options"), POOLINGS,
                         ids=[f"{pooling.__name__} {options}" for pooling, options in POOLINGS])
def test_pooling_is_nnabla_s(pooling, options, largest):
    """Ties are images and weights of small whole numbers; all most of the poolings see is below 0."""
    def network(image, test):
        return head(pooling(convolution(image, "first", 4, pad=(1, 1)), **options))
    make_parameters(network)
    images, labels = samples(3)
    rng = np.random.default_rng(0)
    if largest:
        images = rng.integers(0, largest, images.shape)
        weight = nn.get_parameters()["first/conv/W"]
        weight.d = rng.integers(-1, 2, weight.shape)
    nn.get_parameters()["first/conv/b"].d = [-6, -6, -6, 0]
    assert_same_as_nnabla(network, images, labels)


def test_images_of_any_kind_in_batches_of_any_size():
    """One object; the running statistics of all batches add up, also those of a batch of one."""
    make_parameters(normalizations_of_images)
    start, results_by_nnabla = values(), []
    rng = np.random.default_rng(0)
    batches = [(rng.integers(0, 10, (count, 3, 32, 32)).astype(kind), rng.integers(0, 10, (count, 1)))
               for count, kind in [(4, np.uint8), (1, np.float64), (7, np.float32), (4, np.int32)]]
    for images, labels in batches:
        results_by_nnabla.append(nnabla_results(normalizations_of_images, images, labels))
    set_values(start)
    batch_gradients = BatchGradients(normalizations_of_images, 1)
    for (images, labels), expected in zip(batches, results_by_nnabla, strict=True):
        assert_close(results(batch_gradients, images, labels), expected)


def normalizations_of_images(image, test):
    h = F.relu(normalization(F.average_pooling(image, (8, 8)), "first", test, decay_rate=0.7))
    h = normalization(convolution(h, "second", with_bias=False), "second", test, eps=1e-3)
    return head(F.relu(h))


def test_variance_is_exact_where_nnabla_s_is_not():
    """Of images that are all bright: NNabla's running variance is far off, its gradients are NaN."""
    def network(image, test):
        return head(normalization(image, "image", test))
    before = make_parameters(network)
    images = np.random.default_rng(0).integers(240, 256, (50, 3, 32, 32)).astype(np.uint8)
    found = results(BatchGradients(network, 1), images, samples(50)[1])
    exact = images.astype(np.float64)
    for name, statistic in [("mean", exact.mean((0, 2, 3))), ("var", exact.var((0, 2, 3), ddof=1))]:
        expected = 0.9 * before[f"image/bn/{name}"].ravel() + 0.1 * statistic
        np.testing.assert_allclose(found[f"image/bn/{name}"].ravel(), expected, rtol=1e-6)


def smooth(image, test):
    """Without kinks, so that rounding never decides."""
    h = normalization(convolution(F.average_pooling(image, (2, 2)), "first", 16, with_bias=False,
                                  pad=(1, 1)), "first", test)
    deep = normalization(convolution(h, "second", 16, pad=(1, 1), with_bias=False), "second", test)
    h = F.average_pooling(F.add2(deep, h), (2, 2))
    h = convolution(h, "third", stride=(2, 2), group=2)
    return head(h)


def train(network: Callable, batches: list, engine: Callable) -> Arrays:
    """The parameters after a step of NNabla's solver for each of `batches`."""
    solver = S.Momentum(0.1, 0.9)
    solver.set_parameters(nn.get_parameters())
    for images, labels in batches:
        engine(images, labels)
        solver.weight_decay(1e-3)
        solver.update()
    return values()


def trained_both_ways(network: Callable, batches: list) -> tuple[Arrays, Arrays]:
    """By ONNX Runtime and by NNabla."""
    start = values()
    expected = train(network, batches, lambda *batch: nnabla_results(network, *batch))
    set_values(start)
    return train(network, batches, BatchGradients(network, 1)), expected


def test_training_without_kinks_is_nnabla_s():
    make_parameters(smooth)
    found, expected = trained_both_ways(smooth, [samples(count, count) for count in (8, 8, 8, 5, 8, 8)])
    assert_close(found, expected, 1e-4)
