"""The tables of the analysis, its review page and its corrections, without the figures."""
import json
import re

import numpy as np
import pytest

import mislabel_analysis
from datasets import arrays, corrections
from datasets.corrections import Corrections
from tests.analyses import RANKINGS, analyse, explain, suspects, words
from tests.conftest import forget_annotations, make_dataset, refused
from utils.errors import UserError
from utils.review.run import load_run
from utils.tracin import explanations
from utils.tracin.explanations import Explanations, Pairs
from utils.training import out_of_fold

pytestmark = pytest.mark.usefixtures("few_resamples", "no_figures")


@pytest.fixture
def no_figures(monkeypatch):
    """The figures take most of an analysis' time, and nothing here looks at them."""
    monkeypatch.setattr(mislabel_analysis, "write_figures", lambda *args: None)


@pytest.mark.parametrize("name", RANKINGS)
def test_suspects_are_ranked_by_any_score_and_carry_all(run, tmp_path, name):
    analyse(run, tmp_path, "--rank_by", name)
    rows = suspects(tmp_path)
    assert [row["score"] for row in rows] == [row[name] for row in rows]
    values = [float(row["score"]) for row in rows]
    assert values == sorted(values, reverse=True)
    assert list(rows[0])[11:] == ["near_duplicate_of", "sure", "ranked_by", *RANKINGS]


def test_ranking_that_the_run_does_not_have_is_named(run, tmp_path):
    (run / "training_dynamics.npz").unlink()
    with pytest.raises(UserError, match=r"--rank_by .*tracin, .*random.* 'aum'.* statistics"):
        analyse(run, tmp_path / "figure", "--rank_by", "aum")
    with pytest.raises(UserError, match=r"'out_of_fold'.* --backbone"):
        analyse(run, tmp_path / "figure", "--rank_by", "out_of_fold")
    assert not (tmp_path / "figure").exists()
    assert "aum" not in analyse(run, tmp_path / "figure")["scores"]


def test_suspects_are_in_order_and_complete(run, tmp_path):
    analyse(run, tmp_path)
    rows, dataset = suspects(tmp_path), make_dataset()
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, 31)]
    score = [float(row["score"]) for row in rows]
    assert score == sorted(np.load(run / "influence_all_epoch.npy").tolist(), reverse=True)
    with np.load(run / "per_checkpoint.npz") as file:
        probability, margin = file["probability"], file["margin"]
    suggested = probability.argmax(axis=1)
    for row in rows:
        index = int(row["index"])
        assert row["given_label"] == f"class {dataset.labels[index, 0]}"
        assert row["true_label"] == f"class {dataset.true_labels[index, 0]}"
        assert row["suggested_label"] == f"class {suggested[index]}"
        assert float(row["suggested_probability"]) == probability[index].max()
        assert float(row["given_probability"]) == probability[index, dataset.labels[index, 0]]
        assert float(row["disagreement"]) == np.mean([value < 0 for value in margin[index]])
    assert len({row["index"] for row in rows}) == 30


def test_names_like_formulas_are_text_in_the_table(run, tmp_path):
    forget_annotations(run)
    (run / "label_names.txt").write_text("=a()\n-b\n-1\n")
    (run / "paths.txt").write_text("".join(f"+{number}.png\n" for number in range(30)))
    rows = suspects_of(run, tmp_path)
    assert {row["given_label"] for row in rows} == {"'=a()", "'-b", "-1"}
    assert all(row["path"] == f"'+{row['index']}.png" for row in rows)


def test_paths_of_own_images_are_in_the_table(run, tmp_path):
    assert "path" not in suspects_of(run, tmp_path / "without")[0]
    (run / "paths.txt").write_text("".join(f"a,{number}.png\n" for number in range(30)))
    rows = suspects_of(run, tmp_path / "with")
    assert [row["path"] for row in rows] == [f"a,{row['index']}.png" for row in rows]


@pytest.mark.parametrize("paths", [None, [f"={number}.png" for number in range(30)]])
def test_strongest_of_explained_samples_are_in_the_table(run, tmp_path, paths):
    """The fourth has no opponents."""
    assert "opponent" not in suspects_of(run, tmp_path)[0]
    if paths:
        (run / "paths.txt").write_text("\n".join(paths) + "\n")
    explanations = explain(run, 12)
    for array in vars(explanations.opponents).values():
        array[3] = -1 if array.dtype == np.int64 else np.nan
    explain(run, 12, opponents=explanations.opponents, proponents=explanations.proponents)
    rows = {int(row["index"]): row for row in suspects_of(run, tmp_path, "--rank_by", "random")}
    names = [f"'={number}.png" if paths else str(number) for number in range(30)]
    opponents, proponents = explanations.opponents.indices, explanations.proponents.indices
    for place, index in enumerate(explanations.indices.tolist()):
        row = rows.pop(index)
        assert row["opponent"] == ("" if place == 3 else names[opponents[place, 0]])
        assert row["proponent"] == names[proponents[place, 0]]
    assert len(rows) == 18
    for row in rows.values():
        assert {row["opponent"], row["proponent"]} == {""}


def test_likely_suggestions_are_sure(run, tmp_path, monkeypatch):
    loaded = load_run(run)
    labels, probability = loaded.dataset.labels[:, 0], loaded.probability
    differs = probability.argmax(axis=1) != labels
    least = float(np.median(probability.max(axis=1)[differs]))
    monkeypatch.setattr("utils.review.suspects.SURE", least)  # as the network is sure of nothing
    likely = probability.max(axis=1) >= least
    expected = {str(index) for index in np.flatnonzero(differs & likely)}
    rows = suspects_of(run, tmp_path)
    assert {row["index"] for row in rows if row["sure"] == "sure"} == expected
    assert {row["sure"] for row in rows} == {"sure", ""}
    assert any(row["suggested_label"] != row["given_label"] for row in rows if not row["sure"])


def suspects_of(run, output, *more):
    analyse(run, output, *more)
    return suspects(output)


def test_review_page_is_written_unless_unwanted(run, tmp_path, capsys):
    analyse(run, tmp_path, "--review", "7")
    assert str(tmp_path / "review.html") in capsys.readouterr().out
    assert len(shown_on(tmp_path / "review.html")) == 7
    analyse(run, tmp_path, "--review", "0")
    assert "review.html" not in capsys.readouterr().out and not (tmp_path / "review.html").exists()


def shown_on(page):
    """The suspects on a review page."""
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])["suspects"]


def test_review_page_is_in_the_order_of_the_ranking(run, tmp_path):
    analyse(run, tmp_path, "--rank_by", "random")
    shown = shown_on(tmp_path / "review.html")
    rows = suspects(tmp_path)
    assert [one["index"] for one in shown] == [int(row["index"]) for row in rows]
    for name in ("score", "given_probability", "suggested_probability", "disagreement"):
        assert [one[name] for one in shown] == [float(row[name]) for row in rows]
    heading = re.search("<h1>(.*)</h1>", (tmp_path / "review.html").read_text(), re.DOTALL)[1]
    assert re.search(r"\brandom\b", heading)


@pytest.mark.parametrize("rank_by", ["tracin", "random"])
def test_drop_removes_the_most_suspicious(run, tmp_path, capsys, rank_by):
    analyse(run, tmp_path, "--drop", "0.2", "--rank_by", rank_by)
    found = corrections.load(tmp_path / "drop.csv", arrays.load(run))
    assert found == Corrections(removed=[int(row["index"]) for row in suspects(tmp_path)[:6]])
    told = next(line for line in capsys.readouterr().out.splitlines() if "drop.csv" in line)
    assert {"0", "6"} <= set(words(told))


def test_relabel_takes_the_suggestions(run, tmp_path, capsys):
    analyse(run, tmp_path, "--relabel", "0.5", "--rank_by", "random")
    dataset, rows = arrays.load(run), suspects(tmp_path)[:15]
    found = corrections.load(tmp_path / "relabel.csv", dataset)
    assert found == Corrections({int(row["index"]): dataset.names.index(row["suggested_label"])
                                 for row in rows if row["suggested_label"] != row["given_label"]})
    with pytest.raises(UserError, match=r"--drop.*--relabel"):
        analyse(run, tmp_path, "--relabel", "0.5", "--drop", "0.1")
    told = next(line for line in capsys.readouterr().out.splitlines() if "--relabel" in line)
    same = sum(row["suggested_label"] == row["given_label"] for row in rows)
    assert same and {str(same), "15"} <= set(words(told))


def test_dropping_keeps_the_least_suspicious_sample_of_every_class(run, tmp_path, capsys):
    analyse(run, tmp_path, "--drop", "1")
    rows, dataset = suspects(tmp_path), arrays.load(run)
    last = {row["given_label"]: int(row["index"]) for row in rows}
    removed = corrections.load(tmp_path / "drop.csv", dataset).removed
    assert sorted(removed) == sorted({*range(30)} - set(last.values())) and len(last) == 3
    lines = capsys.readouterr().out.splitlines()
    told = next(line for line in lines if "'class 0'" in line)
    assert all(repr(name) in told and str(index) in words(told) for name, index in last.items())
    assert (tmp_path / "review.html").exists() and (tmp_path / "metrics.json").exists()
    analyse(run, tmp_path, "--drop", "0.1")
    assert "'class 0'" not in capsys.readouterr().out


def test_same_image_with_another_label_is_told(run, tmp_path, capsys):
    analyse(run, tmp_path / "none")
    assert "duplicate_of" not in capsys.readouterr().out
    assert {row["duplicate_of"] for row in suspects(tmp_path / "none")} == {""}
    labels = np.load(run / "y_shuffle_train.npy")[:, 0]
    same, = np.flatnonzero(labels[6:] == labels[5])[:1] + 6
    other, = np.flatnonzero(labels[6:] != labels[5])[:1] + 6
    facts = with_images(run, {same: 5, other: 5})
    rows = {int(row["index"]): row["duplicate_of"] for row in suspects_of(facts, tmp_path / "twins")}
    assert rows[other] in (str(5), str(same)) and rows[5] == rows[same] == str(other)
    assert sum(value != "" for value in rows.values()) == 3
    told = next(line for line in capsys.readouterr().out.splitlines() if "duplicate_of" in line)
    assert "3" in words(told)


def with_images(run, copies):
    """A run where some samples have the images of others: {index: other}."""
    images = np.array(np.load(run / "x_train.npy"))
    for index, other in copies.items():
        images[index] = images[other]
    np.save(run / "x_train.npy", images)
    with np.load(run / "per_checkpoint.npz") as file:
        arrays_of = dict(file)
    arrays_of["data_sha256"] = np.array(arrays.load(run).digest())
    np.savez(run / "per_checkpoint.npz", **arrays_of)
    return run


def test_decisions_of_earlier_rounds_are_in_the_table(run, tmp_path):
    dataset = arrays.load(run)
    given = dataset.names[dataset.labels[4, 0]]

    def made(index, label, decision, new=""):
        return corrections.Decision(0, "", label, decision, new,
                                    corrections.sample_digest(dataset, index))

    corrections.save_decisions(run / "applied_corrections.csv", [
        made(4, "class x", "relabel", given), made(7, dataset.names[dataset.labels[7, 0]], "fine"),
        made(8, dataset.names[dataset.labels[8, 0]], "remove")])
    rows = {int(row["index"]): row["decided"] for row in suspects_of(run, tmp_path / "a")}
    assert {index: text for index, text in rows.items() if text} == {4: "relabel", 7: "fine"}
    shown = {one["index"]: one["decided"] for one in shown_on(tmp_path / "a" / "review.html")}
    assert shown[4] == {"decision": "relabel", "given_label": "class x", "new_label": given}
    (run / "applied_corrections.csv").write_text("index\n3\n")
    with pytest.raises(UserError, match=f"{run}/applied_corrections.csv"):
        analyse(run, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_dynamics_of_another_training_are_refused(run, tmp_path):
    with np.load(run / "training_dynamics.npz") as file:
        np.savez(run / "training_dynamics.npz", **{**file, "run_sha256": "other"})
    with pytest.raises(UserError, match=f"{run}/training_dynamics.npz"):
        analyse(run, tmp_path / "figure")


def test_scores_that_do_not_fit_the_data_are_refused(run, tmp_path):
    for path in [*run.glob("?_*.npy"), run / "label_names.txt"]:
        path.unlink()
    arrays.save(run, make_dataset(seed=1))
    with pytest.raises(UserError, match=f"{run}/per_checkpoint.npz"):
        analyse(run, tmp_path / "figure")
    assert not (tmp_path / "figure").exists()


def test_ranking_of_unknown_labels_and_its_reason_are_told(run, tmp_path, capsys):
    (run / "y_train.npy").unlink()
    analyse(run, tmp_path)
    chosen, rows, out = load_run(run), suspects(tmp_path), capsys.readouterr().out
    assert [row["score"] for row in rows] == [row[chosen.rank_by] for row in rows]
    assert any(chosen.rank_by in words(line) and chosen.reason in line for line in out.splitlines())


def test_estimate_and_agreement_are_told(run, tmp_path, capsys, monkeypatch):
    """Networks without the sample are sure of every label but the first seven of thirty."""
    labels = np.load(run / "y_shuffle_train.npy")[:, 0]
    likeliest = labels.copy()
    likeliest[:7] = (labels[:7] + 1) % 3
    with np.load(run / "per_checkpoint.npz") as file:
        key = str(file["run_sha256"])
    out_of_fold.save(run, key, (np.eye(3)[likeliest] * 0.97 + 0.01).astype(np.float32))
    assert analyse(run, tmp_path)["estimated_range"] is None  # ten images per class
    assert "76.7" in words(capsys.readouterr().out)
    monkeypatch.setattr("utils.review.estimate.ENOUGH_PER_CLASS", 10)
    monkeypatch.setattr("utils.review.estimate.PRIOR", 0.1)
    metrics = analyse(run, tmp_path)
    assert metrics["estimated_label_issues"] == 7 and metrics["estimated_range"] == [4, 11]
    told = words(capsys.readouterr().out)
    assert {"76.7", "7"} <= set(told)


def test_choosing_corrections_by_a_network_that_learned_little_is_warned_of(run, tmp_path, capsys):
    agreement = f"{100 * analyse(run, tmp_path)['agreement']:.1f}"
    told = []
    for more in ([], ["--drop", "0.1"], ["--relabel", "0.1"]):
        capsys.readouterr()
        analyse(run, tmp_path, *more)
        told.append(capsys.readouterr().out.count(agreement))
    assert told == [1, 2, 2]


def test_explained_test_images_are_told_and_those_of_an_earlier_analysis_go(run, tmp_path, capsys):
    output = tmp_path / "figure"
    files = [output / name for name in ("test_errors.csv", "test_errors.html")]
    dataset, total = arrays.load(run, test=True), np.load(run / "influence_all_epoch.npy")
    places, nothing = np.full((1, 8), -1), np.full((1, 8), np.nan)
    none = Pairs(places, nothing, nothing)
    explanations.save(run / explanations.TEST, Explanations(
        np.array([3]), np.full((1, 3), 0.25, np.float32), none, none),
        explanations.origin(dataset, total, test=True), "key")
    analyse(run, output)
    told = [line for line in capsys.readouterr().out.splitlines() if "test_errors." in line]
    assert len(told) == 1 and all(str(path) in told[0] and path.exists() for path in files)
    (run / explanations.TEST).unlink()
    analyse(run, output)
    assert "test_errors." not in capsys.readouterr().out and not any(path.exists() for path in files)
    (run / explanations.TEST).write_bytes(b"")
    with refused(str(run / explanations.TEST)):
        analyse(run, tmp_path / "other")
    assert not (tmp_path / "other").exists()
