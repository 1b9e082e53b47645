"""Networks that the registry does not have, to hold what the conversion says of any network."""
import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest

from tests.test_engines import gradient_norms, make_engine, random_samples
from utils.graph import Unsupported


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


def test_network_with_every_kind_of_layer_is_scored(varied_parameters):
    images, labels = random_samples()
    scores = make_engine("all", varied, 5).score(images, labels)
    np.testing.assert_allclose(scores.influence, gradient_norms(varied, images, labels, "all"),
                               rtol=1e-5)
    assert (scores.error_norm > 0.01).all()


def test_gradient_by_each_parameter_alone(varied_parameters):
    """A large gradient by one parameter must not hide a wrong one by another."""
    images, labels = random_samples(4)
    names = list(varied_parameters)
    assert len(names) == 21

    def prediction(image, test):
        result = varied(image, test)
        for name in names:  # after the graph is made, which takes all as trainable
            nn.get_parameters(grad_only=False)[name].need_grad = name == alone
        return result
    everything = gradient_norms(varied, images, labels, "all")
    parts = []
    for alone in names:
        parts.append(gradient_norms(prediction, images, labels, "all"))
        scores = make_engine("all", prediction, 4).score(images, labels)
        np.testing.assert_allclose(scores.influence, parts[-1], rtol=1e-4, err_msg=alone)
    assert np.min(parts) > 0
    np.testing.assert_allclose(np.sum(parts, axis=0), everything, rtol=1e-6)


def head(h):
    return PF.affine(h, 10), h


def test_scale_of_zero_is_no_obstacle():
    def prediction(image, test):
        with nn.parameter_scope("block"):
            h = PF.batch_normalization(PF.convolution(image, 4, (3, 3), rng=rng), batch_stat=not test)
        return head(F.global_average_pooling(h))
    rng = np.random.default_rng(0)
    prediction(nn.Variable((1, 3, 32, 32)), test=True)
    nn.get_parameters()["block/bn/gamma"].d = np.reshape([0, 1, 0, -1], (1, 4, 1, 1))
    nn.get_parameters(grad_only=False)["block/bn/var"].d = 1e4
    images, labels = random_samples()
    np.testing.assert_allclose(make_engine("all", prediction, 13).score(images, labels).influence,
                               gradient_norms(prediction, images, labels, "all"), rtol=1e-5)


def shared_weight(image, test):
    with nn.parameter_scope("tied"):
        h = PF.convolution(image, 3, (3, 3), pad=(1, 1), with_bias=False)
        h = PF.convolution(F.relu(h), 3, (3, 3), pad=(1, 1), with_bias=False)
    return head(h)


def other_features(image, test):
    with nn.parameter_scope("second"):
        h = PF.convolution(image, 4, (3, 3))
    return PF.affine(F.relu(h), 10), F.relu(h)


def unknown_function(image, test):
    with nn.parameter_scope("third"):
        h = PF.convolution(image, 4, (3, 3))
    return head(F.leaky_relu(h))


def computed_weight(image, test):
    weight = nn.parameter.get_parameter_or_create("weight", (4, 3, 3, 3))
    return head(F.convolution(image, F.mul_scalar(weight, 2)))


def channel_last(image, test):
    return head(PF.convolution(F.relu(image), 4, (3, 3), channel_last=True))


def batch_statistics(image, test):
    with nn.parameter_scope("fourth"):
        h = PF.batch_normalization(image, batch_stat=True)
    return head(h)


def scale_alone(image, test):
    with nn.parameter_scope("fifth"):
        h = PF.batch_normalization(image, batch_stat=False, no_bias=True)
    return head(h)


def added_parameter(image, test):
    return head(F.add2(image, nn.parameter.get_parameter_or_create("offset", (1, 3, 32, 32))))


@pytest.mark.parametrize(("prediction", "layers", "onnx"), [
    (shared_weight, "tied/conv/W used 2 times", None),
    (other_features, "expected the h that a model returns to be the input of its affine layer", None),
    (unknown_function, "--layers all can take .*; found LeakyReLU at third/conv/W",
     "the translation to ONNX can take .*; found LeakyReLU at third/conv/W"),
    (computed_weight, "found MulScalar at weight", "found MulScalar at weight"),
    (channel_last, "channel_last False, found True; found Convolution at conv/W", "channel_last"),
    (batch_statistics, "batch_stat False, found True; found BatchNormalization at fourth/bn/beta",
     "batch_stat"),
    (scale_alone, "no_bias False, found True; found BatchNormalization at fifth/bn/gamma", "no_bias"),
    (added_parameter, "parameters of Affine, .*; found Add2 at offset", "found Add2 at offset"),
])
def test_what_cannot_be_taken_is_named(prediction, layers, onnx):
    with pytest.raises(Unsupported, match=layers):
        make_engine("all", prediction, 2)
    if onnx:
        nn.clear_parameters()

        def features(image, test):
            return (prediction(image, test)[0],) * 2
        with pytest.raises(Unsupported, match=onnx):
            make_engine("onnxruntime", features, 2)
