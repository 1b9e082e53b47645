"""What the benchmarks keep and compare."""
import json

import numpy as np
import pytest

from tests.analyses import analyse
from tests.benchmarks import experiment, headline, million
from tests.benchmarks.mpi import Network, project
from tests.benchmarks.tables import (
    ALL_LAYERS,
    TIMES,
    TRACIN_ALL_LAYERS,
    behind_table,
    collect,
    estimates_table,
)
from tests.conftest import refused
from utils.review.detection import detection_metrics

pytestmark = pytest.mark.usefixtures("few_resamples")


@pytest.fixture
def with_all_layers(run):
    """A run with scores of all layers: those of the last, the other way round."""
    (run / ALL_LAYERS).mkdir()
    np.save(run / ALL_LAYERS / "influence_all_epoch.npy", -np.load(run / "influence_all_epoch.npy"))
    np.savetxt(run / "Test-error.series.txt", [[0, 0.5], [1, 0.25]])
    return run


def cells(table):
    """Those of a Markdown table, by row."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_other_folders_and_files_are_refused_as_the_headline(run, tmp_path):
    with refused(f"{run}/{ALL_LAYERS}/influence_all_epoch.npy"):
        headline.keep(run, tmp_path)
    (run / "y_train.npy").unlink()
    with refused(str(run), "known"):
        headline.keep(run, tmp_path)
    for path in (run / "x_train.npy", run / "per_checkpoint.npz", tmp_path / "nowhere.npz"):
        with refused(str(path)):
            headline.draw(path, tmp_path)


def test_kept_rankings_have_the_metrics_of_the_run(with_all_layers, tmp_path):
    metrics = analyse(with_all_layers, tmp_path / "report")["scores"]
    path = headline.keep(with_all_layers, tmp_path)
    assert path.name == "cifar10_3_epochs.npz"
    with np.load(path) as kept:
        wrong = (kept["labels"] != kept["true"])[:, 0]
        assert set(kept) - headline.OTHERS == {*metrics, TRACIN_ALL_LAYERS}
        assert kept["test_error"] == 0.25
        for name, values in metrics.items():
            found = detection_metrics(kept[name].astype(float), wrong)
            assert found == {metric: values[metric] for metric in found}, name


def test_collected_run_has_the_metrics_of_all_layers(with_all_layers):
    analyse(with_all_layers, with_all_layers / "report")
    found = collect(with_all_layers)
    auroc = {name: values["auroc"] for name, values in found["scores"].items()}
    assert auroc[TRACIN_ALL_LAYERS] == pytest.approx(1 - auroc["tracin"])
    assert list(found["alone"]) == [1, 2, 3] and found["test_error"] == 0.25


def test_rankings_below_the_interval_of_the_best_single_one_are_marked():
    def result(recalls):
        return {"scores": {name: {f"recall_at_{percentage}": recall for percentage in (10, 20, 30)}
                           | {f"recall_at_{percentage}_interval": [recall - 0.1, recall + 0.1]
                              for percentage in (10, 20, 30)} for name, recall in recalls.items()}}
    # Means of 0.8, 0.74 and 0.68; the best one's interval is from 0.7 to 0.9.
    results = {("uniform", seed): result({"aum": 0.8 + change, "tracin": 0.74 + change,
                                          "margin": 0.68 + change, "consensus": 0.95, "random": 0.99})
               for seed, change in ((1, 0.02), (2, -0.02))}
    head, _, *rows = cells(behind_table(results))
    assert [row[1] for row in rows] == ["10 %", "20 %", "30 %"]
    for row in (dict(zip(head, row, strict=True)) for row in rows):
        assert row["best"] == "`aum` 0.800 (0.700 to 0.900)" and row["`consensus`"] == "0.950"
        assert (row["`tracin`"], row["`margin`"]) == ("0.740", "0.680*")


def test_estimates_of_none_and_no_estimate_are_told_apart():
    found = {("uniform", seed): {"mislabelled": 7, "estimated_label_issues": likely,
                                 "estimated_range": ends, "agreement": 0.8}
             for seed, (likely, ends) in enumerate([(0, [0, 1]), (None, None)])}
    rows = [row[2:4] for row in cells(estimates_table(found))[2:]]
    assert rows[0] == ["0", "0 to 1"] and not any(digit.isdigit() for digit in "".join(rows[1]))


def test_head_is_timed_only_where_nothing_interrupted_it(tmp_path, monkeypatch):
    """Interrupted before the first checkpoint, when some features were there already."""
    def interrupt(*command):
        raise KeyboardInterrupt
    interrupted, whole = (["head_10000", "uniform", seed] for seed in (1, 2))
    monkeypatch.setattr(experiment, "script", interrupt)
    with pytest.raises(KeyboardInterrupt):
        experiment.run_head(tmp_path, None, *interrupted)
    monkeypatch.setattr(experiment, "script", lambda *command: None)
    for one in (interrupted, whole):
        experiment.run_head(tmp_path, None, *one)
    times = [json.loads((tmp_path / "head_10000" / f"uniform_{seed}" / TIMES).read_text())
             for seed in (1, 2)]
    assert not times[0] and set(times[1]) == {"train.py", "calculate_score.py", "mislabel_analysis.py"}


def test_features_are_linked_whole_after_an_interrupt(tmp_path):
    known, run = tmp_path / "head_50000" / "uniform_1", tmp_path / "run"
    names = {"features.npz", "features_train.npy", "features_val.npy"}
    known.mkdir(parents=True)
    for name in names:
        (known / name).write_text(name)
    experiment.copy_features(tmp_path, run)
    assert {path.name: path.read_text() for path in run.iterdir()} == {name: name for name in names}
    for name in ("features.npz", "features_val.npy"):  # as a kill leaves them
        (run / name).unlink()
    experiment.copy_features(tmp_path, run)
    assert {path.name for path in run.iterdir()} == names


def test_projection_adds_computing_and_all_reduces():
    network = Network(bandwidth=1e6, latency=1e-3)
    computing, reducing = project(0.01, 8_000_000, 4, 1000, network)
    assert computing == pytest.approx(0.01 * 1000 / 4)
    assert reducing == pytest.approx(2 * (2 * 3 / 4 * 8 + 2 * 3 * 1e-3))  # two updates of 500 images
    assert project(0.01, 8_000_000, 1, 1000, network) == (pytest.approx(10), 0)


def test_synthetic_run_of_any_size_is_analysed_in_a_process_of_its_own(tmp_path):
    cost = million.analysis(tmp_path, 300, unknown=True)["analysis"]
    assert 0 < cost.cpu < 60 and 50 < cost.memory < 1000
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert (metrics["samples"], metrics["mislabelled"], metrics["ranked_by"]) == (300, None, "consensus")
    assert 0.5 < metrics["agreement"] < 1
