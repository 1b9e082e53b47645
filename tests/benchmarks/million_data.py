"""Time and peak memory of the start of training, and of scoring, by the number of images.

    python -m tests.benchmarks.million_data training --folder /tmp/million
    python -m tests.benchmarks.million_data scoring --folder /tmp/million

Training counts up to its first update: what depends on the number of images is done by then.  It starts
twice, the second time over the files of the first, as resuming does.  A million images take 9 GB.
"""
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import nnabla as nn
import numpy as np

from models.registry import build_network
from utils.cli import Parser, number

SAMPLES = (50_000, 200_000, 1_000_000)
CLASSES, CHECKPOINTS, PIECE = 10, 2, 10_000
STARTED = b"epochs done"


def write_rows(file, shape: tuple[int, ...], kind: str, high: int):
    """Write an .npy of random integers below `high`, a piece at a time."""
    rng = np.random.default_rng(0)
    np.lib.format.write_array_header_1_0(file, {"descr": np.dtype(kind).str, "fortran_order": False,
                                                "shape": shape})
    for start in range(0, shape[0], PIECE):
        rows = min(PIECE, shape[0] - start)
        file.write(rng.integers(0, high, (rows, *shape[1:]), kind).data)


def write_archive(path: Path, samples: int):
    """One's own images: an .npz with x, uint8 (N, 32, 32, 3), and y, integers (N,)."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, shape, kind, high in [("x", (samples, 32, 32, 3), "u1", 256),
                                        ("y", (samples,), "i8", CLASSES)]:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                write_rows(file, shape, kind, high)


def measure(*command: object, until: bytes | None = None) -> str:
    """What a script of the suite took, to its end or until it printed something."""
    begin = time.monotonic()
    process = subprocess.Popen([sys.executable, "-u", *map(str, command)], stdout=subprocess.PIPE)
    for line in process.stdout:
        if until and until in line:
            break
    seconds = time.monotonic() - begin
    if until:
        process.kill()
    _, status, used = os.wait4(process.pid, 0)
    if status and not until:
        raise SystemExit(f"{command[0]} failed")
    return (f"{seconds:.1f} s, {used.ru_utime:.1f} s of them computing and {used.ru_stime:.1f} s in the "
            f"system, {used.ru_maxrss // 1024:,} MB")


def training(folder: Path, samples: int):
    """The start of training on one's own images, and of training over the files that it has written."""
    write_archive(folder / "images.npz", samples)
    for words in ("training starts", "starts again"):
        os.sync()
        print(f"{samples:,} images, {words}: " + measure(
            "train.py", "--dataset", folder / "images.npz", "--run", folder / "run", "-c", "cpu",
            "--model", "resnet23", "--nmaps", 4, "--shuffle_rate", 0.1, until=STARTED), flush=True)


def scoring(folder: Path, samples: int):
    """Scoring random images at checkpoints with fresh parameters."""
    for name, shape, kind, high in [("x_train", (samples, 3, 32, 32), "u1", 256),
                                    ("y_shuffle_train", (samples, 1), "i8", CLASSES)]:
        with (folder / f"{name}.npy").open("wb") as file:
            write_rows(file, shape, kind, high)
    for epoch in range(1, CHECKPOINTS + 1):
        nn.clear_parameters()
        network = build_network("resnet23", CLASSES, 4, np.random.default_rng(epoch))
        network(nn.Variable((1, 3, 32, 32)), test=True)
        nn.get_parameters(grad_only=False)["conv1/bn/var"].d = 1e4
        nn.save_parameters(str(folder / f"params_{epoch}.h5"))
    print(f"{samples:,} images, {CHECKPOINTS} checkpoints: " + measure(
        "calculate_score.py", "--run", folder, "--model", "resnet23", "--layers", "last", "-c", "cpu"),
        flush=True)


def main(argv=None):
    scripts = {"training": training, "scoring": scoring}
    parser = Parser(description=__doc__)
    parser.add_argument("script", choices=scripts)
    parser.add_argument("--samples", type=number(int, CLASSES), nargs="+", default=SAMPLES)
    parser.add_argument("--folder", type=Path, help="for the data, which are removed afterwards")
    args = parser.parse_args(argv)
    for samples in args.samples:
        folder = Path(tempfile.mkdtemp(dir=args.folder))
        try:
            scripts[args.script](folder, samples)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
