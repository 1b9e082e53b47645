"""Gradients in ONNX Runtime against NNabla's own, on networks that the registry does not have."""
from collections.abc import Callable

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import nnabla.solvers as S
import numpy as np
import pytest

from models.registry import Network, build_network
from tests.conftest import refused
from tests.utils.graph.training_batches import (
    Arrays,
    all_parameters,
    assert_close,
    assert_same_as_nnabla,
    convolution,
    head,
    make_parameters,
    nnabla_results,
    normalization,
    results,
    samples,
    set_values,
    values,
)
from utils.graph.functions import Unsupported
from utils.graph.onnx_gradient import BatchGradients


@Network
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


@Network
def residuals(image, test):
    """Branches of different depth, a variable added to itself, and one that is used three times."""
    h = convolution(F.average_pooling(image, (4, 4)), "first")
    deep = convolution(F.relu(convolution(h, "second", pad=(1, 1))), "third", kernel=(1, 1))
    h = F.add2(F.add2(h, h), F.add2(deep, h))
    return head(F.relu(F.add2(h, F.add2(convolution(h, "fourth", kernel=(1, 1)), deep))))


@Network
def affine_layers(image, test):
    with nn.parameter_scope("wide"):
        h = PF.affine(F.average_pooling(image, (8, 8)), 9, with_bias=False)
    with nn.parameter_scope("narrow"):
        h = F.relu(PF.affine(F.add2(h, h), 8))
    return head(h, with_bias=False)


@Network
def shared_parameters(image, test):
    """Each kind of layer twice with the same parameters."""
    h = convolution(F.average_pooling(image, (4, 4)), "first", maps=3, pad=(1, 1))
    h = F.relu(convolution(h, "first", maps=3, pad=(2, 2)))
    h = F.relu(normalization(convolution(h, "second", with_bias=False), "shared", test))
    h = F.relu(normalization(convolution(h, "third", with_bias=False), "shared", test))
    with nn.parameter_scope("square"):
        h = PF.affine(F.relu(PF.affine(F.global_average_pooling(h), 6)), 6)
    return head(h)


@Network
def fixed_by_graph(image, test):
    """One of each kind of layer before and after trained ones, and a parameter fixed in one use."""
    h = F.relu(convolution(F.average_pooling(image, (4, 4)), "start", fix_parameters=True))
    h = convolution(F.relu(convolution(h, "trained")), "fixed", fix_parameters=True)
    h = F.relu(normalization(h, "fixed", test, fix_parameters=True))
    h = F.relu(PF.affine(h, 6, name="wide"))
    for fixed in (False, True, False):
        h = F.relu(PF.affine(h, 6, name="sometimes", fix_parameters=fixed))
    return head(F.relu(PF.affine(h, 6, name="fixed", fix_parameters=True)))


@Network
def cut(image, test):
    """No gradient goes through one of two branches."""
    h = convolution(F.average_pooling(image, (4, 4)), "first")
    left, right = convolution(h, "left"), convolution(h, "right")
    left.need_grad = False
    return head(F.relu(F.add2(left, right)))


NETWORKS = [normalizations, residuals, affine_layers, shared_parameters, fixed_by_graph, cut]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.build.__name__)
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
    @Network
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


@Network
def normalizations_of_images(image, test):
    h = F.relu(normalization(F.average_pooling(image, (8, 8)), "first", test, decay_rate=0.7))
    h = normalization(convolution(h, "second", with_bias=False), "second", test, eps=1e-3)
    return head(F.relu(h))


def test_variance_is_exact_where_nnabla_s_is_not():
    """Of images that are all bright: NNabla's running variance is far off, its gradients are NaN."""
    @Network
    def network(image, test):
        return head(normalization(image, "image", test))
    before = make_parameters(network)
    images = np.random.default_rng(0).integers(240, 256, (50, 3, 32, 32)).astype(np.uint8)
    found = results(BatchGradients(network, 1), images, samples(50)[1])
    exact = images.astype(np.float64)
    for name, statistic in [("mean", exact.mean((0, 2, 3))), ("var", exact.var((0, 2, 3), ddof=1))]:
        expected = 0.9 * before[f"image/bn/{name}"].ravel() + 0.1 * statistic
        np.testing.assert_allclose(found[f"image/bn/{name}"].ravel(), expected, rtol=1e-6)


@Network
def few_numbers(image, test):
    """A normalization of as many numbers per channel as there are samples."""
    with nn.parameter_scope("hidden"):
        h = PF.affine(F.average_pooling(image, (8, 8)), 5)
    return head(normalization(h, "few", test))


def test_running_variance_of_two_numbers_and_of_one():
    start = make_parameters(few_numbers)
    expected = nnabla_results(few_numbers, *samples(2))
    set_values(start)
    np.testing.assert_allclose(results(BatchGradients(few_numbers, 1), *samples(2))["few/bn/var"],
                               expected["few/bn/var"], rtol=1e-4)
    set_values(start)
    np.testing.assert_allclose(results(BatchGradients(few_numbers, 1), *samples(1))["few/bn/var"],
                               0.9 * start["few/bn/var"], rtol=1e-6)


@Network
def smooth(image, test):
    """Without kinks, so that rounding never decides."""
    h = normalization(convolution(F.average_pooling(image, (2, 2)), "first", 16, with_bias=False,
                                  pad=(1, 1)), "first", test)
    deep = normalization(convolution(h, "second", 16, pad=(1, 1), with_bias=False), "second", test)
    h = F.average_pooling(F.add2(deep, h), (2, 2))
    h = convolution(h, "third", stride=(2, 2), group=2)
    return head(h)


def train(batches: list, rate: float, engine: Callable) -> Arrays:
    """The parameters after a step of NNabla's solver for each of `batches`."""
    solver = S.Momentum(rate, 0.9)
    solver.set_parameters(nn.get_parameters())
    for images, labels in batches:
        solver.zero_grad()  # as NNabla's own training must
        engine(images, labels)
        solver.weight_decay(1e-3)
        solver.update()
    return values()


def trained_both_ways(network: Callable, batches: list, rate: float) -> tuple[Arrays, Arrays]:
    """By ONNX Runtime and by NNabla."""
    start = values()
    expected = train(batches, rate, lambda *batch: nnabla_results(network, *batch))
    set_values(start)
    return train(batches, rate, BatchGradients(network, 1)), expected


def test_training_without_kinks_is_nnabla_s():
    make_parameters(smooth)
    batches = [samples(count, count) for count in (8, 8, 8, 5, 8, 8)]
    assert_close(*trained_both_ways(smooth, batches, 0.1), 1e-4)


@pytest.mark.parametrize(("model", "nmaps", "bound"), [("resnet23", 4, 0.02), ("resnet56", None, 0.2)])
def test_registered_networks_train_as_in_nnabla(model, nmaps, bound):
    """What each parameter has moved by; ReLUs that rounding flips leave ResNet56 a few percent.

    A gradient that is wrong by more than that, by one parameter alone, is found.
    """
    network = build_network(model, 10, nmaps, np.random.default_rng(0))
    network(nn.Variable((1, 3, 32, 32)), test=False)
    start = values()
    found, expected = trained_both_ways(network, [samples(8, seed) for seed in range(3)], 1e-4)
    moved, expected_move = ({name: after[name] - start[name] for name in nn.get_parameters()}
                            for after in (found, expected))
    assert_close(moved, expected_move, bound)
    running = found.keys() - moved.keys()
    assert_close({name: found[name] for name in running}, {name: expected[name] for name in running},
                 1e-3)


def test_bits_depend_on_batch_parameters_and_threads_alone():
    """Not on earlier calls; on the threads only where a batch has too few samples for all of them."""
    network = build_network("resnet23", 10, 16, np.random.default_rng(0))
    network(nn.Variable((1, 3, 32, 32)), test=False)
    start, runs = values(), []
    batch_gradients = BatchGradients(network, 2)
    others = [BatchGradients(network, threads) for threads in (2, 1)]
    for again in (batch_gradients, batch_gradients, *others):
        set_values(start)
        runs.append(results(again, *samples(7)))
    for run in runs[1:]:
        assert all(run[name].tobytes() == array.tobytes() for name, array in runs[0].items())


@Network
def tiny(image, test):
    """Numbers near 1e-15, positive and negative, and maxima that differ by as little."""
    h = F.max_pooling(F.relu(convolution(image, "first", with_bias=False)), (2, 2))
    return head(F.global_average_pooling(h))


def test_small_numbers_are_not_zero():
    make_parameters(tiny)
    images, labels = samples()
    assert_same_as_nnabla(tiny, images * np.float32(1e-15), labels)


WRITES = {
    "other kind of number": lambda parameter, value: setattr(parameter, "d", value.astype(np.float64)),
    "not contiguous": lambda parameter, value: setattr(
        parameter, "d", np.repeat(value[..., None], 2, axis=-1)[..., 0]),
    "kept as float64": lambda parameter, value: np.copyto(parameter.data.cast(np.float64), value),
    "lazily filled": lambda parameter, value: (parameter.data.zero(), setattr(parameter, "d", value)),
    "another array": lambda parameter, value: setattr(
        parameter, "data", nn.NdArray.from_numpy_array(value)),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_parameters_written_in_any_way_are_found(write):
    """Before the object is made, or before it is bound again."""
    start = make_parameters(smooth)
    expected = results(BatchGradients(smooth, 1), *samples())
    set_values(start)
    batch_gradients = BatchGradients(smooth, 1)
    for again in (None, batch_gradients):
        for name, parameter in all_parameters().items():
            write(parameter, start[name])
        found = results(again or BatchGradients(smooth, 1), *samples())
        assert all(np.array_equal(found[name], array) for name, array in expected.items())


@Network
def unknown_function(image, test):
    return head(F.leaky_relu(convolution(image, "third")))


@Network
def running_statistics(image, test):
    return head(PF.batch_normalization(convolution(image, "fourth"), batch_stat=False))


@Network
def computed_weight(image, test):
    weight = nn.parameter.get_parameter_or_create("weight", (4, 3, 3, 3))
    return head(F.convolution(image, F.mul_scalar(weight, 2)))


@pytest.mark.parametrize(("network", "facts"), [
    (unknown_function, ["LeakyReLU", "third/conv/W"]),
    (running_statistics, ["batch_stat", "BatchNormalization", "bn/beta"]),
    (computed_weight, ["MulScalar", "weight"]),
])
def test_what_has_no_rule_is_named_with_its_layer(network, facts):
    with refused(*facts, error=Unsupported):
        BatchGradients(network, 1)
