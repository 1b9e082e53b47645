"""What training shows and logs: a line and a bar an epoch, and NNabla's Monitor series."""
import datetime
from pathlib import Path

from nnabla.monitor import Monitor, MonitorSeries

SERIES = {"train_loss": "Training loss", "train_error": "Training error", "test_loss": "Test loss",
          "test_error": "Test error", "seconds": "Training time"}


class TrainingLog:
    """Monitor series of one run, ``Training-loss.series.txt`` and so on, by completed epochs.

    Args:
        folder: where the series are written.
        epochs: epochs in the whole run.
        history: one dictionary an epoch completed so far, with the keys of ``SERIES``; a resumed
            run writes its series anew from it, so that nothing is lost or doubled.
    """

    def __init__(self, folder: Path, epochs: int, history: list[dict]):
        monitor = Monitor(str(folder))
        self._series = {key: MonitorSeries(name, monitor, verbose=False)
                        for key, name in SERIES.items()}
        self._epochs = epochs
        self.history: list[dict] = []
        for record in history:
            self._append(record)
        self._resumed_at = len(history)

    def _append(self, record: dict):
        self.history.append(record)
        for key, series in self._series.items():
            series.add(len(self.history), record[key])

    def add(self, record: dict, rate: float) -> str:
        """Log an epoch; `seconds` is the time since the run began.  Returns the line that tells it."""
        before = self.history[self._resumed_at - 1]["seconds"] if self._resumed_at else 0.0
        self._append(record)
        done = len(self.history)
        left = (record["seconds"] - before) / (done - self._resumed_at) * (self._epochs - done)
        return (f"epoch {done}/{self._epochs}: loss {record['train_loss']:.4f}, "
                f"error {record['train_error']:.4f}, test loss {record['test_loss']:.4f}, "
                f"test error {record['test_error']:.4f}, rate {rate:.4g}, "
                f"{datetime.timedelta(seconds=round(left))} left")
