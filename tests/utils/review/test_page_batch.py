"""Moving on, messages with undo, decisions about several suspects at once, and pairs of labels."""
from dataclasses import replace

import numpy as np
import pytest

from datasets import corrections
from tests.conftest import make_dataset
from tests.utils.review.conftest import (
    decided,
    decision,
    download,
    focused,
    numbers,
    open_page,
    paging,
    per_checkpoint,
    press,
    shown,
)


@pytest.fixture
def moving(tab, page_file):
    """The page of `dataset`, where a decision moves on to the next suspect, as it does by default."""
    tab.goto(page_file.as_uri())
    return tab


def selection(page):
    """The indices of the selected suspects on the page, and how many are said to be selected."""
    indices = page.eval_on_selector_all("article:has([aria-checked='true'])",
                                        "tiles => tiles.map(tile => Number(tile.dataset.index))")
    said = numbers(page.inner_text("#selected"))
    assert page.locator("#clear").is_visible() == bool(said)
    return indices, sum(said)


def kinds(page):
    """How many suspects are relabelled, right and to be removed, as counted and as drawn."""
    counts = [int(text) for text in page.locator("#counts b").all_inner_texts()]
    widths = page.eval_on_selector_all("#progress span",
                                       "all => all.map(one => parseFloat(one.style.width))")
    of = decided(page)[1]
    assert np.allclose(widths, np.multiply(counts, 100 / of))
    assert page.get_attribute("#progress", "aria-valuenow") == str(sum(counts))
    assert page.get_attribute("#progress", "aria-valuemax") == str(of)
    return counts


def choose(page, number, label):
    chooser = page.locator("article select").nth(number)
    chooser.dispatch_event("mousedown")
    chooser.select_option(str(label))


def test_decisions_move_on_by_key_and_by_mouse(moving, dataset):
    page = moving
    press(page, "a f r")
    assert focused(page) == 3 and kinds(page) == [1, 1, 1]
    page.locator("article button.accept").nth(7).click()
    assert focused(page) == 8
    choose(page, 9, (dataset.labels[9, 0] + 2) % 3)
    assert focused(page) == 10
    press(page, "c ArrowDown Enter")
    assert focused(page) == 11 and decided(page) == [6, 150]
    press(page, "ArrowLeft u")
    assert focused(page) == 10 and decided(page) == [5, 150]
    press(page, "n n ArrowLeft f")  # from the last of the second page
    assert focused(page) == 120 and paging(page)[0] == 3
    press(page, "ArrowRight " * 29 + "f")
    assert focused(page) == 149 and decision(page, 29) == "fine"


def test_chooser_that_is_left_by_tab_does_not_move_on(moving):
    press(moving, "c ArrowDown Tab")
    assert decided(moving) == [1, 150]
    assert moving.evaluate("document.activeElement.closest('main')") is None


def test_moving_on_is_a_setting_that_is_kept(moving):
    page = moving
    page.uncheck("#moves")
    page.locator("article").first.focus()
    press(page, "r")
    assert focused(page) == 0
    page.reload()
    assert not page.is_checked("#moves")
    page.check("#moves")
    page.reload()
    page.locator("article").first.focus()
    press(page, "r")
    assert page.is_checked("#moves") and focused(page) == 2  # the first was decided already


def test_message_offers_to_undo_and_takes_no_focus(moving):
    page = moving
    press(page, "r f")
    assert focused(page) == 2 and numbers(page.inner_text("#message")) == [2]
    page.click("#undoLast")
    assert [decision(page, number) for number in (0, 1)] == ["remove", ""] and focused(page) == 1
    assert not page.locator("#undoLast").is_visible() and numbers(page.inner_text("#message")) == [2]
    press(page, "z")
    assert decision(page, 0) == "" and focused(page) == 0
    before = page.inner_text("#message")
    press(page, "z")
    assert page.inner_text("#message") != before and decided(page) == [0, 150]
    page.reload()
    assert decided(page) == [0, 150]


def test_undo_brings_back_what_was_decided_before(page, dataset, tmp_path):
    other = (dataset.labels[0, 0] + 2) % 3
    choose(page, 0, other)
    press(page, "r u z")
    assert decision(page, 0) == "remove"
    press(page, "z")
    page.reload()
    row, = download(page, tmp_path / "a.csv")
    assert (row["decision"], row["new_label"]) == ("relabel", dataset.names[other])


def test_undo_leaves_what_another_tab_decided_since(page, page_file):
    press(page, "r ArrowRight f ArrowLeft")
    other = open_page(page.context.new_page(), page_file)
    other.select_option("#show", "all")
    other.locator("article").nth(1).focus()
    press(other, "r")
    page.wait_for_selector("[data-index='1'][data-decision='remove']")
    press(page, "z z")
    assert [decision(page, number) for number in (0, 1)] == ["", "remove"]


def test_loading_a_file_is_not_undone_with_a_decision_before_it(page, dataset, tmp_path):
    press(page, "r")
    corrections.save(tmp_path / "a.csv", dataset, corrections.Corrections(fine=[0]))
    page.set_input_files("#file", tmp_path / "a.csv")
    page.select_option("#show", "decided")
    page.wait_for_selector("article[data-decision='fine']")
    page.locator("article").first.focus()
    press(page, "z")
    assert decision(page, 0) == "fine"


def test_message_vanishes_with_its_button(page):
    page.clock.install()
    press(page, "r")
    assert page.locator("#undoLast").is_visible()
    page.clock.run_for(11_000)
    assert not page.locator("#undoLast").is_visible() and numbers(page.inner_text("#message")) == [1]
    press(page, "z")
    assert decided(page) == [0, 150]


def test_escape_hides_the_message(page):
    press(page, "r Escape")
    assert not page.locator("#undoLast").is_visible() and decided(page) == [1, 150]


def test_escape_ends_the_selection_from_its_buttons(page):
    press(page, "Shift+ArrowRight")
    page.focus("#batch [data-kind=fine]")
    press(page, "Escape")
    assert selection(page) == ([], 0) and focused(page) == 1


def test_shift_and_arrows_select_a_range(page):
    press(page, "ArrowRight Shift+ArrowRight Shift+ArrowRight Shift+ArrowRight")
    assert selection(page) == ([1, 2, 3, 4], 4)
    press(page, "Shift+ArrowLeft Shift+ArrowLeft")
    assert selection(page) == ([1, 2], 2) and focused(page) == 2
    press(page, "ArrowRight ArrowRight ArrowRight Shift+ArrowRight")  # and another range
    assert selection(page) == ([1, 2, 5, 6], 4)
    press(page, "Escape")
    assert selection(page) == ([], 0) and focused(page) == 6
    press(page, "ArrowRight " * 52 + "Shift+ArrowRight " * 3)
    assert paging(page)[0] == 2 and selection(page) == ([60, 61], 4)
    press(page, "Shift+ArrowLeft " * 4)
    assert paging(page)[0] == 1 and selection(page) == ([57, 58], 2)


def test_clicks_and_space_select(page):
    tiles = page.locator("article .labelled")
    tiles.nth(2).click()
    tiles.nth(5).click(modifiers=["Shift"])
    assert selection(page) == ([2, 3, 4, 5], 4) and focused(page) == 5
    page.locator("article img").nth(3).click(modifiers=["Control"])
    assert selection(page) == ([2, 4, 5], 3) and not page.locator("#view [data-index]").count()
    tiles.nth(8).click(modifiers=["Meta"])
    assert selection(page) == ([2, 4, 5, 8], 4)
    page.locator("article img").nth(10).click(modifiers=["Shift"])
    assert selection(page) == ([2, 4, 5, 8, 9, 10], 6)
    press(page, "Space ArrowRight Space")
    assert selection(page) == ([2, 4, 5, 8, 9, 11], 6)
    page.locator("article").first.hover()
    page.locator("article .select").first.click()
    assert selection(page)[0][0] == 0
    label = page.locator("article").first.get_attribute("aria-label")
    assert label.endswith("selected")
    page.click("#clear")
    assert selection(page) == ([], 0) and focused(page) in (0, 11)
    assert page.evaluate("String(getSelection())") == ""
    for first, last in [(20, 22), (30, 31)]:
        tiles.nth(first).click()
        tiles.nth(last).click(modifiers=["Shift"])
    assert selection(page) == ([20, 21, 22, 30, 31], 5)


@pytest.mark.parametrize(("act", "kind"), [
    ("a", "relabel"), ("f", "fine"), ("r", "remove"), ("accept", "relabel"), ("fine", "fine"),
    ("remove", "remove")])
def test_decision_about_a_range_is_undone_as_one(page, dataset, tmp_path, act, kind):
    press(page, "f ArrowRight Shift+ArrowRight Shift+ArrowRight")
    if len(act) == 1:
        press(page, act)
    else:
        page.click(f"#batch [data-kind={act}]")
    assert selection(page) == ([], 0) and numbers(page.inner_text("#message")) == [3]
    rows = download(page, tmp_path / "a.csv")
    assert [(row["index"], row["decision"]) for row in rows] == [
        ("0", "fine"), *[(index, kind) for index in "123"]]
    if kind == "relabel":
        assert corrections.load(tmp_path / "a.csv", dataset).relabelled == {
            index: (dataset.labels[index, 0] + 1) % 3 for index in (1, 2, 3)}
    press(page, "z")
    assert decided(page) == [1, 150]
    page.reload()
    assert [row["index"] for row in download(page, tmp_path / "b.csv")] == ["0"]


def test_everything_shown_is_decided_at_once(page, dataset, tmp_path):
    """On all pages, but nothing that the filters leave out."""
    page.select_option("#class", "1")
    wanted = np.flatnonzero(dataset.labels[:150, 0] == 1)
    page.locator("article").first.focus()
    press(page, "e")
    assert selection(page)[1] == len(wanted)
    press(page, "r")
    assert kinds(page) == [0, 0, len(wanted)]
    page.select_option("#class", "")
    assert numbers(page.inner_text("#all")) == [150 - len(wanted)]
    page.click("#all")
    assert selection(page)[1] == 150 - len(wanted)  # those that are undecided
    page.click("#batch [data-kind=fine]")
    rows = download(page, tmp_path / "a.csv")
    assert len(rows) == 150
    assert [int(row["index"]) for row in rows if row["decision"] == "remove"] == wanted.tolist()
    page.locator("article").first.focus()
    press(page, "z z")
    assert decided(page) == [0, 150]


def test_undo_about_a_selection(page):
    press(page, "r ArrowRight f ArrowRight Shift+ArrowLeft Shift+ArrowLeft u")
    assert decided(page) == [0, 150] and numbers(page.inner_text("#message")) == [2, 1]
    press(page, "z")
    assert [decision(page, number) for number in (0, 1, 2)] == ["remove", "fine", ""]


def test_accepting_several_leaves_those_without_another_suggestion_alone(tab, dataset, make_page,
                                                                         tmp_path):
    evidence = per_checkpoint(dataset)
    evidence.probability[1] = np.eye(3)[dataset.labels[1, 0]]
    page = open_page(tab, make_page(tmp_path / "same.html", evidence=evidence))
    press(page, "Shift+ArrowRight Shift+ArrowRight a")
    assert [decision(page, number) for number in (0, 1, 2)] == ["relabel", "", "relabel"]
    assert numbers(page.inner_text("#message")) == [2, 1]


def test_decision_at_another_tile_is_about_that_alone(page):
    press(page, "Shift+ArrowRight ArrowRight r")
    assert [decision(page, number) for number in (0, 1, 2)] == ["", "", "remove"]
    assert selection(page) == ([0, 1], 2)
    page.locator("article button.fine").nth(1).click()
    assert [decision(page, number) for number in (0, 1, 2)] == ["fine", "fine", "remove"]


def test_another_class_for_several(page, dataset, tmp_path):
    press(page, "ArrowRight ArrowRight c ArrowDown Enter ArrowLeft ArrowLeft "
                "Shift+ArrowRight Shift+ArrowRight c ArrowDown Escape")
    assert decided(page) == [1, 150] and selection(page)[1] == 3 and focused(page) == 2
    press(page, "c ArrowDown Enter")  # the first class
    assert focused(page) == 2
    rows = download(page, tmp_path / "a.csv")
    for row, given in zip(rows, dataset.labels[:3, 0], strict=True):
        assert (row["decision"], row["new_label"]) == (
            ("fine", "") if given == 0 else ("relabel", dataset.names[0]))
    press(page, "z")
    assert decided(page) == [1, 150]


def test_several_decided_move_on_to_the_suspect_after_them(moving):
    press(moving, "ArrowRight Shift+ArrowRight Shift+ArrowRight f")
    assert focused(moving) == 4 and decided(moving) == [3, 150]


def test_selection_ends_where_others_are_shown(page):
    press(page, "e")
    page.select_option("#show", "all")
    assert selection(page) == ([], 0)


@pytest.fixture
def pairs(tab, dataset, make_page, tmp_path):
    """A page whose suspects are suggested as labelled (0), one class on (1) or two (2), and by index."""
    evidence = per_checkpoint(dataset)
    shift = np.arange(len(dataset.labels)) % 7 % 3
    suggested = (dataset.labels[:, 0] + shift) % 3
    evidence.probability[:] = np.eye(3)[suggested] * 0.7 + 0.1
    page = open_page(tab, make_page(tmp_path / "pairs.html", evidence=evidence))
    page.click("#pairs summary")
    return page, dataset.labels[:150, 0], suggested[:150]


def test_pairs_of_labels_are_counted_and_filter(pairs):
    page, given, suggested = pairs
    for one in range(3):
        for other in range(3):
            cell = page.locator(f"[data-pair='{one} {other}']")
            assert int(cell.inner_text()) == ((given == one) & (suggested == other)).sum()
    page.click("[data-pair='2 0']")
    wanted = np.flatnonzero((given == 2) & (suggested == 0))
    assert shown(page) == wanted.tolist() and paging(page)[2] == len(wanted)
    assert page.get_attribute("[data-pair='2 0']", "aria-pressed") == "true"
    assert (page.input_value("#class"), page.input_value("#suggested")) == ("2", "0")
    page.click("#allPairs")
    assert paging(page)[2] == 150 and not page.locator("#allPairs").is_visible()
    assert page.locator("[aria-pressed='true']").count() == 0
    page.click("[data-pair='1 1']")
    page.click("[data-pair='1 1']")
    assert paging(page)[2] == 150
    page.select_option("#suggested", "1")
    assert paging(page)[2] == (suggested == 1).sum() and page.locator("#allPairs").is_visible()


def test_pairs_count_what_is_shown(pairs):
    page, given, suggested = pairs
    page.click("[data-pair='0 1']")
    page.locator("article").first.focus()
    press(page, "r")
    left = ((given == 0) & (suggested == 1)).sum() - 1
    assert int(page.inner_text("[data-pair='0 1']")) == left == paging(page)[2]
    press(page, "z")
    assert int(page.inner_text("[data-pair='0 1']")) == left + 1 == paging(page)[2]
    press(page, "r")
    page.focus("[data-pair='0 1']")
    page.evaluate("update()")
    assert page.evaluate("document.activeElement.dataset.pair") == "0 1"
    page.click("#allPairs")
    assert int(page.inner_text("[data-pair='0 1']")) == left
    page.select_option("#show", "decided")
    assert page.locator("[data-pair]").all_inner_texts() == ["1"]


def test_pairs_of_many_classes_are_those_with_the_most_suspects(tab, make_page, tmp_path):
    rng = np.random.default_rng(0)
    many = replace(make_dataset(400), names=[f"class {label}" for label in range(300)])
    many.labels[:, 0] = np.where(np.arange(400) < 300, rng.permutation(400) % 300, 299)
    evidence = replace(per_checkpoint(many), probability=np.full((400, 300), 1e-3))
    evidence.probability[np.arange(400), (many.labels[:, 0] + 1) % 300] = 0.7
    page = open_page(tab, make_page(tmp_path / "many.html", many, limit=400, evidence=evidence))
    assert not page.locator("#more").is_visible()
    page.click("#pairs summary")
    rows = page.locator("#table tr")
    assert rows.count() == 26 and rows.first.locator("th").count() == 25
    assert int(page.inner_text("[data-pair='299 0']")) == (many.labels == 299).sum() >= 100
    assert page.locator("#more").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_table_of_pairs_says_that_it_goes_on(pairs, dataset, make_page, tmp_path):
    page, _, _ = pairs
    assert not page.is_visible("#wider")
    page.set_viewport_size({"width": 320, "height": 568})
    long = replace(dataset, names=[letter * 40 for letter in "abc"])
    open_page(page, make_page(tmp_path / "long.html", long))
    page.click("#pairs summary")
    assert page.is_visible("#wider")
    page.evaluate("document.getElementById('table').scrollLeft = 9999")
    page.wait_for_selector("#wider", state="hidden")
