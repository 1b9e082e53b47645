"""The estimated number of wrong labels, from probabilities that the labels had no part in."""
from dataclasses import dataclass

import numpy as np

# What the estimate is worth, and where: tests/benchmarks/README.md, "How many labels are wrong".
FACTOR = 1.6
# Where no label is wrong, up to this share is counted.
FLOOR = 0.04
LEAST_MOST = 0.01  # share of the samples that the upper end is at least
ENOUGH_AGREEMENT, ENOUGH_PER_CLASS, MOST_CLASSES = 0.6, 100, 20
PRIOR = 10.0
# Probabilities that are enough to fit to; of larger sets, samples are drawn.
LARGEST = 1_000_000
ITERATIONS, TOLERANCE = 500, 1e-5
SMALLEST = 1e-12  # a probability, for its logarithm


@dataclass(frozen=True)
class Estimate:
    """The most likely number of wrong labels, and what it probably lies between."""

    likely: int
    least: int
    most: int

    def __str__(self) -> str:
        return f"about {self.likely} (probably {self.least} to {self.most})"


def estimate(probability: np.ndarray | None, labels: np.ndarray) -> Estimate | None:
    """How many labels are wrong, or None where that cannot be said honestly.

    Networks that were trained on a sample agree with its label, wrong or not, once they have memorized
    it, and know too little before: their probabilities give no number.

    Args:
        probability: of each class, float (N, C), by networks that were trained without the sample; None
            if there are none.
        labels: the given ones, integers (N, 1).
    """
    if probability is None or lacks(probability, labels):
        return None
    samples, wrong = len(labels), count_wrong_labels(probability, labels)
    return Estimate(round(wrong), round(wrong / FACTOR if wrong >= FLOOR * samples else 0),
                    min(samples, round(max(wrong * FACTOR, LEAST_MOST * samples))))


def lacks(probability: np.ndarray | None, labels: np.ndarray) -> str:
    """What `estimate` needs and lacks, its arguments, in words; empty if nothing."""
    if probability is None:
        return "--backbone"
    samples, classes = probability.shape
    if classes > MOST_CLASSES:
        return f"at most {MOST_CLASSES} classes, not {classes}"
    if samples < ENOUGH_PER_CLASS * classes:
        return f"{ENOUGH_PER_CLASS} images per class, not {samples / classes:.3g}"
    # Averaged over the classes: networks that know nothing agree with most labels of one large class.
    given, agree = labels[:, 0], probability.argmax(axis=1) == labels[:, 0]
    agreement = np.mean([agree[given == label].mean() for label in np.unique(given)])
    if agreement < ENOUGH_AGREEMENT:
        return (f"an agreement of {ENOUGH_AGREEMENT:.0%}, averaged over the classes, not "
                f"{agreement:.1%}")
    return ""


def count_wrong_labels(probability: np.ndarray, labels: np.ndarray) -> float:
    r"""The expected number of wrong labels under a model of how they came to be.

    A sample's true class i has the probability :math:`q_i \propto p_i^\beta`, that of the network at
    another temperature (Guo et al. 2017, arXiv:1706.04599), and its label is j with the probability
    :math:`\sum_i q_i T_{ij}` (the transition matrix of Patrini et al. 2017, arXiv:1609.03683).
    :math:`\beta` and :math:`T` are fitted to the labels by expectation maximization (Dawid and Skene
    1979), :math:`T` with a prior of ten samples per class that are labelled right.  The result is the
    sum over the samples of the probability that the true class is not the label.

    Confusion that the network is unsure about explains a label that differs, certainty makes it wrong.
    So noise that follows the network's doubts is underestimated.  With many classes or few samples per
    class, :math:`T` has enough parameters to explain some doubts as noise, and the number is too high.

    Args:
        probability: of each class, float (N, C), by networks that were trained without the sample.
        labels: the given ones, integers (N, 1).
    """
    samples, classes = probability.shape
    fitted = min(samples, LARGEST // classes)
    # At random: evenly spaced ones could lack whole classes of a set in a periodic order.
    chosen = np.random.default_rng(0).choice(samples, fitted, replace=False)
    chosen = chosen[np.argsort(labels[chosen, 0], kind="stable")]
    given, logs = labels[chosen, 0], np.log(probability[chosen].astype(np.float64) + SMALLEST)
    present, starts = np.unique(given, return_index=True)
    transition = np.where(np.eye(classes, dtype=bool), 0.9, 0.1 / max(classes - 1, 1))
    beta, wrong = 1.0, np.inf
    for _ in range(ITERATIONS):
        prior = _softmax(beta * logs)
        posterior = prior * transition.T[given]
        posterior /= posterior.sum(axis=1, keepdims=True)
        counts = np.zeros((classes, classes))
        counts[:, present] = np.add.reduceat(posterior, starts).T
        before, wrong = wrong, 1 - np.trace(counts) / fitted
        counts += PRIOR * np.eye(classes)
        transition = counts / counts.sum(axis=1, keepdims=True)
        # One step of Newton's method for beta.
        mean = (prior * logs).sum(axis=1)
        slope = ((posterior * logs).sum(axis=1) - mean).sum()
        curvature = ((prior * logs**2).sum(axis=1) - mean**2).sum()
        beta = float(np.clip(beta + slope / max(curvature, SMALLEST), 0.3, 20))
        if abs(wrong - before) < TOLERANCE * max(wrong, 1e-4):
            break
    return float(wrong * samples)


def _softmax(logits: np.ndarray) -> np.ndarray:
    result = np.exp(logits - logits.max(axis=1, keepdims=True))
    result /= result.sum(axis=1, keepdims=True)
    return result
