r"""TracIn's influence of training samples on others (Pruthi et al., NeurIPS 2020, arXiv:2002.08484).

The influence of a training sample :math:`z'` on a sample :math:`z` at the checkpoints :math:`w_1 \dots
w_K` is, as for `utils.tracin.self_influence` without the learning-rate factor,

.. math:: \mathrm{influence}(z, z') = \sum_k \nabla_w \, \ell(w_k, z) \cdot \nabla_w \, \ell(w_k, z') .

Proponents, whose influence is positive, made the network surer of :math:`z`'s label; opponents, whose
influence is negative, less sure.  By the last layer, with the errors :math:`e, e'` and its inputs
:math:`h, h'`, it is exactly

.. math:: \sum_k (e_k \cdot e'_k) (h_k \cdot h'_k + 1) .

A few samples with large gradients have the largest influence on almost all others.  The cosine of the
gradients of all checkpoints, taken as one vector each, leaves their size out:

.. math:: \cos(z, z') = \frac{\mathrm{influence}(z, z')}
                             {\sqrt{\mathrm{score}(z) \, \mathrm{score}(z')}} .
"""
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from utils.tracin.self_influence import last_layer_gain, output_error

# Training samples per product of matrices.  BLAS rounds products of different sizes differently, so the
# slices of the training set are multiples of it: results do not depend on how the work is shared.
SAMPLES_PER_PRODUCT = 256


@dataclass(frozen=True)
class Gradients:
    """The gradients of B samples by the last layer at one checkpoint, (h, 1) times e for each.

    Attributes:
        features: h, float32 (B, D).
        error: e = softmax(logits) - onehot(label), float64 (B, C).
    """

    features: np.ndarray
    error: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, weight: np.ndarray, bias: np.ndarray,
           labels: np.ndarray) -> "Gradients":
        """The gradients of a batch.

        Args:
            features: float32 (B, D).
            weight: W, float64 (D, C).
            bias: b, float64 (C,).
            labels: integers (B, 1).
        """
        logits = np.concatenate([
            features[start:start + SAMPLES_PER_PRODUCT].astype(np.float64) @ weight + bias
            for start in range(0, len(features), SAMPLES_PER_PRODUCT)])
        return cls(features, output_error(logits, labels))

    def take(self, chosen: slice) -> "Gradients":
        """The gradients of some of the samples."""
        return Gradients(self.features[chosen], self.error[chosen])


class Influence:
    """The influence of B training samples on N samples, summed over checkpoints added one by one.

    Args:
        explained: N.
        samples: B.

    Attributes:
        total: float64 (N, B).
    """

    def __init__(self, explained: int, samples: int):
        self.total = np.zeros((explained, samples))
        self._squared = np.zeros(explained), np.zeros(samples)
        self._last: tuple[Gradients, Gradients] | None = None
        self._products, self._gains = np.zeros(()), [np.zeros(())] * 2

    def add(self, explained: Gradients, others: Gradients):
        """Add a checkpoint.

        Args:
            explained: the gradients of the N samples.
            others: those of the B training samples.
        """
        # What enters a linear classifier of fixed features is the same at all checkpoints; of the N
        # samples it is even the same object then.
        if self._last is None or self._last[0].features is not explained.features \
                or not np.array_equal(self._last[1].features, others.features):
            features = [one.features.astype(np.float64) for one in (explained, others)]
            self._products = features[0] @ features[1].T + 1
            self._gains = [last_layer_gain(one) for one in features]
        self._last = explained, others
        self.total += (explained.error @ others.error.T) * self._products
        for squared, gains, one in zip(self._squared, self._gains, (explained, others), strict=True):
            squared += np.square(one.error).sum(axis=1) * gains

    @property
    def cosine(self) -> np.ndarray:
        """Cosine of the gradients of all checkpoints, float64 (N, B); 0 where a gradient is 0."""
        norms = [np.sqrt(np.maximum(squared, np.finfo(float).tiny)) for squared in self._squared]
        # Rounding takes those of identical samples a little beyond 1.
        return np.clip(self.total / norms[0][:, None] / norms[1], -1, 1)


@dataclass(frozen=True)
class Pairs:
    """The strongest proponents, or opponents, of N samples among the training samples, at most k each.

    The cosines of a row descend in size; where there are fewer than k, its last places are empty.

    Attributes:
        indices: of the training samples, int64 (N, k); -1 where empty.
        influence: summed over the checkpoints, float64 (N, k); positive for proponents, negative for
            opponents, NaN where empty.
        cosine: of the gradients at all checkpoints, float64 (N, k), from -1 to 1; NaN where empty.
    """

    indices: np.ndarray
    influence: np.ndarray
    cosine: np.ndarray

    @classmethod
    def empty(cls, samples: int, size: int) -> "Pairs":
        """All places of N = `samples` rows of k = `size` empty."""
        values = (np.full((samples, size), np.nan) for _ in range(2))
        return cls(np.full((samples, size), -1), *values)

    @classmethod
    def of(cls, indices: np.ndarray, influence: np.ndarray, cosine: np.ndarray, sign: int,
           size: int) -> "Pairs":
        """Choose from M candidates; of equal cosines, the lower index comes first.

        Args:
            indices: of the candidates, integers (N, M).
            influence, cosine: float (N, M); a NaN is no candidate.
            sign: 1 for proponents, -1 for opponents.
            size: k.
        """
        strength = np.where(sign * cosine > 0, sign * cosine, -np.inf)
        place = max(0, strength.shape[1] - size)
        least = np.partition(strength, place, axis=1)[:, place, None]
        rows, columns = np.nonzero((strength >= least) & (strength > 0))
        order = np.lexsort((indices[rows, columns], -strength[rows, columns], rows))
        rows, columns = rows[order], columns[order]
        place_in_row = np.arange(len(rows)) - np.searchsorted(rows, rows)
        kept = place_in_row < size
        target, source = (rows[kept], place_in_row[kept]), (rows[kept], columns[kept])
        result = cls.empty(len(cosine), size)
        for name, candidates in (("indices", indices), ("influence", influence), ("cosine", cosine)):
            getattr(result, name)[target] = candidates[source]
        return result

    @classmethod
    def merge(cls, parts: Sequence["Pairs"], sign: int) -> "Pairs":
        """The strongest of all parts, which are of different training samples."""
        indices, influence, cosine = (
            np.concatenate([getattr(part, own.name) for part in parts], axis=1) for own in fields(cls))
        return cls.of(indices, influence, cosine, sign, parts[0].indices.shape[1])
