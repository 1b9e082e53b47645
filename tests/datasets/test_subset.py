import numpy as np
import pytest

from datasets import make_dataset
from datasets.arrays import IMAGE_SHAPE, Source, Split
from tests.conftest import refused


def subset(counts, size, seed):
    """The indices drawn from classes of as many samples as `counts` says, and their labels."""
    labels = np.repeat(np.arange(len(counts)), counts)[:, None]
    images = np.zeros((len(labels), *IMAGE_SHAPE), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    split = Split(images, labels)
    source = Source(split, split, [f"class {number}" for number in range(len(counts))], {})
    kept = make_dataset(source, size, 0.0, np.random.default_rng(seed))
    return kept.images[:, 0, 0, 0].tolist(), kept.labels[:, 0].tolist()


def drawn(samples, size, seed):
    return sorted(np.random.default_rng(seed).choice(samples, size, replace=False).tolist())


@pytest.mark.parametrize("seed", range(5))
def test_subset_that_misses_no_class_is_drawn_as_ever(seed, capsys):
    assert subset([40, 40], 30, seed)[0] == drawn(80, 30, seed)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [4, 10])
def test_subset_keeps_a_sample_of_every_class_and_says_so(seed, size, capsys):
    counts = [50, 1, 0, 1, 2]
    given = np.repeat(np.arange(5), counts)
    kept, labels = subset(counts, size, seed)
    assert len({*kept}) == size and labels == given[kept].tolist() == sorted(labels)
    assert {*labels} == {0, 1, 3, 4}
    missed = {0, 1, 3, 4} - {*given[drawn(54, size, seed)]}
    told = capsys.readouterr().out
    assert [number for number in range(5) if f"'class {number}'" in told] == sorted(missed) != []
    assert len({*kept} & {*drawn(54, size, seed)}) == size - len(missed)


def test_subset_smaller_than_the_number_of_classes_is_refused():
    with refused("--subset", " 3", " 2"):
        subset([5, 5, 0, 5], 2, seed=0)
