"""One epoch of training and one pass over the test set."""
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np

from datasets.arrays import IMAGE_SHAPE

# A power of two scales without rounding; half ranges from 6e-8 to 65504.
HALF_LOSS_SCALE = 2.0**15


@dataclass(frozen=True)
class Graph:
    """The loss of one batch: `image` (B, *IMAGE_SHAPE), `label` (B, 1), `logits` (B, C), mean `loss`."""

    image: nn.Variable
    label: nn.Variable
    logits: nn.Variable
    loss: nn.Variable


def build_graph(network: Callable, batch_size: int, test: bool) -> Graph:
    """The graph of the mean softmax cross entropy over `batch_size` samples."""
    image = nn.Variable((batch_size, *IMAGE_SHAPE))
    label = nn.Variable((batch_size, 1))
    logits, _ = network(image, test=test)
    logits.persistent = True
    loss = F.mean(F.softmax_cross_entropy(logits, label))
    return Graph(image, label, logits, loss)


def augment(image: nn.Variable, seed: int) -> nn.Variable:
    """The images (B, C, H, W), scaled by 0.8 to 1.2 and mirrored at random."""
    return F.image_augmentation(image, min_scale=0.8, max_scale=1.2, flip_lr=True, seed=seed)


def batches(order: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Slices of `order` of length `batch_size`; the last may be shorter."""
    for start in range(0, len(order), batch_size):
        yield order[start:start + batch_size]


def set_images(graph: Graph, images: np.ndarray, augmented: nn.Variable | None):
    """Set the input of `graph` to images (B, *IMAGE_SHAPE), or to their `augmented` version."""
    if augmented is None:
        graph.image.d = images
    else:
        augmented.parent.inputs[0].d = images
        augmented.forward()


class Trainer:
    """Trains and evaluates one network, whose parameters are those of the current scope.

    Args:
        network: ``network(image, test=False) -> (logits, features)``.
        augmentation: scale by 0.8 to 1.2 and mirror training images at random.
        seed: determines, with the epoch's number, the order of the samples and the augmentation.
        half: compute in half precision; the loss is scaled, because most gradients would underflow.
    """

    def __init__(self, network: Callable, augmentation: bool, seed: int, half: bool = False):
        self.network = network
        self._graphs: dict[tuple[int, bool], Graph] = {}
        self._augmentation = augmentation
        self._seed = seed
        self._loss_scale = HALF_LOSS_SCALE if half else 1.0
        self.solver = S.Momentum(momentum=0.9)
        self._graph(1, test=True)  # creates the parameters
        self.solver.set_parameters(nn.get_parameters())

    def _graph(self, batch_size: int, test: bool) -> Graph:
        key = batch_size, test
        if key not in self._graphs:
            self._graphs[key] = build_graph(self.network, *key)
        return self._graphs[key]

    def _augment(self, graph: Graph, seed: int) -> nn.Variable:
        """A variable whose value, the augmented images, is the input of `graph`."""
        augmented = augment(nn.Variable(graph.image.shape), seed)
        graph.image.data = augmented.data
        return augmented

    def train_epoch(self, epoch: int, images: np.ndarray, labels: np.ndarray, batch_size: int,
                    rate: Callable[[int], float],
                    progress: Callable[[int, float, float, float], None],
                    observe: Callable[[np.ndarray, np.ndarray], object] = lambda batch, logits: None,
                    ) -> tuple[float, float]:
        """Update the parameters once per batch; every sample is in exactly one batch.

        The order and the augmentation depend on (seed, epoch) alone: NNabla's augmentation keeps a
        random state across batches, so every epoch builds it again, and resets the loss scale.

        Args:
            epoch: epochs completed so far.
            images: uint8 (N, *IMAGE_SHAPE).
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
        seeds = rng.integers(2**31, size=2)
        total_loss = total_error = 0.0
        for batch, logits, loss, used in self._updates(order, images, labels, batch_size, rate, seeds):
            error = error_rate(logits, labels[batch])
            total_loss += loss * len(batch)
            total_error += error * len(batch)
            progress(len(batch), loss, error, used)
            observe(batch, logits)
        return total_loss / len(images), total_error / len(images)

    def _updates(self, order: np.ndarray, images: np.ndarray, labels: np.ndarray, batch_size: int,
                 rate: Callable[[int], float], seeds: np.ndarray,
                 ) -> Iterator[tuple[np.ndarray, np.ndarray, float, float]]:
        """Update the parameters once per batch of `order`; yield its indices, logits, loss and rate.

        An update is yielded after the next one has begun: while a GPU computes it, the next batch is
        read and the previous update is reported.
        """
        augmentation: dict[int, nn.Variable] = {}
        scale = self._loss_scale
        samples = ((batch, images[batch], labels[batch]) for batch in batches(order, batch_size))
        following: tuple | None = next(samples)
        finished: tuple | None = None
        update = 0
        while following:
            batch, image, label = following
            graph = self._graph(len(batch), test=False)
            graph.label.d = label
            if self._augmentation and len(batch) not in augmentation:
                seed = int(seeds[len(augmentation)])
                augmentation[len(batch)] = self._augment(graph, seed)
            set_images(graph, image, augmentation.get(len(batch)))
            self.solver.set_learning_rate(rate(update))
            scale = self._update(graph, scale)
            following = next(samples, None)
            if finished:
                yield finished
            # Reading the loss waits for the GPU.
            finished = (batch, graph.logits.d.copy(), float(graph.loss.d),
                        self.solver.learning_rate())
            update += 1
        if finished:
            yield finished

    def _update(self, graph: Graph, scale: float) -> float:
        """Update the parameters once, from the gradients of `scale` times the loss.

        If they overflow, the scale is halved until they do not, so that no sample is skipped.

        Returns:
            The scale that worked.
        """
        graph.loss.forward(clear_no_need_grad=True)
        while True:
            self.solver.zero_grad()
            graph.loss.backward(grad=scale, clear_buffer=scale == 1)
            if scale == 1 or not self.solver.check_inf_or_nan_grad():
                break
            scale /= 2
        if scale != 1:
            self.solver.scale_grad(1 / scale)
        self.solver.update()
        return scale

    def evaluate(self, images: np.ndarray, labels: np.ndarray,
                 batch_size: int) -> tuple[float, float]:
        """The mean loss and the error over all of `images`, in inference mode."""
        total_loss = total_error = 0.0
        for batch in batches(np.arange(len(images)), batch_size):
            graph = self._graph(len(batch), test=True)
            graph.image.d, graph.label.d = images[batch], labels[batch]
            graph.loss.forward(clear_buffer=True)
            total_loss += float(graph.loss.d) * len(batch)
            total_error += error_rate(graph.logits.d, labels[batch]) * len(batch)
        return total_loss / len(images), total_error / len(images)

    def diverged(self) -> str | None:
        """The name of a parameter or solver state that holds NaN or infinity; None if all are finite.

        The loss alone does not tell: ReLU turns NaN into 0.
        """
        variables = nn.get_parameters(grad_only=False)
        for name, state in self.solver.get_states().items():
            variables.update((f"{name}/{key}", value) for key, value in state.pstate.items())
        # Reading does not make the host's copy the newer one, which a GPU would have to fetch again.
        return next((name for name, variable in variables.items()
                     if not np.isfinite(variable.data.get_data("r")).all()), None)


def error_rate(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows of `logits` (B, C) whose largest entry is not at `labels` (B, 1)."""
    return float((logits.argmax(axis=1) != labels[:, 0]).mean())
