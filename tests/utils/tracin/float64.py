"""The scores in float64, back-propagated through NNabla's graph function by function."""
import nnabla as nn
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from utils.tracin.self_influence import output_error


def float64_scores(network, images, labels, layers="last"):
    """The self-influence, float64 (N,), and the logits, of networks of functions in ``RULES``."""
    image = nn.Variable((1, *images.shape[1:]))
    logits, _ = network(image, test=True)
    values, found = {image: images.astype(np.float64)}, []

    def compute(function):
        inputs = [values[v] if v in values else v.d.astype(np.float64) for v in function.inputs]
        values[function.outputs[0]], back = RULES[function.info.type_name](function.info.args, *inputs)
        found.append((function, back))
    logits.visit(compute)
    gradients, scores = {logits: output_error(values[logits], labels)}, np.zeros(len(images))
    for function, back in reversed(found[-1:] if layers == "last" else found):
        results = back(gradients.pop(function.outputs[0]))
        for variable, gradient in zip(function.inputs, results, strict=False):
            if variable in values:
                gradients[variable] = gradients.get(variable, 0) + gradient
            else:
                scores += np.square(gradient).reshape(len(images), -1).sum(axis=1)
    return scores, values[logits]


def convolution(args, x, w):
    (pad, _), (stride, _), kernel, count = args["pad"], args["stride"], w.shape[2:], len(x)
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = sliding_window_view(x, kernel, (2, 3))[:, :, ::stride, ::stride]
    height, width = windows.shape[2:4]
    columns = windows.transpose(0, 1, 4, 5, 2, 3).reshape(count, -1, height * width)
    flat = w.reshape(len(w), -1)

    def back(delta):
        delta = delta.reshape(count, len(w), -1)
        by_columns = (flat.T @ delta).reshape(count, x.shape[1], *kernel, height, width)
        by_x = np.zeros(x.shape)
        for row, column in np.ndindex(*kernel):
            by_x[:, :, row:row + stride * height:stride, column:column + stride * width:stride] += \
                by_columns[:, :, row, column]
        inside = slice(pad, -pad or None)
        return by_x[:, :, inside, inside], delta @ columns.transpose(0, 2, 1)
    return (flat @ columns).reshape(count, -1, height, width), back


def batch_normalization(args, x, beta, gamma, mean, variance):
    deviation = np.sqrt(variance + args["eps"])
    normal = (x - mean) / deviation
    return normal * gamma + beta, lambda delta: (
        delta * gamma / deviation, delta.sum((2, 3)), (delta * normal).sum((2, 3)))


def affine(args, x, w, b):
    flat = x.reshape(len(x), -1)
    return flat @ w + b, lambda delta: (
        (delta @ w.T).reshape(x.shape), flat[:, :, None] * delta[:, None, :], delta)


def tiles(args, x):
    """What the windows see, (B, C, H, W, window); they do not overlap."""
    (rows, columns), (*_, height, width) = args.get("kernel", x.shape[2:]), x.shape
    x = x.reshape(*x.shape[:2], height // rows, rows, width // columns, columns)
    return x.swapaxes(3, 4).reshape(*x.shape[:3], x.shape[4], -1)


def max_pooling(args, x):
    seen = tiles(args, x)
    return seen.max(4), lambda delta: untiled(
        args, x, delta, np.arange(seen.shape[4]) == seen.argmax(4)[..., None])


def average_pooling(args, x):
    seen = tiles(args, x)
    return seen.mean(4), lambda delta: untiled(args, x, delta, np.full(seen.shape, 1 / seen.shape[4]))


def untiled(args, x, delta, shares):
    kernel = args.get("kernel", x.shape[2:])
    result = (delta[..., None] * shares).reshape(*delta.shape, *kernel)
    return (result.swapaxes(3, 4).reshape(x.shape),)


RULES = {
    "Add2": lambda args, x, y: (x + y, lambda delta: (delta, delta)),
    "Affine": affine,
    "AveragePooling": average_pooling,
    "BatchNormalization": batch_normalization,
    "Convolution": convolution,
    "GlobalAveragePooling": average_pooling,
    "MaxPooling": max_pooling,
    "ReLU": lambda args, x: (np.maximum(x, 0), lambda delta: (delta * (x > 0),)),
}
