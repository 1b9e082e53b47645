r"""Rankings of the training samples: every score is higher where a label is more suspicious.

A ranking is one entry of ``RANKINGS``.  Their descriptions write ``k`` for a checkpoint, ``eta_k`` for
its learning rate, ``g_k`` for a sample's gradient there, and ``e_k`` for its error, the softmax minus
the one-hot label.
"""
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from utils.tracin.scores import PerCheckpoint
from utils.training.dynamics import TrainingDynamics

AUTO = "auto"
PART = 100_000  # samples that a ranking is computed of at a time, where it needs copies
# Where --rank_by names none and the true labels are known.
DEFAULT = "tracin"
# error_norm, which ranks as tracin_norms where all features have one length, finds most where wrong
# labels look right, aum_late where they do not.
CONSENSUS = ("error_norm", "aum_late")


@dataclass(frozen=True)
class Evidence:
    """The results of one run that rankings are computed from.

    Attributes:
        total: self-influence summed over the checkpoints, float (N,).
        per_checkpoint: the scores of the N samples at each checkpoint.
        labels: the labels trained on, integers (N, 1).
        dynamics: training statistics of the N samples in every epoch, None where incomplete.
        out_of_fold: probabilities by networks that were trained without the sample, float (N, C), None
            where there are none.
    """

    total: np.ndarray
    per_checkpoint: PerCheckpoint
    labels: np.ndarray
    dynamics: TrainingDynamics | None
    out_of_fold: np.ndarray | None


@dataclass(frozen=True)
class Ranking:
    """An entry of ``RANKINGS``.

    Attributes:
        description: one line for ``--help``.
        score: returns float (N,), or None if the run lacks what it needs.
        on_curve: whether the figure shows it whatever ``--rank_by`` says.
    """

    description: str
    score: Callable[[Evidence], np.ndarray | None]
    on_curve: bool = False


def forgetting(correct: np.ndarray) -> np.ndarray:
    """Forgetting events (Toneva et al. 2019, arXiv:1812.05159).

    Args:
        correct: whether training got the sample right, bool (N, E).

    Returns:
        float (N,): how often right turned to wrong; E for samples that were never right.
    """
    events = (correct[:, :-1] & ~correct[:, 1:]).sum(axis=1)
    return np.where(correct.any(axis=1), events, correct.shape[1]).astype(float)


def _tracin_weighted(run: Evidence) -> np.ndarray | None:
    rates = run.per_checkpoint.learning_rate  # NaN for checkpoints that train.py did not write
    return run.per_checkpoint.influence @ rates if np.isfinite(rates).all() else None


def _distrust(probability: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return 1 - np.take_along_axis(probability, labels, axis=1)[:, 0].astype(np.float64)


def _self_confidence(run: Evidence) -> np.ndarray:
    return _distrust(run.per_checkpoint.probability, run.labels)


def _out_of_fold(run: Evidence) -> np.ndarray | None:
    return None if run.out_of_fold is None else _distrust(run.out_of_fold, run.labels)


def _random(run: Evidence) -> np.ndarray:
    return np.random.default_rng(0).permutation(len(run.total))


def _from_dynamics(score: Callable[[TrainingDynamics], np.ndarray]) \
        -> Callable[[Evidence], np.ndarray | None]:
    return lambda run: None if run.dynamics is None else score(run.dynamics)


def _area(margin: np.ndarray) -> np.ndarray:
    """Minus the mean of margins (N, E) in half precision, which is too coarse to sum."""
    return _by_parts(lambda part: -part.astype(np.float64).mean(axis=1), margin)


def _by_parts(score: Callable[[np.ndarray], np.ndarray], values: np.ndarray) -> np.ndarray:
    """The score of each row of `values`, some rows at a time, to save memory."""
    return np.concatenate([score(values[start:start + PART]) for start in range(0, len(values), PART)])


def _consensus(run: Evidence) -> np.ndarray | None:
    scores = [RANKINGS[name].score(run) for name in CONSENSUS]
    return None if any(score is None for score in scores) else \
        np.mean([rankdata(score) for score in scores], axis=0) / len(run.total)


def _second_half(values: np.ndarray) -> np.ndarray:
    return values[:, values.shape[1] // 2:]


RANKINGS = {
    "tracin": Ranking("self-influence, sum_k ||g_k||^2, as in NNabla's example",
                      lambda run: run.total, on_curve=True),
    "tracin_weighted": Ranking("sum_k eta_k ||g_k||^2: TracInCP (Pruthi et al. 2020, eq. 3)",
                               _tracin_weighted),
    "tracin_norms": Ranking("sum_k ||g_k||, where no checkpoint outweighs the others",
                            lambda run: _by_parts(lambda part: np.sqrt(part).sum(axis=1),
                                                   run.per_checkpoint.influence)),
    "tracin_late": Ranking("tracin over the second half of the checkpoints",
                           lambda run: _second_half(run.per_checkpoint.influence).sum(axis=1)),
    "loss": Ranking("cross entropy, mean over the checkpoints",
                    lambda run: run.per_checkpoint.loss.mean(axis=1), on_curve=True),
    "margin": Ranking("largest other logit minus the given label's, mean over the checkpoints",
                      lambda run: -run.per_checkpoint.margin.mean(axis=1), on_curve=True),
    # Paul et al. average over several short trainings instead.
    "error_norm": Ranking("||e_k||, mean over the checkpoints: EL2N (Paul et al. 2021)",
                          lambda run: run.per_checkpoint.error_norm.mean(axis=1), on_curve=True),
    # As cleanlab ranks, but by networks that were trained on the sample.
    "self_confidence": Ranking("1 minus the given label's mean probability (Northcutt et al. 2021)",
                               _self_confidence, on_curve=True),
    "aum": Ranking("margin, mean over all epochs: area under the margin (Pleiss et al. 2020)",
                   _from_dynamics(lambda dynamics: _area(dynamics.margin)), on_curve=True),
    "aum_late": Ranking("aum over the second half of the epochs",
                        _from_dynamics(lambda dynamics: _area(_second_half(dynamics.margin)))),
    "forgetting": Ranking("number of times training forgot the given label (Toneva et al. 2019)",
                          _from_dynamics(lambda dynamics: forgetting(dynamics.correct)),
                          on_curve=True),
    "consensus": Ranking(f"mean rank by {' and '.join(CONSENSUS)}, as a share of the samples",
                         _consensus, on_curve=True),
    "out_of_fold": Ranking("self_confidence by heads trained without the sample, as cleanlab ranks",
                           _out_of_fold, on_curve=True),
    "random": Ranking("a random order, to compare with", _random),
}


# What a ranking needs beside the scores, if not training statistics of all epochs.
NEEDS = {"out_of_fold": "train.py --backbone"}


def describe_rankings() -> str:
    """A table of all rankings, one per line, for ``--help``."""
    return "rankings, to choose with --rank_by:\n" + "\n".join(
        f"  {name:17}{ranking.description}" for name, ranking in RANKINGS.items())


def rankings(total: np.ndarray, per_checkpoint: PerCheckpoint, labels: np.ndarray,
             dynamics: TrainingDynamics | None,
             out_of_fold: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The scores of all rankings that the run supports, by name, float64 (N,) each.

    The arguments are the attributes of `Evidence`; `dynamics` may have gaps (NaN).
    """
    if dynamics is not None and not np.isfinite(dynamics.margin).all():
        dynamics = None
    run = Evidence(total, per_checkpoint, labels, dynamics, out_of_fold)
    scores = {name: ranking.score(run) for name, ranking in RANKINGS.items()}
    return {name: np.asarray(score, float) for name, score in scores.items() if score is not None}


@dataclass(frozen=True)
class Choice:
    """The name of a ranking, and in words why it was chosen."""

    name: str
    reason: str


def choose_ranking(dynamics: bool) -> Choice:
    """The ranking that suits a run, by what is known without the true labels.

    tests/benchmarks/README.md, "Which ranking suits a run", has the evidence.

    Args:
        dynamics: whether the training statistics of all epochs are there.
    """
    if dynamics:
        return Choice("consensus", "close to the best ranking for every kind of wrong label tried")
    return Choice("self_confidence",
                  "consensus needs training statistics of all epochs, which the run lacks")
