"""How long the features of an image take on a CPU, by the size of images and the number of threads.

    python -m tests.benchmarks.backbone
"""
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from utils.backbone.pretrained import PRETRAINED, Pretrained
from utils.processes import available_cores

SIZES, IMAGES, ROUNDS = (224, 128), 100, 5


def measure(backbone: Pretrained, threads: int) -> float:
    """Milliseconds per image, each computed alone, as `utils.backbone.extraction` does."""
    shape = (IMAGES, 3, backbone.size, backbone.size)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        list(pool.map(lambda number: backbone.features(images[number:number + 1]), range(IMAGES)))
        return (time.perf_counter() - start) / IMAGES * 1000


def main():
    for name in PRETRAINED:
        for size in SIZES:
            backbone = Pretrained(name, size)
            measure(backbone, 1)  # the first images are slower
            for threads in sorted({1, available_cores()}):
                times = [measure(backbone, threads) for _ in range(ROUNDS)]
                print(f"{name}, {size}x{size}, {threads} threads: {np.median(times):.2f} ms per image "
                      f"({min(times):.2f} to {max(times):.2f})", flush=True)


if __name__ == "__main__":
    main()
