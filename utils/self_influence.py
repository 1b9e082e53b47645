r"""TracIn's self-influence (Pruthi et al., NeurIPS 2020, arXiv:2002.08484, equation 3).

For a training sample :math:`z = (x, y)` and the checkpoints :math:`w_1 \dots w_K`,

.. math:: \mathrm{score}(z) = \sum_k \lVert \nabla_w \, \ell(w_k, z) \rVert^2 ,

which is TracInCP's influence of a sample on itself without the learning-rate factor, as in
NNabla's example.  Higher is more suspicious.

For the last layer, ``logits = W h + b`` under softmax cross entropy, the gradient is an outer
product: :math:`\partial\ell/\partial b = e` and :math:`\partial\ell/\partial W = h e^T` with the
error :math:`e = \mathrm{softmax}(\mathrm{logits}) - \mathrm{onehot}(y)`.  So

.. math:: \lVert \nabla_{W,b} \, \ell \rVert^2 = \lVert e \rVert^2 (\lVert h \rVert^2 + 1) ,

and one forward pass of a batch gives the exact scores of all its samples.
"""
from collections.abc import Callable
from dataclasses import dataclass, fields

import nnabla as nn
import nnabla.functions as F
import numpy as np


@dataclass(frozen=True)
class Scores:
    """What one forward pass tells of each of N samples, at one checkpoint.

    Attributes:
        influence: self-influence, float64 (N,); higher is more suspicious.
        loss: cross entropy, float64 (N,); higher is more suspicious.
        margin: logit of the given label less the largest other logit, float64 (N,); lower is more
            suspicious.
        error_norm: norm of softmax(logits) - onehot(label), float64 (N,); higher is more
            suspicious.
        probability: softmax(logits), float32 (N, C).
    """

    influence: np.ndarray
    loss: np.ndarray
    margin: np.ndarray
    error_norm: np.ndarray
    probability: np.ndarray

    @classmethod
    def concatenate(cls, parts: list["Scores"]) -> "Scores":
        """The scores of all samples from those of consecutive slices."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts])
                     for field in fields(cls)))


def last_layer_scores(logits: np.ndarray, probability: np.ndarray, h: np.ndarray,
                      labels: np.ndarray) -> Scores:
    """The scores of a batch from its forward pass; the module's docstring has the equation.

    Args:
        logits: float32 (B, C).
        probability: softmax(logits), float32 (B, C).
        h: input of the last layer, float32 (B, D).
        labels: integers (B, 1).
    """
    rows, label = np.arange(len(labels)), labels[:, 0]
    error = probability.copy()
    error[rows, label] -= 1
    squared_error = np.square(error, dtype=np.float64).sum(axis=1)
    squared_h = np.square(h, dtype=np.float64).sum(axis=1)
    logits = logits.astype(np.float64)
    given = logits[rows, label]
    largest = logits.max(axis=1)
    loss = np.log(np.exp(logits - largest[:, None]).sum(axis=1)) + largest - given
    logits[rows, label] = -np.inf
    return Scores(squared_error * (squared_h + 1), loss, given - logits.max(axis=1),
                  np.sqrt(squared_error), probability.copy())


def affine_one_by_one(h: nn.Variable) -> nn.Variable:
    """The layer ``affine`` of the current scope, (B, D, ...) -> (B, C), rounded as in a batch of one.

    Where the network is sure of a label, the error is the small difference of almost equal numbers,
    and the rounding of a product of whole matrices, which depends on the batch, would show.
    """
    parameters = nn.get_parameters()
    weight, bias = parameters["affine/W"], parameters["affine/b"]
    batch_size, (inputs, classes) = h.shape[0], weight.shape
    product = F.batch_matmul(
        F.reshape(h, (batch_size, 1, inputs)),
        F.broadcast(F.reshape(weight, (1, inputs, classes)), (batch_size, inputs, classes)))
    return F.add2(F.reshape(product, (batch_size, classes)),
                  F.broadcast(F.reshape(bias, (1, classes)), (batch_size, classes)))


class LastLayer:
    """Scores samples by the last layer's self-influence, with the parameters of the current scope.

    Args:
        prediction: ``prediction(image, test=True) -> (logits, h)``.
        batch_size: samples in a forward pass; it decides speed and memory, not the scores.
    """

    def __init__(self, prediction: Callable, batch_size: int):
        self._image = nn.Variable((batch_size, 3, 32, 32))
        _, self._h = prediction(self._image, test=True)
        self._logits = affine_one_by_one(self._h)
        # By way of log_softmax, as NNabla's softmax_cross_entropy computes the error that it
        # back-propagates.
        self._probability = F.exp(F.log_softmax(self._logits))
        for variable in (self._logits, self._h):
            variable.persistent = True

    def score(self, images: np.ndarray, labels: np.ndarray,
              progress: Callable[[int], object]) -> Scores:
        """The scores of all samples at the current parameters.

        Args:
            images: uint8 (N, 3, 32, 32).
            labels: integers (N, 1).
            progress: called after every batch with the number of samples in it.
        """
        batch_size = self._image.shape[0]
        parts = []
        for start in range(0, len(images), batch_size):
            batch = images[start:start + batch_size]
            count = len(batch)
            self._image.d[:count] = batch
            self._probability.forward(clear_buffer=True)
            parts.append(last_layer_scores(
                self._logits.d[:count], self._probability.d[:count],
                self._h.d[:count].reshape(count, -1), labels[start:start + count]))
            progress(count)
        return Scores.concatenate(parts)
