"""The norm of each sample's own gradient, by every trainable parameter, in ONNX Runtime.

The products of `by_filters`, before they are summed over the batch, are the gradients of the samples.
`utils.graph.layers` says how the norms follow.
"""
from math import prod

import nnabla as nn
import numpy as np
from onnxruntime import OrtValue

from utils.graph.functions import LAYERS
from utils.graph.layers import Layer, find_layers, squared_norms
from utils.graph.onnx_convolution import by_filters, by_input
from utils.graph.onnx_forward import INPUT, add_operator, parameter_constant
from utils.graph.onnx_gradient import RULES, Pass
from utils.graph.onnx_nodes import Nodes, make_session

BY_LOGITS, SUMS = "by_logits", ("squares", "inner_products", "by_bias")


class OnnxPerSampleNetwork:
    """A network's passes, and the norm of each sample's gradient from them, on one thread.

    The backward pass is a model of its own, for it starts from a gradient that is computed elsewhere,
    from what the forward pass gives.  It is safe to call from several threads at once.

    Args:
        image: the network's input, (B, C, H, W), of any B.
        logits: the network's output in inference mode, (B, classes).

    Raises:
        Unsupported: the network has a function or a shared parameter that is not supported.
    """

    def __init__(self, image: nn.Variable, logits: nn.Variable):
        self._image, self._logits = image, logits
        self._steps = find_layers(image, logits, RULES.keys() - set(LAYERS))

    def load_parameters(self):
        """Take the parameters that the current scope has now, as constants."""
        for step in self._steps:
            if isinstance(step, Layer):
                step.load_parameters()
        needed = dict.fromkeys([self._image, *(x for step in self._steps for x in _needed(step))])
        nodes = Nodes()
        names = {self._image: nodes.add_input(INPUT, ["B", *self._image.shape[1:]])}
        for step in self._steps[:-1]:
            if isinstance(step, Layer):
                names[step.output] = _convolve(nodes, names[step.x], step)
            else:
                for variable in step.inputs:
                    if variable not in names:
                        names[variable] = parameter_constant(nodes, step, variable)
                names[step.outputs[0]] = add_operator(nodes, step, [names[x] for x in step.inputs])
        self._features = names[self._steps[-1].x]
        self._kept = [names[variable] for variable in needed][1:]
        self._forward = make_session(nodes.model(dict.fromkeys(self._kept)), threads=1) \
            if self._kept else None  # a network of an affine map alone
        self._load_backward({variable: names[variable] for variable in needed})

    def _load_backward(self, needed: dict[nn.Variable, str]):
        nodes = Nodes()
        names = {variable: nodes.add_input(name, ["B", *variable.shape[1:]])
                 for variable, name in needed.items()}
        steps = Pass(nodes, names, trained=set(), samples="")
        steps.add_gradient(self._logits, nodes.add_input(BY_LOGITS, ["B", self._logits.shape[1]]))
        sums, factors = [], []
        for step in reversed(self._steps):
            output = step.output if isinstance(step, Layer) else step.outputs[0]
            gradient = steps.pop_gradient(output)
            if not gradient:
                continue
            if isinstance(step, Layer):
                sums.append(_back_propagate(steps, step, steps.scaled(gradient)))
                factors.append(step.factors)
            else:
                rule = RULES[step.info.type_name]
                if set(rule.needs(step)) & set(step.inputs):  # and what it computed from them
                    names[output] = rule.forward(steps, step)
                rule.backward(steps, step, gradient)
        self._backward = None
        if sums:
            for name, parts in zip(SUMS, zip(*sums, strict=True), strict=True):
                nodes.add("Concat", *parts, axis=1, name=name)
            self._backward = make_session(nodes.model(dict.fromkeys(SUMS)), threads=1)
            self._factors = np.concatenate(factors, axis=1)

    def forward(self, images: np.ndarray) -> tuple[np.ndarray, dict[str, OrtValue]]:
        """The features that enter the last layer, (B, ...), and what `squared_norms` needs.

        Args:
            images: float32 (B, C, H, W).
        """
        values = {INPUT: OrtValue.ortvalue_from_numpy(images)}
        if self._forward:
            kept = self._forward.run_with_ort_values(self._kept, values)
            values.update(zip(self._kept, kept, strict=True))
        return values[self._features].numpy(), values

    def squared_norms(self, values: dict[str, OrtValue], by_logits: np.ndarray) -> np.ndarray:
        """Back-propagate.

        Args:
            values: what `forward` returned.
            by_logits: gradient by the logits, (B, classes).

        Returns:
            Squared norm of each sample's gradient by all trainable parameters, float64 (B,).
        """
        if not self._backward:
            return np.zeros(len(by_logits))
        start = OrtValue.ortvalue_from_numpy(by_logits.astype(np.float32))
        sums = self._backward.run_with_ort_values(SUMS, {**values, BY_LOGITS: start})
        return squared_norms(np.stack([value.numpy() for value in sums]), self._factors)


def _needed(step) -> list[nn.Variable]:
    """What the backward pass needs of the forward pass."""
    if isinstance(step, Layer):
        return [step.x]
    return RULES[step.info.type_name].needs(step) if step.outputs[0].need_grad else []


def _reshape(nodes: Nodes, value: str, before: tuple[int, ...], after: tuple[int, ...]) -> str:
    return value if before == after else nodes.reshape(value, -1, *after)


def _convolve(nodes: Nodes, x: str, layer: Layer) -> str:
    geometry = layer.geometry
    x = _reshape(nodes, x, layer.x.shape[1:], geometry.before)
    y = nodes.add("Conv", x, nodes.constant(layer.joined), nodes.constant(layer.joined_bias),
                  **geometry.attributes)
    return _reshape(nodes, y, geometry.after, layer.output.shape[1:])


def _back_propagate(steps: Pass, layer: Layer, delta: str) -> list[str]:
    """Give the gradient by a layer's input; returns the three sums, (B, O), for `squared_norms`."""
    nodes, geometry = steps.nodes, layer.geometry
    filters, size = geometry.after[0], prod(layer.shape[1:])
    x = _reshape(nodes, steps.names[layer.x], layer.x.shape[1:], geometry.before)
    delta = _reshape(nodes, delta, layer.output.shape[1:], geometry.after)
    by_weight = by_filters(nodes, x, delta, geometry)
    values = nodes.reshape(by_weight.value, -1, filters, size)
    # ReduceSumSquare takes twice as long, and so do products with a vector of ones.
    squares, inner = (nodes.sum(nodes.add("Mul", values, other), 2) for other in (
        values, nodes.constant(by_weight.in_order(layer.filters))))
    if layer.x.need_grad:
        by_x = by_input(nodes, delta, nodes.constant(layer.joined), geometry)
        steps.add_gradient(layer.x, _reshape(nodes, by_x, geometry.before, layer.x.shape[1:]))
    return [squares, inner, nodes.sum(delta, 2, 3)]
