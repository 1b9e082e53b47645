import hashlib
import tracemalloc

import numpy as np

from datasets.duplicates import copy_numbers, image_digests, other_labels
from tests.conftest import make_dataset


def test_digests_are_of_the_pixels(tmp_path):
    images = make_dataset(2500).images
    digests = image_digests(images)
    assert digests.dtype == np.uint64 and digests.shape == (2500,)
    for index in (0, 999, 1000, 2499):
        expected = hashlib.sha256(images[index].tobytes()).hexdigest()[:16]
        assert f"{int(digests[index]):016x}" == expected
    strided = np.flip(images.transpose(0, 1, 3, 2), axis=0)
    assert np.array_equal(image_digests(strided), image_digests(np.ascontiguousarray(strided)))
    np.save(tmp_path / "x.npy", images)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    tracemalloc.start()
    assert np.array_equal(image_digests(mapped), digests)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < images.nbytes / 2


def test_identical_images_are_found_as_by_comparing_all():
    rng = np.random.default_rng(0)
    for _ in range(100):
        digests = rng.integers(0, 8, 30).astype(np.uint64) << np.uint64(61)  # the highest bits count
        labels = rng.integers(0, rng.integers(1, 4), (30, 1))
        given = labels[:, 0]
        others, copies = other_labels(digests, labels), copy_numbers(digests, labels)
        for index in range(30):
            same = np.flatnonzero(digests == digests[index])
            wrong = [one for one in same if given[one] != given[index]]
            assert others[index] in wrong if wrong else others[index] == -1
            assert copies[index] == sum(given[one] == given[index] for one in same if one < index)


def test_a_pair_points_at_each_other():
    digests = np.array([5, 9, 5, 7, 7], np.uint64)
    labels = np.array([1, 0, 0, 2, 2])[:, None]
    assert other_labels(digests, labels).tolist() == [2, -1, 0, -1, -1]
    assert copy_numbers(digests, labels).tolist() == [0, 0, 0, 0, 1]
