"""Residual networks for 32x32 images, with the parameter names of NNabla's TracIn example.

    name      convolutions  width          trainable parameters (10 classes)
    ResNet23  22            nmaps = 64     97,482
    ResNet56  57            16 / 32 / 64   855,578

ResNet23 is the bottleneck network of NNabla's CIFAR-10 examples; ResNet56 is that of He et al.,
"Deep Residual Learning for Image Recognition", arXiv:1512.03385, section 4.2, with a strided 1x1
convolution on the shortcut where the width changes.  Activations are ReLU, convolutions have no
bias, and images enter as 0..255: the first batch normalization rescales them.
"""
import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np


def conv_bn(x: nn.Variable, scope: str, maps: int, kernel: int, stride: int, test: bool,
            rng: np.random.Generator | None) -> nn.Variable:
    """Convolution (same padding) and batch normalization, (B, C, H, W) -> (B, maps, H', W')."""
    with nn.parameter_scope(scope):
        h = PF.convolution(x, maps, (kernel, kernel), pad=(kernel // 2, kernel // 2),
                           stride=(stride, stride), with_bias=False, rng=rng)
        return PF.batch_normalization(h, batch_stat=not test)


def bottleneck(x: nn.Variable, scope: str, test: bool,
               rng: np.random.Generator | None) -> nn.Variable:
    """Residual unit of 1x1 (half width), 3x3 and 1x1 convolutions; keeps the shape (B, C, H, W)."""
    width = x.shape[1]
    with nn.parameter_scope(scope):
        h = F.relu(conv_bn(x, "conv1", width // 2, 1, 1, test, rng))
        h = F.relu(conv_bn(h, "conv2", width // 2, 3, 1, test, rng))
        h = conv_bn(h, "conv3", width, 1, 1, test, rng)
        return F.relu(F.add2(h, x))


def resnet23(image: nn.Variable, classes: int, test: bool = False,
             rng: np.random.Generator | None = None,
             nmaps: int = 64) -> tuple[nn.Variable, nn.Variable]:
    """ResNet23.

    Args:
        image: (B, 3, 32, 32), values 0..255.
        classes: number of classes.
        test: normalize by the running statistics instead of the batch's.
        rng: draws the initial parameters.
        nmaps: number of feature maps; even.

    Returns:
        logits (B, classes), and the input of ``affine`` (B, nmaps, 1, 1).
    """
    h = F.relu(conv_bn(image, "conv1", nmaps, 3, 1, test, rng))
    for scope, pool in [("conv2", False), ("conv3", True), ("conv4", False), ("conv5", True),
                        ("conv6", False), ("conv7", True), ("conv8", False)]:
        h = bottleneck(h, scope, test, rng)
        if pool:
            h = F.max_pooling(h, (2, 2))
    h = F.average_pooling(h, h.shape[2:])
    return PF.affine(h, classes, rng=rng), h


def basic_unit(x: nn.Variable, scope: str, maps: int, stride: int, test: bool,
               rng: np.random.Generator | None) -> nn.Variable:
    """Residual unit of two 3x3 convolutions, (B, C, H, W) -> (B, maps, H/stride, W/stride)."""
    with nn.parameter_scope(scope):
        h = F.relu(conv_bn(x, "conv1", maps, 3, stride, test, rng))
        h = conv_bn(h, "conv2", maps, 3, 1, test, rng)
        if stride > 1:
            with nn.parameter_scope("conv3"):
                x = PF.convolution(x, maps, (1, 1), stride=(stride, stride), with_bias=False,
                                   rng=rng)
        return F.relu(F.add2(h, x))


def resnet56(image: nn.Variable, classes: int, test: bool = False,
             rng: np.random.Generator | None = None) -> tuple[nn.Variable, nn.Variable]:
    """ResNet56: three stages of nine basic units with 16, 32 and 64 maps.

    Arguments and results are those of `resnet23`, with ``affine``'s input (B, 64, 1, 1).
    """
    h = F.relu(conv_bn(image, "conv1", 16, 3, 1, test, rng))
    for maps in (16, 32, 64):
        for unit in range(2, 11):
            stride = 2 if unit == 2 and maps > 16 else 1
            h = basic_unit(h, f"{maps}_conv{unit}", maps, stride, test, rng)
    h = F.global_average_pooling(h)
    return PF.affine(h, classes, rng=rng), h
