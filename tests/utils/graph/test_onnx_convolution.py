"""Convolutions and their gradients in ONNX, in every geometry, against NNabla's."""
from pathlib import Path

import nnabla.functions as F
import pytest

from models.registry import Network
from tests.utils.graph import training_batches as batches
from utils.graph import onnx_convolution
from utils.graph.onnx_convolution import block_size
from utils.graph.onnx_gradient import BatchGradients

CPU = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
GEOMETRIES = [
    {"kernel": (3, 3), "pad": (1, 1)},
    {"kernel": (1, 1)},
    {"kernel": (2, 3)},
    {"kernel": (1, 5), "pad": (0, 2)},
    {"kernel": (5, 1), "pad": (2, 0)},
    {"kernel": (5, 1)},
    {"kernel": (8, 10)},  # as large as the image
    {"kernel": (8, 1), "pad": (7, 0)},
    # The output is larger than the input.
    {"kernel": (2, 2), "pad": (0, 1)},
    {"kernel": (2, 2), "pad": (1, 0)},
    {"kernel": (3, 3), "pad": (2, 2)},
    # The padding is as large as the kernel, or larger.
    {"kernel": (1, 1), "pad": (0, 1)},
    {"kernel": (1, 1), "pad": (3, 2)},
    {"kernel": (3, 3), "pad": (5, 5)},
    {"kernel": (3, 3), "pad": (5, 0)},
    {"kernel": (1, 3), "pad": (2, 0)},
    {"kernel": (3, 3), "pad": (2, 2), "dilation": (2, 2)},
    {"kernel": (3, 1), "pad": (0, 2), "dilation": (3, 1)},
    # Strides, of which some leave a part of the image out.
    {"kernel": (3, 3), "pad": (1, 1), "stride": (2, 2)},
    {"kernel": (1, 1), "stride": (2, 3)},
    {"kernel": (1, 2), "stride": (5, 1)},
    {"kernel": (2, 2), "stride": (3, 3), "pad": (1, 1)},
    {"kernel": (3, 3), "stride": (2, 2), "pad": (4, 4)},
    {"kernel": (3, 2), "pad": (1, 2), "stride": (1, 2), "dilation": (2, 3)},
]


def around(before: int, after: int, group: int = 1, normalized: bool = False, **geometry):
    """A network of a convolution between others, with a bias or else a normalization."""
    @Network
    def network(image, test):
        h = F.average_pooling(image, (4, 3))
        h = batches.convolution(h, "before", before, kernel=(1, 1), with_bias=not normalized)
        h = batches.convolution(h, "middle", after, group=group, with_bias=not normalized, **geometry)
        return batches.head(batches.normalization(h, "middle", test) if normalized else h)
    return network


# Where each filter sees one channel alone, a normalization would leave a 1x1 filter no gradient.
LAYERS = [(6, 9, 1, False), (6, 9, 3, True), (4, 4, 4, False), (16, 16, 1, True), (16, 32, 1, False),
          (32, 16, 1, True), (32, 16, 2, True), (16, 10, 1, False)]


@pytest.mark.parametrize(("before", "after", "group", "normalized"), LAYERS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_convolution_is_nnabla_s(geometry, before, after, group, normalized):
    network = around(before, after, group, normalized, **geometry)
    batches.make_parameters(network)
    batches.assert_same_as_nnabla(network, *batches.samples(3))


def test_blocks_of_channels_change_nothing(monkeypatch):
    """Wherever the processor has them, and as if it had none."""
    network = around(32, 16, kernel=(3, 3), pad=(1, 1))
    batches.make_parameters(network)
    start, found = batches.values(), []
    for size in (onnx_convolution.block_size(), 0):
        monkeypatch.setattr(onnx_convolution, "block_size", lambda size=size: size)
        batches.set_values(start)
        found.append(batches.results(BatchGradients(network, 1), *batches.samples()))
    batches.set_values(start)
    for result in found:
        batches.assert_close(result, batches.nnabla_results(network, *batches.samples()))
        batches.set_values(start)


@pytest.mark.skipif("avx512f" not in CPU and "avx2" not in CPU, reason="no such instructions here")
def test_blocks_of_channels_are_used():
    """A wrong layout would be noticed and silently left out."""
    assert block_size() == (16 if "avx512f" in CPU else 8)
