import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import refused
from tests.utils.backbone.onnx_models import (
    FLOAT,
    HALVES,
    MULTIPLY,
    POOL,
    external,
    scaled,
    write_onnx,
)
from utils.backbone.onnx_file import OnnxFile

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def images_of(count, size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size)).astype(np.uint8)


@pytest.mark.parametrize("shape", [
    ("N", 3, "H", "W"), (None, 3, 8, 8), (1, 3, 8, 8), ("N", "H", "W", 3), ("N", 8, 8, 3),
    ("N", 3, "H", 8)])
@pytest.mark.parametrize(("nodes", "output"), [(POOL, "means"), (HALVES, "map")])
def test_every_layout_and_output_gives_the_means_of_the_channels(tmp_path, shape, nodes, output):
    images = images_of(5, 8)
    fixed = 8 in shape
    backbone = OnnxFile(write_onnx(tmp_path / "a.onnx", shape, nodes, [output]), None if fixed else 8)
    assert (backbone.size, backbone.batch, backbone.concurrent) == (8, 1, True)
    features = backbone.features(images)
    assert features.dtype == np.float32 and features.shape == (5, 3)
    np.testing.assert_allclose(features, (images.mean(axis=(2, 3)) / 255 - MEAN) / DEVIATION, atol=1e-5)


@pytest.mark.parametrize(("kind", "pixels", "expected"), [
    (FLOAT, None, lambda mean: (mean / 255 - MEAN) / DEVIATION),
    (FLOAT, "imagenet", lambda mean: (mean / 255 - MEAN) / DEVIATION),
    (FLOAT, "0..1", lambda mean: mean / 255), (FLOAT, "-1..1", lambda mean: mean / 127.5 - 1),
    (FLOAT, "0..255", lambda mean: mean), (TensorProto.FLOAT16, "0..1", lambda mean: mean / 255),
    (TensorProto.UINT8, None, lambda mean: mean), (TensorProto.UINT8, "0..255", lambda mean: mean)])
def test_pixels_enter_as_asked(tmp_path, kind, pixels, expected):
    images = images_of(2, 8)
    backbone = OnnxFile(write_onnx(tmp_path / "a.onnx", kind=kind), 8, pixels)
    means = images.mean(axis=(2, 3))
    np.testing.assert_allclose(backbone.features(images), expected(means), atol=1e-5 if kind != 10 else
                               1e-3, rtol=1e-5)


def test_size_is_the_files_or_else_the_callers(tmp_path):
    free = write_onnx(tmp_path / "free.onnx")
    fixed = write_onnx(tmp_path / "fixed.onnx", (1, 3, 12, 12))
    assert [OnnxFile(free).size, OnnxFile(free, 40).size] == [224, 40]
    assert [OnnxFile(fixed).size, OnnxFile(fixed, 12).size] == [12, 12]
    with refused("--image_size 12", "40", str(fixed)):
        OnnxFile(fixed, 40)
    with refused("12x16"):
        OnnxFile(write_onnx(tmp_path / "a.onnx", (1, 3, 12, 16)))
    with refused("100000", "1024"):  # an image of it would take 30 GB
        OnnxFile(write_onnx(tmp_path / "a.onnx", (1, 3, 100000, 100000)))


def test_only_output_of_a_possible_shape_is_taken(tmp_path):
    tokens = helper.make_node("Unsqueeze", ["means", "axis"], ["tokens"])
    axis = numpy_helper.from_array(np.array([1]), "axis")
    path = write_onnx(tmp_path / "a.onnx", nodes=[*POOL, tokens], outputs=["tokens", "means"],
                      weights=[axis])
    images = images_of(2, 8)
    backbone = OnnxFile(path, 8, "0..255")
    np.testing.assert_allclose(backbone.features(images), images.mean(axis=(2, 3)), rtol=1e-5)
    with refused("'tokens' (1, 1, 3)", "'means' (1, 3)"):
        OnnxFile(path, 8, output="tokens")
    with refused("--backbone_output", "'tokens'", "'means'", "class"):
        OnnxFile(path, 8, output="class")


def test_one_of_several_outputs_is_chosen_by_name(tmp_path):
    double = helper.make_node("Add", ["means", "means"], ["double"])
    path = write_onnx(tmp_path / "a.onnx", nodes=[*POOL, double], outputs=["means", "double"])
    with refused("--backbone_output", "'means' (1, 3)", "'double' (1, 3)"):
        OnnxFile(path, 8)
    images = images_of(2, 8)
    one, two = (OnnxFile(path, 8, output=name) for name in ("means", "double"))
    assert np.array_equal(2 * one.features(images), two.features(images))
    assert one.key != two.key


@pytest.mark.parametrize("batch", [4, 1])
def test_fixed_batch_gives_the_same_features_as_a_free_one(tmp_path, batch):
    images = images_of(6, 8)
    free = OnnxFile(write_onnx(tmp_path / "free.onnx"), 8)
    fixed = OnnxFile(write_onnx(tmp_path / "fixed.onnx", (batch, 3, 8, 8)))
    assert (free.batch, fixed.batch) == (1, batch)
    assert np.array_equal(free.features(images), fixed.features(images))


def test_features_do_not_depend_on_the_images_beside_them(tmp_path):
    """A model that subtracts the mean of all images that it computes at once."""
    centre = [helper.make_node("ReduceMean", ["means"], ["mean"], axes=[0]),
              helper.make_node("Sub", ["means", "mean"], ["centred"])]
    backbone = OnnxFile(write_onnx(tmp_path / "a.onnx", nodes=[*POOL, *centre], outputs=["centred"]), 8)
    assert (backbone.features(images_of(4, 8)) == 0).all()


def test_threads_share_a_backbone(tmp_path):
    images = images_of(64, 16)
    backbone = OnnxFile(write_onnx(tmp_path / "a.onnx"), 16)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(backbone.features, np.split(images, 32)))
    assert np.array_equal(np.concatenate(parts), backbone.features(images))


def test_key_tells_what_decides_the_features(tmp_path):
    path = write_onnx(tmp_path / "a.onnx")
    keys = [OnnxFile(path, 8).key, OnnxFile(path, 9).key, OnnxFile(path, 8, "0..1").key,
            OnnxFile(scaled(tmp_path / "b.onnx"), 8).key,
            OnnxFile(scaled(tmp_path / "b.onnx", (1, 2, 3)), 8).key]
    assert len(set(keys)) == 5
    assert all(len(key) == 64 and set(key) <= set("0123456789abcdef") for key in keys)
    copy = write_onnx(tmp_path / "elsewhere" / "c.onnx")
    assert OnnxFile(copy, 8, "imagenet").key == keys[0]


def write_external(path, location, length=3):
    return write_onnx(path, nodes=[*POOL, MULTIPLY], outputs=["scaled"],
                      weights=[external("factors", location, length)])


def test_external_data_in_the_folder_are_read_and_belong_to_the_key(tmp_path, monkeypatch):
    (tmp_path / "model" / "data").mkdir(parents=True)
    weights, images = tmp_path / "model" / "data" / "weights.bin", images_of(2, 8)
    path = write_external(tmp_path / "model" / "a.onnx", "data/weights.bin")
    keys = []
    for factor in (1, 2):
        np.full(3, factor, np.float32).tofile(weights)
        backbone = OnnxFile(path, 8, "0..255")
        np.testing.assert_allclose(backbone.features(images), factor * images.mean(axis=(2, 3)),
                                   rtol=1e-5)
        keys.append(backbone.key)
    assert keys[0] != keys[1]
    monkeypatch.chdir(path.parent)
    assert OnnxFile(path.relative_to(path.parent), 8, "0..255").key == keys[1]


@pytest.mark.parametrize("location", [
    "../weights.bin", "data/../../weights.bin", "data/../weights.bin", "link.bin", "folder/weights.bin",
    "{outside}", "*/_ORT_MEM_ADDR_/*", "..\\weights.bin", "", "a\0b", "x" * 5000, "loop"])
def test_external_data_outside_the_folder_are_refused(tmp_path, location):
    for folder in (tmp_path, tmp_path / "model"):
        folder.mkdir(exist_ok=True)
        np.ones(3, np.float32).tofile(folder / "weights.bin")
    (tmp_path / "model" / "data").mkdir()
    (tmp_path / "model" / "link.bin").symlink_to(tmp_path / "weights.bin")
    (tmp_path / "model" / "folder").symlink_to(tmp_path)
    (tmp_path / "model" / "loop").symlink_to("loop")
    (tmp_path / "model" / "*" / "_ORT_MEM_ADDR_").mkdir(parents=True)
    np.ones(3, np.float32).tofile(tmp_path / "model" / "*" / "_ORT_MEM_ADDR_" / "*")
    outside = location.format(outside=tmp_path / "model" / "weights.bin")
    path = write_external(tmp_path / "model" / "a.onnx", outside)
    with refused(str(path), "external data"):
        OnnxFile(path, 8)


@pytest.mark.parametrize("entries", [
    [("location", "weights.bin"), ("location", "../weights.bin")],
    [("location", "../weights.bin"), ("location", "weights.bin")],
    [("location", "weights.bin"), ("location", "weights.bin")],
    [("location", "weights.bin"), ("offset", "0"), ("offset", "4")],
    [("location", "weights.bin"), ("length", "12"), ("length", "12")],
    [("location", "weights.bin"), ("location", "")], [("location", "weights.bin"), ("offset", "")],
    [("location", "weights.bin"), ("basepath", "..")], [("location", "weights.bin"), ("", "")],
    [("location", "weights.bin"), ("prepacked_0", "a|0;12;0")],  # ONNX Runtime's own
    [("offset", "0"), ("length", "12")], [("checksum", "0")]])
@pytest.mark.parametrize("location", [TensorProto.EXTERNAL, TensorProto.DEFAULT])
def test_external_data_must_be_described_once(tmp_path, entries, location):
    for folder in (tmp_path, tmp_path / "model"):
        folder.mkdir(exist_ok=True)
        np.ones(4, np.float32).tofile(folder / "weights.bin")
    tensor = onnx.TensorProto(name="factors", data_type=FLOAT, dims=[3], data_location=location)
    for key, value in entries:
        tensor.external_data.add(key=key, value=value)
    path = write_onnx(tmp_path / "model" / "a.onnx", nodes=[*POOL, MULTIPLY], outputs=["scaled"],
                      weights=[tensor])
    with refused(str(path), "'factors'"):
        OnnxFile(path, 8)


@pytest.mark.parametrize("entry", [
    ("offset", "4"), ("offset", "1000"), ("offset", "-4"), ("offset", "9" * 20), ("offset", "a"),
    ("length", "8"), ("length", "16"), ("length", "-12"), ("length", "9" * 20)])
def test_external_data_beyond_their_file_are_refused(tmp_path, entry):
    np.ones(3, np.float32).tofile(tmp_path / "weights.bin")
    tensor = external("factors", "weights.bin", 3)
    next(one for one in tensor.external_data if one.key == entry[0]).value = entry[1]
    path = write_onnx(tmp_path / "a.onnx", nodes=[*POOL, MULTIPLY], outputs=["scaled"], weights=[tensor])
    with refused(str(path)):
        OnnxFile(path, 8)


@pytest.mark.parametrize("place", ["attribute", "branch", "function", "initialization"])
@pytest.mark.parametrize("location", [["../weights.bin"], ["weights.bin", "../weights.bin"]])
def test_external_data_outside_the_folder_are_refused_everywhere(tmp_path, place, location):
    """Also where ONNX Runtime reads no weights today."""
    for folder in (tmp_path, tmp_path / "model"):
        folder.mkdir(exist_ok=True)
        np.ones(3, np.float32).tofile(folder / "weights.bin")
    tensor = external("factors", location[0], 3)
    for one in location[1:]:
        tensor.external_data.add(key="location", value=one)
    constant = helper.make_node("Constant", [], ["factors"], value=tensor)
    path = write_onnx(tmp_path / "model" / "a.onnx", outputs=["means"])
    model = onnx.load(path)
    if place == "attribute":
        model.graph.node.append(constant)
    elif place == "branch":
        branch = helper.make_graph([], "branch", [], [], [tensor])
        model.graph.node.append(helper.make_node("If", ["yes"], [], then_branch=branch,
                                                 else_branch=branch))
    elif place == "function":
        model.functions.append(helper.make_function(
            "com.example", "Factors", [], ["factors"], [constant], [helper.make_opsetid("", 17)]))
    else:
        model.training_info.add().initialization.initializer.append(tensor)
    path.write_bytes(model.SerializeToString())
    with refused(str(path), "external data"):
        OnnxFile(path, 8)


@pytest.mark.parametrize("as_weight", [True, False])
def test_sparse_tensors_are_refused(tmp_path, as_weight):
    """ONNX Runtime crashes on this one."""
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(3, np.float32), "factors"),
        numpy_helper.from_array(np.array([0, 1, 2**33])), [3])
    constant = helper.make_node("Constant", [], ["factors"], sparse_value=sparse)
    path = write_onnx(tmp_path / "a.onnx", outputs=["scaled"],
                      nodes=[*POOL, *([] if as_weight else [constant]), MULTIPLY])
    if as_weight:
        model = onnx.load(path)
        model.graph.sparse_initializer.append(sparse)
        path.write_bytes(model.SerializeToString())
    with refused(str(path), "sparse"):
        OnnxFile(path, 8)


@pytest.mark.parametrize("length", [2, 2**40])
def test_external_data_missing_or_cut_short_are_refused(tmp_path, length):
    path = write_external(tmp_path / "a.onnx", "weights.bin", length)
    with refused("'weights.bin'", str(path)):
        OnnxFile(path, 8)
    (tmp_path / "weights.bin").write_bytes(bytes(7))
    with refused(str(path)):
        OnnxFile(path, 8)


def in_branch(node):
    """That node in a branch of another."""
    branch = helper.make_graph([node], "branch", [], [helper.make_tensor_value_info("y", FLOAT, None)])
    return helper.make_node("If", ["yes"], ["result"], then_branch=branch, else_branch=branch)


@pytest.mark.parametrize("wrap", [lambda node: node, in_branch])
def test_custom_operators_are_refused(tmp_path, wrap):
    node = helper.make_node("Run", ["means"], ["y"], domain="com.example")
    yes = numpy_helper.from_array(np.array(True), "yes")
    path = write_onnx(tmp_path / "a.onnx", nodes=[*POOL, wrap(node)], outputs=[wrap(node).output[0]],
                      weights=[yes], domains=["com.example"])
    with refused("'Run'", "'com.example'", str(path)):
        OnnxFile(path, 8)


def test_operators_of_onnx_runtime_and_functions_in_the_file_are_run(tmp_path):
    images = images_of(2, 8)
    gelu = helper.make_node("Gelu", ["means"], ["y"], domain="com.microsoft")
    backbone = OnnxFile(write_onnx(tmp_path / "a.onnx", nodes=[*POOL, gelu], outputs=["y"],
                                   domains=["com.microsoft"]), 8, "0..255")
    np.testing.assert_allclose(backbone.features(images), images.mean(axis=(2, 3)), rtol=1e-5)
    double = helper.make_function("com.example", "Double", ["x"], ["y"], [
        helper.make_node("Add", ["x", "x"], ["y"])], [helper.make_opsetid("", 17)])
    backbone = OnnxFile(write_onnx(
        tmp_path / "b.onnx", functions=[double], domains=["com.example"], outputs=["y"],
        nodes=[*POOL, helper.make_node("Double", ["means"], ["y"], domain="com.example")]), 8, "0..255")
    np.testing.assert_allclose(backbone.features(images), 2 * images.mean(axis=(2, 3)), rtol=1e-5)


@pytest.mark.parametrize(("facts", "options"), [
    (("found 2", "'image'", "'other'"),
     {"more_inputs": [helper.make_tensor_value_info("other", FLOAT, [1])]}),
    (("int64", "float16"), {"kind": TensorProto.INT64}),
    (("'image'", "(N, 3, H)"), {"shape": ("N", 3, "H")}),
    (("(N, C, H, W)",), {"shape": ("N", "C", "H", "W")}), (("(N, 1, 8, 8)",), {"shape": ("N", 1, 8, 8)}),
    (("'as_float' (1, 8, 8, 3)",), {"shape": ("N", "H", "W", 3), "nodes": [], "outputs": ["as_float"]}),
    (("'y' (3,)",), {"nodes": [*POOL, helper.make_node("Squeeze", ["means"], ["y"])],
                     "outputs": ["y"]}),
    (("'y' (3, 1)",), {"nodes": [*POOL, helper.make_node("Reshape", ["means", "shape"], ["y"])],
                       "outputs": ["y"],
                       "weights": [numpy_helper.from_array(np.array([3, -1]), "shape")]}),
    (("'y'", "int64"), {"nodes": [*POOL, helper.make_node("Cast", ["means"], ["y"], to=7)],
                        "outputs": [helper.make_tensor_value_info("y", TensorProto.INT64, None)]}),
    (("Opset 99",), {"opset": 99}), (("IR version",), {"version": 99}),
    (("Unknown",), {"nodes": [helper.make_node("Unknown", ["pixels"], ["y"])], "outputs": ["y"]}),
    (("8x8",), {"nodes": [*POOL, helper.make_node("Reshape", ["means", "shape"], ["y"])],
                "outputs": ["y"], "weights": [numpy_helper.from_array(np.array([1, 5]), "shape")]}),
    (("'huge'",), {"nodes": [*POOL, helper.make_node("Mul", ["means", "huge"], ["y"])], "outputs": ["y"],
                   "weights": [onnx.TensorProto(name="huge", data_type=FLOAT, dims=[2**43, 3])]})])
def test_models_of_other_kinds_are_refused_with_what_was_found(tmp_path, facts, options):
    path = write_onnx(tmp_path / "a.onnx", **options)
    with refused(str(path), *facts):
        OnnxFile(path, 8)


def test_uint8_enters_as_it_is(tmp_path):
    with refused("uint8", "--backbone_input", "0..1"):
        OnnxFile(write_onnx(tmp_path / "a.onnx", kind=TensorProto.UINT8), 8, "0..1")


def test_what_is_no_onnx_file_is_refused(tmp_path):
    path = tmp_path / "a.onnx"
    for write in (lambda: None, path.mkdir, lambda: os.mkfifo(path)):
        write()
        with refused("--backbone", str(path)):
            OnnxFile(path)
        if path.is_dir():
            path.rmdir()
    path.unlink()
    whole = scaled(tmp_path / "b.onnx").read_bytes()
    for content in (whole + b"\x0c", whole.replace(b"image", b"im\xffge"), b"", b"\x80\x02}q\0.",
                    b"\x89PNG\r\n\x1a\n" + bytes(100), b"PK\x03\x04" + bytes(99)):
        path.write_bytes(content)
        with refused("--backbone", str(path)):
            OnnxFile(path)
    with path.open("wb") as file:
        file.truncate(2**31)  # takes no space on the disk
    with refused("2,147,483,647", "2,147,483,648"):
        OnnxFile(path)


def test_file_is_read_as_onnx_even_if_it_looks_like_another_format(tmp_path):
    """ONNX Runtime's own, which would not have been checked, is recognised by four bytes."""
    model = onnx.load(write_onnx(tmp_path / "a.onnx"))
    model.producer_name = "ORTM"
    onnx.save(model, tmp_path / "b.onnx")
    assert (tmp_path / "b.onnx").read_bytes()[4:8] == b"ORTM"
    images = images_of(2, 8)
    assert np.array_equal(OnnxFile(tmp_path / "b.onnx", 8).features(images),
                          OnnxFile(tmp_path / "a.onnx", 8).features(images))


def test_file_cut_short_anywhere_is_refused(tmp_path):
    content = scaled(tmp_path / "a.onnx").read_bytes()
    for length in range(len(content)):
        (tmp_path / "a.onnx").write_bytes(content[:length])
        with refused("a.onnx"):
            OnnxFile(tmp_path / "a.onnx", 8)


def test_names_in_a_file_cannot_break_the_line(tmp_path):
    path = write_onnx(tmp_path / "a.onnx", nodes=[
        *POOL, helper.make_node("Identity", ["means"], ["one\n\x1b[2J"])],
        outputs=["means", "one\n\x1b[2J"])
    with refused("one\\n\\x1b[2J"):
        OnnxFile(path, 8)
