"""Which ranking finds mislabelled CIFAR-10 images best: three seeds of uniform noise, one of each other.

    python -m tests.benchmarks.experiment --data cifar-10-python.tar.gz

It trains, scores and analyses run after run, as many at a time as there are cores, and resumes where it
was interrupted.  The settings were chosen on seed 0, which is not among those reported.
"""
import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from datasets.cifar import CIFAR10, load_cifar
from utils.processes import available_cores
from utils.review import figures
from utils.review.detection import PERCENTAGES, detection_metrics, recall_curve

TRAINING = ["--dataset", "cifar10", "--model", "resnet23", "--nmaps", "20", "--train_epochs", "30",
            "--train_batch_size", "50", "--augmentation", "False", "-c", "cpu"]
SUBSET = ["--subset", "10000"]
RUNS = [("uniform", 1), ("uniform", 2), ("uniform", 3), ("asymmetric", 1), ("hardest", 1)]
# As in the paper, the hardest labels are chosen by a network trained on correct ones, here of other
# images, in part.
NOISE_MODEL = "correct_4"
ALL_LAYERS = "all_layers"
FIGURE = "experiment_curve.png"
SHOWN = ("tracin", "tracin_all_layers", "error_norm", "loss", "aum")
# By noise: what it is of, and recall at shares of the data.
PUBLISHED = {"uniform": ("NNabla's example, 50,000 images", {0.1: 0.816, 0.2: 0.967, 0.3: 0.990}),
             "hardest": ("over 80 %: TracIn paper, ResNet-56", {0.2: 0.80})}


@contextmanager
def runs_at_a_time() -> Iterator[ThreadPoolExecutor]:
    """A pool of as many runs as there are cores; a failure or an interrupt ends it in one line."""
    pool = ThreadPoolExecutor(available_cores())
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


def run(folder: Path, data: Path | None, noise: str, seed: int) -> dict:
    """Train, score and analyse what is not done yet; returns the results."""
    run_folder = folder / f"{noise}_{seed}"
    error = train(run_folder, *flags_of(data, seed), "--noise", noise,
                  *(["--noise_model", folder / NOISE_MODEL] if noise == "hardest" else []))
    scoring = ["--input", run_folder, "--checkpoint", run_folder, "-c", "cpu", "--workers", 1]
    script("calculate_score.py", *scoring, "--output", run_folder)
    script("calculate_score.py", *scoring, "--output", run_folder / ALL_LAYERS, "--layers", "all")
    script("mislabel_analysis.py", "--input", run_folder, "--output", run_folder / "figure")
    return {"test_error": error, **collect(run_folder)}


def collect(run_folder: Path) -> dict:
    """The metrics of every ranking and of every checkpoint alone, and the curves of some."""
    metrics = json.loads((run_folder / "figure" / "metrics.json").read_text())["scores"]
    wrong = (np.load(run_folder / "y_train.npy") != np.load(run_folder / "y_shuffle_train.npy"))[:, 0]
    scores = {"tracin_all_layers": np.load(run_folder / ALL_LAYERS / "influence_all_epoch.npy")}
    with (run_folder / "figure" / "suspects.csv").open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["index"]))
    scores |= {name: np.array([float(row[name]) for row in rows]) for name in SHOWN if name in rows[0]}
    metrics["tracin_all_layers"] = detection_metrics(scores["tracin_all_layers"], wrong)
    with np.load(run_folder / "per_checkpoint.npz") as file:
        for epoch, influence in zip(file["epochs"], file["influence"].T, strict=True):
            metrics[f"tracin_epoch_{epoch}"] = detection_metrics(influence, wrong)
    return {"mislabelled": float(wrong.mean()), "scores": metrics,
            "curves": {name: recall_curve(scores[name], wrong) for name in SHOWN}}


def table(results: dict[tuple[str, int], dict]) -> str:
    """Markdown: mean and standard deviation over the seeds of uniform noise, and the other runs."""
    uniform = [result for (noise, _), result in results.items() if noise == "uniform"]
    others = {noise: result for (noise, _), result in results.items() if noise != "uniform"}
    names = [f"recall_at_{percentage}" for percentage in PERCENTAGES] + ["auroc"]
    head = [f"{percentage} %" for percentage in PERCENTAGES] + ["AUROC"]
    lines = ["| ranking | " + " | ".join(head + [f"{noise}: {column}" for noise in others
                                                 for column in (head[1], head[-1])]) + " |",
             "|" + "---|" * (1 + len(head) + 2 * len(others))]
    for ranking in uniform[0]["scores"]:
        values = [[result["scores"][ranking][name] for result in uniform] for name in names]
        cells = [f"{np.mean(value):.3f} ± {np.std(value, ddof=1):.3f}" for value in values]
        cells += [f"{result['scores'][ranking][name]:.3f}" for result in others.values()
                  for name in (names[1], names[-1])]
        lines.append(f"| {ranking} | " + " | ".join(cells) + " |")
    runs = ", ".join(f"{noise} {seed}: {result['test_error']:.3f} ({result['mislabelled']:.1%})"
                     for (noise, seed), result in results.items())
    return "\n".join([*lines, "", f"test error (mislabelled): {runs}"])


@matplotlib.rc_context(figures.STYLE)
def draw(path: Path, results: dict[tuple[str, int], dict]):
    """The curves of each noise: their mean over the seeds, and the range."""
    noises = list(dict.fromkeys(noise for noise, _ in results))
    # At the 830 pixels of a page on GitHub, its text is as large as that of the other figures.
    figure = Figure(figsize=(8.3, 3.7), layout="constrained")
    panels = figure.subplots(1, len(noises), sharey=True, squeeze=False)[0]
    for noise, axes in zip(noises, panels, strict=True):
        runs = [result for (name, _), result in results.items() if name == noise]
        for number, name in enumerate(SHOWN):
            curves = np.array([run["curves"][name] for run in runs])
            kept, style = figures.visible(curves.shape[1] - 1), figures.line_style(number)
            checked, curves = kept / kept[-1], curves[:, kept]
            axes.plot(checked, curves.mean(axis=0), linewidth=1.5, label=name, **style)
            if len(runs) > 1:
                axes.fill_between(checked, curves.min(axis=0), curves.max(axis=0), color=style["color"],
                                  alpha=0.2, linewidth=0)
        axes.plot([0, 1], [0, 1], color=figures.GREY, linestyle=":", label="random order")
        if noise in PUBLISHED:
            what, recalls = PUBLISHED[noise]
            axes.plot(list(recalls), list(recalls.values()), "k^" if len(recalls) == 1 else "ko",
                      label=what)
        seeds = f"{len(runs)} seeds: mean, range" if len(runs) > 1 else "one seed"
        share = np.mean([run["mislabelled"] for run in runs])
        axes.set_title(f"{noise}, {100 * share:.0f} % mislabelled\n({seeds})", fontsize=9)
        axes.set(xlim=(0, 0.5), ylim=(0, 1.02), xlabel="share of the data checked")
        axes.grid(alpha=0.3)
        figures.in_percent(axes.xaxis, axes.yaxis)
    panels[0].set_ylabel("share of the mislabelled found")
    entries = {label: handle for axes in panels
               for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=4)
    figures.save(figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="as for train.py")
    parser.add_argument("--output", type=Path, default=Path("experiment"))
    args = parser.parse_args()
    load_cifar(CIFAR10, args.data)  # downloads it, if need be, before several would at once
    with runs_at_a_time() as pool:
        noise_model = pool.submit(train, args.output / NOISE_MODEL, *flags_of(args.data, 4),
                                  "--shuffle_label", False)
        futures = {}
        for noise, seed in RUNS:
            if noise == "hardest":
                noise_model.result()
            futures[noise, seed] = pool.submit(run, args.output, args.data, noise, seed)
        results = {key: future.result() for key, future in futures.items()}
        draw(args.output / FIGURE, results)
        print(table(results))
        print(f"figure: {args.output / FIGURE}")


if __name__ == "__main__":
    main()
