r"""Loss, logits and gradients of a batch in ONNX Runtime, from NNabla's training graph.

Every type of function has a rule: how its output follows from its inputs, and how the gradient by its
inputs and parameters follows from that by its output.  Batch normalization with the batch's mean
:math:`\mu` and standard deviation :math:`\sigma` over M numbers per channel (Ioffe and Szegedy,
arXiv:1502.03167) has, for the gradient :math:`\delta` by its output,

.. math:: \partial_\beta = \sum \delta , \quad
          \partial_\gamma = \frac{\sum \delta x - \mu \sum \delta}{\sigma} , \quad
          \partial_x = \frac{\gamma}{\sigma} \left( \delta - \frac{\partial_\beta}{M}
                       - \frac{\partial_\gamma}{M} \frac{x - \mu}{\sigma} \right) ,

of which the factor :math:`\gamma / \sigma` is applied to the filters of the convolution before it, which
are smaller than the images.
"""
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import nnabla as nn
import numpy as np
import onnx

from models.registry import Network
from utils.graph.functions import Unsupported, functions
from utils.graph.geometry import Geometry, geometry_of, pooling_of
from utils.graph.onnx_convolution import by_filters, by_input, convolve, stack, windows
from utils.graph.onnx_forward import add_operator
from utils.graph.onnx_nodes import RUNTIME, Nodes, make_session, result_name

IMAGES, LABELS = "x", "labels"
# Any positive number times STEEP is above 1, unless it is below 3.3e-39.
STEEP = 3e38
# What ONNX Runtime 1.23 says of max-pooling back over nothing but NaN, which has no largest number.
NAN_IN_POOLING = "narrowing_error"


@dataclass(frozen=True)
class Gradient:
    """A gradient (B, ...) by a variable, without its factor per channel, (C,), if there is one."""

    value: str
    factor: str = ""


class Pass:
    """A pass through a network and back, node by node.

    Args:
        nodes: the nodes so far.
        names: variable -> the name of its value.
        trained: the parameters of the scope that are trained; a graph can fix some of them.
        samples: the name of the number of samples in the batch, a float.

    Attributes:
        nodes, names, samples: as above.
        parameters: trained parameter -> the name of the gradient by it, summed over the batch.
        statistics: batch normalization -> the names of its batch's mean and (biased) variance, (C,).
        seen: max-pooling -> the names of the indices along its rows, and of what it compares then.
    """

    def __init__(self, nodes: Nodes, names: dict[nn.Variable, str], trained: set[nn.Variable],
                 samples: str):
        self.nodes, self.names, self.samples, self._trained = nodes, names, samples, trained
        self.parameters: dict[nn.Variable, str] = {}
        self.statistics: dict[Any, tuple[str, str]] = {}
        self.seen: dict[Any, list[str]] = {}
        self._gradients: dict[nn.Variable, Gradient] = {}

    def trains(self, parameter: nn.Variable) -> bool:
        """Whether the gradient by a function's parameter is wanted: the graph can fix it there."""
        return parameter.need_grad and parameter in self._trained

    def inputs(self, function) -> list[str]:
        """The names of a function's inputs; running statistics have none."""
        return [self.names[variable] for variable in function.inputs if variable in self.names]

    def add_gradient(self, variable: nn.Variable, value: str, factor: str = ""):
        """Add to the gradient by a variable, unless nothing before it is trained."""
        if not variable.need_grad:
            return
        gradient = Gradient(value, factor)
        if variable in self._gradients:
            gradient = Gradient(self.nodes.add("Add", self.scaled(self._gradients[variable]),
                                               self.scaled(gradient)))
        self._gradients[variable] = gradient

    def add_parameter_gradient(self, parameter: nn.Variable, value: str, factor: str = "",
                               rank: int = 1):
        """Add to the gradient by a trained parameter, whose first of `rank` axes is that of `factor`."""
        if factor:
            value = self.nodes.add("Mul", value, self.nodes.reshape(factor, *[-1, *[1] * (rank - 1)]))
        if parameter in self.parameters:
            value = self.nodes.add("Add", self.parameters[parameter], value)
        self.parameters[parameter] = value

    def pop_gradient(self, variable: nn.Variable) -> Gradient | None:
        """The gradient by a variable, which is complete; None if the loss does not depend on it."""
        return self._gradients.pop(variable, None)

    def scaled(self, gradient: Gradient) -> str:
        """The gradient with its factor."""
        if not gradient.factor:
            return gradient.value
        return self.nodes.add("Mul", gradient.value, self.nodes.reshape(gradient.factor, -1, 1, 1))


def convolution(steps: Pass, function) -> str:
    x, w, *bias = steps.inputs(function)
    y = convolve(steps.nodes, x, w, geometry_of(function))
    return steps.nodes.add("Add", y, steps.nodes.reshape(bias[0], -1, 1, 1)) if bias else y


def convolution_back(steps: Pass, function, gradient: Gradient):
    nodes, geometry, (x, w, *_) = steps.nodes, geometry_of(function), steps.inputs(function)
    delta, factor = gradient.value, gradient.factor
    data, weight, *bias = function.inputs
    if steps.trains(weight):
        by_weight = by_filters(nodes, x, delta, geometry).total(nodes)
        steps.add_parameter_gradient(weight, by_weight, factor, rank=4)
    if bias and steps.trains(bias[0]):
        steps.add_parameter_gradient(bias[0], nodes.sum(delta, 0, 2, 3), factor)
    if data.need_grad:
        if factor:
            w = nodes.add("Mul", w, nodes.reshape(factor, -1, 1, 1, 1))
        steps.add_gradient(data, by_input(nodes, delta, w, geometry))


def affine_back(steps: Pass, function, gradient: Gradient):
    nodes, (x, w, *_) = steps.nodes, steps.inputs(function)
    delta = steps.scaled(gradient)
    data, weight, *bias = function.inputs
    if steps.trains(weight):
        steps.add_parameter_gradient(weight, nodes.add("FusedMatMul", nodes.add("Flatten", x), delta,
                                               domain=RUNTIME, transA=1))
    if bias and steps.trains(bias[0]):
        steps.add_parameter_gradient(bias[0], nodes.sum(delta, 0))
    if data.need_grad:
        by_data = nodes.add("FusedMatMul", delta, w, domain=RUNTIME, transB=1)
        steps.add_gradient(data, nodes.reshape(by_data, -1, *data.shape[1:]))


def batch_normalization(steps: Pass, function) -> str:
    nodes, (x, beta, gamma) = steps.nodes, steps.inputs(function)
    channels = function.inputs[0].shape[1]
    # With momentum 0 the "running" statistics that it returns are the batch's.
    y = nodes.add("BatchNormalization", x, gamma, beta, nodes.constant(np.zeros(channels)),
                  nodes.constant(np.ones(channels)), results=3, training_mode=1, momentum=0.0,
                  epsilon=function.info.args["eps"])
    steps.statistics[function] = result_name(y, 1), result_name(y, 2)
    return y


def batch_normalization_back(steps: Pass, function, gradient: Gradient):
    nodes, (x, _, gamma), delta = steps.nodes, steps.inputs(function), steps.scaled(gradient)
    data, beta_parameter, gamma_parameter = function.inputs[:3]
    channels, positions = data.shape[1], prod(data.shape[2:])
    mean, variance = steps.statistics[function]
    # Products of matrices sum over the positions several times as fast as ReduceSum.
    sums = nodes.add("Gemm", nodes.constant(np.ones((1, positions))),
                     nodes.reshape(delta, -1, positions), transB=1)
    dots = nodes.add("FusedMatMul", *(nodes.reshape(value, -1, 1, positions) for value in (delta, x)),
                     domain=RUNTIME, transB=1)
    by_beta, by_x = (nodes.sum(nodes.reshape(value, -1, channels), 0) for value in (sums, dots))
    epsilon = function.info.args["eps"]
    inverse = nodes.add("Reciprocal", nodes.add("Sqrt", nodes.add("Add", variance,
                                                                 nodes.constant(float(epsilon)))))
    by_gamma = nodes.add("Mul", nodes.add("Sub", by_x, nodes.add("Mul", mean, by_beta)), inverse)
    for parameter, value in [(beta_parameter, by_beta), (gamma_parameter, by_gamma)]:
        if steps.trains(parameter):
            steps.add_parameter_gradient(parameter, value)
    if data.need_grad:
        share = nodes.add("Div", nodes.constant(-1 / positions), steps.samples)
        mean_part = nodes.add("BatchNormalization", x, nodes.add("Mul", by_gamma, share),
                              nodes.add("Mul", by_beta, share), mean, variance, epsilon=epsilon)
        scale = nodes.add("Mul", gamma, inverse)
        result = nodes.add("Add", delta, mean_part)
        if len(data.shape) == 4:
            steps.add_gradient(data, result, scale)
        else:
            steps.add_gradient(data, nodes.add("Mul", result, scale))


def relu_back(steps: Pass, function, gradient: Gradient):
    # 1 where the output is positive; Greater and Where take ten times as long.
    mask = steps.nodes.add("HardSigmoid", steps.names[function.outputs[0]], alpha=STEEP, beta=0.0)
    steps.add_gradient(function.inputs[0], steps.nodes.add("Mul", steps.scaled(gradient), mask))


def add_back(steps: Pass, function, gradient: Gradient):
    delta = steps.scaled(gradient)
    for variable in function.inputs:
        steps.add_gradient(variable, delta)


def average_pooling_back(steps: Pass, function, gradient: Gradient):
    nodes, delta = steps.nodes, steps.scaled(gradient)
    pooling, size = pooling_of(function), function.inputs[0].shape[2:]
    if pooling.kernel == size and not max(pooling.pad):
        result = nodes.add("Mul", delta, nodes.constant(np.full((1, 1, *size), 1 / prod(size))))
    else:
        if not function.info.args["including_pad"]:
            delta = nodes.add("Mul", delta, nodes.constant(_window_over_image(pooling)))
        share = np.full((pooling.before[0], 1, *pooling.kernel), 1 / prod(pooling.kernel))
        result = _spread(nodes, delta, share, pooling)
    steps.add_gradient(function.inputs[0], result)


def _window_over_image(pooling: Geometry) -> np.ndarray:
    """The size of each window over that of its part inside the image, (1, 1, *after)."""
    inside = []
    for axis in (0, 1):
        start = np.arange(pooling.after[1 + axis]) * pooling.stride[axis] - pooling.pad[axis]
        stop = np.minimum(start + pooling.kernel[axis], pooling.before[1 + axis])
        inside.append(stop - np.maximum(start, 0))
    return (prod(pooling.kernel) / np.outer(*inside))[None, None]


def _spread(nodes: Nodes, delta: str, shares: np.ndarray, pooling: Geometry) -> str:
    """Add up each number of `delta` times its shares, where they came from, (B, *before)."""
    spreading = replace(pooling, after=(len(shares), *pooling.after[1:]), group=pooling.before[0])
    return by_input(nodes, delta, nodes.constant(shares), spreading)


def max_pooling(steps: Pass, function) -> str:
    nodes, pooling = steps.nodes, pooling_of(function)
    if not _tiles(pooling):
        return add_operator(nodes, function, steps.inputs(function))
    # Pooling with indices along rows, then by comparison, takes half as long as with indices in both.
    (channels, height, _), (rows, columns) = pooling.before, pooling.kernel
    x = nodes.reshape(steps.inputs(function)[0], 0, channels, -1)
    in_rows = nodes.add("MaxPool", x, results=2, kernel_shape=[columns], strides=[columns])
    split = nodes.add("Split", nodes.reshape(in_rows, 0, channels, height // rows, rows, -1),
                      axis=3, results=rows)
    seen = [nodes.reshape(result_name(split, row), 0, *pooling.after) for row in range(rows)]
    steps.seen[function] = [result_name(in_rows, 1), *seen]
    return nodes.add("Max", *seen)


def max_pooling_back(steps: Pass, function, gradient: Gradient):
    nodes, delta, pooling = steps.nodes, steps.scaled(gradient), pooling_of(function)
    y, (channels, *after) = steps.names[function.outputs[0]], pooling.after
    if _tiles(pooling):
        indices, *seen = steps.seen[function]
        rows = [nodes.reshape(part, 0, channels, after[0], 1, after[1])
                for part in _to_first_largest(nodes, delta, y, seen)]
        joined = nodes.reshape(nodes.add("Concat", *rows, axis=3), 0, channels, -1)
        columns = pooling.kernel[1]
        unpooled = nodes.add("MaxUnpool", joined, indices, kernel_shape=[columns], strides=[columns])
        result = nodes.reshape(unpooled, 0, *pooling.before)
    else:
        seen = windows(nodes, steps.inputs(function)[0], pooling, border=-np.inf)
        parts = _to_first_largest(nodes, delta, y, seen)
        shares = np.tile(np.eye(len(parts)), (channels, 1)).reshape(-1, 1, *pooling.kernel)
        result = _spread(nodes, stack(nodes, parts, channels, *after), shares, pooling)
    steps.add_gradient(function.inputs[0], result)


def _tiles(pooling: Geometry) -> bool:
    """Whether the windows cover the image without overlaps or gaps."""
    covered = tuple(np.multiply(pooling.after[1:], pooling.kernel))
    return pooling.kernel == pooling.stride and covered == pooling.before[1:] and not max(pooling.pad)


def _to_first_largest(nodes: Nodes, delta: str, y: str, seen: list[str]) -> list[str]:
    """The part of `delta` for each value in `seen`: the first that equals their maximum `y` has it."""
    parts = []
    for value in seen[:-1]:
        smaller = nodes.add("HardSigmoid", nodes.add("Sub", y, value), alpha=STEEP, beta=0.0)
        rest = nodes.add("Mul", delta, smaller)
        parts.append(nodes.add("Sub", delta, rest))
        delta = rest
    return [*parts, delta]


def plain(steps: Pass, function) -> str:
    return add_operator(steps.nodes, function, steps.inputs(function))


@dataclass(frozen=True)
class Rule:
    """An entry of ``RULES``.

    Attributes:
        forward: adds the function and returns the name of its output.
        backward: adds the gradients by its inputs and parameters, from that by its output.
        needs: for functions without parameters, the variables whose values `backward` reads.
    """

    forward: Callable[[Pass, Any], str]
    backward: Callable[[Pass, Any, Gradient], None]
    needs: Callable[[Any], list[nn.Variable]] = lambda function: []


RULES = {
    "Add2": Rule(plain, add_back),
    "Affine": Rule(plain, affine_back),
    "AveragePooling": Rule(plain, average_pooling_back),
    "BatchNormalization": Rule(batch_normalization, batch_normalization_back),
    "Convolution": Rule(convolution, convolution_back),
    "GlobalAveragePooling": Rule(plain, average_pooling_back),
    "MaxPooling": Rule(max_pooling, max_pooling_back, needs=lambda function: function.inputs),
    "ReLU": Rule(plain, relu_back, needs=lambda function: function.outputs),
}


def forward(steps: Pass, function) -> str:
    """Add a function; returns the name of its output."""
    rule = RULES.get(function.info.type_name)  # those in FIXED have none
    return rule.forward(steps, function) if rule else plain(steps, function)


class BatchGradients:
    """Computes a batch's loss, logits and gradients at the current scope's parameters.

    Args:
        network: the network, whose parameters are created in the current scope.
        threads: they share every operation.

    Attributes:
        gradients: the memory of ``.g`` of the trained parameters, in the order of the scope.

    Raises:
        Unsupported: the network has a function without a rule, which the message names, or logits of
            another shape.
    """

    def __init__(self, network: Network, threads: int):
        image = network.input(2)
        logits, _ = network(image, test=False)
        found = functions(image, logits, RULES, "training by ONNX Runtime", batch_stat=True)
        if len(logits.shape) != 2:
            raise Unsupported(f"expected logits (B, C), found {logits.shape}; change the model")
        names = {variable: name for name, variable in nn.get_parameters(grad_only=False).items()}
        trained = set(nn.get_parameters().values())
        nodes = Nodes()
        known = {image: nodes.add_input(IMAGES, ["B", *network.shape])}
        labels = nodes.add_input(LABELS, ["B"], onnx.TensorProto.INT64)
        self._inputs: dict[str, tuple[nn.Variable, tuple[int, ...]]] = {}
        for function in found:
            normalizes = function.info.type_name == "BatchNormalization"
            for variable in function.inputs[1:3 if normalizes else None]:
                if variable in names and variable not in known:
                    shape = (variable.size,) if normalizes else variable.shape
                    known[variable] = nodes.add_input(f"parameters/{names[variable]}", shape)
                    self._inputs[known[variable]] = variable, shape
        samples = nodes.add("Cast", nodes.add("Shape", labels), to=onnx.TensorProto.FLOAT)
        steps = Pass(nodes, known, trained, samples)
        for function in found:
            known[function.outputs[0]] = forward(steps, function)
        loss, by_logits = _cross_entropy(nodes, known[logits], labels, logits.shape[1], samples)
        steps.add_gradient(logits, by_logits)
        for function in reversed(found):
            gradient = steps.pop_gradient(function.outputs[0])
            if gradient:
                RULES[function.info.type_name].backward(steps, function, gradient)
        self._classes = logits.shape[1]
        self._trained = [variable for variable in nn.get_parameters().values()
                         if variable in steps.parameters]
        self._normalizations = list(steps.statistics)
        self._outputs = [loss, known[logits],
                         *(steps.parameters[variable] for variable in self._trained),
                         *(name for pair in steps.statistics.values() for name in pair)]
        self._session = make_session(nodes.model(dict.fromkeys(self._outputs)), threads)
        self.bind()

    def bind(self):
        """Find where NNabla keeps its numbers now.

        Call it again after anything but this object and a solver has written parameters: looking it up
        in every update would take longer than the update of a small network.
        """
        self._feeds = {name: variable.data.cast(np.float32).reshape(shape)
                       for name, (variable, shape) in self._inputs.items()}
        self.gradients = [variable.grad.data for variable in self._trained]
        self._running = [tuple(variable.data.data for variable in function.inputs[3:5])
                         for function in self._normalizations]

    def __call__(self, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
        """Set ``.g`` of the trained parameters, and update the running statistics.

        Args:
            images: (B, *shape of a sample), of any numeric type.
            labels: integers (B, 1).

        Returns:
            The logits, float32 (B, C), and the mean cross entropy.  They can be NaN where parameters are
            not finite; gradients and statistics may then be those of before.
        """
        if any(variable.grad.zeroing for variable in self._trained):
            self.bind()  # zeros that NNabla has yet to write would replace what is written here
        feeds = {IMAGES: images.astype(np.float32, copy=False), LABELS: labels.ravel().astype(np.int64)}
        try:
            loss, logits, *values = self._session.run(self._outputs, {**self._feeds, **feeds})
        except Exception as error:  # ONNX Runtime has a type for each of its errors
            if NAN_IN_POOLING not in str(error):
                raise
            return np.full((len(images), self._classes), np.nan, np.float32), np.nan
        for gradient, value in zip(self.gradients, values, strict=False):
            gradient[...] = value.reshape(gradient.shape)
        statistics = values[len(self.gradients):]
        for function, (mean, variance), found_mean, found_variance in zip(
                self._normalizations, self._running, statistics[::2], statistics[1::2], strict=True):
            decay = np.float32(function.info.args["decay_rate"])
            count = len(images) * prod(function.inputs[0].shape[2:])
            # The variance of one number is 0 here; in NNabla it makes the running variance NaN.
            _approach(mean, found_mean, decay)
            _approach(variance, found_variance * np.float32(count / max(count - 1, 1)), decay)
        return logits, loss.item()


def _approach(running: np.ndarray, value: np.ndarray, decay: np.float32):
    running[...] = decay * running + (1 - decay) * value.reshape(running.shape)


def _cross_entropy(nodes: Nodes, logits: str, labels: str, classes: int,
                   samples: str) -> tuple[str, str]:
    """The mean softmax cross entropy, and its gradient by the logits."""
    logarithm = nodes.add("LogSoftmax", logits, axis=1)
    given = nodes.add("OneHot", labels, nodes.constant([classes]), nodes.constant([0.0, 1.0]))
    total = nodes.add("ReduceSum", nodes.add("Mul", logarithm, given), keepdims=0)
    error = nodes.add("Sub", nodes.add("Exp", logarithm), given)
    return nodes.add("Neg", nodes.add("Div", total, samples)), nodes.add("Div", error, samples)
