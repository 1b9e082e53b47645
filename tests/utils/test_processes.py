import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, children, gone, refused
from tests.utils.tasks import LONG, Task
from utils.errors import RunError
from utils.processes import available_cores, run_in_processes


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_has_its_result(workers):
    results = dict(run_in_processes(Task, None, [(number,) for number in range(20)], workers))
    assert {task: square for task, (square, _) in results.items()} == \
        {(number,): number * number for number in range(20)}
    processes = {process for _, process in results.values()}
    assert (processes == {os.getpid()}) if workers == 1 else (os.getpid() not in processes)


def test_one_task_is_not_worth_a_process():
    assert list(run_in_processes(Task, None, [(3,)], 5)) == [((3,), (9, os.getpid()))]
    assert list(run_in_processes(Task, "unusable", [], 5)) == []


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("setup", "message"), [("refuse", "refused: 2"),
                                                ("unusable", "refused: setup")])
def test_what_a_task_refuses_is_passed_on(setup, message, workers):
    with refused(message):
        list(run_in_processes(Task, setup, [(1,), (2,), (3,)], workers))
    assert not children(os.getpid())


@pytest.mark.parametrize("who", ["task", "consumer"])
def test_tasks_that_are_left_are_not_computed_for_nothing(tmp_path, who):
    tasks = [(number + (10 if who == "consumer" else 0), tmp_path) for number in range(60)]
    results = run_in_processes(Task, "slow", tasks, 2)
    if who == "task":
        with refused("refused: 2"):
            list(results)
    else:
        next(results)
        results.close()
    assert not children(os.getpid())
    assert 1 <= len(list(tmp_path.iterdir())) < 20


def test_death_of_a_worker_is_told_after_what_was_done():
    results = []
    with refused("--workers", "--batch_size", error=RunError):
        for (number,), _ in run_in_processes(Task, "die", [(0,), (1,), (2,), (3,)], 2):
            results.append(number)
    assert 2 not in results
    assert not children(os.getpid())
    assert RunError.code == 1


@pytest.mark.parametrize(("number", "send"), [(signal.SIGKILL, os.kill), (signal.SIGTERM, os.kill),
                                              (signal.SIGINT, os.killpg)])
def test_workers_end_with_their_parent(tmp_path, number, send):
    """The parent is killed or interrupted; the workers end too, though they have long tasks left."""
    code = ("from pathlib import Path; from tests.utils.tasks import Task; "
            "from utils.processes import run_in_processes\n"
            f"list(run_in_processes(Task, 'wait', [(n, Path({str(tmp_path)!r})) for n in range(4)], 2))")
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL,
                              start_new_session=True)
    while len(list(tmp_path.iterdir())) < 2 and parent.poll() is None:
        time.sleep(0.05)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert len(workers) == 2
    send(parent.pid, number)  # an interrupt from the keyboard reaches all
    parent.wait(LONG / 6)
    assert gone(workers, within=LONG / 6)


def test_cores_are_those_that_the_process_may_use():
    code = ("import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
            "from utils.processes import available_cores; print(available_cores())")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                            check=True)
    assert result.stdout == "1\n"
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


def write(root: Path, files: dict[str, str]):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(("group", "limits", "cores"), [
    ("0::/", {}, 8),
    ("0::/", {"cpu.max": "max 100000\n"}, 8),
    ("0::/", {"cpu.max": "150000 100000\n"}, 2),
    ("0::/", {"cpu.max": "10000 100000\n"}, 1),
    ("0::/", {"cpu.max": "9900000 100000\n"}, 8),
    ("0::/", {"cpu.max": "damaged"}, 8),
    ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
    ("0::/a/b", {"a/b/cpu.max": "200000 100000", "a/cpu.max": "300000 100000"}, 2),
    ("0::/a", {"b/cpu.max": "200000 100000"}, 8),
    ("0::/../../a", {"a/cpu.max": "200000 100000"}, 2),
    ("1:name=systemd:/\n0::/a", {"unified/a/cpu.max": "200000 100000"}, 2),
    ("4:cpu,cpuacct:/a\n0::/", {"cpu,cpuacct/a/cpu.cfs_quota_us": "250000\n",
                               "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"}, 3),
    ("4:cpuacct,cpu:/docker/x", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "50000"}, 1),
    ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ("4:cpuset:/", {"cpuset/cpu.cfs_quota_us": "100000", "cpuset/cpu.cfs_period_us": "100000"}, 8),
])
def test_quota_of_a_container_counts(tmp_path, monkeypatch, group, limits, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    write(tmp_path, {"proc/self/cgroup": f"{group}\n",
                     **{f"sys/fs/cgroup/{name}": text for name, text in limits.items()}})
    assert available_cores(tmp_path) == cores


def test_hyperthreads_of_a_core_count_once(tmp_path, monkeypatch):
    siblings = {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"}
    write(tmp_path, {f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list": f"{both}\n"
                     for number, both in siblings.items()})
    for allowed, cores in [(range(8), 4), ([0, 4], 1), ([0, 1, 5], 2), ([7], 1), ([0, 8, 9], 3)]:
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, allowed=allowed: set(allowed))
        assert available_cores(tmp_path) == cores


def test_cores_are_counted_where_the_system_tells_nothing(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert available_cores(tmp_path) == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores(tmp_path) == 1
