import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from nnabla.ext_utils import get_extension_context

from models.registry import Network, build_network
from tests.conftest import WatchedSolver, make_dataset
from utils.training.engines import ENGINES, NnablaEngine
from utils.training.trainer import Trainer, batches, error_rate

engines = pytest.mark.parametrize("engine", sorted(ENGINES))


def make_trainer(augmentation=False, seed=0, half=False, engine="nnabla", weight_decay=0.0):
    nn.clear_parameters()
    network = build_network("resnet23", 3, 4, np.random.default_rng(0))
    return Trainer(ENGINES[engine].make(network, 1, half), augmentation, seed, weight_decay)


def train(trainer, epochs=1, batch_size=8, rate=0.01):
    dataset, seen = make_dataset(), []
    for epoch in range(epochs):
        result = trainer.train_epoch(epoch, dataset.images, dataset.labels, batch_size,
                                     lambda update: rate, lambda *update: seen.append(update))
    return result, seen


def parameters():
    return {name: value.d.copy() for name, value in nn.get_parameters(grad_only=False).items()}


def equal(first, second):
    return all(np.array_equal(first[name], second[name]) for name in first)


def test_batches_hold_every_sample_once_and_the_last_is_smaller():
    parts = list(batches(np.arange(10)[::-1], 4))
    assert [part.tolist() for part in parts] == [[9, 8, 7, 6], [5, 4, 3, 2], [1, 0]]


def trained_images(trainer_seed, epochs, images, augmentation=False):
    """The images of every update of the last epoch, in batches of 8, as they enter the network."""
    nn.clear_parameters()
    network, entered, updates = build_network("resnet23", 3, 4), [], []

    @Network
    def watched(image, test=False):
        entered.append(image)
        return network(image, test=test)

    def rate(update):
        # One graph for each size of batch; the very first variable only creates the parameters.
        size = min(8, len(images) - 8 * update)
        updates.append(next(image for image in entered[1:] if len(image.d) == size).d.copy())
        return 0.01
    trainer = Trainer(NnablaEngine(watched), augmentation, trainer_seed)
    for epoch in epochs:
        updates.clear()
        trainer.train_epoch(epoch, images, np.zeros((len(images), 1), int), 8, rate,
                            lambda *update: None)
    return updates


def test_epoch_trains_on_every_sample_once():
    images = np.arange(30, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 32, 32), np.uint8)
    updates = trained_images(0, [0], images)
    seen = np.concatenate(updates)[:, 0, 0, 0].tolist()
    assert sorted(seen) == list(range(30))
    assert seen != list(range(30))
    assert [len(update) for update in updates] == [8, 8, 8, 6]


@engines
def test_samples_are_observed_with_their_own_logits(engine):
    """A network without batch statistics that is not updated gives each sample its logits."""
    @Network
    def network(image, test=False):
        features = F.global_average_pooling(image)
        return PF.affine(features, 3), features
    dataset = make_dataset()
    trainer = Trainer(ENGINES[engine].make(network, 1, False), False, 0)
    logits, told = np.zeros((30, 3)), []
    trainer.train_epoch(0, dataset.images, dataset.labels, 8, lambda update: 0.0,
                        lambda count, loss, error, rate: told.append((count, loss)), logits.__setitem__)
    expected = dataset.images.mean(axis=(2, 3)) @ nn.get_parameters()["affine/W"].d
    np.testing.assert_allclose(logits, expected, rtol=1e-4)
    loss = np.log(np.exp(logits).sum(axis=1)) - np.take_along_axis(logits, dataset.labels, 1)[:, 0]
    assert [count for count, _ in told] == [8, 8, 8, 6]
    np.testing.assert_allclose(sum(count * loss for count, loss in told), loss.sum(), rtol=1e-4)


@engines
def test_decay_is_that_of_the_weights_alone(engine):
    """Without momentum yet, the first update takes rate times the gradient and the decay."""
    after = {}
    for decay in (0.0, 0.5):
        trainer = make_trainer(engine=engine, weight_decay=decay)
        before, dataset = parameters(), make_dataset()
        trainer.train_epoch(0, dataset.images, dataset.labels, 30, lambda update: 0.1,
                            lambda *update: None)
        after[decay] = parameters()
    weights = [name for name in before if name.endswith("/W")]
    assert len(weights) == 23
    for name, start in before.items():
        expected = after[0.0][name] - (0.1 * 0.5 * start if name in weights else 0)
        np.testing.assert_allclose(after[0.5][name], expected, atol=1e-6)


@engines
def test_order_depends_on_seed_and_epoch_alone(engine):
    first = train(make_trainer(engine=engine), 2)[0], parameters()
    second = train(make_trainer(engine=engine), 2)[0], parameters()
    other = train(make_trainer(seed=1, engine=engine), 2)[0], parameters()
    assert first[0] == second[0] and equal(first[1], second[1])
    assert not equal(first[1], other[1])


def test_augmentation_depends_on_seed_and_epoch_alone():
    def last_epoch(*epochs, seed=0):
        return np.concatenate(trained_images(seed, epochs, make_dataset().images, True))
    assert np.array_equal(last_epoch(1), last_epoch(0, 1))
    assert not np.array_equal(last_epoch(1), last_epoch(1, seed=1))
    plain = make_dataset().images
    assert not any((plain == image).all(axis=(1, 2, 3)).any() for image in last_epoch(1))


def test_augmented_images_are_scaled_and_mirrored():
    images = np.broadcast_to(np.arange(32, dtype=np.uint8) * 8, (64, 3, 32, 32))
    augmented = np.concatenate(trained_images(3, [0], images, True))
    slopes = np.diff(augmented[:, 0, 16, 8:24], axis=1).mean(axis=1) / 8
    assert (slopes > 0).any() and (slopes < 0).any()
    scales = 1 / np.abs(slopes)
    assert 0.79 < scales.min() < 0.83 and 1.12 < scales.max() < 1.21


@engines
def test_updates_are_momentum_descent_on_the_mean_cross_entropy(engine):
    """Two updates by hand: the second one moves by 0.9 of the first one's step too."""
    dataset, trainer = make_dataset(), make_trainer(engine=engine)

    def set_parameters(values):
        for name, value in nn.get_parameters(grad_only=False).items():
            value.d = values[name]

    def gradient_now():
        before = parameters()
        image, label = nn.Variable((30, 3, 32, 32)), nn.Variable((30, 1))
        image.d, label.d = dataset.images, dataset.labels
        logits, _ = trainer.engine.network(image, test=False)
        loss = F.mean(F.softmax_cross_entropy(logits, label))
        weight = nn.get_parameters()["affine/W"]
        weight.grad.zero()
        loss.forward()
        loss.backward()
        set_parameters(before)  # the forward pass has moved the running statistics
        return weight.g.copy()
    start, first_gradient = parameters(), gradient_now()
    train(trainer, 1, batch_size=30, rate=0.1)
    middle, second_gradient = parameters(), gradient_now()
    train(trainer, 1, batch_size=30, rate=0.1)
    first = middle["affine/W"] - start["affine/W"]
    second = parameters()["affine/W"] - middle["affine/W"]
    np.testing.assert_allclose(first, -0.1 * first_gradient, atol=1e-5)
    np.testing.assert_allclose(second, 0.9 * first - 0.1 * second_gradient, atol=1e-5)


@engines
def test_losses_fall_and_are_means_over_samples(engine):
    trainer = make_trainer(engine=engine)
    (first, _), seen = train(trainer, 1)
    assert [update[0] for update in seen] == [8, 8, 8, 6]
    assert first == pytest.approx(sum(count * loss for count, loss, _, _ in seen) / 30)
    (last, error), _ = train(trainer, 15)
    assert last < first
    assert 0 <= error <= 1


def linear(factor):
    """A linear network whose gradients are about as large as `factor`."""
    @Network
    def network(image, test=False):
        features = image / 255
        logits = factor * PF.affine(features, 3, name="affine", w_init=lambda shape: np.zeros(shape))
        return logits, features
    return network


def trained_in(kind, factor):
    """The weights of the linear network after four updates, in float or half."""
    nn.clear_parameters()
    with nn.context_scope(get_extension_context("cpu", type_config=kind)):
        trainer = Trainer(NnablaEngine(linear(factor), half=kind == "half"), False, 0)
        (loss, _), seen = train(trainer, rate=1e-4 / factor**2)
        assert [update[0] for update in seen] == [8, 8, 8, 6] and np.isfinite(loss)
    return parameters()["affine/affine/W"]


@pytest.mark.parametrize("factor", [1e-5, 1, 100])
def test_gradients_too_small_or_too_large_for_half_train_as_in_float(factor):
    """At the scales of 1 and 2**15, respectively, they vanish or overflow."""
    expected = trained_in("float", factor)
    np.testing.assert_allclose(trained_in("half", factor), expected, rtol=0.01,
                               atol=0.01 * np.abs(expected).max())


class NotingScales(WatchedSolver):
    """Records, for every update, the loss scale that was tried first and the one that was used."""

    def __init__(self, solver):
        super().__init__(solver)
        self.scales, self.halved, self.scale = [], 0, 1

    def check_inf_or_nan_grad(self):
        overflow = self.solver.check_inf_or_nan_grad()
        self.halved += overflow
        return overflow

    def scale_grad(self, factor):
        self.scale = 1 / factor
        self.solver.scale_grad(factor)

    def update(self):
        self.scales.append((self.scale * 2**self.halved, self.scale))
        self.halved, self.scale = 0, 1
        self.solver.update()


def test_loss_scale_is_that_of_the_batch_which_needed_the_smallest():
    nn.clear_parameters()
    with nn.context_scope(get_extension_context("cpu", type_config="half")):
        trainer = Trainer(NnablaEngine(linear(100), half=True), False, 0)
        trainer.solver = NotingScales(trainer.solver)
        train(trainer, epochs=2, rate=0)
    scales = trainer.solver.scales
    assert len(scales) == 8
    assert scales[0][1] < scales[0][0] and scales[1][0] == scales[0][1]
    assert scales[0][0] == scales[4][0] == 2**15  # each epoch begins anew
    assert all(scales[update][0] == scales[update - 1][1] for update in (1, 2, 3, 5, 6, 7))


class Overflowing(WatchedSolver):
    """Reports that gradients overflow a given number of times."""

    def __init__(self, solver, times):
        super().__init__(solver)
        self.times = times

    def check_inf_or_nan_grad(self):
        self.times -= 1
        return self.times >= 0


def test_overflow_changes_nothing_but_the_scale():
    """Batch normalization's running statistics least of all."""
    def trained(overflows):
        trainer = make_trainer(half=True)
        trainer.solver = Overflowing(trainer.solver, overflows)
        train(trainer)
        return parameters()
    assert equal(trained(0), trained(3))


def test_loss_that_is_no_number_ends_at_a_scale_of_one():
    nn.clear_parameters()
    with nn.context_scope(get_extension_context("cpu", type_config="half")):
        trainer = Trainer(NnablaEngine(linear(np.nan), half=True), False, 0)
        (loss, _), seen = train(trainer)
    assert np.isnan(loss) and len(seen) == 4


@pytest.mark.parametrize("name", ["conv1/conv/W", "conv1/bn/var", "affine/b/m"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_parameter_or_state_that_diverged_is_named(name, value):
    trainer = make_trainer()
    train(trainer)
    assert trainer.diverged() is None
    states = {f"{parameter}/{key}": variable for parameter, state in trainer.solver.get_states().items()
              for key, variable in state.pstate.items()}
    variable = {**nn.get_parameters(grad_only=False), **states}[name]
    variable.d = np.where(np.arange(variable.d.size) == variable.d.size - 1, value,
                          variable.d.reshape(-1)).reshape(variable.d.shape)
    assert trainer.diverged() == name


@engines
def test_evaluation_covers_the_whole_test_set_whatever_the_batch(engine):
    trainer, dataset = make_trainer(engine=engine), make_dataset()
    train(trainer, 2)
    whole = trainer.evaluate(dataset.images, dataset.labels, 30)
    assert trainer.evaluate(dataset.images, dataset.labels, 7) == pytest.approx(whole, rel=1e-5)
    before = parameters()
    trainer.evaluate(dataset.images, dataset.labels, 7)
    assert equal(before, parameters())


def test_error_is_the_share_of_wrong_predictions():
    logits = np.array([[1, 2, 3], [3, 2, 1], [0, 5, 0], [1, 0, 0]])
    assert error_rate(logits, np.array([[2], [0], [0], [1]])) == 0.5
