"""The figures of the analysis, as PNG and SVG.

They are 4.4 inches wide with text of at least 8 points, to be read at the 440 pixels of the README.
"""
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator
from sklearn.isotonic import isotonic_regression

from utils.files import whole_file
from utils.review.detection import PERCENTAGES, recall_curve
from utils.review.rankings import RANKINGS

# Text is drawn as paths: SVGs look alike everywhere, and untrusted names never become markup.
STYLE = {"font.family": "DejaVu Sans", "font.size": 9, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5,
         "axes.spines.top": False, "axes.spines.right": False, "axes.formatter.use_mathtext": False,
         "legend.frameon": False, "legend.fontsize": 8.5, "legend.handlelength": 1.6,
         "figure.dpi": 300, "savefig.dpi": "figure", "svg.fonttype": "path", "svg.hashsalt": "figures"}
# The colours of Okabe and Ito but for yellow, which is hard to see on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", (0, (5, 1)), (0, (1, 0.8)), (0, (4, 1, 1, 1)), (0, (2, 1)), (0, (6, 1, 1, 1, 1, 1)),
          (0, (8, 2)), (0, (1, 2)))
CORRECT, WRONG, GREY = COLOURS[0], COLOURS[1], "#707070"
# Scores span many orders of magnitude: those below this share of the largest are drawn as equal.
SMALLEST_SHARE = 1e-8
MOST_POINTS = 1000  # of a curve
LEADER = 24  # points
BEHIND_TEXT = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.5}
MOST_CLASSES, LONGEST_NAME = 40, 20


def save(figure: Figure, path: Path):
    """Write `figure` as the PNG `path` and as an SVG beside it: both or neither.

    Raises:
        RunError: a file cannot be written.
    """
    with whole_file(path) as png, whole_file(path.with_suffix(".svg")) as svg:
        figure.savefig(png)
        figure.set_layout_engine("none")  # the SVG's is the same, and takes time
        figure.savefig(svg, metadata={"Date": None})


def remove(folder: Path, pattern: str):
    """Remove the PNGs of an earlier analysis that match `pattern`, and the SVGs beside them."""
    for suffix in (".png", ".svg"):
        for old in folder.glob(str(Path(pattern).with_suffix(suffix))):
            old.unlink()


def line_style(number: int) -> dict[str, Any]:
    """The colour and dashes of curve `number`, from 0: no two of the first 56 have both in common."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}


def in_percent(*axes: Axis, ticks: int | None = 6):
    """Label axes of shares in percent, with so many ticks or fewer; None leaves them where they are."""
    for axis in axes:
        if ticks:
            axis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(lambda share, _place: f"{100 * share:.3g} %")


@matplotlib.rc_context(STYLE)
def score_distribution(path: Path, score: np.ndarray, mislabelled: np.ndarray | None, name: str):
    """Histogram of the scores of correctly and of wrongly labelled samples.

    Args:
        path: PNG file to write, and the SVG beside it.
        score: float (N,); higher is more suspicious.
        mislabelled: bool (N,), or None for one distribution of all samples.
        name: the ranking's, in `RANKINGS`.
    """
    largest = float(score.max())
    # Where few scores dwarf the others, a linear scale would show the others as one bar.  Counts, which
    # may be zero, do not differ as much.
    logarithmic = score.min() >= 0 and largest / 10 > np.median(score) and (score % 1).any()
    values = np.log10(np.maximum(score, largest * SMALLEST_SHARE)) if logarithmic else score
    low, high = float(values.min()), float(values.max())
    margin = max((high - low) * 0.02, 0.05 if logarithmic else abs(high) * 0.05 or 0.05)
    edges = np.linspace(low - margin, high + margin, int(np.clip(2 * np.cbrt(len(score)), 10, 60)) + 1)
    groups = [("all samples", np.full(len(score), True), CORRECT, "-")]
    if mislabelled is not None:
        groups = [("correctly labelled", ~mislabelled, CORRECT, "-"),
                  ("wrongly labelled", mislabelled, WRONG, "--")]
    figure = Figure(figsize=(4.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    places = 10**edges if logarithmic else edges
    for label, members, colour, dashes in groups:
        if members.any():
            shares = np.histogram(values[members], edges)[0] / members.sum()
            axes.stairs(shares, places, fill=True, color=colour, alpha=0.25)
            axes.stairs(shares, places, color=colour, linestyle=dashes, linewidth=1.5,
                        label=f"{label} ({members.sum():,})")
    scale = "log" if logarithmic else "linear"
    axes.set(xscale=scale, xlim=(places[0], places[-1]), ylabel="share of the group",
             xlabel=f"{name} ({scale} scale), more suspicious →")
    in_percent(axes.yaxis)
    figure.legend(loc="outside upper center", ncols=2)
    figure.supxlabel(fill(RANKINGS[name].description, 72), fontsize=8, color=GREY)
    save(figure, path)


def spread(values: np.ndarray, distance: float, low: float, high: float) -> np.ndarray:
    """The places nearest to `values`, in their order, `distance` apart and from `low` to `high`.

    Args:
        values: float (N,); the first of equal values gets the highest place.
    """
    order = np.argsort(-values, kind="stable")[::-1]
    steps = np.arange(len(values)) * distance
    places = np.empty(len(values))
    places[order] = steps + isotonic_regression(
        values[order] - steps, y_min=low, y_max=max(low, high - steps[-1]))
    return places


def _label_ends(figure: Figure, axes: Axes, labels: list[str], ends: np.ndarray,
                styles: list[dict[str, Any]]):
    """Name the curves to the right of `axes`, in the upper part, each with a line to its end.

    The layout of the figure is fixed from then on.
    """
    places, transform = spread(ends, 0.066, 0.36, 1), axes.get_yaxis_transform()
    for label, place, style in zip(labels, places, styles, strict=True):
        axes.annotate(label, (1, place), xytext=(LEADER + 3, 0), xycoords=transform, va="center",
                      textcoords="offset points", fontsize=8.5,
                      fontweight="bold" if style is styles[0] else "normal")
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    box = axes.get_position()
    width = min(box.x1, 0.68) - box.x0  # short labels, too, leave room for the small axes
    axes.set_position((box.x0, box.y0, width, box.height))
    leader = LEADER / (72 * figure.get_figwidth() * width)
    for end, place, style in zip(ends, places, styles, strict=True):
        axes.plot([1, 1 + leader * 0.4, 1 + leader], [end, place, place], transform=transform,
                  clip_on=False, **style)


def visible(last: int) -> np.ndarray:
    """The places of a recall curve, from 0 to `last`, that can be told apart, with the percentages."""
    marked = last * np.array(PERCENTAGES) // 100
    return np.unique(np.append(np.linspace(0, last, MOST_POINTS).round().astype(int), marked))


def _draw_curves(axes: Axes, kept: np.ndarray, curves: list[np.ndarray], styles: list[dict[str, Any]]):
    """Draw recall curves, of which the places `kept` are `visible`, and the random order in percent."""
    last = kept[-1]
    for curve, style in zip(curves, styles, strict=False):
        axes.plot(kept / last, curve, drawstyle="steps-post" if last < MOST_POINTS else "default",
                  **style)
    axes.plot([0, 1], [0, 1], **styles[-1])
    in_percent(axes.xaxis, axes.yaxis, ticks=None)


@matplotlib.rc_context(STYLE)
def score_curve(path: Path, scores: dict[str, np.ndarray], mislabelled: np.ndarray):
    """Share of the mislabelled samples found against the share of the data checked.

    The first 30 % are drawn large, since people check those; the whole is drawn small.

    Args:
        path: PNG file to write, and the SVG beside it.
        scores: by name, float (N,); higher is more suspicious.  The first is highlighted.
        mislabelled: bool (N,), true for at least one sample.
    """
    ideal, kept = mislabelled.astype(float), visible(len(mislabelled))
    curves = [recall_curve(score, mislabelled)[kept] for score in (*scores.values(), ideal)]
    styles = [{**line_style(number), "linewidth": 1.3, "zorder": 2.5} for number in range(len(scores))]
    styles[0] |= {"linewidth": 2.2, "zorder": 3}
    styles += [{"color": GREY, "linestyle": dashes, "linewidth": 1} for dashes in ("--", ":")]
    figure = Figure(figsize=(4.4, 3.4), layout="constrained")
    axes, marked = figure.add_subplot(), np.array(PERCENTAGES) / 100
    axes.set(xlim=(0, marked[-1]), xticks=[0, *marked], ylim=(0, 1.02), yticks=np.arange(6) / 5,
             xlabel="share of the data checked", ylabel="share of the mislabelled found")
    axes.grid(alpha=0.3)
    _draw_curves(axes, kept, curves, styles)
    found = np.array(curves)[:, np.searchsorted(kept, len(mislabelled) * np.array(PERCENTAGES) // 100)]
    ends = np.append(found[:, -1], marked[-1])
    labels = [f"{name} {100 * end:.1f} %" for name, end in zip(scores, ends, strict=False)]
    _label_ends(figure, axes, [*labels, "ideal", "random order"], ends, styles)
    axes.plot(marked, found[0], "o", color=COLOURS[0], zorder=4, clip_on=False)
    for share, recall in zip(marked[:-1], found[0], strict=False):
        axes.annotate(f"{100 * recall:.1f} %", (share, recall), xytext=(5, -11 if recall > 0.1 else 5),
                      textcoords="offset points", color=COLOURS[0], fontweight="bold", zorder=5,
                      bbox=BEHIND_TEXT)
    box = axes.get_position()
    whole = figure.add_axes((box.x1 + 0.08, box.y0, 0.8 - box.x1, box.height * 0.24))  # below the labels
    whole.set(xlim=(0, 1), xticks=[0, 1], ylim=(0, 1.02), yticks=[0, 1])
    whole.yaxis.tick_right()
    whole.spines[["left", "right"]].set_visible([False, True])
    whole.axvspan(0, marked[-1], color=GREY, alpha=0.15, linewidth=0)
    _draw_curves(whole, kept, curves, styles)
    save(figure, path)


def _drawable(name: str, number: int) -> str:
    """The name of class `number`; with the number where it is cut or the font lacks a character."""
    font = get_font(findfont(FontProperties()))
    drawn = "".join(letter if letter.isprintable() and font.get_char_index(ord(letter)) else "□"
                    for letter in name)
    short = drawn if len(drawn) <= LONGEST_NAME else drawn[:LONGEST_NAME - 1] + "…"
    return short if short == name else f"{number}: {short}"


@matplotlib.rc_context(STYLE)
def top_classes(path: Path, epoch: int, names: list[str], counts: dict[str, np.ndarray],
                totals: np.ndarray):
    """Bars: the share of each class that is in the most suspicious tenth at one checkpoint.

    Args:
        path: PNG file to write, and the SVG beside it.
        epoch: the checkpoint's.
        names: the C class names.
        counts: label of the bars -> integers (C,), the samples in that tenth; stacked.
        totals: integers (C,), all samples of the class.
    """
    in_tenth = np.sum(list(counts.values()), axis=0)
    first = np.argsort(-in_tenth / np.maximum(totals, 1), kind="stable")[:MOST_CLASSES]
    places, left = np.arange(len(first)), np.zeros(len(first))
    figure = Figure(figsize=(4.4, 1.3 + 0.2 * len(first)), layout="constrained")
    axes = figure.add_subplot(ylim=(len(first) - 0.4, -0.6))
    for (label, values), colour in zip(counts.items(), (WRONG, COLOURS[5])[-len(counts):], strict=True):
        width = values[first] / np.maximum(totals[first], 1)
        axes.barh(places, width, left=left, color=colour, label=label)
        left += width
    for place, end, number in zip(places, left, first, strict=True):
        axes.annotate(f"{in_tenth[number]:,} of {totals[number]:,}", (end, place), xytext=(3, 0),
                      textcoords="offset points", va="center", fontsize=8,
                      bbox=BEHIND_TEXT)
    mean = in_tenth.sum() / totals.sum()
    axes.axvline(mean, color="black", linestyle=":", linewidth=1)
    axes.annotate("all classes", (mean, 1), xycoords=axes.get_xaxis_transform(), ha="center",
                  va="bottom", fontsize=8)
    axes.set_yticks(places, [_drawable(names[number], number) for number in first], parse_math=False)
    axes.set_xlim(0, max(mean, left.max()) * 1.3)
    in_percent(axes.xaxis)
    shown = f"\n(the first {len(first)} of the {len(names)} classes)" if len(first) < len(names) else ""
    figure.supxlabel(f"share of the class in the top tenth of self-influence at epoch {epoch}{shown}",
                     fontsize=9)
    figure.legend(loc="outside upper center", ncols=2)
    save(figure, path)
