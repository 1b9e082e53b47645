"""The networks of the suite, by name.

A model is a function ``model(image, classes, test=False, rng=None, ...)`` that adds its graph over
the current parameter scope and returns ``(logits, h)``: the logits, shape (B, classes), and the
input of its last layer, which must be named ``affine``.  To add one, write it in a module here and
name it in ``MODELS``.
"""
import functools
import inspect
from collections.abc import Callable

import numpy as np

from models.resnet import resnet23, resnet56

MODELS = {"resnet23": resnet23, "resnet56": resnet56}


def default_nmaps(name: str) -> int | None:
    """The width `name` has unless told otherwise; None where the width is fixed."""
    nmaps = inspect.signature(MODELS[name]).parameters.get("nmaps")
    return nmaps.default if nmaps else None


def is_network(name: str, nmaps: int | None) -> bool:
    """Whether there is a network called `name` to which this `nmaps` can be given."""
    return name in MODELS and (nmaps is None) == (default_nmaps(name) is None)


def build_network(name: str, classes: int, nmaps: int | None = None,
                     rng: np.random.Generator | None = None) -> Callable:
    """``prediction(image, test=False) -> (logits, h)`` of the network called `name`.

    Args:
        name: a key of ``MODELS``.
        classes: number of classes.
        nmaps: number of feature maps, for networks that can be made narrower.
        rng: draws the initial parameters.

    Raises:
        ValueError: `nmaps` is given for a network of fixed width.
    """
    options = {} if nmaps is None else {"nmaps": nmaps}
    if options and default_nmaps(name) is None:
        raise ValueError(f"{name} has a fixed width: leave --nmaps out")
    return functools.partial(MODELS[name], classes=classes, rng=rng, **options)
