"""The results of the analysis in words and in ``metrics.json``."""
from pathlib import Path

from tqdm import tqdm

from utils.review import errors_page
from utils.review.detection import PERCENTAGES, bootstrap_intervals, detection_metrics, rank
from utils.review.estimate import Estimate, lacks
from utils.review.run import Run, agreement

DISTRIBUTION, CURVE, METRICS = "score_distribution.png", "score_curve.png", "metrics.json"
SUSPECTS, REVIEW, DROP, RELABEL = "suspects.csv", "review.html", "drop.csv", "relabel.csv"


def measure(run: Run, estimated: Estimate | None) -> dict:
    """The content of ``metrics.json``: counts, and metrics of all rankings with 95 % intervals."""
    mislabelled, measured = run.mislabelled, {}
    if mislabelled is not None and mislabelled.any() and not mislabelled.all():
        for name, score in tqdm(run.rankings.items(), "metrics", leave=False, disable=None):
            order = rank(score)  # once, as what is in order is quickly put in order again
            ranked, wrong = score[order], mislabelled[order]
            intervals = bootstrap_intervals(ranked, wrong)
            measured[name] = {**detection_metrics(ranked, wrong),
                              **{f"{metric}_interval": ends for metric, ends in intervals.items()}}
    return {"samples": len(run.score),
            "ranked_by": run.rank_by,
            "reason": run.reason,
            "agreement": agreement(run),
            "mislabelled": None if mislabelled is None else int(mislabelled.sum()),
            "estimated_label_issues": estimated and estimated.likely,
            "estimated_range": estimated and [estimated.least, estimated.most],
            "scores": measured}


def print_report(output: Path, run: Run, metrics: dict, estimated: Estimate | None):
    """Print the metrics, and where the results are."""
    samples, mislabelled = metrics["samples"], metrics["mislabelled"]
    ranked = f"ranked by {run.rank_by}{run.reason and f' ({run.reason})'}"
    if metrics["scores"]:
        print(f"{samples} samples, {mislabelled} mislabelled, {ranked}")
        print_metrics(metrics["scores"], run.rank_by)
    else:
        kind = "true labels unknown" if mislabelled is None else f"{mislabelled or 'none'} mislabelled"
        print(f"{samples} samples, {kind}, {ranked}; no metrics and no curve")
    drawn = [DISTRIBUTION, CURVE] if metrics["scores"] else [DISTRIBUTION]
    print("figures: " + ", ".join(str(output / name) for name in drawn))
    print(f"suspects, most suspicious first: {output / SUSPECTS}")
    agree = f"the networks agree with {100 * metrics['agreement']:.1f} % of the labels"
    if estimated:
        print(f"estimated number of wrong labels: {estimated} of {samples}; {agree}")
    else:
        print(f"{agree}; an estimate of the number of wrong labels needs "
              f"{lacks(run.out_of_fold, run.dataset.labels)}")
    if (output / REVIEW).exists():
        print(f"to review them, open in a browser: {output / REVIEW}")
    if (output / errors_page.PAGE).exists():
        print("explained test images, with the training images that oppose their labels: "
              f"{output / errors_page.PAGE}, as a table {output / errors_page.TABLE}")


def print_metrics(metrics: dict[str, dict], rank_by: str):
    """Print the metrics of one ranking in words and those of all rankings in a table."""
    chosen = metrics[rank_by]
    for percentage in PERCENTAGES:
        print(f"checking {percentage} % of the samples finds {chosen[f'recall_at_{percentage}']:.3f} of "
              "the mislabelled ones")
    print(f"AUROC {chosen['auroc']:.3f}, average precision {chosen['average_precision']:.3f}")
    print(f"\n{'found at':16}" + "".join(f"{f'{percentage} %':>7}" for percentage in PERCENTAGES)
          + f"{'AUROC':>8}")
    for name, values in metrics.items():
        recalls = "".join(f"{values[f'recall_at_{percentage}']:7.3f}" for percentage in PERCENTAGES)
        print(f"{name:16}{recalls}{values['auroc']:8.3f}")
    print()
