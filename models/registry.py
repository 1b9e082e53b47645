"""The networks of the suite, by name.

A builder is a function ``builder(image, classes, test=False, rng=None, ...)`` that adds its graph
over the current parameter scope and returns ``(logits, features)``: the logits, shape (B, classes),
and the input of its last layer, which must be named ``affine``.  To add a network, write its builder
in a module here and give it an entry in ``MODELS``.
"""
import functools
from collections.abc import Callable
from dataclasses import dataclass

import nnabla as nn
import numpy as np

from datasets.arrays import IMAGE_SHAPE
from models.head import head, set_standardization
from models.resnet import resnet23, resnet56
from utils.errors import UserError
from utils.files import Rows

LARGEST_NMAPS = 4096


@dataclass(frozen=True)
class Network:
    """A network over the parameters of the current scope: ``network(x, test=False)``.

    Attributes:
        build: ``build(x, test=False)`` adds the graph and returns ``(logits, features)``.
        shape: the shape of one sample: (3, S, S) for images, (D,) for the features of a backbone.
    """

    build: Callable
    shape: tuple[int, ...] = IMAGE_SHAPE

    def __call__(self, x: nn.Variable, test: bool = False) -> tuple[nn.Variable, nn.Variable]:
        return self.build(x, test=test)

    def input(self, batch_size: int) -> nn.Variable:
        """What enters the network: (B, *shape)."""
        return nn.Variable((batch_size, *self.shape))


@dataclass(frozen=True)
class Model:
    """An entry of ``MODELS``.

    Attributes:
        builder: adds the graph; if the width is not fixed, it has an argument `nmaps`.
        default_nmaps: the default width, or None if the width is fixed.
        train_epochs, learning_rate, weight_decay: defaults of the flags of train.py.
        on_features: whether it is trained on the features of a backbone instead of images.
        prepare: sets parameters that are not trained from what the network will be trained on, (N, ...);
            None where there are none.
    """

    builder: Callable
    default_nmaps: int | None = None
    train_epochs: int = 270
    learning_rate: float = 0.5
    weight_decay: float = 0.0
    on_features: bool = False
    prepare: Callable[[np.ndarray | Rows], None] | None = None

    def check_precision(self, type_config: str):
        """Refuse half precision where the features of a backbone may be out of its range.

        Raises:
            UserError: it is ``half``, and the network is trained on features.
        """
        if self.on_features and type_config == "half":
            raise UserError(f"expected --type-config float with a {self.builder.__name__}, found half, "
                            "whose range the features may exceed; leave the flag out")

    def check_nmaps(self, nmaps: int | None) -> int | None:
        """The width to build: `nmaps`, or the default if it is None.

        Raises:
            UserError: the network cannot have this width.
        """
        if nmaps is None:
            return self.default_nmaps
        if self.default_nmaps is None:
            raise UserError(f"--nmaps {nmaps}: {self.builder.__name__} has a fixed width; leave --nmaps "
                            "out, or give --model resnet23")
        if nmaps > LARGEST_NMAPS:
            raise UserError(f"expected --nmaps of at most {LARGEST_NMAPS}, found {nmaps}; lower it")
        if nmaps < 2 or nmaps % 2:
            raise UserError(f"expected an even --nmaps, found {nmaps}; give --nmaps {nmaps + nmaps % 2}")
        return nmaps


MODELS = {
    "resnet23": Model(resnet23, default_nmaps=64),
    "resnet56": Model(resnet56),
    "head": Model(head, train_epochs=30, weight_decay=2e-3, on_features=True,
                  prepare=set_standardization),
}


def is_network(name: str, nmaps: int | None) -> bool:
    """Whether there is a network called `name` of exactly this width, None for a fixed one."""
    try:
        return name in MODELS and MODELS[name].check_nmaps(nmaps) == nmaps
    except UserError:
        return False


def build_network(name: str, classes: int, nmaps: int | None = None,
                  rng: np.random.Generator | None = None,
                  shape: tuple[int, ...] = IMAGE_SHAPE) -> Network:
    """A registered network.

    Args:
        name: a key of ``MODELS``.
        classes: number of classes.
        nmaps: number of feature maps; None for the default or a fixed width.
        rng: draws the initial parameters.
        shape: the shape of one sample.

    Raises:
        UserError: the network cannot have this width.
    """
    model = MODELS[name]
    width = model.check_nmaps(nmaps)
    options = {} if width is None else {"nmaps": width}
    return Network(functools.partial(model.builder, classes=classes, rng=rng, **options), shape)
