"""Engines: they compute the features of a batch, and `utils.tracin.self_influence` its scores."""
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import nnabla as nn
import numpy as np
import onnxruntime

from datasets.arrays import SIDE
from models.registry import MODELS, Network, build_network, is_network
from utils import cli
from utils.errors import UserError
from utils.graph.functions import Unsupported, check_last_layer
from utils.graph.onnx_forward import INPUT, to_onnx
from utils.graph.onnx_nodes import make_session
from utils.graph.onnx_per_sample import OnnxPerSampleNetwork
from utils.graph.per_sample_gradients import PerSampleNetwork
from utils.tracin.influence import Gradients
from utils.tracin.self_influence import Scores, self_influence
from utils.training.checkpoint import Checkpoint, check_parameters, find_checkpoints

Result = TypeVar("Result")


class NnablaEngine:
    """Scores from NNabla's passes, on any device.

    Args:
        network: the network.
        batch_size: samples per pass; it decides speed and memory, not the scores.
        layers: ``last`` takes a forward pass, ``all`` a forward and a backward pass.
        threads: ignored; NNabla has no such setting.

    Raises:
        Unsupported: the network uses something that cannot be scored; the message names it.
    """

    def __init__(self, network: Network, batch_size: int, layers: str, threads: int = 1):
        self._image = network.input(batch_size)
        self._logits, self._features = network(self._image, test=True)
        check_last_layer(self._logits, self._features, trained=layers == "last")
        self._features.persistent = True
        self._per_sample = None
        if layers == "all":
            try:
                self._per_sample = PerSampleNetwork(self._image, self._logits)
            except Unsupported as error:
                raise Unsupported(f"{error}; give --layers last") from None

    def load_parameters(self):
        """Use the parameters that the current scope has now."""
        self._weight, self._bias = _last_layer()
        if self._per_sample:
            self._per_sample.load_parameters()

    def score(self, images: np.ndarray, labels: np.ndarray) -> Scores:
        """Score any number of samples: images (N, ...), labels integer (N, 1)."""
        batch_size = self._image.shape[0]
        return Scores.concatenate([self._score(images[start:start + batch_size],
                                               labels[start:start + batch_size])
                                   for start in range(0, len(images), batch_size)])

    def gradients(self, images: np.ndarray, labels: np.ndarray) -> Gradients:
        """The gradients by the last layer: images (N, ...), labels integer (N, 1)."""
        features = np.concatenate([self._forward(images[start:start + self._image.shape[0]])
                                   for start in range(0, len(images), self._image.shape[0])])
        return Gradients.of(features, self._weight, self._bias, labels)

    def _forward(self, images: np.ndarray) -> np.ndarray:
        self._image.d[:len(images)] = images
        if self._per_sample is None:
            self._features.forward(clear_buffer=True)
        else:
            self._logits.forward()  # keeps everything for the backward pass
        return self._features.d.reshape(self._image.shape[0], -1)[:len(images)].copy()

    def _score(self, images: np.ndarray, labels: np.ndarray) -> Scores:
        features = self._forward(images)
        per_sample, gain = self._per_sample, None
        if per_sample:

            def gain(directions: np.ndarray) -> np.ndarray:
                by_logits = np.zeros(self._logits.shape)
                by_logits[:len(directions)] = directions
                return per_sample.squared_norms(by_logits)[:len(directions)]
        return self_influence(features, self._weight, self._bias, labels, gain)


class OnnxRuntimeEngine:
    """Scores from ONNX Runtime's passes, on the CPU.

    Methods are those of `NnablaEngine`.

    Args:
        network: the network.
        batch_size: samples per pass.
        layers: ``last`` takes a forward pass, ``all`` a forward and a backward pass.
        threads: each computes passes by itself, so their number does not decide the scores.

    Raises:
        Unsupported: the network uses something that has no translation; the message names it.
    """

    def __init__(self, network: Network, batch_size: int, layers: str, threads: int = 1):
        self._batch_size, self._threads = batch_size, threads
        self._image = network.input(1)
        logits, self._features = network(self._image, test=True)
        check_last_layer(logits, self._features, trained=layers == "last")
        self._per_sample = None
        try:
            if layers == "all":
                self._per_sample = OnnxPerSampleNetwork(self._image, logits)
            else:
                to_onnx(self._image, self._features)
        except Unsupported as error:
            remedy = "--layers last --engine nnabla" if layers == "all" else "--engine nnabla"
            raise Unsupported(f"{error}; give {remedy}") from None

    def load_parameters(self):
        self._weight, self._bias = _last_layer()
        if self._per_sample:
            self._per_sample.load_parameters()
        else:
            self._session = make_session(to_onnx(self._image, self._features), threads=1)

    def score(self, images: np.ndarray, labels: np.ndarray) -> Scores:
        def score(piece: slice) -> Scores:
            with np.errstate(all="ignore"):  # the caller's holds in its own thread only
                return self._score(images[piece].astype(np.float32), labels[piece])
        return Scores.concatenate(self._map(score, len(images)))

    def gradients(self, images: np.ndarray, labels: np.ndarray) -> Gradients:
        features = self._map(lambda piece: self._forward(images[piece].astype(np.float32)), len(images))
        return Gradients.of(np.concatenate(features), self._weight, self._bias, labels)

    def _map(self, function: Callable[[slice], Result], samples: int) -> list[Result]:
        """Call a function with every batch of some samples, on all threads."""
        starts = range(0, samples, self._batch_size)
        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(lambda start: function(slice(start, start + self._batch_size)), starts))

    def _forward(self, images: np.ndarray) -> np.ndarray:
        features, = self._session.run(None, {INPUT: images})
        return features.reshape(len(images), -1)

    def _score(self, images: np.ndarray, labels: np.ndarray) -> Scores:
        per_sample, gain = self._per_sample, None
        if per_sample is None:
            features = self._forward(images)
        else:
            features, values = per_sample.forward(images)
            gain = functools.partial(per_sample.squared_norms, values)
        return self_influence(features.reshape(len(images), -1), self._weight, self._bias, labels, gain)


AnyEngine = NnablaEngine | OnnxRuntimeEngine


def _last_layer() -> tuple[np.ndarray, np.ndarray]:
    parameters = nn.get_parameters(grad_only=False)
    return tuple(parameters[name].d.astype(np.float64) for name in ("affine/W", "affine/b"))


@dataclass(frozen=True)
class Engine:
    """An entry of ``ENGINES``.

    Attributes:
        make: ``make(network, batch_size, layers, threads)`` returns an object with the methods of
            `NnablaEngine`.
        supports: flag -> the values that it supports, as for `cli.choose_engine`.
        parallel: what --workers counts.
        version: another version may round differently, so kept scores are not mixed.
    """

    make: Callable[[Network, int, str, int], AnyEngine]
    supports: dict[str, tuple[str, ...]]
    parallel: Literal["threads", "processes"]
    version: str


# The first engine that supports the layers and the context is the default.
ENGINES = {
    "onnxruntime": Engine(OnnxRuntimeEngine, {"layers": ("last", "all"), "context": ("cpu",)}, "threads",
                          onnxruntime.__version__),
    "nnabla": Engine(NnablaEngine, {"layers": ("last", "all"), "context": ("cpu", "cudnn")}, "processes",
                     nn.__version__),
}


def choose_engine(name: str | None, layers: str, context: str) -> str:
    """`name`, or the default engine if it is None; raises as `cli.choose_engine` does."""
    return cli.choose_engine({key: engine.supports for key, engine in ENGINES.items()}, name,
                             layers=layers, context=context)


def predict(checkpoint: Checkpoint, network: Network, images: np.ndarray) -> np.ndarray:
    """Compute the logits at a checkpoint, float32 (N, C); the current scope's parameters stay.

    Args:
        checkpoint: a checkpoint of `network`.
        network: the network.
        images: uint8 (N, 3, S, S).

    Raises:
        UserError: the checkpoint cannot be read, or belongs to another network.
    """
    result = []
    with nn.parameter_scope("predict"):
        check_parameters([checkpoint], network)
        image = network.input(min(100, len(images)))
        logits, _ = network(image, test=True)
        for start in range(0, len(images), len(image.d)):
            batch = images[start:start + len(image.d)]
            image.d[:len(batch)] = batch
            logits.forward(clear_buffer=True)
            result.append(logits.d[:len(batch)].astype(np.float32))
        nn.clear_parameters()
    return np.concatenate(result)


def noise_logits(dataset: str | None, noise_model: Path, images: np.ndarray,
                 classes: int) -> np.ndarray:
    """The logits, float32 (N, C), of the newest checkpoint of ``train.py --noise_model``.

    Args:
        dataset: ``train.py --dataset``, for messages.
        noise_model: checkpoints of an earlier run.
        images: uint8 (N, 3, S, S).
        classes: the number C of classes.

    Raises:
        UserError: there are none, or they are of a network of other classes.
    """
    checkpoint = find_checkpoints(noise_model)[-1]
    made_by = checkpoint.description
    if not made_by or made_by.classes != classes or not is_network(made_by.model, made_by.nmaps):
        found = f"{made_by.model} with {made_by.classes}" if made_by else "no description"
        raise UserError(f"expected a checkpoint_<epoch>.json of a network of {classes} classes in "
                        f"{noise_model}, found {found}; give the --model_save_path of a run with "
                        f"--dataset {dataset}")
    if MODELS[made_by.model].on_features:
        raise UserError(f"expected a network on images in {noise_model}, found a {made_by.model}, which "
                        "is trained on features; give a run without --backbone")
    size = made_by.arguments.get("image_size") or SIDE
    if size != images.shape[-1]:
        raise UserError(f"expected a --noise_model of images {images.shape[-1]}x{images.shape[-1]}, as "
                        f"those to train on, found one of --image_size {size!a}; give the same "
                        "--image_size")
    network = build_network(made_by.model, classes, made_by.nmaps, shape=images.shape[1:])
    return predict(checkpoint, network, images)
