"""Jobs of several ranks, for tests."""
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

BESIDE = Path(sys.executable).with_name("mpirun")  # where pip puts it
MPIRUN = str(BESIDE) if BESIDE.exists() else shutil.which("mpirun")
MISSING = [name for name, there in [("mpi4py", importlib.util.find_spec("mpi4py")), ("mpirun", MPIRUN)]
           if not there]
needs_mpi = pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}: "
                               "pip install -r requirements-mpi.txt")
SECONDS = 120


def mpirun(ranks: int, *words: object, folder: Path = ROOT) -> subprocess.CompletedProcess:
    """Run Python with these words by so many ranks, and wait."""
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                   "PYTHONPATH": str(ROOT)}
    options = ["--bind-to", "none", "--oversubscribe", "-n", str(ranks)]
    return subprocess.run([str(MPIRUN), *options, sys.executable, *map(str, words)], cwd=folder,
                          env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
