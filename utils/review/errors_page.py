"""The errors on test images as a table and a page: which training images may have taught them."""
import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.arrays import Dataset
from utils.files import text_cell, whole_file
from utils.review.detection import rank
from utils.review.explained import SHOWN
from utils.review.html import save_html
from utils.review.photos import page_pictures, page_thumbnails
from utils.review.run import Run
from utils.tracin import explanations
from utils.tracin.explanations import Pairs

TABLE, PAGE, TEMPLATE = "test_errors.csv", "test_errors.html", "errors_page.html"
ON_PAGE = 200  # test images on the page, at most
FREQUENT = 10  # training images at the top of the page, at most
SUSPICIOUS = 0.1  # the share of the ranking that the page marks as suspects
COLUMNS = ("index", "label", "predicted", "label_probability", "predicted_probability")
PARTNER_COLUMNS = ("kind", "place", "training_image", "training_label", "cosine", "influence",
                   "suspect_rank")


@dataclass(frozen=True)
class Partner:
    """A training image that speaks for or against the label of a test image.

    Attributes:
        index: among the training images.
        cosine: of the gradients of the two, from -1 to 1; negative for opponents.
        influence: summed over the checkpoints; negative for opponents.
    """

    index: int
    cosine: float
    influence: float


@dataclass(frozen=True)
class Explained:
    """An explained test image: ``test_errors.csv`` has a row for each of its partners.

    Attributes:
        index: among the test images.
        image: uint8 (3, S, S).
        label, predicted: numbers of classes; the second is the likeliest at the newest checkpoint.
        label_probability, predicted_probability: there.
        opponents, proponents: the first of them, strongest first.
    """

    index: int
    image: np.ndarray
    label: int
    predicted: int
    label_probability: float
    predicted_probability: float
    opponents: list[Partner]
    proponents: list[Partner]

    @property
    def wrong(self) -> bool:
        """Whether something else than the label is predicted."""
        return self.predicted != self.label


@dataclass(frozen=True)
class Frequent:
    """A training image that opposes several errors: how many, and the sum of the cosines."""

    index: int
    errors: int
    cosine: float


def load_explained(folder: Path, run: Run) -> list[Explained] | None:
    """The explained test images of a run in the order of their file, None if there is no such file.

    Args:
        folder: ``calculate_score.py --output``.
        run: what was read from it.

    Raises:
        UserError: the explanations are damaged, or of other data or scores.
    """
    test = run.dataset.test
    found = explanations.load(folder, run.dataset, run.rankings["tracin"], test=True) if test else None
    if test is None or found is None:
        return None
    result = []
    for place, index in enumerate(found.indices.tolist()):
        probability, label = found.probability[place], int(test.labels[index, 0])
        predicted = int(probability.argmax())
        result.append(Explained(
            index, test.images[index], label, predicted, float(probability[label]),
            float(probability[predicted]), _partners(found.opponents, place),
            _partners(found.proponents, place)))
    return result


def _partners(pairs: Pairs, place: int) -> list[Partner]:
    """The first partners in a row of the explanations."""
    rows = zip(pairs.indices[place].tolist(), pairs.cosine[place].tolist(),
               pairs.influence[place].tolist(), strict=True)
    return [Partner(*row) for row in rows if row[0] >= 0][:SHOWN]


def most_frequent(explained: Sequence[Explained]) -> list[Frequent]:
    """The training images that oppose most errors, then with the largest cosines, `FREQUENT` at most."""
    cosines = defaultdict(list)
    for one in explained:
        for partner in one.opponents if one.wrong else ():
            cosines[partner.index].append(partner.cosine)
    found = [Frequent(index, len(values), sum(values)) for index, values in cosines.items()]
    return sorted(found, key=lambda one: (-one.errors, one.cosine, one.index))[:FREQUENT]


def save_errors(output: Path, run: Run, explained: Sequence[Explained] | None):
    """Write ``test_errors.csv`` and ``test_errors.html``, or remove those of an earlier analysis.

    Args:
        output: the folder for both.
        run: what was trained on; its ranking says which training images are suspects.
        explained: from `load_explained`; None to remove the files.

    Raises:
        RunError: a file cannot be written.
    """
    if explained is None:
        for name in (TABLE, PAGE):
            (output / name).unlink(missing_ok=True)
        return
    ranks = np.empty(len(run.score), int)
    ranks[rank(run.score)] = np.arange(1, len(ranks) + 1)
    with whole_file(output / TABLE) as temporary, \
            temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(_table(run.dataset, ranks, explained))
    _save_page(output / PAGE, run, ranks, explained)


def _table(dataset: Dataset, ranks: np.ndarray, explained: Sequence[Explained]) -> Iterator[list]:
    names, labels = [text_cell(name) for name in dataset.names], dataset.labels[:, 0]
    yield [*COLUMNS, *PARTNER_COLUMNS]
    for one in explained:
        facts = [one.index, names[one.label], names[one.predicted], one.label_probability,
                 one.predicted_probability]
        for kind, partners in (("opponent", one.opponents), ("proponent", one.proponents)):
            for place, partner in enumerate(partners, start=1):
                index = partner.index
                yield [*facts, kind, place, text_cell(dataset.sample_name(index)), names[labels[index]],
                       partner.cosine, partner.influence, ranks[index]]
        if not one.opponents + one.proponents:
            yield facts + [""] * len(PARTNER_COLUMNS)


def _save_page(path: Path, run: Run, ranks: np.ndarray, explained: Sequence[Explained]):
    dataset, shown, frequent = run.dataset, explained[:ON_PAGE], most_frequent(explained)
    used = sorted({one.index for one in frequent} | {
        partner.index for one in shown for partner in one.opponents + one.proponents})
    images = np.stack([one.image for one in shown]) if shown else dataset.images[:0]
    tests = page_pictures(images, range(len(shown)), None)
    pictures = page_thumbnails(dataset.images, used, dataset.files(), tests)
    last = round(SUSPICIOUS * len(ranks))
    training = {index: {
        "index": index, "name": dataset.sample_name(index),
        "label": dataset.names[dataset.labels[index, 0]],
        "suspect": int(ranks[index]) if ranks[index] <= last else None, "picture": picture}
        for index, picture in zip(used, pictures, strict=True)}
    save_html(path, TEMPLATE, shown=list(zip(shown, tests, strict=True)), names=dataset.names,
              training=training, frequent=frequent, count=len(explained),
              errors=sum(one.wrong for one in explained), table=TABLE, paths=bool(dataset.paths),
              rank_by=run.rank_by, marked=last)
