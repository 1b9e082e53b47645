"""What the command lines of the three scripts have in common, in processes of their own."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import calculate_score
import mislabel_analysis
import train
from tests.conftest import ROOT, TRAIN_FLAGS, assert_same, refused, train_flags

SCRIPTS = ("train.py", "calculate_score.py", "mislabel_analysis.py")
MODULES = (train, calculate_score, mislabel_analysis)
BOOLEANS = {train: ("strict", "shuffle_label", "augmentation"), calculate_score: ("save_every_epoch",),
            mislabel_analysis: ("ckpt_analysis", "save_extracted")}


def script(name: str, *flags: str | Path, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, ROOT / name, *map(str, flags)], **{
        "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "check": False, **options})


def without_streams(*numbers: int) -> dict:
    return {"preexec_fn": lambda: [os.close(number) for number in numbers]}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}


def test_training_without_streams_ends_the_same(finished_run, tmp_path):
    run = tmp_path / "run"
    flags = train_flags(finished_run.parent / "data", run)
    done = script("train.py", *flags, **without_streams(0, 1, 2))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert_same(finished_run, run)


def test_scoring_without_streams_ends_the_same(finished_run, run):
    for file in run.glob("*influence*.npy"):
        file.unlink()
    flags = ["--run", run, "-c", "cpu", "--engine", "nnabla", "--workers", "2"]
    done = script("calculate_score.py", *flags, **without_streams(1, 2))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    calculate_score.main(["--run", str(run), "-c", "cpu"])
    assert contents(run) == contents(finished_run)


def test_analysis_without_streams_ends_the_same(run):
    done = script("mislabel_analysis.py", "--run", run, **without_streams(1, 2))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    without = contents(run / "report")
    assert len(without) >= 5
    mislabel_analysis.main(["--run", str(run)])
    again = contents(run / "report")
    del without["review.html"], again["review.html"]  # it says how the script was started
    assert again == without


def test_streams_of_notebooks_work(tmp_path):
    code = """
import runpy, sys
class Stream:
    def __init__(self, stream): self.write, self.flush = stream.write, stream.flush
sys.argv, sys.stdout, sys.stderr = sys.argv[1:], Stream(sys.stdout), Stream(sys.stderr)
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    for name in SCRIPTS:
        done = subprocess.run([sys.executable, "-c", code, ROOT / name, "--nmap", "4"], cwd=tmp_path,
                              capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("name", SCRIPTS)
def test_working_folder_that_was_removed_is_one_line(tmp_path, name):
    folder = tmp_path / "removed"
    folder.mkdir()
    done = script(name, "--input", tmp_path, cwd=folder, preexec_fn=lambda: os.rmdir(folder))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(("name", "flags"), [
    ("calculate_score.py", ["-c", "cpu", "--engine", "nnabla"]), ("mislabel_analysis.py", [])])
def test_output_that_nobody_reads_leaves_nothing_half_written(run, name, flags):
    reader, writer = os.pipe()
    os.close(reader)
    done = script(name, "--run", run, *flags, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
    assert not list(run.rglob(".*"))


@pytest.mark.parametrize("module", MODULES)
def test_help_has_every_flag_in_a_named_group(module, capsys):
    with pytest.raises(SystemExit):
        module.get_args(["--help"])
    text = capsys.readouterr().out
    groups = dict(re.findall(r"^(\S.*):\n((?:  .*\n)+)", text, re.MULTILINE))
    flags = re.findall(r"^  (?:-\w, )?(--\w+)", groups["options"], re.MULTILINE)
    assert flags == ["--help", "--version"]
    assert "--run" in groups["files"] and "--output" in groups["files"]
    assert module is mislabel_analysis or ("--model" in groups["network"]
                                           and "--context" in groups["device"])


@pytest.mark.parametrize("module", MODULES)
def test_version_is_that_of_the_project(module, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        module.get_args(["--version"])
    assert exit_.value.code in (0, None)
    *_, version = capsys.readouterr().out.split()
    assert f'\nversion = "{version}"\n' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(("module", "flag"), [(module, flag) for module, flags in BOOLEANS.items()
                                              for flag in flags])
def test_every_boolean_stands_alone_and_can_be_negated(module, flag):
    def value(*words: str) -> bool:
        return getattr(module.get_args(list(words)), flag)
    hyphens = flag.replace("_", "-")
    assert value(f"--{flag}") is value(f"--{flag}", "True") is value(f"--{hyphens}=true") is True
    assert value(f"--no-{hyphens}") is value(f"--no_{flag}") is value(f"--{flag}", "False") is False


@pytest.mark.parametrize(("module", "flag", "near"), [
    (train, "--epochs", "--train_epochs"), (calculate_score, "--train_epochs", "--epochs"),
    (mislabel_analysis, "--rankby", "--rank_by")])
def test_unknown_flags_name_the_nearest(module, flag, near):
    with refused(flag, f" {near}?"):
        module.get_args([flag, "3"])


@pytest.mark.parametrize(("words", "near"), [
    (["--dataset", "cifar_10"], "cifar10"), (["--dataset", "Digits"], "digits"),
    (["--model", "Resnet23"], "resnet23"), (["--noise", "assymetric"], "asymmetric")])
def test_unknown_names_name_the_nearest(words, near):
    with refused(words[1], f" {near}?"):
        train.resolve(train.get_args(words))


def test_unknown_ranking_names_the_nearest(finished_run, tmp_path):
    with refused("AUM", " aum?"):
        mislabel_analysis.main(["--input", str(finished_run), "--output", str(tmp_path),
                                "--rank_by", "AUM"])


@pytest.mark.parametrize(("module", "names", "folders"), [
    (train, ("output", "monitor_path", "model_save_path"), ("r", "r", "r")),
    (calculate_score, ("input", "checkpoint", "output"), ("r", "r", "r")),
    (mislabel_analysis, ("input", "output"), ("r", "r/report"))])
def test_run_is_one_folder_for_all_files(module, names, folders):
    args = module.get_args(["--run", "r"])
    assert tuple(getattr(args, name) for name in names) == tuple(map(Path, folders))
    for name in names:
        args = module.get_args(["--run", "r", f"--{name}", "mine"])
        assert [getattr(args, other) for other in names] == [
            Path("mine") if other == name else Path(folder)
            for other, folder in zip(names, folders, strict=True)]


@pytest.mark.parametrize(("words", "folder"), [
    (["--run", "r", "--checkpoint"], "r"), (["--run", "r", "--checkpoint", "other"], "other"),
    (["--checkpoint"], "tmp.monitor"), (["-m", "m", "--checkpoint"], "m"),
    (["--checkpoint", "--run", "r", "-o", "saved"], "saved"), (["--run", "r"], None)])
def test_checkpoint_alone_is_the_folder_that_checkpoints_are_written_to(words, folder):
    assert train.get_args(words).checkpoint == (folder and Path(folder))


def test_run_that_is_resumed_by_its_folder_ends_the_same(finished_run, run):
    for file in run.glob("*000003*"):
        file.unlink()
    train.main([*TRAIN_FLAGS, "--input", str(finished_run.parent / "data"), "--run", str(run),
                "--checkpoint"])
    assert_same(finished_run, run)


@pytest.mark.parametrize(("name", "found"), [
    ("checkpoint_000001.json", True), ("params_29.h5", True), ("params.h5", False), (None, False)])
def test_scoring_takes_the_checkpoints_of_the_input_folder_if_it_has_some(tmp_path, name, found):
    if name:
        (tmp_path / name).touch()
    settings = calculate_score.get_args(["--input", str(tmp_path)])
    assert settings.checkpoint == (tmp_path if found else Path("tmp.monitor"))
    settings = calculate_score.get_args(["--input", str(tmp_path), "--checkpoint", "other"])
    assert settings.checkpoint == Path("other")


def test_scoring_without_checkpoint_flag_scores_the_input_folder(finished_run, tmp_path):
    calculate_score.main(["--input", str(finished_run), "--output", str(tmp_path), "-c", "cpu"])
    total = "influence_all_epoch.npy"
    assert (tmp_path / total).read_bytes() == (finished_run / total).read_bytes()


def test_missing_input_of_scoring_is_blamed_on_the_input(tmp_path):
    with refused("--input", str(tmp_path / "missing")):
        calculate_score.main(["--input", str(tmp_path / "missing"), "--output", str(tmp_path)])


@pytest.mark.parametrize(("more", "kept", "appended"), [
    ([], False, None), ([], True, ["--checkpoint", "{run}"]), (["--checkpoint"], True, []),
    (["--checkpoint", "{run}"], True, []), (["--checkpoint", "{run}/checkpoint_000001.json"], True,
                                            ["--checkpoint", "{run}"])])
def test_interrupt_says_the_command_that_resumes(run, tmp_path, monkeypatch, more, kept, appended):
    folder = run if kept else tmp_path / "nothing yet"
    words = ["train.py", "--run", *(word.format(run=folder) for word in ["{run}", *more])]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "orig_argv", ["python", *words])
    advice = train.how_to_resume()
    if appended is None:
        assert "--checkpoint" not in advice
    else:
        whole = " ".join(["python", *words, *(word.format(run=folder) for word in appended)])
        assert advice.endswith(f": {whole}")
