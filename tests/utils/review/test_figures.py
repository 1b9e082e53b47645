import html
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from tests.conftest import refused
from utils.errors import RunError
from utils.review import figures
from utils.review.rankings import RANKINGS

BLUE, VERMILLION, SKY = (0, 114, 178), (213, 94, 0), (86, 180, 233)


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def coloured(path, colour):
    """Bool (H, W): the pixels of a colour."""
    return np.abs(pixels_of(path) - colour).max(axis=2) < 12


def texts(path):
    """The texts of a figure: matplotlib writes each as a comment beside its outlines."""
    svg = path.with_suffix(".svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(svg).findall(".//{*}text") == []
    return [html.unescape(text) for text in re.findall(r"<!-- (.*?) -->", svg, re.DOTALL)]


@pytest.fixture
def score():
    rng = np.random.default_rng(0)
    return np.exp(rng.normal(0, 3, 400)) * np.where(np.arange(400) < 40, 1000, 1)


def test_distribution_shows_both_groups_and_their_sizes(tmp_path, score):
    figures.score_distribution(tmp_path / "a.png", score, np.arange(400) < 40, "tracin")
    assert coloured(tmp_path / "a.png", BLUE).sum() > 500
    assert coloured(tmp_path / "a.png", VERMILLION).sum() > 500
    assert {"360", "40"} <= set(re.findall(r"\d+", " ".join(texts(tmp_path / "a.png"))))
    figures.score_distribution(tmp_path / "b.png", score, None, "tracin")
    assert coloured(tmp_path / "b.png", BLUE).sum() > 500
    assert not coloured(tmp_path / "b.png", VERMILLION).any()


@pytest.mark.parametrize("name", ["aum", "tracin_weighted"])
def test_distribution_names_the_ranking(tmp_path, score, name):
    figures.score_distribution(tmp_path / "a.png", score, None, name)
    shown = " ".join(texts(tmp_path / "a.png"))
    assert re.search(rf"\b{name}\b", shown) and RANKINGS[name].description in shown


@pytest.mark.parametrize("score, scale", [
    (np.geomspace(1e-6, 1, 50), "log"), (np.append(np.zeros(9), np.geomspace(1e-6, 1, 50)), "log"),
    (np.linspace(-5, 5, 50), "linear"), (np.append(np.zeros(40), [3, 90]), "linear")])
def test_scale_of_the_distribution_follows_the_scores(tmp_path, score, scale):
    figures.score_distribution(tmp_path / "a.png", score, None, "forgetting")
    assert [word in " ".join(texts(tmp_path / "a.png")) for word in ("log", "linear")] == \
        [scale == "log", scale == "linear"]


@pytest.mark.parametrize("score", [np.zeros(5), np.ones(5), np.array([0, 1e-300, 1, 1e300]),
                                   np.array([3.0]), np.array([-2.5, 7]), np.full(9, -0.1)])
def test_distribution_of_strange_scores_is_drawn(tmp_path, score):
    figures.score_distribution(tmp_path / "a.png", score, np.arange(len(score)) == 0, "margin")
    assert (np.ptp(pixels_of(tmp_path / "a.png"), axis=2) > 30).sum() > 100


def test_curve_is_higher_for_the_better_ranking(tmp_path, score):
    mislabelled = np.arange(400) < 40
    figures.score_curve(tmp_path / "good.png", {"tracin": score, "loss": -score}, mislabelled)
    figures.score_curve(tmp_path / "bad.png", {"tracin": -score, "loss": score}, mislabelled)

    def height(name):
        return np.nonzero(coloured(tmp_path / name, BLUE)[:, 200:700])[0].mean()
    assert height("good.png") + 200 < height("bad.png")  # rows count from the top


def test_curve_tells_what_the_chosen_ranking_finds(tmp_path):
    score, mislabelled = -np.arange(40.), np.isin(np.arange(40), [0, 1, 4, 9, 11, 30, 33, 39])
    figures.score_curve(tmp_path / "a.png", {"tracin": score, "loss": -score}, mislabelled)
    values = [float(number) for text in texts(tmp_path / "a.png")
              for number in re.findall(r"(\d+\.\d) %", text)]
    assert sorted(values) == [25, 37.5, 37.5, 62.5]  # the last but one is of loss, at 30 %


@pytest.mark.parametrize("samples", [2, 3, 50_000])
def test_every_label_of_the_curve_is_inside_the_picture(tmp_path, samples):
    # As many as the analysis ever draws: those of every run and one that --rank_by names.
    names = ["tracin_weighted", *(name for name, ranking in RANKINGS.items() if ranking.on_curve)]
    scores = dict.fromkeys(names, np.arange(float(samples)))
    figures.score_curve(tmp_path / "a.png", scores, np.arange(samples) == 1)
    pixels = pixels_of(tmp_path / "a.png")
    for edge in (pixels[:4], pixels[-4:], pixels[:, :4], pixels[:, -4:]):
        assert edge.min() > 250
    assert all(any(text.startswith(f"{name} ") for text in texts(tmp_path / "a.png"))
               for name in names)


def test_labels_keep_their_order_and_distance():
    values = np.array([0.98, 0.3, 0.99, 0.98, 1.0])
    places = figures.spread(values, 0.1, 0.2, 1)
    assert places[1] == pytest.approx(0.3)
    assert places[[3, 0, 2, 4]] == pytest.approx([0.7, 0.8, 0.9, 1])
    assert figures.spread(np.zeros(3), 0.25, 0.25, 1) == pytest.approx([0.75, 0.5, 0.25])


def test_no_two_curves_look_alike():
    styles = [tuple(figures.line_style(number).values()) for number in range(len(RANKINGS) + 5)]
    assert len(set(styles)) == len(styles)


def test_figures_of_many_samples_are_small_and_repeat_exactly(tmp_path):
    rng = np.random.default_rng(0)
    mislabelled = rng.random(50_000) < 0.1
    scores = {name: rng.normal(size=50_000) + mislabelled for name in ("tracin", "aum", "loss")}
    for name in ("a", "b"):
        figures.score_curve(tmp_path / f"{name}.png", scores, mislabelled)
        figures.score_distribution(tmp_path / f"{name}_d.png", scores["aum"], mislabelled, "aum")
    for name, other in (("a", "b"), ("a_d", "b_d")):
        for suffix in (".png", ".svg"):
            content = (tmp_path / (name + suffix)).read_bytes()
            assert content == (tmp_path / (other + suffix)).read_bytes()
            assert len(content) < 300_000


def test_png_is_not_replaced_where_the_svg_cannot_be(tmp_path, score):
    (tmp_path / "a.svg").mkdir()
    (tmp_path / "a.png").write_bytes(b"old")
    with refused(str(tmp_path / "a.svg"), error=RunError):
        figures.score_distribution(tmp_path / "a.png", score, None, "tracin")
    assert (tmp_path / "a.png").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg"]


def test_remove_takes_the_svgs_too(tmp_path):
    for name in ("1_a.png", "1_a.svg", "2_a.svg", "1_b.png", "1_b.svg", "1_a.csv"):
        (tmp_path / name).touch()
    figures.remove(tmp_path, "*_a.png")
    figures.remove(tmp_path, "1_b.png")
    assert [path.name for path in tmp_path.iterdir()] == ["1_a.csv"]


def test_top_classes_are_stacked_shares_of_the_class(tmp_path):
    figures.top_classes(tmp_path / "a.png", 30, ["cat", "dog"],
                        {"wrong": np.array([30, 0]), "correct": np.array([0, 10])}, np.array([300, 20]))
    wrong, correct = (coloured(tmp_path / "a.png", colour)[110:] for colour in (VERMILLION, SKY))
    assert correct.sum() / wrong.sum() == pytest.approx(5, rel=0.1)  # 10 of 20 against 30 of 300
    assert np.nonzero(correct)[0].max() < np.nonzero(wrong)[0].min()  # largest share on top
    assert {"30 of 300", "10 of 20"} <= set(texts(tmp_path / "a.png"))


@pytest.mark.parametrize("name", ["ship", "a Größe", "$x_{$", "<b>&amp;", ""])
def test_class_names_are_drawn_as_they_are(tmp_path, name):
    figures.top_classes(tmp_path / "a.png", 1, ["dog", name], {"all": np.array([1, 2])},
                        np.array([4, 0]))
    assert {"dog", name} - {""} <= set(texts(tmp_path / "a.png"))


@pytest.mark.parametrize("name", ["猫", "🐈‍⬛ cat", "\x07\u202e\ud800", "--> <script>\n", "w" * 500])
def test_class_names_that_cannot_be_drawn_have_their_number(tmp_path, name):
    figures.top_classes(tmp_path / "a.png", 1, ["dog", name], {"all": np.array([1, 2])},
                        np.array([4, 0]))
    assert [text for text in texts(tmp_path / "a.png") if text.startswith("1: ") and len(text) < 30]


def test_many_classes_are_cut_to_the_largest_shares(tmp_path):
    names, counts = [f"n{number}" for number in range(2000)], np.arange(2000)
    figures.top_classes(tmp_path / "a.png", 1, names, {"by given label": counts}, np.full(2000, 2000))
    shown = [text for text in texts(tmp_path / "a.png") if text in names]
    assert shown == names[:-1 - len(shown):-1] and len(shown) >= 20
    with Image.open(tmp_path / "a.png") as image:
        assert image.height < 4000
