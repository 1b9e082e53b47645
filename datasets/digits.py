"""The 1,797 handwritten digits that scikit-learn ships (Alpaydin and Kaynak, UCI, 1998)."""
import numpy as np
from PIL import Image

from datasets.arrays import IMAGE_SHAPE, Split

NAMES = tuple("0123456789")
TEST_SHARE = 0.2


def load_digits() -> tuple[Split, Split]:
    """A training set of 1,437 and a test set of 360 digits, enlarged from 8x8 gray to 32x32 RGB.

    The split is fixed and stratified by class.
    """
    # Half a second to import, which every script would spend at its start.
    from sklearn import datasets, model_selection
    bunch = datasets.load_digits()
    gray = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    large = np.stack([np.asarray(Image.fromarray(image).resize(
        IMAGE_SHAPE[1:], Image.Resampling.BICUBIC)) for image in gray])
    images = np.repeat(large[:, None], 3, axis=1)
    labels = bunch.target.astype(np.int64)[:, None]
    train, test = model_selection.train_test_split(np.arange(len(labels)), test_size=TEST_SHARE,
                                                   stratify=labels, random_state=0)
    return Split(images[train], labels[train]), Split(images[test], labels[test])
