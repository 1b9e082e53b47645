"""Jobs of several ranks, for tests."""
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, children

BESIDE = Path(sys.executable).with_name("mpirun")  # where pip puts it
MPIRUN = str(BESIDE) if BESIDE.exists() else shutil.which("mpirun")
MISSING = [name for name, there in [("mpi4py", importlib.util.find_spec("mpi4py")), ("mpirun", MPIRUN)]
           if not there]
needs_mpi = pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}: "
                               "pip install -r requirements-mpi.txt")
SECONDS = 120


def start(*words: object, **options) -> subprocess.Popen:
    """Start a job; `words` follow ``mpirun``."""
    # Cores: tests that run side by side are bound to one each.
    command = [str(MPIRUN), "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none", *map(str, words)]
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                   "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.Popen(command, env=environment, text=True, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def end(job: subprocess.Popen) -> tuple[int, str, str]:
    """The exit code and the outputs of a job, which is killed if it hangs."""
    try:
        said, complaints = job.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        ranks = children(job.pid)
        job.kill()
        for rank in ranks:
            os.kill(rank, signal.SIGKILL)
        raise
    return job.returncode, said, complaints


def mpirun(ranks: int, *words: object, **options) -> tuple[int, str, str]:
    """Run Python with these words by so many ranks; the exit code and the outputs."""
    return end(start("-n", ranks, sys.executable, "-u", *words, **{"cwd": ROOT, **options}))
