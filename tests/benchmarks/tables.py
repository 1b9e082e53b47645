"""The tables and the figure of `tests.benchmarks.experiment`, from the files of its runs."""
import csv
import json
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from utils.review import figures
from utils.review.detection import PERCENTAGES, detection_metrics, recall_curve

NOISES = ("uniform", "asymmetric", "hardest")
ALL_LAYERS, TIMES, REPORT = "all_layers", "times.json", "report"
METRICS_FILE = f"{REPORT}/metrics.json"  # the last file that an analysis writes
TRACIN_ALL_LAYERS = "tracin_all_layers"
BUDGETS = {f"recall_at_{percentage}": f"{percentage} %" for percentage in PERCENTAGES}
METRICS = {**BUDGETS, "auroc": "AUROC"}
SHOWN = ("tracin", TRACIN_ALL_LAYERS, "loss", "aum", "consensus")
# Beside the best single ranking; the first is what `auto` chooses.
COMPARED = ("consensus", "tracin", "aum", "margin", "self_confidence", "out_of_fold")
NOT_SINGLE = ("consensus", "random", TRACIN_ALL_LAYERS)
# By noise: what it is of, and recall at shares of the data.
PUBLISHED = {"uniform": ("NNabla's example, 50,000 images", {0.1: 0.816, 0.2: 0.967, 0.3: 0.990}),
             "hardest": ("over 80 %: TracIn paper, ResNet-56", {0.2: 0.80})}
Results = dict[tuple[str, int], dict]


def collect(run: Path) -> dict:
    """The results of one run: metrics of all rankings, and the curves of some."""
    metrics = json.loads((run / METRICS_FILE).read_text())
    wrong = (np.load(run / "y_train.npy") != np.load(run / "y_shuffle_train.npy"))[:, 0]
    scores = {}
    with (run / REPORT / "suspects.csv").open(newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["index"]))
    scores |= {name: np.array([float(row[name]) for row in rows]) for name in SHOWN if name in rows[0]}
    if (run / ALL_LAYERS).exists():
        scores[TRACIN_ALL_LAYERS] = np.load(run / ALL_LAYERS / "influence_all_epoch.npy")
        metrics["scores"][TRACIN_ALL_LAYERS] = detection_metrics(scores[TRACIN_ALL_LAYERS], wrong)
    with np.load(run / "per_checkpoint.npz") as file:
        alone = {int(epoch): detection_metrics(influence, wrong)["auroc"]
                 for epoch, influence in zip(file["epochs"], file["influence"].T, strict=True)}
    return {**metrics, "alone": alone,
            "test_error": float(np.loadtxt(run / "Test-error.series.txt")[-1, 1]),
            "times": json.loads((run / TIMES).read_text()) if (run / TIMES).exists() else {},
            "curves": {name: recall_curve(score, wrong) for name, score in scores.items()}}


def describe(results: Results) -> str:
    """Markdown: all tables of one setting."""
    runs = ", ".join(f"{noise} {seed}: {run['test_error']:.3f}"
                     for (noise, seed), run in results.items())
    alone = ", ".join(f"{epoch}: {np.mean([run['alone'][epoch] for run in of(results, 'uniform')]):.3f}"
                      for epoch in of(results, "uniform")[0]["alone"])
    parts = [*(f"{noise}:\n\n{rankings_table(of(results, noise))}" for noise in noises(results)),
             f"Beside the best single ranking:\n\n{behind_table(results)}",
             f"Estimated number of wrong labels:\n\n{estimates_table(results)}",
             f"test error: {runs}", f"AUROC of `tracin` at one checkpoint, by epoch, uniform: {alone}"]
    timed = [run["times"] for run in of(results, "uniform") if run["times"]]
    if timed:  # the features of all images are computed in one run of all settings
        parts.append("seconds, median of uniform: " + ", ".join(
            f"{name} {np.median([times[name] for times in timed]):.0f}" for name in timed[0])
            + f"; train.py at most {max(times['train.py'] for times in timed):.0f}")
    return "\n\n".join(parts)


def of(results: Results, noise: str) -> list[dict]:
    return [run for (name, _), run in results.items() if name == noise]


def noises(results: Results) -> list[str]:
    return list(dict.fromkeys(noise for noise, _ in results))


def rankings_table(runs: list[dict]) -> str:
    """Mean over the seeds of one noise, and standard deviation, the best at 20 % first."""
    def cell(name: str, metric: str) -> str:
        values = [run["scores"][name][metric] for run in runs]
        spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
        return f"{np.mean(values):.3f}{spread}"
    share = round(100 * np.mean([run["mislabelled"] / run["samples"] for run in runs]))
    metrics = METRICS if share in PERCENTAGES else {"recall_at_mislabelled": f"{share} %", **METRICS}
    names = sorted(runs[0]["scores"], reverse=True,
                   key=lambda name: np.mean([run["scores"][name]["recall_at_20"] for run in runs]))
    return markdown(["ranking", *metrics.values()],
                    ([f"`{name}`", *(cell(name, metric) for metric in metrics)] for name in names))


def behind_table(results: Results) -> str:
    """What finds most at each budget, with its mean 95 % interval, and what some others find there.

    A star marks those that find less than the interval's low end.  The best is of those in
    ``metrics.json``, thus without `tracin` of all layers.
    """
    rows = []
    for noise in noises(results):
        runs = of(results, noise)
        present = [name for name in COMPARED if name in runs[0]["scores"]]
        for metric, budget in BUDGETS.items():
            def mean(name: str, key: str, runs=runs):
                return np.mean([run["scores"][name][key] for run in runs], axis=0)
            best = max((name for name in runs[0]["scores"] if name not in NOT_SINGLE),
                       key=lambda name: mean(name, metric))
            low, high = mean(best, f"{metric}_interval")
            cells = [f"{mean(name, metric):.3f}{'*' * bool(mean(name, metric) < low)}"
                     for name in present]
            rows.append([noise, budget, f"`{best}` {mean(best, metric):.3f} ({low:.3f} to {high:.3f})",
                         *cells])
    return markdown(["noise", "checked", "best", *(f"`{name}`" for name in present)], rows)


def estimates_table(results: Results) -> str:
    return markdown(["run", "wrong", "estimated", "range", "agreement"], (
        [f"{noise} {seed}", run["mislabelled"],
         *(("none", "") if run["estimated_range"] is None else
           (run["estimated_label_issues"], "{} to {}".format(*run["estimated_range"]))),
         f"{run['agreement']:.2f}"] for (noise, seed), run in results.items()))


def markdown(head: list[str], rows: Iterable[Iterable[object]]) -> str:
    return "\n".join("| " + " | ".join(map(str, cells)) + " |"
                     for cells in (head, ["---"] * len(head), *rows))


@matplotlib.rc_context(figures.STYLE)
def draw(path: Path, results: dict[str, Results]):
    """The curves of each setting (a row of panels) and noise: mean over the seeds, and range."""
    columns = max(len(noises(runs)) for runs in results.values())
    # At the 830 pixels of a page on GitHub, its text is as large as that of the other figures.
    figure = Figure(figsize=(8.3, 1 + 2.9 * len(results)), layout="constrained")
    panels = figure.subplots(len(results), columns, sharex=True, sharey=True, squeeze=False)
    for row, (title, runs) in zip(panels, results.items(), strict=True):
        for axes, noise in zip(row, noises(runs), strict=False):
            _panel(axes, noise, of(runs, noise))
        row[0].set_ylabel(title.replace("`", "").replace(", ", "\n"))
    for axes in panels[-1]:
        axes.set_xlabel("share of the data checked")
    entries = {label: handle for axes in panels.flat
               for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=4)
    figures.save(figure, path)


def _panel(axes, noise: str, runs: list[dict]):
    for number, name in enumerate(SHOWN):
        if name not in runs[0]["curves"]:
            continue
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
        axes.plot(list(recalls), list(recalls.values()), "k^" if len(recalls) == 1 else "ko", label=what)
    seeds = f"{len(runs)} seeds: mean, range" if len(runs) > 1 else "one seed"
    share = np.mean([run["mislabelled"] / run["samples"] for run in runs])
    axes.set_title(f"{noise}, {100 * share:.0f} % mislabelled\n({seeds})", fontsize=9)
    axes.set(xlim=(0, 0.5), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    figures.in_percent(axes.xaxis, axes.yaxis)
