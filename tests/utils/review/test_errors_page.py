"""The test errors as a table and a page, from explanations made by hand."""
import base64
import csv
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from datasets import arrays
from datasets.images import read_image
from tests.conftest import refused
from tests.utils.review.conftest import EVIL
from utils.review.errors_page import (
    Explained,
    Frequent,
    Partner,
    load_explained,
    most_frequent,
    save_errors,
)
from utils.review.run import load_run
from utils.tracin import explanations
from utils.tracin.explanations import STRONGEST, Explanations, Pairs


def pairs(*rows):
    """Pairs of rows of (index, cosine); the influence is ten times the cosine."""
    indices, cosine = np.full((len(rows), STRONGEST), -1), np.full((len(rows), STRONGEST), np.nan)
    for place, row in enumerate(rows):
        for column, (index, value) in enumerate(row):
            indices[place, column], cosine[place, column] = index, value
    return Pairs(indices, 10 * cosine, cosine)


def explain(folder, indices, probability, proponents, opponents):
    dataset = arrays.load(folder, test=True)
    total = np.load(folder / "influence_all_epoch.npy")
    explanations.save(folder / explanations.TEST, Explanations(
        np.array(indices), np.array(probability, np.float32), proponents, opponents),
        explanations.origin(dataset, total, test=True), "key")
    return load_run(folder)


@pytest.fixture
def explained_run(run):
    """Test image 7 is predicted wrong, 2 right; 7 has six opponents and no proponent."""
    np.save(run / "x_val.npy", 255 - np.load(run / "x_val.npy"))  # they were among those trained on
    labels = np.load(run / "y_val.npy")[:, 0]
    probability = np.full((2, 3), 0.125)
    probability[0, (labels[7] + 1) % 3], probability[1, labels[2]] = 0.75, 0.75
    opponents = [(5, -0.5), (3, -0.4), (29, -0.3), (0, -0.2), (1, -0.1), (2, -0.05)]
    return run, explain(run, [7, 2], probability, pairs([], [(4, 0.25)]), pairs(opponents, [(5, -0.5)]))


def table(output):
    with (output / "test_errors.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_table_has_each_explained_test_image_and_its_strongest_partners(explained_run, tmp_path):
    folder, run = explained_run
    save_errors(tmp_path, run, load_explained(folder, run))
    dataset = arrays.load(folder, test=True)
    names, test_labels = dataset.names, dataset.test.labels[:, 0]
    wrong = ["7", names[test_labels[7]], names[(test_labels[7] + 1) % 3], "0.125", "0.75"]
    right = ["2", names[test_labels[2]], names[test_labels[2]], "0.75", "0.75"]
    ranks = np.argsort(np.argsort(-run.score, kind="stable")) + 1

    def row(test, kind, place, index, cosine):
        values = [place, index, names[dataset.labels[index, 0]], cosine, 10 * cosine, ranks[index]]
        return [*test, kind, *map(str, values)]
    strongest = [(5, -0.5), (3, -0.4), (29, -0.3), (0, -0.2), (1, -0.1)]
    assert [list(found.values()) for found in table(tmp_path)] == [
        *(row(wrong, "opponent", place, *pair) for place, pair in enumerate(strongest, start=1)),
        row(right, "opponent", 1, 5, -0.5), row(right, "proponent", 1, 4, 0.25)]


def test_ranks_are_those_of_the_ranking_that_was_chosen(explained_run, tmp_path):
    folder, run = explained_run
    run = replace(run, rank_by="random")
    save_errors(tmp_path, run, load_explained(folder, run))
    place = np.argsort(-run.rankings["random"]).tolist().index(5) + 1
    assert table(tmp_path)[0]["suspect_rank"] == str(place)


def test_names_like_formulas_are_text_in_the_table(explained_run, tmp_path):
    folder, run = explained_run
    paths = [f"=run({number}).png" for number in range(30)]
    run = replace(run, dataset=replace(run.dataset, names=["@a", "+b", "-c"], paths=paths))
    save_errors(tmp_path, run, load_explained(folder, run))
    row = table(tmp_path)[0]
    assert row["training_image"] == "'=run(5).png" and row["training_label"] in {"'@a", "'+b", "'-c"}
    assert {row["label"], row["predicted"]} < {"'@a", "'+b", "'-c"}


def one(label, predicted, *opponents):
    return Explained(0, np.zeros((3, 32, 32), np.uint8), label, predicted, 0.1, 0.9,
                     [Partner(index, cosine, 10 * cosine) for index, cosine in opponents], [])


def test_frequent_opponents_by_hand():
    """Those of images that are predicted right do not count; equal counts go by the cosines."""
    explained = [one(0, 1, (4, -0.25), (9, -0.5)), one(2, 1, (9, -0.25), (3, -0.125)),
                 one(1, 1, (3, -1), (4, -1), (8, -1))]
    assert most_frequent(explained) == [Frequent(9, 2, -0.75), Frequent(4, 1, -0.25),
                                        Frequent(3, 1, -0.125)]
    many = [one(0, 1, *((index, -0.5) for index in range(20)))]
    assert [found.index for found in most_frequent(many)] == list(range(10))


def test_page_shows_test_images_with_their_partners(explained_run, tab, tmp_path):
    folder, run = explained_run
    dataset = arrays.load(folder, test=True)
    # 29 and 5 are the most suspicious, then 3; a tenth are three.
    score = np.zeros(30)
    score[[29, 5, 3]] = [9, 8, 7]
    run = replace(run, rankings={**run.rankings, "random": score}, rank_by="random")
    save_errors(tmp_path, run, load_explained(folder, run))
    tab.goto((tmp_path / "test_errors.html").as_uri())
    wrong, right = tab.locator("article").all()
    assert [article.get_attribute("data-index") for article in (wrong, right)] == ["7", "2"]
    names, labels = dataset.names, dataset.test.labels[:, 0]
    assert wrong.locator(".verdict bdi").all_inner_texts() == [
        names[labels[7]], names[(labels[7] + 1) % 3]]
    assert re.findall(r"\d+", "".join(wrong.locator(".verdict i").all_inner_texts())) == ["12", "75"]
    assert [article.locator(".right").count() for article in (wrong, right)] == [0, 1]
    shown = wrong.locator("section").nth(0).locator("li")
    cosines = [text.replace("\N{MINUS SIGN}", "-") for text in shown.locator(".small").all_inner_texts()]
    assert [float(text.split()[-1]) for text in cosines] == [-0.5, -0.4, -0.3, -0.2, -0.1]
    assert shown.locator(".label").all_inner_texts() == [
        names[dataset.labels[index, 0]] for index in (5, 3, 29, 0, 1)]
    marks = [re.findall(r"\d+", " ".join(item.locator(".suspect").all_inner_texts()))
             for item in shown.all()]
    assert marks == [["2"], ["3"], ["1"], [], []]
    assert wrong.locator("section").nth(1).locator("li").count() == 0
    assert right.locator("section").nth(1).locator(".t4").count() == 1
    frequent = tab.locator(".frequent .thumbnail")
    assert [frequent.nth(place).get_attribute("class").split()[1] for place in range(5)] == [
        "t5", "t3", "t29", "t0", "t1"]
    uri = shown.nth(0).locator(".thumbnail").evaluate("one => getComputedStyle(one).backgroundImage")
    differences = np.abs(dataset.images - pixels(uri).astype(int)).mean(axis=(1, 2, 3))
    assert differences.argmin() == 5 and differences.min() < 20  # a JPEG of noise
    assert (tmp_path / "test_errors.html").read_text().count(uri[5:-2]) == 1
    assert np.array_equal(pixels(wrong.locator("img").get_attribute("src")), dataset.test.images[7])


def pixels(uri):
    content = base64.b64decode(re.search(r"base64,([A-Za-z0-9+/=]+)", uri)[1])
    return np.asarray(Image.open(io.BytesIO(content))).transpose(2, 0, 1)


def test_page_survives_untrusted_names(explained_run, tab, tmp_path):
    folder, run = explained_run
    paths = [f'{number}, "{EVIL}".png' for number in range(30)]
    run = replace(run, dataset=replace(run.dataset, names=[EVIL, '"><b>', "</style>"], paths=paths))
    save_errors(tmp_path, run, load_explained(folder, run))
    tab.goto((tmp_path / "test_errors.html").as_uri())
    assert tab.title() != "owned" and tab.locator("script").count() == 0
    assert set(tab.locator(".label, .verdict bdi").all_inner_texts()) <= {EVIL, '"><b>', "</style>"}
    frequent = tab.locator(".frequent .file").all_inner_texts()
    assert frequent == [paths[index] for index in (5, 3, 29, 0, 1)]
    assert tab.locator(".partners .file").first.get_attribute("title") == paths[5]


def test_original_photos_are_shown_small(explained_run, tmp_path):
    folder, run = explained_run
    explained = load_explained(folder, run)
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8))
    coarse.resize((640, 480), Image.Resampling.BICUBIC).save(tmp_path / "5.jpg")
    images = np.array(run.dataset.images)
    images[5] = read_image(tmp_path / "5.jpg")
    run = replace(run, dataset=replace(run.dataset, images=images, source=tmp_path,
                                       paths=[f"{number}.jpg" for number in range(30)]))
    save_errors(tmp_path / "out", run, explained)
    page = (tmp_path / "out" / "test_errors.html").read_text()
    uri = re.search(r'\.t5 {.*?url\("(data:image/jpeg[^"]*)', page)
    assert pixels(uri[1]).shape == (3, 72, 96)


def test_long_page_ends_where_the_table_goes_on(run, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.review.errors_page.ON_PAGE", 2)
    chosen = explain(run, [1, 0, 2], np.full((3, 3), 0.25), pairs([], [], []),
                     pairs([], [], [(8, -0.5)]))
    save_errors(tmp_path, chosen, load_explained(run, chosen))
    shown = re.findall(r'data-index="(\d+)"', (tmp_path / "test_errors.html").read_text())
    assert shown == ["1", "0"] and [row["index"] for row in table(tmp_path)] == ["1", "0", "2"]


def test_no_explained_test_image_is_a_page_too(run, tmp_path):
    chosen = explain(run, np.zeros(0, np.int64), np.zeros((0, 3)), pairs(), pairs())
    save_errors(tmp_path, chosen, load_explained(run, chosen))
    assert table(tmp_path) == [] and "<article" not in (tmp_path / "test_errors.html").read_text()


def test_run_without_explained_test_images_needs_no_test_set(run):
    (run / "x_val.npy").unlink()
    assert load_explained(run, load_run(run)) is None


@pytest.mark.parametrize("change", ["scores", "damaged", "test"])
def test_explanations_of_something_else_are_refused(explained_run, change):
    folder, run = explained_run
    if change == "scores":
        run = replace(run, rankings={**run.rankings, "tracin": run.rankings["tracin"] + 1})
    elif change == "damaged":
        (folder / explanations.TEST).write_bytes(b"PK\x03\x04")
    else:
        np.save(folder / "y_val.npy", (np.load(folder / "y_val.npy") + 1) % 3)
        run = load_run(folder)
    with refused(str(folder / explanations.TEST), "--explain_test"):
        load_explained(folder, run)
