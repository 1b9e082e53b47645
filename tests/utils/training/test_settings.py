"""Which engine and how many threads a run has."""
import json

import pytest

import train
from tests.conftest import refused
from utils import mpi


@pytest.fixture(autouse=True)
def _three_cores(monkeypatch):
    monkeypatch.setattr(mpi, "available_cores", lambda: 3)


def chosen(run, *flags, context="cpu"):
    """Engine and threads of a run, or of one that resumes `run`, and what that changes."""
    more = ["--checkpoint", str(run), "--input", str(run), "--output", str(run)] if run else []
    found = train.resolve(train.get_args([*more, *flags])).for_device(context)
    return found.engine, found.workers, found.changes()


def record(run, **values):
    """Make the newest checkpoint one that says this of what made it; None leaves a value out."""
    path = run / "checkpoint_000003.json"
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None
                                or name not in values}))


def test_engine_of_a_new_run_has_all_cores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert chosen(None) == ("onnxruntime", 3, "")
    assert chosen(None, "--workers", "7") == ("onnxruntime", 7, "")
    assert chosen(None, context="cudnn") == ("nnabla", 1, "")
    assert chosen(None, "--engine", "nnabla") == chosen(None, "--engine", "nnabla", "--workers", "1")
    for flags in (["--engine", "nnabla"], ["-c", "cudnn"]):
        with refused("--workers 2", "--engine nnabla"):
            chosen(None, *flags, "--workers", "2", context="cpu" if "--engine" in flags else "cudnn")


def test_resumed_run_keeps_its_engine_and_its_threads(run):
    record(run, engine="onnxruntime", workers=2)
    assert chosen(run) == ("onnxruntime", 2, "")
    record(run, engine="nnabla", workers=1)
    assert chosen(run) == ("nnabla", 1, "")
    assert chosen(run, context="cudnn") == ("nnabla", 1, "")


def test_earlier_versions_had_nnabla_alone(run):
    record(run, engine=None, workers=None)
    assert chosen(run) == ("nnabla", 1, "")
    with refused("--workers 2", "--engine nnabla", "--engine onnxruntime"):
        chosen(run, "--workers", "2")


def test_change_of_a_resumed_run_is_told(run):
    record(run, engine="onnxruntime", workers=2)
    for flags, engine, workers in [(["--engine", "nnabla"], "nnabla", 1),
                                   (["--workers", "1"], "onnxruntime", 1)]:
        found = chosen(run, *flags)
        assert found[:2] == (engine, workers) and found[2]
    record(run, engine="onnxruntime", workers=64)
    engine, workers, told = chosen(run)
    assert (engine, workers) == ("onnxruntime", 3) and "--workers 64" in told
    record(run, engine="nnabla", workers=1)
    engine, workers, told = chosen(run, "--engine", "onnxruntime")
    assert (engine, workers) == ("onnxruntime", 3) and "nnabla" in told


def test_other_number_of_ranks_is_told(run):
    record(run, workers=1, ranks=2)
    engine, workers, told = chosen(run)  # the threads were those of a rank
    assert (engine, workers) == ("onnxruntime", 3) and {"1", "2"} <= set(told)
    record(run, workers=3, ranks=None)  # of an earlier version
    assert chosen(run) == ("onnxruntime", 3, "")


@pytest.mark.parametrize(("engine", "context", "remedies"), [
    ("onnxruntime", "cudnn", ["-c cpu", "--engine nnabla"]),
    ("\x1b[2Jnew", "cpu", ["--engine onnxruntime"])])
def test_engine_is_changed_only_when_told(run, engine, context, remedies):
    record(run, engine=engine)
    with refused(ascii(engine), *remedies):
        chosen(run, context=context)
    flag = remedies[-1].split()
    assert chosen(run, *flag, context=context)[0] == flag[1]
