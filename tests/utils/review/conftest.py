"""The review page in a real browser, headless Chromium, and what its tests do there."""
import csv
import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import make_dataset
from utils.review.page import save_review
from utils.review.suspects import gather_facts
from utils.tracin.scores import PerCheckpoint

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "<script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM and "CI" not in os.environ:
        pytest.skip("needs Chromium")
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM,
                                             args=["--no-sandbox", "--disable-background-networking"])
        yield browser
        browser.close()


def make_reviewed():
    """200 samples of three classes; the more suspicious, the smaller their index."""
    paths = [f'{number}, "{EVIL}".png' for number in range(200)]
    paths[2] = "2, a.png"
    return replace(make_dataset(200), names=[EVIL, "</script>", "dog, \"big\""], paths=paths)


@pytest.fixture
def dataset():
    return make_reviewed()


def write_page(path, dataset, limit=150, applied=(), evidence=None, explanations=None, **more):
    first = np.arange(min(limit, len(dataset.labels)))
    save_review(path, dataset, -np.arange(len(dataset.labels), dtype=float), "tracin",
                evidence or per_checkpoint(dataset), limit,
                gather_facts(dataset, applied, explanations, first), **more)
    return path


@pytest.fixture
def make_page(dataset):
    def make(path, dataset=dataset, **more):
        return write_page(path, dataset, **more)
    return make


@pytest.fixture(scope="session")
def finished_page(tmp_path_factory):
    """The page of `dataset`.  Copy, do not change."""
    return write_page(tmp_path_factory.mktemp("page") / "review.html", make_reviewed())


@pytest.fixture
def page_file(finished_page, tmp_path):
    return shutil.copy(finished_page, tmp_path / "review.html")


def per_checkpoint(dataset):
    samples = len(dataset.labels)
    suggested = (dataset.labels[:, 0] + 1) % 3
    probability = np.full((samples, 3), 0.1)
    probability[np.arange(samples), suggested] = 0.8
    column = np.ones((samples, 2))
    margin = np.stack([np.full(samples, -1.0), np.where(np.arange(samples) % 2, 1.0, -1.0)], axis=1)
    return PerCheckpoint(np.array([1, 2]), np.array([0.1, 0.1]), column, column, margin, column,
                         probability, np.array(""))


@pytest.fixture
def tab(browser):
    """A tab of a browser of its own, where nothing is open yet; no page in it may complain."""
    context = browser.new_context(accept_downloads=True)
    tab = context.new_page()
    problems = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda message: problems.append(message.text))
    tab.on("request", lambda request: request.url.startswith(("file:", "data:", "blob:"))
           or problems.append(request.url))
    yield tab
    assert problems == []
    context.close()


@pytest.fixture
def page(tab, page_file):
    """The page of `dataset`, open."""
    return open_page(tab, page_file)


def open_page(tab, path, moves=False):
    """Open a page, where a decision moves on to the next suspect or, as most tests prefer, does not."""
    tab.goto(path.as_uri())
    tab.evaluate("""moves => {
        const box = document.getElementById("moves");
        box.checked = moves;
        box.dispatchEvent(new Event("change"));
    }""", moves)
    return tab


def download(page, target, name="corrections.csv"):
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == name
    download.value.save_as(target)
    with target.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def numbers(text):
    return [int(number) for number in re.findall(r"\d+", text)]


def in_detail(page):
    """The index of the suspect in the detail view, None if that is closed."""
    view = page.locator("#detail [data-index]")
    return int(view.get_attribute("data-index")) if view.count() else None


def decided(page):
    """How many suspects are decided, of how many on the page, and perhaps how many elsewhere."""
    return numbers(page.inner_text("#count"))


def offered(page):
    """How many decisions of other reviews could be taken over."""
    return numbers(page.locator("#offer").inner_text()) if page.locator("#use").is_visible() else []


def paging(page):
    """Number of this page, of all pages, of the suspects shown and of all samples."""
    return numbers(page.inner_text("#page"))


def decision(page, number):
    """The decision that the tile of this number on the page shows."""
    return page.locator("article").nth(number).get_attribute("data-decision")


def press(page, keys):
    for key in keys.split():
        page.keyboard.press(key)


def focused(page):
    return int(page.evaluate("document.activeElement.dataset.index"))


def shown(page):
    return [int(value) for value in page.eval_on_selector_all(
        "article", "tiles => tiles.map(tile => tile.dataset.index)")]
