"""Where NNabla computes: the CPU, or a GPU through cuDNN."""
import ctypes
import importlib
import importlib.util
import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import metadata
from pathlib import Path

import nnabla as nn
import nnabla.functions as F
import numpy as np
from nnabla.ext_utils import get_extension_context

from utils.errors import RunError, UserError

EXTENSION = "nnabla-ext-cuda120"
INSTALL = "pip install -r requirements-cuda.txt"
RUNTIME = "libcudart.so.12"
# What the extension is linked against, and the parts that cuDNN opens by name, each after those that
# it needs itself; and the wheel that has it, nvidia-<wheel>-cu12.
LIBRARIES = {RUNTIME: "cuda-runtime", "libcublas.so.12": "cublas", "libcusolver.so.11": "cusolver",
             "libcurand.so.10": "curand", "libcufft.so.11": "cufft", "libcudnn.so.8": "cudnn",
             "libcudnn_ops_infer.so.8": "cudnn", "libcudnn_ops_train.so.8": "cudnn",
             "libcudnn_cnn_infer.so.8": "cudnn", "libcudnn_cnn_train.so.8": "cudnn"}
# What cuDNN opens only for some computations.
OPTIONAL = {"libnvrtc.so.12": "cuda-nvrtc"}
# Where the extension looks by itself, before where the system's loader does.
TOOLKIT = Path("/usr/local/cuda/lib64")
# What NNabla, CUDA, cuBLAS and cuDNN, ONNX Runtime and C++ say.
OUT_OF_MEMORY = ("memory error in", "out of memory", "alloc_failed", "allocate memory", "bad_alloc")


def set_context(context: str | None, device_id: int, type_config: str) -> str:
    """Make a context NNabla's default.

    Args:
        context: ``cpu``, ``cudnn``, or None for ``cudnn`` where it works and ``cpu`` elsewhere.
        device_id: which GPU.
        type_config: ``float`` or ``half``.

    Returns:
        What was chosen, in words.

    Raises:
        UserError: ``cudnn`` does not work here, or what needs a GPU was asked for on the CPU.
    """
    problem = cudnn_problem(device_id) if context != "cpu" else None
    for asked, flag in [(context == "cudnn", "-c cudnn"), (type_config == "half", "--type-config half"),
                        (context is None and device_id > 0, f"--device-id {device_id}")]:
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
    """``cpu`` or ``cudnn``, whichever is NNabla's default now."""
    return nn.get_current_context().backend[0].partition(":")[0]


@contextmanager
def memory_for(flag: str, batch_size: int, remedy: str) -> Iterator[None]:
    """Make a lack of memory, the computer's or the GPU's, one line that says which batch size to try.

    Args:
        flag: what sets the batch size.
        batch_size: what it is.
        remedy: what to do with a smaller one.

    Raises:
        RunError: Python, NNabla, CUDA, cuDNN or ONNX Runtime say that the memory does not suffice.
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


def cudnn_problem(device_id: int) -> str | None:
    """What keeps the cuDNN context from working on a GPU, and the remedy; None where nothing does."""
    problem = driver_problem(device_id)
    if problem:
        return problem
    if importlib.util.find_spec("nnabla_ext.cudnn") is None:
        return f"expected NNabla's CUDA extension, found none; {INSTALL}"
    missing = _load_libraries()
    try:
        version = metadata.version(EXTENSION)
    except metadata.PackageNotFoundError:  # one for another CUDA, or built by the user
        version, missing = nn.__version__, []
    if version != nn.__version__:
        return f"expected {EXTENSION} {nn.__version__}, as NNabla is, found {version}; {INSTALL}"
    if missing:
        return f"expected {', '.join(missing)}; {INSTALL}"
    try:
        with redirect_stdout(io.StringIO()):  # what the extension has to say will be in the error
            cudnn = importlib.import_module("nnabla_ext.cudnn")
        cudnn.get_device_count()
        cudnn.check_gpu(str(device_id))
        _start_cudnn(device_id)
    # An old driver, a full GPU, or one too new or too old for cuDNN 8 is a RuntimeError; the import of
    # an extension without its libraries ends in OSError, ImportError or RecursionError.
    except Exception as error:  # noqa: BLE001
        # NNabla's reason comes last.
        reason = ": ".join([type(error).__name__, *str(error).strip().splitlines()[-1:]]).rstrip(".")
        return (f"NNabla's CUDA extension does not work here: {reason}; check with nvidia-smi the "
                "driver, which must know CUDA 12, and the GPU's free memory")
    return None


def _start_cudnn(device_id: int):
    """Convolve once: only then is cuDNN made to start, for which it needs some memory."""
    with nn.context_scope(get_extension_context("cudnn", device_id=str(device_id))):
        one = nn.Variable.from_numpy_array(np.ones((1, 1, 1, 1)))
        result = F.convolution(one, one)
        result.forward()
        result.d.item()  # waits for the GPU, whose errors come late


def driver_problem(device_id: int) -> str | None:
    """What keeps the driver from using a GPU; it is asked first, for the extension says it at length."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "expected the NVIDIA driver (libcuda.so.1), found none; install it where there is a GPU"
    count = ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status not in (0, 100):  # 100: no device
        return f"the NVIDIA driver does not start (error {status} of CUDA); see what nvidia-smi says"
    if not count.value:
        return "expected a GPU, found none; check nvidia-smi and CUDA_VISIBLE_DEVICES"
    if device_id >= count.value:
        return f"expected a GPU number below {count.value}, found --device-id {device_id}; give another"
    if _load("libnvidia-ml.so.1"):  # NNabla asks it for the GPU's name
        return ("expected the driver's NVML (libnvidia-ml.so.1), found none; in a container set "
                "NVIDIA_DRIVER_CAPABILITIES=compute,utility")
    return None


def _load_libraries() -> list[str]:
    """Load the libraries of CUDA 12: the system's, where it has that very CUDA, and NVIDIA's wheels.

    The extension finds those that are loaded.

    Returns:
        Those that are needed and nowhere, in words.
    """
    package = importlib.util.find_spec("nvidia")
    folders = [] if package is None else package.submodule_search_locations
    # Of the names, only the runtime's is no other CUDA's too.
    toolkit = [f"{TOOLKIT}/"] if (TOOLKIT / RUNTIME).exists() else []
    system = [*toolkit, ""] if toolkit or not _load(RUNTIME) else []
    missing = []
    for name, wheel in {**LIBRARIES, **OPTIONAL}.items():
        files = [Path(folder) / wheel.replace("-", "_") / "lib" / name for folder in folders]
        wheels = [str(file) for file in files if file.exists()]
        places = [place + name for place in system]
        # The system's cuDNN may be one for CUDA 11.
        candidates = [*wheels, *places] if wheel == "cudnn" else [*places, *wheels]
        if all(_load(library) for library in [*candidates, name]) and name in LIBRARIES:
            problem = _load(wheels[0]) if wheels else _installed(f"nvidia-{wheel}-cu12")
            missing.append(f"{name}, found {problem}")
    return missing


def _load(library: str) -> str:
    """Load a library; returns why it cannot be loaded, or nothing."""
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return str(error)
    return ""


def _installed(distribution: str) -> str:
    try:
        return f"{distribution} {metadata.version(distribution)}"
    except metadata.PackageNotFoundError:
        return f"no {distribution}"
