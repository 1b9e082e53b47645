import hashlib
import os
import pickle
import pickletools
import subprocess
import sys
import tarfile
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from datasets import cifar, load_source, make_dataset
from datasets.cifar import CIFAR10, CIFAR100, fetch_archive, load_cifar
from tests.conftest import write_archive, write_batch
from utils.errors import UserError


def batch(data=None, labels=None):
    data = np.zeros((2, 3072), np.uint8) if data is None else data
    return write_batch({b"data": data, b"labels": [0, 9] if labels is None else labels})


class Exploit:
    """A pickle that creates a file when it is loaded by the usual unpickler."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return open, (str(self._path), "w")


def test_real_sample_has_the_official_records(sample_archive):
    train, test = load_cifar(CIFAR10, sample_archive)
    assert train.images.shape == (2000, 3, 32, 32) and test.images.shape == (400, 3, 32, 32)
    assert train.images.dtype == np.uint8
    with tarfile.open(sample_archive) as archive:
        member = archive.extractfile("cifar-10-batches-py/data_batch_1")
        content = pickle.load(member, encoding="bytes")
    assert np.array_equal(train.images[:10].reshape(10, -1), content[b"data"][:10])
    assert train.labels[:10, 0].tolist() == content[b"labels"][:10]
    # Well-known: the first official images are a frog and a truck.
    assert [CIFAR10.names[label] for label in train.labels[:2, 0]] == ["frog", "truck"]


def test_archive_and_extracted_folder_are_the_same(tmp_path):
    path = write_archive(tmp_path / "cifar-10-python.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path / "extracted")
    splits = [load_cifar(CIFAR10, source) for source in
              (path, tmp_path / "extracted", tmp_path / "extracted" / CIFAR10.folder)]
    for train, test in splits:
        assert train.images.shape == (20, 3, 32, 32) and test.labels.shape == (4, 1)
        assert np.array_equal(train.images, splits[0][0].images)
        assert np.array_equal(test.labels, splits[0][1].labels)


def test_cifar100_has_its_fine_labels(tmp_path):
    rng = np.random.default_rng(0)
    content = {name: write_batch({b"data": rng.integers(0, 256, (3, 3072)).astype(np.uint8),
                                  b"fine_labels": labels, b"coarse_labels": [19, 0, 1]})
               for name, labels in [("train", [0, 99, 3]), ("test", [1, 2, 97])]}
    path = write_archive(tmp_path / "cifar-100-python.tar.gz", folder="cifar-100-python",
                         **dict.fromkeys([*CIFAR10.train, CIFAR10.test]), **content)
    source = load_source("cifar100", path, None, False, rng)
    names = [source.names[label] for label in source.train.labels[:, 0]]
    assert names == ["apple", "worm", "bear"] and source.test.images.shape == (3, 3, 32, 32)
    assert len(set(CIFAR100.names)) == 100 and source.confusable[99] == 0
    with pytest.raises(UserError, match=r"cifar-10-batches-py/data_batch_1 .*/cifar-100-python"):
        load_source("cifar10", path, None, False, rng)


def test_records_keep_their_order_and_their_colours(tmp_path):
    data = np.repeat(np.array([10, 20, 30], np.uint8), 1024)[None]
    path = write_archive(tmp_path / "a.tar.gz", data_batch_1=batch(data, [7]))
    train, _ = load_cifar(CIFAR10, path)
    assert train.labels[0, 0] == 7
    assert train.images[0].reshape(3, -1).T.tolist() == [[10, 20, 30]] * 1024


def test_batches_follow_one_another_by_number(tmp_path):
    """Labels that others have made for the set are in this order."""
    content = {f"data_batch_{number}": batch(labels=[number, 0]) for number in (5, 3, 1, 2, 4)}
    train, _ = load_cifar(CIFAR10, write_archive(tmp_path / "a.tar.gz", **content))
    assert train.labels[:, 0].tolist() == [1, 0, 2, 0, 3, 0, 4, 0, 5, 0]


@pytest.mark.parametrize(("replaced", "message"), [
    ({"data_batch_3": None}, r"cifar-10-batches-py/data_batch_3 .*/a\.tar\.gz"),
    ({"test_batch": None}, r"cifar-10-batches-py/test_batch .*/a\.tar\.gz"),
    ({"data_batch_2": batch(labels=[0, 10])}, r"\b0 .*\b9 .*data_batch_2\b.* 10\b"),
    ({"data_batch_2": batch(labels=[0, -1])}, r"\b0 .*\b9 .*data_batch_2\b.* -1\b"),
    ({"data_batch_2": batch(labels=[0])}, r"\b2 .*data_batch_2\b.* \(1,\)"),
    ({"data_batch_2": batch(labels=[0.7, "3"])}, r"data_batch_2\b"),
    ({"test_batch": batch(np.zeros((2, 3071), np.uint8))}, r"\b3072 .*test_batch\b.*\(2, 3071\)"),
    ({"test_batch": batch(np.zeros((2, 3072)))}, r"test_batch\b.*\b(f8|float64)\b"),
    ({"data_batch_1": b""}, r"data_batch_1\b"),
    ({"data_batch_1": batch()[:2000]}, r"data_batch_1\b"),
    ({"data_batch_1": write_batch([1, 2])}, r"data_batch_1\b"),
    ({"data_batch_1": write_batch({b"labels": [1]})}, r"data_batch_1\b"),
])
def test_wrong_batch_is_refused(tmp_path, replaced, message):
    path = write_archive(tmp_path / "a.tar.gz", **replaced)
    with pytest.raises(UserError, match=message):
        load_cifar(CIFAR10, path)


def test_malicious_pickle_runs_no_code(tmp_path):
    target = tmp_path / "created"
    attack = write_batch({b"data": Exploit(target), b"labels": [1]})
    pickle.loads(attack)[b"data"].close()
    assert target.exists()
    target.unlink()
    path = write_archive(tmp_path / "a.tar.gz", data_batch_4=attack)
    with pytest.raises(UserError, match=r"data_batch_4\b.*\bio\.open\b"):
        load_cifar(CIFAR10, path)
    assert not target.exists()


def copies(count):
    """A pickle that stores 2**20 bytes of text once and copies them by `count` calls."""
    text = b"X" + (2**20).to_bytes(4, "little") + b"a" * 2**20
    call = b"c_codecs\nencode\n(h\x00X\x06\x00\x00\x00latin1tR"
    return b"\x80\x02" + text + b"q\x000](" + call * count + b"e."


def nested(function, arguments=b""):
    """A pickle that calls a function with a tuple whose repr has more than 2**30 characters."""
    return b"\x80\x02c" + function + b"\n(" + arguments + b")" + b"2\x86" * 30 + b"tR."


# Exits with 3 if the batch is refused for another reason than the limit on memory.
LIMITED = """
import resource, sys
from pathlib import Path
from datasets.cifar import CIFAR10, load_cifar
from utils.errors import UserError
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
try:
    load_cifar(CIFAR10, Path(sys.argv[1]))
except UserError as error:
    print(error)
    sys.exit(4 if isinstance(error.__cause__, MemoryError) else 3)
"""


def load_limited(path):
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", LIMITED, str(path)], env=environment,
                          cwd=Path(cifar.__file__).parents[1], capture_output=True, text=True)


@pytest.mark.parametrize("attack", [
    b"\x80\x02Kr\x00\x00\x00\x10.",  # memo index 2**28
    b"\x80\x02Kp268435456\n.",
    b"\x80\x05\x96" + (2**33).to_bytes(8, "little") + b".",  # bytearray
    b"\x80\x02cnumpy\nndarray\n(J\x00\x00\x00\x40X\x01\x00\x00\x00OtR.",  # object array of 2**30
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(J\x00\x00\x00\x40t"
    b"X\x01\x00\x00\x00OtR.",
    copies(3000),
    copies(3000).replace(b"R", b"o").replace(b"c_codecs", b"(c_codecs").replace(b"\n(h", b"\nh")
    .replace(b"latin1t", b"latin1"),
    nested(b"numpy\ndtype"),
    nested(b"_codecs\nencode", b"X\x01\x00\x00\x00a"),
    b"\x80\x02}K\x00" + b"2\x86" * 60 + b"K\x01s.",  # a key whose hash takes 2**60 steps
], ids=["binary memo", "memo", "bytearray", "array", "reconstruct", "copies", "objects", "type name",
        "encoding", "hash"])
def test_few_bytes_of_pickle_do_not_fill_memory_or_time(tmp_path, attack):
    result = load_limited(write_archive(tmp_path / "a.tar.gz", data_batch_1=attack))
    assert result.returncode == 3, result
    assert "data_batch_1" in result.stdout and len(result.stdout) < 1000


def test_whole_archive_loads_under_the_limits_of_the_attacks(tmp_path):
    result = load_limited(write_archive(tmp_path / "a.tar.gz"))
    assert result.returncode == 0, result


@pytest.mark.parametrize("function", [
    b"numpy.core.multiarray\n_reconstruct", b"numpy\ndtype", b"_codecs\nencode"])
@pytest.mark.parametrize("state", [
    b"}U\x06markerK\x01s",
    b"N}U\x06markerK\x01s\x86",
    b"N}U\x0c__defaults__U\x06latin1\x85s\x86",
    b"N}U\x0c__setstate__c_codecs\nencode\ns\x86",
], ids=["dictionary", "attribute", "defaults", "setstate"])
def test_pickle_cannot_change_the_functions_it_calls(tmp_path, function, state):
    before = dict(cifar._ALLOWED)
    attack = b"\x80\x02c" + function + b"\n" + state + b"b0" + batch()[2:]
    path = write_archive(tmp_path / "a.tar.gz", data_batch_1=attack)
    with pytest.raises(UserError, match=r"data_batch_1\b"):
        load_cifar(CIFAR10, path)
    assert before == cifar._ALLOWED
    for value in before.values():
        assert not hasattr(value, "marker") and not hasattr(value, "__defaults__")
    with pytest.raises(UserError, match=rf"data_batch_1\b.*\b{cifar.MAX_CALLS}\b"):
        many = copies(cifar.MAX_CALLS + 1)
        load_cifar(CIFAR10, write_archive(tmp_path / "b.tar.gz", data_batch_1=many))
    load_cifar(CIFAR10, write_archive(tmp_path / "c.tar.gz"))


@pytest.mark.parametrize("kind", ["<i8", ">i8", ">u2", "<i4", "u1"])
def test_arrays_of_labels_keep_their_values(tmp_path, kind):
    content = batch(labels=np.array([1, 2], kind))
    train, _ = load_cifar(CIFAR10, write_archive(tmp_path / "a.tar.gz", data_batch_1=content))
    assert train.labels[:2, 0].tolist() == [1, 2] and train.labels.dtype == np.dtype("=i8")


def test_data_in_fortran_order_keeps_its_values(tmp_path):
    data = np.random.default_rng(0).integers(0, 256, (2, 3072)).astype(np.uint8)
    path = write_archive(tmp_path / "a.tar.gz", test_batch=batch(np.asfortranarray(data)))
    _, test = load_cifar(CIFAR10, path)
    assert np.array_equal(test.images.reshape(2, -1), data)
    assert test.images.flags.writeable


def test_other_codecs_are_refused(tmp_path):
    attack = b"\x80\x02c_codecs\nencode\n(X\x01\x00\x00\x00aX\x06\x00\x00\x00utf-32tR."
    with pytest.raises(UserError, match=r"data_batch_1\b.*utf-32"):
        load_cifar(CIFAR10, write_archive(tmp_path / "a.tar.gz", data_batch_1=attack))


def test_hostile_state_of_a_type_has_no_effect(tmp_path):
    hostile = pickletools.optimize(pickle.dumps((3, "|", None, None, None, -1, -1, 63), 2))[2:-1]
    content = batch()
    start = content.index(b"(K\x03")
    end = content.index(b"b", content.index(b"K\x00t", start))
    attack = content[:start] + hostile + content[end:]
    train, _ = load_cifar(CIFAR10, write_archive(tmp_path / "a.tar.gz", data_batch_1=attack))
    assert train.images.dtype == np.uint8 and train.images.dtype.itemsize == 1
    assert not train.images[:2].any() and np.dtype("u1").flags == 0


def test_batch_that_would_fill_the_memory_is_refused(tmp_path):
    small = replace(CIFAR10, max_batch_bytes=1000)
    with pytest.raises(UserError, match=r"\b1000 .*data_batch_1\b"):
        load_cifar(small, write_archive(tmp_path / "a.tar.gz"))


def test_archive_cut_short_is_refused(tmp_path):
    path = write_archive(tmp_path / "a.tar.gz")
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(UserError, match=r"/a\.tar\.gz\b") as error:
        load_cifar(CIFAR10, path)
    assert "_batch" not in str(error.value)  # the archive is to blame, not what it lacks


def test_missing_path_and_other_file_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"--data .*nowhere\.tar\.gz"):
        load_cifar(CIFAR10, tmp_path / "nowhere.tar.gz")
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(UserError, match=r"/text\b.*cifar-10-python\.tar\.gz"):
        load_cifar(CIFAR10, tmp_path / "text")


def test_subset_is_drawn_at_random_by_the_generator(tmp_path):
    path = write_archive(tmp_path / "a.tar.gz", records=20)
    whole, _ = load_cifar(CIFAR10, path)

    def subset(seed):
        return make_dataset(source, 30, 0.0, np.random.default_rng(seed))
    source = load_source("cifar10", path, None, False, np.random.default_rng(0))
    kept = subset(1)
    assert len(kept.images) == 30 and len(kept.test.images) == 20
    assert {image.tobytes() for image in kept.images} < {image.tobytes() for image in whole.images}
    assert np.array_equal(kept.images, subset(1).images)
    assert not np.array_equal(kept.images, subset(2).images)
    with pytest.raises(UserError, match=r"--subset .*\b100\b.*\b101\b"):
        make_dataset(source, 101, 0.0, np.random.default_rng(0))


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A local web server that sends `server.content`, which is the archive unless a test changes it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    content = write_archive(tmp_path / "cifar-10-python.tar.gz").read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.requests += 1
            if self.server.content is None:
                return self.send_error(503)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(self.server.content)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.requests = content, 0
    server.archive = replace(
        CIFAR10, url=f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz",
        md5=hashlib.md5(content).hexdigest())
    server.home = tmp_path / "home" / "nnabla_data"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_download_is_kept_in_nnablas_data_home_and_used_again(server):
    path = fetch_archive(server.archive)
    assert path == server.home / "cifar-10-python.tar.gz"
    assert path.read_bytes() == server.content
    assert fetch_archive(server.archive) == path
    assert server.requests == 1
    train, _ = load_cifar(CIFAR10, path)
    assert len(train.images) == 20


def test_download_cut_short_leaves_nothing(server):
    server.content = server.content[:1000]
    found = hashlib.md5(server.content).hexdigest()
    with pytest.raises(UserError, match=rf"{server.archive.md5} .*\b{found}\b.*\b1000 "):
        fetch_archive(server.archive)
    assert os.listdir(server.home) == []


def test_failed_download_names_the_remedies(server):
    server.content = None
    with pytest.raises(UserError, match=r"\b503\b.*--data\b.*--dataset digits"):
        fetch_archive(server.archive)
    assert os.listdir(server.home) == []


def test_damaged_archive_is_downloaded_again_and_kept_aside(server):
    path = fetch_archive(server.archive)
    path.write_bytes(b"damaged")
    assert fetch_archive(server.archive).read_bytes() == server.content
    assert path.with_name(path.name + ".damaged").read_bytes() == b"damaged"
