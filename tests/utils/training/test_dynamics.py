import numpy as np
import pytest

from utils.errors import UserError
from utils.training import dynamics
from utils.training.dynamics import TrainingDynamics


@pytest.fixture
def recorded():
    """Four samples over two of three epochs, in batches of two."""
    result = TrainingDynamics(4, 3)
    for epoch in range(2):
        for batch in ([3, 0], [1, 2]):
            values = np.array(batch) + 10.0 * epoch
            result.record(epoch, np.array(batch), values, values - 1.5)
    return result


def test_index_travels_with_the_sample(recorded):
    assert recorded.loss[:, :2].tolist() == [[0, 10], [1, 11], [2, 12], [3, 13]]
    assert recorded.margin[:, 0].tolist() == [-1.5, -0.5, 0.5, 1.5]
    assert recorded.correct.tolist() == [[False, True, False], [False, True, False],
                                         [True, True, False], [True, True, False]]
    assert recorded.epochs == 2


def test_huge_numbers_stay_finite():
    result = TrainingDynamics(2, 1)
    result.record(0, np.arange(2), np.array([1e6, 0]), np.array([-1e6, 1e9]))
    assert result.loss.tolist() == [[65504], [0]]
    assert result.margin.tolist() == [[-65504], [65504]]


def test_saved_epochs_are_read_again(recorded, tmp_path):
    recorded.save(tmp_path, "run")
    again = dynamics.load(tmp_path, "run", 4)
    assert again.epochs == 2
    for name in ("loss", "margin", "correct"):
        assert np.array_equal(getattr(again, name), getattr(recorded, name)[:, :2])
    assert again.loss.dtype == np.float16 and again.correct.dtype == bool
    assert dynamics.load(tmp_path / "elsewhere", "run", 4) is None


def test_interrupted_run_goes_on_from_any_recorded_epoch(recorded, tmp_path):
    recorded.save(tmp_path, "run")
    resumed = TrainingDynamics(4, 3)
    assert resumed.resume(tmp_path, "run", 1)
    assert np.array_equal(resumed.loss[:, 0], recorded.loss[:, 0])
    assert resumed.epochs == 1 and not resumed.correct[:, 1:].any()
    for folder, run, epoch in [(tmp_path, "other", 1), (tmp_path, "run", 3),
                                  (tmp_path / "elsewhere", "run", 1)]:
        resumed = TrainingDynamics(4, 3)
        assert not resumed.resume(folder, run, epoch)
        assert np.isnan(resumed.loss[:, :epoch]).all() and np.isnan(resumed.margin[:, :epoch]).all()
    assert not TrainingDynamics(5, 3).resume(tmp_path, "run", 1)


@pytest.mark.parametrize(("damage", "value"), [
    (lambda path: path.write_bytes(b"PK"), "training_dynamics.npz"),
    (lambda path: np.savez(path, loss=np.zeros(3)), "training_dynamics.npz"),
    (lambda path: np.savez(path, **{**np.load(path), "run_sha256": "other"}),
     "training_dynamics.npz"),
    (lambda path: np.savez(path, **{**np.load(path), "loss": np.zeros((4, 2))}),
     r"float64 \(4, 2\)"),
    (lambda path: np.savez(path, **{**np.load(path), "margin": np.zeros((4, 1), np.float16)}),
     r"float16 \(4, 1\)"),
    (lambda path: np.savez(path, **{name: array[:3] if array.ndim else array
                                    for name, array in np.load(path).items()}), r"\(3, 2\)"),
    (lambda path: np.savez(path, **{name: array[:, :0] if array.ndim else array
                                    for name, array in np.load(path).items()}), r"\(4, 0\)"),
])
def test_files_that_do_not_fit_are_refused(recorded, tmp_path, damage, value):
    recorded.save(tmp_path, "run")
    damage(tmp_path / "training_dynamics.npz")
    with pytest.raises(UserError, match=value):
        dynamics.load(tmp_path, "run", 4)
