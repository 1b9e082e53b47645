import ctypes
import importlib
import importlib.machinery
import importlib.util
import types

import nnabla.ext_utils
import pytest

from utils import context
from utils.cli import UserError


@pytest.fixture
def driver(monkeypatch):
    """A machine with an NVIDIA driver, as far as the loader can tell."""
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)


@pytest.fixture
def extension(driver, monkeypatch):
    """Installs a CUDA extension whose import does what it is told."""
    def install(behaviour):
        def import_module(name):
            assert name == "nnabla_ext.cudnn"
            return behaviour()
        spec = importlib.machinery.ModuleSpec("nnabla_ext.cudnn", None)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        monkeypatch.setattr(importlib, "import_module", import_module)
    return install


def raising(error):
    def behaviour():
        raise error
    return behaviour


def test_cpu_is_chosen_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(context, "cudnn_problem", lambda device_id: "no GPU")
    assert context.set_context(None, 0, "float") == "cpu (no cudnn: no GPU)"
    assert context.set_context("cpu", 0, "float") == "cpu"


def test_half_on_the_cpu_is_refused():
    with pytest.raises(UserError, match="--type-config half needs a GPU"):
        context.set_context("cpu", 0, "half")


def test_missing_driver_is_named(monkeypatch):
    def no_library(name):
        raise OSError(f"{name}: cannot open shared object file")
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    with pytest.raises(UserError, match="-c cudnn: expected the NVIDIA driver .*; or use -c cpu"):
        context.set_context("cudnn", 0, "float")


def test_missing_extension_is_named(driver, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="CUDA extension, found none; pip install "
                                        "nnabla-ext-cuda120==1.39.0"):
        context.set_context("cudnn", 0, "float")


@pytest.mark.parametrize("asked", ["cudnn", None])
def test_gpu_is_used_where_it_works(extension, monkeypatch, asked):
    made, cpu = [], nnabla.ext_utils.get_extension_context("cpu")
    extension(lambda: types.SimpleNamespace(get_device_count=lambda: 2))
    monkeypatch.setattr(context, "get_extension_context",
                        lambda name, **options: made.append((name, options)) or cpu)
    assert context.set_context(asked, 1, "half") == "cudnn, GPU 1, half"
    assert made == [("cudnn", {"device_id": "1", "type_config": "half"})]


@pytest.mark.parametrize("error", [
    RecursionError("maximum recursion depth exceeded"), ImportError("libcudart.so.12"),
    OSError("libcudnn.so.8: cannot open shared object file"), RuntimeError()])
def test_whatever_the_extension_raises_is_one_line(extension, error):
    extension(raising(error))
    with pytest.raises(UserError) as caught:
        context.set_context("cudnn", 0, "float")
    assert type(error).__name__ in str(caught.value) and "CUDA 12, cuDNN 8" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_gpu_is_named(extension):
    extension(lambda: types.SimpleNamespace(get_device_count=lambda: 0))
    with pytest.raises(UserError, match="expected a GPU, found none"):
        context.set_context("cudnn", 0, "float")
    extension(lambda: types.SimpleNamespace(get_device_count=lambda: 1))
    assert context.cudnn_problem(0) is None
    with pytest.raises(UserError, match="GPU number below 1, found --device-id 3"):
        context.set_context("cudnn", 3, "float")


