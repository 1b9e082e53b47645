r"""TracIn's self-influence (Pruthi et al., NeurIPS 2020, arXiv:2002.08484, equation 3).

For a training sample :math:`z = (x, y)` and the checkpoints :math:`w_1 \dots w_K`,

.. math:: \mathrm{score}(z) = \sum_k \lVert \nabla_w \, \ell(w_k, z) \rVert^2 ,

which is TracInCP's influence of a sample on itself without the learning-rate factor, as in
NNabla's example.  Higher is more suspicious.

Under softmax cross entropy the gradient by the logits is the error :math:`e =
\mathrm{softmax}(\mathrm{logits}) - \mathrm{onehot}(y)`, and back-propagation is linear.  With the
direction :math:`\hat e = e / \lVert e \rVert` of the error and the gain :math:`g` of its
back-propagation,

.. math:: \lVert \nabla_w \, \ell \rVert^2 = \lVert e \rVert^2 g , \qquad
          g = \lVert J^T \hat e \rVert^2 , \quad J = \partial \mathrm{logits} / \partial w .

For the last layer, ``logits = h W + b``, nothing has to be back-propagated: the gradient by :math:`W`
is the outer product :math:`h^T e`, the gradient by :math:`b` is :math:`e`, and so

.. math:: g = \lVert h \rVert^2 + 1 .
"""
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import numpy as np

from utils.training.dynamics import loss_and_margin


@dataclass(frozen=True)
class Scores:
    """The scores of N samples at one checkpoint; the score files have a column for each.

    Attributes:
        influence: self-influence, float64 (N,); higher is more suspicious.
        loss: cross entropy, float64 (N,); higher is more suspicious.
        margin: logit of the given label minus the largest other logit, float64 (N,); lower is
            more suspicious.
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
        """Join the scores of consecutive slices."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts])
                     for field in fields(cls)))


def output_error(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """softmax(logits) - onehot(labels), float64 (B, C).

    The given label's entry is minus the sum of the other probabilities, so it stays exact where the
    network is sure of that label and 1 - p would cancel.

    Args:
        logits: (B, C).
        labels: integers (B, 1).
    """
    logits = logits.astype(np.float64)
    probability = np.exp(logits - logits.max(axis=1, keepdims=True))
    probability /= probability.sum(axis=1, keepdims=True)
    np.put_along_axis(probability, labels, 0, axis=1)
    np.put_along_axis(probability, labels, -probability.sum(axis=1, keepdims=True), axis=1)
    return probability


def self_influence(features: np.ndarray, weight: np.ndarray, bias: np.ndarray, labels: np.ndarray,
                   gain: Callable[[np.ndarray], np.ndarray] | None = None) -> Scores:
    """Score a batch from the features that enter the last layer; all arithmetic is in float64.

    Args:
        features: h, (B, D).
        weight: W, (D, C).
        bias: b, (C,).
        labels: integers (B, 1).
        gain: from the directions of the errors, float64 (B, C), each of norm 1 (or 0 where the error
            is), to the gains (B,).  The default is the last layer's.
    """
    features = features.astype(np.float64)
    logits = features @ weight.astype(np.float64) + bias
    error = output_error(logits, labels)
    squared_error = np.square(error).sum(axis=1)
    norm = np.sqrt(squared_error)
    if gain is None:
        gains = last_layer_gain(features)
    else:
        gains = gain(error / np.maximum(norm, np.finfo(float).tiny)[:, None])
    loss, margin = loss_and_margin(logits, labels)
    return Scores(squared_error * gains, loss, margin, norm, to_probability(error, labels))


def to_probability(error: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """softmax(logits), float32 (B, C), from what `output_error` returned for the labels (B, 1)."""
    probability = error.copy()
    # The others may add up to a little more than 1.
    own = np.maximum(np.take_along_axis(error, labels, axis=1) + 1, 0)
    np.put_along_axis(probability, labels, own, axis=1)
    return probability.astype(np.float32)


def last_layer_gain(features: np.ndarray) -> np.ndarray:
    """g of the last layer, (B,), from its inputs h, (B, D)."""
    return np.square(features).sum(axis=1) + 1


def sum_over_checkpoints(parts: Iterable[np.ndarray]) -> np.ndarray:
    """Sum the self-influence (N,), or another score, at each checkpoint; float64 (N,)."""
    total: np.ndarray | None = None
    for part in parts:  # one at a time, to save memory
        if total is None:
            total = np.zeros(part.shape)
        total += part
    return np.zeros(()) if total is None else total
