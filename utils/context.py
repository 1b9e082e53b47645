"""Where NNabla computes: the CPU, or a GPU through cuDNN."""
import ctypes
import importlib
import importlib.util

import nnabla as nn
from nnabla.ext_utils import get_extension_context

from utils.cli import UserError


def set_context(context: str | None, device_id: int, type_config: str) -> str:
    """Make a context NNabla's default.

    Args:
        context: ``cpu``, ``cudnn``, or None for ``cudnn`` where it works and ``cpu`` elsewhere.
        device_id: which GPU.
        type_config: ``float`` or ``half``.

    Returns:
        What was chosen, in words.

    Raises:
        UserError: ``cudnn`` does not work here, or ``half`` was asked for on the CPU.
    """
    problem = cudnn_problem(device_id) if context != "cpu" else None
    if context == "cudnn" and problem:
        raise UserError(f"-c cudnn: {problem}; or use -c cpu")
    if context is None:
        context = "cpu" if problem else "cudnn"
    if context == "cpu" and type_config == "half":
        raise UserError("--type-config half needs a GPU (-c cudnn), found the CPU; use float")
    nn.set_default_context(get_extension_context(context, device_id=str(device_id),
                                                 type_config=type_config))
    if context == "cpu":
        return f"cpu (no cudnn: {problem})" if problem else "cpu"
    return f"cudnn, GPU {device_id}, {type_config}"


def current_context() -> str:
    """``cpu`` or ``cudnn``, whichever is NNabla's default now."""
    return nn.get_current_context().backend[0].partition(":")[0]


def cudnn_problem(device_id: int) -> str | None:
    """What keeps the cuDNN context from working on a GPU, and the remedy; None where nothing does."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "expected the NVIDIA driver (libcuda.so.1), found none; install it on a GPU machine"
    if importlib.util.find_spec("nnabla_ext.cudnn") is None:
        return ("expected NNabla's CUDA extension, found none; pip install "
                f"nnabla-ext-cuda120=={nn.__version__}")
    try:
        cudnn = importlib.import_module("nnabla_ext.cudnn")
        devices = cudnn.get_device_count()
    # The extension's import ends in OSError, ImportError or RecursionError without its libraries.
    except Exception as error:  # noqa: BLE001
        return ("NNabla's CUDA extension cannot load its libraries (CUDA 12, cuDNN 8): "
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}; "
                "install them and put them on LD_LIBRARY_PATH")
    if not devices:
        return "expected a GPU, found none; check nvidia-smi and CUDA_VISIBLE_DEVICES"
    if device_id >= devices:
        return f"expected a GPU number below {devices}, found --device-id {device_id}"
    return None
