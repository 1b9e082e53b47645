import csv
import errno
import os
import re
from dataclasses import replace

import numpy as np
import pytest

from datasets import corrections
from datasets.arrays import Split
from datasets.corrections import Corrections
from datasets.duplicates import image_digests
from tests.conftest import make_dataset, refused
from utils.errors import UserError

HEADER = "index,path,given_label,decision,new_label,image_sha256\n"


@pytest.fixture
def dataset():
    return replace(make_dataset(), paths=[f"a,{number}.png" for number in range(30)])


def row(dataset, index, decision, new="", given=None):
    given = dataset.names[dataset.labels[index, 0]] if given is None else given
    return f"{index},,{given},{decision},{new},{corrections.sample_digest(dataset, index)}\n"


def test_saved_corrections_are_read_again(dataset, tmp_path):
    other = [(label + 1) % 3 for label in dataset.labels[:, 0].tolist()]
    saved = Corrections({3: other[3], 5: other[5]}, [7, 1], [2])
    corrections.save(tmp_path / "a.csv", dataset, saved)
    assert corrections.load(tmp_path / "a.csv", dataset) == saved
    assert (tmp_path / "a.csv").read_bytes().startswith(b"\xef\xbb\xbfindex,")  # for spreadsheets
    first = (tmp_path / "a.csv").read_text().splitlines()[1]
    given = dataset.names[dataset.labels[3, 0]]
    assert first.startswith(f'3,"a,3.png",{given},relabel,class {other[3]},')


def test_names_that_look_like_formulas_are_written_as_text(dataset, tmp_path):
    names = ["=cmd()", "-1", "'+b"]
    dataset = replace(dataset, names=names, paths=[f"@{number}" for number in range(30)])
    saved = Corrections({index: (dataset.labels[index, 0] + 1) % 3 for index in range(30)})
    corrections.save(tmp_path / "a.csv", dataset, saved)
    with (tmp_path / "a.csv").open(encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert {row["new_label"] for row in rows} == {"'=cmd()", "-1", "''+b"}
    assert rows[0]["path"] == "'@0"
    assert corrections.load(tmp_path / "a.csv", dataset) == saved


def test_own_label_as_the_new_one_changes_nothing(dataset, tmp_path):
    given = dataset.names[dataset.labels[3, 0]]
    (tmp_path / "a.csv").write_text(HEADER + row(dataset, 3, "relabel", given))
    assert corrections.load(tmp_path / "a.csv", dataset) == Corrections(fine=[3])


def test_applied_corrections_relabel_and_remove(dataset):
    before = dataset.labels.copy()
    corrected = Corrections({3: 0, 5: 2}, [7, 1], [2]).apply(dataset)
    kept = [index for index in range(30) if index not in (1, 7)]
    assert np.array_equal(corrected.images, dataset.images[kept])
    assert corrected.paths == [dataset.paths[index] for index in kept]
    assert np.array_equal(corrected.true_labels, dataset.true_labels[kept])
    expected = before.copy()
    expected[3], expected[5] = 0, 2
    assert np.array_equal(corrected.labels, expected[kept])
    assert np.array_equal(dataset.labels, before)


@pytest.mark.parametrize("known", [False, True])
def test_test_set_that_is_the_training_set_is_corrected_too(dataset, known):
    both = replace(dataset, true_labels=dataset.true_labels if known else None,
                   test=Split(dataset.images, dataset.true_labels if known else dataset.labels))
    corrected = Corrections({3: 0, 5: 2}, [7, 1]).apply(both)
    assert corrected.test.images is corrected.images  # once in memory
    assert np.array_equal(corrected.test.labels, corrected.true_labels if known else corrected.labels)
    assert Corrections(removed=[1]).apply(dataset).test is dataset.test


def test_what_changed_is_said(dataset):
    labels = np.resize([0, 1], (30, 1))
    text = Corrections({0: 1, 2: 1, 1: 2}, [3], [4, 5]).describe(replace(dataset, labels=labels))
    assert re.findall(r"class \d|\d+", text) == [
        "3", "2", "class 0", "class 1", "1", "class 1", "class 2", "1", "1", "class 1", "2"]
    labels = np.arange(30)[:, None]
    many = replace(dataset, labels=labels, names=[str(label) for label in range(30)])
    text = Corrections(removed=list(range(7))).describe(many)
    assert re.findall(r"\d+|\.\.\.", text) == [
        "0", "7", "1", "0", "1", "1", "1", "2", "1", "3", "1", "4", "...", "0"]


def test_class_must_keep_a_sample(dataset):
    removed = np.flatnonzero(dataset.labels[:, 0] == 1).tolist()
    with pytest.raises(UserError, match="'class 1'"):
        Corrections(removed=removed).apply(dataset)
    assert len(Corrections({0: 1}, [one for one in removed if one]).apply(dataset).images) > 0


def test_last_sample_of_a_class_is_left_alone(dataset):
    """Samples 3 and 8 are all of class 2; the others are of class 0 and 1."""
    labels = np.resize([0, 1], (30, 1))
    labels[[3, 8]] = 2
    dataset = replace(dataset, labels=labels)
    order = [8, 3, *(index for index in range(30) if index not in (3, 8))]
    for wanted, left in [(Corrections(removed=[8, 3, 0]), Corrections(removed=[8, 0])),
                         (Corrections({8: 0, 3: 1}, fine=[5]), Corrections({8: 0}, fine=[5])),
                         (Corrections({8: 0}, [3]), Corrections({8: 0}))]:
        assert wanted.keep_classes(dataset, order) == (left, [3])
        assert left.apply(dataset).labels.max() == 2
    swapped = Corrections({8: 0, 3: 0, 0: 2})
    assert swapped.keep_classes(dataset, order) == (swapped, [])
    everything = Corrections(removed=list(range(30)))
    left, kept = everything.keep_classes(dataset, order)
    assert kept == [28, 29, 3] and sorted([*left.removed, *kept]) == list(range(30))


def test_class_that_loses_the_sample_it_was_given_is_kept_too(dataset):
    """The samples move on by one class; the one that stays is missing in the next."""
    dataset = replace(dataset, images=dataset.images[:3], labels=np.arange(3)[:, None], paths=None)
    left, kept = Corrections({0: 1, 1: 2}, [2]).keep_classes(dataset, [0, 1, 2])
    assert (left, kept) == (Corrections(), [0, 1, 2])


def applied_to(folder, *rows):
    folder.mkdir(exist_ok=True)
    (folder / corrections.APPLIED_FILE).write_text(HEADER + "".join(rows))
    return folder


def test_decisions_are_carried_forward(dataset, tmp_path):
    """A newer row replaces older ones about the same image with the same label; others stay."""
    given = dataset.names[dataset.labels[3, 0]]
    run = applied_to(tmp_path / "run", row(dataset, 3, "fine"), row(dataset, 4, "remove"),
                     row(dataset, 3, "relabel", "class 9", given="class 8"))
    (tmp_path / "new.csv").write_text(HEADER + row(dataset, 5, "fine") + row(dataset, 3, "relabel", "x"))
    carried = corrections.carry_forward(run, tmp_path / "new.csv")
    assert [(one.index, one.given_label, one.decision, one.new_label) for one in carried] == [
        (4, dataset.names[dataset.labels[4, 0]], "remove", ""), (3, "class 8", "relabel", "class 9"),
        (5, dataset.names[dataset.labels[5, 0]], "fine", ""), (3, given, "relabel", "x")]
    corrections.save_decisions(run / corrections.APPLIED_FILE, carried)
    assert corrections.load_applied(run) == carried
    assert corrections.carry_forward(run, None) == carried  # nothing new: the same
    assert corrections.carry_forward(run, tmp_path / "new.csv") == carried  # nor by doing it again
    assert corrections.load_applied(tmp_path) == [] == corrections.carry_forward(tmp_path, None)


def test_carried_rows_are_as_safe_and_exact_as_new_ones(dataset, tmp_path):
    names = ["=cmd()", 'a "b", c', "'+d"]
    dataset = replace(dataset, names=names, paths=[f"@{number}" for number in range(30)])
    new = Corrections({0: (dataset.labels[0, 0] + 1) % 3}, [2], [1, 3, 4])
    corrections.save(tmp_path / "new.csv", dataset, new)
    carried = corrections.carry_forward(tmp_path, tmp_path / "new.csv")
    assert carried[0].path == "@0" and {one.given_label for one in carried} <= set(names)
    corrections.save_decisions(tmp_path / "a.csv", carried)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "new.csv").read_bytes()


def test_outcomes_of_earlier_decisions_are_known(dataset):
    images = dataset.images.copy()
    images[[6, 7]] = images[5]
    labels = dataset.labels.copy()
    labels[[0, 1, 2, 3, 5, 6, 7], 0] = [1, 2, 0, 0, 0, 1, 0]
    dataset = replace(dataset, images=images, labels=labels)

    def made(index, given, decision, new=""):
        return corrections.Decision(10**12, "", given, decision, new,
                                    corrections.sample_digest(dataset, index))

    relabelled, fine = made(0, "class 0", "relabel", "class 1"), made(1, "class 2", "fine")
    twin, newest = made(5, "class 1", "relabel", "class 0"), made(3, "class 0", "fine")
    applied = [relabelled, fine, made(2, "class 0", "remove"), made(4, "class 9", "fine"), twin,
               made(3, "class 1", "relabel", "class 0"), newest, made(8, "no class", "relabel", "")]
    digests = image_digests(dataset.images)
    assert corrections.decided_earlier(dataset, digests, applied) == {
        0: relabelled, 1: fine, 5: twin, 7: twin, 3: newest}
    assert corrections.decided_earlier(dataset, digests, []) == {}


def test_damaged_file_of_applied_corrections_is_named(dataset, tmp_path):
    good = row(dataset, 3, "fine")
    for bad in ("3,,class 0\n", good.replace("fine", "kept"), good.replace("3", "-3", 1),
                good.replace("sha256:", "sha256:x"), good.replace("sha256:", ""), good[:-2] + "\n"):
        run = applied_to(tmp_path / "run", good, bad)
        for call in (corrections.load_applied, lambda folder: corrections.carry_forward(folder, None)):
            with refused(str(run / corrections.APPLIED_FILE), "line 3"):
                call(run)
    (run / corrections.APPLIED_FILE).write_bytes(b"\xff\xfe")
    with refused(str(run / corrections.APPLIED_FILE)):
        corrections.load_applied(run)


def test_bad_corrections_are_refused(dataset, tmp_path):
    path = tmp_path / "a.csv"
    other = make_dataset(seed=1)
    given = dataset.names[dataset.labels[3, 0]]
    outside = r"\b0 .*\b29 .*\b2 .*/a\.csv\b.*"  # 30 samples, and the line that is wrong
    for text, message in [
            ("index,decision\n", r"new_label.*/a\.csv\b.* 'index', 'decision'"),
            (HEADER + "3,,class 0\n", r"\b6 .*\b2 .*/a\.csv\b"),
            (HEADER + row(dataset, 3, "relabel", "class 7"),
             r"\b3 .*new_label .*\b2 .*/a\.csv\b.* 'class 7'"),
            (HEADER + row(dataset, 3, "relabel"), r"new_label .*\b2 .*/a\.csv\b.* ''"),
            (HEADER + row(dataset, 3, "fine") + row(dataset, 4, "delete"),
             r"relabel, remove, fine .*\b3 .*/a\.csv\b.* 'delete'"),
            (HEADER + row(dataset, 3, "fine") * 2, r"\b3 .*\b3 .*/a\.csv\b"),
            (HEADER + row(dataset, 3, "fine").replace("3", "30", 1), rf"{outside} '30'.*--input"),
            (HEADER + row(dataset, 3, "fine").replace("3", "-1", 1), rf"{outside} '-1'.*--input"),
            (HEADER + row(dataset, 3, "fine").replace("3", "9" * 30, 1), rf"{outside} '9{{30}}'"),
            (HEADER + row(dataset, 3, "fine").replace("3", "\u00b3", 1), rf"{outside} '\u00b3'"),
            (HEADER + row(dataset, 3, "fine", given="class 9"),
             rf"'{given}' .*\b2 .*/a\.csv\b.* 'class 9'.*--input"),
            (HEADER + row(other, 3, "fine", given=given), r"\b2 .*/a\.csv\b.*--input")]:
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            corrections.load(path, dataset)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"/a\.csv\b"):
        corrections.load(path, dataset)
    with pytest.raises(UserError, match=rf"/nowhere\.csv\b.*{os.strerror(errno.ENOENT)}"):
        corrections.load(tmp_path / "nowhere.csv", dataset)
