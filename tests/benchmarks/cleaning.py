"""What cleaning is worth: test accuracy trained on noisy, cleaned and clean labels.

    python -m tests.benchmarks.cleaning --dataset digits
    python -m tests.benchmarks.cleaning --dataset cifar10 --data cifar-10-python.tar.gz

The top tenth of the ranking is dropped, or relabelled as suggested, and a random tenth dropped.  As many
trainings run at a time as there are cores; an interrupted run resumes.
"""
import argparse
from pathlib import Path

import numpy as np

from tests.benchmarks import experiment
from tests.benchmarks.experiment import runs_at_a_time, script, train

DIGITS = ["--dataset", "digits", "--model", "resnet23", "--nmaps", "16", "--train_epochs", "12",
          "-c", "cpu"]
# Training flags, those of the noisy run alone, and seeds on which nothing was chosen.
SETTINGS = {"digits": (DIGITS, [], (1, 2, 3)),
            "cifar10": (experiment.TRAINING, experiment.SUBSET, (1,))}
# name -> file of corrections, and flags of the analysis that writes it
CLEANED = {"top tenth dropped": ("drop.csv", ["--drop", 0.1]),
           "top tenth relabelled": ("relabel.csv", ["--relabel", 0.1]),
           "random tenth dropped": ("drop.csv", ["--drop", 0.1, "--rank_by", "random"])}


def noisy_run(folder: Path, *flags: object) -> float:
    """Train on noisy labels and score; returns the test error."""
    error = train(folder, *flags)
    script("calculate_score.py", "--input", folder, "--checkpoint", folder, "--output", folder,
           "-c", "cpu", "--workers", 1)
    return error


def cleaned_run(folder: Path, noisy: Path, file: str, analysis: list, *flags: object) -> float:
    """Train on the corrections of a noisy run that the analysis writes; returns the test error."""
    script("mislabel_analysis.py", "--input", noisy, "--output", folder / "figure", "--review", 0,
           *analysis)
    return train(folder, *flags, "--input", noisy, "--corrections", folder / "figure" / file)


def table(accuracy: dict[tuple[str, int], float], seeds: tuple[int, ...]) -> str:
    """Markdown: the test accuracy of every seed, and the mean."""
    lines = ["| trained on | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean |",
             "|---" * (len(seeds) + 2) + "|"]
    for name in dict.fromkeys(name for name, _ in accuracy):
        values = [accuracy[name, seed] for seed in seeds]
        lines.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in [*values, np.mean(values)])
                     + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=list(SETTINGS), default="digits")
    parser.add_argument("--data", type=Path, help="as for train.py")
    parser.add_argument("--rank_by", default="tracin", help="as for mislabel_analysis.py")
    parser.add_argument("--output", type=Path, help="default: cleaning/<dataset>")
    args = parser.parse_args()
    training, subset, seeds = SETTINGS[args.dataset]
    args.output = args.output or Path("cleaning") / args.dataset
    futures = {}
    with runs_at_a_time() as pool:
        for seed in seeds:
            data = [*subset, *(["--data", args.data] if args.data else [])]
            futures["all noisy labels", seed] = pool.submit(
                noisy_run, args.output / f"noisy_{seed}", *training, "--seed", seed, *data)
        for seed in seeds:
            noisy, flags = args.output / f"noisy_{seed}", [*training, "--seed", seed]
            futures["all noisy labels", seed].result()
            for name, (file, analysis) in CLEANED.items():
                futures[name, seed] = pool.submit(
                    cleaned_run, args.output / f"{name.replace(' ', '_')}_{args.rank_by}_{seed}", noisy,
                    file, ["--rank_by", args.rank_by, *analysis], *flags)
            futures["clean labels", seed] = pool.submit(
                train, args.output / f"clean_{seed}", *flags, "--input", noisy, "--shuffle_label", False)
        print(table({key: 1 - future.result() for key, future in futures.items()}, seeds))


if __name__ == "__main__":
    main()
