"""Time per image of a training step and of a score, by every engine and beside the bare passes.

    python -m tests.benchmarks.scoring
    python -m tests.benchmarks.scoring -c cudnn

Every row is measured once in each round, so that what else the machine does strikes all rows alike.
"""
import multiprocessing
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np
from tqdm import tqdm

from models.registry import build_network
from utils.cli import Parser
from utils.context import current_context, set_context
from utils.graph.onnx_forward import INPUT, to_onnx
from utils.graph.onnx_nodes import make_session
from utils.processes import available_cores, begin, call
from utils.tracin.scoring import SAMPLES_PER_PASS, ScoringPlan, SliceScorer
from utils.training.checkpoint import find_checkpoints
from utils.training.engines import ENGINES

TRAINING_BATCH = 50
SAMPLES = max(1024, 128 * available_cores())
# As NNabla's example, which back-propagates through all of ResNet23, but through ResNet56's last
# layer only.  On a GPU NNabla 1.39.0 fails in the former (sums over the last axes), so neither does.
STOPS_AT_FEATURES = {"resnet23": False, "resnet56": True}


def plain_loop(network: Callable, images: np.ndarray, labels: np.ndarray,
               stop_at_features: bool) -> Callable[[int], object]:
    """As NNabla's example scores: forward and backward through the graph, one sample at a time."""
    image, label = nn.Variable((1, 3, 32, 32)), nn.Variable((1, 1))
    logits, h = network(image, test=True)
    h.need_grad = not stop_at_features
    loss = F.mean(F.softmax_cross_entropy(logits, label))
    parameters = nn.get_parameters()
    affine = [parameters[name] for name in ("affine/W", "affine/b")]

    def run(count: int):
        scores = []
        for index in range(count):
            for parameter in parameters.values():
                parameter.grad.zero()
            image.d, label.d = images[index], labels[index]
            loss.forward()
            loss.backward()
            scores.append(sum(float(np.square(parameter.g).sum()) for parameter in affine))
        return scores
    return run


def bare_inference(network: Callable, images: np.ndarray, batch_size: int) -> Callable[[int], object]:
    """NNabla's forward pass in inference mode, and nothing else."""
    image = nn.Variable((batch_size, 3, 32, 32))
    logits, _ = network(image, test=True)
    image.d = images[:batch_size]

    def run(count: int):
        for _ in range(count // batch_size):
            logits.forward(clear_buffer=True)
        return logits.d  # waits for a GPU
    return run


def bare_training(network: Callable, images: np.ndarray, labels: np.ndarray,
                  batch_size: int) -> Callable[[int], object]:
    """NNabla's forward and backward pass in training mode, without the update."""
    image, label = nn.Variable((batch_size, 3, 32, 32)), nn.Variable((batch_size, 1))
    logits, _ = network(image, test=False)
    loss = F.mean(F.softmax_cross_entropy(logits, label))
    image.d, label.d = images[:batch_size], labels[:batch_size]
    parameters = nn.get_parameters()

    def run(count: int):
        for _ in range(count // batch_size):
            for parameter in parameters.values():
                parameter.grad.zero()
            loss.forward(clear_no_need_grad=True)
            loss.backward(clear_buffer=True)
        return parameters["affine/W"].g
    return run


def training(network: Callable, images: np.ndarray, labels: np.ndarray, engine: str,
             threads: int) -> Callable[[int], object]:
    """Updates of the parameters, each by one batch, without augmentation."""
    model = ENGINES[engine].make(network, threads, False)
    solver = S.Momentum(1e-6, 0.9)
    solver.set_parameters(nn.get_parameters())
    model.image(TRAINING_BATCH).d = images[:TRAINING_BATCH]
    update = model.updater(solver)

    def run(count: int):
        for _ in range(count // TRAINING_BATCH):
            result = update(labels[:TRAINING_BATCH])
        return result()
    return run


def bare_onnxruntime(network: Callable, images: np.ndarray, batch_size: int,
                     threads: int) -> Callable[[int], None]:
    """ONNX Runtime's forward pass, and nothing else."""
    image = nn.Variable((1, 3, 32, 32))
    logits, _ = network(image, test=True)
    session = make_session(to_onnx(image, logits), threads)
    batch = {INPUT: images[:batch_size].astype(np.float32)}

    def run(count: int):
        for _ in range(count // batch_size):
            session.run(None, batch)
    return run


def scorer(folder: Path, network: Callable, layers: str, engine: str, workers: int,
           stack: ExitStack) -> Callable[[int], object]:
    """The suite's own scoring, the images read from the disk's memory map, by however many workers."""
    context = current_context()
    batch_size = SAMPLES_PER_PASS[context, layers]
    plan = ScoringPlan(network, folder / "images.npy", folder / "labels.npy", layers, engine,
                       batch_size, workers, context, 0, "float")
    checkpoint, = find_checkpoints(folder)
    if plan.processes == 1:
        score = SliceScorer(plan)
        return lambda count: score(checkpoint, 0, count)
    pool = stack.enter_context(ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), begin, (SliceScorer, plan)))

    def run(count: int):
        futures = [pool.submit(call, checkpoint, start, start + 2 * batch_size)
                   for start in range(0, count, 2 * batch_size)]
        return [future.result() for future in futures]
    return run


def rows(model: str, folder: Path, stack: ExitStack) -> dict[str, tuple[Callable, int]]:
    """What is measured, and over how many images."""
    nn.clear_parameters()
    fresh = build_network(model, 10, rng=np.random.default_rng(0))
    fresh(nn.Variable((1, 3, 32, 32)), test=True)
    nn.save_parameters(str(folder / "params_1.h5"))
    network, cores = build_network(model, 10), available_cores()
    images, labels = np.load(folder / "images.npy"), np.load(folder / "labels.npy")
    last, every = (SAMPLES_PER_PASS[current_context(), layers] for layers in ("last", "all"))

    def ours(layers: str, engine: str, workers: int) -> Callable:
        return scorer(folder, network, layers, engine, workers, stack)
    plain = plain_loop(network, images, labels,
                       STOPS_AT_FEATURES[model] or current_context() == "cudnn")
    inference = bare_inference(network, images, last)
    bare = bare_training(network, images, labels, every)
    if current_context() == "cudnn":
        return {
            "plain loop, batch 1": (plain, 128),
            "last layer: NNabla, 1 process": (ours("last", "nnabla", 1), SAMPLES // last * last),
            "all layers: NNabla, 1 process": (ours("all", "nnabla", 1), SAMPLES // every * every),
            "bare NNabla inference pass": (inference, SAMPLES // last * last),
            "bare NNabla training pass": (bare, SAMPLES // every * every),
        }
    return {
        "plain loop, batch 1": (plain, 16),
        "training step: NNabla": (training(network, images, labels, "nnabla", 1), TRAINING_BATCH),
        "training step: ONNX Runtime, 1 thread": (
            training(network, images, labels, "onnxruntime", 1), 2 * TRAINING_BATCH),
        f"training step: ONNX Runtime, {cores} threads": (
            training(network, images, labels, "onnxruntime", cores), 4 * TRAINING_BATCH),
        "last layer: NNabla, 1 process": (ours("last", "nnabla", 1), 128),
        f"last layer: NNabla, {cores} processes": (ours("last", "nnabla", cores), 128 * cores),
        "last layer: ONNX Runtime, 1 thread": (ours("last", "onnxruntime", 1), 1024),
        f"last layer: ONNX Runtime, {cores} threads": (ours("last", "onnxruntime", cores), 1024),
        "all layers: NNabla, 1 process": (ours("all", "nnabla", 1), 64),
        f"all layers: NNabla, {cores} processes": (ours("all", "nnabla", cores), 64 * cores),
        "all layers: ONNX Runtime, 1 thread": (ours("all", "onnxruntime", 1), 128),
        f"all layers: ONNX Runtime, {cores} threads": (ours("all", "onnxruntime", cores), 256),
        "bare NNabla inference pass": (inference, 128),
        "bare ONNX Runtime pass, 1 thread": (bare_onnxruntime(network, images, last, 1), 1024),
        f"bare ONNX Runtime pass, {cores} threads": (
            bare_onnxruntime(network, images, last, cores), 1024),
        "bare NNabla training pass": (bare, 64),
    }


def measure(model: str, folder: Path, rounds: int) -> dict[str, np.ndarray]:
    """Milliseconds an image, of every row in every round, (rounds,)."""
    with ExitStack() as stack:
        measured = rows(model, folder, stack)
        times: dict[str, list[float]] = {name: [] for name in measured}
        for round_ in tqdm(range(rounds + 1), desc=model, leave=False, disable=None):
            for name, (run, count) in measured.items():
                begun = time.perf_counter()
                run(count)
                if round_:  # the first warms up
                    times[name].append((time.perf_counter() - begun) / count * 1000)
    return {name: np.array(values) for name, values in times.items()}


def floor_of(name: str) -> str | None:
    """The bare pass that a row contains, if it is measured with as many cores."""
    if name.startswith("bare"):
        return None
    if name.startswith("last layer: ONNX Runtime"):
        return f"bare ONNX Runtime pass, {name.rpartition(', ')[2]}"
    if name.endswith("NNabla, 1 process"):
        return "bare NNabla inference pass" if name.startswith("last") else "bare NNabla training pass"
    return None


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="repeats (default: %(default)s)")
    parser.add_argument("-c", "--context", choices=["cpu", "cudnn"], default="cpu")
    args = parser.parse_args()
    rounds, cores = args.rounds, available_cores()
    where = set_context(args.context, 0, "float")
    print(f"{platform.machine()}, {cores} cores, {where}; milliseconds an image and checkpoint, median "
          f"of {rounds} rounds (least to most)\n")
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), np.random.default_rng(0)
        np.save(folder / "images.npy", rng.integers(0, 256, (SAMPLES, 3, 32, 32)).astype(np.uint8))
        np.save(folder / "labels.npy", rng.integers(0, 10, (SAMPLES, 1)))
        for model in STOPS_AT_FEATURES:
            times = measure(model, folder, rounds)
            print(f"| {model} | ms | plain loop / this | this / its bare pass |\n|---|---|---|---|")
            for row, values in times.items():
                # Ratios within a round, whose rows were measured side by side.
                faster = np.median(times["plain loop, batch 1"] / values)
                floor = floor_of(row)
                above = f"{np.median(values / times[floor]):.2f}" if floor else ""
                print(f"| {row} | {np.median(values):.3g} ({values.min():.3g} to {values.max():.3g}) | "
                      f"{faster:.3g} | {above} |")
            print(flush=True)


if __name__ == "__main__":
    main()
