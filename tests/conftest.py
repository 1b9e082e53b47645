"""Small data that the tests make themselves, the real sample where it is, and shared helpers."""
import importlib.util
import io
import itertools
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import h5py
import nnabla as nn
import numpy as np
import pytest
from PIL import Image

import calculate_score
import train
from datasets.arrays import Dataset, Split
from datasets.arrays import save as save_dataset
from datasets.digits import NAMES, load_digits
from utils.cuda import cudnn_problem, driver_problem
from utils.errors import UserError
from utils.mpi import LAUNCHERS
from utils.review.detection import bootstrap_intervals

# Where tests run side by side, each process has its share of the cores: NNabla, ONNX Runtime and BLAS
# start no more threads than that, and do not wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    CORES = sorted(os.sched_getaffinity(0))
    SHARE = CORES[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
                  % len(CORES)::int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]
    os.sched_setaffinity(0, SHARE)

# Background jobs of a shell ignore Ctrl-C, and so would the processes that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT.parent / "shared" / "data" / "cifar10-sample-python.tar.gz"


def pytest_configure():
    """The scripts that tests start are no ranks of the job, if any, that the tests are started in."""
    for name in itertools.chain.from_iterable(LAUNCHERS):
        os.environ.pop(name, None)


def pytest_runtest_setup(item):
    if not item.get_closest_marker("gpu"):
        return
    problem = driver_problem(0)
    if problem or importlib.util.find_spec("nnabla_ext.cudnn") is None:
        pytest.skip(f"needs a GPU: {problem or cudnn_problem(0)}")
    if cudnn_problem(0):
        pytest.fail(cudnn_problem(0), pytrace=False)


@pytest.fixture(autouse=True)
def _no_parameters_from_other_tests():
    nn.clear_parameters()
    yield
    nn.clear_parameters()


@pytest.fixture
def sample_archive() -> Path:
    if not SAMPLE.exists():
        pytest.skip(f"needs the real CIFAR-10 sample at {SAMPLE}")
    return SAMPLE


@contextmanager
def refused(*facts: str, error: type[Exception] = UserError) -> Iterator[None]:
    """Expect an `error` whose message has these facts, flags, values and paths, in whatever words."""
    with pytest.raises(error) as caught:
        yield
    missing = [fact for fact in facts if fact not in str(caught.value)]
    assert not missing, f"expected {', '.join(missing)} in: {caught.value}"


def numbers(text: str) -> list[str]:
    """The standalone whole numbers in `text` as printed, such as '3' and '1,500'."""
    return re.findall(r"(?<![\w.,])\d+(?:,\d{3})*(?![\w])", text)


def make_dataset(samples: int = 30, classes: int = 3, seed: int = 0) -> Dataset:
    """Random images, each class brighter than the one before; every fifth label is wrong."""
    rng = np.random.default_rng(seed)
    true = rng.permutation(np.resize(np.arange(classes), samples))[:, None]
    images = rng.integers(0, 60, (samples, 3, 32, 32)) + true[:, :, None, None] * 60
    labels = true.copy()
    labels[::5] = (labels[::5] + 1) % classes
    test = Split(images[:12].astype(np.uint8), true[:12])
    return Dataset(images.astype(np.uint8), labels, true_labels=true, test=test,
                   names=[f"class {label}" for label in range(classes)])


@pytest.fixture
def own_images(tmp_path: Path) -> Path:
    """A folder of one's own images: 20 of each of two classes."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(["cat", "dog"]):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 100, (8, 8, 3)) + 100 * label
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def dataset_folder(tmp_path: Path) -> Path:
    """The .npy files of a small run."""
    folder = tmp_path / "data"
    save_dataset(folder, make_dataset())
    return folder


TRAIN_FLAGS = ["--model", "resnet23", "--nmaps", "4", "--train_epochs", "3",
               "--train_batch_size", "8", "--learning_rate", "0.5", "-c", "cpu"]


def train_flags(data: Path, run: Path, *more: str) -> list[str]:
    """The flags of a small training run on the files in `data`, everything written to `run`."""
    return [*TRAIN_FLAGS, "--input", str(data), "--output", str(run), "--monitor-path", str(run), *more]


OWN_FLAGS = ["--model", "resnet23", "--nmaps", "4", "--train_epochs", "2", "-c", "cpu",
             "--model_save_interval", "1"]


def start_training(data: Path, run: Path, *more: str, **options) -> subprocess.Popen:
    """That run as a process of its own, whose output can be read."""
    return subprocess.Popen([sys.executable, "-u", ROOT / "train.py", *train_flags(data, run, *more)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def contents(run: Path) -> dict[tuple[str, str], np.ndarray]:
    """Every array in the checkpoints and solver states of a run, by file and name."""
    arrays = {}
    for path in sorted(run.glob("*.h5")):
        with h5py.File(path) as file:
            file.visititems(lambda name, item, path=path: arrays.update(
                {(path.name, name): item[...]}) if isinstance(item, h5py.Dataset) else None)
    return arrays


def assert_same(first: Path, second: Path):
    """Check that two runs have the same checkpoints and solver states, bit by bit."""
    one, other = contents(first), contents(second)
    assert one.keys() == other.keys() and len(one) > 300
    for key, array in one.items():
        assert np.array_equal(array, other[key]), key


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """A folder with the data, the checkpoints and the scores of a small run.  Copy, do not change."""
    folder = tmp_path_factory.mktemp("run")
    save_dataset(folder / "data", make_dataset())
    nn.clear_parameters()
    run = folder / "run"
    train.main([*TRAIN_FLAGS, "--input", str(folder / "data"), "--output", str(run),
                "--monitor-path", str(run)])
    nn.clear_parameters()
    calculate_score.main(["--input", str(run), "--checkpoint", str(run), "--output", str(run),
                          "-c", "cpu"])
    return run


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of `finished_run` to change."""
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.fixture
def few_resamples(monkeypatch):
    """Intervals of metrics by fewer resamples, where they are not what is tested."""
    monkeypatch.setattr("utils.review.report.bootstrap_intervals",
                        partial(bootstrap_intervals, resamples=100))


def forget_annotations(run: Path):
    """Make the scores of a run those of an earlier version, which knew no names nor true labels."""
    with np.load(run / "per_checkpoint.npz") as file:
        arrays = {name: file[name] for name in file if name != "annotations"}
    np.savez(run / "per_checkpoint.npz", **arrays)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """Folders of ResNet23 and ResNet56 trained for an epoch on real digits."""
    folder = tmp_path_factory.mktemp("digits")
    split, test = load_digits()
    labels = split.labels[:30].copy()
    labels[::10] = (labels[::10] + 1) % 10
    save_dataset(folder / "data", Dataset(
        split.images[:30], labels, true_labels=split.labels[:30],
        test=Split(test.images[:10], test.labels[:10]), names=list(NAMES)))
    for model in ("resnet23", "resnet56"):
        nn.clear_parameters()
        train.main(["--input", str(folder / "data"), "--model", model, "-c", "cpu",
                    "--train_epochs", "1", "--train_batch_size", "5", "--learning_rate", "0.02",
                    "--output", str(folder / model), "--monitor-path", str(folder / model)])
    return folder


class WatchedSolver:
    """Wraps a solver, so that tests can override some of its methods."""

    def __init__(self, solver):
        self.solver = solver

    def __getattr__(self, name):
        return getattr(self.solver, name)


def children(process: int) -> list[int]:
    """The processes that `process` has started, their helpers aside, where the system tells (Linux)."""
    path = Path(f"/proc/{process}/task/{process}/children")
    started = [int(child) for child in path.read_text().split()] if path.exists() else []
    return [child for child in started
            if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes()]


def gone(processes: list[int], within: float) -> bool:
    """Whether all these processes end within some seconds.

    Machines differ in speed: `within` is a multiple of a time that the test has measured, or a part of
    one that the processes would need to end by themselves.
    """
    deadline = time.monotonic() + within
    while any(_alive(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(_alive(process) for process in processes)


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def write_batch(content: object) -> bytes:
    return pickle.dumps(content, protocol=2)


def write_archive(path: Path, records: int = 4, folder: str = "cifar-10-batches-py",
                  **replaced: bytes | None) -> Path:
    """A CIFAR-10 archive of random images; a batch can be `replaced` by bytes, left out or added."""
    rng = np.random.default_rng(0)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    with tarfile.open(path, "w:gz") as archive:
        for name in dict.fromkeys([*names, *replaced]):
            content = write_batch({
                b"data": rng.integers(0, 256, (records, 3072)).astype(np.uint8),
                b"labels": [int(label) for label in rng.integers(0, 10, records)]})
            content = replaced.get(name, content)
            if content is not None:
                member = tarfile.TarInfo(f"{folder}/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path
