import nnabla as nn
import numpy as np
import pytest

import calculate_score
import train
from datasets.arrays import load as load_dataset
from datasets.images import read_image
from tests.conftest import OWN_FLAGS, refused


@pytest.mark.parametrize("model", ["resnet23", "resnet56"])
def test_images_of_another_size(own_images, tmp_path, model):
    """Both sides of the pipeline see them: training, and the scores of the last and of all layers."""
    run, wide = tmp_path / "run", ["--nmaps", "4"] if model == "resnet23" else []
    train.main(["--dataset", str(own_images), "--run", str(run), "--image_size", "40", "--model", model,
                *wide, "--train_epochs", "1", "-c", "cpu"])
    images = np.load(run / "x_train.npy")
    assert images.shape == (40, 3, 40, 40)
    path = (run / "paths.txt").read_text().splitlines()[7]
    assert np.array_equal(read_image(own_images / path, 40), images[7])
    found = {}
    for layers in ("last", "all"):
        nn.clear_parameters()
        calculate_score.main(["--run", str(run), "--output", str(tmp_path / layers), "--layers", layers,
                              "-c", "cpu"])
        found[layers] = np.load(tmp_path / layers / "influence_all_epoch.npy")
    assert (found["all"] > found["last"]).all() and (found["last"] > 0).all()


def test_known_set_of_another_size_is_enlarged(tmp_path):
    run = tmp_path / "run"
    train.main(["--dataset", "digits", "--subset", "20", "--run", str(run), "--image_size", "48",
                *OWN_FLAGS, "--train_epochs", "1"])
    assert np.load(run / "x_train.npy").shape == (20, 3, 48, 48)
    nn.clear_parameters()
    with refused("--image_size", "48"):  # contradicts what is there
        train.main(["--run", str(run), "--checkpoint", "--image_size", "40", "-c", "cpu"])


def test_run_knows_where_its_images_are(own_images, tmp_path):
    """Also after both have moved together."""
    (tmp_path / "runs").mkdir()
    train.main(["--dataset", str(own_images), "--run", str(tmp_path / "runs" / "run"), *OWN_FLAGS,
                "--train_epochs", "1"])
    (tmp_path / "elsewhere").mkdir()
    for name in ("images", "runs"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    dataset = load_dataset(tmp_path / "elsewhere" / "runs" / "run")
    files = dataset.files()
    assert len(files) == 40
    assert np.array_equal(read_image(files[30]), dataset.images[30])
