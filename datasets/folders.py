"""What is in a folder of class folders: its splits, its classes, and files that are none of them.

Names are untrusted.  Links to files are followed, and links in place of class folders; links to folders
inside a class are not, so that no loop of links can hang.
"""
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from datasets.names import is_line
from utils.errors import UserError
from utils.files import PATIENCE

# What file managers, network storages and operating systems make, in any case, beside names that start
# with a dot.  Whole names only: a class may be called "#1" or "@home".
SYSTEM_NAMES = frozenset((
    "@eadir", "@tmp", "@sharebin", "@synoresource", "#recycle", "#snapshot",  # Synology
    "@recycle", "@recently-snapshot", "@__thumb",  # QNAP
    "$recycle.bin", "recycler", "system volume information", "thumbs.db", "ehthumbs.db",  # Windows
    "ehthumbs_vista.db", "desktop.ini", "found.000",
    "__macosx", "icon\r", "network trash folder", "temporary items",  # macOS
    "thevolumesettingsfolder", "lost+found", "~snapshot"))  # Linux, NetApp
MARKS = (":zone.identifier",)  # how Windows' notes on downloaded files arrive on other systems
TRAIN, VAL, TEST, UNLABELLED = "train", "val", "test", "unlabelled"
ROLES = {"train": TRAIN, "training": TRAIN, "trainset": TRAIN,
         "val": VAL, "valid": VAL, "validation": VAL, "valset": VAL, "dev": VAL,
         "test": TEST, "testing": TEST, "testset": TEST,
         "pred": UNLABELLED, "unlabelled": UNLABELLED, "unlabeled": UNLABELLED}
NAMES_SHOWN = 5
LEVELS = 8  # of folders in folders that are looked into for the classes; links could make a loop


@dataclass
class Found:
    """What is in a folder of class folders.

    Attributes:
        files: the files in the class folders, images or not, N of them.
        classes: the class of each.
        tops: the class folder of each.
        held_out: whether each belongs to the test set; all False if the folder has no test set.
        expected: the classes that must have a sample to train on.
        unread: the folders in the classes that are not read, and why.
        system: how often each name of the system's was left out.
    """

    files: list[Path] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    tops: list[Path] = field(default_factory=list)
    held_out: list[bool] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    unread: dict[Path, Exception] = field(default_factory=dict)
    system: Counter[str] = field(default_factory=Counter)


def find(path: Path) -> Found:
    """The files of a folder of class folders, or of one with a train folder and others of them.

    Raises:
        UserError: there are no class folders, one is empty or cannot be read, or it is not clear which
            folders are the classes.
    """
    found = Found()
    parts = _parts(path, found)
    for part, held in parts.items():
        _add_classes(path, part, held, found)
    if found.system:
        counts = _some(f"{name!a} {count:,}" for name, count in found.system.most_common())
        print(f"left out {found.system.total():,} files and folders, hidden or made by a system: "
              f"{counts}", flush=True)
    return found


@dataclass(frozen=True)
class _Outer:
    """A folder beside others: a class or a split.

    Attributes:
        root: the folder, or the one that alone is in it and has its name, as some archives unpack.
        folders: those in the root.
        has_files: whether there are files beside them.
        role: the split that the name stands for, or None.
    """

    root: Path
    folders: list[Path]
    has_files: bool
    role: str | None


def _parts(path: Path, found: Found) -> dict[Path, bool]:
    """The folders that hold the class folders, and whether what they hold is to test on."""
    folders, _ = _entries(path, found.system)
    outer = {folder.name: _look_inside(folder) for folder in folders}
    if any(one.folders and ROLES.get(name.casefold()) in (TRAIN, VAL, TEST)
           for name, one in outer.items()) \
            or (any(one.folders and one.role == TRAIN for one in outer.values())
                and any(one.role in (VAL, TEST) for one in outer.values())):
        return _splits(path, outer)
    _check_level(path, outer)
    return {path: False}


def _look_inside(folder: Path) -> _Outer:
    # seg_train: "train", training-images: "training"
    roles = {ROLES[word] for word in re.findall(r"[^\W\d_]+", folder.name.casefold()) if word in ROLES}
    role = roles.pop() if len(roles) == 1 else None
    root, (folders, files) = folder, _entries(folder)
    if [one.name for one in folders] == [folder.name] and not files:
        root, (folders, files) = folders[0], _entries(folders[0])
    return _Outer(root, folders, bool(files), role)


def _splits(path: Path, outer: dict[str, _Outer]) -> dict[Path, bool]:
    """The part to train on, then those to test on."""
    unlabelled = [name for name, one in outer.items()
                  if not one.folders and one.role in (TEST, UNLABELLED)]
    labelled = {name: one for name, one in outer.items() if name not in unlabelled}
    counts = Counter(one.role for one in labelled.values())
    if counts[TRAIN] != 1 or counts[None] or counts[UNLABELLED] or max(counts.values()) > 1:
        raise UserError(f"expected one folder train in {path}, and at most one val and one test beside "
                        f"it, found {', '.join(map(ascii, outer))}; rename or move them")
    if unlabelled:
        print(f"left out, for its images are in no class folders: {', '.join(map(ascii, unlabelled))}",
              flush=True)
    return {one.root: role != TRAIN for role in (TRAIN, VAL, TEST) for one in labelled.values()
            if one.role == role}


def _check_level(path: Path, outer: dict[str, _Outer]):
    """Refuse folders where the classes seem to be one level down.

    Raises:
        UserError: there is one folder alone, with folders in it; or every folder holds folders of the
            same names, and no files; or all are splits without class folders.
    """
    if len(outer) == 1:
        root, inner = path, list(outer)
        for _ in range(LEVELS):
            if len(inner) == 1:
                root /= inner[0]
                inner = [folder.name for folder in _entries(root)[0]]
        if inner:
            raise UserError(f"expected one folder per class in {path}, found one folder alone, and in "
                            f"{_shown(root)} the folders {_some(map(ascii, inner))}; if these are the "
                            f"classes, give {_shown(root)} as --dataset")
    elif outer and all(name.casefold() in ROLES for name in outer):
        raise UserError(f"expected one folder per class in {path}, found the splits "
                        f"{_some(map(ascii, outer))} without class folders; sort the images of each "
                        "into folders named for their classes, or give a .csv")
    elif outer and not any(one.has_files for one in outer.values()):
        inner = sorted(set.intersection(*({folder.name for folder in one.folders}
                                          for one in outer.values())))
        if len(inner) > 1:
            raise UserError(f"expected one folder per class in {path}, found the same folders, "
                            f"{_some(map(ascii, inner))}, in each of {_some(map(ascii, outer))}; if the "
                            "inner ones are the classes, name the outer ones train and val or give one "
                            "of them as --dataset, otherwise move the images up into the class folders")


def _some(words: Iterable[str]) -> str:
    listed = list(words)
    return ", ".join(listed[:NAMES_SHOWN]) + ", ..." * (len(listed) > NAMES_SHOWN)


def _add_classes(path: Path, part: Path, held: bool, found: Found):
    folders, beside = _entries(part, None if part == path else found.system)
    if not folders:
        raise UserError(f"expected one folder of images per class in {_shown(part)}, found none; sort "
                        "the images into folders named for their classes, or give a .csv"
                        f"{f', or remove {part.name!a}' if held else ''}")
    if beside:
        more = f" and {len(beside) - 1} more" if len(beside) > 1 else ""
        print(f"left out, beside the class folders of {_shown(part)}: {beside[0]!a}{more}",
              flush=True)
    found.expected += [folder.name for folder in folders if not held]
    for folder in tqdm(folders, "listing", unit="folder", delay=PATIENCE, leave=False, disable=None):
        files = _walk(folder, found)
        if not files:
            raise UserError(f"expected images in every class folder of {_shown(part)}, found none in "
                            f"{folder.name!a}; add some or remove it")
        found.files += files
        found.classes += [folder.name] * len(files)
        found.tops += [folder] * len(files)
        found.held_out += [held] * len(files)


def _walk(top: Path, found: Found) -> list[Path]:
    """The files in a class folder, at every depth.

    Raises:
        UserError: it cannot be read.
    """
    files: list[str] = []

    def not_read(error: OSError):
        if Path(error.filename) == top:
            raise _unreadable(top, error) from error
        found.unread[Path(error.filename)] = error

    for folder, inside, names in os.walk(top, onerror=not_read):
        found.system.update(name for name in [*inside, *names] if is_system(name))
        inside[:] = [name for name in inside if not is_system(name)]
        found.unread |= {Path(folder, name): ValueError("links to folders are not followed")
                         for name in inside if os.path.islink(os.path.join(folder, name))}
        files += [os.path.join(folder, name) for name in names if not is_system(name)]
    # In the order of paths, which compare name by name, but faster.
    return [Path(file) for file in sorted(files, key=lambda file: file.replace(os.sep, "\0"))]


def _entries(path: Path, system: Counter[str] | None = None) -> tuple[list[Path], list[str]]:
    """The folders and the names of the files in a folder; `system` counts the system's, left out."""
    folders, files = [], []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if is_system(entry.name):
                    if system is not None:
                        system[entry.name] += 1
                elif _is_folder(entry):
                    folders.append(path / entry.name)
                else:
                    files.append(entry.name)
    except OSError as error:
        raise _unreadable(path, error) from error
    return sorted(folders), sorted(files)


def _is_folder(entry: os.DirEntry) -> bool:
    """Whether it is a folder or a link to one, unless the link leads back to where it is."""
    try:
        if not entry.is_dir():
            return False
    except OSError:  # a link to itself
        return False
    here = Path(entry.path).parent.resolve()
    return not (entry.is_symlink() and here.is_relative_to(Path(entry.path).resolve()))


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot read the folder {_shown(path)}: {error.strerror}; change that, or "
                     "remove it")


def _shown(path: Path) -> str:
    """A path that may end in untrusted names, for messages."""
    return str(path) if is_line(str(path)) else ascii(str(path))


def is_system(name: str) -> bool:
    """Whether a file or folder is hidden, or made by a file manager or an operating system."""
    folded = name.casefold()
    return folded.startswith(".") or folded in SYSTEM_NAMES or folded.endswith(MARKS)
