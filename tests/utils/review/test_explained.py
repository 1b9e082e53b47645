from dataclasses import replace

import numpy as np
import pytest

from tests.analyses import explain, make_explanations
from tests.conftest import refused
from utils.review.explained import Reasons, reasons, vote
from utils.review.run import load_run
from utils.tracin.explanations import TRAIN

LABELS = np.array([0, 0, 1, 1, 2, 2, 2])[:, None]


@pytest.mark.parametrize(("opponents", "expected"), [
    ([2, 0, 1, 4, 5, 3, 3, 3], 0),  # 1, 0, 0, 2, 2: class 0 ties with 2 and has the stronger opponent
    ([4, 2, 3, 0, 5, 1, 1, 1], 2),  # 2, 1, 1, 0, 2; the last three do not vote
    ([6, 0, 1, 2, 3, 4, 5, 5], 0),  # 2, 0, 0, 1, 1: the strongest alone does not decide
    ([3, -1, -1, -1, -1, -1, -1, -1], 1),
    ([-1] * 8, -1),
])
def test_vote_by_hand(opponents, expected):
    assert vote(np.array([opponents, [0] * 8]), LABELS).tolist() == [expected, 0]


def test_vote_of_nobody_is_empty():
    assert vote(np.empty((0, 8), int), LABELS).shape == (0,)


def test_reasons_by_hand():
    """The second has no opponents."""
    opponents, proponents = np.array([[2, 4, 3], [-1, -1, -1]]), np.array([[1, -1, -1], [6, 5, -1]])
    explanations = make_explanations(LABELS, [0, 4], 3)
    explanations = replace(explanations,
                           opponents=replace(explanations.opponents, indices=opponents),
                           proponents=replace(explanations.proponents, indices=proponents))
    assert reasons(explanations, LABELS) == {0: Reasons([2, 4, 3], [1], 1, 2),
                                             4: Reasons([], [6, 5], -1, 0)}


def test_five_are_shown_and_vote():
    explanations = make_explanations(np.arange(40)[:, None] % 4, [7, 30], 4)
    found = reasons(explanations, np.arange(40)[:, None] % 4)
    assert list(found) == [7, 30]
    for place, one in enumerate(found.values()):
        assert one.opponents == explanations.opponents.indices[place, :5].tolist()
        assert one.proponents == explanations.proponents.indices[place, :5].tolist()
        assert one.votes == [index % 4 for index in one.opponents].count(one.vote)


def test_run_has_the_explanations_that_are_beside_its_scores(run):
    assert load_run(run).explanations is None
    written = explain(run, 12)
    found = load_run(run).explanations
    assert np.array_equal(found.indices, written.indices)
    assert np.array_equal(found.opponents.cosine, written.opponents.cosine)


def test_explanations_of_other_scores_are_refused(run):
    explain(run, 12)
    with np.load(run / TRAIN) as file:
        content = dict(file)
    np.savez(run / TRAIN, **content | {"scores_sha256": f"{0:064}"})
    with refused(TRAIN, "--explain"):
        load_run(run)
