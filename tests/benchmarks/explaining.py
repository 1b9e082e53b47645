"""Time and peak memory of explaining 1,000 of 50,000 samples, beside one more pass of scoring.

    python -m tests.benchmarks.explaining

Rounds alternate, and a round is the scripts themselves, with their start.  The images are random.
"""
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.benchmarks.measuring import measure, save_fresh_parameters
from utils.cli import Parser, number
from utils.tracin import explanations

CHECKPOINTS = {"resnet23": 2, "resnet56": 2, "head": 10}
EXPLAINED, CLASSES, FEATURES = 1000, 10, 1280


def make_run(folder: Path, model: str, samples: int):
    """The data of a run and its checkpoints."""
    rng = np.random.default_rng(0)
    for kind, count in (("train", samples), ("val", 10)):
        np.save(folder / f"x_{kind}.npy", rng.integers(0, 256, (count, 3, 32, 32), np.uint8))
        np.save(folder / f"y_{kind}.npy", rng.integers(0, CLASSES, (count, 1)))
        if model == "head":
            np.save(folder / f"features_{kind}.npy",
                    rng.normal(size=(count, FEATURES)).astype(np.float32))
    np.save(folder / "y_shuffle_train.npy", np.load(folder / "y_train.npy"))
    if model == "head":
        subprocess.run([sys.executable, "train.py", "--input", folder, "--run", folder, "-c", "cpu",
                        "--train_epochs", str(CHECKPOINTS[model]), "--model_save_interval", "1",
                        "--shuffle_label", "False"], check=True, stdout=subprocess.DEVNULL)
        return
    for epoch in range(CHECKPOINTS[model]):
        save_fresh_parameters(folder, epoch, model)


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--samples", type=number(int, EXPLAINED), default=50_000)
    parser.add_argument("--rounds", type=number(int, 1), default=3)
    parser.add_argument("--models", nargs="+", choices=list(CHECKPOINTS), default=list(CHECKPOINTS))
    args = parser.parse_args()
    for model in args.models:
        with tempfile.TemporaryDirectory() as name:
            folder, times = Path(name), []
            make_run(folder, model, args.samples)
            command = ["calculate_score.py", "--run", folder, "-c", "cpu"]
            command += [] if model == "head" else ["--model", model]
            for _ in range(args.rounds):
                for path in [*folder.glob("*_scores.npz"), folder / explanations.TRAIN]:
                    path.unlink(missing_ok=True)
                scoring, explaining = measure(*command), measure(*command, "--explain", EXPLAINED)
                times.append((scoring.seconds, scoring.memory, explaining.seconds, explaining.memory,
                              explaining.seconds / scoring.seconds))
            middle, low, high = (function(times, axis=0) for function in (np.median, np.min, np.max))
            print(f"{model}, {CHECKPOINTS[model]} checkpoints, {args.samples:,} samples: scoring "
                  f"{middle[0]:.1f} s, {middle[1]:.0f} MB; explaining {EXPLAINED:,} "
                  f"{middle[2]:.1f} s, {middle[3]:.0f} MB; {middle[4]:.2f} ({low[4]:.2f} to "
                  f"{high[4]:.2f}) times", flush=True)


if __name__ == "__main__":
    main()
