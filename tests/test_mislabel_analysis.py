"""The analysis: what it measures, tells and draws.  Its tables are in test_mislabel_tables.py."""
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import mislabel_analysis
from tests.analyses import RANKINGS, analyse, suspects, words
from tests.conftest import ROOT, forget_annotations, make_dataset

pytestmark = pytest.mark.usefixtures("few_resamples")


def test_metrics_and_figures(run, tmp_path, capsys):
    metrics = analyse(run, tmp_path / "figure")
    assert (metrics["samples"], metrics["mislabelled"]) == (30, 6)
    tracin = metrics["scores"]["tracin"]
    names = {"recall_at_10", "recall_at_20", "recall_at_30", "recall_at_mislabelled", "auroc",
             "average_precision"}
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


def test_help_lists_the_rankings(capsys):
    with pytest.raises(SystemExit):
        mislabel_analysis.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-len(RANKINGS) - 1:]] == \
        [*RANKINGS[:-1], "out_of_fold", RANKINGS[-1]]


@pytest.mark.parametrize(("truth", "count"), [("unknown", None), ("clean", 0), ("all wrong", 30)])
def test_ranking_goes_without_two_kinds_of_labels(run, tmp_path, capsys, truth, count):
    if truth == "unknown":
        (run / "y_train.npy").unlink()
    else:
        labels = make_dataset().labels
        forget_annotations(run)
        np.save(run / "y_train.npy", labels if truth == "clean" else (labels + 1) % 3)
    metrics = analyse(run, tmp_path / "figure", "--ckpt_analysis", "True", "--save_extracted", "True")
    assert metrics.pop("estimated_label_issues") is metrics.pop("estimated_range") is None
    # Without true labels `auto` ranks, with them `tracin`.
    ranked_by = "consensus" if truth == "unknown" else "tracin"
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
