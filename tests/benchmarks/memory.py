"""Peak memory of scoring (its largest process) by the number of images.

    python -m tests.benchmarks.memory
"""
import subprocess
import sys
import tempfile
from pathlib import Path

import nnabla as nn
import numpy as np

from models.registry import build_network

CASES = [(model, layers, samples) for model in ("resnet23", "resnet56")
         for layers, samples in (("last", 10_000), ("last", 50_000), ("all", 1_000), ("all", 3_000))]
# Runs a command and prints the peak memory of its processes in MB; each case has its own process because
# the system keeps only the highest value.
MEASURE = ("import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, "
           "stdout=subprocess.DEVNULL); "
           "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)")


def measure(folder: Path, model: str, layers: str, samples: int) -> int:
    """Peak resident memory in MB of scoring random images at a checkpoint with fresh parameters."""
    rng = np.random.default_rng(0)
    np.save(folder / "x_train.npy", rng.integers(0, 256, (samples, 3, 32, 32), np.uint8))
    np.save(folder / "y_shuffle_train.npy", rng.integers(0, 10, (samples, 1)))
    nn.clear_parameters()
    build_network(model, 10, rng=rng)(nn.Variable((1, 3, 32, 32)), test=True)
    nn.get_parameters(grad_only=False)["conv1/bn/var"].d = 1e4
    nn.save_parameters(str(folder / "params_1.h5"))
    command = [sys.executable, "calculate_score.py", "--input", folder, "--checkpoint", folder,
               "--output", folder, "--model", model, "--layers", layers, "-c", "cpu"]
    return int(subprocess.run([sys.executable, "-c", MEASURE, *map(str, command)], check=True,
                              capture_output=True, text=True).stdout)


if __name__ == "__main__":
    for case in CASES:
        with tempfile.TemporaryDirectory() as name:
            print("{}, --layers {}, {:,} images: ".format(*case)
                  + f"{measure(Path(name), *case):,} MB", flush=True)
