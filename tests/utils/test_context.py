import nnabla.ext_utils
import pytest

from tests.conftest import refused
from utils import context
from utils.errors import RunError, UserError
from utils.mpi import Job


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


@pytest.mark.parametrize(("given", "rank", "used"), [
    (None, 0, 0), (None, 2, 2), (0, 2, 0), (1, 2, 1)])
def test_each_rank_of_a_machine_has_its_gpu(monkeypatch, given, rank, used):
    tried, cpu = [], nnabla.ext_utils.get_extension_context("cpu")
    monkeypatch.setattr(context, "job", lambda: Job(rank + 5, 9, rank, 4))
    monkeypatch.setattr(context, "cudnn_problem", lambda device_id: tried.append(device_id))
    monkeypatch.setattr(context, "get_extension_context",
                        lambda name, **options: tried.append(int(options["device_id"])) or cpu)
    assert str(used) in context.set_context(None, given, "float")
    assert tried == [used, used]


@pytest.mark.parametrize("asked", ["cudnn", None])
def test_more_ranks_than_gpus_are_refused(monkeypatch, asked):
    """Otherwise some ranks would compute on the CPU."""
    monkeypatch.setattr(context, "job", lambda: Job(2, 3, 2, 3))
    monkeypatch.setattr(context, "cudnn_problem", lambda device_id: "too few" if device_id > 1 else None)
    with refused("3 ranks", "too few", "--device-id 0"):
        context.set_context(asked, None, "float")
    monkeypatch.setattr(context, "cudnn_problem", lambda device_id: "none")
    if asked:
        with refused("-c cudnn", "none"):
            context.set_context(asked, None, "float")
    else:
        assert context.set_context(asked, None, "float").startswith("cpu")


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
