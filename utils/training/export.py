"""The trained network as a file for other tools."""
from pathlib import Path

from nnabla.utils.save import save as nnabla_save

from models.registry import Network
from utils.files import whole_file
from utils.graph import onnx_forward
from utils.graph.functions import Unsupported


def save_networks(folder: Path, model: str, network: Network):
    """Write the trained network as .nnp for NNabla's tools and, if ONNX supports it, as .onnx."""
    save_network(folder / f"{model}_result.nnp", model, network)
    try:
        onnx_forward.save_network(folder / f"{model}_result.onnx", network)
    except Unsupported as error:
        print(f"not written: {model}_result.onnx: {error}", flush=True)


def save_network(path: Path, name: str, network: Network):
    """Write a network with the current parameters as .nnp, for NNabla's own tools.

    Args:
        path: the file to write.
        name: the network's name in the file; its input is ``x``, its output (logits) ``y``.
        network: the network.
    """
    image = network.input(1)
    logits, _ = network(image, test=True)
    content = {"name": name, "batch_size": 1, "names": {"x": image}, "outputs": {"y": logits}}
    executor = {"name": "runtime", "network": name, "data": ["x"], "output": ["y"]}
    with whole_file(path) as temporary:
        nnabla_save(str(temporary), {"networks": [content], "executors": [executor]})
