"""Training and scoring by two ranks on two cores, against one rank, and what more ranks would take.

    python -m tests.benchmarks.mpi                 about five minutes on two cores that are free
    python -m tests.benchmarks.mpi --updates 2 --images 500    a trial
    python -m tests.benchmarks.mpi --no-scoring

Times of more ranks are a projection from the measured constants: each rank is one core as fast as those
here, and the network is as `Network` says.
"""
import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import nnabla as nn
import numpy as np

from models.head import set_standardization
from models.registry import MODELS, build_network
from tests.benchmarks.measuring import save_fresh_parameters
from tests.mpi import mpirun
from utils import mpi
from utils.training.engines import ENGINES
from utils.training.parallel import Ranks
from utils.training.trainer import Trainer

MODEL_CASES = {"resnet23, nmaps 64": ("resnet23", 64), "resnet23, nmaps 16": ("resnet23", 16),
               "head, 1,280 features": ("head", None)}
FEATURES, CLASSES = 1280, 10
BATCH = 500  # the default of train.py from 50,000 images on
# Ranks and threads of each.
PLACES = {"1 rank, 1 thread": (1, 1), "1 rank, 2 threads": (1, 2), "2 ranks, 1 thread": (2, 1)}
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SAMPLES = (1_000_000, 10_000_000, 100_000_000)


@dataclass(frozen=True)
class Network:
    """An assumed network between ranks of one core each.

    Attributes:
        bandwidth: bytes per second of a rank, in each direction.
        latency: seconds of a message.
    """

    bandwidth: float = 1.25e9  # 10 Gbit/s Ethernet
    latency: float = 30e-6

    def all_reduce(self, size: int, ranks: int) -> float:
        r"""Seconds of a ring all-reduce of `size` bytes, :math:`2 (R-1)/R \, n/b + 2 (R-1) \, l`."""
        return 2 * (ranks - 1) * (size / ranks / self.bandwidth + self.latency)


class TimedRanks(Ranks):
    """Ranks that measure the wait for the slowest one, and the average after it, in each update."""

    def __init__(self, comm):
        super().__init__(comm)
        self.waits: list[float] = []
        self.averages: list[float] = []

    def average_gradients(self, gradients, logits, batch_size):
        begun = time.perf_counter()
        self._comm.Barrier()
        all_here = time.perf_counter()
        result = super().average_gradients(gradients, logits, batch_size)
        self.waits.append(all_here - begun)
        self.averages.append(time.perf_counter() - all_here)
        return result


def train_here(model: str, nmaps: int | None, threads: int, updates: int):
    """On each rank: train on random samples; the first one prints the medians of an update as JSON."""
    mpi.start()
    job, rng = mpi.job(), np.random.default_rng(0)
    ranks = TimedRanks(job.comm) if job.size > 1 else None
    on_features = MODELS[model].on_features
    shape = (FEATURES,) if on_features else (3, 32, 32)
    count = BATCH * (updates + 1)
    inputs = rng.normal(size=(count, *shape)).astype(np.float32) if on_features \
        else rng.integers(0, 256, (count, *shape)).astype(np.uint8)
    network = build_network(model, CLASSES, nmaps, rng, shape)
    engine = ENGINES["onnxruntime"].make(network, threads, False)
    if on_features:
        set_standardization(inputs)
    trainer = Trainer(engine, False, 0, ranks=ranks)
    ends: list[float] = []
    trainer.train_epoch(0, inputs, rng.integers(0, CLASSES, (count, 1)), BATCH, lambda update: 1e-6,
                        lambda *numbers: ends.append(time.perf_counter()))
    print(json.dumps({
        "update": np.median(np.diff(ends)), "wait": np.median(ranks.waits[1:]) if ranks else 0.0,
        "average": np.median(ranks.averages[1:]) if ranks else 0.0,
        "bytes": 4 * (sum(parameter.size for parameter in nn.get_parameters().values())
                      + BATCH * CLASSES)}))


def run(ranks: int, *words: object) -> str:
    """The output of Python, by so many ranks of a job or without MPI."""
    if ranks == 1:
        return subprocess.run([sys.executable, *map(str, words)], stdout=subprocess.PIPE, text=True,
                              check=True).stdout
    code, said, complaints = mpirun(ranks, *words)
    if code:
        sys.exit(complaints)
    return said


def training(updates: int) -> dict[str, dict]:
    """Measure and print training; returns what is measured of two ranks, by network."""
    print("| network | ranks and threads | images per second | update, ms | waiting, ms | average, ms | "
          "average's share |\n|---|---|---|---|---|---|---|")
    found = {}
    for name, (model, nmaps) in MODEL_CASES.items():
        count = updates if model != "head" else 20 * updates
        for place, (ranks, threads) in PLACES.items():
            output = run(ranks, "-m", "tests.benchmarks.mpi", "--here", model, nmaps or 0, threads,
                         count)
            one = json.loads(output.splitlines()[-1])
            print(f"| {name} | {place} | {BATCH / one['update']:,.0f} | {one['update'] * 1e3:.1f} | "
                  f"{one['wait'] * 1e3:.2f} | {one['average'] * 1e3:.2f} | "
                  f"{one['average'] / one['update']:.2%} |", flush=True)
            found[name] = one
    return found


def scoring(images: int):
    """Measure and print scoring by calculate_score.py, from two numbers of images: no starting time."""
    print("\n| scoring, ResNet23, last layer | images per second |\n|---|---|")
    for place, (ranks, threads) in PLACES.items():
        seconds = []
        for count in (images, 3 * images):
            with tempfile.TemporaryDirectory() as name:
                folder, rng = Path(name), np.random.default_rng(0)
                np.save(folder / "x_train.npy", rng.integers(0, 256, (count, 3, 32, 32), np.uint8))
                np.save(folder / "y_shuffle_train.npy", rng.integers(0, CLASSES, (count, 1)))
                save_fresh_parameters(folder, 1, "resnet23")
                begun = time.perf_counter()
                run(ranks, "calculate_score.py", "--run", folder, "--model", "resnet23", "-c", "cpu",
                    "--workers", threads)
                seconds.append(time.perf_counter() - begun)
        print(f"| {place} | {2 * images / (seconds[1] - seconds[0]):,.0f} |", flush=True)


def project(per_image: float, size: int, ranks: int, samples: int,
            network: Network) -> tuple[float, float]:
    """Seconds of an epoch, computing and in the all-reduces.

    Args:
        per_image: seconds that one rank computes per image.
        size: bytes of the all-reduce.
        ranks: R.
        samples: images in an epoch.
        network: between the ranks.
    """
    return samples * per_image / ranks, samples / BATCH * network.all_reduce(size, ranks)


def projection(found: dict[str, dict]):
    """Print what an epoch would take by up to 256 ranks."""
    network = Network()
    print("\nA projection, not a measurement: time of an epoch = compute / R + all-reduce(R), a core "
          f"per rank, batch {BATCH}, ring all-reduce: 2 (R-1)/R bytes/bandwidth + 2 (R-1) latency, at "
          f"{network.bandwidth * 8 / 1e9:g} Gbit/s and {network.latency * 1e6:g} us; compute per image "
          f"as measured with 2 ranks, though parts of fewer than {BATCH // 2} images are slower")
    for name, one in found.items():
        per_image = 2 * (one["update"] - one["wait"] - one["average"]) / BATCH
        print(f"\n| {name}, {one['bytes'] / 1e6:.2f} MB: ranks | " + " | ".join(
            f"{samples // 1_000_000} million images, min" for samples in SAMPLES)
            + " | all-reduce's share |\n|---|" + "---|" * (len(SAMPLES) + 1))
        for ranks in RANKS:
            times = [project(per_image, one["bytes"], ranks, samples, network) for samples in SAMPLES]
            print(f"| {ranks} | " + " | ".join(f"{sum(both) / 60:,.1f}" for both in times)
                  + f" | {times[0][1] / sum(times[0]):.1%} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=8, help="measured updates (default: %(default)s)")
    parser.add_argument("--images", type=int, default=4000, help="scored images (default: %(default)s)")
    parser.add_argument("--no-scoring", action="store_true", help="measure training alone")
    parser.add_argument("--here", nargs=4, metavar=("MODEL", "NMAPS", "THREADS", "UPDATES"),
                        help="what each rank is started with")
    args = parser.parse_args()
    if args.here:
        model, nmaps, threads, updates = args.here
        train_here(model, int(nmaps) or None, int(threads), int(updates))
        return
    found = training(args.updates)
    if not args.no_scoring:
        scoring(args.images)
    projection(found)


if __name__ == "__main__":
    main()
