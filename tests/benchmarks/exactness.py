"""How far the scores at the checkpoints of a run are from their definition.

    python -m tests.benchmarks.exactness demo

The references are back-propagation of one sample at a time through NNabla's graph, in float32, and the
same in float64.  The largest differences of all layers belong to samples with an activation so close to
a ReLU's kink that rounding decides which side it is on.
"""
import argparse
from pathlib import Path

import numpy as np

from models.registry import build_network
from tests.utils.tracin.float64 import float64_scores
from tests.utils.tracin.test_engines import EVERY, gradient_norms, make_engine
from utils.training.checkpoint import check_parameters, find_checkpoints, load_parameters

SURE = 0.01  # below this norm of the error, float32 has few digits of it


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="train.py's --output and --model_save_path")
    parser.add_argument("--samples", type=int, default=300)
    args = parser.parse_args()
    images = np.load(args.run / "x_train.npy")[:args.samples]
    labels = np.load(args.run / "y_shuffle_train.npy")[:args.samples].astype(np.int64)
    checkpoints = find_checkpoints(args.run)
    made_with = checkpoints[0].description
    network = build_network(made_with.model, made_with.classes, made_with.nmaps)
    check_parameters(checkpoints, network)
    engines = {name: make_engine(name, network, 16) for name in EVERY}
    rows: dict[str, list] = {}
    for checkpoint in checkpoints:
        load_parameters(checkpoint)
        scores = {}
        for name, engine in engines.items():
            engine.load_parameters()
            scores[name] = engine.score(images, labels)
        plain = scores["nnabla last"].error_norm > SURE
        for layers in ("last", "all"):
            loop = gradient_norms(network, images, labels, layers)
            exact, _ = float64_scores(network, images, labels, layers)
            for row, computed, expected in [
                    *((f"{name}, from the loop", scores[name].influence, loop)
                      for name in EVERY if name.endswith(layers)),
                    *((f"{name}, from float64", scores[name].influence, exact)
                      for name in EVERY if name.endswith(layers)),
                    (f"loop {layers}, from float64", loop, exact)]:
                difference = np.abs(computed - expected) / expected
                rows.setdefault(row, []).append((difference, difference[plain]))
    print(f"relative difference: median, largest, largest where the error's norm is above {SURE}, and "
          "share above 1e-5")
    for row, differences in rows.items():
        both, plain = (np.concatenate(parts) for parts in zip(*differences, strict=True))
        print(f"{row:42} {np.median(both):.1e}  {both.max():.1e}  {plain.max():.1e}  "
              f"{np.mean(both > 1e-5):.2%}")


if __name__ == "__main__":
    main()
