"""What a script of the suite costs, and checkpoints to score."""
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nnabla as nn
import numpy as np

from models.registry import build_network

# Runs a command to its end, or until it prints some words, and prints what it took.  A process of its
# own, because the system counts the memory of the one that starts a command as the command's.
MEASURE = """
import json, os, subprocess, sys, time
until, *command = sys.argv[1:]
start = time.perf_counter()
process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
found = any(until and until in line for line in process.stdout)
seconds = time.perf_counter() - start
if found:
    process.kill()
_, status, used = os.wait4(process.pid, 0)
if status and not found:
    sys.exit(f"{command} failed")
print(json.dumps([seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


@dataclass(frozen=True)
class Cost:
    """What a script took: seconds by the clock and of the processors, and peak memory in MB.

    Of several processes the memory is that of the largest.
    """

    seconds: float
    cpu: float
    memory: float


def measure(*command: object, until: str = "") -> Cost:
    """Run a script of the suite in a process of its own, to its end or until it prints `until`."""
    run = subprocess.run([sys.executable, "-c", MEASURE, until, sys.executable, "-u",
                          *map(str, command)], check=True, stdout=subprocess.PIPE, text=True)
    return Cost(*json.loads(run.stdout))


def save_fresh_parameters(folder: Path, epoch: int, model: str, nmaps: int | None = None):
    """Write ``params_<epoch>.h5``, of a network for 10 classes of 32x32 images that is not trained."""
    nn.clear_parameters()
    network = build_network(model, 10, nmaps, np.random.default_rng(epoch))
    network(nn.Variable((1, 3, 32, 32)), test=True)
    nn.get_parameters(grad_only=False)["conv1/bn/var"].d = 1e4  # the images are not scaled
    nn.save_parameters(str(folder / f"params_{epoch}.h5"))
