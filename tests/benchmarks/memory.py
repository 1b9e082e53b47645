"""Peak memory of training by batch size and epochs, and of scoring by the number of images.

Of several processes it is that of the largest.

    python -m tests.benchmarks.memory
"""
import tempfile
from pathlib import Path

import numpy as np

from tests.benchmarks.measuring import measure, save_fresh_parameters

CASES = [(model, layers, samples) for model in ("resnet23", "resnet56")
         for layers, samples in (("last", 10_000), ("last", 50_000), ("all", 1_000), ("all", 3_000))]
TRAININGS = [("resnet23", 50, 2), ("resnet23", 500, 2), ("resnet23", 500, 6), ("resnet56", 500, 2)]


def training(folder: Path, model: str, batch_size: int, epochs: int) -> float:
    """Peak memory in MB of training on 1,000 random images."""
    rng = np.random.default_rng(0)
    np.savez(folder / "images.npz", x=rng.integers(0, 256, (1000, 3, 32, 32), np.uint8),
             y=rng.integers(0, 10, 1000))
    return measure("train.py", "--dataset", folder / "images.npz", "--run", folder / "run", "-c", "cpu",
                   "--model", model, "--train_batch_size", batch_size, "--train_epochs", epochs).memory


def scoring(folder: Path, model: str, layers: str, samples: int) -> float:
    """Peak memory in MB of scoring random images at a checkpoint with fresh parameters."""
    rng = np.random.default_rng(0)
    np.save(folder / "x_train.npy", rng.integers(0, 256, (samples, 3, 32, 32), np.uint8))
    np.save(folder / "y_shuffle_train.npy", rng.integers(0, 10, (samples, 1)))
    save_fresh_parameters(folder, 1, model)
    return measure("calculate_score.py", "--run", folder, "--model", model, "--layers", layers,
                   "-c", "cpu").memory


def main():
    for needs, words, cases in [
            (training, "train.py --model {} --train_batch_size {} --train_epochs {}", TRAININGS),
            (scoring, "calculate_score.py --model {} --layers {}, {:,} images", CASES)]:
        for case in cases:
            with tempfile.TemporaryDirectory() as name:
                print(f"{words.format(*case)}: {needs(Path(name), *case):,.0f} MB", flush=True)


if __name__ == "__main__":
    main()
