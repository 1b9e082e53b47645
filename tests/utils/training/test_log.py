import re

import pytest

from utils.training import log as log_module
from utils.training.log import TrainingLog, duration


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


def test_images_that_are_tested_on_have_their_name_in_the_line(tmp_path, capsys):
    log_epochs(TrainingLog(tmp_path, 3, [], tested="seen"), 1)
    line, = capsys.readouterr().out.splitlines()
    assert line.count("seen ") == 2 and "test" not in line


@pytest.fixture
def clock(monkeypatch):
    """The time that the log sees, in seconds, as a list of one number."""
    now = [0.0]
    monkeypatch.setattr(log_module.time, "monotonic", lambda: now[0])
    return now


def run_epoch(log, clock, seconds, updates=100, first=60.0, tested=0):
    """An epoch of updates of 10 samples, the first of which prepares the rest."""
    with log.epoch(10 * updates, tested) as progress:
        for update in range(updates):
            clock[0] += seconds if update else first
            progress(10, 0.5, 0.25, 0.1)
    log.add(1, 0.5, 2, 0.75, 0.1)


def test_first_updates_tell_the_time_of_the_run_once(tmp_path, capsys, clock):
    log = TrainingLog(tmp_path, 30, [], shorter="--subset")
    run_epoch(log, clock, 1.0, tested=1500)  # 100 s to train, 50 s to test
    run_epoch(log, clock, 1.0)
    first, second, *rest = capsys.readouterr().out.splitlines()
    assert "1 h 15 min" in first and "30 " in first and "--subset" in second
    assert len(rest) == 2


def test_resumed_run_tells_the_time_of_the_epochs_left(tmp_path, capsys, clock):
    before = TrainingLog(tmp_path, 30, [])
    run_epoch(before, clock, 1.0)
    capsys.readouterr()
    log = TrainingLog(tmp_path, 30, before.history * 27, shorter="--subset")
    run_epoch(log, clock, 1.0)
    first, *rest = capsys.readouterr().out.splitlines()
    assert "5 min" in first and " 3 " in first and "--subset" not in first and len(rest) == 1


@pytest.mark.parametrize(("seconds", "updates"), [(0.001, 500), (0.1, 10), (0.5, 3)])
def test_short_run_tells_no_time(tmp_path, capsys, clock, seconds, updates):
    run_epoch(TrainingLog(tmp_path, 2, []), clock, seconds, updates)
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(("seconds", "words"), [
    (61, "1 min"), (3599, "1 h 0 min"), (7830, "2 h 10 min"), (86400 * 2 + 3600 * 5, "2 days 5 h")])
def test_duration_is_in_the_two_largest_units(seconds, words):
    assert duration(seconds) == words
