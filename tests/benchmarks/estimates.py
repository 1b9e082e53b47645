"""How far the estimated number of wrong labels is off, by their share, kind and number of images.

    python -m tests.benchmarks.estimates experiment --data cifar-10-python.tar.gz

It needs the noise model and the features of `tests.benchmarks.experiment`, whose folder it is given.
Heads are trained on subsets of CIFAR-10, one after the other; a killed run resumes.  A star marks a
range that misses the truth.  Where cleanlab is installed, its counts stand beside.
"""
import argparse
import itertools
from pathlib import Path

import numpy as np

from tests.benchmarks.experiment import HEAD, copy_features, noise_flags, runs_at_a_time, script
from tests.benchmarks.tables import markdown
from utils.review.estimate import count_wrong_labels, estimate

try:
    from cleanlab.count import num_label_issues
except ImportError:
    num_label_issues = None

SAMPLES = (500, 2000, 10000)
NOISES = [("uniform", rate) for rate in (0, 0.02, 0.05, 0.1, 0.2, 0.4)] + [
    ("hardest", 0.05), ("hardest", 0.1), ("hardest", 0.2), ("asymmetric", 0.2), ("asymmetric", 0.4)]
SEED = 1  # the estimate's prior was chosen on seed 0
LARGE = ("x_*.npy", "features*")


def train(folder: Path, experiment: Path, *flags: object):
    """Train a head, and keep its probabilities out of fold and its labels."""
    if (folder / "out_of_fold.npz").exists():
        return
    copy_features(experiment, folder)
    script("train.py", *HEAD, *flags, "--run", folder,
           *(["--checkpoint"] if any(folder.glob("checkpoint_*.json")) else []))
    for pattern in LARGE:
        for file in folder.glob(pattern):
            file.unlink()


def row(folder: Path, name: str) -> list:
    """The cells of a row of the table."""
    with np.load(folder / "out_of_fold.npz") as file:
        probability = file["probability"]
    labels, true = np.load(folder / "y_shuffle_train.npy"), np.load(folder / "y_train.npy")
    wrong, found = int((labels != true).sum()), count_wrong_labels(probability, labels)
    cells = [name, len(labels), wrong, round(found), f"{found / wrong:.2f}" if wrong else "",
             f"{(probability.argmax(axis=1) == labels[:, 0]).mean():.2f}"]
    answer = estimate(probability, labels)
    held = answer and (answer.least <= wrong <= answer.most)
    cells.append(f"{answer.least} to {answer.most}{'' if held else '*'}" if answer else "none")
    if num_label_issues:
        cells.append(num_label_issues(labels[:, 0], probability))
    return cells


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, help="the folder of tests.benchmarks.experiment")
    parser.add_argument("--data", type=Path, help="as for train.py")
    args = parser.parse_args()
    rows = []
    with runs_at_a_time():
        for samples, (noise, rate) in itertools.product(SAMPLES, NOISES):
            folder = args.experiment / "estimates" / f"{noise}_{rate}_{samples}"
            train(folder, args.experiment, *(["--data", args.data] if args.data else []),
                  "--subset", samples, "--seed", SEED,
                  *([*noise_flags(args.experiment, noise), "--shuffle_rate", rate] if rate
                    else ["--shuffle_label", False]))
            rows.append(row(folder, f"{noise}, {100 * rate:g} %" if rate else "none"))
    head = ["noise", "images", "wrong", "estimated", "of the truth", "agreement", "printed range",
            *(["cleanlab"] if num_label_issues else [])]
    print(markdown(head, rows))


if __name__ == "__main__":
    main()
