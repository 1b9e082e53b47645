"""EfficientNet-Lite0, pretrained on ImageNet: the features of photos.

    unit        blocks  kernel  stride  expansion  width
    stem                3       2                  32
    block 0     1       3       1       1          16
    block 1-2   2       3       2       6          24
    block 3-4   2       5       2       6          40
    block 5-7   3       3       2       6          80
    block 8-10  3       5       1       6          112
    block 11-14 4       5       2       6          192
    block 15    1       3       1       6          320
    head                1       1                  1280

The network is EfficientNet-B0 of Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional
Neural Networks", arXiv:1905.11946, table 1, in the variant for small devices: ReLU6 instead of swish,
and no squeeze-and-excitation (https://github.com/tensorflow/tpu, models/official/efficientnet/lite).
It has 4,652,008 parameters, means and variances aside.  The stride is that of a row's first block.
Padding is TensorFlow's "same": where the stride is 2, one more at the bottom and the right.
"""
from collections.abc import Mapping

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np

CLASSES = 1000  # of ImageNet
# Blocks, kernel, stride of the first, expansion, width.
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
          (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))
# The names of units in the original's state dictionary: of the convolution, of its normalization.
ORIGINAL_UNITS = {"stem": ("_conv_stem", "_bn0"), "expand": ("_expand_conv", "_bn0"),
                  "depthwise": ("_depthwise_conv", "_bn1"), "project": ("_project_conv", "_bn2"),
                  "head": ("_conv_head", "_bn1")}
ORIGINAL_PARAMETERS = {"W": "weight", "b": "bias", "gamma": "weight", "beta": "bias",
                       "mean": "running_mean", "var": "running_var"}


def conv_bn(x: nn.Variable, scope: str, maps: int, kernel: int = 1, stride: int = 1,
            group: int = 1) -> nn.Variable:
    """Convolution and batch normalization, (B, C, H, W) -> (B, maps, H/stride, W/stride)."""
    pad = kernel // 2
    if stride > 1:  # even H and W: kernel - stride zeros in all
        before = (kernel - stride) // 2
        x, pad = F.pad(x, (before, kernel - stride - before) * 2), 0
    with nn.parameter_scope(scope):
        h = PF.convolution(x, maps, (kernel, kernel), pad=(pad, pad), stride=(stride, stride),
                           group=group, with_bias=False)
        return PF.batch_normalization(h, eps=1e-3, batch_stat=False)


def block(x: nn.Variable, scope: str, maps: int, kernel: int, stride: int,
          expansion: int) -> nn.Variable:
    """Inverted residual block: 1x1 to more maps, depthwise, 1x1 to `maps` without an activation."""
    wide = x.shape[1] * expansion
    with nn.parameter_scope(scope):
        h = x if expansion == 1 else F.relu6(conv_bn(x, "expand", wide))
        h = F.relu6(conv_bn(h, "depthwise", wide, kernel, stride, group=wide))
        h = conv_bn(h, "project", maps)
    return F.add2(h, x) if h.shape == x.shape else h


def efficientnet_lite0(image: nn.Variable) -> tuple[nn.Variable, nn.Variable]:
    """EfficientNet-Lite0 in inference mode, over the current parameter scope.

    Args:
        image: (B, 3, S, S), values 0..255, RGB; S a multiple of 32.

    Returns:
        logits (B, 1000), and the input of ``affine`` (B, 1280, 1, 1).
    """
    h = F.mul_scalar(F.add_scalar(image, -127), 1 / 128)
    h = F.relu6(conv_bn(h, "stem", 32, 3, 2))
    number = 0
    for blocks, kernel, stride, expansion, maps in STAGES:
        for place in range(blocks):
            h = block(h, f"block{number}", maps, kernel, 1 if place else stride, expansion)
            number += 1
    h = F.global_average_pooling(F.relu6(conv_bn(h, "head", 1280)))
    return PF.affine(h, CLASSES), h


def load_original(state: Mapping[str, np.ndarray]):
    """Give the parameters of the current scope the values of the original's state dictionary.

    Args:
        state: that of the package ``efficientnet-lite-pytorch``, such as
            ``_blocks.3._expand_conv.weight``.

    Raises:
        KeyError: a parameter is missing.
        ValueError: a parameter has another size.
    """
    for name, parameter in nn.get_parameters(grad_only=False).items():
        value = state[_original_name(name)]
        # The original keeps the last layer's weights transposed, and only the channels' axis elsewhere.
        parameter.d = value.T if name == "affine/W" else value.reshape(parameter.shape)


def _original_name(name: str) -> str:
    """``_blocks.3._bn0.weight`` for ``block3/expand/bn/gamma``."""
    *scopes, kind = name.split("/")
    if scopes == ["affine"]:
        return f"_fc.{ORIGINAL_PARAMETERS[kind]}"
    *blocks, unit, layer = scopes
    parts = [f"_blocks.{scope.removeprefix('block')}" for scope in blocks]
    return ".".join([*parts, ORIGINAL_UNITS[unit][layer == "bn"], ORIGINAL_PARAMETERS[kind]])
