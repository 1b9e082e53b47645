"""The step schedule with warm-up of NNabla's TracIn example, for a run of any length."""

# In 270ths of the run: the original example has 270 epochs.
WARM_UP = 15
STEPS = (90, 180, 240)
WHOLE = 270
REFERENCE_BATCH_SIZE = 500


def learning_rate(base: float, batch_size: int, iteration: int, iterations: int) -> float:
    """The learning rate of one update.

    Linear warm-up over the first 15/270 of the run, then division by 10 at 90/270, 180/270 and
    240/270 of it.

    Args:
        base: the rate at batch 500; it scales with the batch (Goyal et al. 2017, arXiv:1706.02677).
        batch_size: samples per update.
        iteration: updates done so far, 0 .. iterations - 1.
        iterations: updates in the whole run.
    """
    position = WHOLE * iteration
    warm_up = min(1.0, WHOLE * (iteration + 1) / (WARM_UP * iterations))
    decay = 10.0 ** -sum(position >= step * iterations for step in STEPS)
    return base * batch_size / REFERENCE_BATCH_SIZE * warm_up * decay
