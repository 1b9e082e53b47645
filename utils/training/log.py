"""The log of a training run: a line and a progress bar per epoch, and NNabla's Monitor series."""
import datetime
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nnabla.monitor import Monitor, MonitorSeries
from tqdm import tqdm

NAMES = {"train_loss": "Training loss", "train_error": "Training error", "test_loss": "Test loss",
         "test_error": "Test error", "seconds": "Training time"}


class TrainingLog:
    """Monitor series of a run, such as ``Training-loss.series.txt``, with an entry per completed epoch.

    Args:
        folder: the folder of the series.
        epochs: epochs in the whole run.
        history: a dictionary per epoch completed so far, with the keys of ``NAMES``; a resumed run
            rewrites its series from it, so that nothing is lost or repeated.
    """

    def __init__(self, folder: Path, epochs: int, history: list[dict]):
        monitor = Monitor(str(folder))
        self._series = {key: MonitorSeries(name, monitor, verbose=False)
                        for key, name in NAMES.items()}
        self._epochs = epochs
        self.history: list[dict] = []
        for record in history:
            self._append(record)
        self._resumed_at = len(history)
        self._spent = 0.0

    def _append(self, record: dict):
        self.history.append(record)
        for key, series in self._series.items():
            series.add(len(self.history), record[key])

    @contextmanager
    def epoch(self, samples: int) -> Iterator[Callable[[int, float, float, float], None]]:
        """Time an epoch over `samples`, and show its progress bar on a terminal.

        Yields a function to call after every update with the number of its samples, its mean loss,
        its error and its learning rate.
        """
        self._begin = time.monotonic()
        with tqdm(total=samples, unit="image", leave=False, disable=None,
                  desc=f"epoch {len(self.history) + 1}/{self._epochs}") as bar:
            def progress(count: int, loss: float, error: float, rate: float):
                bar.set_postfix(loss=f"{loss:.4f}", error=f"{error:.4f}", rate=f"{rate:.4g}",
                                refresh=False)
                bar.update(count)
            yield progress

    def add(self, train_loss: float, train_error: float, test_loss: float, test_error: float,
            rate: float) -> None:
        """Log the epoch that `epoch` timed, and print its line."""
        before = self.history[-1]["seconds"] if self.history else 0.0
        seconds = time.monotonic() - self._begin
        self._append({"train_loss": train_loss, "train_error": train_error, "test_loss": test_loss,
                      "test_error": test_error, "seconds": before + seconds})
        self._spent += seconds
        done = len(self.history)
        left = self._spent / (done - self._resumed_at) * (self._epochs - done)
        print(f"epoch {done}/{self._epochs}: loss {train_loss:.4f}, error {train_error:.4f}, "
              f"test loss {test_loss:.4f}, test error {test_error:.4f}, rate {rate:.4g}, "
              f"{seconds:.1f} s, {datetime.timedelta(seconds=round(left))} left", flush=True)
