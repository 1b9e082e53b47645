"""Networks that the registry does not have, to hold what the conversion says of any network."""
import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest

from models.registry import Network
from tests.utils.tracin.test_engines import EVERY, gradient_norms, make_engine, random_samples
from utils.graph.functions import Unsupported

BOTH = ("nnabla all", "onnxruntime all")


@Network
def varied(image, test):
    """Every kind of layer in every position that is treated in a way of its own."""
    rng = np.random.default_rng(0)
    with nn.parameter_scope("first"):
        x = PF.batch_normalization(image, batch_stat=not test)  # no convolution before it
    with nn.parameter_scope("biased"):  # strided, and a bias that the normalization follows
        x = PF.batch_normalization(PF.convolution(x, 6, (3, 3), stride=(2, 2), rng=rng),
                                   batch_stat=not test)
    with nn.parameter_scope("twice"):  # a second normalization of the same convolution
        x = F.relu(PF.batch_normalization(x, batch_stat=not test), inplace=True)
    with nn.parameter_scope("late"):  # one that does not follow a convolution
        x = F.max_pooling(PF.batch_normalization(x, batch_stat=not test), (3, 3))
    with nn.parameter_scope("shared"):  # its output is used with and without normalization
        x = PF.convolution(x, 6, (3, 3), pad=(2, 2), dilation=(2, 2), with_bias=False, rng=rng)
        x = F.add2(PF.batch_normalization(x, batch_stat=not test), x, inplace=True)
    with nn.parameter_scope("grouped"):
        x = F.relu(PF.convolution(x, 12, (1, 1), group=3, rng=rng))
        x = F.average_pooling(x, (2, 2))
    with nn.parameter_scope("hidden"):
        h = F.relu(PF.batch_normalization(PF.affine(x, 7, rng=rng), batch_stat=not test))
    return PF.affine(h, 10, rng=rng), h


@pytest.fixture
def varied_parameters():
    """Those of `varied`, none at a value where a term of the formulas vanishes."""
    varied(nn.Variable((1, 3, 32, 32)), test=True)
    rng = np.random.default_rng(0)
    for name, parameter in nn.get_parameters(grad_only=False).items():
        if "bn/" in name or name.endswith("/b"):
            parameter.d = rng.uniform(0.5, 1.5, parameter.shape)
    parameters = nn.get_parameters(grad_only=False)
    parameters["first/bn/mean"].d, parameters["first/bn/var"].d = 120, 5000
    parameters["affine/W"].d = parameters["affine/W"].d * 0.1
    return nn.get_parameters()


@pytest.mark.parametrize("engine", BOTH)
def test_network_with_every_kind_of_layer_is_scored(varied_parameters, engine):
    images, labels = random_samples()
    scores = make_engine(engine, varied, 5).score(images, labels)
    np.testing.assert_allclose(scores.influence, gradient_norms(varied, images, labels, "all"),
                               rtol=1e-5)
    assert (scores.error_norm > 0.01).all()


@pytest.mark.parametrize("engine", BOTH)
def test_gradient_by_each_parameter_alone(varied_parameters, engine):
    """A large gradient by one parameter must not hide a wrong one by another."""
    images, labels = random_samples(4)
    names = list(varied_parameters)
    assert len(names) == 21

    @Network
    def network(image, test):
        result = varied(image, test)
        for name in names:  # after the graph is made, which takes all as trainable
            nn.get_parameters(grad_only=False)[name].need_grad = name == alone
        return result
    everything = gradient_norms(varied, images, labels, "all")
    parts = []
    for alone in names:
        parts.append(gradient_norms(network, images, labels, "all"))
        scores = make_engine(engine, network, 4).score(images, labels)
        np.testing.assert_allclose(scores.influence, parts[-1], rtol=1e-4, err_msg=alone)
    assert np.min(parts) > 0
    np.testing.assert_allclose(np.sum(parts, axis=0), everything, rtol=1e-6)


@pytest.mark.parametrize("engine", BOTH)
@pytest.mark.parametrize("options", [
    {"kernel": (2, 3)},
    {"kernel": (1, 3), "pad": (2, 0)},
    {"kernel": (3, 1), "pad": (0, 2), "dilation": (3, 1)},
    {"kernel": (1, 1), "pad": (0, 1)},
    {"kernel": (3, 3), "pad": (3, 3), "group": 3},
    {"kernel": (3, 2), "pad": (1, 2), "stride": (1, 2), "dilation": (2, 3), "group": 3},
    {"kernel": (1, 1), "stride": (2, 3)},
    {"kernel": (1, 2), "stride": (5, 1)},
    {"kernel": (4, 4), "stride": (4, 4), "pad": (0, 2)},
], ids=str)
def test_convolution_of_any_geometry(options, engine):
    @Network
    def network(image, test):
        h = F.average_pooling(image, (4, 3))
        with nn.parameter_scope("block"):
            h = F.relu(PF.convolution(h, 6, **options, rng=rng))
        return head(h)
    rng = np.random.default_rng(0)
    network(nn.Variable((1, 3, 32, 32)), test=True)
    nn.get_parameters()["affine/W"].d *= 0.01
    images, labels = random_samples(3)
    np.testing.assert_allclose(make_engine(engine, network, 3).score(images, labels).influence,
                               gradient_norms(network, images, labels, "all"), rtol=1e-5)


def head(h):
    return PF.affine(h, 10), h


@pytest.mark.parametrize("engine", BOTH)
def test_scale_of_zero_is_no_obstacle(engine):
    @Network
    def network(image, test):
        with nn.parameter_scope("block"):
            h = PF.batch_normalization(PF.convolution(image, 4, (3, 3), rng=rng), batch_stat=not test)
        return head(F.global_average_pooling(h))
    rng = np.random.default_rng(0)
    network(nn.Variable((1, 3, 32, 32)), test=True)
    nn.get_parameters()["block/bn/gamma"].d = np.reshape([0, 1, 0, -1], (1, 4, 1, 1))
    nn.get_parameters(grad_only=False)["block/bn/var"].d = 1e4
    images, labels = random_samples()
    np.testing.assert_allclose(make_engine(engine, network, 13).score(images, labels).influence,
                               gradient_norms(network, images, labels, "all"), rtol=1e-5)


@Network
def unknown_function(image, test):
    with nn.parameter_scope("third"):
        h = PF.convolution(image, 4, (3, 3))
    return head(F.leaky_relu(h))


@Network
def computed_weight(image, test):
    weight = nn.parameter.get_parameter_or_create("weight", (4, 3, 3, 3))
    return head(F.convolution(image, F.mul_scalar(weight, 2)))


@Network
def channel_last(image, test):
    return head(PF.convolution(F.relu(image), 4, (3, 3), channel_last=True))


@Network
def batch_statistics(image, test):
    with nn.parameter_scope("fourth"):
        h = PF.batch_normalization(image, batch_stat=True)
    return head(h)


@Network
def scale_alone(image, test):
    with nn.parameter_scope("fifth"):
        h = PF.batch_normalization(image, batch_stat=False, no_bias=True)
    return head(h)


@Network
def added_parameter(image, test):
    return head(F.add2(image, nn.parameter.get_parameter_or_create("offset", (1, 3, 32, 32))))


@Network
def three_dimensional_pooling(image, test):
    with nn.parameter_scope("sixth"):
        h = PF.convolution(image, 4, (3, 3))
    return head(F.average_pooling(h, (2, 2, 2)))


@Network
def broadcast_sum(image, test):
    with nn.parameter_scope("seventh"):
        h = PF.convolution(image, 1, (3, 3), pad=(1, 1))
    return head(F.add2(image, h))


@Network
def wide_weight(image, test):
    with nn.parameter_scope("eighth"):
        h = PF.affine(image, (4, 2))
    return head(h)


@pytest.mark.parametrize(("network", "names"), [
    (unknown_function, ["LeakyReLU", "third/conv/W"]),
    (computed_weight, ["MulScalar", "weight"]),
    (channel_last, ["channel_last", "Convolution", "conv/W"]),
    (batch_statistics, ["batch_stat", "BatchNormalization", "fourth/bn/beta"]),
    (scale_alone, ["no_bias", "BatchNormalization", "fifth/bn/gamma"]),
    (added_parameter, ["Add2", "offset"]),
    (three_dimensional_pooling, ["[2, 2, 2]", "AveragePooling", "sixth/conv/W"]),
    (broadcast_sum, ["Add2", "image"]),
    (wide_weight, ["(3072, 4, 2)", "Affine", "eighth/affine/W"]),
])
@pytest.mark.parametrize(("engine", "flags"), [
    ("nnabla all", ["--layers all", "--layers last"]), ("onnxruntime last", ["--engine nnabla"]),
    ("onnxruntime all", ["--layers all", "--layers last", "--engine nnabla"])])
def test_unsupported_function_is_named_with_its_layer(network, names, engine, flags):
    with pytest.raises(Unsupported) as error:
        make_engine(engine, network, 2)
    for name in [*names, *flags]:
        assert name in str(error.value)


@Network
def shared_weight(image, test):
    with nn.parameter_scope("tied"):
        h = PF.convolution(image, 3, (3, 3), pad=(1, 1), with_bias=False)
        h = PF.convolution(F.relu(h), 3, (3, 3), pad=(1, 1), with_bias=False)
    return head(h)


@Network
def cut(image, test):
    with nn.parameter_scope("cut"):
        h = PF.convolution(image, 4, (3, 3))
    h.need_grad = False
    return head(F.relu(h))


@pytest.mark.parametrize("engine", BOTH)
@pytest.mark.parametrize(("network", "name"), [(shared_weight, "tied/conv/W"), (cut, "Convolution")])
def test_gradients_that_would_be_wrong_are_refused(network, name, engine):
    with pytest.raises(Unsupported) as error:
        make_engine(engine, network, 2)
    assert name in str(error.value) and "--layers all" in str(error.value)


def other_features(h):
    return PF.affine(F.relu(h), 10), F.relu(h)


def scaled(h):
    return F.mul_scalar(PF.affine(h, 10), 0.01), h


def rectified(h):
    return F.relu(PF.affine(h, 10)), h


def scaled_weight(h):
    weight = nn.parameter.get_parameter_or_create("affine/W", (h.shape[1] * 900, 10))
    return F.affine(h, F.mul_scalar(weight, 2), PF.affine(h, 10).parent.inputs[2]), h


def another_name(h):
    return PF.affine(h, 10, name="fc"), h


def without_bias(h):
    return PF.affine(h, 10, with_bias=False), h


def used_twice(h):
    h = PF.affine(PF.affine(h, 10, name="narrow"), 10)
    return PF.affine(h, 10), h


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("end", [other_features, scaled, rectified, scaled_weight, another_name,
                                 without_bias, used_twice])
def test_model_that_does_not_end_in_its_last_layer_is_refused(end, name):
    @Network
    def network(image, test):
        with nn.parameter_scope("first"):
            h = PF.convolution(image, 2, (3, 3))
        return end(h)
    with pytest.raises(Unsupported, match="affine"):
        make_engine(name, network, 2)


@pytest.mark.parametrize("engine", BOTH)
def test_fixed_parameters_do_not_count(engine):
    """Fixed by the graph, whatever the scope says; of the last layer, nothing is left to score."""
    @Network
    def network(image, test):
        with nn.parameter_scope("first"):
            h = PF.convolution(image, 4, (3, 3), stride=(4, 4), fix_parameters=True, rng=rng)
        h = PF.batch_normalization(h, batch_stat=not test, fix_parameters=fixed)
        return PF.affine(h, 10, rng=rng, fix_parameters=fixed), h
    images, labels = random_samples()
    for fixed in (False, True):
        rng = np.random.default_rng(0)
        nn.clear_parameters()
        scores = make_engine(engine, network, 13).score(images, labels).influence
        np.testing.assert_allclose(scores, gradient_norms(network, images, labels, "all"), rtol=1e-5,
                                   atol=1e-30)
        assert (scores > 0).any() != fixed
    for name in ("nnabla last", "onnxruntime last"):
        with pytest.raises(Unsupported, match="affine/W"):
            make_engine(name, network, 2)
