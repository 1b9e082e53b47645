"""The log of a training run: a line and a progress bar per epoch, and NNabla's Monitor series."""
import datetime
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nnabla.monitor import Monitor, MonitorSeries
from tqdm import tqdm

# Updates and seconds before the time of the whole run is estimated: the first update prepares the rest.
UPDATES, SECONDS, PATIENCE = 10, 2.0, 10.0
# The time to test on an image, as a share of that to train on it: the forward pass alone.
TEST_SHARE = 1 / 3
WORTH_SAYING, LONG = 60.0, 3600.0

NAMES = {"train_loss": "Training loss", "train_error": "Training error", "test_loss": "Test loss",
         "test_error": "Test error", "seconds": "Training time"}


class TrainingLog:
    """Monitor series of a run, such as ``Training-loss.series.txt``, with an entry per completed epoch.

    Args:
        folder: the folder of the series; None for neither series nor progress bars.
        epochs: epochs in the whole run.
        history: a dictionary per epoch completed so far, with the keys of ``NAMES``; a resumed run
            rewrites its series from it, so that nothing is lost or repeated.
        tested: what the images of the test pass are called.
        shorter: what would shorten a training of hours, in words.
    """

    def __init__(self, folder: Path | None, epochs: int, history: list[dict], tested: str = "test",
                 shorter: str = ""):
        monitor = Monitor(str(folder)) if folder else None
        self._series = {key: MonitorSeries(name, monitor, verbose=False)
                        for key, name in NAMES.items() if monitor}
        self._no_bar = None if monitor else True  # None: only on a terminal
        self._epochs = epochs
        self.history: list[dict] = []
        for record in history:
            self._append(record)
        self._resumed_at = len(history)
        self._spent = 0.0
        self._tested, self._shorter = tested, shorter
        self._estimated = False

    def _append(self, record: dict):
        self.history.append(record)
        for key, series in self._series.items():
            series.add(len(self.history), record[key])

    @contextmanager
    def epoch(self, samples: int, test_samples: int = 0,
              ) -> Iterator[Callable[[int, float, float, float], None]]:
        """Time an epoch over `samples` and `test_samples`, and show its progress bar on a terminal.

        Yields a function to call after every update with the number of its samples, its mean loss,
        its error and its learning rate.  From the first updates it estimates the time of all epochs.
        """
        self._begin = time.monotonic()
        ends: list[float] = []
        seen: list[int] = []
        with tqdm(total=samples, unit="image", leave=False, disable=self._no_bar,
                  desc=f"epoch {len(self.history) + 1}/{self._epochs}") as bar:
            def progress(count: int, loss: float, error: float, rate: float):
                bar.set_postfix(loss=f"{loss:.4f}", error=f"{error:.4f}", rate=f"{rate:.4g}",
                                refresh=False)
                bar.update(count)
                if not self._estimated:
                    ends.append(time.monotonic())
                    seen.append(count)
                    self._estimate(ends, seen, samples + TEST_SHARE * test_samples)
            yield progress
        self._estimated = True  # by the line of the epoch

    def _estimate(self, ends: list[float], seen: list[int], work: float):
        """Print how long the epochs left take, once, if it is over a minute.

        Args:
            ends: when each update so far ended, in seconds.
            seen: the samples of each.
            work: the samples of an epoch.
        """
        measured = ends[-1] - ends[0]
        if measured < (SECONDS if len(ends) > UPDATES else PATIENCE):
            return
        self._estimated = True
        epochs = self._epochs - len(self.history)
        seconds = measured / sum(seen[1:]) * work * epochs
        if seconds < WORTH_SAYING:
            return
        with tqdm.external_write_mode():
            print(f"about {duration(seconds)} for {epochs} epoch{'s' if epochs > 1 else ''}"
                  f"{' more' if self.history else ''}", flush=True)
            if self._shorter and seconds >= LONG:
                print(f"what would shorten it: {self._shorter}", flush=True)

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
              f"{self._tested} loss {test_loss:.4f}, {self._tested} error {test_error:.4f}, "
              f"rate {rate:.4g}, {seconds:.1f} s, {datetime.timedelta(seconds=round(left))} left",
              flush=True)


def duration(seconds: float) -> str:
    """A time in words: 14 min, 2 h 10 min, 3 days 5 h."""
    minutes = max(round(seconds / 60), 1)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} day{'s' if days > 1 else ''} {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
