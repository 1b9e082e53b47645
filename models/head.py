"""A linear classifier of the features of a pretrained network.

Every feature is standardized by the training set, then every sample is scaled to one length: the factor
of its self-influence that does not depend on its label, `||h||^2 + 1`, is the same for all samples then.
"""
from collections.abc import Iterator

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
from nnabla.initializer import ConstantInitializer

from utils.files import Rows

LENGTH = 4.0
# Added to every standardized feature: a sample that is the mean of all has a direction too.
TINY = 1e-12
# Rows of features that are read at once.
CHUNK = 1024


def head(x: nn.Variable, classes: int, test: bool = False,
         rng: np.random.Generator | None = None) -> tuple[nn.Variable, nn.Variable]:
    """Standardize, scale to one length, and classify linearly.

    Args:
        x: features (B, D).
        classes: number of classes.
        test: ignored; training and inference compute the same.
        rng: ignored; the weights start at zero.

    Returns:
        logits (B, classes), and the input of ``affine`` (B, D), each row of length `LENGTH`.
    """
    mean, deviation = _standardization(x.shape[1])
    h = F.add_scalar(F.div2(F.sub2(x, mean), deviation), TINY)
    # A product of matrices, because NNabla's own sums over inner axes fail on some GPUs.
    squared = F.affine(F.mul2(h, h), _fixed("length/W", (x.shape[1], 1), LENGTH**-2))
    h = F.mul2(h, F.pow_scalar(squared, -0.5))
    return PF.affine(h, classes, w_init=ConstantInitializer(0)), h


def _standardization(size: int) -> tuple[nn.Variable, nn.Variable]:
    """The parameters ``standardize/mean`` and ``standardize/deviation``, (1, size)."""
    return _fixed("standardize/mean", (1, size), 0), _fixed("standardize/deviation", (1, size), 1)


def _fixed(name: str, shape: tuple[int, ...], value: float) -> nn.Variable:
    """A parameter that is not trained."""
    return nn.parameter.get_parameter_or_create(name, shape, np.full(shape, value, np.float32),
                                                  need_grad=False)


def set_standardization(features: np.ndarray | Rows):
    """Set the mean and the deviation of every feature in the current scope, from float64 sums.

    The deviation of a feature that is constant, up to the rounding of float32, is set to 1.

    Args:
        features: of the training set, float32 (N, D); may be memory-mapped.
    """
    count = len(features)
    mean = sum(chunk.sum(axis=0) for chunk in _chunks(features)) / count
    variance = sum(np.square(chunk - mean).sum(axis=0) for chunk in _chunks(features)) / count
    deviation = np.sqrt(variance)
    constant = deviation <= np.finfo(np.float32).eps * np.abs(mean)
    for parameter, value in zip(_standardization(features.shape[1]),
                                (mean, np.where(constant, 1, deviation)), strict=True):
        parameter.d = value


def _chunks(features: np.ndarray | Rows) -> Iterator[np.ndarray]:
    """The samples, float64 (up to CHUNK, D) at a time."""
    for start in range(0, len(features), CHUNK):
        yield features[start:start + CHUNK].astype(np.float64)
