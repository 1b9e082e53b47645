"""What the processes of test_processes.py and the ranks of test_mpi.py do: a module of its own, which a
process imports at once."""
import errno
import os
import signal
import time

from utils.errors import UserError
from utils.mpi import job

LONG = 60  # seconds, far more than a process needs to begin or to end


class Task:
    """What the workers make: it does to a number what the setup says."""

    def __init__(self, setup):
        if setup == "unusable":
            raise UserError("refused: setup")
        self._setup = setup

    def __call__(self, number, folder=None):
        if self._setup == "refuse" and number == 2:
            raise UserError("refused: 2")
        if self._setup == "die" and number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._setup == "slow":
            (folder / str(number)).touch()
            time.sleep(0.1)
            if number == 2:
                raise UserError("refused: 2")
        if self._setup == "wait":
            (folder / str(os.getpid())).touch()
            time.sleep(LONG)
        return number * number, os.getpid()


class RankTask:
    """What the ranks make in test_mpi.py: it returns the rank, unless the setup lets rank 1 fail."""

    def __init__(self, setup):
        self._setup, self._rank = setup, job().rank
        if setup == "unusable" and self._rank:
            raise UserError("refused: plan")

    def __call__(self, number):
        time.sleep(0.02)
        if self._setup == "leader" and not self._rank:
            return 1 // 0
        if self._rank:
            if self._setup == "bug":
                return 1 // 0
            if self._setup == "refuse":
                raise UserError("refused: task")
            if self._setup == "full":
                raise UserError("refused: disk") from OSError(errno.ENOSPC, "no space")
        return self._rank
