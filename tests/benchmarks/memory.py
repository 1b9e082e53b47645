"""Peak memory of training by batch size and epochs, and of scoring by the number of images.

Of several processes it is that of the largest.

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
TRAININGS = [("resnet23", 50, 2), ("resnet23", 500, 2), ("resnet23", 500, 6), ("resnet56", 500, 2)]
# Runs a command and prints the peak memory of its processes in MB; each case has its own process because
# the system keeps only the highest value.
MEASURE = ("import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, "
           "stdout=subprocess.DEVNULL); "
           "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)")


def peak(*command: object) -> int:
    """Peak resident memory in MB of a script of the suite."""
    return int(subprocess.run([sys.executable, "-c", MEASURE, sys.executable, *map(str, command)],
                              check=True, capture_output=True, text=True).stdout)


def training(folder: Path, model: str, batch_size: int, epochs: int) -> int:
    """Peak memory of training on 1,000 random images."""
    rng = np.random.default_rng(0)
    np.savez(folder / "images.npz", x=rng.integers(0, 256, (1000, 3, 32, 32), np.uint8),
             y=rng.integers(0, 10, 1000))
    return peak("train.py", "--dataset", folder / "images.npz", "--run", folder / "run", "-c", "cpu",
                "--model", model, "--train_batch_size", batch_size, "--train_epochs", epochs)


def scoring(folder: Path, model: str, layers: str, samples: int) -> int:
    """Peak memory of scoring random images at a checkpoint with fresh parameters."""
    rng = np.random.default_rng(0)
    np.save(folder / "x_train.npy", rng.integers(0, 256, (samples, 3, 32, 32), np.uint8))
    np.save(folder / "y_shuffle_train.npy", rng.integers(0, 10, (samples, 1)))
    nn.clear_parameters()
    build_network(model, 10, rng=rng)(nn.Variable((1, 3, 32, 32)), test=True)
    nn.get_parameters(grad_only=False)["conv1/bn/var"].d = 1e4
    nn.save_parameters(str(folder / "params_1.h5"))
    return peak("calculate_score.py", "--input", folder, "--checkpoint", folder, "--output", folder,
                "--model", model, "--layers", layers, "-c", "cpu")


def main():
    for measure, words, cases in [
            (training, "train.py --model {} --train_batch_size {} --train_epochs {}", TRAININGS),
            (scoring, "calculate_score.py --model {} --layers {}, {:,} images", CASES)]:
        for case in cases:
            with tempfile.TemporaryDirectory() as name:
                print(f"{words.format(*case)}: {measure(Path(name), *case):,} MB", flush=True)


if __name__ == "__main__":
    main()
