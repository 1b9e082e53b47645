"""What becomes of the decisions: kept by the browser, downloaded, loaded, applied in the next round."""
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import mislabel_analysis
from datasets import corrections
from tests.utils.review.conftest import (
    decided,
    decision,
    download,
    focused,
    numbers,
    offered,
    open_page,
    press,
    shown,
)
from utils.review.page import download_name

expect = pytest.importorskip("playwright.sync_api").expect


def test_full_storage_loses_no_decision(page, tmp_path):
    press(page, "a ArrowRight r ArrowRight")
    page.evaluate("""() => {
        let text = "x".repeat(1 << 20);
        for (let number = 0; text.length; number++) {
            try { localStorage.setItem("full" + number, text); }
            catch { text = text.slice(text.length / 2 + 1); }
        }
    }""")
    press(page, "r ArrowRight f")
    warned = page.inner_text("#message")
    rows = download(page, tmp_path / "a.csv")
    assert [(row["index"], row["decision"]) for row in rows] == [
        ("0", "relabel"), ("1", "remove"), ("2", "remove"), ("3", "fine")]
    page.evaluate("localStorage.clear()")
    page.locator("article").nth(3).focus()
    press(page, "f")
    told = page.inner_text("#message")
    assert told in warned and told != warned  # with a warning


def test_emptied_storage_loses_no_decision(page, tmp_path):
    press(page, "a ArrowRight r")
    page.evaluate("localStorage.clear()")
    assert len(download(page, tmp_path / "a.csv")) == 2


def test_decision_in_another_tab_replaces_one_that_was_not_kept(page, page_file, tmp_path):
    other = page.context.new_page()
    other.goto(page_file.as_uri())
    page.evaluate("""() => {
        const keep = Storage.prototype.setItem;
        Storage.prototype.setItem = () => { Storage.prototype.setItem = keep; throw Error("full"); };
    }""")
    press(page, "r")
    press(other, "f")
    expect(page.locator("article").first).to_have_attribute("data-decision", "fine")
    assert [row["decision"] for row in download(page, tmp_path / "a.csv")] == ["fine"]


def test_progress_is_kept(page, tmp_path):
    press(page, "r ArrowRight f")
    page.reload()
    assert decided(page) == [2, 150] and shown(page)[:2] == [2, 3]
    page.select_option("#show", "all")
    assert [decision(page, number) for number in range(3)] == ["remove", "fine", ""]
    assert [row["decision"] for row in download(page, tmp_path / "a.csv")] == ["remove", "fine"]


def test_decisions_of_an_older_page_are_kept(page, dataset, tmp_path):
    """Older pages stored {kind, row}, with the cells of the row by position."""
    names, given = dataset.names, dataset.labels[:, 0]
    old = {index: {"kind": kind, "row": [index, dataset.paths[index], names[given[index]], kind, new,
                                         corrections.sample_digest(dataset, index)]}
           for index, kind, new in [(0, "relabel", names[(given[0] + 2) % 3]), (1, "remove", "")]}
    page.evaluate("""([run, old]) => {
        for (const [index, decision] of Object.entries(old))
            localStorage.setItem(`tracin-review-${run}-${index}`, JSON.stringify(decision));
        for (const [index, text] of ["5", "{}", '{"kind": "fine", "row": [4]}', "x"].entries())
            localStorage.setItem(`tracin-review-${run}-${index + 2}`, text);
    }""", [dataset.digest(), old])
    page.reload()
    page.select_option("#show", "all")
    assert decided(page) == [2, 150] and [decision(page, 0), decision(page, 1)] == ["relabel", "remove"]
    page.locator("article").first.focus()
    press(page, "ArrowRight ArrowRight f")
    download(page, tmp_path / "a.csv")
    assert corrections.load(tmp_path / "a.csv", dataset) == corrections.Corrections(
        {0: (given[0] + 2) % 3}, [1], [2])


def test_decision_under_the_key_of_an_older_page_is_replaced(page, dataset):
    row = {"run": dataset.digest(), "index": 0, "path": "", "decision": "remove", "new_label": "",
           "given_label": dataset.names[dataset.labels[0, 0]], "time": 1,
           "image_sha256": corrections.sample_digest(dataset, 0)}
    page.evaluate("row => localStorage.setItem('tracin-review-old', JSON.stringify(row))", row)
    page.reload()
    assert decided(page) == [1, 150]
    page.select_option("#show", "all")
    page.locator("article").first.focus()
    press(page, "u")
    page.reload()
    assert decided(page) == [0, 150]


def test_two_tabs_and_two_pages_of_a_run_share_their_decisions(page, page_file, make_page, tmp_path):
    make_page(page_file.with_name("short.html"), limit=2)
    other = page.context.new_page()
    other.goto(page_file.with_name("short.html").as_uri())
    press(page, "r ArrowRight ArrowRight ArrowRight f")
    press(other, "ArrowRight a")
    rows = download(page, tmp_path / "a.csv")
    assert {(row["index"], row["decision"]) for row in rows} == {
        ("0", "remove"), ("1", "relabel"), ("3", "fine")}
    assert decided(other) == [2, 2, 1]
    expect(page.locator("article").nth(1)).to_have_attribute("data-decision", "relabel")
    page.locator("article").nth(1).focus()
    press(page, "u")
    expect(other.locator("article").nth(1)).to_have_attribute("data-decision", "")


def with_copies(dataset, *copies):
    """The same samples, but some with another's image: (index, index of the other, label)."""
    images, labels = dataset.images.copy(), dataset.labels.copy()
    for index, other, label in copies:
        images[index], labels[index] = images[other], label
    return replace(dataset, images=images, labels=labels)


def next_round(tmp_path, dataset, file):
    """The data after a file of corrections, and what was applied so far, as training writes it."""
    run = tmp_path / "run"
    run.mkdir(exist_ok=True)
    applied = corrections.carry_forward(run, file)
    corrections.save_decisions(run / corrections.APPLIED_FILE, applied)
    return corrections.load(file, dataset).apply(dataset), corrections.load_applied(run)


def test_next_round_knows_what_was_decided(page, dataset, make_page, tmp_path):
    given = dataset.labels[:, 0]
    press(page, "a ArrowRight f ArrowRight r")
    download(page, tmp_path / "a.csv")
    page.locator("article").nth(3).focus()
    press(page, "f ArrowRight ArrowRight r")  # 3 and 5, after the download
    second, applied = next_round(tmp_path, dataset, tmp_path / "a.csv")
    open_page(page, make_page(tmp_path / "second.html", second, applied=applied))
    # Without the removed one: 0 and 1 are decided, 2 and 4 wait.
    assert decided(page) == [0, 150, 2] and offered(page) == [2]
    page.click("#use")
    assert offered(page) == []
    assert decided(page) == [2, 150, 2] and shown(page)[:3] == [3, 5, 6]
    assert focused(page) == 3
    page.select_option("#show", "earlier")
    assert shown(page) == [0, 1] and [decision(page, number) for number in (0, 1)] == ["", ""]
    told = [page.locator("article").nth(number).locator(".decided").inner_text() for number in (0, 1)]
    assert dataset.names[given[0]] in told[0] and dataset.names[(given[0] + 1) % 3] in told[0]
    assert not any(name in told[1] for name in dataset.names)
    page.select_option("#show", "all")
    assert shown(page)[:6] == [0, 1, 2, 3, 4, 5]
    download(page, tmp_path / "b.csv")
    assert corrections.load(tmp_path / "b.csv", second) == corrections.Corrections({}, [4], [2])
    third, applied = next_round(tmp_path, second, tmp_path / "b.csv")
    open_page(page, make_page(tmp_path / "third.html", third, applied=applied))
    assert decided(page) == [0, 150, 3]
    assert shown(page)[0] == 3


def test_labels_that_are_right_do_not_wait_in_the_same_data(page, dataset, make_page, tmp_path):
    press(page, "f ArrowRight f")
    download(page, tmp_path / "a.csv")
    second, applied = next_round(tmp_path, dataset, tmp_path / "a.csv")
    assert second.digest() == dataset.digest()
    open_page(page, make_page(tmp_path / "second.html", second, applied=applied))
    assert decided(page) == [0, 150, 2] and focused(page) == 2


def test_decision_whose_effect_is_there_is_offered_as_right(page, dataset, make_page, tmp_path):
    """The labels were changed by other means: no file says what was applied.  The label is right."""
    press(page, "a ArrowRight f")
    labels = dataset.labels.copy()
    labels[0] = (labels[0] + 1) % 3
    open_page(page, make_page(tmp_path / "b.html", replace(dataset, labels=labels)))
    assert decided(page) == [0, 150] and offered(page) == [2]
    page.click("#use")
    assert decided(page) == [2, 150] and shown(page)[0] == 2
    assert [(row["index"], row["decision"]) for row in download(page, tmp_path / "a.csv")] == [
        ("0", "fine"), ("1", "fine")]
    labels[0] = (labels[0] + 1) % 3  # a label that nobody decided on
    open_page(page, make_page(tmp_path / "c.html", replace(dataset, labels=labels)))
    assert offered(page) == [1]
    page.click("#use")
    assert decided(page) == [1, 150] and shown(page)[0] == 0


def test_removed_image_does_not_remove_its_copy(tab, dataset, make_page, tmp_path):
    dataset = with_copies(dataset, (7, 0, dataset.labels[0]))
    page = open_page(tab, make_page(tmp_path / "first.html", dataset))
    press(page, "r")
    assert decided(page) == [1, 150] and decision(page, 7) == ""
    download(page, tmp_path / "a.csv")
    second, applied = next_round(tmp_path, dataset, tmp_path / "a.csv")
    open_page(page, make_page(tmp_path / "second.html", second, applied=applied))
    assert decided(page) == [0, 150] and 6 in shown(page) and offered(page) == []
    page.locator("[data-index='6']").focus()
    press(page, "r")
    page.reload()
    assert decided(page) == [1, 150]
    assert [row["index"] for row in download(page, tmp_path / "b.csv")] == ["6"]
    third, applied = next_round(tmp_path, second, tmp_path / "b.csv")
    open_page(page, make_page(tmp_path / "third.html", third, applied=applied))
    assert decided(page) == [0, 150] and offered(page) == []


def test_identical_images_have_decisions_of_their_own(tab, dataset, make_page, tmp_path):
    label = int(dataset.labels[0, 0])
    dataset = with_copies(dataset, (3, 0, label), (5, 0, (label + 1) % 3))
    page = open_page(tab, make_page(tmp_path / "first.html", dataset))
    press(page, "a" + " ArrowRight" * 3 + " f ArrowRight ArrowRight r")
    page.reload()
    assert decided(page) == [3, 150]
    download(page, tmp_path / "a.csv")
    assert corrections.load(tmp_path / "a.csv", dataset) == corrections.Corrections(
        {0: (label + 1) % 3}, [5], [3])


def test_decisions_of_another_data_set_count_only_once_taken_over(page, page_file, dataset, make_page,
                                                                  tmp_path):
    """It has the first image with the same label, and the second with another."""
    press(page, "r ArrowRight r")
    other = replace(dataset, images=dataset.images[::-1].copy(), labels=dataset.labels[::-1].copy(),
                    paths=dataset.paths[::-1])
    other.labels[198] = (other.labels[198] + 1) % 3
    open_page(page, make_page(tmp_path / "other.html", other, limit=200))
    assert decided(page) == [0, 200] and shown(page)[0] == 0 and offered(page) == [1]
    press(page, "f")
    assert [row["index"] for row in download(page, tmp_path / "a.csv")] == ["0"]
    second = page.context.new_page()
    open_page(second, tmp_path / "other.html")
    page.click("#use")
    assert offered(page) == [] and decided(page) == [2, 200]
    row, = download(page, tmp_path / "a.csv")[1:]
    assert (row["index"], row["path"], row["decision"]) == ("199", dataset.paths[0], "remove")
    expect(second.locator("#use")).to_be_hidden()
    page.select_option("#show", "decided")
    page.locator("[data-index='199']").focus()
    press(page, "f")  # and changing it leaves the other run's decision alone
    open_page(page, page_file)
    assert [row["decision"] for row in download(page, tmp_path / "b.csv")] == ["remove", "remove"]


def test_relabel_to_a_class_that_is_not_there_does_not_count(page, dataset, make_page, tmp_path):
    press(page, "a")
    names = [name if name != dataset.names[(dataset.labels[0, 0] + 1) % 3] else "new"
             for name in dataset.names]
    open_page(page, make_page(tmp_path / "b.html", replace(dataset, names=names)))
    assert decided(page) == [0, 150]


def test_newest_decision_of_other_reviews_is_offered(page, dataset, make_page, tmp_path):
    press(page, "a")
    for number, key in [(1, "r"), (2, "f")]:
        labels = dataset.labels.copy()
        labels[100 + number] = (labels[100 + number] + 1) % 3
        open_page(page, make_page(tmp_path / f"{number}.html", replace(dataset, labels=labels)))
        press(page, key)
        page.wait_for_timeout(5)  # on the page's clock
    labels[90] = (labels[90] + 1) % 3
    open_page(page, make_page(tmp_path / "last.html", replace(dataset, labels=labels)))
    assert offered(page) == [1]
    page.click("#use")
    assert [row["decision"] for row in download(page, tmp_path / "a.csv")] == ["fine"]


def load(page, path):
    before = page.inner_text("#message")
    page.set_input_files("#file", path)
    expect(page.locator("#message")).not_to_have_text(before)
    return numbers(page.inner_text("#message"))


def test_corrections_of_another_browser_are_loaded(tab, dataset, make_page, tmp_path):
    """Names with quotes, commas and formulas; samples on the page, and one that it does not show."""
    dataset = replace(dataset, names=["=cmd()", 'dog, "big"', "'b\n c"])
    saved = corrections.Corrections({0: (dataset.labels[0, 0] + 1) % 3}, [180, 2], [1])
    corrections.save(tmp_path / "a.csv", dataset, saved)
    (tmp_path / "a.csv").write_bytes((tmp_path / "a.csv").read_bytes().replace(b"\n", b"\r\n").replace(
        b"'b\r\n c", b"'b\n c") + b"\r\n")
    page = open_page(tab, make_page(tmp_path / "b.html", dataset))
    press(page, "r")  # the loaded row replaces it
    assert load(page, tmp_path / "a.csv") == [4]
    assert decided(page) == [3, 150, 1] and shown(page)[0] == 3
    page.reload()
    download(page, tmp_path / "b.csv")
    assert corrections.load(tmp_path / "b.csv", dataset) == replace(saved, removed=[2, 180])
    open_page(page, make_page(tmp_path / "all.html", dataset, limit=200))
    assert decided(page) == [4, 200]
    page.select_option("#show", "decided")
    page.locator("[data-index='180']").focus()
    press(page, "u")
    page.reload()
    assert decided(page) == [3, 200]


def test_loaded_row_replaces_the_decision_of_another_page(page, page_file, dataset, make_page, tmp_path):
    make_page(tmp_path / "short.html", limit=2)
    press(page, "ArrowRight ArrowRight r")
    corrections.save(tmp_path / "a.csv", dataset, corrections.Corrections(fine=[2]))
    open_page(page, tmp_path / "short.html")
    assert decided(page) == [0, 2, 1]
    load(page, tmp_path / "a.csv")
    assert [row["decision"] for row in download(page, tmp_path / "b.csv")] == ["fine"]
    assert decided(open_page(page, page_file)) == [1, 150]
    assert [row["decision"] for row in download(page, tmp_path / "c.csv")] == ["fine"]


@pytest.mark.parametrize("limit", [150, 2])
def test_row_about_the_next_copy_of_a_removed_image_is_loaded(tab, dataset, make_page, tmp_path,
                                                              limit):
    """In another browser, where only the files tell what was decided."""
    dataset = with_copies(dataset, (7, 3, dataset.labels[3]))
    corrections.save(tmp_path / "a.csv", dataset, corrections.Corrections(removed=[3], fine=[4]))
    second, applied = next_round(tmp_path, dataset, tmp_path / "a.csv")
    corrections.save(tmp_path / "b.csv", second, corrections.Corrections(removed=[6]))
    page = open_page(tab, make_page(tmp_path / "second.html", second, applied=applied, limit=limit))
    assert load(page, tmp_path / "a.csv") == [0, 2]
    assert load(page, tmp_path / "b.csv") == [1]
    download(page, tmp_path / "c.csv")
    assert corrections.load(tmp_path / "c.csv", second).removed == [6]


def test_row_about_an_earlier_label_of_a_sample_that_is_not_shown_is_not_loaded(tab, dataset, make_page,
                                                                               tmp_path):
    saved = corrections.Corrections({180: (dataset.labels[180, 0] + 1) % 3})
    corrections.save(tmp_path / "a.csv", dataset, saved)
    second, applied = next_round(tmp_path, dataset, tmp_path / "a.csv")
    page = open_page(tab, make_page(tmp_path / "second.html", second, applied=applied))
    assert load(page, tmp_path / "a.csv") == [0, 1]


def test_rows_that_cannot_be_used_are_counted(page, dataset, make_page, tmp_path):
    press(page, "a ArrowRight f")
    download(page, tmp_path / "first.csv")
    second, applied = next_round(tmp_path, dataset, tmp_path / "first.csv")
    open_page(page, make_page(tmp_path / "second.html", second, applied=applied))
    lines = (tmp_path / "first.csv").read_text(encoding="utf-8-sig").splitlines()
    digest = corrections.sample_digest(dataset, 5)
    label = dataset.labels[5, 0]
    plain = replace(second, names=["a", "b", "c"])
    corrections.save(tmp_path / "rows.csv", plain, corrections.Corrections(fine=[3, 4]))
    (tmp_path / "a.csv").write_text("\n".join([
        *lines,  # two that were applied
        f"70,,{dataset.names[label]},remove,,sha256:0123456789abcdef",  # another image on the page
        f"180,,{dataset.names[label]},remove,,sha256:0123456789abcdef",  # and one that is not
        "900,,x,remove,,sha256:0123456789abcdef",
        f"5,,x,explode,,{digest}", f"5,,x,relabel,nothing,{digest}", f"-5,,x,fine,,{digest}", "5"]))
    assert load(page, tmp_path / "a.csv") == [0, 2, 3, 4]
    assert decided(page) == [0, 150, 2]


HEADER = b"index,path,given_label,decision,new_label,image_sha256\n"


@pytest.mark.parametrize("content", [
    b"", b"index,decision\n", b'"' * 1001, HEADER.replace(b",", b";"), HEADER.replace(b"path", b"index"),
    HEADER + "0,,caf\u00e9,fine,,\n".encode("latin-1")])
def test_file_that_is_no_corrections_is_refused(page, tmp_path, content):
    (tmp_path / "other.csv").write_bytes(content)
    load(page, tmp_path / "other.csv")
    assert "other.csv" in page.inner_text("#message") and decided(page) == [0, 150]
    (tmp_path / "other.csv").write_bytes(HEADER)
    assert load(page, tmp_path / "other.csv") == [0]  # the same file is read again


def test_rows_of_an_earlier_round_find_their_images(tab, dataset, make_page, tmp_path):
    """A file of the first round, loaded in the second, where the indices are others."""
    dataset = with_copies(dataset, (4, 9, dataset.labels[9]))
    corrections.save(tmp_path / "old.csv", dataset, corrections.Corrections(removed=[9], fine=[4, 190]))
    second = corrections.Corrections(removed=[0, 1]).apply(dataset)
    page = open_page(tab, make_page(tmp_path / "second.html", second))
    # Sample 190 is 188 now, which the page does not show.
    assert load(page, tmp_path / "old.csv") == [2, 1]
    download(page, tmp_path / "a.csv")
    # Which of the identical samples is removed makes no difference.
    assert corrections.load(tmp_path / "a.csv", second) == corrections.Corrections({}, [2], [7])


def test_load_button_opens_the_file_chooser_by_key(page):
    opened = []
    page.on("filechooser", lambda chooser: opened.append(chooser))
    page.focus("#load")
    press(page, "Enter")
    for _ in range(500):
        if opened:
            break
        page.wait_for_timeout(10)
    assert len(opened) == 1


@pytest.mark.parametrize("command", ["", "python -u train.py --run a_2 --input 'a b' <b>"])
def test_download_says_how_many_and_what_next(tab, make_page, tmp_path, command):
    page = open_page(tab, make_page(tmp_path / "b.html", next_command=command))
    press(page, "a ArrowRight f ArrowRight r")
    download(page, tmp_path / "a.csv")
    assert numbers(page.inner_text("#message"))[0] == 3
    assert page.locator("#message code").all_inner_texts() == [command] * bool(command)
    page.locator("article").first.focus()
    press(page, "u")
    assert page.locator("#message code").count() == 0


@pytest.mark.parametrize("show", ["open", "all"])
def test_first_undecided_suspect_has_the_focus_after_a_reload(page, page_file, show):
    press(page, " ".join(["f", "ArrowRight"] * 63))
    press(page, "ArrowLeft u")
    # Some browsers restore what was chosen before.
    option = f'<option value="{show}"'
    page_file.write_text(page_file.read_text().replace(option, f"{option} selected"))
    page.reload()
    assert page.input_value("#show") == show and decided(page) == [62, 150]
    assert focused(page) == 62 and shown(page)[0] == {"open": 62, "all": 60}[show]


def test_download_is_named_after_the_run(tab, make_page, tmp_path):
    name = download_name(tmp_path / "a run_2")
    assert name == "a_run_2_corrections.csv"
    page = open_page(tab, make_page(tmp_path / "b.html", download=name))
    press(page, "r")
    download(page, tmp_path / "a.csv", name)
    assert name in page.inner_text("#message")


def test_analysis_names_the_download_after_its_run(run, tmp_path):
    mislabel_analysis.main(["--input", str(run), "--output", str(tmp_path)])
    data = re.search(r'id="data">(.*?)</script>', (tmp_path / "review.html").read_text(), re.DOTALL)[1]
    assert json.loads(data)["download"] == f"{run.name}_corrections.csv"


@pytest.mark.parametrize(("folder", "name"), [
    ("x/demo", "demo_corrections.csv"), ("demo/", "demo_corrections.csv"), ("/", "corrections.csv"),
    ("x/../.hidden", "hidden_corrections.csv"), ("--run", "run_corrections.csv"),
    ("\u732b$(a)'\n", "___a____corrections.csv")])
def test_name_of_a_download_is_a_safe_file_name(folder, name):
    assert download_name(Path(folder)) == name


def test_name_of_a_download_keeps_the_round_of_a_long_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [download_name(Path("long" * 40 + f"_{number}")) for number in (2, 3)]
    assert names[0] != names[1] and {len(name) for name in names} == {60}
    assert download_name(Path()) == f"{re.sub('[^A-Za-z0-9_.-]', '_', tmp_path.name)}_corrections.csv"
