"""What the processes of test_processes.py do: a module of its own, which a process imports at once."""
import os
import signal
import time

from utils.errors import UserError

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
