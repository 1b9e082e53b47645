"""``mislabel_analysis.py --export``: the flags, and a set from training to export."""
import os
import shlex
from dataclasses import replace

import numpy as np
import pytest

import mislabel_analysis
import train
from datasets import arrays, corrections
from datasets.corrections import Corrections
from datasets.images import read_image
from tests.conftest import OWN_FLAGS, make_dataset, numbers, refused


@pytest.fixture
def own_run(own_images, tmp_path):
    """The data of a run, as training writes them."""
    labels = np.repeat([0, 1], 20)[:, None]
    paths = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(20)]
    made = make_dataset(40, 2)
    arrays.save(tmp_path / "run", replace(made, labels=labels, true_labels=None, names=["cat", "dog"],
                                          paths=paths, source=own_images,
                                          images=read(own_images, paths)))
    return tmp_path / "run"


def read(folder, paths):
    return np.stack([read_image(folder / path) for path in paths])


def save(path, run, *args):
    corrections.save(path, arrays.load(run), Corrections(*args))
    return str(path)


def test_export_writes_the_set_and_nothing_else(own_run, own_images, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in own_run.iterdir()}
    file = save(tmp_path / "a.csv", own_run, {3: 1}, [20], [5])
    mislabel_analysis.main(["--run", str(own_run), "--export", str(tmp_path / "clean"),
                            "--corrections", file])
    assert os.path.samefile(tmp_path / "clean" / "dog" / "3_2.png", own_images / "cat" / "3.png")
    assert not (tmp_path / "clean" / "dog" / "0.png").exists()
    assert {path: path.stat().st_mtime_ns for path in own_run.iterdir()} == before
    told = capsys.readouterr().out.splitlines()
    assert numbers(told[0].partition(": ")[2]) == ["1", "1", "38"]


def test_moved_images_are_found_by_dataset(own_run, own_images, tmp_path):
    file = save(tmp_path / "a.csv", own_run, {3: 1})
    own_images.rename(tmp_path / "moved")
    flags = ["--run", str(own_run), "--export", str(tmp_path / "clean"), "--corrections", file]
    with refused(str(own_images), "--dataset"):
        mislabel_analysis.main(flags)
    mislabel_analysis.main([*flags, "--dataset", str(tmp_path / "moved")])
    assert (tmp_path / "clean" / "dog" / "3_2.png").exists()


def test_corrections_alone_name_the_training_on_them(own_run, tmp_path):
    file = save(tmp_path / "my corrections.csv", own_run, {3: 1})
    with refused("--export", "train.py", f"--input {own_run}", f"--corrections {shlex.quote(file)}",
                 f"--run {own_run}_2"):
        mislabel_analysis.main(["--run", str(own_run), "--corrections", file])


@pytest.mark.parametrize("more", [["--drop", "0.1"], ["--rank_by", "loss"], ["--review", "3"],
                                  ["--output", "report"], ["--save_extracted"]])
def test_export_is_not_an_analysis(own_run, tmp_path, more):
    file = save(tmp_path / "a.csv", own_run, {3: 1})
    with refused("--export", more[0]):
        mislabel_analysis.main(["--run", str(own_run), "--export", str(tmp_path / "clean"),
                                "--corrections", file, *more])
    assert not (tmp_path / "clean").exists()


def test_corrections_of_other_images_are_refused(own_run, tmp_path):
    other = tmp_path / "other"
    arrays.save(other, make_dataset(40, 2))
    file = save(tmp_path / "a.csv", other, {3: 1})
    with refused(file):
        mislabel_analysis.main(["--run", str(own_run), "--export", str(tmp_path / "clean"),
                                "--corrections", file])
    assert not (tmp_path / "clean").exists()


def test_corrected_run_exports_the_rounds_that_made_it(own_images, tmp_path):
    first, second = str(tmp_path / "run"), str(tmp_path / "run_2")
    train.main([*OWN_FLAGS, "--dataset", str(own_images), "--output", first, "--monitor-path", first,
                "--shuffle_rate", "0.2", "--val_fraction", "0.1"])
    with refused("--corrections"):
        mislabel_analysis.main(["--run", first, "--export", str(tmp_path / "clean")])
    dataset = arrays.load(tmp_path / "run")
    clean = np.flatnonzero((dataset.labels == dataset.true_labels)[:, 0]).tolist()
    file = save(tmp_path / "a.csv", tmp_path / "run",
                {clean[0]: 1 - int(dataset.labels[clean[0], 0])}, [clean[1]])
    train.main(["--input", first, "--output", second, "--monitor-path", second, "-c", "cpu",
                "--corrections", file])
    mislabel_analysis.main(["--run", second, "--export", str(tmp_path / "clean")])
    found = {path.relative_to(tmp_path / "clean").as_posix()
             for path in (tmp_path / "clean").rglob("*.png")}
    brought = {path.relative_to(own_images).as_posix() for path in own_images.rglob("*.png")}
    gone = {dataset.paths[clean[0]], dataset.paths[clean[1]]}
    name, number = dataset.paths[clean[0]].split("/")
    added = f"{'dog' if name == 'cat' else 'cat'}/{number.replace('.', '_2.')}"
    assert found == brought - gone | {added}
