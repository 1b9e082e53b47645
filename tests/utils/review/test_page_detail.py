"""One suspect in detail, the help, and how the page looks."""
import re
from dataclasses import replace

import numpy as np
import pytest

from tests.analyses import make_explanations
from tests.utils.review.conftest import (
    EVIL,
    decided,
    decision,
    download,
    focused,
    in_detail,
    numbers,
    open_page,
    paging,
    press,
)

VIEW = "#detail [data-index]"


@pytest.fixture
def with_margins(dataset, make_page, tab, tmp_path):
    """The page of `dataset` with explanations and four epochs' margins: of sample i, 2 - i, ... -1 - i.

    Those of sample 4 are 1, 2, 3, 4.
    """
    margins = 2.0 - np.arange(4) - np.arange(len(dataset.labels))[:, None]
    margins[4] = np.arange(1, 5)
    explanations = make_explanations(dataset.labels, range(100), 3)
    return open_page(tab, make_page(tmp_path / "margins.html", margins=margins,
                                    explanations=explanations))


def test_detail_view_says_all_that_is_known(with_margins, dataset):
    page = with_margins
    press(page, "ArrowRight Enter")
    view = page.locator(VIEW)
    given, suggested = (dataset.names[(dataset.labels[1, 0] + shift) % 3] for shift in (0, 1))
    text = view.inner_text()
    assert in_detail(page) == 1 and dataset.paths[1] in text
    assert given in view.locator(".labelled").inner_text()
    assert suggested in view.locator(".suggested").inner_text()
    widths = page.eval_on_selector_all(f"{VIEW} .share", "all => all.map(one => parseFloat("
                                       "getComputedStyle(one).backgroundSize))")
    assert widths == [10, 80]
    assert [numbers(one) for one in view.locator("dd").all_inner_texts()] == [
        [2, 200], [1, 0], [1, 2]]  # the rank, the score, -1.000, and the disagreement
    sources = page.eval_on_selector_all("[data-index='1'] .picture img",
                                        "all => all.map(one => one.src)")
    assert len(sources) == 2 and len(set(sources)) == 1


def test_margins_are_a_line_over_the_epochs(with_margins):
    """In the first sample from 2 to -1, so that 0 is two thirds down."""
    page = with_margins
    press(page, "Enter")
    points = page.locator("#detail polyline").get_attribute("points").split()
    assert [[float(value) for value in point.split(",")] for point in points] == [
        [0, 0], [100, 20], [200, 40], [300, 60]]
    assert float(page.locator("#detail svg line").get_attribute("y1")) == 40
    for told in (page.inner_text("figcaption"), page.get_attribute("#detail svg", "aria-label")):
        assert re.findall(r"-?\d+\.\d+", told) == ["2.00", "-1.00"]
    press(page, "ArrowRight ArrowRight ArrowRight")  # from -1 to -4: 0 stays above
    points = page.locator("#detail polyline").get_attribute("points").split()
    assert points[0] == "0,15" and float(page.locator("#detail svg line").get_attribute("y1")) == 0
    press(page, "ArrowRight")  # and below
    points = page.locator("#detail polyline").get_attribute("points").split()
    assert points[0] == "0,45" and float(page.locator("#detail svg line").get_attribute("y1")) == 60


def test_line_of_many_epochs_begins_and_ends_with_those_of_one_epoch(tab, dataset, make_page, tmp_path):
    margins = np.tile(np.arange(150.0), (len(dataset.labels), 1))
    page = open_page(tab, make_page(tmp_path / "many.html", margins=margins))
    press(page, "Enter")
    assert re.findall(r"-?\d+\.\d+", page.inner_text("figcaption")) == ["0.00", "149.00"]
    assert len(page.locator("#detail polyline").get_attribute("points").split()) <= 60


def test_no_line_without_margins(page):
    press(page, "Enter")
    assert in_detail(page) == 0 and page.locator("#detail svg").count() == 0


def test_picture_opens_the_detail_view_and_escape_closes_it(page):
    page.locator("article img").nth(3).click()
    assert in_detail(page) == 3
    press(page, "ArrowRight ArrowDown ArrowLeft ArrowDown")
    assert in_detail(page) == 5
    press(page, "Escape")
    assert in_detail(page) is None and focused(page) == 5
    page.locator("article .labelled").nth(2).click()
    assert in_detail(page) is None and focused(page) == 2
    press(page, "Enter")
    page.click("#detail .close")
    assert in_detail(page) is None and focused(page) == 2
    page.locator("article button.fine").nth(2).focus()
    press(page, "Enter")  # a button's own
    assert in_detail(page) is None and decision(page, 2) == "fine"


def test_detail_view_crosses_pages_and_ends_with_the_suspects(page):
    press(page, "ArrowRight " * 59 + "Enter ArrowRight")
    assert in_detail(page) == 60 and paging(page)[0] == 2
    page.click("#detailPrevious")
    assert in_detail(page) == 59 and paging(page)[0] == 1
    press(page, "n n Escape")
    assert focused(page) == 120
    press(page, "ArrowRight " * 29 + "Enter")
    assert page.locator("#detailNext").is_disabled()
    assert not page.locator("#detailPrevious").is_disabled()
    press(page, "ArrowRight")
    assert in_detail(page) == 149 and numbers(page.inner_text("#position")) == [150, 150]
    press(page, "p p p ArrowLeft")
    assert in_detail(page) == 0 and page.locator("#detailPrevious").is_disabled()


def test_detail_view_begins_at_its_top(tab, page_file):
    tab.set_viewport_size({"width": 390, "height": 500})
    page = open_page(tab, page_file)
    for keys in ("Enter", "ArrowRight"):
        press(page, keys)
        assert page.evaluate("document.getElementById('detail').scrollTop") == 0
        page.locator("#detail dl").scroll_into_view_if_needed()
        assert page.evaluate("document.getElementById('detail').scrollTop") > 0


def test_all_decisions_are_made_in_the_detail_view(page, dataset, tmp_path):
    given = dataset.labels[:, 0]
    press(page, "Enter a ArrowRight f ArrowRight r ArrowRight r u ArrowRight c")
    page.keyboard.type(dataset.names[(given[4] + 2) % 3][:3])
    press(page, "Enter ArrowRight")
    assert in_detail(page) == 5
    page.locator(f"{VIEW} button.remove").click()
    assert page.locator(VIEW).get_attribute("data-decision") == "remove"
    assert decision(page, 5) == "remove"
    press(page, "c ArrowDown Escape")
    assert in_detail(page) == 5  # the chooser alone is left
    page.locator(f"{VIEW} button.undo").click()
    press(page, "Escape")
    assert focused(page) == 5
    rows = download(page, tmp_path / "a.csv")
    assert [(row["index"], row["decision"]) for row in rows] == [
        ("0", "relabel"), ("1", "fine"), ("2", "remove"), ("4", "relabel")]
    assert rows[3]["new_label"] == dataset.names[(given[4] + 2) % 3]


def test_decisions_move_on_in_the_detail_view(tab, page_file):
    page = open_page(tab, page_file, moves=True)
    press(page, "Enter a")
    assert in_detail(page) == 1 and "1" in page.inner_text("#message")
    page.locator(f"{VIEW} button.fine").click()
    assert in_detail(page) == 2
    page.click("#undoLast")  # which is above the dialog
    assert in_detail(page) == 1 and page.locator(VIEW).get_attribute("data-decision") == ""
    press(page, "c ArrowDown Enter")
    assert in_detail(page) == 2 and decided(page)[0] == 2
    press(page, "Escape")
    assert focused(page) == 2


def test_decision_in_another_tab_shows_in_the_detail_view(page, page_file):
    press(page, "Enter")
    other = open_page(page.context.new_page(), page_file)
    press(other, "r")
    page.wait_for_selector(f"{VIEW}[data-decision='remove']")


def test_help_lists_the_keys_and_takes_none(page):
    press(page, "ArrowRight ?")
    assert page.locator("#help").is_visible()
    keys = set(page.locator("#help kbd").all_inner_texts())
    words = page.locator("#help dt:not(:has(kbd))").all_inner_texts()
    assert {"margin", "disagreed"} <= set(words)
    assert {"A", "F", "R", "C", "U", "Z", "N", "P", "E", "?", "Enter", "Esc", "Space"} <= keys
    press(page, "a n e z")
    assert decided(page)[0] == 0 and paging(page)[0] == 1
    press(page, "Escape")
    assert not page.locator("#help").is_visible() and focused(page) == 1
    page.click("#helpButton")
    page.click("#help .close")
    assert not page.locator("#help").is_visible() and focused(page) == 1


def test_page_asks_for_nothing_from_outside(page):
    policy = page.locator("meta[http-equiv='Content-Security-Policy']").get_attribute("content")
    assert dict(part.split(maxsplit=1) for part in policy.split("; ")) == {
        "default-src": "'none'", "img-src": "data:", "style-src": "'unsafe-inline'",
        "script-src": "'unsafe-inline'"}


# The contrast of every text with what is behind it, as the Web Content Accessibility Guidelines define
# it, for the least readable text; disabled controls do not count.
CONTRAST = """() => {
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const rgba = color => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const luminance = ([r, g, b]) => [r, g, b].map(value => value / 255).map(value =>
        value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
        .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
    const ground = one => {
        for (; one; one = one.parentElement) {
            const color = rgba(getComputedStyle(one).backgroundColor);
            if (color[3] === 255) return color;
        }
    };
    let least = [Infinity, ""], seen = 0;
    for (const one of document.querySelectorAll("body *")) {
        const text = [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        if (!text || one.disabled || one.closest("option, select, script") || !one.checkVisibility())
            continue;
        const pair = [luminance(rgba(getComputedStyle(one).color)), luminance(ground(one))];
        const contrast = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
        seen++;
        if (contrast < least[0]) least = [contrast, one.outerHTML.slice(0, 200)];
    }
    return [seen, ...least];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_the_contrast_that_accessibility_asks_for(with_margins, scheme):
    page = with_margins
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    press(page, "a ArrowRight f ArrowRight r ArrowLeft Shift+ArrowRight")
    page.click("#pairs summary")
    for keys in ("", "Enter", "Escape ?"):
        if keys == "Enter":
            page.locator("article").nth(1).focus()
        press(page, keys)
        assert (in_detail(page) == 1) == (keys == "Enter")
        seen, contrast, where = page.evaluate(CONTRAST)
        assert seen > 500 and contrast >= 4.5, where


@pytest.mark.parametrize("width", [320, 390, 768, 1280, 2560])
def test_nothing_is_wider_than_the_screen(with_margins, dataset, make_page, tmp_path, width):
    long = replace(dataset, names=["x" * 200, EVIL, "word " * 40], paths=["/" + "y" * 300] * 200)
    page = with_margins
    page.set_viewport_size({"width": width, "height": 700})
    for path in (None, make_page(tmp_path / "long.html", long, margins=np.ones((200, 3)),
                                 explanations=make_explanations(long.labels, range(100), 3))):
        if path:
            open_page(page, path)
        press(page, "a ArrowRight f ArrowRight r Shift+ArrowRight")
        page.click("#pairs summary")
        for keys in ("", "Enter", "Escape ?"):
            if keys == "Enter":
                page.locator("article").nth(1).focus()
            press(page, keys)
            assert (in_detail(page) == 1) == (keys == "Enter")
            widths = page.evaluate("""[document.documentElement, ...document.querySelectorAll(
                "dialog[open], header, article, #toast, #batch")].map(one => one.scrollWidth
                + one.getBoundingClientRect().left)""")
            assert max(widths) <= width
        press(page, "Escape")


def test_nothing_moves_where_less_motion_is_wanted(page):
    duration = "getComputedStyle(document.getElementById('toast')).transitionDuration"
    assert "0.15s" in page.evaluate(duration)
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(duration) == "0s"


@pytest.mark.parametrize("size", [(1280, 600), (1000, 700), (390, 700), (320, 640)])
def test_tile_that_has_the_focus_is_in_sight(tab, page_file, size):
    tab.set_viewport_size({"width": size[0], "height": size[1]})
    page = open_page(tab, page_file, moves=True)
    for _ in range(20):
        press(page, "f")
        top, bottom, header, toast = page.evaluate("""() => [
            document.activeElement.getBoundingClientRect().top,
            document.activeElement.querySelector(".actions").getBoundingClientRect().bottom,
            document.querySelector("header").getBoundingClientRect().bottom,
            document.getElementById("toast").getBoundingClientRect().top]""")
        assert max(0, header) <= top and bottom <= toast


@pytest.fixture(params=[(390, 844), (320, 568)])
def phone(request, browser, page_file):
    context = browser.new_context(viewport=dict(zip(["width", "height"], request.param, strict=True)),
                                  has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(page_file.as_uri())
    yield page
    context.close()


def test_header_leaves_a_phone_two_thirds_for_the_suspects(phone):
    assert phone.evaluate("document.querySelector('header').offsetHeight / innerHeight") < 1 / 3
    assert phone.is_visible("#download") and not phone.is_visible("#show")
    phone.click("#filters summary")
    phone.select_option("#show", "all")
    phone.click("#next")
    assert paging(phone)[:2] == [2, 3]


def test_filters_are_not_folded_on_a_large_screen(page):
    assert page.is_visible("#show") and not page.is_visible("#filters summary")
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_selector("#show", state="hidden")
    page.set_viewport_size({"width": 1280, "height": 720})
    page.wait_for_selector("#show")


def test_message_covers_no_labels_of_the_next_suspect_on_a_phone(phone):
    for _ in range(3):
        phone.evaluate("document.activeElement.querySelector('.accept').click()")
        labels, toast = phone.evaluate("""() => [
            document.activeElement.querySelector(".actions").getBoundingClientRect().bottom,
            document.getElementById("toast").getBoundingClientRect().top]""")
        assert phone.is_visible("#undoLast") and labels <= toast
    assert focused(phone) == 3
