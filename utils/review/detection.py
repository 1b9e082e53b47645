"""How well a ranking finds the mislabelled samples."""
import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

PERCENTAGES = (10, 20, 30)


def rank(score: np.ndarray) -> np.ndarray:
    """Indices (N,) of the samples, most suspicious first.

    Args:
        score: float (N,); higher is more suspicious.  Equal scores keep the samples' order.
    """
    return np.argsort(-score, kind="stable")


def recall_curve(score: np.ndarray, mislabelled: np.ndarray) -> np.ndarray:
    """Share (N + 1,) of the mislabelled samples among the first 0, 1, ... N of the ranking.

    Args:
        score: float (N,); higher is more suspicious.
        mislabelled: bool (N,), true for at least one sample.
    """
    found = np.cumsum(mislabelled[rank(score)])
    return np.concatenate([[0], found]) / found[-1]


def recall_at(score: np.ndarray, mislabelled: np.ndarray, percentage: int) -> float:
    """Share of the mislabelled samples among the first `percentage` % of the ranking, rounded down.

    The other arguments are those of `recall_curve`.
    """
    return float(recall_curve(score, mislabelled)[len(score) * percentage // 100])


def detection_metrics(score: np.ndarray, mislabelled: np.ndarray) -> dict[str, float]:
    """Recall at 10, 20 and 30 % and at the number of mislabelled samples, AUROC and average precision.

    Recall at the number of mislabelled samples is also the precision there.

    Args:
        score: float (N,); higher is more suspicious.
        mislabelled: bool (N,), true for some samples and false for others.
    """
    metrics = {f"recall_at_{percentage}": recall_at(score, mislabelled, percentage)
               for percentage in PERCENTAGES}
    metrics["recall_at_mislabelled"] = float(recall_curve(score, mislabelled)[mislabelled.sum()])
    metrics["auroc"] = float(roc_auc_score(mislabelled, score))
    metrics["average_precision"] = float(average_precision_score(mislabelled, score))
    return metrics


def bootstrap_intervals(scores: dict[str, np.ndarray], mislabelled: np.ndarray,
                        resamples: int = 1000) -> dict[str, dict[str, list[float]]]:
    """95 % percentile bootstrap intervals of the metrics (Efron 1979).

    Args:
        scores: by name, float (N,); higher is more suspicious.  All share the same resamples.
        mislabelled: bool (N,), true for some samples and false for others.
        resamples: number of resamples.

    Returns:
        By name, the low and the high end for each metric of `detection_metrics`.
    """
    rng, count = np.random.default_rng(0), len(mislabelled)
    orders = {name: rank(score) for name, score in scores.items()}
    wrong = {name: mislabelled[order] for name, order in orders.items()}
    # The last place of each group of equal scores.
    ends = {name: np.flatnonzero(np.diff(scores[name][order], append=np.nan) != 0)
            for name, order in orders.items()}
    values: dict[str, list] = {name: [] for name in scores}
    for _ in range(resamples):
        times = np.bincount(rng.integers(count, size=count), minlength=count)
        for name, order in orders.items():
            values[name].append(_weighted_metrics(times[order], wrong[name], ends[name]))
    names = list(detection_metrics(mislabelled.astype(float), mislabelled))
    return {name: dict(zip(names, np.nanquantile(rows, [0.025, 0.975], axis=0).T.tolist(), strict=True))
            for name, rows in values.items()}


def _weighted_metrics(times: np.ndarray, mislabelled: np.ndarray, ends: np.ndarray) -> list[float]:
    """The values of `detection_metrics` of a resample.

    Args:
        times: how often the resample has each sample, integers (N,) in ranked order.
        mislabelled: bool (N,) in ranked order.
        ends: the last place of each group of equal scores.
    """
    checked, found = np.cumsum(times), np.cumsum(times * mislabelled)
    total, wrong = checked[-1], found[-1]
    metrics = []
    for limit in [*(total * percentage // 100 for percentage in PERCENTAGES), wrong]:
        place = np.searchsorted(checked, limit)
        metrics.append(found[place] - (checked[place] - limit) * mislabelled[place])
    checked, found = checked[ends], found[ends]
    new, passed = np.diff(found, prepend=0), checked - found
    after = passed[-1] - passed + np.diff(passed, prepend=0) / 2
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample may lack either kind
        metrics = [count / wrong for count in metrics]
        metrics.append((new * after).sum() / (wrong * passed[-1]))
        metrics.append((new * np.nan_to_num(found / checked)).sum() / wrong)
    return metrics
