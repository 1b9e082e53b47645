"""ONNX models under construction (https://onnx.ai/onnx/operators), operator set 17."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

OPERATOR_SET, FORMAT_VERSION = 17, 8
# Domains of ONNX Runtime's own operators; those of BLOCKED expect channels in blocks.
RUNTIME, BLOCKED = "com.microsoft", "com.microsoft.nchwc"


class Nodes:
    """The nodes of a model whose first axis, the batch, has any size B.

    Values are known by their names.  Shapes leave the batch out unless they are said to hold it.
    """

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[str, np.ndarray] = {}
        self._names: dict[tuple, str] = {}  # of constants and zeros, by their content
        self._batch = ""

    def add_input(self, name: str, shape: Sequence[int | str],
                  kind: int = onnx.TensorProto.FLOAT) -> str:
        """An input of the model; `shape` holds the batch as a string."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def constant(self, value: np.ndarray | Sequence | float, name: str = "") -> str:
        """A constant, float32 or int64."""
        array = np.asarray(value)
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        key = (name, array.dtype.str, array.shape, array.tobytes())
        if key not in self._names:
            self._names[key] = name or f"constant_{len(self._constants)}"
            self._constants[self._names[key]] = array
        return self._names[key]

    def zeros(self, like: str, *shape: int) -> str:
        """Zeros (B, *shape); B is the first axis of `like`."""
        if shape not in self._names:
            if not self._batch:
                self._batch = self.add("Shape", like, start=0, end=1)
            size = self.add("Concat", self._batch, self.constant(shape), axis=0)
            self._names[shape] = self.add("ConstantOfShape", size)
        return self._names[shape]

    def add(self, operator: str, *inputs: str, domain: str = "", results: int = 1, name: str = "",
            **attributes) -> str:
        """Add a node; returns the name of its first result.  `result_name` names the others."""
        name = name or f"{operator}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(
            operator, list(inputs), [result_name(name, number) for number in range(results)],
            domain=domain, **attributes))
        return name

    def reshape(self, value: str, *shape: int) -> str:
        """Reshape; `shape` holds the batch, if `value` does; -1 is what is left, 0 keeps an axis."""
        return self.add("Reshape", value, self.constant(shape))

    def sum(self, value: str, *axes: int) -> str:
        """The sum over axes, which are dropped; the batch is axis 0."""
        return self.add("ReduceSum", value, self.constant(axes), keepdims=0)

    def model(self, outputs: dict[str, Sequence[int | str] | None]) -> onnx.ModelProto:
        """The model with these outputs and their shapes, with the batch; None leaves one open."""
        graph = helper.make_graph(
            self._nodes, "network", self._inputs,
            [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
             for name, shape in outputs.items()],
            [numpy_helper.from_array(array, name) for name, array in self._constants.items()])
        domains = {"": OPERATOR_SET, **{node.domain: 1 for node in self._nodes if node.domain}}
        return helper.make_model(graph, ir_version=FORMAT_VERSION, opset_imports=[
            helper.make_opsetid(domain, version) for domain, version in domains.items()])


def result_name(name: str, number: int) -> str:
    """The name of a node's result by its number; 0 is the first."""
    return f"{name}_{number}" if number else name


def make_session(model: onnx.ModelProto | bytes, threads: int,
                 folder: Path | None = None) -> onnxruntime.InferenceSession:
    """ONNX Runtime's session for a model, on the CPU.

    Args:
        model: the model, or its serialized form.
        threads: how many share each of its operations.
        folder: where the model's external data are, if it has any.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised
    options.enable_mem_pattern = False  # it takes twice the memory and is no faster
    # Threads that wait in a loop gain little on a quiet machine, and double the time on a busy one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Bytes that ONNX reads could else be taken for a model in ONNX Runtime's own format.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    if folder:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path",
                                         str(folder))
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
