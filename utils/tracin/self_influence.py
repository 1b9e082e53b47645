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

For the last layer, ``logits = W h + b``, nothing need be back-propagated: the gradient by :math:`W` is
the outer product :math:`e h^T`, that by :math:`b` is :math:`e`, and so

.. math:: g = \lVert h \rVert^2 + 1 .
"""
from dataclasses import dataclass, fields

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


def output_error(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """softmax(logits) - onehot(labels), float64 (B, C).

    The given label's entry is what the others' probabilities sum to, and so is exact too where the
    network is sure of that label.

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


def loss_and_margin(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cross entropy, and logit of the given label less the largest other one, float64 (B,) each.

    Args:
        logits: (B, C).
        labels: integers (B, 1).
    """
    logits = logits.astype(np.float64)
    given = np.take_along_axis(logits, labels, axis=1)[:, 0]
    largest = logits.max(axis=1)
    loss = np.log(np.exp(logits - largest[:, None]).sum(axis=1)) + largest - given
    np.put_along_axis(logits, labels, -np.inf, axis=1)
    return loss, given - logits.max(axis=1)


def make_scores(logits: np.ndarray, labels: np.ndarray, error: np.ndarray, gain: np.ndarray) -> Scores:
    """The scores of a batch.

    Args:
        logits: (B, C).
        labels: integers (B, 1).
        error: softmax(logits) - onehot(labels), (B, C).
        gain: squared norm of the gradient by the parameters for an error of norm 1 in the direction
            of `error`, (B,).
    """
    squared_error = np.square(error, dtype=np.float64).sum(axis=1)
    probability = error.astype(np.float32)
    np.put_along_axis(probability, labels, np.take_along_axis(error, labels, axis=1) + 1, axis=1)
    loss, margin = loss_and_margin(logits, labels)
    return Scores(squared_error * gain, loss, margin, np.sqrt(squared_error), probability)
