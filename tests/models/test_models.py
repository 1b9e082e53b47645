import nnabla as nn
import numpy as np
import pytest

from models import MODELS, build_network, default_nmaps
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
    assert {name: default_nmaps(name) for name in MODELS} == {"resnet23": 64, "resnet56": None}
    with refused("resnet56", "--nmaps", error=ValueError):
        build("resnet56", nmaps=16)
