from pathlib import Path

import nnabla as nn
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from models.efficientnet_lite import efficientnet_lite0, load_original
from utils.backbone.pretrained import PRETRAINED
from utils.graph.onnx_forward import INPUT, to_onnx
from utils.graph.onnx_nodes import make_session

# Every tenth logit of the original, efficientnet-lite-pytorch 0.1.0 in double precision, of `blocks` at
# 224x224, then at 128x128.
REFERENCE = Path(__file__).with_name("efficientnet_lite0_logits.npy")


def blocks(size):
    """Three images of random blocks with smaller ones in them, (3, 3, size, size), 0..255."""
    rng = np.random.default_rng(0)
    large, small = (rng.integers(0, 256, (3, 3, count, count)).repeat(size // count, 2)
                    .repeat(size // count, 3) for count in (8, 32))
    return (large * 3 + small) // 4


def pretrained(images):
    """The network with its weights; its logits are not computed yet."""
    image = nn.Variable(images.shape)
    logits, features = efficientnet_lite0(image)
    load_original(PRETRAINED["efficientnet-lite0"].read_state())
    image.d = images
    return image, logits, features


@pytest.mark.parametrize(("size", "place"), [(224, 0), (128, 3)])
def test_logits_are_those_of_the_original(size, place):
    expected = np.load(REFERENCE)[place:place + 3]
    image, logits, features = pretrained(blocks(size))
    assert features.shape == (3, 1280, 1, 1)
    logits.forward(clear_buffer=True)
    np.testing.assert_allclose(logits.d[:, ::10], expected, atol=3e-5)
    session = make_session(to_onnx(image, logits), threads=1)
    translated, = session.run(None, {INPUT: blocks(size).astype(np.float32)})
    np.testing.assert_allclose(translated[:, ::10], expected, atol=3e-5)


def test_number_of_parameters_is_that_of_the_table():
    efficientnet_lite0(nn.Variable((1, 3, 32, 32)))
    assert sum(parameter.d.size for parameter in nn.get_parameters().values()) == 4_652_008


@pytest.mark.parametrize(("name", "label"), [("china.jpg", 698), ("flower.jpg", 985)])
def test_photos_are_recognized(name, label):
    """A palace and a daisy, which other scales of the pixels do not give."""
    photo = load_sample_image(name)
    side = 7 * min(photo.shape[:2]) // 8
    top, left = ((length - side) // 2 for length in photo.shape[:2])
    crop = Image.fromarray(photo[top:top + side, left:left + side]).resize((224, 224), Image.BICUBIC)
    _, logits, _ = pretrained(np.asarray(crop).transpose(2, 0, 1)[None])
    logits.forward(clear_buffer=True)
    assert logits.d.argmax() == label
