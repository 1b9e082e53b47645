import hashlib
import os
import re
from dataclasses import replace

import numpy as np
import pytest

from datasets import arrays
from datasets.arrays import Split
from tests.conftest import make_dataset, refused
from utils.errors import UserError


def test_files_hold_what_the_design_says(dataset_folder):
    def read(name):
        return np.load(dataset_folder / name, allow_pickle=False)
    assert read("x_train.npy").dtype == np.uint8 and read("x_train.npy").shape == (30, 3, 32, 32)
    assert read("x_val.npy").shape == (12, 3, 32, 32)
    for name, count in [("y_train.npy", 30), ("y_shuffle_train.npy", 30), ("y_val.npy", 12)]:
        assert read(name).shape == (count, 1) and read(name).dtype.kind == "i"
    assert (dataset_folder / "label_names.txt").read_text() == "class 0\nclass 1\nclass 2\n"
    assert (read("y_train.npy") != read("y_shuffle_train.npy")).sum() == 6


def test_loading_gives_what_was_saved(dataset_folder):
    dataset, expected = arrays.load(dataset_folder, test=True), make_dataset()
    for name in ("images", "labels", "true_labels"):
        assert np.array_equal(getattr(dataset, name), getattr(expected, name))
    assert np.array_equal(dataset.test.images, expected.test.images)
    assert dataset.names == expected.names
    assert dataset.digest() == expected.digest()
    assert isinstance(dataset.images, np.memmap)


def test_digest_tells_images_and_labels_apart():
    dataset = make_dataset()
    other_images, other_labels = dataset.images.copy(), dataset.labels.copy()
    other_images[3, 1, 2, 3] += 1
    other_labels[4] = (other_labels[4] + 1) % 3
    digests = {dataset.digest(), replace(dataset, images=other_images).digest(),
               replace(dataset, labels=other_labels).digest()}
    assert len(digests) == 3
    assert replace(dataset, true_labels=None).digest() in digests


def test_true_labels_and_names_may_be_missing(dataset_folder):
    os.remove(dataset_folder / "y_train.npy")
    os.remove(dataset_folder / "label_names.txt")
    dataset = arrays.load(dataset_folder)
    assert dataset.true_labels is None and dataset.test is None
    assert dataset.names == ["0", "1", "2"]
    with pytest.raises(UserError, match=r"--shuffle_label False.*y_train\.npy"):
        dataset.without_noise()
    arrays.save(dataset_folder, make_dataset())
    arrays.save(dataset_folder, replace(make_dataset(), true_labels=None))
    assert not (dataset_folder / "y_train.npy").exists()


def test_true_labels_never_overwrite_the_noisy_ones(dataset_folder):
    dataset = arrays.load(dataset_folder, test=True)
    arrays.save(dataset_folder, dataset, read_from=dataset_folder)
    with pytest.raises(UserError, match=r"--shuffle_label False.*data"):
        arrays.save(dataset_folder, dataset.without_noise(), read_from=dataset_folder)
    assert np.array_equal(arrays.load(dataset_folder).labels, dataset.labels)


def test_data_of_another_run_are_not_overwritten(dataset_folder):
    with pytest.raises(UserError, match=rf"{re.escape(str(dataset_folder))}\b.*--output"):
        arrays.save(dataset_folder, make_dataset(seed=1))
    assert arrays.load(dataset_folder).digest() == make_dataset().digest()


@pytest.mark.parametrize(("name", "content"), [
    ("x_train.npy", np.zeros((60, 28, 28))), ("x_train.npy", np.array([None])),
    ("y_train.npy", np.zeros(60, int)), ("x_val.npy", np.zeros((60, 28, 28), np.uint8))])
def test_arrays_that_no_run_has_written_are_not_overwritten(tmp_path, name, content):
    np.save(tmp_path / name, content)
    before = (tmp_path / name).read_bytes()
    with refused(str(tmp_path), name, "--output"):
        arrays.save(tmp_path, make_dataset())
    assert (tmp_path / name).read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_remains_of_a_killed_run_are_overwritten(dataset_folder):
    other = make_dataset(seed=1)
    (dataset_folder / "y_shuffle_train.npy").unlink()
    arrays.save(dataset_folder, other)
    assert arrays.load(dataset_folder).digest() == other.digest()


@pytest.mark.parametrize(("name", "content", "message"), [
    ("x_train.npy", np.zeros((30, 3, 32, 32)), r"\(N, 3, S, S\) .*x_train\.npy.* float64"),
    ("x_train.npy", np.zeros((30, 32, 32, 3), np.uint8), r"x_train\.npy.* uint8 \(30, 32, 32, 3\)"),
    ("x_train.npy", np.zeros((0, 3, 32, 32), np.uint8), r"x_train\.npy.* uint8 \(0, 3, 32, 32\)"),
    ("x_train.npy", np.uint8(3), r"x_train\.npy.* uint8 \(\)"),
    ("y_shuffle_train.npy", np.zeros((29, 1), int), r"\(30, 1\) .*y_shuffle_train\.npy.* \(29, 1\)"),
    ("y_train.npy", np.zeros((31, 1), int), r"\(30, 1\) .*y_train\.npy.* \(31, 1\)"),
    ("y_train.npy", np.full((30, 1), np.nan), r"y_train\.npy.* float64"),
    ("y_shuffle_train.npy", np.full((30, 1), -1), r"\b0 .*y_shuffle_train\.npy.* -1\b"),
    ("y_shuffle_train.npy", np.full((30, 1), 3), r"\b3\b.*label_names\.txt.* 3\b"),
    ("y_val.npy", np.zeros((3, 1), int), r"\(12, 1\) .*y_val\.npy.* \(3, 1\)"),
    ("y_train.npy", np.array([[None]] * 30), r"y_train\.npy"),
])
def test_files_that_do_not_fit_are_refused(dataset_folder, name, content, message):
    np.save(dataset_folder / name, content)
    with pytest.raises(UserError, match=message):
        arrays.load(dataset_folder, test=True)


@pytest.mark.parametrize("name", ["x_train.npy", "y_shuffle_train.npy", "x_val.npy", "y_val.npy"])
def test_missing_file_is_named(dataset_folder, name):
    os.remove(dataset_folder / name)
    with pytest.raises(UserError, match=re.escape(name)):
        arrays.load(dataset_folder, test=True)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"--input .*nowhere\b"):
        arrays.load(tmp_path / "nowhere")


def test_labels_without_a_second_axis_are_read_too(dataset_folder):
    np.save(dataset_folder / "y_shuffle_train.npy", make_dataset().labels[:, 0])
    assert np.array_equal(arrays.load(dataset_folder).labels, make_dataset().labels)


def test_digest_is_that_of_every_image_and_label():
    dataset = make_dataset(1500)
    digests = [dataset.digest()]
    for array, place in [(dataset.images, (1499, 2, 31, 31)), (dataset.images, (0, 0, 0, 0)),
                         (dataset.labels, (1499, 0))]:
        array[place] += 1
        digests.append(replace(dataset).digest())
    assert len(set(digests)) == 4
    expected = hashlib.sha256(b"((1500, 3, 32, 32), (1500, 1))" + dataset.images.tobytes()
                              + dataset.labels.astype("<i8").tobytes())
    assert digests[-1] == expected.hexdigest()
    features = np.random.default_rng(0).random((1500, 1024), np.float32)
    own = hashlib.sha256(b"(1500, 1024)" + features.tobytes())
    expected.update(own.hexdigest().encode())
    own.update(dataset.images.tobytes())
    dataset = replace(dataset, features=features)
    assert dataset.digest() == expected.hexdigest()
    assert dataset.feature_digests() == {"features_train.npy": own.hexdigest()}


def test_files_that_hold_the_same_are_not_written_again(dataset_folder):
    def written():
        return {name: (dataset_folder / name).stat().st_ino for name in ("x_train.npy", "x_val.npy")}
    before, dataset = written(), make_dataset()
    for one in (dataset, arrays.load(dataset_folder, test=True)):
        arrays.save(dataset_folder, one)
        assert written() == before
    test = replace(dataset.test, images=dataset.images[12:24])
    arrays.save(dataset_folder, replace(dataset, test=test))
    kept = {name for name, file in written().items() if file == before[name]}
    assert kept == {"x_train.npy"}
    assert np.array_equal(np.load(dataset_folder / "x_val.npy"), dataset.images[12:24])


def test_saved_images_are_mapped(tmp_path):
    dataset = make_dataset()
    for test in (dataset.test, dataset):
        one = replace(dataset, test=Split(test.images, test.labels))
        arrays.save(tmp_path / str(len(test.images)), one)
        found = arrays.mapped(tmp_path / str(len(test.images)), one)
        assert isinstance(found.images, np.memmap) and isinstance(found.test.images, np.memmap)
        assert found.digest() == one.digest() and np.array_equal(found.test.images, test.images)
        assert (found.test.images is found.images) == (test is dataset)


def test_paths_are_kept_and_must_fit(tmp_path):
    dataset = replace(make_dataset(), paths=[f"{number}.png" for number in range(30)])
    arrays.save(tmp_path, dataset)
    assert arrays.load(tmp_path).paths == dataset.paths
    (tmp_path / "paths.txt").write_text("0.png\n")
    with pytest.raises(UserError, match=r"\b30 .*paths\.txt.* 1\b"):
        arrays.load(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    arrays.save(tmp_path, replace(dataset, paths=None))
    assert not (tmp_path / "paths.txt").exists() and arrays.load(tmp_path).paths is None


def test_place_of_the_images_may_be_nonsense(tmp_path):
    arrays.save(tmp_path, replace(make_dataset(), paths=[f"{number}.png" for number in range(30)]))
    for line in ("x" * 300, "a\0b", "../" * 99, "/dev/zero"):
        (tmp_path / "source.txt").write_text(line)
        assert len(arrays.load(tmp_path).files()) == 30


def test_lists_of_files_that_were_there_do_not_stay(tmp_path):
    arrays.save(tmp_path, make_dataset())
    for name in ("paths.txt", "skipped.txt"):
        (tmp_path / name).write_text("1.png\n")
    arrays.save(tmp_path, make_dataset())
    assert not (tmp_path / "paths.txt").exists() and not (tmp_path / "skipped.txt").exists()
