"""NNabla's inference graphs as ONNX models."""
from collections.abc import Callable
from pathlib import Path

import nnabla as nn
import onnx

from models.registry import Network
from utils.files import save_bytes
from utils.graph.functions import Unsupported, functions
from utils.graph.onnx_nodes import Nodes

INPUT, OUTPUT = "x", "y"


def _window(args: dict) -> dict:
    return {"kernel_shape": args["kernel"], "strides": args["stride"], "pads": args["pad"] * 2}


# Function -> operator, the operator's attributes from the function's arguments, and the order of the
# function's inputs in the operator.
OPERATORS: dict[str, tuple[str, Callable[[dict], dict], tuple[int, ...]]] = {
    "Add2": ("Add", lambda args: {}, (0, 1)),
    "AddScalar": ("Add", lambda args: {}, (0,)),
    "Affine": ("Gemm", lambda args: {}, (0, 1, 2)),
    "AveragePooling": ("AveragePool", lambda args: {
        **_window(args), "count_include_pad": int(args["including_pad"])}, (0,)),
    # NNabla: beta, gamma, mean, variance; ONNX: scale, offset, mean, variance.
    "BatchNormalization": ("BatchNormalization", lambda args: {"epsilon": args["eps"]},
                           (0, 2, 1, 3, 4)),
    "Convolution": ("Conv", lambda args: {
        "strides": args["stride"], "pads": args["pad"] * 2, "dilations": args["dilation"],
        "group": args["group"]}, (0, 1, 2)),
    "Div2": ("Div", lambda args: {}, (0, 1)),
    "GlobalAveragePooling": ("GlobalAveragePool", lambda args: {}, (0,)),
    "MaxPooling": ("MaxPool", _window, (0,)),
    "Mul2": ("Mul", lambda args: {}, (0, 1)),
    "MulScalar": ("Mul", lambda args: {}, (0,)),
    "Pad": ("Pad", lambda args: {}, (0,)),
    "PowScalar": ("Pow", lambda args: {}, (0,)),
    "ReLU": ("Relu", lambda args: {}, (0,)),
    "ReLU6": ("Clip", lambda args: {}, (0,)),
    "Sub2": ("Sub", lambda args: {}, (0, 1)),
}


def _pads(function) -> list[int]:
    """ONNX: before every axis, then after every axis.  NNabla: pairs, for the last axes."""
    pads = function.info.args["pad_width"]
    pads = [0] * (2 * function.inputs[0].ndim - len(pads)) + list(pads)
    return pads[::2] + pads[1::2]


# What NNabla has as arguments and ONNX as inputs, after the function's own.
CONSTANTS: dict[str, Callable[..., tuple]] = {
    "AddScalar": lambda function: (function.info.args["val"],),
    "MulScalar": lambda function: (function.info.args["val"],),
    "Pad": lambda function: (_pads(function), function.info.args["constant_value"]),
    "PowScalar": lambda function: (function.info.args["val"],),
    "ReLU6": lambda function: (0.0, 6.0),
}


def add_operator(nodes: Nodes, function, inputs: list[str], **more) -> str:
    """Add the operator of a function to its `inputs`, in the function's order."""
    operator, attributes, order = OPERATORS[function.info.type_name]
    inputs = [inputs[place] for place in order if place < len(inputs)]
    if function.info.type_name == "Affine":
        inputs[0] = nodes.add("Flatten", inputs[0])
    if function.info.type_name in CONSTANTS:
        inputs += map(nodes.constant, CONSTANTS[function.info.type_name](function))
    return nodes.add(operator, *inputs, **attributes(function.info.args), **more)


def parameter_constant(nodes: Nodes, function, parameter: nn.Variable, name: str = "") -> str:
    """A function's parameter as it is now, in the shape that the function's operator takes."""
    flat = function.info.type_name == "BatchNormalization"
    return nodes.constant(parameter.d.ravel() if flat else parameter.d, name)


def to_onnx(image: nn.Variable, output: nn.Variable) -> onnx.ModelProto:
    """The graph from `image` to `output` with the current parameters, for batches of any size.

    Args:
        image: (B, C, H, W); the model's input ``x`` is float32 (N, C, H, W).
        output: (B, ...), in inference mode; the model's output ``y`` is float32 (N, ...).

    Raises:
        Unsupported: a function has no translation; the message names it.
    """
    parameters = {variable: name for name, variable in nn.get_parameters(grad_only=False).items()}
    nodes = Nodes()
    names = {image: nodes.add_input(INPUT, ["N", *image.shape[1:]])}
    for function in functions(image, output, OPERATORS, "the translation to ONNX"):
        for variable in function.inputs:
            if variable not in names:
                names[variable] = parameter_constant(nodes, function, variable, parameters[variable])
        result, = function.outputs
        names[result] = add_operator(nodes, function, [names[variable] for variable in function.inputs],
                                     name=OUTPUT if result == output else "")
    model = nodes.model({OUTPUT: ["N", *output.shape[1:]]})
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # of several modules' own types
        raise Unsupported(f"the translation to ONNX is not valid: {error}; change the model") from error
    return model


def save_network(path: Path, network: Network):
    """Write a network with the current parameters; ``x`` is what it was trained on, ``y`` the logits.

    Args:
        path: the file to write.
        network: images enter as 0..255.

    Raises:
        Unsupported: a function has no translation; the message names it.
        RunError: the file cannot be written.
    """
    image = network.input(1)
    logits, _ = network(image, test=True)
    save_bytes(path, to_onnx(image, logits).SerializeToString())
