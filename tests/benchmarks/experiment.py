"""Which ranking finds mislabelled CIFAR-10 images best, with and without a backbone.

    python -m tests.benchmarks.experiment --data cifar-10-python.tar.gz

It trains, scores and analyses run after run, resumes where it was interrupted, and prints its tables
again in seconds.  Networks on images are trained as many at a time as there are cores, heads one at a
time with all cores, so that their times mean something.
Settings and rules were chosen on seed 0, which is not among those reported (``--seeds 0`` runs it).
"""
import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.arrays import FEATURES_RECORD, TEST_FEATURES, TRAIN_FEATURES
from datasets.cifar import CIFAR10, load_cifar
from tests.benchmarks import tables
from utils.files import save_json
from utils.processes import available_cores

TRAINING = ["--dataset", "cifar10", "--model", "resnet23", "--nmaps", "20", "--train_epochs", "30",
            "--train_batch_size", "50", "--augmentation", "False", "-c", "cpu"]
SUBSET = ["--subset", "10000"]
HEAD = ["--dataset", "cifar10", "--backbone", "efficientnet-lite0", "-c", "cpu"]
SEEDS = (1, 2, 3)
# As in the paper, the hardest labels are chosen by a network trained on correct ones, here of other
# images, in part.
NOISE_MODEL = "correct_4"
FIGURE = "experiment_curve.png"


@dataclass(frozen=True)
class Setting:
    """What is trained, and by default with which noises and seeds.

    Attributes:
        title: in words.
        flags: of train.py.
        seeds: by noise.
        head: whether it is a head on the features of a backbone.
    """

    title: str
    flags: list[str]
    seeds: dict[str, Sequence[int]]
    head: bool = True


SETTINGS = {
    "resnet23_10000": Setting("ResNet23 `--nmaps 20`, 10,000 images, 30 epochs", [*TRAINING, *SUBSET],
                              {"uniform": SEEDS, "asymmetric": (1,), "hardest": (1,)}, head=False),
    "head_10000": Setting("`efficientnet-lite0`, 10,000 images", [*HEAD, *SUBSET],
                          dict.fromkeys(tables.NOISES, SEEDS)),
    "head_50000": Setting("`efficientnet-lite0`, 50,000 images", HEAD,
                          dict.fromkeys(tables.NOISES, SEEDS)),
}


@contextmanager
def runs_at_a_time(count: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """A pool of as many runs as there are cores; a failure or an interrupt ends it in one line."""
    pool = ThreadPoolExecutor(count or available_cores())
    try:
        yield pool
    except subprocess.CalledProcessError as error:  # its message is already printed
        sys.exit(f"{error.cmd[2]} failed; run again to resume")
    except KeyboardInterrupt:
        sys.exit("interrupted; run again to resume")
    finally:
        pool.shutdown(cancel_futures=True)


def script(name: str, *flags: object):
    """Run one of the three scripts as a user would."""
    subprocess.run([sys.executable, "-u", name, *map(str, flags)], check=True,
                   stdout=subprocess.DEVNULL)


def train(folder: Path, *flags: object) -> float:
    """Train a network or resume its training; returns the last test error."""
    if not any(folder.glob("*_result.nnp")):
        script("train.py", *flags, "--workers", 1, "--output", folder, "--monitor-path", folder,
               *(["--checkpoint", folder] if any(folder.glob("checkpoint_*.json")) else []))
        print(f"trained: {folder}", flush=True)
    return float(np.loadtxt(folder / "Test-error.series.txt")[-1, 1])


def flags_of(data: Path | None, seed: int) -> list:
    return [*TRAINING, *SUBSET, "--seed", seed, *(["--data", data] if data else [])]


def noise_flags(folder: Path, noise: str) -> list:
    return ["--noise", noise, *(["--noise_model", folder / NOISE_MODEL] if noise == "hardest" else [])]


def run_network(folder: Path, data: Path | None, setting: str, noise: str, seed: int):
    """Train ResNet23 with one thread, score and analyse what is not done yet."""
    run = folder / setting / f"{noise}_{seed}"
    if (run / tables.METRICS_FILE).exists():
        return
    train(run, *flags_of(data, seed), *noise_flags(folder, noise))
    scoring = ["--input", run, "--checkpoint", run, "-c", "cpu", "--workers", 1]
    script("calculate_score.py", *scoring, "--output", run)
    script("calculate_score.py", *scoring, "--output", run / tables.ALL_LAYERS, "--layers", "all")
    script("mislabel_analysis.py", "--run", run)


def run_head(folder: Path, data: Path | None, setting: str, noise: str, seed: int):
    """Compute features, train a head, score and analyse what is not done yet; keeps the seconds."""
    run = folder / setting / f"{noise}_{seed}"
    if (run / tables.METRICS_FILE).exists() and (run / tables.TIMES).exists():
        return
    interrupted, resumed = run.exists(), any(run.glob("checkpoint_*.json"))
    copy_features(folder, run)
    times = {}
    for name, flags in [
            ("train.py", [*SETTINGS[setting].flags, "--seed", seed, *(["--data", data] if data else []),
                          *noise_flags(folder, noise), *(["--checkpoint"] if resumed else [])]),
            ("calculate_score.py", ["-c", "cpu"]), ("mislabel_analysis.py", [])]:
        start = time.perf_counter()
        script(name, "--run", run, *flags)
        times[name] = time.perf_counter() - start
    # Those of an interrupted run would be too short.
    if not (run / tables.TIMES).exists():
        save_json(run / tables.TIMES, {} if interrupted else times)
    print(f"done: {run}", flush=True)


def copy_features(folder: Path, run: Path):
    """Let a run find the features of a run on all images, as the README says."""
    run.mkdir(parents=True, exist_ok=True)
    known = sorted(folder.glob(f"head_50000/*/{FEATURES_RECORD}"))
    if known and not (run / FEATURES_RECORD).exists():
        # What recognises the others is last, so that a kill leaves none that count.  No run changes such
        # a file in place: it replaces it, which leaves the others' alone.
        for name in (TRAIN_FEATURES, TEST_FEATURES, FEATURES_RECORD):
            if not (run / name).exists():
                os.link(known[0].with_name(name), run / name)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="as for train.py")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS),
                        help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+",
                        help="for every noise (default: 1 2 3, but 1 for ResNet23 with other noise than "
                             "uniform)")
    parser.add_argument("--analyse", action="store_true",
                        help="analyse finished runs again, after a change of the rankings")
    parser.add_argument("--output", type=Path, default=Path("experiment"))
    args = parser.parse_args()
    load_cifar(CIFAR10, args.data)  # downloads it, if need be, before several would at once
    runs = [(name, noise, seed) for name in args.settings
            for noise, seeds in SETTINGS[name].seeds.items() for seed in args.seeds or seeds]
    for name, noise, seed in runs if args.analyse else ():
        run = args.output / name / f"{noise}_{seed}"
        if (run / tables.METRICS_FILE).exists():
            (run / tables.METRICS_FILE).unlink()  # those of a killed analysis do not count
            script("mislabel_analysis.py", "--run", run)
    networks = [run for run in runs if not SETTINGS[run[0]].head]
    with runs_at_a_time() as pool:
        noise_model = pool.submit(train, args.output / NOISE_MODEL, *flags_of(args.data, 4),
                                  "--shuffle_label", False)
        futures = []
        for one in networks:
            if one[1] == "hardest":
                noise_model.result()
            futures.append(pool.submit(run_network, args.output, args.data, *one))
        for future in (noise_model, *futures):
            future.result()
    with runs_at_a_time(1) as pool:
        # The first one computes the features of all images.
        for one in sorted((run for run in runs if SETTINGS[run[0]].head),
                          key=lambda run: run[0] != "head_50000"):
            pool.submit(run_head, args.output, args.data, *one).result()
    results = {SETTINGS[name].title: {
        (noise, seed): tables.collect(args.output / name / f"{noise}_{seed}")
        for setting, noise, seed in runs if setting == name} for name in args.settings}
    for title, runs_of in results.items():
        print(f"\n## {title}\n\n{tables.describe(runs_of)}")
    tables.draw(args.output / FIGURE, results)
    print(f"\nfigure: {args.output / FIGURE}")


if __name__ == "__main__":
    main()
