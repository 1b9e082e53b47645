"""Tasks spread over processes."""
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait

from utils.errors import RunError

_state: dict[str, Callable] = {}


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(make: Callable[[object], Callable], setup: object, tasks: list[tuple],
              workers: int) -> Iterator[tuple[tuple, object]]:
    """Give every task with its result, in the order in which they end.

    Args:
        make: ``make(setup)`` gives the function that is called as ``function(*task)``; each process
            makes its own, once.
        setup: what it is made with.
        tasks: the arguments of the calls; they are begun in this order.
        workers: number of processes, if there are as many tasks; with 1 this process does all itself.

    Raises:
        RunError: a process died.
        Exception: whatever the function raises.
    """
    workers = min(workers, len(tasks))
    if not tasks:
        return
    if workers == 1:
        function = make(setup)
        for task in tasks:
            yield task, function(*task)
        return
    # Forked, a process would inherit the threads' locks of NNabla and OpenMP, but not the threads.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin_worker,
                               (make, setup))
    # An interrupt from the keyboard reaches all processes: until `_begin_worker` they ignore it.
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
            except BrokenProcessPool:  # and so will be all that follow, but those done before
                broken = True
            else:
                yield task, result
    finally:
        # Not terminated, for one that was at its result would leave this process waiting for the rest.
        pool.shutdown(cancel_futures=True)
    if broken:
        raise RunError("a worker process died (killed, or out of memory); what was done is kept: run "
                       "again to go on, with fewer --workers or a smaller --batch_size if memory is "
                       "short")


def begin(make: Callable, setup: object):
    """Prepare a process for `call`."""
    _state.clear()
    _state.update(make=make, setup=setup)


def call(*task):
    """Compute a task in a process that is prepared."""
    # Made here and not in `begin`, whose exceptions a pool does not pass on.
    if "function" not in _state:
        _state["function"] = _state["make"](_state["setup"])
    return _state["function"](*task)


def _begin_worker(make: Callable, setup: object):
    """Prepare a worker, which ends with its parent, and at an interrupt without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    begin(make, setup)
