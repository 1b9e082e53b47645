"""Which names of classes a person would read as one."""
import re
import unicodedata
from collections.abc import Callable, Iterable

# What spreadsheets, pandas and databases write where a label is missing, in any case.
MISSING = frozenset(("", "nan", "-nan", "none", "null", "nil", "na", "n/a", "<na>", "#n/a", "#na",
                     "#n/a n/a"))

_DASHES = "\u02d7\u2212"  # beside those of Unicode's category Pd
_APOSTROPHES = "`\u00b4\u02b9\u02bb\u02bc\u02bd\u2018\u2019\u201a\u201b\u2032\u2035"
_QUOTES = "\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033\u2036"
_SIGNS = str.maketrans(dict.fromkeys(_DASHES, "-") | dict.fromkeys(_APOSTROPHES, "'")
                       | dict.fromkeys(_QUOTES, '"'))
_SELECTORS = {chr(code) for code in range(0xfe00, 0xfe10)}  # choose how the letter before is drawn
# Cyrillic and Greek letters, in lower case, that are drawn like Latin ones in one case at least.
_LETTERS = str.maketrans("авекмнорстухіјѕԁѡαβεικνορτυχ",
                         "abekmhopctyxijsdwabeikvoptux")


def is_missing(label: str) -> bool:
    """Whether a label stands for a missing one."""
    return label.strip().casefold() in MISSING


def is_line(text: str) -> bool:
    """Whether it is one line of text that reads as it is stored.

    Control characters, text that is not Unicode and marks that change the direction of text are refused.
    """
    return text.splitlines() == [text] and not any(
        unicodedata.category(letter) in ("Cc", "Cs")
        or unicodedata.bidirectional(letter) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI",
                                                 "PDI") for letter in text)


def same(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of names that a person reads as the same name.

    They differ only in blanks, in invisible characters, in how Unicode writes a letter, a dash or a
    quotation mark, or in how a number is written (1, 01, 1.0).
    """
    return _pairs(names, _read)


def alike(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of names that may be meant to differ, but could be a slip.

    They differ only in case, in blanks, dashes and underscores between words, in the zeros before a
    number, or in letters of other alphabets that look the same.
    """
    return _pairs(names, _glance)


def natural(name: str) -> tuple:
    """The key that sorts numbers in their order, and before words."""
    return (0, int(name), name) if re.fullmatch("-?[0-9]{1,18}", name) else (1, 0, name)


def _pairs(names: Iterable[str], key: Callable[[str], str]) -> list[tuple[str, str]]:
    first: dict[str, str] = {}
    return [(first[key(name)], name) for name in sorted(names)
            if first.setdefault(key(name), name) != name]


def _read(name: str) -> str:
    """The name as it is read."""
    text = unicodedata.normalize("NFKC", name.translate(_SIGNS)).translate(_SIGNS)
    letters = ("-" if unicodedata.category(letter) == "Pd" else letter for letter in text
               if unicodedata.category(letter) != "Cf" and letter not in _SELECTORS)
    text = " ".join("".join(letters).split())
    number = re.fullmatch(r"([+-]?)0*([0-9]+)(?:\.([0-9]*?)0*)?", text)
    if number:
        sign, whole, fraction = number.groups(default="")
        text = f"{whole}.{fraction}".removesuffix(".")
        text = f"-{text}" if sign == "-" and text != "0" else text
    return text


def _glance(name: str) -> str:
    """The name as it looks at a glance."""
    text = _read(name).casefold().translate(_LETTERS)
    text = re.sub(r"(?<![\d.,])0+(?=\d)", "", text)
    return re.sub(r"(?<=[^\W\d_])[ _-]+(?=\w)|(?<=\w)[ _-]+(?=[^\W\d_])", "", text)
