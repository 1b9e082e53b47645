"""Which backbone a run uses."""
import os
from pathlib import Path

from utils.backbone.extraction import Backbone
from utils.backbone.onnx_file import OnnxFile
from utils.backbone.pretrained import PRETRAINED, Pretrained
from utils.cli import nearest
from utils.errors import UserError


def is_file(backbone: object) -> bool:
    """Whether a value of ``train.py --backbone``, which may be untrusted, is the path of a file."""
    return isinstance(backbone, str) and backbone not in PRETRAINED


def load_backbone(backbone: str, context: str, size: int | None = None, pixels: str | None = None,
                  output: str | None = None) -> Backbone:
    """The backbone that the flags of train.py ask for.

    Args:
        backbone: a key of ``PRETRAINED``, or the path of an ONNX file.
        context: ``cpu`` or ``cudnn``; ONNX files are computed on the CPU in both.
        size: the images' width and height; None for what the backbone was made for.
        pixels, output: for an ONNX file; see `OnnxFile`.

    Raises:
        UserError: it is missing, damaged, unsafe or of another kind, or does not support the size.
    """
    if backbone in PRETRAINED:
        return Pretrained(backbone, size, "onnxruntime" if context == "cpu" else "nnabla")
    path = Path(backbone)
    if not os.path.exists(path):
        raise UserError(f"expected {', '.join(PRETRAINED)} or the path of an .onnx file as --backbone, "
                        f"found nothing at {backbone!a}; "
                        f"{nearest(backbone, PRETRAINED) or 'give one of them'}")
    return OnnxFile(path, size, pixels, output)
