"""Which engine and how many threads a run has."""
import json

import pytest

import train
from tests.conftest import refused
from utils.training import settings


@pytest.fixture(autouse=True)
def _three_cores(monkeypatch):
    monkeypatch.setattr(settings, "available_cores", lambda: 3)


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
    record(run, engine="onnxruntime", threads=2)
    assert chosen(run) == ("onnxruntime", 2, "")
    record(run, engine="nnabla", threads=1)
    assert chosen(run) == ("nnabla", 1, "")
    assert chosen(run, context="cudnn") == ("nnabla", 1, "")


def test_earlier_versions_had_nnabla_alone(run):
    record(run, engine=None, threads=None)
    assert chosen(run) == ("nnabla", 1, "")


def test_change_of_a_resumed_run_is_told(run):
    record(run, engine="onnxruntime", threads=2)
    for flags, engine, threads, context in [
            (["--engine", "nnabla"], "nnabla", 1, "cpu"), ([], "nnabla", 1, "cudnn"),
            (["--workers", "1"], "onnxruntime", 1, "cpu")]:
        found = chosen(run, *flags, context=context)
        assert found[:2] == (engine, threads) and found[2]
    record(run, engine="onnxruntime", threads=64)
    engine, threads, told = chosen(run)
    assert (engine, threads) == ("onnxruntime", 3) and "--workers 64" in told
    record(run, engine="nnabla", threads=1)
    engine, threads, told = chosen(run, "--engine", "onnxruntime")
    assert (engine, threads) == ("onnxruntime", 3) and "nnabla" in told


def test_engine_that_this_version_does_not_know_is_replaced_and_told(run):
    record(run, engine="\x1b[2Jnew")
    engine, _, told = chosen(run)
    assert engine == "onnxruntime" and "new" in told and "\x1b" not in told
