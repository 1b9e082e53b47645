"""Whether NNabla's CUDA extension works here, and what to do where it does not."""
import ctypes
import importlib
import importlib.util
import io
from contextlib import redirect_stdout
from importlib import metadata
from pathlib import Path

import nnabla as nn
import nnabla.functions as F
import numpy as np
from nnabla.ext_utils import get_extension_context

EXTENSION = "nnabla-ext-cuda120"
INSTALL = "pip install -r requirements-cuda.txt"
# The libraries that the extension is linked against and the parts that cuDNN opens by name, each after
# those that it needs itself, and the folder of NVIDIA's wheels that holds each.
LIBRARIES = {"libcudart.so.12": "cuda_runtime", "libcublas.so.12": "cublas",
             "libcusolver.so.11": "cusolver", "libcurand.so.10": "curand", "libcufft.so.11": "cufft",
             "libcudnn.so.8": "cudnn",
             "libcudnn_ops_infer.so.8": "cudnn", "libcudnn_ops_train.so.8": "cudnn",
             "libcudnn_cnn_infer.so.8": "cudnn", "libcudnn_cnn_train.so.8": "cudnn"}
# cuDNN opens this one for some computations only.
NVRTC = {"libnvrtc.so.12": "cuda_nvrtc"}


def cudnn_problem(device_id: int) -> str | None:
    """The reason why the cuDNN context does not work on a GPU, with the remedy; None if it works."""
    return driver_problem(device_id) or _extension_problem(device_id)


def driver_problem(device_id: int) -> str | None:
    """The reason why the driver offers no such GPU; the extension would take many lines to say it."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "expected the NVIDIA driver (libcuda.so.1), found none; install it where there is a GPU"
    count = ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status not in (0, 100):  # 100: no device
        return f"the NVIDIA driver does not start (CUDA error {status}); see what nvidia-smi says"
    if not count.value:
        return "expected a GPU, found none; check nvidia-smi and CUDA_VISIBLE_DEVICES"
    if device_id >= count.value:
        return f"expected a GPU number below {count.value}, found --device-id {device_id}; give another"
    return None


def _extension_problem(device_id: int) -> str | None:
    if importlib.util.find_spec("nnabla_ext.cudnn") is None:
        return f"expected NNabla's CUDA extension, found none; {INSTALL}"
    missing = load_libraries()
    try:
        version = metadata.version(EXTENSION)
    except metadata.PackageNotFoundError:  # built for another CUDA or by the user
        version, missing = nn.__version__, []
    if version != nn.__version__:
        return f"expected {EXTENSION} {nn.__version__}, NNabla's version, found {version}; {INSTALL}"
    if missing:
        return f"expected {', '.join(missing)}, found no such library; {INSTALL}"
    try:
        with redirect_stdout(io.StringIO()):  # the error repeats what the extension prints
            cudnn = importlib.import_module("nnabla_ext.cudnn")
        cudnn.check_gpu(str(device_id))
        start_cudnn(device_id)
    # The import of an incomplete extension ends in OSError, ImportError or RecursionError; the check of
    # an old driver, a full GPU or one that cuDNN 8 does not know in RuntimeError.
    except Exception as error:
        # NNabla's reason comes last.
        reason = ": ".join([type(error).__name__, *str(error).strip().splitlines()[-1:]]).rstrip(".")
        return (f"NNabla's CUDA extension does not work here: {reason}; check the driver, which must "
                "support CUDA 12, and the GPU's free memory with nvidia-smi")
    return None


def load_libraries() -> list[str]:
    """Load CUDA 12 and cuDNN 8, so that the extension finds them without LD_LIBRARY_PATH.

    NVIDIA's wheels come first, because the names of most libraries are those of other CUDA versions too
    (an installed CUDA 13 does not disturb); then the system's loader is asked.

    Returns:
        The names of required libraries that are in neither place or do not load.
    """
    package = importlib.util.find_spec("nvidia")
    folders = [] if package is None else package.submodule_search_locations or []
    missing = []
    for name, wheel in {**LIBRARIES, **NVRTC}.items():
        places = [str(Path(folder) / wheel / "lib" / name) for folder in folders]
        if not any(map(_loads, [*places, name])) and name in LIBRARIES:
            missing.append(name)
    return missing


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def start_cudnn(device_id: int):
    """Convolve once on a GPU: cuDNN starts, and needs some memory, only then."""
    with nn.context_scope(get_extension_context("cudnn", device_id=str(device_id))):
        one = nn.Variable.from_numpy_array(np.ones((1, 1, 1, 1)))
        result = F.convolution(one, one)
        result.forward()
        result.d.item()  # waits for the GPU, whose errors come late
