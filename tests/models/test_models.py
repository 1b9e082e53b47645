import nnabla as nn
import numpy as np
import pytest

from models.registry import MODELS, build_network, is_network
from tests.conftest import refused


def build(name, test=False, **options):
    image = nn.Variable((2, 3, 32, 32))
    image.d = np.random.default_rng(0).integers(0, 256, image.shape)
    return build_network(name, 10, rng=np.random.default_rng(0), **options)(image, test=test)


@pytest.mark.parametrize(("name", "count", "width"),
                         [("resnet23", 97_482, 64), ("resnet56", 855_578, 64)])
def test_networks_have_the_published_number_of_trainable_parameters(name, count, width):
    logits, h = build(name)
    assert sum(parameter.d.size for parameter in nn.get_parameters().values()) == count
    assert logits.shape == (2, 10)
    assert h.shape == (2, width, 1, 1)


def test_parameter_names_are_those_of_nnablas_example():
    build("resnet23")
    names = nn.get_parameters(grad_only=False)
    for unit in ["conv1", *(f"conv{i}/conv{j}" for i in range(2, 9) for j in (1, 2, 3))]:
        for name in ("conv/W", "bn/beta", "bn/gamma", "bn/mean", "bn/var"):
            assert names.pop(f"{unit}/{name}", None) is not None
    assert sorted(names) == ["affine/W", "affine/b"]
    nn.clear_parameters()
    build("resnet56")
    names = nn.get_parameters(grad_only=False)
    for unit in ["conv1", *(f"{maps}_conv{i}/conv{j}" for maps in (16, 32, 64)
                            for i in range(2, 11) for j in (1, 2))]:
        for name in ("conv/W", "bn/beta", "bn/gamma", "bn/mean", "bn/var"):
            assert names.pop(f"{unit}/{name}", None) is not None
    assert sorted(names) == ["32_conv2/conv3/conv/W", "64_conv2/conv3/conv/W", "affine/W",
                             "affine/b"]


def test_resnet23_pools_after_three_of_its_units():
    sides = []
    logits, _ = build("resnet23")
    logits.visit(lambda function: sides.append(function.outputs[0].shape[2])
                 if function.info.type_name == "MaxPooling" else None)
    assert sides == [16, 8, 4]


def test_both_graphs_share_their_parameters():
    build("resnet23", nmaps=4)
    before = dict(nn.get_parameters(grad_only=False))
    build("resnet23", nmaps=4, test=True)
    after = nn.get_parameters(grad_only=False)
    assert list(before) == list(after)
    assert before["conv1/conv/W"].shape == (4, 3, 3, 3)


def test_initial_parameters_depend_on_the_generator_alone():
    def initial():
        nn.clear_parameters()
        build("resnet23", nmaps=4)
        return {name: parameter.d.copy() for name, parameter in nn.get_parameters().items()}
    first, second = initial(), initial()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert first["conv1/conv/W"].std() > 0.1


def test_only_resnet23_can_be_made_narrower():
    assert {name: MODELS[name].check_nmaps(None) for name in MODELS} == {
        "resnet23": 64, "resnet56": None, "head": None}
    assert MODELS["resnet23"].check_nmaps(16) == 16
    for name, nmaps in [("resnet56", 16), ("resnet23", 5), ("resnet23", 0)]:
        with refused("--nmaps"):
            build_network(name, 10, nmaps)


@pytest.mark.parametrize(("name", "nmaps", "expected"), [
    ("resnet23", 16, True), ("resnet23", None, False), ("resnet23", 5, False), ("resnet56", None, True),
    ("resnet56", 16, False), ("vgg", None, False)])
def test_network_is_known_by_its_name_and_width(name, nmaps, expected):
    assert is_network(name, nmaps) is expected


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if not entry.on_features])
def test_features_have_no_extent_whatever_the_size_of_the_image(name, side):
    _, features = build_network(name, 10)(nn.Variable((1, 3, side, side)), test=True)
    assert features.shape == (1, 64, 1, 1)
