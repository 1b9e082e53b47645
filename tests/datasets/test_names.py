import pytest

from datasets.names import alike, is_missing, same


@pytest.mark.parametrize(("one", "other"), [
    ("1", "1.0"), ("1", "01"), ("-1", "-1.00"), ("0", "-0"), ("2.5", "2.50"), ("1", "\uff11"),
    ("a b", "a \u00a0b"), ("a b", " a b"), ("a", "a\u200b"), ("a", "\ufeffa"), ("a", "a\u00ad"),
    ("\u2600", "\u2600\ufe0f"), ("fi", "\ufb01"), ("\u00e9", "e\u0301"), ("it's", "it\u2019s"),
    ("it's", "it\u02bcs"), ("a-b", "a\u2013b"), ("-1", "\u22121"), ('"a"', "\u201ca\u201d")])
def test_names_that_read_the_same(one, other):
    assert {*same([one, other, "z"])} == {tuple(sorted([one, other]))}


@pytest.mark.parametrize(("one", "other"), [
    ("A", "a"), ("polar bear", "polar_bear"), ("polar-bear", "polarbear"), ("class 1", "class_01"),
    ("cat", "\u0441at"), ("Stra\u00dfe", "STRASSE")])
def test_names_that_hardly_differ(one, other):
    assert not same([one, other])
    assert {*alike([one, other, "z"])} == {tuple(sorted([one, other]))}


@pytest.mark.parametrize(("one", "other"), [
    ("1", "-1"), ("1", "10"), ("100", "1"), ("0", "00x"), ("1.5", "1.05"), ("1 2", "12"), ("1-2", "12"),
    ("a", "b"), ("#1", "1"), ("c", "c++"), ("9" * 40, "9" * 39 + "8"), ("", "a")])
def test_names_that_differ(one, other):
    assert same([one, other]) == alike([one, other]) == []


def test_missing_labels():
    assert all(map(is_missing, ["", " ", "nan", "NaN", " None", "NULL", "N/A", "<NA>"]))
    assert not any(map(is_missing, ["0", "no", "nano", "-", "none of them"]))
