r"""The norm of each sample's own gradient, by every trainable parameter, for a batch in one pass.

Each sample gets its own copy of the weights: the batch is folded into the channels, (B, C, H, W) ->
(1, B C, H, W), and a convolution becomes one with B times as many groups.  What one backward pass
leaves in a sample's copy is the gradient of that sample alone (Rochette et al., arXiv:1912.06015),
at the cost of an ordinary pass.

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
from collections.abc import Container
from dataclasses import dataclass

import nnabla as nn
import nnabla.functions as F
import numpy as np

from utils.graph.functions import LAYERS, Unsupported, functions

# Functions that treat every channel by itself, and so do not mind whose sample's it is.
CHANNELWISE = {"Add2": F.add2, "AveragePooling": F.average_pooling,
               "GlobalAveragePooling": F.global_average_pooling, "MaxPooling": F.max_pooling,
               "ReLU": F.relu}


@dataclass
class Normalization:
    """The parameters of a batch normalization of O channels, each of O numbers."""

    beta: nn.Variable
    gamma: nn.Variable
    mean: nn.Variable
    variance: nn.Variable
    epsilon: float


class Layer:
    """A convolution, an affine map or a batch normalization: one convolution with O filters a sample.

    Args:
        weight: its parameter, (O, I, k, k); or (I, O), of an affine map; or None for the identity.
        bias: its parameter, (O,), or None.
        shape: (O, I, k, k), the shape of the filters.
        batch_size: samples B.
        trained: the parameters whose gradient counts.
    """

    def __init__(self, weight: nn.Variable | None, bias: nn.Variable | None,
                 shape: tuple[int, ...], batch_size: int, trained: Container[nn.Variable]):
        self._weight, self._bias, self._shape = weight, bias, shape
        self._batch_size, self._trained = batch_size, trained
        self.normalization: Normalization | None = None
        self.weights = nn.Variable((batch_size * shape[0], *shape[1:]), need_grad=True)
        self.biases = nn.Variable((batch_size * shape[0],), need_grad=True)

    def load_parameters(self):
        """Give every sample its copy of the current parameters, joined with the normalization."""
        filters = self._shape[0]
        if self._weight is None:
            weight = np.ones(self._shape)
        else:
            weight = self._weight.d.astype(np.float64)
            weight = (weight.T if weight.ndim == 2 else weight).reshape(self._shape)
        bias = np.zeros(filters) if self._bias is None else self._bias.d.astype(np.float64)
        self._scale, self._sigma, self._shifted = np.ones(filters), np.ones(filters), bias
        if self.normalization:
            beta, gamma, mean, variance = (
                parameter.d.astype(np.float64).ravel()
                for parameter in (self.normalization.beta, self.normalization.gamma,
                                  self.normalization.mean, self.normalization.variance))
            self._sigma = np.sqrt(variance + self.normalization.epsilon)
            self._scale, self._shifted = gamma / self._sigma, bias - mean
            bias = self._scale * self._shifted + beta
        self._filters = weight.reshape(filters, -1)
        weight = (weight * self._scale.reshape(-1, 1, 1, 1)).astype(np.float32)
        self.weights.d = np.tile(weight, (self._batch_size, 1, 1, 1))
        self.biases.d = np.tile(bias, self._batch_size)

    def squared_norms(self) -> np.ndarray:
        """Squared norm of the gradient by the layer's parameters, of each sample, float64 (B,)."""
        by_weight = self.weights.g.reshape(self._batch_size, *self._filters.shape)
        by_weight = by_weight.astype(np.float32, copy=False)  # half would overflow
        by_bias = self.biases.g.reshape(self._batch_size, -1).astype(np.float64)
        total = np.zeros(self._batch_size)
        if self._weight in self._trained:
            total += np.einsum("bfi,bfi->bf", by_weight, by_weight) @ self._scale**2
        if self._bias in self._trained:
            total += np.square(self._scale * by_bias).sum(axis=1)
        if self.normalization and self.normalization.beta in self._trained:
            total += np.square(by_bias).sum(axis=1)
        if self.normalization and self.normalization.gamma in self._trained:
            by_gamma = np.einsum("bfi,fi->bf", by_weight, self._filters) + self._shifted * by_bias
            total += np.square(by_gamma / self._sigma).sum(axis=1)
        return total


class PerSampleNetwork:
    """The backward pass of a network in which each sample has its own copy of the parameters.

    There is no forward pass of its own: its variables have the data of those of the network itself,
    so that the gradients are taken at the very numbers of an ordinary pass, bit for bit.

    Args:
        image: where the network begins, (B, C, H, W).
        logits: where it ends, (B, classes), in inference mode.

    Raises:
        Unsupported: the network has a function or a shared parameter that this cannot take.
    """

    def __init__(self, image: nn.Variable, logits: nn.Variable):
        self._batch_size, self._layers = image.shape[0], []
        self._stateful = []
        found = functions(image, logits, {*CHANNELWISE, *LAYERS}, "--layers all")
        uses = Counter(variable for function in found for variable in function.inputs)
        _refuse_shared(uses)
        _refuse_cuts(found)
        # A parameter can be kept from training by the scope or by the graph.
        self._trained = frozenset(nn.get_parameters().values()) & {
            variable for function in found for variable in function.inputs if variable.need_grad}
        folded, layers = {image: _fold(image)}, {}
        for function in found:
            kind, args, first = function.info.type_name, function.info.args, function.inputs[0]
            x, result = folded[first], function.outputs[0]
            if kind in CHANNELWISE:
                y = CHANNELWISE[kind](*(folded[variable] for variable in function.inputs), **args)
            elif kind == "BatchNormalization":
                layer, y = layers.get(first), x
                if layer is None or layer.normalization or uses[first] > 1:
                    channels = first.shape[1]
                    layer, y = self._convolve(x, None, None, (channels, 1, 1, 1), group=channels)
                layer.normalization = Normalization(*function.inputs[1:], args["eps"])
                layers[result] = layer
            else:
                weight, bias = (*function.inputs[1:], None)[:2]
                if kind == "Affine":
                    inputs, outputs = weight.shape
                    layers[result], y = self._convolve(
                        F.reshape(x, (1, self._batch_size * inputs, 1, 1)), weight, bias,
                        (outputs, inputs, 1, 1))
                else:
                    layers[result], y = self._convolve(
                        x, weight, bias, weight.shape, args["group"], pad=args["pad"],
                        stride=args["stride"], dilation=args["dilation"])
            y.data = _fold(result).data
            if kind == "MaxPooling":
                self._stateful.append(y.parent)
            folded[result] = y
        self._logits = folded[logits]

    def _convolve(self, x: nn.Variable, weight: nn.Variable | None, bias: nn.Variable | None,
                  shape: tuple[int, ...], group: int = 1, **options) -> tuple[Layer, nn.Variable]:
        layer = Layer(weight, bias, shape, self._batch_size, self._trained)
        self._layers.append(layer)
        return layer, F.convolution(x, layer.weights, layer.biases,
                                    group=self._batch_size * group, **options)

    def load_parameters(self):
        """Give the samples their copies of the parameters that the current scope has now."""
        for layer in self._layers:
            layer.load_parameters()

    def squared_norms(self, by_logits: np.ndarray) -> np.ndarray:
        """Back-propagate, after the network's own forward pass, through each sample's copy.

        Args:
            by_logits: gradient by the logits, (B, classes).

        Returns:
            Squared norm of each sample's gradient by all trainable parameters, float64 (B,).
        """
        gradient = nn.NdArray(self._logits.shape)
        gradient.data = by_logits.reshape(self._logits.shape)
        for layer in self._layers:
            layer.weights.grad.zero()
            layer.biases.grad.zero()
        for function in self._stateful:  # max-pooling remembers where the maximum was
            function.forward(function.inputs, function.outputs)
        self._logits.backward(gradient, clear_buffer=True)
        return sum(layer.squared_norms() for layer in self._layers)


def _fold(variable: nn.Variable) -> nn.Variable:
    """The samples as channels of one, (B, C, ...) -> (1, B C, H, W), with the same data."""
    batch_size, channels, height, width = (*variable.shape, 1, 1)[:4]
    return variable.reshape((1, batch_size * channels, height, width), unlink=True)


def _refuse_shared(uses: Counter):
    for name, parameter in nn.get_parameters().items():
        if uses[parameter] > 1:
            raise Unsupported(f"--layers all can take parameters that are used once, found {name} "
                            f"used {uses[parameter]} times")


def _refuse_cuts(found: list):
    for function in found:
        if any(variable.need_grad for variable in function.inputs) and \
                not function.outputs[0].need_grad:
            raise Unsupported("--layers all can take networks that are back-propagated through, found "
                              f"need_grad = False at the output of a {function.info.type_name}")
