import nnabla.ext_utils
import pytest

from utils import context
from utils.errors import RunError, UserError


def test_cpu_is_chosen_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(context, "cudnn_problem", lambda device_id: "no GPU")
    assert "no GPU" in context.set_context(None, 0, "float")
    assert context.current_context() == "cpu"
    assert context.set_context("cpu", 0, "float") == "cpu"


@pytest.mark.parametrize("asked, device_id, type_config, flag", [
    ("cpu", 0, "half", "--type-config half"), (None, 0, "half", "--type-config half"),
    (None, 1, "float", "--device-id 1"), ("cudnn", 0, "float", "-c cudnn")])
def test_what_needs_a_gpu_is_refused_without(monkeypatch, asked, device_id, type_config, flag):
    monkeypatch.setattr(context, "cudnn_problem", lambda device_id: "libcuda.so.1")
    with pytest.raises(UserError) as caught:
        context.set_context(asked, device_id, type_config)
    assert flag in str(caught.value)
    assert ("libcuda.so.1" in str(caught.value)) == (asked != "cpu")


@pytest.mark.parametrize("asked", ["cudnn", None])
def test_gpu_is_used_where_it_works(monkeypatch, asked):
    made, cpu = [], nnabla.ext_utils.get_extension_context("cpu")
    monkeypatch.setattr(context, "cudnn_problem", lambda device_id: None)
    monkeypatch.setattr(context, "get_extension_context",
                        lambda name, **options: made.append((name, options)) or cpu)
    assert context.set_context(asked, 1, "half").startswith("cudnn")
    assert made == [("cudnn", {"device_id": "1", "type_config": "half"})]


@pytest.mark.parametrize("error", [
    MemoryError(), RuntimeError("memory error in alloc\nFailed `this->alloc_impl()`"),
    RuntimeError('(cudaMalloc()) failed with "out of memory" (cudaErrorMemoryAllocation).'),
    RuntimeError("target_specific error in f\nALLOC_FAILED"), Exception("std::bad_alloc"),
    RuntimeError("can't start new thread"),
    Exception("Failed to allocate memory for requested buffer of size 1000")])
def test_lack_of_memory_is_told_with_a_batch_size_to_try(error):
    with pytest.raises(RunError) as caught, context.memory_for("--batch_size", 9, "run again"):
        raise error
    assert "--batch_size 9" in str(caught.value) and "--batch_size 4" in str(caught.value)


def test_lack_of_memory_for_one_sample():
    with pytest.raises(RunError) as caught, context.memory_for("--batch_size", 1, "run again"):
        raise MemoryError
    assert "--batch_size 0" not in str(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("target_specific error in f\nNOT_SUPPORTED"),
                                   RuntimeError("an illegal memory access was encountered"),
                                   FileNotFoundError("/out of memory/x.npy"),
                                   UserError("out of memory")])
def test_other_errors_are_no_lack_of_memory(error):
    with pytest.raises(type(error)) as caught, context.memory_for("--batch_size", 9, "run again"):
        raise error
    assert caught.value is error
