import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import nnabla.solvers as S
import numpy as np
import pytest

from models.registry import Network, build_network
from tests.conftest import make_dataset, refused
from utils.graph.functions import Unsupported
from utils.training.engines import ENGINES, OnnxRuntimeEngine, choose_engine
from utils.training.trainer import Trainer


def make_trainer(engine, augmentation=False):
    nn.clear_parameters()
    network = build_network("resnet23", 3, 4, np.random.default_rng(0))
    return Trainer(ENGINES[engine].make(network, 1, False), augmentation, 0)


@pytest.mark.parametrize("augmentation", [False, True])
def test_engines_train_on_the_same_images_in_the_same_order(augmentation):
    """The parameters do not move, so the logits of two epochs tell."""
    dataset, found = make_dataset(), {}
    for engine in ENGINES:
        trainer, losses, logits = make_trainer(engine, augmentation), [], np.zeros((2, 30, 3))
        for epoch in range(2):
            losses.append(trainer.train_epoch(
                epoch, dataset.images, dataset.labels, 8, lambda update: 0.0, lambda *update: None,
                logits[epoch].__setitem__))
        found[engine] = np.array(losses), logits
    for one, other in zip(*found.values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


def test_engines_update_alike():
    """The running statistics too, which follow the last batch, of another size."""
    dataset, found = make_dataset(), {}
    for engine in ENGINES:
        trainer = make_trainer(engine)
        start = {name: value.d.copy() for name, value in nn.get_parameters(grad_only=False).items()}
        trainer.train_epoch(0, dataset.images[:14], dataset.labels[:14], 8, lambda update: 1e-3,
                            lambda *update: None)
        found[engine] = {name: value.d - start[name]
                         for name, value in nn.get_parameters(grad_only=False).items()}
    for name, moved in found["nnabla"].items():
        # Where rounding takes an activation across a kink, the gradient jumps.
        assert np.linalg.norm(found["onnxruntime"][name] - moved) <= 0.02 * np.linalg.norm(moved), name
    assert any(name.endswith("bn/var") for name in found["nnabla"])


@pytest.mark.parametrize("name", ["conv1/conv/W", "conv1/bn/mean", "affine/b"])
def test_evaluation_is_that_of_the_parameters_as_they_are_now(name):
    dataset, found = make_dataset(), {}
    for engine in ENGINES:
        trainer = make_trainer(engine)
        before = trainer.evaluate(dataset.images, dataset.labels, 8)
        value = nn.get_parameters(grad_only=False)[name]
        value.d = value.d + np.arange(value.d.size).reshape(value.d.shape)
        found[engine] = [before, trainer.evaluate(dataset.images, dataset.labels, 8)]
    assert abs(found["nnabla"][0][0] - found["nnabla"][1][0]) > 1e-3
    np.testing.assert_allclose(found["onnxruntime"], found["nnabla"], rtol=1e-3)


def test_unsupported_network_names_its_function_and_the_other_engine():
    @Network
    def network(image, test=False):
        features = F.sin(image)
        return PF.affine(features, 3, name="affine"), features
    with refused("Sin", "--engine nnabla", error=Unsupported):
        OnnxRuntimeEngine(network)
    nn.clear_parameters()
    Trainer(ENGINES["nnabla"].make(network, 1, False), False, 0).evaluate(
        make_dataset().images, make_dataset().labels, 8)


@pytest.mark.parametrize(("context", "type_config", "default"), [
    ("cpu", "float", "onnxruntime"), ("cudnn", "float", "nnabla"), ("cudnn", "half", "nnabla")])
def test_engine_suits_the_device(context, type_config, default):
    assert choose_engine(None, context, type_config) == default
    assert choose_engine("nnabla", context, type_config) == "nnabla"
    if default == "nnabla":
        with refused("--engine onnxruntime", f"--context {context}", f"--type-config {type_config}",
                     "--engine nnabla"):
            choose_engine("onnxruntime", context, type_config)


def test_parameters_that_were_replaced_between_epochs_are_trained():
    """NNabla keeps numbers of another type elsewhere."""
    images, labels = make_dataset().images[:8], make_dataset().labels[:8]
    found = []
    for replaced in (False, True):
        nn.clear_parameters()
        engine = OnnxRuntimeEngine(build_network("resnet23", 10, 4, np.random.default_rng(0)))
        solver = S.Momentum(0.1, 0.9)
        solver.set_parameters(nn.get_parameters())
        for _ in range(2):
            if replaced:
                for parameter in nn.get_parameters(grad_only=False).values():
                    parameter.d = parameter.d.astype(np.float64)
            update = engine.updater(solver)
            engine.image(8).d = images
            update(labels)()
        found.append({name: parameter.d.copy()
                      for name, parameter in nn.get_parameters(grad_only=False).items()})
    for name, value in found[0].items():
        np.testing.assert_allclose(value, found[1][name], rtol=1e-4, atol=1e-6, err_msg=name)
