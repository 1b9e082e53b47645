"""How well a ranking finds the mislabelled samples."""
import numpy as np
from sklearn.metrics import auc, average_precision_score, roc_curve

PERCENTAGES = (10, 20, 30)
METRICS = (*(f"recall_at_{percentage}" for percentage in PERCENTAGES), "recall_at_mislabelled", "auroc",
           "average_precision")
BINS = 200  # that the samples, and that the mislabelled ones, are resampled in; a multiple of 10


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
    curve = recall_curve(score, mislabelled)
    places = [*(len(score) * percentage // 100 for percentage in PERCENTAGES), mislabelled.sum()]
    false, true, _ = roc_curve(mislabelled, score)  # roc_auc_score also sorts them, to know their kind
    values = [*curve[places], auc(false, true), average_precision_score(mislabelled, score)]
    return dict(zip(METRICS, map(float, values), strict=True))


def bootstrap_intervals(score: np.ndarray, mislabelled: np.ndarray,
                        resamples: int = 1000) -> dict[str, list[float]]:
    """95 % percentile bootstrap intervals of the metrics (Efron 1979).

    Samples that are neighbours in the ranking are drawn together, as one of at most some hundred bins
    (see `_cut`): how often a resample has the samples of a bin is multinomial, whichever they are.  A
    bin of one sample is exact.  In a larger one, the mislabelled samples are taken to be as they are in
    the data: at the same share of its samples, of its pairs and of its places.

    Args:
        score: float (N,); higher is more suspicious.
        mislabelled: bool (N,), true for some samples and false for others.
        resamples: number of resamples.

    Returns:
        The low and the high end for each metric of `detection_metrics`.
    """
    order = rank(score)
    score, wrong = score[order], mislabelled[order]
    tied = np.flatnonzero(np.append(score[1:] != score[:-1], True)) + 1  # the end of each group of ties
    ends = _cut(wrong, tied)
    drawn = _draw(np.stack([_sums(wrong, ends), _sums(~wrong, ends)]), resamples)
    recalls = _recalls(drawn)
    blocks = np.isin(ends, tied)  # those that end between two scores
    found, passed = np.cumsum(drawn, axis=2)[:, :, blocks]
    values = np.stack([*recalls, *_areas(found, passed, *_inside(wrong, tied, ends[blocks]))])
    return dict(zip(METRICS, np.nanquantile(values, [0.025, 0.975], axis=1).T.tolist(), strict=True))


def _cut(wrong: np.ndarray, tied: np.ndarray) -> np.ndarray:
    """The ends of the bins that samples are resampled in, integers (B,).

    There are cuts around some samples, and around all samples with the scores of these: around every
    sample if there are at most `BINS`, and around every mislabelled one if there are at most `BINS`.

    Args:
        wrong: bool (N,) in ranked order.
        tied: the end of each group of equal scores.
    """
    found, places = np.cumsum(wrong), np.arange(1, len(wrong) + 1)
    chosen = np.concatenate([np.flatnonzero(np.diff(BINS * counted // counted[-1], prepend=0))
                             for counted in (found, places)])
    groups = np.searchsorted(tied, chosen, side="right")
    return np.setdiff1d([chosen, chosen + 1, tied[groups], np.append(0, tied)[groups]], 0)


def _sums(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    return np.diff(np.cumsum(values)[ends - 1], prepend=0)


def _draw(counts: np.ndarray, resamples: int) -> np.ndarray:
    """The numbers of samples (2, R, B) that resamples have where the data have `counts`, (2, B)."""
    cells, total = counts.ravel(), counts.sum()
    there = np.flatnonzero(cells)
    drawn = np.zeros((resamples, len(cells)), int)
    drawn[:, there] = np.random.default_rng(0).multinomial(total, cells[there] / total, resamples)
    return drawn.reshape(resamples, *counts.shape).swapaxes(0, 1)


def _recalls(drawn: np.ndarray) -> list[np.ndarray]:
    """The recalls (R,) among `detection_metrics` of resamples (2, R, B)."""
    found, checked = np.cumsum(drawn[0], axis=1), np.cumsum(drawn.sum(axis=0), axis=1)
    rows, total = np.arange(len(found)), checked[0, -1]
    recalls = []
    for limit in [*(np.full(len(rows), total * percentage // 100) for percentage in PERCENTAGES),
                  found[:, -1]]:
        at = rows, (checked < limit[:, None]).sum(axis=1)  # the bins where the limit is
        with np.errstate(invalid="ignore"):  # an empty bin, or no mislabelled sample
            share = np.nan_to_num(drawn[0][at] / drawn.sum(axis=0)[at])
            recalls.append((found[at] - (checked[at] - limit) * share) / found[:, -1])
    return recalls


def _inside(wrong: np.ndarray, tied: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, ...]:
    """How the mislabelled samples of each block are placed among the samples of the block.

    Args:
        wrong: bool (N,) in ranked order.
        tied: the end of each group of equal scores.
        ends: the end of each block, each one of `tied`.

    Returns:
        Three arrays (B,) of shares: of the pairs of a mislabelled and another sample, those in the right
        order; and, in the mean over the mislabelled samples, of the mislabelled and of the other ones,
        those that are checked when one is found.
    """
    of = np.searchsorted(ends, tied)  # the block of each group
    found, new = np.cumsum(wrong)[tied - 1], _sums(wrong, tied)
    passed, right = tied - found, np.diff(tied, prepend=0) - new

    def share(values: np.ndarray, most: np.ndarray) -> np.ndarray:
        return np.bincount(of, new * values) / np.maximum(most, 1)

    wrongs = _sums(wrong, ends)
    rights = np.diff(ends, prepend=0) - wrongs
    before = np.cumsum(rights) - rights
    return (share((before + rights)[of] - passed + right / 2, wrongs * rights),
            share(found - (np.cumsum(wrongs) - wrongs)[of], wrongs**2),
            share(passed - before[of], wrongs * rights))


def _areas(found: np.ndarray, passed: np.ndarray, pairs: np.ndarray, wrongs: np.ndarray,
           rights: np.ndarray) -> list[np.ndarray]:
    """AUROC and average precision (R,) of resamples.

    Args:
        found, passed: mislabelled and other samples up to the end of each block, integers (R, B).
        pairs, wrongs, rights: from `_inside`.
    """
    new, more = (np.diff(counts, axis=1, prepend=0) for counts in (found, passed))
    right, other = found - (1 - wrongs) * new, passed - (1 - rights) * more
    with np.errstate(invalid="ignore"):  # a resample may lack either kind
        return [(new * (passed[:, -1:] - passed + pairs * more)).sum(axis=1)
                / (found[:, -1] * passed[:, -1]),
                (new * np.nan_to_num(right / (right + other))).sum(axis=1) / found[:, -1]]
