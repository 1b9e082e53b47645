"""One epoch of training and one pass over the test set."""
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np
from nnabla.ext_utils import get_extension_context

from utils.files import Rows
from utils.training.dynamics import loss_and_margin
from utils.training.engines import NnablaEngine, OnnxRuntimeEngine, Result, Update
from utils.training.parallel import Ranks


def augment(image: nn.Variable, seed: int) -> nn.Variable:
    """The images (B, C, H, W), scaled by 0.8 to 1.2 and mirrored at random, always by the CPU.

    A GPU would do it image by image, which takes a quarter of an update; the CPU does it while the GPU
    computes, and draws the same for both.
    """
    with nn.context_scope(get_extension_context("cpu")):
        return F.image_augmentation(image, min_scale=0.8, max_scale=1.2, flip_lr=True, seed=seed)


def batches(order: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Slices of `order` of length `batch_size`; the last may be shorter."""
    for start in range(0, len(order), batch_size):
        yield order[start:start + batch_size]


class Trainer:
    """Trains and evaluates the network of an engine, whose parameters are those of the current scope.

    Args:
        engine: computes the updates and the evaluation.
        augmentation: scale by 0.8 to 1.2 and mirror training images at random.
        seed: determines, with the epoch's number, the order of the samples and the augmentation.
        weight_decay: factor of the weights in their gradients; biases and normalizations have none.
        ranks: those that share every batch and every pass over the test set, after `share`; None without
            MPI.
    """

    def __init__(self, engine: NnablaEngine | OnnxRuntimeEngine, augmentation: bool, seed: int,
                 weight_decay: float = 0.0, ranks: Ranks | None = None):
        self.engine = engine
        self._augmentation = augmentation
        self._seed = seed
        self._ranks = ranks
        self.solver = S.Momentum(momentum=0.9)
        self.solver.set_parameters(nn.get_parameters())
        # Another solver, because one decays all of its parameters.
        self._weights, self._weight_decay = S.Sgd(), weight_decay
        self._weights.set_parameters({name: parameter for name, parameter in nn.get_parameters().items()
                                      if name.endswith("/W")})

    def share(self):
        """Give all ranks the parameters and the solver's state of the first one."""
        if self._ranks:
            self._ranks.broadcast(list(self._variables().values()))

    def train_epoch(self, epoch: int, images: np.ndarray | Rows, labels: np.ndarray, batch_size: int,
                    rate: Callable[[int], float],
                    progress: Callable[[int, float, float, float], None],
                    observe: Callable[[np.ndarray, np.ndarray], object] = lambda batch, logits: None,
                    ) -> tuple[float, float]:
        """Update the parameters once per batch; every sample is in exactly one batch.

        The order and the augmentation depend on (seed, epoch) alone, with ranks the augmentation on the
        rank too: NNabla's keeps a random state across batches, so every epoch builds it again.

        Args:
            epoch: epochs completed so far.
            images: (N, ...), uint8 or float32.
            labels: integers (N, 1).
            batch_size: at most N.
            rate: learning rate by the number of the update within the epoch.
            progress: called once per update, in order, perhaps while the next one runs, with the
                number of its samples, its mean loss, its error and its learning rate.
            observe: called once per update likewise, with the indices of its samples, (B,), and their
                logits, (B, C), from before it.

        Returns:
            The mean loss and the error (share of wrong predictions) over the epoch, as seen while
            training.
        """
        # Not `epoch`: (seed, 0) would repeat the stream of `seed`, which drew the label noise.
        rng = np.random.default_rng((self._seed, epoch + 1))
        order = rng.permutation(len(images))
        if self._ranks:
            rng = np.random.default_rng((self._seed, epoch + 1, self._ranks.rank + 1))
        seeds = rng.integers(2**31, size=2)
        total_loss = total_error = 0.0
        for batch, logits, loss, used in self._updates(order, images, labels, batch_size, rate, seeds):
            error = error_rate(logits, labels[batch])
            total_loss += loss * len(batch)
            total_error += error * len(batch)
            progress(len(batch), loss, error, used)
            observe(batch, logits)
        if self._ranks:
            self._agree(self._ranks)
        return total_loss / len(images), total_error / len(images)

    def _agree(self, ranks: Ranks):
        """Average the running statistics over the ranks, and check that the rest is the same."""
        ranks.average([variable for variable in nn.get_parameters(grad_only=False).values()
                       if not variable.need_grad])
        ranks.check_same(list(self._variables().values()))

    def _updates(self, order: np.ndarray, images: np.ndarray | Rows, labels: np.ndarray,
                 batch_size: int, rate: Callable[[int], float], seeds: np.ndarray,
                 ) -> Iterator[tuple[np.ndarray, np.ndarray, float, float]]:
        """Update the parameters once per batch of `order`; yield its indices, logits, loss and rate.

        An update is yielded after the next one has begun.  A thread reads and augments the batch after
        that.
        """
        begin_update = self.engine.updater(self.solver, self._decay)
        samples = self._samples(order, images, labels, batch_size, seeds)
        finished: tuple | None = None
        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(next, samples, None)
            for update in itertools.count():
                entering = following.result()
                if entering is None:
                    break
                batch, image, label = entering
                if len(image):
                    self.engine.image(len(image)).d = image
                # May overwrite `image`.  Until it ends no graph may be built here: `augment` sets the
                # context, which all threads share.
                following = pool.submit(next, samples, None)
                self.solver.set_learning_rate(rate(update))
                result = self._begin(begin_update, label, labels[batch])
                if finished:
                    yield finished
                # Waits for the GPU.
                finished = (batch, *result(), self.solver.learning_rate())
        if finished:
            yield finished

    def _begin(self, begin_update: Update, label: np.ndarray,
               labels: np.ndarray) -> Callable[[], Result]:
        """Begin an update by this rank's part, with labels `label`, of a batch with labels `labels`."""
        ranks = self._ranks
        if not ranks:
            return begin_update(label)
        result = begin_update(label, lambda gradients, logits: ranks.average_gradients(
            gradients, logits, len(labels)))

        def wait() -> Result:
            logits, _ = result()
            with np.errstate(invalid="ignore"):  # NaN and infinity are for the caller to find
                return logits, float(loss_and_margin(logits, labels)[0].mean())
        return wait

    def _samples(self, order: np.ndarray, images: np.ndarray | Rows, labels: np.ndarray,
                 batch_size: int, seeds: np.ndarray,
                 ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each batch of `order`, its indices, its images as they enter the network, their labels.

        With ranks, images and labels are those of this one's part.
        """
        augmented: dict[int, nn.Variable] = {}
        for batch in batches(order, batch_size):
            part = self._ranks.part(batch) if self._ranks else batch
            image = images[part]
            if self._augmentation and len(part):
                if len(part) not in augmented:
                    seed = int(seeds[len(augmented)])
                    augmented[len(part)] = augment(nn.Variable(image.shape), seed)
                augmented[len(part)].parent.inputs[0].d = image
                augmented[len(part)].forward()
                image = augmented[len(part)].d
            yield batch, image, labels[part]

    def _decay(self):
        """Add the decay to the gradients."""
        if self._weight_decay:
            self._weights.weight_decay(self._weight_decay)

    def evaluate(self, images: np.ndarray, labels: np.ndarray,
                 batch_size: int) -> tuple[float, float]:
        """The mean loss and the error over all of `images`, in inference mode."""
        evaluate_batch = self.engine.evaluator()
        every, ranks = list(batches(np.arange(len(images)), batch_size)), self._ranks
        sums = []
        for batch in every[ranks.rank::ranks.size] if ranks else every:
            logits, loss = evaluate_batch(images[batch], labels[batch])
            sums.append((loss * len(batch), error_rate(logits, labels[batch]) * len(batch)))
        total_loss = total_error = 0.0
        for loss, error in ranks.deal(sums) if ranks else sums:  # in the order of the batches
            total_loss += loss
            total_error += error
        return total_loss / len(images), total_error / len(images)

    def diverged(self) -> str | None:
        """The name of a parameter or solver state that holds NaN or infinity; None if all are finite.

        The loss alone does not tell: ReLU turns NaN into 0.
        """
        # Reading does not make the host's copy the newer one, which a GPU would have to fetch again.
        return next((name for name, variable in self._variables().items()
                     if not np.isfinite(variable.data.get_data("r")).all()), None)

    def _variables(self) -> dict[str, nn.Variable]:
        """The parameters and the solver's states, by name."""
        variables = nn.get_parameters(grad_only=False)
        for name, state in sorted(self.solver.get_states().items()):
            variables.update((f"{name}/{key}", value) for key, value in sorted(state.pstate.items()))
        return variables


def error_rate(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows of `logits` (B, C) whose largest entry is not at `labels` (B, 1)."""
    return float((logits.argmax(axis=1) != labels[:, 0]).mean())
