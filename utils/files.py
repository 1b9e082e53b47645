"""Files that are written whole or not at all, and arrays read with distrust."""
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from utils.cli import UserError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, which takes its place if the block ends well.

    The temporary name keeps the suffix, by which NNabla's and NumPy's writers choose the format.

    Raises:
        UserError: the file cannot be written (no space, no permission); what was at `path` stays.
    """
    temporary = path.with_name(f".partial-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        if temporary.is_file():
            temporary.unlink()
        # HDF5 reports a full disk as RuntimeError when it closes the file.
        if isinstance(error, (OSError, RuntimeError)):
            raise UserError(_cannot_write(path, error)) from error
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`, which takes the place of `path` if the block ends well.

    Raises:
        UserError: something in it cannot be written; what was at `path` stays.
    """
    temporary = path.with_name(f".partial-{path.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(_cannot_write(path, error)) from error
        raise


def _cannot_write(path: Path, error: Exception) -> str:
    # HDF5 tells the system's reason amid a page of its own.
    reason = re.search("error message = '([^']+)'", str(error))
    return (f"cannot write {path}: {reason[1] if reason else error}; free some space or give another folder, then run "
            "again")


def save_array(path: Path, array: np.ndarray):
    """Write `array` as an .npy file."""
    with whole_file(path) as temporary:
        np.save(temporary, array, allow_pickle=False)


def save_text(path: Path, text: str):
    """Write `text` as UTF-8."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def save_json(path: Path, content: object):
    """Write `content` as JSON."""
    save_text(path, json.dumps(content, indent=1) + "\n")


def load_array(path: Path) -> np.ndarray:
    """Memory-map an .npy file that comes from anywhere.

    Raises:
        UserError: it is missing, damaged, or needs pickle.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"expected {path}, found nothing; run the step that writes it (train.py, "
                        "then calculate_score.py) or give the right folder") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {path} as an array of numbers: {error}; write it again") \
            from error
