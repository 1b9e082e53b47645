import csv
import errno
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import arrays, corrections, make_dataset
from datasets.corrections import APPLIED_FILE, Corrections, carry_forward, load_applied, save_decisions
from datasets.export import export
from datasets.own import load_own
from tests.conftest import make_dataset as make_random
from tests.conftest import numbers, refused
from utils.errors import RunError, UserError


def write_image(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), level).save(path)


@pytest.fixture
def photos(tmp_path):
    """Six images of each of two classes, one in a nested folder, and files that are none."""
    for label, name in enumerate(["cat", "dog"]):
        for number in range(5):
            write_image(tmp_path / "photos" / name / f"{number}.png", 100 * label + number + 70)
        write_image(tmp_path / "photos" / name / "more" / f"{name}.png", 100 * label + 79)
    (tmp_path / "photos" / "cat" / "broken.png").write_text("no image")
    (tmp_path / "photos" / "cat" / ".hidden.png").write_text("hidden")
    (tmp_path / "photos" / "Thumbs.db").write_text("of the system")
    (tmp_path / "photos" / "README.txt").write_text("about")
    return tmp_path / "photos"


def run_of(source, folder, rate=0.0, val_fraction=0.0, subset=None):
    """The data of a training run on one's own images."""
    rng = np.random.default_rng(0)
    own = load_own(source, val_fraction, False, rng)
    arrays.save(folder, make_dataset(own, subset, rate, rng))
    return arrays.load(folder)


def decide(dataset, relabel=(), remove=(), fine=()):
    """Corrections of the samples at these paths; relabelled ones get the other of two classes."""
    def index(path):
        return dataset.paths.index(path)
    return Corrections({index(path): 1 - int(dataset.labels[index(path), 0]) for path in relabel},
                       [index(path) for path in remove], [index(path) for path in fine])


def next_round(run, folder, corrected):
    """The data of the next training, as train.py --corrections makes them."""
    dataset = arrays.load(run, test=True)
    corrections.save(folder.with_suffix(".csv"), dataset, corrected)
    arrays.save(folder, corrected.apply(dataset))
    save_decisions(folder / APPLIED_FILE, carry_forward(run, folder.with_suffix(".csv")))
    return arrays.load(folder)


def tree(folder):
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def state(folder):
    """All that an export must not change: content, place, time, permissions."""
    return {name: (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns, path.stat().st_mode)
            for name, path in tree(folder).items()}


def test_folder_is_written_as_it_was_but_for_the_decisions(photos, tmp_path):
    dataset, before = run_of(photos, tmp_path / "run"), state(photos)
    lines = export(tmp_path / "new" / "clean", dataset, [], decide(
        dataset, relabel=["cat/more/cat.png"], remove=["dog/4.png"], fine=["dog/1.png"]))
    found = tree(tmp_path / "new" / "clean")
    assert {name: path.stat().st_ino for name, path in found.items()} == {
        name.replace("cat/more", "dog/more"): inode for name, (_, inode, _, _) in before.items()
        if name not in ("dog/4.png", "cat/.hidden.png", "Thumbs.db")}
    assert state(photos) == before and list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "clean"]
    path, _, told = lines[0].partition(": ")
    assert path == str(tmp_path / "new" / "clean") and numbers(told) == ["1", "1", "11"]
    assert numbers(lines[1].replace(str(photos), "")) == ["13", "0"]


def test_files_are_copied_where_they_cannot_be_linked(photos, tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise OSError(errno.EXDEV, "other file system")

    monkeypatch.setattr(os, "link", refuse)
    os.utime(photos / "cat" / "1.png", (10, 10))
    (photos / "cat" / "2.png").chmod(0o400)
    dataset, before = run_of(photos, tmp_path / "run"), state(photos)
    export(tmp_path / "clean", dataset, [], decide(dataset, relabel=["cat/1.png"]))
    found = state(tmp_path / "clean")
    moved = {name: "dog/1_2.png" if name == "cat/1.png" else name for name in before
             if name not in ("cat/.hidden.png", "Thumbs.db")}
    assert found.keys() == set(moved.values())
    for name, target in moved.items():
        content, inode, mtime, mode = before[name]
        assert found[target][0] == content and found[target][2:] == (mtime, mode)
        assert found[target][1] != inode
    assert state(photos) == before


def test_names_that_are_taken_are_numbered(photos, tmp_path):
    """By a file, by a removed one, in another case, by a folder, by another relabelled one."""
    moved = ["cat/1.png", "cat/a.png", "cat/noend", "cat/b.png", "cat/more/b.png", "cat/more/free.png"]
    others = ["dog/1_2.png", "dog/A.PNG", "dog/noend/x.png", "dog/b.png"]
    for number, name in enumerate([*moved[1:], *others]):
        write_image((photos / name).with_suffix(".png"), 200 + number)
        (photos / name).with_suffix(".png").rename(photos / name)
    dataset = run_of(photos, tmp_path / "run")
    lines = export(tmp_path / "clean", dataset, [], decide(dataset, relabel=moved, remove=["dog/b.png"]))
    targets = ["dog/1_3.png", "dog/a_2.png", "dog/noend_2", "dog/b_2.png", "dog/more/b.png",
               "dog/more/free.png"]
    for name, target in zip(moved, targets, strict=True):
        assert os.path.samefile(photos / name, tmp_path / "clean" / target)
        assert not (tmp_path / "clean" / name).exists()
    assert len(tree(tmp_path / "clean")) == len(tree(photos)) - 3
    assert "'cat/1.png'" in lines[2] and "'dog/1_3.png'" in lines[2] and numbers(lines[2])[-1] == "3"


def test_two_relabelled_files_of_one_name_are_both_kept(photos, tmp_path):
    for number, folder in enumerate(["x", "y", "z"]):
        write_image(photos / "cat" / folder / "photo.jpg.png", 200 + number)
    dataset = run_of(photos, tmp_path / "run")
    moved = [f"cat/{folder}/photo.jpg.png" for folder in "xyz"]
    export(tmp_path / "clean", dataset, [], decide(dataset, relabel=moved))
    for name, target in zip(moved, ["photo.jpg.png", "photo.jpg_2.png", "photo.jpg_3.png"], strict=True):
        assert os.path.samefile(photos / name, tmp_path / "clean" / "dog" / target)


def test_train_and_val_folders_stay(photos, tmp_path):
    (tmp_path / "both").mkdir()
    photos.rename(tmp_path / "both" / "train")
    for name in ("cat", "dog"):
        write_image(tmp_path / "both" / "val" / name / "v.png", 60)
    write_image(tmp_path / "both" / "test" / "unlabelled.png", 61)
    dataset, before = run_of(tmp_path / "both", tmp_path / "run"), tree(tmp_path / "both")
    export(tmp_path / "clean", dataset, [], decide(
        dataset, relabel=["train/dog/more/dog.png"], remove=["train/cat/0.png"]))
    assert tree(tmp_path / "clean").keys() == {
        name.replace("train/dog/more", "train/cat/more") for name in before
        if name not in ("train/cat/0.png", "train/cat/.hidden.png", "train/Thumbs.db")}


def test_class_called_like_its_split_is_told_from_it(tmp_path):
    for number, name in enumerate(["train/train", "train/cow", "val/train", "val/cow"]):
        write_image(tmp_path / "both" / name / "a.png", 70 + number)
        write_image(tmp_path / "both" / name / "b.png", 80 + number)
    dataset = run_of(tmp_path / "both", tmp_path / "run")
    export(tmp_path / "clean", dataset, [], decide(dataset, relabel=["train/train/a.png"]))
    assert "train/cow/a_2.png" in tree(tmp_path / "clean")


def test_noise_held_out_and_unused_samples_do_not_leak(photos, tmp_path):
    dataset = run_of(photos, tmp_path / "run", rate=0.5, val_fraction=0.2, subset=8)
    noisy = np.flatnonzero(dataset.labels != dataset.true_labels).tolist()
    assert len(noisy) >= 3 and len(dataset.paths) == 8
    back, fine, remove = (dataset.paths[index] for index in noisy[:3])
    export(tmp_path / "clean", dataset, [], decide(dataset, [back], [remove], [fine]))
    expected = tree(photos).keys() - {"cat/.hidden.png", "Thumbs.db", remove}
    assert tree(tmp_path / "clean").keys() == expected


def test_links_are_followed(photos, tmp_path):
    outside = tmp_path / "elsewhere" / "a.png"
    write_image(outside, 200)
    write_image(tmp_path / "cows" / "cow.png", 210)
    (photos / "cat" / "link.png").symlink_to(outside)
    (photos / "cat" / "second.png").symlink_to(photos / "cat" / "link.png")
    (photos / "cat" / "gone.png").symlink_to(tmp_path / "nothing")
    (photos / "cat" / "folder").symlink_to(tmp_path / "elsewhere")
    (photos / "cow").symlink_to(tmp_path / "cows")
    os.mkfifo(photos / "cat" / "pipe.png")
    dataset = run_of(photos, tmp_path / "run")
    index = dataset.paths.index("cat/link.png")
    lines = export(tmp_path / "clean", dataset, [], Corrections({index: dataset.names.index("cow")}))
    for name in ("cow/link.png", "cat/second.png"):
        assert not (tmp_path / "clean" / name).is_symlink()
        assert os.path.samefile(tmp_path / "clean" / name, outside)
    assert os.path.samefile(tmp_path / "clean" / "cow" / "cow.png", tmp_path / "cows" / "cow.png")
    assert not (tmp_path / "clean" / "cow").is_symlink()
    assert not {"folder", "gone.png", "pipe.png"} & set(os.listdir(tmp_path / "clean" / "cat"))
    assert "'cat/folder'" in lines[-1] and numbers(lines[-1]) == ["2"]


def test_decisions_of_all_rounds_are_exported(photos, tmp_path):
    first = run_of(photos, tmp_path / "run")
    second = next_round(tmp_path / "run", tmp_path / "run_2", decide(
        first, ["cat/1.png", "cat/2.png", "cat/3.png"], ["dog/1.png"], ["cat/4.png"]))
    new = decide(second, relabel=["cat/1.png", "cat/4.png"], remove=["cat/2.png"], fine=["cat/3.png"])
    for applied, more in [(load_applied(tmp_path / "run_2"), new), (
            load_applied_after(tmp_path / "run_2", tmp_path / "run_3", new), Corrections())]:
        folder = tmp_path / f"clean_{len(more.fine)}"
        export(folder, second if more.fine else arrays.load(tmp_path / "run_3"), applied, more)
        assert {name for name in tree(folder) if "/" in name} == {
            "cat/0.png", "cat/1.png", "dog/3_2.png", "dog/4_2.png", "cat/broken.png", "cat/more/cat.png",
            "dog/0.png", "dog/2.png", "dog/3.png", "dog/4.png", "dog/more/dog.png"}


def load_applied_after(run, folder, corrected):
    next_round(run, folder, corrected)
    return load_applied(folder)


def test_decision_about_a_copy_does_not_undo_that_about_the_other(photos, tmp_path):
    (photos / "cat" / "1.png").write_bytes((photos / "cat" / "2.png").read_bytes())
    first = run_of(photos, tmp_path / "run")
    second = next_round(tmp_path / "run", tmp_path / "run_2", decide(first, remove=["cat/1.png"]))
    third = next_round(tmp_path / "run_2", tmp_path / "run_3", decide(second, fine=["cat/2.png"]))
    export(tmp_path / "clean", third, load_applied(tmp_path / "run_3"), Corrections())
    assert "cat/1.png" not in tree(tmp_path / "clean") and "cat/2.png" in tree(tmp_path / "clean")


def write_table(path, photos, end="\n", mark=""):
    """A table with more columns, blank lines, formulas, line ends in cells, an absolute path."""
    rows = [" path ,id,label,note",
            "photos/cat/0.png,01, cat ,=1+1", "", f"{photos}/cat/1.png,2,cat,\"a, \"\"b\"\"\"",
            "photos/../photos/cat/2.png,3,cat,'c", " photos\\dog\\0.png,4,dog,\"d\re\"",
            "photos/dog/1.png,5,dog,f,,", " ,,", "link/../cat/3.png,6,dog,g", "photos/dog/2.png,7,dog"]
    path.write_bytes((mark + end.join(rows) + end).encode())
    return rows


def lines_of(path, end="\n"):
    content = path.read_bytes().decode()
    assert content.endswith(end)
    return content[:-len(end)].split(end)


@pytest.mark.parametrize(("end", "mark"), [("\n", ""), ("\r\n", "\ufeff")])
def test_table_keeps_all_but_labels_and_removed_rows(photos, tmp_path, monkeypatch, end, mark):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(photos / "dog")
    source = tmp_path / "labels.csv"
    rows = write_table(source, photos, end, mark)
    dataset, before = run_of(source, tmp_path / "run"), source.read_bytes()
    export(tmp_path / "sub" / "clean", replace(dataset, source=Path("labels.csv")), [], decide(
        dataset, relabel=["photos/cat/0.png", f"{photos}/cat/1.png"], remove=["photos/dog/1.png"]))
    assert os.listdir(tmp_path / "sub" / "clean") == ["labels.csv"] and source.read_bytes() == before
    found = lines_of(tmp_path / "sub" / "clean" / "labels.csv", end)
    assert found[:6] == [mark + rows[0], "../../photos/cat/0.png,01,dog,=1+1", "",
                         f"{photos}/cat/1.png,2,dog,\"a, \"\"b\"\"\"", "../../photos/cat/2.png,3,cat,'c",
                         "../../photos/dog/0.png,4,dog,\"d\re\""]
    assert found[6] == rows[7] and found[8] == "../../photos/dog/2.png,7,dog" and len(found) == 9
    # With the link, .. leads to another folder than the text says.
    last = next(csv.reader([found[7]]))
    assert last[1:] == ["6", "dog", "g"]
    assert os.path.samefile(tmp_path / "sub" / "clean" / last[0], photos / "cat" / "3.png")
    again = load_own(tmp_path / "sub" / "clean" / "labels.csv", 0, False, np.random.default_rng(0))
    assert [again.names[label] for label in again.train.labels[:, 0]] == [
        "dog", "dog", "cat", "dog", "dog", "dog"]


def test_paths_lead_from_a_place_behind_a_link(photos, tmp_path):
    write_table(tmp_path / "labels.csv", photos)
    (tmp_path / "link").symlink_to(photos / "dog")
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "short").symlink_to(tmp_path / "a" / "b" / "c")
    dataset = run_of(tmp_path / "labels.csv", tmp_path / "run")
    export(tmp_path / "short" / "clean", dataset, [], decide(dataset, fine=["photos/cat/0.png"]))
    again = load_own(tmp_path / "short" / "clean" / "labels.csv", 0, False, np.random.default_rng(0))
    assert np.array_equal(again.train.images, dataset.images)
    assert lines_of(tmp_path / "short" / "clean" / "labels.csv")[1].startswith("../../../../photos/cat")


@pytest.mark.parametrize("channels_last", [True, False])
def test_arrays_lose_rows_and_keep_the_rest(tmp_path, channels_last):
    rng = np.random.default_rng(0)
    x = rng.integers(70, 256, (6, 8, 8, 3) if channels_last else (6, 3, 8, 8)).astype(np.uint8)
    brought = {"x": x, "y": np.array([[7], [9], [7], [9], [7], [9]], np.int16), "id": np.arange(6) * 10,
               "file": np.array(["é"] * 6), "names": np.array(["a", "b"]), "version": np.array(3)}
    np.savez_compressed(tmp_path / "set.npz", **{name: array for name, array in brought.items()
                                                 if name != "file"})
    with zipfile.ZipFile(tmp_path / "set.npz", "a") as archive:
        archive.writestr("about.txt", "no array")
        with archive.open("file.npy", "w") as file:
            np.lib.format.write_array(file, brought["file"])
    dataset = run_of(tmp_path / "set.npz", tmp_path / "run", rate=0.4)
    given = {path: dataset.names[label] for path, label in zip(dataset.paths, dataset.labels[:, 0],
                                                               strict=True)}
    chosen = next(path for path in ("x[0]", "x[2]", "x[4]") if given[path] == "7")  # not mislabelled
    number = int(chosen[2])
    export(tmp_path / "clean", dataset, [], decide(dataset, relabel=[chosen], remove=["x[3]"]))
    expected = brought["y"].copy()
    expected[number] = 9
    with np.load(tmp_path / "clean" / "set.npz") as found:
        assert found["about.txt"] == b"no array" and set(found.files) == {*brought, "about.txt"}
        for name, array in (brought | {"y": expected}).items():
            wanted = np.delete(array, 3, 0) if name in ("x", "y", "id", "file") else array
            assert found[name].dtype == wanted.dtype and np.array_equal(found[name], wanted)
    with zipfile.ZipFile(tmp_path / "clean" / "set.npz") as archive:
        assert archive.getinfo("x.npy").compress_type == zipfile.ZIP_DEFLATED
    again = run_of(tmp_path / "clean" / "set.npz", tmp_path / "again")
    assert np.array_equal(again.images, np.delete(dataset.images, 3, 0))


def test_objects_in_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "set.npz", x=np.zeros((4, 8, 8), np.uint8), y=np.array([0, 1, 0, 1]),
             boxes=np.array([None] * 4))
    dataset = run_of(tmp_path / "set.npz", tmp_path / "run")
    with refused("boxes", f"{tmp_path}/set.npz"):
        export(tmp_path / "clean", dataset, [], Corrections(removed=[0]))
    assert not [path for path in tmp_path.iterdir() if "clean" in path.name]


def test_run_of_an_earlier_version_on_ones_own_images_is_no_known_set(tmp_path):
    dataset = replace(make_random(classes=10), names=list("abcdefghij"))
    with refused("version"):
        export(tmp_path / "clean", dataset, [], Corrections({}, [0]))
    assert not (tmp_path / "clean").exists()


def test_known_set_becomes_the_labels_trained_on_as_corrected(tmp_path):
    dataset = replace(make_random(classes=10), names=list("0123456789"))
    new = (int(dataset.labels[3, 0]) + 1) % 10
    lines = export(tmp_path / "clean", dataset, [], Corrections({3: new}, [0, 7], [5]))
    labels = dataset.labels[:, 0].copy()
    labels[3] = new
    kept = np.delete(np.arange(30), [0, 7])
    with np.load(tmp_path / "clean" / "digits.npz") as found:
        assert np.array_equal(found["x"], dataset.images[kept].transpose(0, 2, 3, 1))
        assert np.array_equal(found["y"], labels[kept]) and found["y"].ndim == 1
    assert numbers(lines[0].partition(": ")[2]) == ["1", "2", "27"]


def test_images_are_found_where_they_have_moved(photos, tmp_path):
    dataset = run_of(photos, tmp_path / "run")
    assert dataset.source == photos
    photos.rename(tmp_path / "moved")
    corrected = decide(dataset, remove=["cat/0.png"])
    with refused(str(photos), "--dataset"):
        export(tmp_path / "clean", dataset, [], corrected)
    # a run of an older version, or an untrusted one
    for unknown in (None, tmp_path / "\x1b[31mred", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="--dataset") as caught:
            export(tmp_path / "clean", replace(dataset, source=unknown), [], corrected)
        assert "\x1b" not in str(caught.value)
    moved = replace(dataset, source=tmp_path / "moved")
    with refused("paths.txt"):
        export(tmp_path / "clean", replace(moved, paths=None), [], Corrections(removed=[0]))
    assert not (tmp_path / "clean").exists()
    export(tmp_path / "clean", moved, [], corrected)
    assert "cat/1.png" in tree(tmp_path / "clean") and "cat/0.png" not in tree(tmp_path / "clean")


def test_added_and_deleted_files_without_decisions_are_as_they_are_now(photos, tmp_path):
    dataset = run_of(photos, tmp_path / "run")
    (photos / "cat" / "0.png").unlink()
    write_image(photos / "cat" / "new.png", 200)
    export(tmp_path / "clean", dataset, [], decide(dataset, remove=["cat/1.png"]))
    found = tree(tmp_path / "clean")
    assert "cat/new.png" in found and not {"cat/0.png", "cat/1.png"} & found.keys()


def change(path):
    write_image(path, 250)


def blacken(path):
    path.write_text("no image")


@pytest.mark.parametrize("spoil", [change, blacken, Path.unlink])
@pytest.mark.parametrize("decision", ["relabel", "remove", "fine"])
def test_image_that_is_not_the_reviewed_one_is_refused(photos, tmp_path, spoil, decision):
    write_image(photos / "cat" / "0.png", 0)  # an image that cannot be read is black in memory
    dataset = run_of(photos, tmp_path / "run")
    corrected = decide(dataset, **{decision: ["cat/0.png"]})
    spoil(photos / "cat" / "0.png")
    with refused("'cat/0.png'", str(photos)):
        export(tmp_path / "clean", dataset, [], corrected)
    assert sorted(os.listdir(tmp_path)) == ["photos", "run"]


def test_row_that_now_has_another_image_is_refused(tmp_path):
    x = np.random.default_rng(0).integers(70, 256, (4, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "set.npz", x=x, y=np.array([0, 1, 0, 1]))
    dataset = run_of(tmp_path / "set.npz", tmp_path / "run")
    np.savez(tmp_path / "set.npz", x=x[::-1], y=np.array([1, 0, 1, 0]))
    with refused("x[1]"):
        export(tmp_path / "clean", dataset, [], decide(dataset, fine=["x[1]"]))


@pytest.mark.parametrize("path", ["../secret/a.png", "{}/secret/a.png", "cat/../../secret/a.png", ""])
def test_paths_in_a_run_do_not_lead_out_of_the_images(photos, tmp_path, path):
    write_image(tmp_path / "secret" / "a.png", 99)
    dataset = run_of(photos, tmp_path / "run")
    (photos / "cat" / "0.png").unlink()
    write_image(photos / "cat" / "0.png", 99)
    dataset = run_of(photos, tmp_path / "run_of_same_image")
    index, path = dataset.paths.index("cat/0.png"), path.format(tmp_path)
    dataset.paths[index] = path
    with refused(repr(path)):
        export(tmp_path / "clean", dataset, [], Corrections({index: 1}))
    applied = [corrections.Decision(0, path, "cat", "relabel", "dog",
                                    corrections.sample_digest(dataset, index))]
    with refused(repr(path)):
        export(tmp_path / "clean", dataset, applied, Corrections())
    assert not (tmp_path / "clean").exists()


@pytest.mark.parametrize("name", ["../out", "{}/out", "..", ".", "", "dog/sub", ".hidden", "cow"])
def test_labels_in_a_run_make_no_folders(photos, tmp_path, name):
    dataset, name = run_of(photos, tmp_path / "run"), name.format(tmp_path)
    corrected = decide(dataset, relabel=["cat/0.png"])
    with refused(repr(name), "'cat/0.png'"):
        export(tmp_path / "clean", replace(dataset, names=["cat", name]), [], corrected)
    assert sorted(os.listdir(tmp_path)) == ["photos", "run"]


def test_new_label_must_be_in_the_table(photos, tmp_path):
    (tmp_path / "link").symlink_to(photos / "dog")
    write_table(tmp_path / "labels.csv", photos)
    dataset = run_of(tmp_path / "labels.csv", tmp_path / "run")
    corrected = decide(dataset, relabel=["photos/cat/0.png"])
    with refused("'=cmd()'"):
        export(tmp_path / "clean", replace(dataset, names=["cat", "=cmd()"]), [], corrected)


def test_existing_folder_is_refused(photos, tmp_path):
    dataset = run_of(photos, tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".old-clean").mkdir()
    (tmp_path / ".partial-other").mkdir()
    for name in ("empty", "dangling", "run", "photos", "photos/../empty", "clean", "other", "."):
        with refused("--export"):
            export(tmp_path / name, dataset, [], Corrections(removed=[0]))
    with refused("--export"):
        export(Path("/"), dataset, [], Corrections(removed=[0]))
    assert not (tmp_path / "nowhere").exists() and (tmp_path / ".old-clean").exists()
    assert (tmp_path / ".partial-other").exists()


def test_folder_that_someone_makes_meanwhile_is_kept(photos, tmp_path, monkeypatch):
    dataset, link = run_of(photos, tmp_path / "run"), os.link

    def link_and_make(original, path):
        (tmp_path / "clean").mkdir(exist_ok=True)
        (tmp_path / "clean" / "theirs").write_text("text")
        link(original, path)

    monkeypatch.setattr(os, "link", link_and_make)
    with refused("--export", f"{tmp_path}/clean"):
        export(tmp_path / "clean", dataset, [], Corrections(removed=[0]))
    assert tree(tmp_path / "clean").keys() == {"theirs"}


@pytest.mark.parametrize("inside", ["photos/clean", "photos/cat/clean", "cows/clean", "cows/a/b/clean",
                                    "run/../photos/clean"])
def test_folder_among_the_images_is_refused(photos, tmp_path, inside):
    write_image(tmp_path / "cows" / "cow.png", 210)
    (photos / "cow").symlink_to(tmp_path / "cows")
    dataset, before = run_of(photos, tmp_path / "run"), tree(tmp_path).keys()
    with refused("--export", str(photos)):
        export(tmp_path / inside, dataset, [], Corrections(removed=[0]))
    assert tree(tmp_path).keys() == before and not (tmp_path / "cows" / "a").exists()


def test_full_disk_leaves_nothing(photos, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(photos / "dog")
    write_table(tmp_path / "labels.csv", photos)
    np.savez(tmp_path / "set.npz", x=np.zeros((4, 8, 8), np.uint8), y=np.array([0, 1, 0, 1]))

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name, functions in [("photos", ["os.link", "shutil.copyfileobj"]),
                            ("labels.csv", ["datasets.export.Path.write_bytes"]),
                            ("set.npz", ["numpy.lib.format.write_array"])]:
        dataset = run_of(tmp_path / name, tmp_path / f"run_{name}")
        before, listed = state(photos), sorted(os.listdir(tmp_path))
        with monkeypatch.context() as patch, refused(f"{tmp_path}/clean", error=RunError):
            for function in functions:
                patch.setattr(function, full)
            export(tmp_path / "clean", dataset, [], Corrections(removed=[0]))
        assert state(photos) == before and sorted(os.listdir(tmp_path)) == listed


def test_nothing_decided_is_nothing_to_export(photos, tmp_path):
    dataset = run_of(photos, tmp_path / "run")
    with refused("--corrections"):
        export(tmp_path / "clean", dataset, [], Corrections())
    assert not (tmp_path / "clean").exists()


def test_images_of_another_size_are_compared_at_that_size(photos, tmp_path):
    own = load_own(photos, 0, False, np.random.default_rng(0), size=64)
    dataset = make_dataset(own, None, 0.0, np.random.default_rng(0))
    export(tmp_path / "clean", dataset, [], decide(dataset, relabel=["cat/more/cat.png"]))
    assert "dog/more/cat.png" in tree(tmp_path / "clean")


def test_originals_are_safe_where_two_names_are_one_file(photos, tmp_path, monkeypatch):
    """As on a file system that ignores case: the second name leads to a link to an original."""
    link = os.link

    def link_twice(original, path):
        link(original, path)
        link(original, path)

    monkeypatch.setattr(os, "link", link_twice)
    dataset, before = run_of(photos, tmp_path / "run"), state(photos)
    with refused(f"{tmp_path}/clean", error=RunError):
        export(tmp_path / "clean", dataset, [], Corrections(removed=[0]))
    assert state(photos) == before and sorted(os.listdir(tmp_path)) == ["photos", "run"]
