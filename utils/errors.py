"""What ends a run with one line for the user and no traceback."""


class UserError(Exception):
    """A mistake the user can mend: one line saying what was expected, what was found, what to do."""

    code = 2


class RunError(UserError):
    """What went wrong though the call was right: one line saying what happened and what to do."""

    code = 1
