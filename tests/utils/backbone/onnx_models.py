"""Tiny ONNX files, whose features are the mean of what enters in each channel."""
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

POOL = [helper.make_node("GlobalAveragePool", ["pixels"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["means"])]
HALVES = [helper.make_node("AveragePool", ["pixels"], ["map"], kernel_shape=[2, 2], strides=[2, 2])]
MULTIPLY = helper.make_node("Mul", ["means", "factors"], ["scaled"])
FLOAT = TensorProto.FLOAT


def write_onnx(path: Path, shape=("N", 3, "H", "W"), nodes=POOL, outputs=("means",), kind=FLOAT,
               weights=(), more_inputs=(), domains=(), functions=(), opset=17, version=8) -> Path:
    """Write a model of one input, `image`, which nodes find in float32 as `pixels` (N, 3, H, W)."""
    perm = list(range(len(shape))) if shape[1] == 3 or len(shape) != 4 else [0, 3, 1, 2]
    enter = [helper.make_node("Cast", ["image"], ["as_float"], to=FLOAT),
             helper.make_node("Transpose", ["as_float"], ["pixels"], perm=perm)]
    inputs = [helper.make_tensor_value_info("image", kind, shape), *more_inputs]
    graph = helper.make_graph([*enter, *nodes], "model", inputs, [
        helper.make_tensor_value_info(output, FLOAT, None) if isinstance(output, str) else output
        for output in outputs], list(weights))
    model = helper.make_model(graph, ir_version=version, functions=list(functions), opset_imports=[
        helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def external(name: str, location: str, length: int) -> onnx.TensorProto:
    """A weight of float32 whose data are in another file."""
    tensor = onnx.TensorProto(name=name, data_type=FLOAT, dims=[length],
                              data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(4 * length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def scaled(path: Path, factors=(1.0, 1.0, 1.0), **options) -> Path:
    """Write a model whose features are the means times `factors`."""
    return write_onnx(path, nodes=[*POOL, MULTIPLY], outputs=["scaled"], weights=[
        numpy_helper.from_array(np.array(factors, np.float32), "factors")], **options)
