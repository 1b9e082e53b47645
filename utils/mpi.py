"""The processes, called ranks, of a job that ``mpirun -n R`` or ``srun`` started.

Without a launcher there is one rank, and mpi4py is not needed.  `utils.cli.run` calls `start`; processes
that a rank starts itself are no ranks.
"""
import os
import platform
import sys
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import cell_number, spot_check
from utils.processes import available_cores, logical_cores

# Number of ranks, own rank and own rank on the machine, as Open MPI, MPICH (and Intel MPI), MVAPICH and
# Slurm's srun tell them.  The first that is set counts: mpirun starts its daemons on other hosts by
# srun, which tells them, and so the ranks, the number of hosts.
LAUNCHERS = [("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
             ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID"),
             ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
             ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID")]
POLL_SECONDS = 0.01  # MPI's own waiting would keep a core busy


@dataclass(frozen=True)
class Job:
    """This process's place among the ranks.

    Attributes:
        rank: its number, from 0; rank 0 writes.
        size: number R of ranks.
        local_rank, local_size: the same among the ranks on this machine.
        cores: the number of cores that it should use.
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
        _tell_binding(logical_cores())
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of another MPI, which is an error below
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: it finds no MPI library
        raise UserError(f"expected mpi4py, because a launcher started {size} processes, found "
                        f"{error}; pip install -r requirements-mpi.txt, or start one process") from error
    comm = MPI.COMM_WORLD
    if comm.size != size:
        vendor, version = MPI.get_vendor()
        raise UserError(f"expected {size} ranks, as the launcher says, found {comm.size} by mpi4py, "
                        f"which uses {vendor} {'.'.join(map(str, version))}; start them with its mpirun")
    here = comm.Split_type(MPI.COMM_TYPE_SHARED)
    bound = here.allgather(logical_cores())
    share = max(1, available_cores() // bound.count(bound[here.rank]))
    _job = Job(comm.rank, size, here.rank, here.size, share, comm)
    if _job.rank == 0:
        _tell_binding(set.union(*bound))
    else:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def launched() -> int:
    """The number of ranks that a launcher started, by its environment; 1 if there is none."""
    return max(1, _told()[0])


def launched_rank() -> int:
    """This process's rank by the launcher's environment, even without mpi4py."""
    return max(0, _told()[1])


def speaks() -> bool:
    """Whether this process may print errors: without mpi4py one rank of a machine speaks for all."""
    return job().size > 1 or _told()[2] <= 0


def _told() -> list[int]:
    """The numbers in ``LAUNCHERS`` by the environment, -1 where there is none."""
    told = [[cell_number(os.environ.get(name, "")) for name in names] for names in LAUNCHERS]
    return next((numbers for numbers in told if numbers[0] >= 0), [-1, -1, -1])


def _tell_binding(bound: set[int]):
    """Say so if Open MPI binds this machine's ranks to fewer cores than its launcher, their parent.

    That is its default for one or two ranks.
    """
    if "OMPI_COMM_WORLD_SIZE" not in os.environ:
        return
    with suppress(OSError):  # the parent may belong to another container
        used, could = (available_cores(logical=cores) for cores in (bound, logical_cores(os.getppid())))
        if used < could:
            print(f"note: mpirun bound the ranks of this machine to {used} of its {could} cores; "
                  "start it with --bind-to none to use them all", flush=True)


def other_files(seen: Mapping[Path, str], host: str) -> str:
    """What to do about the first file that this rank does not see as another does; empty if none.

    Args:
        seen: the files and their `spot_check` on the other rank.
        host: the other rank's machine.
    """
    for path, content in seen.items():
        found = spot_check(path)
        if found != content:
            return (f"expected {path} as on {host}, found {'another' if found else 'none'} on "
                    f"{platform.node()}; give a folder that all machines share")
    return ""


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
