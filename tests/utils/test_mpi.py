import os

import pytest

from tests.conftest import pytest_configure
from utils import mpi

# Environment, number of ranks, own rank, and whether it speaks where there is no mpi4py.
ENVIRONMENTS = [
    ({}, 1, 0, True),
    ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}, 4, 3,
     False),  # Open MPI's mpirun
    ({"PMI_SIZE": "4", "PMI_RANK": "3", "MPI_LOCALRANKID": "0"}, 4, 3, True),  # those of MPICH and Intel
    ({"MV2_COMM_WORLD_SIZE": "4", "MV2_COMM_WORLD_RANK": "3"}, 4, 3, True),
    ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "3"}, 4, 3,
     False),  # srun
    # A batch script: one process, which starts others.
    ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, 1, 0, True),
    ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, 1, 0, True),  # srun -n1
    ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "OMPI_COMM_WORLD_SIZE": "4",
      "OMPI_COMM_WORLD_RANK": "3"}, 4, 3, True),  # mpirun in an interactive step
    # mpirun in an allocation of 8 hosts, the first of which starts daemons on the others by srun.
    ({"SLURM_STEP_NUM_TASKS": "7", "SLURM_PROCID": "6", "OMPI_COMM_WORLD_SIZE": "4",
      "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}, 4, 3, False),
    ({"SLURM_STEP_NUM_TASKS": "7", "SLURM_PROCID": "6", "PMI_SIZE": "1", "PMI_RANK": "0"}, 1, 0, True),
    ({"PMI_SIZE": "damaged", "PMI_RANK": ""}, 1, 0, True),
    ({"PMI_SIZE": "9" * 5000, "PMI_RANK": "\u0663"}, 1, 0, True),
]


@pytest.fixture
def no_launcher(monkeypatch):
    for names in mpi.LAUNCHERS:
        for name in names:
            monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("environment", "size", "rank", "speaks"), ENVIRONMENTS)
def test_launchers_are_known_by_their_environment(no_launcher, monkeypatch, environment, size, rank,
                                                  speaks):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (mpi.launched(), mpi.launched_rank(), mpi.speaks()) == (size, rank, speaks)


def test_tests_are_no_job_whatever_the_environment_says(monkeypatch):
    for size, *_ in mpi.LAUNCHERS:
        monkeypatch.setenv(size, "2")
    pytest_configure()
    assert mpi.launched() == 1


@pytest.mark.parametrize(("own", "parents", "size", "told"), [
    ([0], range(16), "1", True), (range(16), range(16), "1", False), ([0], [0], "1", False),
    ([0], range(16), None, False)])
def test_rank_that_is_bound_to_fewer_cores_is_told(no_launcher, monkeypatch, capsys, own, parents, size,
                                                   told):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(own if process == 0 else parents))
    monkeypatch.setattr("utils.processes._quota", lambda group: 99)  # a container's
    if size:
        monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", size)
    mpi.start()
    assert ("--bind-to none" in capsys.readouterr().out) == told
    assert (mpi.job().size, mpi.job().rank) == (1, 0)
