"""The registered networks' gradients against double precision, which has no formula for a gradient."""
import nnabla as nn
import numpy as np
import pytest

from models.registry import build_network
from tests.utils.graph.exact import slope
from tests.utils.graph.training_batches import nnabla_results, results, samples, set_values, values
from utils.graph.onnx_gradient import BatchGradients


@pytest.mark.parametrize(("model", "nmaps", "count"), [("resnet23", 4, 8), ("resnet56", None, 2)])
def test_gradients_of_registered_networks_are_closer_to_exact_than_nnabla_s(model, nmaps, count):
    """Along a random direction, by some of the parameters; images of 0..255, as in training.

    Rounding flips a ReLU or a maximum now and then, in NNabla more often, hence medians.
    """
    rng = np.random.default_rng(0)
    network = build_network(model, 10, nmaps, rng)
    network(nn.Variable((1, 3, 32, 32)), test=False)
    images, labels = rng.integers(0, 256, (count, 3, 32, 32)), samples(count)[1]
    start = values()
    by_nnabla = nnabla_results(network, images, labels)
    set_values(start)
    ours = results(BatchGradients(network, 1), images, labels)
    errors = []
    for name in rng.permutation(list(nn.get_parameters()))[:9]:
        parameter = nn.get_parameters()[name]
        direction = rng.normal(size=parameter.shape)
        exact = slope(network, images, labels, parameter, direction)
        errors.append([abs(np.sum(found[f"gradient by {name}"] * direction) - exact)
                       / np.linalg.norm(found[f"gradient by {name}"]) for found in (ours, by_nnabla)])
    assert np.max(errors, axis=0)[0] < 0.01
    assert np.median(errors, axis=0)[0] < min(1e-4, np.median(errors, axis=0)[1])
