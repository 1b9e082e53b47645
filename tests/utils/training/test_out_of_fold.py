import numpy as np
import pytest

from tests.conftest import refused
from utils.training import out_of_fold

PROBABILITY = np.array([[0.2, 0.8], [1, 0], [0.5, 0.5]], np.float32)


def test_saved_probabilities_are_read_again(tmp_path):
    out_of_fold.save(tmp_path, "run", PROBABILITY)
    again = out_of_fold.load(tmp_path, "run", (3, 2))
    assert np.array_equal(again, PROBABILITY) and again.dtype == np.float32
    assert out_of_fold.load(tmp_path / "elsewhere", "run", (3, 2)) is None


@pytest.mark.parametrize(("damage", "facts"), [
    (lambda path: path.write_bytes(b"PK"), []),
    (lambda path: np.savez(path, probability=PROBABILITY), []),
    (lambda path: np.savez(path, probability=PROBABILITY, run_sha256="other"), []),
    (lambda path: np.savez(path, probability=np.array([None]), run_sha256="run"), []),
    (lambda path: np.savez(path, probability=PROBABILITY.astype(float), run_sha256="run"), ["float64"]),
    (lambda path: np.savez(path, probability=PROBABILITY[:2], run_sha256="run"), ["(2, 2)", "(3, 2)"]),
    (lambda path: np.savez_compressed(path, probability=np.zeros((999, 2), np.float32),
                                      run_sha256="run"), ["more than"]),
    (lambda path: np.savez(path, probability=PROBABILITY * 2, run_sha256="run"), []),
    (lambda path: np.savez(path, probability=PROBABILITY * np.float32(np.nan), run_sha256="run"), []),
    (lambda path: np.savez(path, probability=PROBABILITY + np.float32([1, -1]), run_sha256="run"), []),
])
def test_files_that_do_not_fit_are_refused(tmp_path, damage, facts):
    damage(tmp_path / "out_of_fold.npz")
    with refused("out_of_fold.npz", *facts):
        out_of_fold.load(tmp_path, "run", (3, 2))
