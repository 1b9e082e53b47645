import re

from utils.training.log import TrainingLog


def read(folder, name):
    lines = (folder / f"{name}.series.txt").read_text().splitlines()
    return [(int(line.split()[0]), float(line.split()[1])) for line in lines]


def log_epochs(log, count):
    for _ in range(count):
        with log.epoch(10) as progress:
            progress(10, 0.5, 0.25, 0.1)
        done = len(log.history)
        log.add(1 / (done + 1), 0.5, 2.0, 0.75, 0.1)


def test_series_hold_every_epoch_by_its_number(tmp_path, capsys):
    log_epochs(TrainingLog(tmp_path, 3, []), 2)
    assert read(tmp_path, "Training-loss") == [(1, 1), (2, 0.5)]
    assert read(tmp_path, "Training-error") == [(1, 0.5), (2, 0.5)]
    assert read(tmp_path, "Test-loss") == [(1, 2), (2, 2)]
    assert read(tmp_path, "Test-error") == [(1, 0.75), (2, 0.75)]
    assert [epoch for epoch, _ in read(tmp_path, "Training-time")] == [1, 2]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "2/3" in lines[1]
    # Both losses and errors, the learning rate, and the time that is left.
    found = re.findall(r"\d+[.:][\d.:]*\d", lines[1])
    assert found[:5] == ["0.5000", "0.5000", "2.0000", "0.7500", "0.1"] and found[-1] == "0:00:00"


def test_resumed_run_keeps_the_series_whole_and_in_order(tmp_path):
    first = TrainingLog(tmp_path, 4, [])
    log_epochs(first, 3)  # and is killed; the newest checkpoint is of epoch 2
    resumed = TrainingLog(tmp_path, 4, first.history[:2])
    log_epochs(resumed, 2)
    assert read(tmp_path, "Training-loss") == [(1, 1), (2, 0.5), (3, 0.333333), (4, 0.25)]
    seconds = [value for _, value in read(tmp_path, "Training-time")]
    assert seconds == sorted(seconds)
