r"""The norm of each sample's own gradient, by every trainable parameter, for a batch in one pass.

The gradient by a layer's weights is a sum over the positions :math:`p` of the layer's output,

.. math:: \partial_W = \sum_p \delta_p x_p^T ,

where :math:`\delta_p` is the gradient by the output there and :math:`x_p` is the part of the input
that the filters see there.  One ordinary backward pass, by the images alone, gives :math:`\delta` for
the whole batch, and one batched product per layer gives each sample's sum.  For affine maps this is
Goodfellow's method (arXiv:1510.01799).  Giving each sample its own copy of the weights yields the
same (Rochette et al., arXiv:1912.06015), but its grouped convolutions are several times slower on a
GPU.

`utils.graph.layers` joins batch normalizations with the convolutions before them.
"""
import nnabla as nn
import nnabla.functions as F
import numpy as np
from nnabla.ext_utils import get_extension_context

from utils.context import current_context
from utils.graph.layers import Layer, find_layers, squared_norms

# Functions without parameters.
PLAIN = {"Add2": F.add2, "AveragePooling": F.average_pooling,
         "GlobalAveragePooling": F.global_average_pooling, "MaxPooling": F.max_pooling,
         "ReLU": F.relu}


class Products:
    """A layer's convolution, and the products of its backward pass.

    Args:
        layer: the layer.
        x: its input, (B, C, H, W), in this graph.
    """

    def __init__(self, layer: Layer, x: nn.Variable):
        options = {key: getattr(layer.geometry, key) for key in ("group", "pad", "stride", "dilation")}
        self._layer, shape = layer, layer.shape
        self._joined, self._filters = nn.Variable(shape), nn.Variable((1, np.prod(shape)))
        self.output = F.convolution(x, self._joined, **options)
        device = nn.get_current_context().device_id
        # Squares of gradients would overflow in half precision.
        with nn.context_scope(get_extension_context(current_context(), device_id=device,
                                                    type_config="float")):
            delta = nn.Variable(self.output.shape)
            delta.data = self.output.grad
            self._sums = _sums(self._filters, *_unfold(x.get_unlinked_variable(), delta, shape[2:],
                                                       **options))
        self._reshaped: list[nn.NdArray] = []  # results that were reshaped in place
        self._sums.visit(lambda function: self._reshaped.extend(
            variable.data for variable in function.inputs
            if function.info.type_name == "Reshape" and variable.parent
            and variable.parent.info.type_name != "Reshape"))

    def load_parameters(self):
        """Take the current parameters, joined with the normalization."""
        self._layer.load_parameters()
        self._filters.d = self._layer.filters.transpose(0, 2, 3, 1).reshape(1, -1)
        self._joined.d = self._layer.joined

    def compute(self):
        """Compute, after the backward pass, what `squared_norms` reads."""
        self._sums.forward(clear_buffer=True)
        for array in self._reshaped:  # clear_buffer keeps these
            array.clear()

    def squared_norms(self) -> np.ndarray:
        """Squared norm of the gradient by the layer's parameters, of each sample, float64 (B,)."""
        sums = self._sums.d.reshape(-1, self._layer.shape[0], 3)
        return squared_norms(np.moveaxis(sums, 2, 0), self._layer.factors)


def _unfold(x: nn.Variable, delta: nn.Variable, kernel: tuple[int, ...], group=1, pad=(0, 0),
            stride=(1, 1), dilation=(1, 1)) -> tuple[nn.Variable, ...]:
    """The two factors of a convolution's gradient by its weights, to be multiplied over P positions.

    Args:
        x: input, (B, C, H, W).
        delta: gradient by the output, (B, O, ...).
        kernel, group, pad, stride, dilation: the convolution's.

    Returns:
        The gradient by the output, (B group, O/group, P), and what the filters see of the input,
        (B group, k k C/group, P).
    """
    x, delta = (F.reshape(variable, (variable.shape[0] * group, -1, *variable.shape[2:]))
                for variable in (x, delta))
    x = _pad(_pad(x, 2, pad[0], pad[0] + (kernel[1] > 1)), 3, pad[1], pad[1])
    shifts: list[tuple[int, ...]] = [(row * dilation[0], column * dilation[1])
                                     for row, column in np.ndindex(*kernel)]
    if max(stride) == 1:
        # Slices of whole images are copied several times as fast as slices of each row.  Where they
        # run over the end of a row, the gradient is zero; in the last row, they need one more.
        width = x.shape[3]
        shifts, stride = [(row * width + column,) for row, column in shifts], (1,)
        x, delta = (F.reshape(variable, (*variable.shape[:2], -1))
                    for variable in (x, _pad(delta, 3, 0, width - delta.shape[3])))
    size = delta.shape[2:]
    if x.shape[2:] != size:  # otherwise each filter sees one pixel
        stops = (start + (np.array(size) - 1) * stride + 1 for start in np.array(shifts))
        x = _concatenate([F.slice(x, (0, 0, *start), (*x.shape[:2], *stop), (1, 1, *stride))
                          for start, stop in zip(shifts, stops, strict=True)], axis=1)
    return tuple(F.reshape(variable, (*variable.shape[:2], -1)) for variable in (delta, x))


def _pad(x: nn.Variable, axis: int, before: int, after: int) -> nn.Variable:
    """Zeros around `x` along an axis, 20 times as fast as `F.pad` on a CPU."""
    zeros = [[_constant(0, (*x.shape[:axis], count, *x.shape[axis + 1:]))] if count else []
             for count in (before, after)]
    return _concatenate([*zeros[0], x, *zeros[1]], axis)


def _concatenate(parts: list[nn.Variable], axis: int) -> nn.Variable:
    return F.concatenate(*parts, axis=axis) if len(parts) > 1 else parts[0]


def _constant(value: float, shape: tuple[int, ...]) -> nn.Variable:
    return nn.Variable.from_numpy_array(np.full(shape, value))


def _sums(filters: nn.Variable, delta: nn.Variable, columns: nn.Variable) -> nn.Variable:
    """Three sums per sample and filter, (B O, 1, 3), from which the norms follow.

    They are the squared norm of the gradient by the filter, its inner product with the filter, and
    the gradient by the bias.  All are matrix products, because NNabla's own sums over inner axes fail
    on some GPUs.

    Args:
        filters: (1, O k k I).
        delta, columns: what `_unfold` returns.
    """
    positions = delta.shape[2]
    rows = delta.size // positions
    by_weight = F.batch_matmul(delta, columns, transpose_b=True)
    copies = F.affine(_constant(1, (by_weight.size // filters.size, 1)), filters)
    by_weight, copies = (F.reshape(variable, (rows, 1, -1)) for variable in (by_weight, copies))
    by_bias = F.affine(F.reshape(delta, (rows, positions)), _constant(1, (positions, 1)))
    return F.concatenate(F.batch_matmul(by_weight, by_weight, transpose_b=True),
                         F.batch_matmul(by_weight, copies, transpose_b=True),
                         F.reshape(by_bias, (rows, 1, 1)), axis=2)


class PerSampleNetwork:
    """The backward pass of a network, and the norm of each sample's gradient from it.

    It has no forward pass of its own: its variables share the data of the network's variables, so the
    gradients are taken at the very numbers of an ordinary pass, bit for bit.

    Args:
        image: the network's input, (B, C, H, W).
        logits: the network's output in inference mode, (B, classes).

    Raises:
        Unsupported: the network has a function or a shared parameter that is not supported.
    """

    def __init__(self, image: nn.Variable, logits: nn.Variable):
        self._layers: list[Products] = []
        self._stateful = []
        steps = find_layers(image, logits, PLAIN)
        copies = {image: _beginning(image)}  # of the network's variables
        for step in steps:
            if isinstance(step, Layer):
                x, shape = copies[step.x], (image.shape[0], *step.geometry.before)
                products = Products(step, x if x.shape == shape else F.reshape(x, shape))
                self._layers.append(products)
                y, result = products.output, step.output
            elif not step.outputs[0].need_grad:
                copies[step.outputs[0]] = _beginning(step.outputs[0])
                continue
            else:
                kind, result = step.info.type_name, step.outputs[0]
                y = PLAIN[kind](*(copies[variable] for variable in step.inputs), **step.info.args)
                if kind == "MaxPooling":
                    self._stateful.append(y.parent)
            y.data = _as_images(result).data
            copies[result] = y
        self._logits = copies[logits]

    def load_parameters(self):
        """Take the parameters that the current scope has now."""
        for layer in self._layers:
            layer.load_parameters()

    def squared_norms(self, by_logits: np.ndarray) -> np.ndarray:
        """Back-propagate, after the network's own forward pass.

        Args:
            by_logits: gradient by the logits, (B, classes).

        Returns:
            Squared norm of each sample's gradient by all trainable parameters, float64 (B,).
        """
        self._logits.g = by_logits.reshape(self._logits.shape)
        for function in self._stateful:  # max-pooling remembers where the maximum was
            function.forward(function.inputs, function.outputs)
        self._logits.backward(None)  # clear_buffer would clear the layers' gradients
        for layer in self._layers:
            layer.compute()  # all before the first is read, which waits for the GPU
        return sum((layer.squared_norms() for layer in self._layers),
                   start=np.zeros(len(by_logits)))


def _beginning(variable: nn.Variable) -> nn.Variable:
    """A variable before everything that is trained, where the backward pass ends."""
    result = _as_images(variable)
    result.need_grad = True  # or the first layer's output would have no gradient
    return result


def _as_images(variable: nn.Variable) -> nn.Variable:
    """(B, C, ...) -> (B, C, H, W), with the same data."""
    return variable.reshape((*variable.shape, 1, 1)[:4], unlink=True)
