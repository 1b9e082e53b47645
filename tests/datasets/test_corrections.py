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
from tests.conftest import make_dataset
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
    assert np.array_equal(corrected.test.images, corrected.images)
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
