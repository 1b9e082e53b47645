"""Errors that end a run with one line for the user, without a traceback."""


class UserError(Exception):
    """A wrong call or bad input: one line that says what was expected, what was found and what to do."""

    code = 2


class RunError(UserError):
    """A failure of disk, memory or a process: one line that says what happened and what to do."""

    code = 1
