r"""Scores to rank by, made of what the checkpoints and the training itself say of every sample.

All are higher where a label is more suspicious.  Of the checkpoints :math:`w_1 \dots w_K`, with the
learning rates :math:`\eta_k`, the gradient :math:`g_k`, the softmax :math:`p_k` and the error
:math:`e_k = p_k - \mathrm{onehot}(y)`:

==================  ================================================================================
tracin              :math:`\sum_k \lVert g_k \rVert^2`, as in NNabla's example
tracin_weighted     :math:`\sum_k \eta_k \lVert g_k \rVert^2`, TracInCP (Pruthi et al. 2020, eq. 3)
tracin_norms        :math:`\sum_k \lVert g_k \rVert`, in which no checkpoint drowns the others
tracin_late         tracin of the second half of the checkpoints
loss                mean cross entropy over the checkpoints
margin              mean lead of the largest other logit over that of the given label
error_norm          mean :math:`\lVert e_k \rVert`: EL2N (Paul et al. 2021, arXiv:2107.07075), but
                    over the checkpoints of one training, not early in several
self_confidence     1 less the mean probability of the given label (Northcutt et al. 2021,
                    arXiv:1911.00068, as cleanlab ranks), but by networks that were trained on it
aum                 margin, averaged over all epochs of training instead: area under the margin
                    (Pleiss et al. 2020, arXiv:2001.10528)
aum_late            aum of the second half of the epochs
forgetting          how often training forgot the given label once learned; more than all that
                    where it never learned it (Toneva et al. 2019, arXiv:1812.05159)
random              a random order
==================  ================================================================================
"""
import numpy as np

from utils.tracin.scores import PerCheckpoint
from utils.training.dynamics import TrainingDynamics

# Those that the figure shows beside TracIn.
BASELINES = ("loss", "margin", "error_norm", "self_confidence", "aum", "forgetting")


def rankings(total: np.ndarray, per_checkpoint: PerCheckpoint, labels: np.ndarray,
             dynamics: TrainingDynamics | None) -> dict[str, np.ndarray]:
    """All scores by name, float (N,) each; the module's docstring says what they are.

    Args:
        total: self-influence summed over the checkpoints, (N,).
        per_checkpoint: of the same run.
        labels: those trained on, integers (N, 1).
        dynamics: of the same run; without it, or where it has gaps, there is no aum and no forgetting.
    """
    influence = per_checkpoint.influence
    given = np.take_along_axis(per_checkpoint.probability, labels, axis=1)[:, 0]
    scores = {"tracin": total}
    if np.isfinite(per_checkpoint.learning_rate).all():  # checkpoints of elsewhere do not tell it
        scores["tracin_weighted"] = influence @ per_checkpoint.learning_rate
    scores |= {
        "tracin_norms": np.sqrt(influence).sum(axis=1),
        "tracin_late": influence[:, influence.shape[1] // 2:].sum(axis=1),
        "loss": per_checkpoint.loss.mean(axis=1),
        "margin": -per_checkpoint.margin.mean(axis=1),
        "error_norm": per_checkpoint.error_norm.mean(axis=1),
        "self_confidence": 1 - given}
    if dynamics is not None and np.isfinite(dynamics.margin).all():
        margin = -dynamics.margin.astype(np.float64)
        scores["aum"] = margin.mean(axis=1)
        scores["aum_late"] = margin[:, margin.shape[1] // 2:].mean(axis=1)
        scores["forgetting"] = forgetting(dynamics.correct)
    scores["random"] = np.random.default_rng(0).permutation(len(total)).astype(float)
    return scores


def forgetting(correct: np.ndarray) -> np.ndarray:
    """Forgetting events, float (N,), of `correct`, bool (N, E); E where a sample was never right."""
    events = (correct[:, :-1] & ~correct[:, 1:]).sum(axis=1)
    return np.where(correct.any(axis=1), events, correct.shape[1]).astype(float)
