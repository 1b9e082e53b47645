"""The corrected set, written as its owner brought it: a folder of class folders, a .csv or an .npz.

Paths and labels in a run's files are untrusted: they are only looked up among the samples and classes
that the owner's folder, table or arrays list.  Originals are only read.
"""
import csv
import io
import os
import re
import shutil
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets import DATASETS
from datasets.arrays import PATHS_FILE, Dataset
from datasets.corrections import Corrections, Decision, digest_text, sample_digest
from datasets.duplicates import image_digests
from datasets.folders import is_system
from datasets.images import decode, from_pixels, read_image
from datasets.listing import Listing, list_images
from datasets.names import is_line
from utils.cli import Parser
from utils.errors import RunError, UserError
from utils.files import check_folder, open_npz, whole_folder

Changes = dict[int, str | None]  # sample -> its new class, or None to remove it
BATCH = 1000  # images in memory at a time
PATIENCE = 2  # seconds before a progress bar is shown


def add_export_flags(parser: Parser):
    group = parser.group("export")
    group.add_argument("--export", type=Path, metavar="DIR",
                       help="write the corrected set as you brought it into a new folder, and do "
                            "nothing else: class folders (by hard links where possible, which share "
                            "their content with your files), a .csv or an .npz, in which only what was "
                            "relabelled or removed differs; a known set becomes an .npz of the run's "
                            "images and the labels it was trained on, corrected, in which added label "
                            "noise that nobody corrected stays")
    group.add_argument("--corrections", type=Path, metavar="CSV",
                       help="with --export: the decisions of the review, or of --drop or --relabel, "
                            "which add to those of earlier rounds; not needed if there are some")


def export(folder: Path, dataset: Dataset, applied: Sequence[Decision], corrections: Corrections) \
        -> list[str]:
    """Write the corrected set into a new folder, whole or not at all.

    One's own images are written from what `dataset.source` holds now, and only samples with a decision
    differ: relabelled ones have their new class, removed ones are missing.  A known set is written as
    ``<name>.npz`` with x, uint8 (N, S, S, 3), and y, integers (N,): the images of the run and the labels
    it was trained on, corrected.

    Args:
        folder: must not exist.
        dataset: the data of the run that was reviewed.
        applied: the decisions that made these data, oldest first.
        corrections: the decisions since.

    Returns:
        Lines that say what was written.

    Raises:
        UserError: the folder exists or is among the images, there is no decision, the images are not
            where they should be, or are not those that were reviewed.
        RunError: a file cannot be read or written.
    """
    target = Path(os.path.abspath(folder))
    _check_new(target, target.name, f".partial-{target.name}", f".old-{target.name}")
    check_folder(target)
    decisions = [*applied, *_decisions(dataset, corrections)]
    if not decisions:
        raise UserError("expected decisions in --corrections, or a run that was trained on corrected "
                        "data, found neither and so nothing to correct; give the file of the review")
    if dataset.paths is None and dataset.source is None:
        name = _export_known(target, dataset, corrections)
        return [_summary(folder / name, len(dataset.labels), len(corrections.relabelled),
                         len(corrections.removed)) + ", from the training set of the run"
                + ", which has the corrections of earlier rounds" * bool(applied)]
    source, listing = _list(dataset)
    changes = _changes(source, listing, decisions, dataset.images.shape[-1])
    removed = sum(label is None for label in changes.values())
    write = _export_folder if source.is_dir() else \
        _export_arrays if listing.paths is None else _export_table
    said = write(target, source, listing, changes)
    return [_summary(folder, len(listing.classes), len(changes) - removed, removed), *said]


def _summary(path: Path, count: int, relabelled: int, removed: int) -> str:
    return (f"{path}: {relabelled:,} relabelled, {removed:,} removed, "
            f"{count - relabelled - removed:,} kept as they were")


def _check_new(folder: Path, *names: str):
    for path in (folder.parent / name for name in names):
        if os.path.lexists(path):
            raise UserError(f"expected nothing at {path}, where --export writes, found a file or "
                            "folder; move it away, or give another --export")


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """As `whole_folder`, but what others write to `folder` meanwhile is not replaced."""
    with whole_folder(folder) as temporary:
        yield temporary
        _check_new(folder, folder.name)


def _decisions(dataset: Dataset, corrections: Corrections) -> list[Decision]:
    """The corrections, with the paths that the dataset, not their file, gives the samples."""
    made = [(index, "relabel", dataset.names[label]) for index, label in corrections.relabelled.items()]
    made += [(index, "remove", "") for index in corrections.removed]
    made += [(index, "fine", "") for index in corrections.fine]
    return [Decision(index, dataset.paths[index] if dataset.paths else "",
                     dataset.names[dataset.labels[index, 0]], decision, new,
                     sample_digest(dataset, index)) for index, decision, new in made]


def _list(dataset: Dataset) -> tuple[Path, Listing]:
    """The user's own folder, .csv or .npz, and what it lists now."""
    source = dataset.source
    if dataset.paths is None:
        raise UserError(f"expected {PATHS_FILE} in the run, which says where each sample of {source} "
                        "was, found none; restore it, or leave --dataset out if the run was trained on "
                        "a known set")
    if source is None or not is_line(str(source)):
        raise UserError("expected the place of the images that were trained on in the run, found no "
                        "record of it; give the folder, .csv or .npz as --dataset")
    if not os.path.exists(source):
        raise UserError(f"expected the images that were trained on at {source}, found nothing; give the "
                        "folder, .csv or .npz, where it is now, as --dataset")
    with redirect_stdout(io.StringIO()):  # it says what training leaves out, which the export keeps
        return source, list_images(source)


def _changes(source: Path, listing: Listing, decisions: Sequence[Decision], size: int) -> Changes:
    """What the decisions, oldest first, change.

    ``fine`` changes nothing: where train.py added label noise, the label that was reviewed may not be
    the owner's.

    Raises:
        UserError: a sample is missing or has another image now, or there is no such class.
    """
    paths = listing.paths or [f"x[{number}]" for number in range(len(listing.classes))]
    numbers = {path: number for number, path in enumerate(paths)}
    missing = list(dict.fromkeys(one.path for one in decisions if one.path not in numbers))
    if missing:
        raise UserError(f"expected the samples that were reviewed in {source}, found no {missing[0]!a}"
                        f"{_and_more(missing)}; restore what is missing, or give the folder, .csv or "
                        ".npz that was trained on as --dataset")
    digests: dict[int, set[str]] = {}
    for one in decisions:
        digests.setdefault(numbers[one.path], set()).add(one.image_sha256)
    changed = [paths[number] for number in _changed(listing, digests, size)]
    if changed:
        raise UserError(f"expected the images that were reviewed in {source}, found another one, or "
                        f"none, at {changed[0]!a}{_and_more(changed)}; restore what has changed, or "
                        "train on it and review it again")
    classes, result = set(listing.classes), Changes()
    for one in decisions:
        if one.decision == "relabel" and one.new_label not in classes:
            raise UserError(f"expected one of the classes in {source} as the new label of {one.path!a}, "
                            f"found {one.new_label!a}; correct that decision, or add the class there")
        if one.decision != "fine":
            result[numbers[one.path]] = one.new_label if one.decision == "relabel" else None
    return {number: label for number, label in result.items() if label != listing.classes[number]}


def _and_more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1:,} more" if len(names) > 1 else ""


def _changed(listing: Listing, digests: dict[int, set[str]], size: int) -> list[int]:
    """The samples whose image, `size` pixels a side, does not have the one digest expected of it."""
    read = partial(from_pixels if listing.paths is None else read_image, size=size)
    numbers, changed = sorted(digests), []
    for start in range(0, len(numbers), BATCH):
        batch = numbers[start:start + BATCH]
        images, errors = decode(read, [listing.sources[number] for number in batch], size)
        changed += [number for place, (number, digest) in enumerate(
            zip(batch, image_digests(images), strict=True))
            if place in errors or digests[number] != {digest_text(digest)}]
    return changed


def _export_known(folder: Path, dataset: Dataset, corrections: Corrections) -> str:
    """Images and labels of the run, as corrected, in an .npz; returns its name."""
    name = next((name for name, known in DATASETS.items() if list(known.names) == dataset.names), None)
    if name is None:
        raise UserError("expected a run that says where its images came from, found one of an earlier "
                        "version; train again, then export")
    labels = dataset.labels[:, 0].copy()
    for index, label in corrections.relabelled.items():
        labels[index] = label
    kept = np.delete(np.arange(len(labels)), corrections.removed)
    with _new_folder(folder) as temporary:
        np.savez(temporary / f"{name}.npz", x=dataset.images[kept].transpose(0, 2, 3, 1), y=labels[kept])
    return f"{name}.npz"


def _export_arrays(folder: Path, source: Path, listing: Listing, changes: Changes) -> list[str]:
    """All arrays of an .npz, one at a time; those with a row per sample lose the removed ones."""
    count = len(listing.classes)
    kept = np.array([number not in changes or changes[number] is not None for number in range(count)])
    with _new_folder(folder) as temporary, open_npz(source) as arrays, \
            zipfile.ZipFile(temporary / source.name, "w") as archive:
        for member in arrays.zip.infolist():
            try:
                value = arrays[member.filename]
            except Exception as error:  # untrusted archives raise almost anything
                raise UserError(f"cannot read {member.filename!a} in {source}: {error}; save it as an "
                                "array without objects, or without it") from error
            if member.filename in ("y", "y.npy"):
                classes = {str(label): label for label in value.flat}
                for number, label in changes.items():
                    if label is not None:
                        value.flat[number] = classes[label]
            if isinstance(value, np.ndarray) and value.ndim and len(value) == count:
                value = value[kept]
            written = zipfile.ZipInfo(member.filename)
            written.compress_type = member.compress_type
            with archive.open(written, "w", force_zip64=True) as file:
                if isinstance(value, bytes):  # no array, but it came with them
                    file.write(value)
                else:
                    np.lib.format.write_array(file, value, allow_pickle=False)
    return []


def _export_table(folder: Path, source: Path, listing: Listing, changes: Changes) -> list[str]:
    """A CSV, in its encoding and with its line ends; paths relative to it lead from the new place."""
    content = source.read_bytes().decode()
    mark = "\ufeff" * content.startswith("\ufeff")
    rows = list(csv.reader(io.StringIO(content.removeprefix(mark), newline="")))
    filled = [row for row in rows if any(cell.strip() for cell in row)]
    names = [name.strip() for name in filled[0]]
    path, label = names.index("path"), names.index("label")
    left_out = set()
    with _new_folder(folder) as temporary:
        for number, (row, file) in enumerate(zip(filled[1:], listing.paths or [], strict=True)):
            new = changes.get(number, listing.classes[number])
            if new is None:
                left_out.add(id(row))
            elif number in changes:
                row[label] = new
            if not os.path.isabs(file):
                row[path] = _from(temporary, source.parent, file)
        ends = re.search("\r\n|\r|\n", content)
        end = ends[0] if ends else "\n"
        written = "".join(",".join(map(_quoted, row)) + end for row in rows if id(row) not in left_out)
        (temporary / source.name).write_bytes((mark + written).encode())
    return []


def _quoted(cell: str) -> str:
    # Python's writer leaves line ends other than its own without quotation marks.
    return '"' + cell.replace('"', '""') + '"' if re.search('[",\r\n]', cell) else cell


def _from(folder: Path, parent: Path, file: str) -> str:
    """The path that leads from `folder` to a file given relative to `parent`."""
    original = os.path.join(os.path.realpath(parent), file)
    with suppress(OSError, ValueError):  # another drive, or a link before .. in the path
        relative = os.path.relpath(original, os.path.realpath(folder))
        if os.path.samefile(os.path.join(folder, relative), original):
            return relative.replace(os.sep, "/")
    return original


def _export_folder(folder: Path, source: Path, listing: Listing, changes: Changes) -> list[str]:
    """A folder of class folders, by hard links where possible.

    Files beside the class folders are no samples, but come along; those of the system do not.
    """
    tops = set(listing.tops or [])
    for read in {source, *tops, *(top.parent for top in tops)}:  # some may be links to elsewhere
        if folder.resolve().is_relative_to(read.resolve()):
            raise UserError(f"expected an --export outside the images in {source}, found {folder}; give "
                            "another")
    beside, left_out = _beside(source, tops)
    targets, renamed = _targets(source, listing, changes, beside)
    left_out += [source / name for name in listing.unread]
    left_out += [file for file in targets if not os.path.isfile(file)]
    for file in left_out:
        targets.pop(file, None)
    with _new_folder(folder) as temporary:
        links = _fill(temporary, targets)
    said = [f"{links:,} hard links to the files in {source} (editing one edits the other), "
            f"{len(targets) - links:,} copies"]
    if renamed:
        was, became = renamed[0]
        said.append(f"renamed, where the new class had a file of that name: {was!a} is {became!a}"
                    f"{_and_more([became for _, became in renamed])}")
    if left_out:
        names = [file.relative_to(source).as_posix() for file in left_out]
        said.append(f"left out, for they are no files and no folders that can be read: {names[0]!a}"
                    f"{_and_more(names)}")
    return said


def _beside(source: Path, tops: set[Path]) -> tuple[list[Path], list[Path]]:
    """The files that are in no class folder, and the links to folders, which are not followed."""
    above = {top.parent for top in tops}
    files, links, folders = [], [], [source]
    for folder in folders:
        for path in (folder / name for name in sorted(os.listdir(folder)) if not is_system(name)):
            if path in tops:
                continue
            if not path.is_dir():
                files.append(path)
            elif path in above or not path.is_symlink():
                folders.append(path)
            else:
                links.append(path)
    return files, links


def _targets(source: Path, listing: Listing, changes: Changes, beside: list[Path]) \
        -> tuple[dict[Path, str], list[tuple[str, str]]]:
    """Where each file goes, relative to the new folder, and which ones get another name.

    A relabelled file stays in its folders within the class if the new class has the same ones, else it
    is put into the class folder itself.  Where the source has a file of that name, removed or not, in
    any case, or another relabelled one took it, ``photo.jpg`` becomes ``photo_2.jpg``.
    """
    paths = listing.paths or []
    targets = dict(zip(listing.sources, paths, strict=True))
    targets |= {file: file.relative_to(source).as_posix() for file in beside}
    folders: set[str] = set()
    for path in targets.values():
        while (path := path.rpartition("/")[0]) and path not in folders:
            folders.add(path)
    taken = {_folded(path) for path in (*targets.values(), *folders)}
    renamed, next_number = [], dict[str, int]()
    for number, label in sorted(changes.items()):
        file = listing.sources[number]
        if label is None:
            del targets[file]
            continue
        top = listing.tops[number] if listing.tops else source
        new_top = top.with_name(label).relative_to(source).as_posix()
        inner = file.relative_to(top).as_posix()
        within = f"{new_top}/{inner.rpartition('/')[0]}"
        wanted = f"{within if within in folders else new_top}/{file.name}"
        target = wanted
        while _folded(target) in taken:
            count = next_number[wanted] = next_number.get(wanted, 1) + 1
            stem, dot, suffix = file.name.rpartition(".")
            name = f"{stem}_{count}.{suffix}" if stem and dot else f"{file.name}_{count}"
            target = f"{wanted.rpartition('/')[0]}/{name}"
        taken.add(_folded(target))
        if target != wanted:
            renamed.append((paths[number], target))
        targets[file] = target
    return targets, renamed


def _folded(path: str) -> str:
    """What paths have in common that are one file on some file systems."""
    return unicodedata.normalize("NFC", path).casefold()


def _fill(folder: Path, targets: dict[Path, str]) -> int:
    """Link, or else copy, files to their targets in a folder; returns the number of links."""
    made, links = set(), 0
    for file, target in tqdm(targets.items(), unit="file", leave=False, disable=None, delay=PATIENCE):
        path = os.path.join(folder, target)
        parent = os.path.dirname(path)
        if parent not in made:
            os.makedirs(parent, exist_ok=True)
            made.add(parent)
        original = os.path.realpath(file) if os.path.islink(file) else file
        try:
            os.link(original, path)
            links += 1
        except OSError:  # another file system, or one without hard links
            _copy(original, path)
    return links


def _copy(original: str | Path, path: str):
    try:
        file = open(original, "rb")  # noqa: SIM115
    except OSError as error:
        raise RunError(f"cannot read {os.fspath(original)!a}: {error.strerror}; change that, then run "
                       "again") from error
    with file, open(path, "xb") as copy:  # x: never into a link to an original
        shutil.copyfileobj(file, copy)
    with suppress(OSError):  # some file systems keep neither times nor permissions
        shutil.copystat(original, path)
