"""Where NNabla computes, and what to do when its memory is too small."""
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import nnabla as nn
from nnabla.ext_utils import get_extension_context

from utils.cuda import cudnn_problem
from utils.errors import RunError, UserError
from utils.mpi import job

# The words of NNabla, CUDA, cuBLAS and cuDNN, ONNX Runtime, C++ and Python's threads.
OUT_OF_MEMORY = ("memory error in", "out of memory", "alloc_failed", "allocate memory", "bad_alloc",
                 "start new thread")


def set_context(context: str | None, device_id: int | None, type_config: str) -> str:
    """Make a context NNabla's default.

    Args:
        context: ``cpu``, ``cudnn``, or None for ``cudnn`` if it works here, else ``cpu``.
        device_id: number of the GPU; None for 0 or, in an MPI job, this rank's number on its machine.
        type_config: ``float`` or ``half``.

    Returns:
        The chosen context, in words.

    Raises:
        UserError: ``cudnn`` does not work here, or a flag that needs a GPU meets the CPU.
    """
    given, device_id = device_id, job().local_rank if device_id is None else device_id
    problem = cudnn_problem(device_id) if context != "cpu" else None
    if problem and given is None and device_id and not cudnn_problem(0):  # too few GPUs, not none
        raise UserError(f"expected a GPU for each of the {job().local_size} ranks on "
                        f"{platform.node()}, found none for one ({problem.partition(';')[0]}); start "
                        "fewer, or give --device-id 0 where they should share it, or where each sees "
                        "only its own")
    for asked, flag in [(context == "cudnn", "-c cudnn"), (type_config == "half", "--type-config half"),
                        (context is None and given, f"--device-id {given}")]:
        if asked and (problem or context == "cpu"):
            raise UserError(f"{flag} needs a GPU: {problem or 'found -c cpu'}; or leave {flag} out")
    if context is None:
        context = "cpu" if problem else "cudnn"
    nn.set_default_context(get_extension_context(context, device_id=str(device_id),
                                                 type_config=type_config))
    if context == "cpu":
        return f"cpu (no cudnn: {problem})" if problem else "cpu"
    return f"cudnn, GPU {device_id}, {type_config}"


def current_context() -> str:
    """NNabla's default context now, ``cpu`` or ``cudnn``."""
    return nn.get_current_context().backend[0].partition(":")[0]


@contextmanager
def memory_for(flag: str, batch_size: int, remedy: str) -> Iterator[None]:
    """Turn an out-of-memory error, the computer's or the GPU's, into one line with a batch size to try.

    Args:
        flag: the flag that sets the batch size.
        batch_size: its value.
        remedy: what to do with a smaller one.

    Raises:
        RunError: Python, NNabla, CUDA, cuDNN or ONNX Runtime ran out of memory.
    """
    try:
        yield
    except Exception as error:  # only Python's has a type of its own
        text = str(error).lower()
        if isinstance(error, UserError | OSError) or not (
                isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY)):
            raise
        remedy = f"{remedy} with {flag} {batch_size // 2}" if batch_size > 1 else "free some memory"
        raise RunError(f"out of memory at {flag} {batch_size}; {remedy}") from error
