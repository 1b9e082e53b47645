"""The sizes of a convolution or a pooling."""
from dataclasses import dataclass

Pair = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """A convolution of (B, *before) to (B, *after) with filters (O, C/group, *kernel)."""

    before: tuple[int, int, int]
    after: tuple[int, int, int]
    kernel: Pair
    pad: Pair = (0, 0)
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    group: int = 1

    @property
    def attributes(self) -> dict:
        """Those of ONNX's ``Conv``."""
        return {"pads": [*self.pad, *self.pad], "strides": self.stride, "dilations": self.dilation,
                "group": self.group}


def geometry_of(function) -> Geometry:
    """The geometry of a function of type Convolution."""
    pad, stride, dilation = (tuple(function.info.args[key]) for key in ("pad", "stride", "dilation"))
    return Geometry(function.inputs[0].shape[1:], function.outputs[0].shape[1:],
                    function.inputs[1].shape[2:], pad, stride, dilation, function.info.args["group"])


def pooling_of(function) -> Geometry:
    """The geometry of a function of a pooling type."""
    before, after, args = function.inputs[0].shape[1:], function.outputs[0].shape[1:], function.info.args
    if "kernel" not in args:  # the whole image
        return Geometry(before, after, before[1:])
    kernel, pad, stride = (tuple(args[key]) for key in ("kernel", "pad", "stride"))
    return Geometry(before, after, kernel, pad, stride, group=before[0])
