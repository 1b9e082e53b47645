import hashlib
import tracemalloc

import numpy as np

from datasets.duplicates import copy_numbers, image_digests, most_alike, near_duplicates, other_labels
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


def test_near_duplicates_have_another_label_and_almost_the_same_pixels(tmp_path):
    """Among 2,500 images, which are read in parts; 5 has two of them, of which the second is nearer."""
    rng, labels = np.random.default_rng(0), np.arange(2500)[:, None] % 10
    images = np.kron(rng.integers(9, 200, (2500, 3, 8, 8), np.uint8), np.ones((4, 4), np.uint8))
    noise = rng.integers(-9, 10, images[0].shape)
    images[1001] = images[5] + noise
    images[2002] = images[5] + 40
    images[2006] = images[6][:, :, ::-1]
    images[2017] = images[7]  # with the same label
    images[[8, 9]] = 200  # without contrast
    np.save(tmp_path / "x.npy", images)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    chosen = np.array([2017, 8, 5, 6, 1001, 3, 2006])
    labels[[2006, 2016]] = [[1], [2]]
    tracemalloc.start()
    found = near_duplicates(mapped, labels, chosen)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.tolist() == [-1, -1, 2002, 2006, 5, -1, 6]
    assert most < images.nbytes
    assert near_duplicates(mapped, labels, np.empty(0, int)).shape == (0,)


def test_near_duplicates_by_another_way():
    """The largest correlations, one pair at a time."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 3, 16, 16)).astype(np.uint8)
    labels, chosen = rng.integers(0, 2, (12, 1)), np.array([3, 7])
    small = images.reshape(12, 3, 8, 2, 8, 2).mean(axis=(3, 5))

    def correlation(first, second):
        return max(np.corrcoef((first - first.mean((1, 2), keepdims=True)).ravel(),
                               (one - one.mean((1, 2), keepdims=True)).ravel())[0, 1]
                   for one in (second, second[:, :, ::-1]))
    found, values = most_alike(images, labels, chosen)
    for index, best, value in zip(chosen, found, values, strict=True):
        others = [one for one in range(12) if labels[one] != labels[index]]
        expected = {one: correlation(small[index], small[one]) for one in others}
        assert best == max(expected, key=expected.__getitem__)
        np.testing.assert_allclose(value, expected[best], atol=1e-6)
