import csv
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import mislabel_analysis
from datasets import arrays, corrections
from datasets.corrections import Corrections
from tests.conftest import ROOT, forget_annotations, make_dataset
from utils.errors import UserError
from utils.review.run import load_run
from utils.review.suspects import count_label_issues, count_top_classes

RANKINGS = ["tracin", "tracin_weighted", "tracin_norms", "tracin_late", "loss", "margin", "error_norm",
            "self_confidence", "aum", "aum_late", "forgetting", "random"]


def analyse(run, output, *more):
    mislabel_analysis.main(["--input", str(run), "--output", str(output), *more])
    return json.loads((output / "metrics.json").read_text())


def suspects(output):
    with (output / "suspects.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def words(text):
    return text.replace("%", " ").replace(",", " ").replace(";", " ").replace(":", " ").split()


def test_metrics_and_figures(run, tmp_path, capsys):
    metrics = analyse(run, tmp_path / "figure")
    assert (metrics["samples"], metrics["mislabelled"]) == (30, 6)
    tracin = metrics["scores"]["tracin"]
    names = {"recall_at_10", "recall_at_20", "recall_at_30", "auroc", "average_precision"}
    assert set(tracin) == names | {f"{name}_interval" for name in names}
    low, high = tracin["auroc_interval"]
    assert low <= tracin["auroc"] <= high
    assert list(metrics["scores"]) == RANKINGS
    ranked = np.argsort(-np.load(run / "influence_all_epoch.npy"))
    assert tracin["recall_at_30"] == pytest.approx((ranked[:9] % 5 == 0).sum() / 6)
    out = capsys.readouterr().out
    for name, values in metrics["scores"].items():
        row = [line for line in map(words, out.splitlines()) if line[:1] == [name]]
        assert row == [[name, *(f"{values[metric]:.3f}" for metric in (
            "recall_at_10", "recall_at_20", "recall_at_30", "auroc"))]]
    assert f"{tmp_path / 'figure' / 'score_curve.png'}" in out
    for name in ("score_distribution.png", "score_curve.png"):
        with Image.open(tmp_path / "figure" / name) as figure:
            assert figure.size > (400, 300)


def test_the_chosen_ranking_is_the_one_that_is_told(run, tmp_path, capsys):
    scores = analyse(run, tmp_path, "--rank_by", "forgetting")["scores"]
    out = capsys.readouterr().out
    told = next(line for line in map(words, out.splitlines()) if "forgetting" in line)
    assert {"30", "6"} < set(told)
    precision = {name: f"{scores[name]['average_precision']:.3f}" for name in ("forgetting", "tracin")}
    told = next(line for line in map(words, out.splitlines()) if precision["forgetting"] in line)
    assert f"{scores['forgetting']['auroc']:.3f}" in told
    assert precision["tracin"] not in words(out)


def test_ranking_of_unknown_labels_and_its_reason_are_told(run, tmp_path, capsys):
    (run / "y_train.npy").unlink()
    analyse(run, tmp_path)
    chosen, rows, out = load_run(run), suspects(tmp_path), capsys.readouterr().out
    assert [row["score"] for row in rows] == [row[chosen.rank_by] for row in rows]
    assert any(chosen.rank_by in words(line) and chosen.reason in line for line in out.splitlines())


@pytest.mark.parametrize("name", RANKINGS)
def test_suspects_are_ranked_by_any_score_and_carry_all(run, tmp_path, name):
    analyse(run, tmp_path, "--rank_by", name)
    rows = suspects(tmp_path)
    assert [row["score"] for row in rows] == [row[name] for row in rows]
    values = [float(row["score"]) for row in rows]
    assert values == sorted(values, reverse=True)
    assert list(rows[0])[11:] == ["ranked_by", *RANKINGS]


def test_dynamics_of_another_training_are_refused(run, tmp_path):
    with np.load(run / "training_dynamics.npz") as file:
        np.savez(run / "training_dynamics.npz", **{**file, "run_sha256": "other"})
    with pytest.raises(UserError, match=f"{run}/training_dynamics.npz"):
        analyse(run, tmp_path / "figure")


def test_ranking_that_the_run_does_not_have_is_named(run, tmp_path):
    (run / "training_dynamics.npz").unlink()
    with pytest.raises(UserError, match=r"--rank_by .*tracin, .*random.* aum$"):
        analyse(run, tmp_path / "figure", "--rank_by", "aum")
    assert not (tmp_path / "figure").exists()
    assert "aum" not in analyse(run, tmp_path / "figure")["scores"]


def test_help_lists_the_rankings(capsys):
    with pytest.raises(SystemExit):
        mislabel_analysis.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-len(RANKINGS):]] == RANKINGS


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


@pytest.mark.parametrize(("truth", "count"), [("unknown", None), ("clean", 0), ("all wrong", 30)])
def test_ranking_goes_without_two_kinds_of_labels(run, tmp_path, capsys, truth, count):
    if truth == "unknown":
        (run / "y_train.npy").unlink()
    else:
        labels = make_dataset().labels
        forget_annotations(run)
        np.save(run / "y_train.npy", labels if truth == "clean" else (labels + 1) % 3)
    metrics = analyse(run, tmp_path / "figure", "--ckpt_analysis", "True", "--save_extracted", "True")
    assert metrics.pop("estimated_label_issues") in range(31)
    # Without true labels `auto` ranks, with them `tracin`; the run has three epochs.
    ranked_by = "self_confidence" if truth == "unknown" else "tracin"
    assert 0 < metrics.pop("agreement") < 1 and metrics.pop("reason")
    assert metrics == {"samples": 30, "ranked_by": ranked_by, "mislabelled": count, "scores": {}}
    assert {row["ranked_by"] for row in suspects(tmp_path / "figure")} == {ranked_by}
    out = capsys.readouterr().out
    assert "score_distribution.png" in out and "score_curve.png" not in out
    assert (tmp_path / "figure" / "score_distribution.png").exists()
    assert not (tmp_path / "figure" / "score_curve.png").exists()
    rows = suspects(tmp_path / "figure")
    assert len(rows) == 30
    assert ("true_label" in rows[0]) == (truth != "unknown")


@pytest.mark.parametrize(("wrong", "agreement"), [(0, "100.0"), (7, "76.7")])
def test_count_and_agreement_are_told(run, tmp_path, capsys, wrong, agreement):
    """The networks are sure of every label, or sure of the next class for the first seven of thirty."""
    scores = dict(np.load(run / "per_checkpoint.npz"))
    labels = np.load(run / "y_shuffle_train.npy")[:, 0]
    likeliest = labels.copy()
    likeliest[:wrong] = (labels[:wrong] + 1) % 3
    scores["probability"] = (np.eye(3)[likeliest] * 0.97 + 0.01).astype(scores["probability"].dtype)
    np.savez(run / "per_checkpoint.npz", **scores)
    assert analyse(run, tmp_path)["estimated_label_issues"] == wrong
    told = words(capsys.readouterr().out)
    assert agreement in told and ("7" in told) == (wrong == 7)


def test_names_like_formulas_are_text_in_the_table(run, tmp_path):
    forget_annotations(run)
    (run / "label_names.txt").write_text("=a()\n-b\n-1\n")
    (run / "paths.txt").write_text("".join(f"+{number}.png\n" for number in range(30)))
    rows = suspects_of(run, tmp_path)
    assert {row["given_label"] for row in rows} == {"'=a()", "'-b", "-1"}
    assert all(row["path"] == f"'+{row['index']}.png" for row in rows)


def test_label_issues_by_hand():
    """Thresholds 0.6 and 0.7, and none for a class without samples."""
    probability = np.array([[0.9, 0.1, 0], [0.2, 0.75, 0.05], [0.7, 0.3, 0],
                            [0.3, 0.7, 0], [0.4, 0.65, 0], [0.25, 0.75, 0], [0.65, 0.7, 0]])
    labels = np.array([0, 0, 0, 1, 1, 1, 1])[:, None]
    # The second is of class 1; the fifth reaches neither threshold; the last is right after all.
    assert count_label_issues(probability, labels) == 1
    probability[6] = [0.75, 0.7, 0]
    assert count_label_issues(probability, labels) == 2
    # The last reaches the threshold of the other class alone, but its own is likelier all the same.
    probability = np.array([[0.95, 0.05], [0.95, 0.05], [0.55, 0.45], [0.7, 0.3], [0.6, 0.4]])
    assert count_label_issues(probability, np.array([0, 0, 0, 1, 1])[:, None]) == 0
    # The likeliest class of the first has no samples, so no threshold to reach.
    probability = np.array([[0.1, 0.2, 0.7], [0.6, 0.4, 0], [0.3, 0.7, 0]])
    assert count_label_issues(probability, np.array([0, 0, 1])[:, None]) == 0
    # The last two reach the threshold of class 0, which is 0.5, and no more.
    probability = np.array([[1, 0], [0, 1], [0.5, 0.5], [0.5, 0.5]])
    assert count_label_issues(probability, np.array([0, 0, 1, 1])[:, None]) == 3


def test_label_issues_are_those_of_the_confident_joint():
    """Against the definition, sample by sample."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        probability = rng.dirichlet(np.ones(5), 40)
        labels = rng.integers(0, 4, (40, 1))  # class 4 has no samples
        given = labels[:, 0]
        threshold = {label: probability[given == label, label].mean() for label in set(given.tolist())}
        expected = 0
        for row, label in zip(probability, given, strict=True):
            reached = [other for other, least in threshold.items() if row[other] >= least]
            counted = max(reached, key=lambda other: row[other]) if reached else label
            expected += counted != label and row.argmax() != label
        assert count_label_issues(probability, labels) == expected


def test_paths_of_own_images_are_in_the_table(run, tmp_path):
    assert "path" not in suspects_of(run, tmp_path / "without")[0]
    (run / "paths.txt").write_text("".join(f"a,{number}.png\n" for number in range(30)))
    rows = suspects_of(run, tmp_path / "with")
    assert [row["path"] for row in rows] == [f"a,{row['index']}.png" for row in rows]


def suspects_of(run, output):
    analyse(run, output)
    return suspects(output)


def test_curve_of_an_earlier_analysis_does_not_stay(run, tmp_path):
    analyse(run, tmp_path / "figure")
    assert (tmp_path / "figure" / "score_curve.png").exists()
    (run / "y_train.npy").unlink()
    analyse(run, tmp_path / "figure")
    assert not list((tmp_path / "figure").glob("score_curve.*"))


def test_distribution_is_of_the_chosen_ranking(run, tmp_path):
    drawn = {}
    for name in ("tracin", "aum"):
        analyse(run, tmp_path, "--rank_by", name)
        drawn[name] = (tmp_path / "score_distribution.svg").read_text(encoding="utf-8")
    assert "<!-- aum " in drawn["aum"] and "<!-- tracin " in drawn["tracin"]


def test_figure_of_every_checkpoint(run, tmp_path):
    for suffix in ("png", "svg"):
        (tmp_path / f"000099_top_influence_sample.{suffix}").touch()  # of another run
    analyse(run, tmp_path, "--ckpt_analysis", "True")
    assert sorted(path.name for path in tmp_path.glob("*_top_influence_sample.*")) == \
        [f"{epoch:06d}_top_influence_sample.{suffix}" for epoch in (1, 2, 3)
         for suffix in ("png", "svg")]


def test_top_tenth_is_counted_by_class():
    dataset = make_dataset()
    influence = np.zeros(30)
    influence[[0, 1, 2]] = 1  # sample 0 is mislabelled
    counts = count_top_classes(dataset, influence)
    wrong, correct = counts.values()
    true = dataset.true_labels[:, 0]
    assert wrong.tolist() == np.bincount(true[:1], minlength=3).tolist()
    assert correct.tolist() == np.bincount(true[1:3], minlength=3).tolist()


def test_extracted_images_are_all_there_with_their_colours(run, tmp_path):
    analyse(run, tmp_path, "--save_extracted", "True")
    paths = sorted((tmp_path / "extracted_samples").rglob("*.png"))
    assert len(paths) == 30
    dataset, ranked = make_dataset(), [int(row["index"]) for row in suspects(tmp_path)]
    for path in paths:
        index = int(path.name[:6])
        true, given = dataset.true_labels[index, 0], dataset.labels[index, 0]
        assert path.name == f"{index:06d}_true_class_{true}_given_class_{given}.png"
        decile = ranked.index(index) // 3 + 1
        kind = "correct_label" if true == given else "incorrect_label"
        assert path.parent == tmp_path / "extracted_samples" / f"top_{decile * 10:03d}_percent" / kind
        with Image.open(path) as image:
            pixels = np.asarray(image)
        assert np.array_equal(pixels.transpose(2, 0, 1), dataset.images[index])


def test_extracting_again_replaces_the_images(run, tmp_path):
    (tmp_path / "extracted_samples" / "top_010_percent").mkdir(parents=True)
    (tmp_path / "extracted_samples" / "top_010_percent" / "old.png").touch()
    analyse(run, tmp_path, "--save_extracted", "True")
    assert len(list((tmp_path / "extracted_samples").rglob("*.png"))) == 30


@pytest.mark.filterwarnings("ignore:Glyph")
def test_untrusted_names_stay_inside_the_folder_and_break_nothing(run, tmp_path):
    forget_annotations(run)
    (run / "label_names.txt").write_text("../../up\n$\\frac{$\n" + "\u4e9c" * 300 + "\n")
    analyse(run, tmp_path / "figure", "--save_extracted", "True", "--ckpt_analysis", "True")
    paths = [path for path in tmp_path.rglob("*.png") if "given" in path.name]
    assert len(paths) == 30
    assert all(path.is_relative_to(tmp_path / "figure" / "extracted_samples") for path in paths)


def test_analysis_never_imports_nnabla(run, tmp_path):
    code = ("import sys; sys.modules['nnabla'] = None; import mislabel_analysis as script; "
            f"script.main(['--input', {str(run)!r}, '--output', {str(tmp_path)!r}])")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert (tmp_path / "metrics.json").exists()


def test_scores_that_do_not_fit_the_data_are_refused(run, tmp_path):
    for path in [*run.glob("?_*.npy"), run / "label_names.txt"]:
        path.unlink()
    arrays.save(run, make_dataset(seed=1))
    with pytest.raises(UserError, match=f"{run}/per_checkpoint.npz"):
        analyse(run, tmp_path / "figure")
    assert not (tmp_path / "figure").exists()


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


def test_choosing_corrections_by_a_network_that_learned_little_is_warned_of(run, tmp_path, capsys):
    agreement = f"{100 * analyse(run, tmp_path)['agreement']:.1f}"
    told = []
    for more in ([], ["--drop", "0.1"], ["--relabel", "0.1"]):
        capsys.readouterr()
        analyse(run, tmp_path, *more)
        told.append(capsys.readouterr().out.count(agreement))
    assert told == [1, 2, 2]


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
