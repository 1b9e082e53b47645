"""Errors that end a run with one line for the user, without a traceback, and their exit codes."""
import errno

# Reasons that lie in the path that was given; others, such as EIO or ENOSPC, lie in the machine.
PATH_REASONS = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
                errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EROFS, errno.ENOTEMPTY}


class UserError(Exception):
    """A wrong call or bad input: one line that says what was expected, what was found and what to do."""

    code = 2


class RunError(UserError):
    """A failure of disk, memory or a process: one line that says what happened and what to do."""

    code = 1


def exit_code(error: UserError | OSError | MemoryError) -> int:
    """The exit code after an error: 2 for a wrong call or bad input, 1 for disk, memory or a process.

    A `UserError` raised from a failure of disk or memory (``raise ... from``) counts as that failure.
    """
    cause = error.__cause__ if type(error) is UserError else error
    if isinstance(cause, OSError):
        own = UserError.code if type(error) is UserError else RunError.code
        return UserError.code if cause.errno in PATH_REASONS else RunError.code if cause.errno else own
    if isinstance(cause, MemoryError):
        return RunError.code
    return getattr(error, "code", RunError.code)
