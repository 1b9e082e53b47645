"""A folder of photos with wrong labels, and a reviewer who knows the right ones.

    python -m tests.benchmarks.photos make photos --data cifar-10-python.tar.gz
    make photos PHOTOS=photos
    python -m tests.benchmarks.photos review photos_run --answers photos.csv

`make` enlarges CIFAR-10 images to photos of several sizes and formats, in a folder per class, and puts
some of them into wrong folders; the answers are written beside the folder.  `review` decides the first
undecided suspects of a run by those answers, writes ``corrections.csv`` into the run's report, and
prints how many of them were wrong.
"""
import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image

from datasets import arrays, corrections
from datasets.cifar import CIFAR10, load_cifar
from datasets.corrections import Corrections

CLASSES, SIZES = 7, (50, 64, 96, 150, 224, 333, 480)
FORMATS = {".png": {}, ".jpg": {"quality": 90}, ".webp": {"quality": 90}, ".bmp": {}, ".tif": {}}


def make(folder: Path, archive: Path, photos: int, wrong: float, seed: int, size: str | None):
    """Write `photos` images to `folder`, a share `wrong` of them in wrong folders; answers beside it.

    All are JPEG files of one `size`, such as ``640x480``, unless it is None.
    """
    rng = np.random.default_rng(seed)
    source, _ = load_cifar(CIFAR10, archive)
    of_classes = np.flatnonzero(source.labels[:, 0] < CLASSES)
    chosen = rng.choice(of_classes, photos, replace=False)
    true = source.labels[chosen, 0]
    given = true.copy()
    moved = rng.choice(photos, round(wrong * photos), replace=False)
    given[moved] = (true[moved] + rng.integers(1, CLASSES, len(moved))) % CLASSES
    with folder.with_name(folder.name + ".csv").open("w", newline="") as file:
        answers = csv.writer(file)
        answers.writerow(["path", "true_label"])
        for number, index in enumerate(chosen):
            suffix = list(FORMATS)[number % len(FORMATS)]
            width, height = rng.choice(SIZES, 2)
            if size:
                suffix, (width, height) = ".jpg", map(int, size.split("x"))
            path = folder / CIFAR10.names[given[number]] / f"photo_{number:04d}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(source.images[index].transpose(1, 2, 0))
            image.resize((width, height), Image.Resampling.BICUBIC).save(path, **FORMATS[suffix])
            answers.writerow([path.relative_to(folder).as_posix(), CIFAR10.names[true[number]]])
    print(f"{photos} photos of {CLASSES} classes in {folder}, {len(moved)} with wrong labels")


def review(run: Path, report: Path, answers: Path, first: int):
    """Decide the first undecided suspects of a run, as a person who makes no mistakes would."""
    with answers.open(newline="") as file:
        true = {row["path"]: row["true_label"] for row in csv.DictReader(file)}
    dataset = arrays.load(run)
    with (report / "suspects.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if not row.get("decided")][:first]
    relabelled = {int(row["index"]): dataset.names.index(true[row["path"]]) for row in rows
                  if row["given_label"] != true[row["path"]]}
    fine = [int(row["index"]) for row in rows if int(row["index"]) not in relabelled]
    corrections.save(report / "corrections.csv", dataset, Corrections(relabelled, [], fine))
    left = sum(dataset.names[label] != true[path] for label, path in
               zip(dataset.labels[:, 0], dataset.paths or [], strict=True))
    print(f"{len(relabelled)} of the first {len(rows)} suspects are wrong, of {left} in all: "
          f"{report / 'corrections.csv'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make")
    maker.add_argument("folder", type=Path)
    maker.add_argument("--data", type=Path, help="CIFAR-10, as for train.py")
    maker.add_argument("--photos", type=int, default=600)
    maker.add_argument("--wrong", type=float, default=0.06, help="share of wrong labels")
    maker.add_argument("--seed", type=int, default=0)
    maker.add_argument("--size", help="of all photos, such as 640x480 (default: several)")
    reviewer = commands.add_parser("review")
    reviewer.add_argument("run", type=Path)
    reviewer.add_argument("--answers", type=Path, required=True)
    reviewer.add_argument("--report", type=Path, help="default: RUN/report")
    reviewer.add_argument("--first", type=int, default=30)
    args = parser.parse_args()
    if args.command == "make":
        make(args.folder, args.data, args.photos, args.wrong, args.seed, args.size)
    else:
        review(args.run, args.report or args.run / "report", args.answers, args.first)


if __name__ == "__main__":
    main()
