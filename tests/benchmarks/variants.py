r"""Does a better-founded variant of the last layer's self-influence find more mislabelled samples?

    python -m tests.benchmarks.variants experiment/uniform_1 experiment/uniform_2 experiment/uniform_3

With a = (h, 1), the error e = softmax(logits) - onehot(y) and the gradient g = a e^T, each is summed
over the checkpoints of a run:

bias         |e|^2, TracIn of the layer's bias alone
each alike   |g|^2, each checkpoint's divided by its mean over the samples
centred      |e|^2 (|h - mean h|^2 + 1)
Fisher       g^T F^-1 g, with F the second moment of g: the influence function (Koh & Liang 2017,
             arXiv:1703.04730) by the empirical Fisher
K-FAC        (a^T A^-1 a) (e^T B^-1 e), with A and B the second moments of a and e: the same by its
             Kronecker factors (Martens & Grosse 2015, arXiv:1503.05671)
Fisher bias  e^T B^-1 e, the same of the bias alone

The inverses are damped by a hundredth of the matrix's mean eigenvalue.  RelatIF (Barshan et al. 2020,
arXiv:2003.11630), which divides an influence by the root of the self-influence, makes of |g|^2 the
ranking ``tracin_norms``.
"""
import argparse
from pathlib import Path

import nnabla as nn
import numpy as np
import onnxruntime

from models.registry import build_network
from utils.graph.onnx_forward import INPUT, to_onnx
from utils.review.detection import detection_metrics
from utils.tracin.self_influence import output_error
from utils.training.checkpoint import check_parameters, find_checkpoints, load_parameters

DAMPING = 0.01


def quadratic(vectors: np.ndarray) -> np.ndarray:
    """v^T M^-1 v, (N,), of the rows (N, D), with M their damped second moment."""
    moment = vectors.T @ vectors / len(vectors)
    moment += DAMPING * np.trace(moment) / len(moment) * np.eye(len(moment))
    return (vectors * np.linalg.solve(moment, vectors.T).T).sum(axis=1)


def variants(h: np.ndarray, error: np.ndarray) -> dict[str, np.ndarray]:
    """Scores (N,) at one checkpoint by name, of the features (N, D) and the errors (N, C)."""
    a = np.hstack([h, np.ones((len(h), 1))])
    squared = (error**2).sum(axis=1)
    influence = squared * (a**2).sum(axis=1)
    gradient = (a[:, :, None] * error[:, None, :]).reshape(len(a), -1)
    return {"tracin": influence, "bias": squared, "each alike": influence / influence.mean(),
            "centred": squared * (((h - h.mean(axis=0))**2).sum(axis=1) + 1),
            "Fisher": quadratic(gradient), "K-FAC": quadratic(a) * quadratic(error),
            "Fisher bias": quadratic(error)}


def measure(run: Path) -> dict[str, dict[str, float]]:
    """The metrics of every variant."""
    images, labels = (np.load(run / name) for name in ("x_train.npy", "y_shuffle_train.npy"))
    wrong = (np.load(run / "y_train.npy") != labels)[:, 0]
    checkpoints = find_checkpoints(run)
    made_with = checkpoints[0].description
    network = build_network(made_with.model, made_with.classes, made_with.nmaps)
    image = nn.Variable((1, 3, 32, 32))
    totals: dict[str, np.ndarray] = {}
    nn.clear_parameters()
    check_parameters(checkpoints, network)
    _, features = network(image, test=True)
    for checkpoint in checkpoints:
        load_parameters(checkpoint)
        session = onnxruntime.InferenceSession(to_onnx(image, features).SerializeToString())
        h = np.concatenate([session.run(None, {INPUT: batch.astype(np.float32)})[0]
                            for batch in np.array_split(images, -(-len(images) // 100))])
        h = h.reshape(len(h), -1).astype(np.float64)
        weight, bias = (nn.get_parameters(grad_only=False)[f"affine/{name}"].d for name in "Wb")
        for name, score in variants(h, output_error(h @ weight + bias, labels)).items():
            totals[name] = totals.get(name, 0) + score
    return {name: detection_metrics(score, wrong) for name, score in totals.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="train.py's --output and --model_save_path")
    results = [measure(run) for run in parser.parse_args().runs]
    print("recall at 10 / 20 / 30 %, AUROC: mean over the runs (range)")
    for name in results[0]:
        cells = []
        for metric in ("recall_at_10", "recall_at_20", "recall_at_30", "auroc"):
            values = [result[name][metric] for result in results]
            cells.append(f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        print(f"{name:13}" + "  ".join(cells))


if __name__ == "__main__":
    main()
