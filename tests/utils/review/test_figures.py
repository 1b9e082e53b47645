import numpy as np
import pytest
from PIL import Image

from utils.review import figures


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def colours(path):
    """How many pixels are of the two colours of the figures."""
    pixels = pixels_of(path).reshape(-1, 3).astype(int)
    return [int((np.abs(pixels - colour).max(axis=1) < 12).sum())
            for colour in ([31, 119, 180], [255, 127, 14])]


@pytest.fixture
def score():
    rng = np.random.default_rng(0)
    return np.exp(rng.normal(0, 3, 400)) * np.where(np.arange(400) < 40, 1000, 1)


def test_distribution_shows_both_groups(tmp_path, score):
    figures.score_distribution(tmp_path / "a.png", score, np.arange(400) < 40)
    blue, orange = colours(tmp_path / "a.png")
    assert blue > 500 and orange > 500
    figures.score_distribution(tmp_path / "b.png", score, None)
    blue, orange = colours(tmp_path / "b.png")
    assert blue > 500 and orange == 0


@pytest.mark.parametrize("score", [np.zeros(5), np.ones(5), np.array([0, 1e-300, 1, 1e300]),
                                   np.array([3.0])])
def test_distribution_of_strange_scores_is_drawn(tmp_path, score):
    figures.score_distribution(tmp_path / "a.png", score, np.arange(len(score)) == 0)
    pixels = pixels_of(tmp_path / "a.png").astype(int)
    assert (np.ptp(pixels, axis=2) > 30).sum() > 100


def test_curve_is_higher_for_the_better_ranking(tmp_path, score):
    mislabelled = np.arange(400) < 40
    figures.score_curve(tmp_path / "good.png", {"tracin": score, "loss": -score}, mislabelled)
    figures.score_curve(tmp_path / "bad.png", {"tracin": -score}, mislabelled)

    def height(name):
        pixels = pixels_of(tmp_path / name).astype(int)
        left = pixels[:, 120:400]
        return np.nonzero(np.abs(left - [31, 119, 180]).max(axis=2) < 12)[0].mean()
    assert height("good.png") + 100 < height("bad.png")  # rows count from the top


def test_top_classes_are_stacked(tmp_path):
    figures.top_classes(tmp_path / "a.png", 30, ["cat", "dog"],
                        {"wrong": np.array([30, 0]), "correct": np.array([0, 10])})
    blue, orange = colours(tmp_path / "a.png")
    assert 2 < orange / blue < 4


def test_no_figure_is_left_open(tmp_path, score):
    import matplotlib.pyplot as plt
    figures.score_distribution(tmp_path / "a.png", score, None)
    assert plt.get_fignums() == []
