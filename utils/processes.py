"""Tasks spread over processes."""
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeVar

from utils.errors import RunError

Plan = TypeVar("Plan")
Result = TypeVar("Result")
_state: dict[str, Any] = {}


def logical_cores(process: int = 0) -> set[int]:
    """The logical cores that a process, by default this one, may use by its affinity."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(process)
    return set(range(os.cpu_count() or 1))


def available_cores(root: Path = Path("/"), logical: set[int] | None = None) -> int:
    """The physical cores that this process may use, by its affinity and its control groups.

    Args:
        root: the folder with ``proc`` and ``sys``, where the system has them.
        logical: the logical cores; None for `logical_cores`.
    """
    logical = logical_cores() if logical is None else logical
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    # Hyperthreads of a core have the same siblings.
    cores = {_read(root / topology.format(number)).strip() or number for number in logical}
    return max(1, math.ceil(min([len(cores), *map(_quota, _groups(root))])))


def _groups(root: Path) -> Iterator[Path]:
    """The folders, some of which may not exist, of the control groups of this process and above."""
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2, alone or beside version 1
            tops = [mount, mount / "unified"]
        elif "cpu" in controllers.split(","):
            tops = [mount / controllers, mount / "cpu"]
        else:
            continue
        # In a container the path may be that outside, where the mount begins at the container's own.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for top in tops:
            yield from (top.joinpath(*parts[:depth]) for depth in range(len(parts) + 1))


def _quota(group: Path) -> float:
    """The cores that a control group may use at a time; infinity if it does not limit them."""
    text = _read(group / "cpu.max") or (
        f"{_read(group / 'cpu.cfs_quota_us')} {_read(group / 'cpu.cfs_period_us')}")
    try:
        quota, period = map(int, text.split())
    except ValueError:  # "max 100000", or no such files
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def run_in_processes(make: Callable[[Plan], Callable[..., Result]], plan: Plan, tasks: list[tuple],
                     workers: int) -> Generator[tuple[tuple, Result], None, None]:
    """Yield every task with its result, in the order in which they end.

    Args:
        make: ``make(plan)`` returns the function that is called as ``function(*task)``; each process
            makes its own, once.
        plan: the argument of `make`.
        tasks: the arguments of the calls, which start in this order.
        workers: at most so many processes; with 1 this process computes everything itself.

    Raises:
        RunError: a process died.
        Exception: whatever the function raises.
    """
    workers = min(workers, len(tasks))
    if not tasks:
        return
    if workers == 1:
        function = make(plan)
        for task in tasks:
            yield task, function(*task)
        return
    # A forked process would inherit the locks of NNabla's and OpenMP's threads, but not the threads.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin_worker,
                               (make, plan))
    # Ctrl-C reaches all processes; they ignore it until `_begin_worker`.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        futures = {pool.submit(call, *task): task for task in tasks}
    finally:
        signal.signal(signal.SIGINT, handler)
    broken = False
    try:
        for future in as_completed(futures):
            task = futures.pop(future)
            try:
                result = future.result()
            except BrokenProcessPool:  # tasks that ended before still have results
                broken = True
            else:
                yield task, result
    finally:
        # A worker terminated while it sends its result would leave this process waiting for the rest.
        pool.shutdown(cancel_futures=True)
    if broken:
        raise RunError("a worker process died (killed, or out of memory); finished work is kept: run "
                       "again to resume, with fewer --workers or a smaller --batch_size if memory is "
                       "short")


def begin(make: Callable, plan: object):
    """Prepare a process for `call`."""
    _state.clear()
    _state.update(make=make, plan=plan)


def call(*task):
    """Compute a task in a prepared process."""
    # Not made in `begin`, because a pool does not pass on the exceptions of its initializer.
    if "function" not in _state:
        _state["function"] = _state["make"](_state["plan"])
    return _state["function"](*task)


def _begin_worker(make: Callable, plan: object):
    """Prepare a worker that ends with its parent, and silently on Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    begin(make, plan)
