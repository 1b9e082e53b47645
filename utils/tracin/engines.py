"""What computes the scores of a batch: two ways to the same numbers (`utils.tracin.self_influence`)."""
from collections.abc import Callable

import nnabla as nn
import nnabla.functions as F
import numpy as np
import onnxruntime

from utils.graph.functions import Unsupported, check_last_layer
from utils.graph.onnx_forward import INPUT, to_onnx
from utils.graph.per_sample_gradients import PerSampleNetwork
from utils.tracin.self_influence import Scores, make_scores, output_error
from utils.training.checkpoint import Checkpoint, check_parameters


def affine_one_by_one(h: nn.Variable) -> nn.Variable:
    """The layer ``affine`` of the current scope, (B, D, ...) -> (B, C), rounded as in a batch of one.

    Where the network is sure of a label, the error is the small difference of almost equal numbers,
    and the rounding of a product of whole matrices, which depends on the batch, would show.
    """
    parameters = nn.get_parameters(grad_only=False)
    weight, bias = parameters["affine/W"], parameters["affine/b"]
    batch_size, (inputs, classes) = h.shape[0], weight.shape
    product = F.batch_matmul(
        F.reshape(h, (batch_size, 1, inputs)),
        F.broadcast(F.reshape(weight, (1, inputs, classes)), (batch_size, inputs, classes)))
    return F.add2(F.reshape(product, (batch_size, classes)),
                  F.broadcast(F.reshape(bias, (1, classes)), (batch_size, classes)))


class NnablaEngine:
    """Scores from NNabla's passes, rounded like one sample at a time.

    Args:
        prediction: ``prediction(image, test=True) -> (logits, h)``.
        batch_size: samples in a pass; it decides speed and memory, not the scores.
        layers: ``last`` takes a forward pass, ``all`` a forward and a backward pass.

    Raises:
        Unsupported: the network has something that cannot be scored; it is named.
    """

    def __init__(self, prediction: Callable, batch_size: int, layers: str):
        self._image = nn.Variable((batch_size, 3, 32, 32))
        logits, self._h = prediction(self._image, test=True)
        check_last_layer(logits, self._h, trained=layers == "last")
        self._logits = affine_one_by_one(self._h)
        # By way of log_softmax, as NNabla's softmax_cross_entropy computes the error that it
        # back-propagates.
        self._probability = F.exp(F.log_softmax(self._logits))
        for variable in (self._logits, self._h):
            variable.persistent = True
        self._per_sample = None
        if layers == "all":
            try:
                self._per_sample = PerSampleNetwork(self._image, logits)
            except Unsupported as error:
                raise Unsupported(f"{error}; give --layers last") from None

    def load_parameters(self):
        """Take the parameters that the current scope has now."""
        if self._per_sample:
            self._per_sample.load_parameters()

    def score(self, images: np.ndarray, labels: np.ndarray) -> Scores:
        """The scores of any number of samples, images uint8 (N, 3, 32, 32), labels integer (N, 1)."""
        batch_size = self._image.shape[0]
        return Scores.concatenate([self._score(images[start:start + batch_size],
                                               labels[start:start + batch_size])
                                   for start in range(0, len(images), batch_size)])

    def _score(self, images: np.ndarray, labels: np.ndarray) -> Scores:
        count = len(images)
        self._image.d[:count] = images
        self._probability.forward(clear_buffer=not self._per_sample)
        error = self._probability.d.astype(np.float32)
        error[np.arange(count), labels[:, 0]] -= 1
        if self._logits.d.dtype == np.float16:  # whose softmax cannot say 1 - p of a sure network
            error[:count] = output_error(self._logits.d[:count], labels)
        if self._per_sample:
            # Of length 1, for an error that is all but 0 would leave the range of float32.
            norm = np.linalg.norm(error.astype(np.float64), axis=1, keepdims=True)
            gain = self._per_sample.squared_norms(error / np.maximum(norm, np.finfo(float).tiny))
        else:
            h = self._h.d.reshape(len(error), -1)
            gain = np.square(h, dtype=np.float64).sum(axis=1) + 1
        return make_scores(self._logits.d[:count], labels, error[:count], gain[:count])


class OnnxRuntimeEngine:
    """The last layer's scores from ONNX Runtime's forward pass, on the CPU.

    The layer itself is computed in float64.  Arguments and methods are those of `NnablaEngine`.

    Args:
        threads: how many compute a pass; it does not decide the scores.

    Raises:
        Unsupported: the network has something that cannot be translated; it is named.
    """

    def __init__(self, prediction: Callable, batch_size: int, threads: int):
        self._batch_size = batch_size
        self._image = nn.Variable((1, 3, 32, 32))
        logits, self._h = prediction(self._image, test=True)
        check_last_layer(logits, self._h, trained=True)
        try:
            to_onnx(self._image, self._h)
        except Unsupported as error:
            raise Unsupported(f"{error}; give --engine nnabla") from None
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.log_severity_level = 3

    def load_parameters(self):
        self._session = onnxruntime.InferenceSession(
            to_onnx(self._image, self._h).SerializeToString(), self._options,
            providers=["CPUExecutionProvider"])
        self._weight, self._bias = (nn.get_parameters(grad_only=False)[name].d.astype(np.float64)
                                    for name in ("affine/W", "affine/b"))

    def score(self, images: np.ndarray, labels: np.ndarray) -> Scores:
        starts = range(0, len(images), self._batch_size)
        h = np.concatenate([self._session.run(None, {
            INPUT: images[start:start + self._batch_size].astype(np.float32)})[0] for start in starts])
        h = h.reshape(len(h), -1).astype(np.float64)
        logits = h @ self._weight + self._bias
        gain = np.square(h).sum(axis=1) + 1
        return make_scores(logits, labels, output_error(logits, labels), gain)


def predict(current: Checkpoint, prediction: Callable, images: np.ndarray) -> np.ndarray:
    """The logits at a checkpoint, float32 (N, C); the parameters of the current scope stay as they are.

    Args:
        current: of the network that `prediction` makes.
        prediction: ``prediction(image, test=True) -> (logits, h)``.
        images: uint8 (N, 3, 32, 32).

    Raises:
        UserError: the checkpoint cannot be read, or is of another network.
    """
    result = []
    with nn.parameter_scope("predict"):
        check_parameters([current], prediction)
        image = nn.Variable((min(100, len(images)), 3, 32, 32))
        logits, _ = prediction(image, test=True)
        for start in range(0, len(images), len(image.d)):
            batch = images[start:start + len(image.d)]
            image.d[:len(batch)] = batch
            logits.forward(clear_buffer=True)
            result.append(logits.d[:len(batch)].astype(np.float32))
        nn.clear_parameters()
    return np.concatenate(result)
