"""The diagnosis of a machine's GPU, with stand-ins for the driver and NNabla's extension.

tests/test_gpu.py runs the real ones where there is a GPU.
"""
import ctypes
import importlib
import shutil
import types
from importlib import metadata
from pathlib import Path

import nnabla
import numpy.random._bounded_integers
import pytest

from utils import cuda

WHEELS = {**cuda.LIBRARIES, **cuda.NVRTC}
INSTALL = "requirements-cuda.txt"


class Driver:
    """A driver that offers some GPUs, or none with a CUDA error."""

    def __init__(self, devices=2, status=0):
        self.devices, self.status = devices, status

    def cuInit(self, flags):
        return self.status

    def cuDeviceGetCount(self, pointer):
        pointer._obj.value = self.devices
        return 0


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine to be changed: driver, extension, versions of packages, libraries.

    All CUDA libraries are those of wheels in the folder ``site``; ``system`` names those that the
    system's loader has too.
    """
    has = types.SimpleNamespace(
        driver=Driver(), extension=lambda: types.SimpleNamespace(check_gpu=lambda device_id: None),
        site=tmp_path / "site", system=set(), loaded=[], starts=[],
        versions={"nnabla-ext-cuda120": nnabla.__version__})
    really_load, really_find = ctypes.CDLL, importlib.util.find_spec
    really_import = importlib.import_module

    def load(name):
        if name == "libcuda.so.1" and has.driver:
            return has.driver
        if name == "libcuda.so.1" or (name in WHEELS and name not in has.system):
            raise OSError(f"{name}: cannot open shared object file")
        library = None if name in has.system else really_load(name)
        has.loaded.append(name)
        return library

    def find_spec(name):
        if name == "nvidia":
            return has.site and types.SimpleNamespace(submodule_search_locations=[has.site / "nvidia"])
        return has.extension if name == "nnabla_ext.cudnn" else really_find(name)

    def version(name):
        if name not in has.versions:
            raise metadata.PackageNotFoundError(name)
        return has.versions[name]

    def import_module(name, package=None):
        return has.extension() if name == "nnabla_ext.cudnn" else really_import(name, package)

    for name in WHEELS:
        file = wheel_file(has.site, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(numpy.random._bounded_integers.__file__, file)
    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(importlib, "import_module", import_module)
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(cuda, "start_cudnn", has.starts.append)
    return has


def wheel_file(site, name):
    return site / "nvidia" / WHEELS[name] / "lib" / name


def raising(error):
    def behaviour(*args):
        raise error
    return behaviour


def test_gpu_that_works_has_no_problem(machine):
    assert cuda.cudnn_problem(1) is None
    assert machine.starts == [1]


@pytest.mark.parametrize("driver, word", [
    (None, "libcuda.so.1"), (Driver(devices=0), "CUDA_VISIBLE_DEVICES"),
    (Driver(status=100), "CUDA_VISIBLE_DEVICES"), (Driver(status=803), "803"),
    (Driver(devices=1), "--device-id 1")])
def test_driver_without_such_a_gpu_is_named(machine, driver, word):
    machine.driver = driver
    assert word in cuda.cudnn_problem(1)
    assert machine.loaded == machine.starts == []


def test_missing_extension_is_named(machine):
    machine.extension = None
    assert INSTALL in cuda.cudnn_problem(0)


def test_extension_of_another_version_is_named(machine):
    machine.versions["nnabla-ext-cuda120"] = "1.2.3"
    problem = cuda.cudnn_problem(0)
    assert "1.2.3" in problem and nnabla.__version__ in problem and INSTALL in problem


def test_libraries_of_the_wheels_are_loaded_before_the_extension(machine):
    """Even where the system has libraries of the same names, which may be another CUDA's."""
    machine.system = {"libcurand.so.10", "libcudnn.so.8"}
    wheels = [str(wheel_file(machine.site, name)) for name in WHEELS]
    loaded, extension = [], machine.extension
    machine.extension = lambda: loaded.extend(machine.loaded) or extension()
    assert cuda.cudnn_problem(0) is None
    assert loaded == wheels
    maps = Path("/proc/self/maps")
    assert not maps.exists() or all(wheel in maps.read_text() for wheel in wheels)


def test_library_of_the_system_serves_where_a_wheel_is_missing(machine):
    wheel_file(machine.site, "libcudnn.so.8").unlink()
    assert "libcudnn.so.8" in cuda.cudnn_problem(0)
    machine.system = {"libcudnn.so.8"}
    assert cuda.cudnn_problem(0) is None


@pytest.mark.parametrize("name", cuda.LIBRARIES)
@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_text("no library")])
def test_library_that_does_not_load_is_named(machine, name, damage):
    damage(wheel_file(machine.site, name))
    problem = cuda.cudnn_problem(0)
    assert name in problem and INSTALL in problem


def test_library_that_is_not_always_needed_may_be_missing(machine):
    wheel_file(machine.site, "libnvrtc.so.12").unlink()
    assert cuda.cudnn_problem(0) is None


def test_extension_of_ones_own_that_needs_no_wheels_works_without(machine):
    machine.site = None
    machine.versions.clear()
    assert cuda.cudnn_problem(0) is None


def test_text_that_the_extension_prints_is_not_shown(machine, capsys):
    extension = machine.extension
    machine.extension = lambda: print("GPU compatibility could not be verified") or extension()
    assert cuda.cudnn_problem(0) is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("error", [
    RecursionError("maximum recursion depth exceeded"), OSError("libcudnn.so.8: wrong\nELF class"),
    RuntimeError("driver version is insufficient"), RuntimeError()])
def test_error_of_the_import_is_one_line(machine, error):
    machine.extension = raising(error)
    problem = cuda.cudnn_problem(0)
    assert type(error).__name__ in problem and str(error).split("\n")[-1] in problem
    assert "\n" not in problem


def test_gpu_that_the_extension_or_cudnn_refuses_is_named(machine, monkeypatch):
    """For example one whose memory is full."""
    monkeypatch.setattr(cuda, "start_cudnn", raising(RuntimeError("target_specific\nNOT_INITIALIZED")))
    assert "NOT_INITIALIZED" in cuda.cudnn_problem(1)
    refuse = raising(ValueError("does not support GPU 1"))
    machine.extension = lambda: types.SimpleNamespace(check_gpu=refuse)
    assert "does not support GPU 1" in cuda.cudnn_problem(1)


def test_starting_cudnn_is_a_convolution_on_that_gpu(monkeypatch):
    asked, cpu = [], nnabla.ext_utils.get_extension_context("cpu")
    monkeypatch.setattr(cuda, "get_extension_context",
                        lambda name, **options: asked.append((name, options)) or cpu)
    cuda.start_cudnn(1)
    assert asked == [("cudnn", {"device_id": "1"})]
