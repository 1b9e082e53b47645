import ctypes
import importlib
import re
import shutil
import types
from importlib import metadata
from pathlib import Path

import nnabla.ext_utils
import nnabla.functions
import numpy.random._bounded_integers
import pytest

from utils import context
from utils.cli import RunError, UserError

WHEELS = {**context.LIBRARIES, **context.OPTIONAL}
EXTENSION = types.SimpleNamespace(get_device_count=lambda: 2, check_gpu=lambda device_id: None)


class Driver:
    """A driver that sees two GPUs."""

    def __init__(self, devices=2, status=0):
        self.devices, self.status = devices, status

    def cuInit(self, flags):
        return self.status

    def cuDeviceGetCount(self, pointer):
        pointer._obj.value = self.devices
        return 0


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with two GPUs that work, for a test to change: driver, extension, package versions.

    The wheels are in the folder ``site``; the system has only the CUDA libraries in ``system``.
    ``loaded`` lists the libraries loaded, ``contexts`` the contexts asked for, each of which computes
    on the CPU, and ``convolved`` the GPU of each convolution.
    """
    has = types.SimpleNamespace(driver=Driver(), nvml=True, extension=lambda: EXTENSION,
                                site=tmp_path / "site", system=set(), loaded=[], contexts=[],
                                convolved=[], versions={"nnabla-ext-cuda120": nnabla.__version__})
    really_load, really_find = ctypes.CDLL, importlib.util.find_spec
    really_import, really_convolve = importlib.import_module, nnabla.functions.convolution
    default, cpu = nnabla.get_current_context(), nnabla.ext_utils.get_extension_context("cpu")

    def load(name):
        if name == "libcuda.so.1" and has.driver:
            return has.driver
        if name == "libnvidia-ml.so.1" and has.nvml:
            return None
        if name in {*WHEELS, "libnvidia-ml.so.1"} - has.system:
            raise OSError(f"{name}: cannot open shared object file")
        library = None if name in has.system else really_load(name)
        has.loaded.append(name)
        return library

    def find_spec(name):
        if name == "nvidia":
            return has.site and types.SimpleNamespace(submodule_search_locations=[has.site / "nvidia"])
        return has.extension if name == "nnabla_ext.cudnn" else really_find(name)

    def version(name):
        try:
            return has.versions[name]
        except KeyError:
            raise metadata.PackageNotFoundError(name) from None

    def import_module(name, package=None):
        return has.extension() if name == "nnabla_ext.cudnn" else really_import(name, package)

    def get_extension_context(name, **options):
        has.contexts.append((name, options))
        return nnabla.Context(cpu.backend, cpu.array_class, options["device_id"])

    def convolution(*args, **options):
        has.convolved.append(nnabla.get_current_context().device_id)
        return really_convolve(*args, **options)

    for name in WHEELS:
        make_library(wheel_file(has.site, name))
    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(importlib, "import_module", import_module)
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(context, "TOOLKIT", tmp_path / "cuda")
    monkeypatch.setattr(context, "get_extension_context", get_extension_context)
    monkeypatch.setattr(nnabla.functions, "convolution", convolution)
    yield has
    nnabla.set_default_context(default)


def wheel_file(site, name):
    return site / "nvidia" / WHEELS[name].replace("-", "_") / "lib" / name


def make_library(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(numpy.random._bounded_integers.__file__, file)


def raising(error):
    def behaviour(*args):
        raise error
    return behaviour


def test_cpu_is_chosen_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(context, "cudnn_problem", lambda device_id: "no GPU")
    chosen = context.set_context(None, 0, "float")
    assert chosen.startswith("cpu") and "no GPU" in chosen and context.current_context() == "cpu"
    assert context.set_context("cpu", 0, "float") == "cpu"


def test_what_needs_a_gpu_is_refused_without(monkeypatch):
    with pytest.raises(UserError, match="--type-config half .*-c cpu"):
        context.set_context("cpu", 0, "half")
    monkeypatch.setattr(context, "cudnn_problem", lambda device_id: "no driver")
    with pytest.raises(UserError, match="--type-config half .*no driver"):
        context.set_context(None, 0, "half")
    with pytest.raises(UserError, match="--device-id 1 .*no driver"):
        context.set_context(None, 1, "float")
    assert context.set_context("cpu", 1, "float") == "cpu"


@pytest.mark.parametrize("asked", ["cudnn", None])
def test_gpu_is_used_where_it_works(machine, asked):
    assert re.fullmatch(r"cudnn\b.*\b1\b.*\bhalf", context.set_context(asked, 1, "half"))
    assert machine.contexts[-1] == ("cudnn", {"device_id": "1", "type_config": "half"})
    assert nnabla.get_current_context().device_id == "1"


def test_missing_driver_is_named(machine):
    machine.driver = None
    with pytest.raises(UserError, match=r"-c cudnn .*libcuda\.so\.1"):
        context.set_context("cudnn", 0, "float")


@pytest.mark.parametrize("driver", [Driver(devices=0), Driver(status=100)])
def test_missing_gpu_is_named(machine, driver):
    machine.driver = driver
    assert "CUDA_VISIBLE_DEVICES" in context.cudnn_problem(0)


def test_driver_that_fails_is_named(machine):
    machine.driver = Driver(status=803)
    assert re.search(r"\b803\b.*nvidia-smi", context.cudnn_problem(0))


def test_gpu_that_does_not_exist_is_named(machine):
    assert context.cudnn_problem(1) is None
    for device_id in (2, 5):
        assert re.search(rf" 2\b.*--device-id {device_id}\b", context.cudnn_problem(device_id))


def test_missing_extension_is_named(machine):
    machine.extension = None
    assert "requirements-cuda.txt" in context.cudnn_problem(0)


def test_extension_of_another_version_is_named(machine):
    machine.versions["nnabla-ext-cuda120"] = "0.9"
    assert re.search(rf"nnabla-ext-cuda120 {re.escape(nnabla.__version__)}\b.*\b0\.9\b.*"
                     r"requirements-cuda\.txt", context.cudnn_problem(0))
    machine.versions.clear()  # an extension for another CUDA
    assert context.cudnn_problem(0) is None


def test_extension_is_asked_for_this_very_gpu(machine):
    def check_gpu(device_id):
        raise ValueError(f"does not support GPU {device_id}")
    machine.extension = lambda: types.SimpleNamespace(get_device_count=lambda: 2, check_gpu=check_gpu)
    assert "ValueError: does not support GPU 1" in context.cudnn_problem(1)
    old = raising(RuntimeError("CUDA driver version is insufficient"))
    machine.extension = lambda: types.SimpleNamespace(get_device_count=old, check_gpu=lambda one: None)
    assert "RuntimeError: CUDA driver version is insufficient" in context.cudnn_problem(0)


def test_gpu_on_which_cudnn_does_not_start_is_named(machine, monkeypatch):
    """The GPU's memory may be full."""
    monkeypatch.setattr(nnabla.functions, "convolution",
                        raising(RuntimeError("target_specific error\nCUDNN_STATUS_NOT_INITIALIZED")))
    assert re.search("CUDNN_STATUS_NOT_INITIALIZED.*nvidia-smi", context.cudnn_problem(1))


def test_starting_cudnn_is_a_convolution_on_that_gpu(machine):
    assert context.cudnn_problem(1) is None
    assert machine.contexts == [("cudnn", {"device_id": "1"})]
    assert machine.convolved == ["1"]


def test_libraries_of_the_wheels_are_loaded_before_the_extension(machine):
    wheels = [str(wheel_file(machine.site, name)) for name in WHEELS]
    loaded = []
    machine.extension = lambda: loaded.extend(machine.loaded) or EXTENSION
    assert context.cudnn_problem(0) is None
    assert loaded == wheels
    maps = Path("/proc/self/maps")
    assert not maps.exists() or all(wheel in maps.read_text() for wheel in wheels)


def names(machine):
    """The source of each library that was loaded: a wheel, the toolkit or the system."""
    return {Path(name).name: "site" if "/site/" in name else "cuda" if "/cuda/" in name else "system"
            for name in machine.loaded}


def test_toolkit_of_cuda_12_is_used_and_wheels_where_it_lacks_something(machine):
    for name in ("libcudart.so.12", "libcublas.so.12"):
        make_library(context.TOOLKIT / name)
    assert context.cudnn_problem(0) is None
    assert names(machine) == {**dict.fromkeys(WHEELS, "site"), "libcudart.so.12": "cuda",
                              "libcublas.so.12": "cuda"}


def test_cuda_12_of_the_system_is_used_and_wheels_where_it_lacks_something(machine):
    machine.system = {"libcudart.so.12", "libcublas.so.12"}
    assert context.cudnn_problem(0) is None
    assert names(machine) == {**dict.fromkeys(WHEELS, "site"), "libcudart.so.12": "system",
                              "libcublas.so.12": "system"}


def test_another_cuda_of_the_system_is_not_used(machine):
    """CUDA 11 and 13 have libraries of the same names."""
    make_library(context.TOOLKIT / "libcurand.so.10")
    machine.system = {"libcurand.so.10", "libcusolver.so.11"}
    assert context.cudnn_problem(0) is None
    assert names(machine) == dict.fromkeys(WHEELS, "site")


def test_cudnn_of_the_system_is_used_only_where_there_is_no_wheel_of_it(machine):
    machine.system = {"libcudart.so.12", "libcudnn.so.8"}
    assert context.cudnn_problem(0) is None
    assert names(machine)["libcudnn.so.8"] == "site"
    wheel_file(machine.site, "libcudnn.so.8").unlink()
    machine.loaded.clear()
    assert context.cudnn_problem(0) is None
    assert names(machine)["libcudnn.so.8"] == "system"


def test_missing_nvml_is_named(machine):
    machine.nvml = False
    assert re.search(r"libnvidia-ml\.so\.1\b.*NVIDIA_DRIVER_CAPABILITIES=compute,utility",
                     context.cudnn_problem(0))


@pytest.mark.parametrize("name, wheel", context.LIBRARIES.items())
def test_missing_wheel_is_named(machine, name, wheel):
    wheel_file(machine.site, name).unlink()
    problem = context.cudnn_problem(0)
    assert re.search(rf"nvidia-{wheel}-cu12\b.*requirements-cuda\.txt", problem)
    assert [one for one in WHEELS if one in problem] == [name]
    machine.versions[f"nvidia-{wheel}-cu12"] = "99.1"
    assert re.search(rf"{re.escape(name)}\b.*nvidia-{wheel}-cu12 99\.1\b.*requirements-cuda\.txt",
                     context.cudnn_problem(0))


def test_library_that_is_not_always_needed_may_be_missing(machine):
    wheel_file(machine.site, "libnvrtc.so.12").unlink()
    assert context.cudnn_problem(0) is None


def test_wheel_that_does_not_load_is_named(machine):
    wheel_file(machine.site, "libcurand.so.10").write_text("no library")
    assert re.search(r"libcurand\.so\.10\b.*/curand/lib/libcurand\.so\.10\b.*requirements-cuda\.txt",
                     context.cudnn_problem(0))


def test_what_the_extension_prints_is_not_shown(machine, capsys):
    machine.extension = lambda: print("GPU compatibility could not be verified") or EXTENSION
    assert context.cudnn_problem(0) is None
    assert capsys.readouterr().out == ""


def test_extension_of_ones_own_that_needs_no_wheels_works_without(machine):
    machine.site = None
    machine.versions.clear()
    assert context.cudnn_problem(0) is None


@pytest.mark.parametrize("error", [
    RecursionError("maximum recursion depth exceeded"), OSError("libcudnn.so.8: wrong\nELF class"),
    RuntimeError("driver version is insufficient"), ValueError("does not support your GPU"),
    RuntimeError()])
def test_whatever_the_extension_raises_is_one_line(machine, error):
    machine.extension = raising(error)
    with pytest.raises(UserError) as caught:
        context.set_context("cudnn", 0, "float")
    assert type(error).__name__ in str(caught.value) and str(error).split("\n")[-1] in str(caught.value)
    assert re.search("-c cudnn .*nvidia-smi", str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [
    MemoryError(), RuntimeError("memory error in alloc\nFailed `this->alloc_impl()`"),
    RuntimeError('(cudaMalloc()) failed with "out of memory" (cudaErrorMemoryAllocation).'),
    RuntimeError("target_specific error in f\nALLOC_FAILED"), Exception("std::bad_alloc"),
    Exception("Failed to allocate memory for requested buffer of size 1000")])
def test_lack_of_memory_is_told_with_a_batch_size_to_try(error):
    with pytest.raises(RunError, match=r"--batch_size 9\b.*run again.*--batch_size 4\b"), \
            context.memory_for("--batch_size", 9, "run again"):
        raise error


def test_lack_of_memory_for_one_sample():
    with pytest.raises(RunError, match=r"--batch_size 1\b") as caught, \
            context.memory_for("--batch_size", 1, "run again"):
        raise MemoryError
    assert "--batch_size 0" not in str(caught.value) and "run again" not in str(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("target_specific error in f\nNOT_SUPPORTED"),
                                   RuntimeError("an illegal memory access was encountered"),
                                   FileNotFoundError("/out of memory/x.npy"),
                                   UserError("out of memory")])
def test_other_errors_are_no_lack_of_memory(error):
    with pytest.raises(type(error)) as caught, context.memory_for("--batch_size", 9, "run again"):
        raise error
    assert caught.value is error
