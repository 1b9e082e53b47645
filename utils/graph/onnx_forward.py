"""NNabla's inference graphs as ONNX models (https://onnx.ai/onnx/operators), operator set 17."""
from collections.abc import Callable
from pathlib import Path

import nnabla as nn
import numpy as np
import onnx
from onnx import helper, numpy_helper

from datasets.arrays import IMAGE_SHAPE
from utils.files import save_bytes
from utils.graph.functions import Unsupported, functions

OPERATOR_SET, FORMAT_VERSION = 17, 8
INPUT, OUTPUT = "x", "y"


def _window(args: dict) -> dict:
    return {"kernel_shape": args["kernel"], "strides": args["stride"], "pads": args["pad"] * 2}


# Function -> operator, the operator's attributes from the function's arguments, and the order of the
# function's inputs in the operator.
OPERATORS: dict[str, tuple[str, Callable[[dict], dict], tuple[int, ...]]] = {
    "Add2": ("Add", lambda args: {}, (0, 1)),
    "Affine": ("Gemm", lambda args: {}, (0, 1, 2)),
    "AveragePooling": ("AveragePool", lambda args: {
        **_window(args), "count_include_pad": int(args["including_pad"])}, (0,)),
    # NNabla: beta, gamma, mean, variance; ONNX: scale, offset, mean, variance.
    "BatchNormalization": ("BatchNormalization", lambda args: {"epsilon": args["eps"]},
                           (0, 2, 1, 3, 4)),
    "Convolution": ("Conv", lambda args: {
        "strides": args["stride"], "pads": args["pad"] * 2, "dilations": args["dilation"],
        "group": args["group"]}, (0, 1, 2)),
    "GlobalAveragePooling": ("GlobalAveragePool", lambda args: {}, (0,)),
    "MaxPooling": ("MaxPool", _window, (0,)),
    "ReLU": ("Relu", lambda args: {}, (0,)),
}


def to_onnx(image: nn.Variable, output: nn.Variable) -> onnx.ModelProto:
    """The graph from `image` to `output` with the current parameters, for batches of any size.

    Args:
        image: (B, C, H, W); the model's input ``x`` is float32 (N, C, H, W).
        output: (B, ...), in inference mode; the model's output ``y`` is float32 (N, ...).

    Raises:
        Unsupported: a function has no translation; the message names it.
    """
    names = {variable: name for name, variable in nn.get_parameters(grad_only=False).items()}
    names |= {image: INPUT, output: OUTPUT}
    computed, nodes, parameters = {image}, [], {}
    for number, function in enumerate(functions(image, output, OPERATORS, "the translation to ONNX")):
        kind, args = function.info.type_name, function.info.args
        for variable in function.inputs:
            if variable not in computed:
                value = variable.d.astype(np.float32)
                parameters[names[variable]] = \
                    value.ravel() if kind == "BatchNormalization" else value
        operator, attributes, order = OPERATORS[kind]
        inputs = [names[function.inputs[place]] for place in order if place < len(function.inputs)]
        if kind == "Affine":
            flat = f"flat_{number}"
            nodes.append(helper.make_node("Flatten", inputs[:1], [flat]))
            inputs[0] = flat
        result = names.setdefault(function.outputs[0], f"computed_{number}")
        nodes.append(helper.make_node(operator, inputs, [result], **attributes(args)))
        computed.update(function.outputs)
    begin, end = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", *shape[1:]])
                  for name, shape in [(INPUT, image.shape), (OUTPUT, output.shape)])
    graph = helper.make_graph(nodes, "network", [begin], [end], [
        numpy_helper.from_array(value, name) for name, value in parameters.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPERATOR_SET)],
                              ir_version=FORMAT_VERSION)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # of several modules' own types
        raise Unsupported(f"the translation to ONNX is not valid: {error}; change the model") from error
    return model


def save_network(path: Path, network: Callable):
    """Write a network with the current parameters; ``x`` are images of 0..255, ``y`` the logits.

    Args:
        path: the file to write.
        network: ``network(image, test=True) -> (logits, features)``.

    Raises:
        Unsupported: a function has no translation; the message names it.
        RunError: the file cannot be written.
    """
    image = nn.Variable((1, *IMAGE_SHAPE))
    logits, _ = network(image, test=True)
    save_bytes(path, to_onnx(image, logits).SerializeToString())
