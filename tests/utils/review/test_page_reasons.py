"""What the page shows of explanations: the images for and against a label, and the way to them."""
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from tests.analyses import make_explanations
from tests.utils.review.conftest import (
    decided,
    decision,
    focused,
    in_detail,
    numbers,
    open_page,
    per_checkpoint,
    press,
    shown,
)

AGAINST, FOR = "#detail .reasons >> nth=0", "#detail .reasons >> nth=1"
SURE = 40  # suspects of that many: every second one


@pytest.fixture
def explanations(dataset):
    """Of the first 100 samples; suspects are those below 150.

    Five opponents of each of the first `SURE` samples: an even one's are labelled as suggested, all but
    the last, and an odd one's otherwise.  The first opponent of each is a suspect, the others are none,
    but for those of sample 2, which are all suspects.  Sample 3 has no proponents.
    """
    explanations = make_explanations(dataset.labels, range(100), 3)
    labels, rng = dataset.labels[:, 0], np.random.default_rng(0)
    for index in range(SURE):
        wanted = (labels[index] + (1 if index % 2 == 0 else 2)) % 3
        hidden = rng.permutation([one for one in range(150, 200) if labels[one] == wanted])
        some = rng.permutation([one for one in range(100, 150) if labels[one] == wanted])
        other = next(one for one in range(150, 200) if labels[one] == (labels[index] + 2) % 3)
        explanations.opponents.indices[index] = [some[0], *hidden[:3], other, *hidden[3:6]]
        if index == 2:
            explanations.opponents.indices[index] = some[:8]
    explanations.proponents.indices[3] = -1
    for kind in ("influence", "cosine"):
        getattr(explanations.proponents, kind)[3] = np.nan
    return explanations


@pytest.fixture
def explained(tab, dataset, make_page, explanations, tmp_path):
    return open_page(tab, make_page(tmp_path / "explained.html", explanations=explanations))


def data_of(path):
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)[1])


def images_in(page, group):
    """The pictures and the labels of a group of images in the detail view."""
    page.eval_on_selector_all("#detail img", "all => Promise.all(all.map(one => one.decode()))")
    images = page.locator(f"{group} >> .image")
    return (images.locator("img").evaluate_all("all => all.map(one => one.src)"),
            images.locator("bdi").all_inner_texts())


def test_detail_view_shows_the_five_strongest_with_their_labels(explained, dataset, explanations):
    page = explained
    known = {one["index"]: one["picture"] for one in data_of_page(page)["suspects"]}
    known |= {int(index): one["picture"] for index, one in data_of_page(page)["named"].items()}
    press(page, "Enter")
    for group, pairs in ((AGAINST, explanations.opponents), (FOR, explanations.proponents)):
        strongest = pairs.indices[0, :5]
        sources, labels = images_in(page, group)
        assert sources == [known[index] for index in strongest]
        assert labels == [dataset.names[dataset.labels[index, 0]] for index in strongest]
    assert page.title() != "owned"


def data_of_page(page):
    return json.loads(page.inner_text("#data"))


def test_images_have_words_for_those_who_do_not_see_them(explained, dataset, explanations):
    page = explained
    press(page, "Enter")
    first, second = explanations.opponents.indices[0, :2]
    images = page.locator(f"{AGAINST} >> .image")
    label = dataset.names[dataset.labels[first, 0]]
    assert images.nth(0).evaluate("one => one.tagName") == "BUTTON"
    told = images.nth(0).get_attribute("aria-label")
    assert numbers(told)[0] == first + 1 and label in told
    assert images.nth(1).evaluate("one => one.tagName") == "SPAN"
    assert images.nth(1).locator("img").get_attribute("alt") == dataset.paths[second]


def test_vote_is_told(explained, dataset):
    page = explained
    press(page, "Enter")
    suggested = dataset.names[(dataset.labels[0, 0] + 1) % 3]
    vote = page.locator("#detail .vote").inner_text()
    assert numbers(vote.replace(suggested, "")) == [4, 5] and suggested in vote


def test_sure_suggestions_are_marked_and_can_be_shown_alone(tab, dataset, make_page, tmp_path):
    evidence = per_checkpoint(dataset)
    evidence.probability[1::2] *= 0.99  # from 0.8
    page = open_page(tab, make_page(tmp_path / "a.html", evidence=evidence))
    for number in (0, 1):
        tile = page.locator("article").nth(number)
        assert tile.locator(".suggested .sure").count() == 1 - number
        assert ("sure" in tile.get_attribute("aria-label")) == (number == 0)
        press(page, "Enter")
        assert page.locator("#detail .suggested .sure").count() == 1 - number
        press(page, "Escape ArrowRight")
    page.select_option("#show", "sure")
    every = shown(page)
    assert every[:50] == list(range(0, 100, 2))
    press(page, "a")
    page.select_option("#show", "open")
    assert every[0] not in shown(page)
    page.select_option("#show", "sure")
    assert shown(page) == every  # decided ones, too, as where the suggestion differs


def test_suspect_among_the_images_is_opened_and_left_again(explained, explanations):
    page, other = explained, int(explanations.opponents.indices[1, 0])
    press(page, "ArrowRight Enter")
    assert not page.is_visible("#back")
    page.locator(f"{AGAINST} >> button.image").click()
    assert in_detail(page) == other and str(other + 1) in page.inner_text("#detail h2")
    assert page.is_visible("#back") and numbers(page.inner_text("#back")) == [2]
    page.click("#back")
    assert in_detail(page) == 1 and not page.is_visible("#back")
    assert page.evaluate("document.activeElement.dataset.leads") == str(other)  # where it was left
    press(page, "Enter")
    assert in_detail(page) == other
    press(page, "b")
    assert in_detail(page) == 1
    press(page, "Enter r z")  # undone where it is seen
    assert in_detail(page) == other and decided(page)[0] == 0
    press(page, "b b")  # nothing more to go back to
    assert in_detail(page) == 1
    press(page, "Enter ArrowRight")  # goes on from the suspect in the list
    assert in_detail(page) == 2 and not page.is_visible("#back")


def test_way_back_has_several_steps_and_escape_ends_it(tab, make_page, tmp_path, explanations):
    way = [0, 110, 20, 30]
    explanations.indices[[10, 99]] = way[1], 10
    explanations.opponents.indices[[0, 10, 20], [0, 4, 2]] = way[1:]
    page = open_page(tab, make_page(tmp_path / "way.html", explanations=explanations))
    press(page, "Enter")
    for index in way[1:]:
        page.click(f"{AGAINST} >> [data-leads='{index}']")
        assert in_detail(page) == index
    for index in way[-2:0:-1]:
        press(page, "b")
        assert in_detail(page) == index
    press(page, "Escape")
    assert in_detail(page) is None and focused(page) == 0
    press(page, "Enter")
    assert in_detail(page) == 0 and not page.is_visible("#back")


def test_decision_about_an_image_on_the_way_is_about_it_and_leads_back(tab, dataset, make_page, tmp_path,
                                                                       explanations):
    page = open_page(tab, make_page(tmp_path / "a.html", explanations=explanations), moves=True)
    first, second = explanations.opponents.indices[2, :2].tolist()
    press(page, "ArrowRight ArrowRight Enter")
    for index, key in ((first, "r"), (second, None)):
        page.click(f"#detail [data-leads='{index}']")
        assert in_detail(page) == index
        if key:
            press(page, key)
        else:
            page.click("#detail .fine")
        assert in_detail(page) == 2
    told = page.locator(f"#detail [data-leads='{first}']").get_attribute("aria-label")
    assert "removed" in told and decided(page)[0] == 2 and decision(page, 2) == ""
    press(page, "z")
    assert in_detail(page) == second


def test_suspect_that_is_not_shown_can_be_opened_and_decided(explained, explanations):
    page = explained
    first = int(explanations.opponents.indices[2, 0])
    press(page, "ArrowRight ArrowRight Enter")
    page.click(f"#detail [data-leads='{first}']")
    press(page, "f Escape")
    page.select_option("#show", "all")
    page.select_option("#show", "open")
    assert first not in shown(page)
    page.locator("article[data-index='2'] img").click()
    page.click(f"#detail [data-leads='{first}']")
    assert page.locator("#detail [data-index]").get_attribute("data-decision") == "fine"
    press(page, "u")
    assert in_detail(page) == first and decided(page)[0] == 0
    press(page, "r z")
    assert in_detail(page) == first and decided(page)[0] == 0
    press(page, "Escape")
    assert focused(page) == 2


def test_help_above_the_detail_view_leaves_it_as_it_is(explained, explanations):
    page = explained
    press(page, "Enter")
    page.locator(f"{AGAINST} >> button.image").click()
    press(page, "? Escape")
    assert in_detail(page) == explanations.opponents.indices[0, 0] and page.is_visible("#back")
    press(page, "f")
    assert page.locator("#detail #message").is_visible()


@pytest.mark.parametrize("with_reasons", [True, False])
def test_near_duplicate_is_named_and_shown(tab, dataset, make_page, explanations, tmp_path,
                                           with_reasons):
    """One of the two is a suspect itself; without explanations, they are named just so."""
    labels, images = dataset.labels[:, 0], dataset.images.copy()
    pairs = [(index, next(one for one in range(least, 200) if labels[one] != labels[index]))
             for index, least in ((0, 160), (1, 100))]
    for index, near in pairs:
        coarse = np.random.default_rng(index).integers(0, 200, (3, 8, 8))
        images[index] = np.kron(coarse, np.ones((4, 4)))
        images[near] = images[index] // 2 + 50
    dataset, known = replace(dataset, images=images), explanations if with_reasons else None
    page = open_page(tab, make_page(tmp_path / "a.html", dataset, explanations=known))
    for index, near in pairs:
        tile = page.locator("article").nth(index)
        for one in (tile.locator(".twin").inner_text(), tile.get_attribute("aria-label")):
            assert dataset.paths[near] in one and dataset.names[labels[near]] in one
        press(page, "Enter")
        near_images = page.locator("#detail .facts > .images .image")
        assert near_images.count() == 1
        assert near_images.locator("bdi").inner_text() == dataset.names[labels[near]]
        press(page, "Escape ArrowRight")
    # The second of the pairs is of two suspects, and the page's first 60 do not reach the other one.
    assert page.locator("article .twin").count() == 2
    page.select_option("#sort", "twin")
    assert shown(page)[:4] == [0, 1, pairs[1][1], 2]


def test_suspect_without_explanation_says_so(explained):
    page = explained
    press(page, "ArrowRight ArrowRight ArrowRight Enter")
    assert [page.locator(f"{group} >> .image").count() for group in (AGAINST, FOR)] == [5, 0]
    press(page, "Escape n ArrowRight " + "ArrowRight " * 45 + "Enter")
    assert in_detail(page) == 106 and page.locator("#detail .image").count() == 0
    assert "--explain" in page.inner_text("#detail .facts")


def test_page_of_a_run_without_explanations_has_nothing_of_them(page):
    press(page, "Enter")
    assert page.locator("#detail .image").count() == page.locator("#detail .reasons").count() == 0
    assert "--explain" not in page.inner_text("#detail")
    assert not {"against", "for"} & set(page.locator("#help dt").all_text_contents())


def test_every_image_is_on_the_page_once(make_page, explanations, tmp_path):
    path = make_page(tmp_path / "a.html", explanations=explanations)
    data = data_of(path)
    pictures = re.findall(r"data:image/[a-z]+;base64,[^\"]+", path.read_text())
    expected = {one for pairs in (explanations.proponents, explanations.opponents)
                for one in pairs.indices[:, :5].ravel().tolist() if one >= 150}
    assert {int(index) for index in data["named"]} == expected
    assert len(pictures) == len(set(pictures)) == 150 + len(expected)
