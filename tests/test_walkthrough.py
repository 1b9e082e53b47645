"""The three scripts as a user runs them, one after the other, from the command line."""
import csv
import json
import subprocess
import sys

import numpy as np

from tests.conftest import ROOT


def run_script(name, *flags, cwd):
    return subprocess.run([sys.executable, "-u", ROOT / name, *map(str, flags)], cwd=cwd,
                          capture_output=True, text=True, check=False)


def test_mislabelled_digits_are_found(tmp_path):
    """A short run on real digits is far better than a random order: 0.2 at 20 %."""
    train = run_script("train.py", "--dataset", "digits", "--model", "resnet23", "--nmaps", "8",
                       "--train_epochs", "5", "--train_batch_size", "20", "--monitor_path", "output",
                       "--output", "output", "-c", "cpu", "--learning-rate", "0.5", cwd=tmp_path)
    assert train.returncode == 0, train.stderr
    counted = next(line for line in train.stdout.splitlines() if "1,437" in line)
    assert "142" in counted and "360" in counted
    score = run_script("calculate_score.py", "--input", "output", "--checkpoint", "output",
                       "--output", "output", cwd=tmp_path)
    assert score.returncode == 0, score.stderr
    analysis = run_script("mislabel_analysis.py", "--input", "output", "--output", "figure",
                          cwd=tmp_path)
    assert analysis.returncode == 0, analysis.stderr
    assert (train.stderr, score.stderr, analysis.stderr) == ("", "", "")

    metrics = json.loads((tmp_path / "figure" / "metrics.json").read_text())
    assert (metrics["samples"], metrics["mislabelled"]) == (1437, 142)
    assert metrics["scores"]["tracin"]["recall_at_20"] > 0.6
    with (tmp_path / "figure" / "suspects.csv").open(newline="") as file:
        suspects = [row for row in csv.DictReader(file) if row["given_label"] != row["true_label"]]
    right = np.mean([row["suggested_label"] == row["true_label"] for row in suspects])
    assert right > 0.6


def test_real_cifar10_sample_runs_through(sample_archive, tmp_path):
    """The README's flags, with --data, and a network and a run small enough for a test."""
    train = run_script("train.py", "--data", sample_archive, "--subset", "300", "--output", "output",
                       "--monitor-path", "output", "--model", "resnet23", "--model_save_path",
                       "output", "--shuffle_label", "True", "--nmaps", "4", "--train_epochs", "2",
                       "--train_batch_size", "50", cwd=tmp_path)
    assert train.returncode == 0, train.stderr
    assert any("300" in line and "400" in line for line in train.stdout.splitlines())
    score = run_script("calculate_score.py", "--output", "output", "--checkpoint", "output",
                       "--model", "resnet23", "--input", "output", cwd=tmp_path)
    assert score.returncode == 0, score.stderr
    analysis = run_script("mislabel_analysis.py", "--input", "output", "--output", "figure",
                          "--ckpt_analysis", "True", "--save_extracted", "True", cwd=tmp_path)
    assert analysis.returncode == 0, analysis.stderr
    assert len(list((tmp_path / "figure" / "extracted_samples").rglob("*.png"))) == 300
    assert (tmp_path / "output" / "label_names.txt").read_text().split()[:2] == \
        ["airplane", "automobile"]


def test_mistakes_end_with_one_line_and_code_2(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, flags, values in [
            ("train.py", ["--data", "nowhere.tar.gz", "-c", "cpu"], ["nowhere.tar.gz"]),
            ("train.py", ["--optimizer", "adam"], ["--optimizer", "--help"]),
            ("calculate_score.py", ["--input", "empty", "--checkpoint", "empty"],
             ["empty/x_train.npy"]),
            ("mislabel_analysis.py", ["--input", "empty"], ["empty/x_train.npy"])]:
        result = run_script(name, *flags, cwd=tmp_path)
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1, result.stderr
        assert all(value in result.stderr for value in values), result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
