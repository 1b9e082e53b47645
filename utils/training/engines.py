"""Engines: they compute the updates of training and the pass over the test set.

Either way NNabla has the parameters, the solver and the augmentation.
"""
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

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
# Changes the gradients of a rank's part of a batch, in the order of the scope, to those of the batch in
# place; takes the logits of the part, (b, C), and returns those of the batch.
Average = Callable[[list[np.ndarray], np.ndarray], np.ndarray]


class Update(Protocol):
    """Begins an update by the images in an engine's `image`.

    Args:
        labels: of the images, integers (B, 1).
        average: is called as soon as the gradients are there, before any use of them, and again where
            half precision overflows; then there may be no images at all, for an update by the gradients
            that it sets.

    Returns:
        A function that waits for the update, and returns the logits and the loss from before it: with
        `average`, the logits that it returned, and the loss of the images alone.
    """

    def __call__(self, labels: np.ndarray, average: Average | None = None) -> Callable[[], Result]: ...


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

    Attributes:
        classes: C.
    """

    def __init__(self, network: Network, threads: int = 1, half: bool = False):
        self.network = network
        self._loss_scale = HALF_LOSS_SCALE if half else 1.0
        self._graphs: dict[tuple[int, bool], Graph] = {}
        self.classes = self._graph(1, test=True).logits.shape[1]  # creates the parameters
        self._trained = list(nn.get_parameters().values())

    def _graph(self, batch_size: int, test: bool) -> Graph:
        key = batch_size, test
        if key not in self._graphs:
            self._graphs[key] = build_graph(self.network, *key)
        return self._graphs[key]

    def image(self, batch_size: int) -> nn.Variable:
        """The images of the next update of this batch size, (B, ...): to be filled."""
        return self._graph(batch_size, test=False).image

    def updater(self, solver, decay: Callable[[], None] = lambda: None) -> Update:
        """The function that updates the parameters with `solver`; an epoch makes its own.

        Args:
            solver: has the parameters.
            decay: is called before each update, to change the gradients.
        """
        scale = self._loss_scale

        def update(labels: np.ndarray, average: Average | None = None) -> Callable[[], Result]:
            nonlocal scale
            graph = self._graph(len(labels), test=False) if len(labels) else None
            whole: list[np.ndarray] = []

            def back(scale: float):
                if graph:
                    graph.loss.backward(grad=scale, clear_buffer=scale == 1)
                if average:
                    whole[:] = [average([parameter.g for parameter in self._trained],
                                        graph.logits.d if graph else no_logits(self.classes))]
            if graph:
                graph.label.d = labels
                graph.loss.forward(clear_no_need_grad=True)
            scale = _update(back, solver, scale, decay)

            def wait() -> Result:
                if not graph:
                    return whole[0], 0.0
                return whole[0] if whole else graph.logits.d.copy(), float(graph.loss.d)
            return wait
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


def no_logits(classes: int) -> np.ndarray:
    """The logits of no images, (0, C)."""
    return np.zeros((0, classes), np.float32)


def _update(back: Callable[[float], None], solver, scale: float, decay: Callable[[], None]) -> float:
    """Update the parameters once, from the gradients of `scale` times the loss, and `decay`.

    If they overflow, the scale is halved until they do not, so that no sample is skipped.

    Args:
        back: ``back(scale)`` computes the gradients.
        solver, scale, decay: as above.

    Returns:
        The scale that worked.
    """
    while True:
        solver.zero_grad()
        back(scale)
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
        self.classes = self._logits.shape[1]
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

    def updater(self, solver, decay: Callable[[], None] = lambda: None) -> Update:
        self._gradients.bind()  # a checkpoint may have been loaded

        def update(labels: np.ndarray, average: Average | None = None) -> Callable[[], Result]:
            logits, loss = no_logits(self.classes), 0.0
            if len(labels):
                logits, loss = self._gradients(self.image(len(labels)).d, labels)
            if average:
                logits = average(self._gradients.gradients, logits)
            decay()
            solver.update()
            return lambda: (logits, loss)
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
