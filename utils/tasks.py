"""Tasks spread over processes or, in an MPI job, over its ranks."""
import platform
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from utils.errors import RunError, UserError, exit_code
from utils.files import spot_check
from utils.mpi import job, other_files, wait_for_all
from utils.processes import begin, call, run_in_processes

Plan = TypeVar("Plan")
Result = TypeVar("Result")


def run_tasks(make: Callable[[Plan], Callable[..., Result]], plan: Plan, tasks: list[tuple],
              workers: int, files: Sequence[Path] = ()) -> Generator[tuple[tuple, Result], None, None]:
    """Yield every task with its result, in the order in which they end.

    Args:
        make, plan, tasks, workers: as for `run_in_processes`; in an MPI job the ranks are the processes.
        files: what the tasks read, which every rank must see as the first one does.

    Raises:
        RunError: a process died.
        UserError: a rank sees other files.
        Exception: whatever the function raises.  In an MPI job the other ranks go on: end it.
    """
    if job().size == 1:
        return run_in_processes(make, plan, tasks, workers)
    return _run_on_ranks(make, plan, tasks, files)


def _run_on_ranks(make: Callable[[Plan], Callable[..., Result]], plan: Plan, tasks: list[tuple],
                  files: Sequence[Path]) -> Generator[tuple[tuple, Result], None, None]:
    from mpi4py.futures import MPICommExecutor

    if not tasks:
        return
    waiting, ended = deque(tasks), SimpleQueue[tuple[tuple, Any]]()
    checked = make, plan, {path: spot_check(path) for path in files}, platform.node()
    _tell_ranks(go_on=True)
    executor = MPICommExecutor(job().comm, initializer=begin, initargs=(_make_checked, checked))
    pool = executor.__enter__()

    def submit():
        with suppress(IndexError):  # none is left
            task = waiting.popleft()
            pool.submit(_call_named, *task).add_done_callback(lambda future: receive(task, future))

    def receive(task: tuple, future: Any):  # in the pool's thread: ranks do not wait for this one's task
        ended.put((task, future))
        submit()

    for _ in range(job().size - 1):
        submit()
    function: Callable[..., Result] | None = None
    for _ in tasks:
        own = None
        if ended.empty():
            with suppress(IndexError):
                own = waiting.popleft()
        if own is None:
            task, future = ended.get()
            yield task, future.result()
        else:
            function = function or make(plan)
            yield own, function(*own)
    # Not after an error: it would wait for the tasks that the ranks still compute.
    executor.__exit__(None, None, None)


def _make_checked(checked: tuple[Callable, object, Mapping[Path, str], str]) -> Callable:
    """Make a rank's function if it sees the first one's files."""
    make, plan, seen, host = checked
    problem = other_files(seen, host)
    if problem:
        raise UserError(problem)
    return make(plan)


def _call_named(*task: object) -> object:
    """Compute a task; errors name the rank."""
    try:
        return call(*task)
    except UserError as error:
        kind = RunError if exit_code(error) == RunError.code else UserError
        raise kind(f"rank {job().rank} on {platform.node()}: {error}") from None


def lead(main: Callable[[], object]):
    """Call `main` on the first rank; the others compute the tasks of its `run_tasks`.

    After an error of `main` the caller ends the other ranks.
    """
    if job().rank:
        _serve()
        return
    try:
        main()
    except SystemExit:  # after --help
        _tell_ranks(go_on=False)
        raise
    _tell_ranks(go_on=False)


def _tell_ranks(go_on: bool):
    if job().size > 1:
        wait_for_all()
        job().comm.bcast(go_on)


def _serve():
    """Compute tasks until the first rank has no more."""
    from mpi4py.futures import MPICommExecutor

    wait_for_all()
    while job().comm.bcast(None):
        with MPICommExecutor(job().comm):
            pass
        wait_for_all()
