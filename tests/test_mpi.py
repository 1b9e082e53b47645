import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nnabla as nn
import numpy as np
import pytest

import calculate_score
import train
from datasets import arrays
from models.registry import build_network
from tests.conftest import ROOT, children, gone, make_dataset, refused
from tests.mpi import SECONDS, end, mpirun, needs_mpi, start
from utils import mpi
from utils.tracin.scoring import ScoringPlan


def scoring(run, output, *more) -> list:
    return [ROOT / "calculate_score.py", "--input", run, "--checkpoint", run, "--output", output,
            "-c", "cpu", *more]


def score(run, output, *more):
    nn.clear_parameters()
    calculate_score.main([*map(str, scoring(run, output, *more)[1:])])


def assert_same_files(folder, expected):
    names = sorted(path.name for path in expected.iterdir())
    assert sorted(path.name for path in folder.iterdir()) == names
    for name in names:
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name


@needs_mpi
@pytest.mark.parametrize("engine", ["onnxruntime", "nnabla"])
@pytest.mark.parametrize("more", [["--layers", "last", "--explain", "12"], ["--layers", "all"]],
                         ids=["last", "all"])
def test_ranks_find_the_bits_of_one_process(finished_run, tmp_path, engine, more):
    flags = ["--engine", engine, *more]
    code, said, complaints = mpirun(2, *scoring(finished_run, tmp_path / "two", *flags))
    assert (code, complaints) == (0, "")
    assert said.count(str(tmp_path / "two" / "influence_all_epoch.npy")) == 1
    score(finished_run, tmp_path / "one", *flags)
    assert_same_files(tmp_path / "two", tmp_path / "one")


def work(setup: str, *more: str) -> list[str]:
    """A program whose ranks do 40 tasks and print a line of number and rank for each."""
    code = ("from tests.utils.tasks import RankTask; from utils import cli; from utils.tasks import "
            "run_tasks\n"
            "def main():\n"
            f"    for (number,), rank in run_tasks(RankTask, {setup!r}, [(n,) for n in range(40)], 1):\n"
            "        print(number, rank)\n"
            "cli.run(main, led=True)")
    return ["-c", code]


@needs_mpi
def test_both_ranks_work_and_each_task_is_done_once():
    code, said, complaints = mpirun(2, *work("slow"))
    assert (code, complaints) == (0, "")
    numbers, ranks = zip(*(map(int, line.split()) for line in said.splitlines()), strict=True)
    assert sorted(numbers) == list(range(40))
    assert min(ranks.count(0), ranks.count(1)) > 5


@needs_mpi
@pytest.mark.parametrize(("setup", "expected", "facts"), [
    ("refuse", 2, ["error: rank 1", "refused: task"]),
    ("unusable", 2, ["error: rank 1", "refused: plan"]),
    ("full", 1, ["error: rank 1", "refused: disk"]), ("bug", 1, ["ZeroDivisionError: "]),
    ("leader", 1, ["ZeroDivisionError: "])])
def test_failing_rank_ends_the_job_with_its_message(setup, expected, facts):
    began = time.monotonic()
    code, said, complaints = mpirun(2, *work(setup))
    assert code == expected
    assert len(said.splitlines()) < 40 and time.monotonic() - began < 30
    for fact in facts:
        lines = [line for line in complaints.splitlines() if re.search(f"(^|: ){fact}", line)]
        assert len(lines) == (1 if expected == 2 or setup in ("full", "leader") else 2), complaints


@pytest.fixture(scope="module")
def larger_run(tmp_path_factory):
    """Data and two checkpoints of 600 samples, and their scores by all layers."""
    folder = tmp_path_factory.mktemp("larger")
    arrays.save(folder / "run", make_dataset(600))
    nn.clear_parameters()
    train.main(["--model", "resnet23", "--nmaps", "8", "--train_epochs", "2", "--train_batch_size",
                "100", "-c", "cpu", "--input", str(folder / "run"), "--output", str(folder / "run"),
                "--monitor-path", str(folder / "run")])
    score(folder / "run", folder / "scores", "--layers", "all", "--engine", "nnabla")
    return folder


def rank_of(process: int) -> str:
    words = Path(f"/proc/{process}/environ").read_text().split("\0")
    return next((word for word in words if word.startswith("OMPI_COMM_WORLD_RANK=")), "")[-1:]


@needs_mpi
@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")
def test_killed_rank_ends_the_job_which_can_be_resumed(larger_run, tmp_path):
    flags = ["--layers", "all", "--engine", "nnabla"]
    words = scoring(larger_run / "run", tmp_path / "scores", *flags)
    job, deadline = start("-n", 2, sys.executable, *words), time.monotonic() + SECONDS

    def complete() -> list[Path]:
        return sorted((tmp_path / "scores").glob("0*_influence.npy"))

    while not complete() and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    ranks = {rank_of(process): process for process in children(job.pid)}
    os.kill(ranks["1"], signal.SIGKILL)
    code, _, _ = end(job)
    assert code != 0 and gone(list(ranks.values()), within=10)
    assert not (tmp_path / "scores" / "influence_all_epoch.npy").exists()
    kept, = complete()
    kept = kept.with_name(kept.name.replace("influence.npy", "scores.npz"))
    before = kept.stat().st_mtime_ns
    code, _, complaints = mpirun(2, *words)
    assert (code, complaints) == (0, "")
    assert kept.stat().st_mtime_ns == before
    assert_same_files(tmp_path / "scores", larger_run / "scores")


def other_folder(run, other, difference):
    """A folder that another machine may see instead of a run's."""
    shutil.copytree(run, other)
    if difference == "missing":
        (other / "x_train.npy").unlink()
    else:
        images = np.load(other / "x_train.npy")
        images[-1, -1, -1, -1] ^= 1
        np.save(other / "x_train.npy", images)


@needs_mpi
@pytest.mark.parametrize("difference", ["missing", "changed"])
def test_rank_that_sees_other_files_is_named(run, tmp_path, difference):
    """Two working folders stand for two machines that do not share the run's folder."""
    other_folder(run, tmp_path / "other" / "run", difference)
    words = [sys.executable, *scoring("run", "scores")]
    job = start("-n", 1, "--wdir", tmp_path, *words, ":", "-n", 1, "--wdir", tmp_path / "other", *words)
    code, _, complaints = end(job)
    assert code == 2
    line, = (line for line in complaints.splitlines() if "error:" in line)
    assert "rank 1" in line and os.uname().nodename in line and str(Path("run", "x_train.npy")) in line
    assert not (tmp_path / "scores" / "influence_all_epoch.npy").exists()


@needs_mpi
def test_analysis_is_done_by_one_rank(run, tmp_path):
    """The other one's working folder is empty, and stays so."""
    (tmp_path / "other").mkdir()
    words = [sys.executable, ROOT / "mislabel_analysis.py", "--run", "run", "--review", "0"]
    code, _, complaints = end(start("-n", 1, "--wdir", run.parent, *words, ":",
                                    "-n", 1, "--wdir", tmp_path / "other", *words))
    assert (code, complaints) == (0, "")
    assert (run / "report" / "suspects.csv").exists() and not list((tmp_path / "other").iterdir())


@needs_mpi
@pytest.mark.parametrize(("words", "expected"), [(["--version"], 0), (["--workers", "0"], 2)])
def test_what_needs_no_computing_is_said_once(words, expected):
    code, said, complaints = mpirun(2, ROOT / "calculate_score.py", *words)
    assert code == expected
    assert len(said.splitlines()) == (expected == 0)
    assert complaints.count("error:") == (expected == 2)


@pytest.fixture
def without_mpi4py(tmp_path):
    """An environment in which mpi4py is not installed."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "mpi4py.py").write_text("raise ImportError('hidden')")
    return {"PYTHONPATH": str(tmp_path / "hidden")}


@needs_mpi
def test_missing_mpi4py_is_told_once_instead_of_running_twice(without_mpi4py, run, tmp_path):
    code, said, complaints = mpirun(2, *scoring(run, tmp_path / "new"), env=without_mpi4py)
    assert (code, said) == (2, "")
    assert sum("requirements-mpi.txt" in line for line in complaints.splitlines()) == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("environment", [{}, {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}])
def test_one_process_does_not_need_mpi4py(without_mpi4py, run, tmp_path, environment):
    subprocess.run([sys.executable, *scoring(run, tmp_path / "new", "--epochs", "1")], check=True,
                   env={**os.environ, **without_mpi4py, **environment}, timeout=SECONDS)
    assert np.array_equal(np.load(tmp_path / "new" / "influence_all_epoch.npy"),
                          np.load(run / "000001_influence.npy"))


def plan(run, *more) -> ScoringPlan:
    settings = calculate_score.get_args(["--run", str(run), "-c", "cpu", *more])
    return calculate_score.make_plan(settings, build_network("resnet23", 3, 4), 30)


@pytest.mark.parametrize(("more", "size", "workers"), [
    ([], 2, 3), (["--workers", "2"], 2, 2), (["--engine", "nnabla"], 2, 1),
    (["--engine", "nnabla", "--workers", "1"], 2, 1), (["--engine", "nnabla"], 1, 3)])
def test_each_rank_has_its_share_of_the_threads(run, monkeypatch, more, size, workers):
    monkeypatch.setattr(calculate_score, "job", lambda: mpi.Job(size=size, cores=3))
    assert plan(run, *more).workers == workers


def test_processes_of_ranks_are_refused(run, monkeypatch):
    monkeypatch.setattr(calculate_score, "job", lambda: mpi.Job(size=2, cores=3))
    with refused("--workers 1", "--engine nnabla"):
        plan(run, "--engine", "nnabla", "--workers", "2")
