r"""The loss of the registered networks in double precision, and its slope, by NumPy alone.

An imaginary step far below rounding gives the slope without differences (Squire and Trapp,
doi:10.1137/S003614459631241X): :math:`L'(w) \, d = \mathrm{Im} \, L(w + i h d) / h`.
"""
from collections.abc import Callable

import nnabla as nn
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

STEP = 1e-30


def slope(network: Callable, images: np.ndarray, labels: np.ndarray, parameter: nn.Variable,
          direction: np.ndarray) -> float:
    """The slope of the mean loss with the batch's statistics, as `parameter` moves in `direction`."""
    image = nn.Variable(images.shape)
    logits, _ = network(image, test=False)
    values = {image: images.astype(np.complex128)}

    def compute(function):
        inputs = [values[variable] if variable in values else variable.d.astype(np.complex128)
                  + (1j * STEP * direction if variable == parameter else 0)
                  for variable in function.inputs]
        values[function.outputs[0]] = FUNCTIONS[function.info.type_name](function.info.args, *inputs)
    logits.visit(compute)
    scores = values[logits] - values[logits].real.max(axis=1, keepdims=True)
    chosen = np.take_along_axis(scores, labels, axis=1)[:, 0]
    return float((np.log(np.exp(scores).sum(axis=1)) - chosen).mean().imag / STEP)


def _windows(x: np.ndarray, kernel, stride, pad, border=0.0) -> np.ndarray:
    """(B, C, H, W) -> (B, C, H', W', *kernel)."""
    x = np.pad(x, [(0, 0), (0, 0), *((size, size) for size in pad)], constant_values=border)
    return sliding_window_view(x, kernel, axis=(2, 3))[:, :, ::stride[0], ::stride[1]]


def _convolution(args, x, w, *bias):
    seen = _windows(x, w.shape[2:], args["stride"], args["pad"])
    y = np.tensordot(seen, w, axes=((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)
    return y + bias[0].reshape(-1, 1, 1) if bias else y


def _normalization(args, x, beta, gamma, *_):
    axes = (0, *range(2, x.ndim))
    centred = x - x.mean(axis=axes, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=axes, keepdims=True) + args["eps"])
    return gamma * centred / deviation + beta


def _max_pooling(args, x):
    seen = _windows(x, args["kernel"], args["stride"], args["pad"], -np.inf)
    seen = seen.reshape(*seen.shape[:4], -1)
    return np.take_along_axis(seen, seen.real.argmax(axis=4)[..., None], axis=4)[..., 0]


FUNCTIONS: dict[str, Callable] = {
    "Add2": lambda args, x, y: x + y,
    "Affine": lambda args, x, w, b: x.reshape(len(x), -1) @ w + b,
    "AveragePooling": lambda args, x: _windows(
        x, args["kernel"], args["stride"], args["pad"]).mean(axis=(4, 5)),
    "BatchNormalization": _normalization,
    "Convolution": _convolution,
    "GlobalAveragePooling": lambda args, x: x.mean(axis=(2, 3), keepdims=True),
    "MaxPooling": _max_pooling,
    "ReLU": lambda args, x: np.where(x.real > 0, x, 0),
}
