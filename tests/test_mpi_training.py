"""Training by two ranks of an MPI job."""
import re
import shutil
import time
from functools import partial
from pathlib import Path

import nnabla as nn
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from nnabla.ext_utils import get_extension_context

import train
from models.head import set_standardization
from models.registry import Network, build_network
from tests.conftest import ROOT, assert_same, contents, make_dataset, refused, train_flags
from tests.mpi import mpirun, needs_mpi
from utils import mpi
from utils.errors import RunError
from utils.training import cross_validation, parallel
from utils.training.checkpoint import find_checkpoints
from utils.training.engines import ENGINES
from utils.training.trainer import Trainer

pytestmark = needs_mpi

SAMPLES, CLASSES, BATCH = 29, 29, 4  # the last batch is one sample, and leaves a rank without any
FEATURES = np.random.default_rng(0).normal(size=(SAMPLES, 5)).astype(np.float32)
LABELS = np.arange(SAMPLES)[:, None]  # they tell the samples apart

# Does something on rank 1 when the third epoch begins, when the first checkpoint is written.
FAILING = """
import os, signal, sys
import train
from utils import cli, mpi
whole = train.train_epoch
def failing(*args):
    if args[-1] == 2 and mpi.job().rank == 1:
        {}
    return whole(*args)
train.train_epoch = failing
cli.run(lambda: train.main(sys.argv[1:]))
"""
FAILURES = {"kill": "os.kill(os.getpid(), signal.SIGKILL)", "memory": "raise MemoryError('of rank 1')"}


def parameters(scope: str = "") -> dict[str, np.ndarray]:
    return {scope + name: value.d.copy() for name, value in nn.get_parameters(grad_only=False).items()}


def make_trainer(inputs: np.ndarray, engine: str, ranks: parallel.Ranks | None = None) -> Trainer:
    network = build_network("head", CLASSES, shape=inputs.shape[1:])
    made = ENGINES[engine].make(network, 1, False)
    set_standardization(inputs)
    return Trainer(made, False, 4, 0.1, ranks)


def train_head(engine: str, ranks: parallel.Ranks | None) -> dict[str, np.ndarray]:
    """Two epochs of a head, what they were given, and what they say."""
    nn.clear_parameters()
    trainer, own, told = make_trainer(FEATURES, engine, ranks), [], []
    updater = trainer.engine.updater

    def noting(*args):
        update = updater(*args)
        return lambda labels, *more: (own.append(labels.ravel()), update(labels, *more))[1]
    trainer.engine.updater = noting
    order, logits = [], np.zeros((2, SAMPLES, CLASSES), np.float32)
    for epoch in range(2):
        def observe(batch, found, epoch=epoch):
            order.append(batch)
            logits[epoch, batch] = found
        told.append(trainer.train_epoch(epoch, FEATURES, LABELS, BATCH, lambda update: 1.0,
                                        lambda *numbers: told.append(numbers[1:3]), observe))
    return {**parameters(), "own": np.concatenate(own), "order": np.concatenate(order),
            "logits": logits, "told": np.array(told)}


def evaluate(ranks: parallel.Ranks | None) -> np.ndarray:
    nn.clear_parameters()
    network, dataset = build_network("resnet23", 3, 4, np.random.default_rng(0)), make_dataset()
    trainer = Trainer(ENGINES["onnxruntime"].make(network, 1, False), False, 0, ranks=ranks)
    return np.array([trainer.evaluate(dataset.images, dataset.labels, size) for size in (4, 7, 30)])


def predict(ranks: parallel.Ranks | None) -> np.ndarray:
    nn.clear_parameters()
    dataset = make_dataset(SAMPLES)
    return cross_validation.predict(
        partial(make_trainer, engine="onnxruntime"),
        type(dataset)(dataset.images, dataset.labels, features=FEATURES, true_labels=None, test=None,
                      names=[""] * CLASSES), epochs=2, batch_size=8, base_rate=1.0, seed=0, ranks=ranks)


def train_half(kind: str, ranks: parallel.Ranks | None) -> np.ndarray:
    """The weights of a linear network; the gradients of one sample alone overflow in half precision."""
    nn.clear_parameters()
    images = np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32)
    images[3] *= 1000

    @Network
    def network(x, test=False):
        return PF.affine(x, 2, name="affine", w_init=lambda shape: np.zeros(shape)), x
    network = Network(network.build, (4,))
    with nn.context_scope(get_extension_context("cpu", type_config=kind)):
        trainer = Trainer(ENGINES["nnabla"].make(network, 1, kind == "half"), False, 0, ranks=ranks)
        trainer.train_epoch(0, images, np.arange(8)[:, None] % 2, 4, lambda update: 1e-6,
                            lambda *numbers: None)
    return parameters()["affine/affine/W"]


def augmented(ranks: parallel.Ranks | None) -> np.ndarray:
    """What enters the network of an image that all samples are, (N, 3, 32, 32), in the second epoch."""
    nn.clear_parameters()
    images = np.broadcast_to(make_dataset().images[:1], (16, 3, 32, 32))

    @Network
    def network(x, test=False):
        return PF.affine(x, 2, name="affine"), x
    trainer, entered = Trainer(ENGINES["nnabla"].make(network, 1, False), True, 0, ranks=ranks), []
    size = 8 // ranks.size if ranks else 8

    def rate(update):
        entered.append(trainer.engine.image(size).d.copy())
        return 1e-6
    trainer.train_epoch(1, images, np.zeros((16, 1), int), 8, rate, lambda *numbers: None)
    return np.concatenate(entered)


def everything(ranks: parallel.Ranks | None) -> dict[str, np.ndarray]:
    found = {f"{engine}/{name}": value for engine in ENGINES
             for name, value in train_head(engine, ranks).items()}
    return found | {"evaluated": evaluate(ranks), "predicted": predict(ranks),
                    "half": train_half("half", ranks), "augmented": augmented(ranks)}


def averages(ranks: parallel.Ranks) -> dict[str, np.ndarray]:
    """Values that differ between ranks and values that do not, averaged and broadcast; and a drift."""
    third, other = nn.Variable((3,)), nn.Variable((2,))
    third.d, other.d = 1 / 3, ranks.rank + 1
    ranks.check_same([third])
    with refused("rank 1", error=RunError):
        ranks.check_same([third, other])
    ranks.average([third, other])
    averaged = np.concatenate([third.d, other.d])
    third.d = third.d + ranks.rank
    ranks.broadcast([third])
    return {"averaged": averaged, "broadcast": third.d.copy()}


def compute_in_job(folder: Path):
    """On each rank of a job: write what it finds."""
    mpi.start()
    ranks = parallel.ranks()
    np.savez(folder / f"{ranks.rank}.npz", **everything(ranks), **averages(ranks))


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict[str, np.ndarray]]:
    """What two ranks find, and what this process finds alone."""
    folder = tmp_path_factory.mktemp("job")
    code, _, complaints = mpirun(
        2, "-c", "import sys, pathlib, tests.test_mpi_training as tests; "
        "tests.compute_in_job(pathlib.Path(sys.argv[1]))", folder)
    assert code == 0, complaints
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)] + [everything(None)]


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_ranks_share_every_batch_of_the_one_order(found, engine):
    first, second, alone = ({name: ranks[f"{engine}/{name}"] for name in ("own", "order")}
                            for ranks in found)
    assert np.array_equal(alone["own"], alone["order"])
    for ranks in (first, second):
        assert np.array_equal(ranks["order"], alone["order"])
    assert (len(first["own"]), len(second["own"])) == (30, 28)
    for epoch in (alone["order"][:SAMPLES], alone["order"][SAMPLES:]):
        assert sorted(epoch) == list(range(SAMPLES))
    halves = [half for start in range(0, 14, 2) for half in (first["own"][start:start + 2],
                                                             second["own"][start:start + 2])]
    assert np.array_equal(np.concatenate([*halves, first["own"][14:15]]), alone["order"][:SAMPLES])


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_updates_are_those_of_one_rank_without_batch_statistics(found, engine):
    first, second, alone = ({name: value for name, value in ranks.items() if name.startswith(engine)
                             and not name.endswith("own")} for ranks in found)
    assert first.keys() == second.keys() == alone.keys() and len(alone) == 8
    for name, value in alone.items():
        assert np.array_equal(first[name], second[name]), name
        np.testing.assert_allclose(first[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert np.abs(alone[f"{engine}/affine/W"]).max() > 0.01


def test_test_pass_and_predictions_out_of_fold_have_the_bits_of_one_rank(found):
    for name in ("evaluated", "predicted"):
        assert np.array_equal(found[0][name], found[1][name]), name
        assert np.array_equal(found[0][name], found[2][name]), name
    assert found[2]["predicted"].std(axis=0).max() > 0.001


def test_each_rank_augments_its_own_images(found):
    first, second, alone = (ranks["augmented"] for ranks in found)
    assert len(first) == len(second) == 8 and len(alone) == 16
    images = np.concatenate([first, second, alone]).reshape(32, -1)
    assert len(np.unique(images, axis=0)) == 32


def test_overflow_on_one_rank_is_one_of_all(found):
    expected = train_half("float", None)
    tolerance = 0.01 * np.abs(expected).max()
    assert np.array_equal(found[0]["half"], found[1]["half"])
    for ranks in found:
        np.testing.assert_allclose(ranks["half"], expected, rtol=0.01, atol=tolerance)


def test_values_are_averaged_over_the_ranks_exactly(found):
    third = np.full(3, 1 / 3, np.float32)
    for ranks in found[:2]:
        assert np.array_equal(ranks["averaged"], [*third, 1.5, 1.5])
        assert np.array_equal(ranks["broadcast"], third)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    from datasets.arrays import save
    folder = tmp_path_factory.mktemp("data") / "data"
    save(folder, make_dataset())
    return folder


FLAGS = ["--workers", "1", "--augmentation", "True"]


@pytest.fixture(scope="module")
def through(data, tmp_path_factory) -> Path:
    """A run of two ranks from start to end."""
    run = tmp_path_factory.mktemp("through") / "run"
    code, said, complaints = mpirun(2, ROOT / "train.py", *train_flags(data, run, *FLAGS))
    assert code == 0, complaints
    assert len(re.findall("epoch ./3:", said)) == 3 and said.count("trained:") == 1
    return run


def test_run_of_two_ranks_writes_the_files_of_one(through, finished_run):
    own = {path.name for path in finished_run.iterdir()} - {
        path.name for path in finished_run.iterdir() if re.search("influence|scores|per_checkpoint",
                                                                  path.name)}
    assert {path.name for path in through.iterdir()} == own
    for name in ("Training-loss.series.txt", "Test-error.series.txt"):
        assert np.loadtxt(through / name).shape == np.loadtxt(finished_run / name).shape
    with np.load(through / "training_dynamics.npz") as file, \
            np.load(finished_run / "training_dynamics.npz") as one:
        assert {name: file[name].shape for name in file} == {name: one[name].shape for name in one}
        assert np.isfinite(file["loss"]).all() and str(file["run_sha256"]) == str(one["run_sha256"])
    assert [one.description.ranks for one in find_checkpoints(through)] == [2, 2, 2]
    one, other = contents(finished_run), contents(through)
    assert any(not np.array_equal(one[key], other[key]) for key in one if key[1].endswith("bn/mean"))


@pytest.mark.parametrize("failure", sorted(FAILURES))
def test_failing_rank_ends_the_job_and_resuming_ends_as_a_run_through(through, data, tmp_path, failure):
    run, begun = tmp_path / "run", time.monotonic()
    code, _, complaints = mpirun(2, "-c", FAILING.format(FAILURES[failure]),
                                 *train_flags(data, run, *FLAGS))
    assert code and time.monotonic() - begun < 60
    assert (run / "checkpoint_000001.json").exists() and not (run / "checkpoint_000003.json").exists()
    if failure == "memory":
        assert len([line for line in complaints.splitlines() if "of rank 1" in line]) == 1
        return
    code, _, complaints = mpirun(2, ROOT / "train.py",
                                 *train_flags(data, run, *FLAGS, "--checkpoint", str(run)))
    assert code == 0, complaints
    assert_same(through, run)
    with np.load(run / "training_dynamics.npz") as file, \
            np.load(through / "training_dynamics.npz") as expected:
        assert all(np.array_equal(file[name], expected[name]) for name in expected)


def test_run_of_two_ranks_is_resumed_by_one(through, data, tmp_path, capsys):
    run = shutil.copytree(through, tmp_path / "run")
    told = []
    for checkpoint in (2, 3):  # the third epoch again, then nothing is left to train
        train.main(train_flags(data, run, *FLAGS, "--checkpoint",
                               str(run / f"checkpoint_00000{checkpoint}.json")))
        nn.clear_parameters()
        told.append(capsys.readouterr().out.splitlines()[0])
    assert {"2", "1"} <= set(re.findall(r"\d", told[0])) and "resnet23" not in told[0]
    assert "resnet23" in told[1]  # made by one rank
    assert [one.description.ranks for one in find_checkpoints(run)] == [2, 2, 1]


def test_one_rank_is_no_mpi(finished_run, data, tmp_path):
    run = tmp_path / "run"
    code, _, complaints = mpirun(1, ROOT / "train.py", *train_flags(data, run))
    assert code == 0, complaints
    assert_same(finished_run, run)


def test_more_ranks_than_samples_in_a_batch_are_refused(data, tmp_path):
    flags = train_flags(data, tmp_path / "run", "--train_batch_size", "1")
    code, _, complaints = mpirun(2, ROOT / "train.py", *flags)
    lines = [line for line in complaints.splitlines() if "--train_batch_size" in line]
    assert code and len(lines) == 1 and "2" in lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seen", ["other", "none"])
def test_ranks_that_see_other_files_are_refused(data, tmp_path, seen):
    """Each rank has a folder of its own."""
    for folder in ("0", "1"):
        shutil.copytree(data, tmp_path / folder / "data")
    if seen == "other":
        images = np.load(tmp_path / "1" / "data" / "x_train.npy")
        images[7, 0, 0, 0] ^= 1
        np.save(tmp_path / "1" / "data" / "x_train.npy", images)
    else:
        (tmp_path / "1" / "data" / "x_train.npy").unlink()
    program = ("import os, sys; os.chdir(os.environ['OMPI_COMM_WORLD_RANK']); import train; "
               "from utils import cli; cli.run(lambda: train.main(sys.argv[1:]))")
    code, _, complaints = mpirun(
        2, "-c", program, *train_flags(Path("data"), Path("data"), "-o", "checkpoints"), cwd=tmp_path)
    lines = [line for line in complaints.splitlines() if "x_train.npy" in line]
    assert code and len(lines) == 1 and "rank 1" in lines[0], complaints
    assert (seen == "none") == ("none" in lines[0])
