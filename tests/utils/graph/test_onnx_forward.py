import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import onnx
import onnxruntime
import pytest

from models.registry import MODELS, Network, build_network
from tests.conftest import refused
from utils.graph.functions import Unsupported
from utils.graph.onnx_forward import INPUT, save_network, to_onnx
from utils.graph.onnx_nodes import make_session
from utils.training.checkpoint import find_checkpoints, load_parameters


def logits_of(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [(end.name, end.shape) for end in (*session.get_inputs(), *session.get_outputs())] == \
        [("x", ["N", 3, 32, 32]), ("y", ["N", 10])]
    return session.run(["y"], {"x": images})[0]


@pytest.mark.parametrize("model", [name for name, entry in MODELS.items() if not entry.on_features])
def test_translated_network_gives_the_same_logits(tmp_path, model):
    """Parameters at which no two can change places, and batches of two sizes."""
    rng = np.random.default_rng(0)
    network = build_network(model, 10, rng=rng)
    image = nn.Variable((5, 3, 32, 32))
    logits, _ = network(image, test=True)
    for name, parameter in nn.get_parameters(grad_only=False).items():
        if "/bn/" in name or name == "affine/b":
            parameter.d = rng.uniform(0.2, 0.7, parameter.shape)
    nn.get_parameters(grad_only=False)["conv1/bn/var"].d = 1e4
    save_network(tmp_path / "network.onnx", network)
    image.d = rng.integers(0, 256, image.shape)
    logits.forward()
    for count in (5, 2):
        ours = logits_of(tmp_path / "network.onnx", image.d[:count].astype(np.float32))
        np.testing.assert_allclose(ours, logits.d[:count], rtol=1e-4,
                                   atol=1e-5 * np.abs(logits.d).max())
    names = {value.name for value in onnx.load(tmp_path / "network.onnx").graph.initializer}
    assert names == set(nn.get_parameters(grad_only=False))


def test_trained_network_is_written_with_its_last_parameters(run):
    image = nn.Variable((4, 3, 32, 32))
    logits, _ = build_network("resnet23", 3, 4)(image, test=True)
    load_parameters(find_checkpoints(run)[-1])
    image.d = np.load(run / "x_train.npy")[:4]
    logits.forward()
    session = onnxruntime.InferenceSession(run / "resnet23_result.onnx",
                                           providers=["CPUExecutionProvider"])
    ours, = session.run(None, {"x": image.d.astype(np.float32)})
    np.testing.assert_allclose(ours, logits.d, rtol=1e-4, atol=1e-5)


def test_nothing_is_written_of_what_cannot_be_translated(tmp_path):
    @Network
    def network(image, test):
        image = nn.functions.elu(image)
        return image, image
    with refused("Add2", "ELU", error=Unsupported):
        save_network(tmp_path / "network.onnx", network)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layer", [
    lambda x: F.pad(x, (0, 1, 2, 0)), lambda x: F.pad(x, (1, 2), constant_value=3),
    lambda x: F.relu6(x), lambda x: F.add_scalar(x, -127), lambda x: F.mul_scalar(x, 1 / 128),
    lambda x: PF.convolution(x, 4, (3, 3), group=4, rng=np.random.default_rng(1)),
    lambda x: PF.convolution(x, 6, (3, 3), stride=(2, 2), group=2, rng=np.random.default_rng(1))])
def test_layers_of_pretrained_networks_are_translated(layer):
    image = nn.Variable((2, 4, 7, 6))
    image.d = np.random.default_rng(0).normal(3, 4, image.shape)
    output = layer(image)
    output.forward()
    session = make_session(to_onnx(image, output), threads=1)
    ours, = session.run(None, {INPUT: image.d.astype(np.float32)})
    assert ours.shape == output.shape
    np.testing.assert_allclose(ours, output.d, rtol=1e-5, atol=1e-5)


def test_padding_with_something_else_than_a_constant_is_refused():
    image = nn.Variable((1, 3, 8, 8))
    with refused("mode", "reflect", error=Unsupported):
        to_onnx(image, F.pad(image, (1, 1, 1, 1), "reflect"))
