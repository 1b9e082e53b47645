"""Errors that end a run with one line for the user, without a traceback."""
import errno

DISK_FAILURES = (errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.ETIMEDOUT, errno.EREMOTEIO)


class UserError(Exception):
    """A wrong call or bad input: one line that says what was expected, what was found and what to do."""

    code = 2


class RunError(UserError):
    """A failure of disk, memory or a process: one line that says what happened and what to do."""

    code = 1


def read_error(error: BaseException, message: str) -> UserError:
    """What to raise if a file cannot be read: a `RunError` if its disk failed, else a `UserError`."""
    return RunError(message) if disk_failed(error) else UserError(message)


def disk_failed(error: BaseException) -> bool:
    """Whether the disk or the network drive failed, not the file that was asked for."""
    return isinstance(error, OSError) and error.errno in DISK_FAILURES
