r"""A network's layers for the gradients of single samples, by every trainable parameter.

In inference mode batch normalization is an affine map of each channel, which joins the convolution
before it, or one of its own with the identity as weights.  With :math:`\sigma^2 = \mathrm{var} +
\epsilon` and :math:`s = \gamma / \sigma`,

.. math:: \gamma \, (W x + b - \mu) / \sigma + \beta = W' x + b', \qquad
          W' = s W, \quad b' = s (b - \mu) + \beta ,

and the chain rule gives the gradients by the network's parameters from those by the joint ones:

.. math:: \partial_W = s \, \partial_{W'}, \quad \partial_b = s \, \partial_{b'}, \quad
          \partial_\beta = \partial_{b'}, \quad
          \partial_\gamma = (\langle W, \partial_{W'} \rangle + (b - \mu) \, \partial_{b'}) / \sigma .
"""
from collections import Counter
from collections.abc import Collection, Container
from dataclasses import dataclass
from typing import Any

import nnabla as nn
import numpy as np

from utils.graph.functions import LAYERS, Unsupported, functions
from utils.graph.geometry import Geometry, geometry_of


@dataclass
class Normalization:
    """The parameters of a batch normalization of O channels, each of O numbers."""

    beta: nn.Variable
    gamma: nn.Variable
    mean: nn.Variable
    variance: nn.Variable
    epsilon: float


class Layer:
    """A convolution, an affine map or a batch normalization, as a convolution with O filters.

    Args:
        x: its input, (B, ...).
        output: its output, (B, ...).
        weight: its parameter, (O, C/group, k, k); or (C, O), of an affine map; or None for the identity.
        bias: its parameter, (O,), or None.
        trained: the parameters whose gradient counts.
        geometry: that of the convolution.

    Attributes:
        x, output, geometry: as above; `output` follows the normalization.
        normalization: what joins the convolution.
        filters: W, float64 (O, C/group, k, k), when the parameters are loaded.
        joined, joined_bias: W' and b'.
        factors: what `squared_norms` takes, (4, O).
    """

    def __init__(self, x: nn.Variable, output: nn.Variable, weight: nn.Variable | None,
                 bias: nn.Variable | None, trained: Container[nn.Variable], geometry: Geometry):
        self.x, self.output, self.geometry = x, output, geometry
        self.normalization: Normalization | None = None
        self._weight, self._bias, self._trained = weight, bias, trained

    @property
    def shape(self) -> tuple[int, ...]:
        """(O, C/group, k, k), the shape of the filters."""
        return (self.geometry.after[0], self.geometry.before[0] // self.geometry.group,
                *self.geometry.kernel)

    def load_parameters(self):
        """Take the parameters that the current scope has now."""
        shape, normalization, trained = self.shape, self.normalization, self._trained
        if self._weight is None:
            self.filters = np.ones(shape)
        else:
            weight = self._weight.d.astype(np.float64)
            self.filters = (weight.T if weight.ndim == 2 else weight).reshape(shape)
        bias = np.zeros(shape[0]) if self._bias is None else self._bias.d.astype(np.float64)
        scale, sigma, shifted, beta = np.ones(shape[0]), np.ones(shape[0]), bias, 0
        if normalization:
            beta, gamma, mean, variance = (
                parameter.d.astype(np.float64).ravel()
                for parameter in (normalization.beta, normalization.gamma, normalization.mean,
                                  normalization.variance))
            sigma = np.sqrt(variance + normalization.epsilon)
            scale, shifted = gamma / sigma, bias - mean
        self.joined = self.filters * scale.reshape(-1, 1, 1, 1)
        self.joined_bias = scale * shifted + beta
        self.factors = np.stack([
            scale**2 * (self._weight in trained),
            scale**2 * (self._bias in trained)
            + bool(normalization and normalization.beta in trained),
            sigma**-2 * bool(normalization and normalization.gamma in trained),
            shifted])


def squared_norms(sums: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Squared norm of each sample's gradient by the parameters of some layers, float64 (B,).

    Args:
        sums: (3, B, O), for each filter, by which W' and b' belong: the squared norm of the gradient by
            W', its inner product with W, and the gradient by b'.
        factors: those of the layers, (4, O).
    """
    by_weight, inner, by_bias = sums.astype(np.float64)
    weight, bias, gamma, shifted = factors
    return by_weight @ weight + np.square(by_bias) @ bias + np.square(inner + shifted * by_bias) @ gamma


def find_layers(image: nn.Variable, logits: nn.Variable, plain: Collection[str]) -> list[Layer | Any]:
    """The graph from `image` to `logits`, in the order of computation.

    Args:
        image: the network's input, (B, C, H, W).
        logits: its output in inference mode, (B, classes).
        plain: the supported types of function without parameters.

    Returns:
        A `Layer` for each function with parameters, but for normalizations that join another; and as
        ``nnabla.function.Function`` those of the types in `plain`, and all up to which nothing is
        trained, but for the last.

    Raises:
        Unsupported: the network has a function or a shared parameter that is not supported.
    """
    found = functions(image, logits, {*plain, *LAYERS}, "--layers all")
    uses = Counter(variable for function in found for variable in function.inputs)
    _refuse_shared(uses)
    _refuse_cuts(found)
    # A parameter can be kept from training by the scope or by the graph.
    trained = frozenset(nn.get_parameters().values()) & {
        variable for function in found for variable in function.inputs if variable.need_grad}
    steps: list[Layer | Any] = []
    layers: dict[nn.Variable, Layer] = {}  # by their output
    for function in found:
        kind, args = function.info.type_name, function.info.args
        (x, *parameters), result = function.inputs, function.outputs[0]
        if kind not in LAYERS or not (result.need_grad or result == logits):
            steps.append(function)
            continue
        if kind == "BatchNormalization" and x in layers and not layers[x].normalization \
                and uses[x] == 1:
            layer = layers[x]
        else:
            weight, bias = (None, None) if kind == "BatchNormalization" else (*parameters, None)[:2]
            layer = Layer(x, result, weight, bias, trained, _geometry(function))
            steps.append(layer)
        if kind == "BatchNormalization":
            beta, gamma, mean, variance = parameters
            layer.normalization = Normalization(beta, gamma, mean, variance, args["eps"])
        layer.output = result
        layers[result] = layer
    return steps


def _geometry(function) -> Geometry:
    """The geometry of a function with parameters, as a convolution."""
    x, after = function.inputs[0], _as_image(function.outputs[0])
    if function.info.type_name == "Affine":
        return Geometry((function.inputs[1].shape[0], 1, 1), after, (1, 1))
    before = _as_image(x)
    if function.info.type_name == "BatchNormalization":
        return Geometry(before, after, (1, 1), group=before[0])
    return geometry_of(function)


def _as_image(variable: nn.Variable) -> tuple[int, int, int]:
    """The shape (C, H, W) of a variable (B, C, ...)."""
    channels, height, width = (*variable.shape[1:], 1, 1)[:3]
    return channels, height, width


def _refuse_shared(uses: Counter):
    for name, parameter in nn.get_parameters().items():
        if uses[parameter] > 1:
            raise Unsupported(f"--layers all supports parameters that are used once, found {name} "
                            f"used {uses[parameter]} times")


def _refuse_cuts(found: list):
    for function in found:
        if any(variable.need_grad for variable in function.inputs) and \
                not function.outputs[0].need_grad:
            raise Unsupported("--layers all supports networks that are back-propagated throughout, "
                              f"found need_grad = False at the output of a {function.info.type_name}")
