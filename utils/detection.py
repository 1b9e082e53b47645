"""How well a ranking of suspects finds the mislabelled samples."""
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
    """Share of the mislabelled samples found by checking the first `percentage` of the ranking.

    The number of samples checked is rounded down.  Arguments are those of `recall_curve`.
    """
    return float(recall_curve(score, mislabelled)[len(score) * percentage // 100])


def detection_metrics(score: np.ndarray, mislabelled: np.ndarray) -> dict[str, float]:
    """Recall at 10, 20 and 30 %, AUROC and average precision of a ranking.

    Args:
        score: float (N,); higher is more suspicious.
        mislabelled: bool (N,), true for some samples and false for others.
    """
    metrics = {f"recall_at_{percentage}": recall_at(score, mislabelled, percentage)
               for percentage in PERCENTAGES}
    metrics["auroc"] = float(roc_auc_score(mislabelled, score))
    metrics["average_precision"] = float(average_precision_score(mislabelled, score))
    return metrics
