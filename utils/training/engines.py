"""Engines: they compute the updates of training and the pass over the test set.

Either way NNabla has the parameters, the solver and the augmentation.
"""
from collections.abc import Callable
from dataclasses import dataclass

import nnabla as nn
import nnabla.functions as F
import numpy as np

from models.registry import Network
from utils import cli
from utils.graph.functions import Unsupported
from utils.graph.onnx_forward import INPUT, to_onnx
from utils.graph.onnx_gradient import BatchGradients
from utils.graph.onnx_nodes import make_session
from utils.training.dynamics import loss_and_margin

# A power of two scales without rounding; half ranges from 6e-8 to 65504.
HALF_LOSS_SCALE = 2.0**15

Result = tuple[np.ndarray, float]  # logits (B, C) and mean loss of a batch


@dataclass(frozen=True)
class Graph:
    """The loss of one batch: `image` (B, ...), `label` (B, 1), `logits` (B, C), mean `loss`."""

    image: nn.Variable
    label: nn.Variable
    logits: nn.Variable
    loss: nn.Variable


def build_graph(network: Network, batch_size: int, test: bool) -> Graph:
    """The graph of the mean softmax cross entropy over `batch_size` samples."""
    image = network.input(batch_size)
    label = nn.Variable((batch_size, 1))
    logits, _ = network(image, test=test)
    logits.persistent = True
    loss = F.mean(F.softmax_cross_entropy(logits, label))
    return Graph(image, label, logits, loss)


class NnablaEngine:
    """Training by NNabla's graphs, on any device.

    Args:
        network: its parameters are created in the current scope.
        threads: ignored; NNabla has no such setting.
        half: compute in half precision; the loss is scaled, because most gradients would underflow.
    """

    def __init__(self, network: Network, threads: int = 1, half: bool = False):
        self.network = network
        self._loss_scale = HALF_LOSS_SCALE if half else 1.0
        self._graphs: dict[tuple[int, bool], Graph] = {}
        self._graph(1, test=True)  # creates the parameters

    def _graph(self, batch_size: int, test: bool) -> Graph:
        key = batch_size, test
        if key not in self._graphs:
            self._graphs[key] = build_graph(self.network, *key)
        return self._graphs[key]

    def image(self, batch_size: int) -> nn.Variable:
        """The images of the next update of this batch size, (B, ...): to be filled."""
        return self._graph(batch_size, test=False).image

    def updater(self, solver, decay: Callable[[], None] = lambda: None,
                ) -> Callable[[np.ndarray], Callable[[], Result]]:
        """The function that updates the parameters with `solver`; an epoch makes its own.

        Args:
            solver: has the parameters.
            decay: is called before each update, to change the gradients.

        Returns:
            ``update(labels)``, labels integers (B, 1), begins an update by the images in `image` and
            returns a function that waits for it, and returns the logits and the loss from before it.
        """
        scale = self._loss_scale

        def update(labels: np.ndarray) -> Callable[[], Result]:
            nonlocal scale
            graph = self._graph(len(labels), test=False)
            graph.label.d = labels
            scale = _update(graph, solver, scale, decay)
            return lambda: (graph.logits.d.copy(), float(graph.loss.d))
        return update

    def evaluator(self) -> Callable[[np.ndarray, np.ndarray], Result]:
        """The function that computes a batch in inference mode, at the parameters as they are now.

        Returns:
            ``evaluate(images, labels)``, images (B, ...), labels integers (B, 1).
        """
        def evaluate(images: np.ndarray, labels: np.ndarray) -> Result:
            graph = self._graph(len(images), test=True)
            graph.image.d, graph.label.d = images, labels
            graph.loss.forward(clear_buffer=True)
            return graph.logits.d, float(graph.loss.d)
        return evaluate


def _update(graph: Graph, solver, scale: float, decay: Callable[[], None]) -> float:
    """Update the parameters once, from the gradients of `scale` times the loss, and `decay`.

    If they overflow, the scale is halved until they do not, so that no sample is skipped.

    Returns:
        The scale that worked.
    """
    graph.loss.forward(clear_no_need_grad=True)
    while True:
        solver.zero_grad()
        graph.loss.backward(grad=scale, clear_buffer=scale == 1)
        if scale == 1 or not solver.check_inf_or_nan_grad():
            break
        scale /= 2
    if scale != 1:
        solver.scale_grad(1 / scale)
    decay()
    solver.update()
    return scale


class OnnxRuntimeEngine:
    """Training by ONNX Runtime, on the CPU; NNabla's solver updates.

    Methods are those of `NnablaEngine`.

    Args:
        network: as for `NnablaEngine`.
        threads: they share an update.
        half: must be False.

    Raises:
        ValueError: `half` is True.
        Unsupported: the network uses something that has no translation; the message names it.
    """

    def __init__(self, network: Network, threads: int = 1, half: bool = False):
        if half:
            raise ValueError("expected float, found half precision; take another engine")
        self.network = network
        self._one = network.input(1)
        self._logits, _ = network(self._one, test=True)  # creates the parameters
        try:
            to_onnx(self._one, self._logits)
            self._gradients = BatchGradients(network, threads)
        except Unsupported as error:
            raise Unsupported(f"{error}; give --engine nnabla") from None
        self._images: dict[int, nn.Variable] = {}
        self._threads = threads

    def image(self, batch_size: int) -> nn.Variable:
        if batch_size not in self._images:
            self._images[batch_size] = self.network.input(batch_size)
        return self._images[batch_size]

    def updater(self, solver, decay: Callable[[], None] = lambda: None,
                ) -> Callable[[np.ndarray], Callable[[], Result]]:
        self._gradients.bind()  # a checkpoint may have been loaded

        def update(labels: np.ndarray) -> Callable[[], Result]:
            result = self._gradients(self.image(len(labels)).d, labels)
            decay()
            solver.update()
            return lambda: result
        return update

    def evaluator(self) -> Callable[[np.ndarray, np.ndarray], Result]:
        session = make_session(to_onnx(self._one, self._logits), self._threads)

        def evaluate(images: np.ndarray, labels: np.ndarray) -> Result:
            logits = session.run(None, {INPUT: images.astype(np.float32)})[0]
            with np.errstate(invalid="ignore"):  # NaN and infinity are for the caller to find
                loss, _ = loss_and_margin(logits, labels)
            return logits, float(loss.mean())
        return evaluate


@dataclass(frozen=True)
class Engine:
    """An entry of ``ENGINES``.

    Attributes:
        make: ``make(network, threads, half)`` returns an object with the methods of `NnablaEngine`.
        supports: flag -> the values that it supports, as for `cli.choose_engine`.
        parallel: whether it uses several threads.
    """

    make: Callable[[Network, int, bool], NnablaEngine | OnnxRuntimeEngine]
    supports: dict[str, tuple[str, ...]]
    parallel: bool


# The first engine that supports the context and the precision is the default.
ENGINES = {
    "onnxruntime": Engine(OnnxRuntimeEngine, {"context": ("cpu",), "type_config": ("float",)}, True),
    "nnabla": Engine(NnablaEngine, {"context": ("cpu", "cudnn"), "type_config": ("float", "half")},
                     False),
}


def choose_engine(name: str | None, context: str, type_config: str) -> str:
    """`name`, or the default engine if it is None; raises as `cli.choose_engine` does."""
    return cli.choose_engine({key: engine.supports for key, engine in ENGINES.items()}, name,
                             context=context, type_config=type_config)
