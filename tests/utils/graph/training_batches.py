"""The results of a training batch by NNabla and by ONNX Runtime, and layers of networks to compare them.

NNabla computes a batch's variance as a difference of large sums in single precision, so it is the
less exact one where images are far from 0.  Around 0, both agree.
"""
from collections.abc import Callable

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np

from utils.graph.onnx_gradient import BatchGradients

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
    image, label = nn.Variable(images.shape), nn.Variable(labels.shape)
    image.d, label.d = images, labels
    logits, _ = network(image, test=False)
    logits.persistent = True
    loss = F.mean(F.softmax_cross_entropy(logits, label))
    for parameter in nn.get_parameters().values():
        parameter.g = 0
    loss.forward()
    loss.backward()
    return {"logits": logits.d.copy(), "loss": loss.d.copy(), **gradients(), **values()}


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
