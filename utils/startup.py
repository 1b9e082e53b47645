"""What a script needs before it imports anything large: streams, a working folder, a quiet Ctrl-C.

`utils` calls `prepare` when it is imported, which every script does before it imports NNabla.
"""
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def prepare():
    """Prepare the process if it runs one of the scripts; a program that imports them is left alone.

    Raises:
        SystemExit: the working folder was removed; NNabla cannot be imported there.
    """
    program = getattr(sys.modules["__main__"], "__file__", None)
    if program is None or Path(program).resolve().parent != ROOT:
        return
    open_streams()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `accept_interrupts`: nothing to clean up
    try:
        os.getcwd()
    except OSError as error:
        print(f"{sys.argv[0]}: error: expected a working folder that exists, found none "
              f"({error.strerror}); change to another folder", file=sys.stderr)
        sys.exit(2)


def open_streams():
    """Give the standard streams that are missing or closed the null device.

    Otherwise the next file that is opened takes their number, and what a library prints goes into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or getattr(stream, "closed", False):
            null = os.open(os.devnull, os.O_WRONLY)
            setattr(sys, name, os.fdopen(null, "w", encoding="utf-8", closefd=False))


def accept_interrupts():
    """Let Ctrl-C raise KeyboardInterrupt again, unless it is ignored, as in background jobs."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
