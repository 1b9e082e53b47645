"""The processes, called ranks, of a job that ``mpirun -n R`` or ``srun`` started.

Without a launcher there is one rank, and mpi4py is not needed.  `utils.cli.run` calls `start`; processes
that a rank starts itself are no ranks.
"""
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

from utils.errors import UserError
from utils.processes import available_cores

# Number of ranks and own rank, as Open MPI, MPICH (and Intel MPI), MVAPICH and Slurm tell them.
LAUNCHERS = [("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("PMI_SIZE", "PMI_RANK"),
             ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"), ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID")]
POLL_SECONDS = 0.01  # MPI's own waiting would keep a core busy


@dataclass(frozen=True)
class Job:
    """This process's place among the ranks.

    Attributes:
        rank: its number, from 0; rank 0 writes.
        size: number R of ranks.
        local_rank, local_size: the same among the ranks on this machine.
        cores: the cores that it should use.
        comm: mpi4py's communicator of all ranks; None if there is one rank.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    cores: int = 1
    comm: Any = None


_job: Job | None = None


def job() -> Job:
    """This process's place; the only rank unless `start` found a launcher."""
    return _job or Job(cores=available_cores())


def start():
    """Join the other ranks, if a launcher started this process as one of several.

    Ranks other than the first print nothing but errors.

    Raises:
        UserError: mpi4py is missing, or belongs to another MPI than the launcher.
    """
    global _job
    size = launched()
    if size == 1:
        return
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: it finds no MPI library
        raise UserError(f"expected mpi4py, because a launcher started {size} processes, found "
                        f"{error}; pip install -r requirements-mpi.txt, or start one process") from error
    comm = MPI.COMM_WORLD
    if comm.size != size:
        raise UserError(f"expected {size} ranks, as the launcher says, found {comm.size} by mpi4py, "
                        "which uses another MPI; start with the mpirun that belongs to it")
    here = comm.Split_type(MPI.COMM_TYPE_SHARED)
    _job = Job(comm.rank, size, here.rank, here.size, _share(here), comm)
    if _job.rank:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def launched() -> int:
    """The number of ranks that a launcher started, by its environment; 1 if there is none."""
    sizes = [os.environ.get(size, "") for size, _ in LAUNCHERS]
    return max([int(size) for size in sizes if size.isdecimal()], default=1)


def launched_rank() -> int:
    """This process's rank by the launcher's environment, even without mpi4py."""
    ranks = [os.environ.get(rank, "") for _, rank in LAUNCHERS]
    return max([int(rank) for rank in ranks if rank.isdecimal()], default=0)


def _share(here: Any) -> int:
    """The cores for each rank of a machine: those it is bound to, by as many ranks as share them."""
    bound = here.allgather(sorted(os.sched_getaffinity(0)))
    return max(1, available_cores() // bound.count(bound[here.rank]))


def wait_for_all():
    """Wait until every rank is here, without keeping a core busy."""
    if job().size > 1:
        request = job().comm.Ibarrier()
        while not request.Test():
            time.sleep(POLL_SECONDS)


def end(code: int):
    """End all ranks at once, with an exit code."""
    if job().size > 1:
        job().comm.Abort(code)
