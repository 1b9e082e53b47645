"""Command lines of the three scripts: shared flags, errors in one line, exit codes."""
import argparse
import difflib
import io
import os
import re
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from utils import mpi
from utils.errors import UserError, exit_code
from utils.startup import ROOT, accept_interrupts, open_streams
from utils.tasks import lead

UNSET = object()
BROKEN_PIPE, INTERRUPTED = 141, 130  # as shells report SIGPIPE and SIGINT
FIRST_SPEAKS = 1.0  # seconds that other ranks of an MPI job wait before they print an error
BOOLEANS = "A flag with [True|False] may stand alone for True, or be negated: --no-flag."


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that accepts long flags with hyphens and with underscores.

    It has --version, flags in named groups (`group`), booleans (`Boolean`) and --run (`add_run_flag`).
    Its namespaces have one more attribute, `given`: the names of the arguments on the command line.

    Raises:
        UserError: the command line cannot be parsed.
    """

    def __init__(self, epilog: str | None = None, **options):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
                         epilog=f"{BOOLEANS}\n\n{epilog}" if epilog else BOOLEANS, **options)
        self._negative_number_matcher = re.compile(r"-\.?\d")  # ranges too: --backbone_input -1..1
        self._groups: dict[str, argparse._ArgumentGroup] = {}
        self._folders: dict[str, str] = {}
        self.add_argument("--version", action=_Version, help="show the version and exit")

    def group(self, title: str) -> argparse._ArgumentGroup:
        """The group of flags with this title in the help; the scripts share the titles."""
        if title not in self._groups:
            self._groups[title] = self.add_argument_group(title)
        return self._groups[title]

    def add_run_flag(self, folders: Mapping[str, str], help: str):
        """Add --run DIR, from which the `folders` follow that are not on the command line.

        Args:
            folders: by argument, such as ``output``, its path relative to DIR.
            help: what is in the folder.
        """
        self.group("files").add_argument("--run", type=Path, metavar="DIR", help=help)
        self._folders = dict(folders)

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        flags = {_plain(flag): flag for flag in self._option_string_actions if flag.startswith("--")}
        words = [self._known_word(word, flags) for word in (sys.argv[1:] if args is None else args)]
        result, unknown = self.parse_known_args(words, namespace)
        if unknown:
            hint = nearest(unknown[0].partition("=")[0], flags.values())
            self.error(f"unknown argument {unknown[0]}; {hint or '--help lists the known ones'}")
        unset = argparse.Namespace(**{action.dest: UNSET for action in self._actions})
        given, _ = self.parse_known_args(words, unset)
        result.given = {name for name, value in vars(given).items() if value is not UNSET}
        if "run" in result.given:
            for name in self._folders.keys() - result.given:
                setattr(result, name, result.run / self._folders[name])
        return result

    def _known_word(self, word: str, flags: Mapping[str, str]) -> str:
        """A word of the command line with its flag, if it is one, as `argparse` knows it."""
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            return word
        negated = flags.get(f"--{_plain(name).removeprefix('--no_')}", "")
        if _plain(name) not in flags and isinstance(self._option_string_actions.get(negated), Boolean):
            if equals:
                self.error(f"argument {name}: expected no value, found {value!r}; leave it out")
            return f"{negated}=False"
        return flags.get(_plain(name), name) + equals + value

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        # An unset variable of a shell, not the working folder.
        if action.type is Path and not arg_string:
            raise argparse.ArgumentError(action, "expected a path, found nothing")
        return super()._get_value(action, arg_string)

    def _check_value(self, action: argparse.Action, value: Any):
        if action.choices is not None and value not in action.choices:
            choices = ", ".join(map(str, action.choices))
            hint = nearest(str(value), action.choices) or "give one of them"
            raise argparse.ArgumentError(action, f"expected one of {choices}, found {value!r}; {hint}")

    def error(self, message: str):
        raise UserError(message)


class Boolean(argparse.Action):
    """A flag that takes True or False, stands alone for True, and is negated by --no-FLAG."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options):
        super().__init__(option_strings, dest, **{"nargs": "?", "const": True, "type": boolean,
                                                  "metavar": "True|False", **options})

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values)


class _Version(argparse.Action):
    """Prints the version, which stands in ``pyproject.toml``."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options):
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **options)

    def __call__(self, parser, namespace, values, option_string=None):
        text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        found = dict(re.findall(r'^(name|version) = "(.+)"$', text, re.MULTILINE))
        print(found["name"], found["version"])
        parser.exit()


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at the known names that a wrong one resembles, or nothing if it resembles none.

    They are those that differ in case, hyphens and underscores alone; else those with all its words or
    their beginnings (``--epochs``: ``--train_epochs``); else those whose words it has or whose initials
    it is (``--lr``); else the most similar one.

    Returns:
        Such as ``did you mean --train_epochs?``
    """
    wrong, spelled = _words(name), {other: _words(other) for other in known}
    if not wrong:
        return ""
    similar = difflib.get_close_matches(" ".join(wrong), map(" ".join, spelled.values()), 1, 0.7)
    rules: list[Callable[[list[str]], bool]] = [
        lambda words: "".join(words) == "".join(wrong),
        lambda words: all(any(own.startswith(word) for own in words) for word in wrong),
        lambda words: set(words) <= set(wrong) or [own[0] for own in words] == list("".join(wrong)),
        lambda words: [" ".join(words)] == similar]
    for rule in rules:
        found = [other for other, words in spelled.items() if words and rule(words)]
        if found:
            return f"did you mean {' or '.join(found[:3])}?"
    return ""


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W_]+", name.lower())


def _plain(flag: str) -> str:
    return flag.replace("-", "_").replace("__", "--", 1)


def boolean(text: str) -> bool:
    """True or False, in any case."""
    try:
        return {"true": True, "false": False}[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"expected True or False, found {text!r}") from None


def number(kind: type, low: float, high: float | None = None, above: bool = False) -> Callable:
    """A parser of numbers of `kind`, at least `low` (`above`: more than `low`) and at most `high`."""
    bounds = f"{'above' if above else 'from'} {low}" + ("" if high is None else f" to {high}")

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        inside = value > low if above else value >= low
        if not (inside and (high is None or value <= high) and value != float("inf")):
            name = {int: "an integer", float: "a number"}[kind]
            raise argparse.ArgumentTypeError(f"expected {name} {bounds}, found {text!r}")
        return value
    return parse


def add_context_flags(parser: Parser):
    """Add the flags of `utils.context.set_context`."""
    device = parser.group("device")
    device.add_argument("-c", "--context", choices=["cpu", "cudnn"],
                        help="where to compute (default: cudnn if a GPU works, else cpu; the line that "
                             "names the network says which)")
    device.add_argument("-d", "--device-id", type=number(int, 0),
                        help="number of the GPU (default: 0; in an MPI job each rank's number among "
                             "those on its machine)")
    device.add_argument("-t", "--type-config", choices=["float", "half"], default="float",
                        help="precision (default: %(default)s; half needs a GPU)")


def add_engine_flags(group: argparse._ArgumentGroup, engines: Iterable[str], engine: str, workers: str):
    """Add --engine and --workers.

    Args:
        group: the group of flags.
        engines: the names of the engines.
        engine, workers: the help of the two flags.
    """
    group.add_argument("--engine", choices=sorted(engines), help=engine)
    group.add_argument("--workers", type=number(int, 1, 256), metavar="N", help=workers)


def choose_engine(supported: Mapping[str, Mapping[str, Sequence[str]]], name: str | None,
                  **wanted: str) -> str:
    """`name`, or the first engine that fits if it is None.

    Args:
        supported: engine -> flag -> the values of the flag that the engine supports.
        name: the value of --engine, or None.
        wanted: the flags' values; some engine supports them all.

    Raises:
        UserError: the engine does not support them.
    """
    def flags(values: Mapping[str, str]) -> str:
        return " and ".join(f"--{flag.replace('_', '-')} {value}" for flag, value in values.items())
    names = [engine for engine, values in supported.items()
             if all(value in values[flag] for flag, value in wanted.items())]
    if name and name not in names:
        found = {flag: ", ".join(values) for flag, values in supported[name].items()}
        raise UserError(f"expected an engine that supports {flags(wanted)}, found --engine {name}, "
                        f"which supports {flags(found)}; give --engine {names[0]} or leave the flag out")
    return name or names[0]


def take_recorded(args: argparse.Namespace, parser: Parser, names: Sequence[str], recorded: dict,
                  source: str):
    """Set the arguments called `names` to the values that a run was made with.

    Args:
        args: from `parser`; arguments on the command line must agree with the record.
        parser: parses `recorded` like a command line, because it is untrusted and may come from an older
            version that knew fewer arguments.
        names: the arguments to set.
        recorded: their values by name.
        source: where they were recorded.

    Raises:
        UserError: an argument contradicts its record, or the record cannot be read.
    """
    try:
        known = parser.parse_args([f"--{name}={value}" for name, value in recorded.items()
                                   if value is not None])
    except UserError as error:
        raise UserError(f"cannot use what {source} says of its training: {error}") from error
    for name in names:
        made_with = None if recorded.get(name, ...) is None else getattr(known, name)
        found = getattr(args, name)
        if name in args.given and found != made_with:
            raise UserError(f"--{name} {found} contradicts {source}, which was made with {made_with}; "
                            "leave the flag out, or start over without --checkpoint")
        setattr(args, name, made_with)


def typed_command(*more: str) -> str:
    """The command line of this process as it was typed, with `more` words, ready to paste."""
    return shlex.join([*sys.orig_argv, *more])


def other_script(name: str, *words: object) -> str:
    """The command line of another of the scripts, started as this one was, ready to paste."""
    program, interpreter = Path(sys.argv[0]), sys.orig_argv[:-len(sys.argv)]
    if program.parent.resolve() != ROOT or not interpreter:  # imported by another program
        program, interpreter = Path(name), ["python"]
    return shlex.join([*interpreter, str(program.with_name(name)), *map(_word, words)])


def _word(value: object) -> str:
    """A value on a command line; a path that would be taken for a flag begins with the folder."""
    text = str(value)
    return f".{os.sep}{text}" if isinstance(value, Path) and text.startswith("-") else text


def device_words(settings: Any) -> list[str]:
    """The flags of `add_context_flags` that differ from their defaults."""
    words = ["-c", settings.context] if settings.context else []
    words += ["-d", str(settings.device_id)] if settings.device_id else []
    return words + (["-t", settings.type_config] if settings.type_config != "float" else [])


def run_again() -> str:
    """What to do after an interrupt where the same command continues."""
    return f"to resume: {typed_command()}"


def run(main: Callable[[], object], after_interrupt: Callable[[], str] = run_again, led: bool = False):
    """Run `main` and exit: 0, or 2 after a wrong call or bad input, 1 after a failure, 130 after Ctrl-C.

    When nobody reads the output any more (``... | head``), the exit is 141, without a message.

    Args:
        main: a script's main function.
        after_interrupt: returns what the user can do after an interrupt.
        led: in an MPI job, whether the first rank alone calls `main`, and the others compute its tasks
            (`utils.tasks`); otherwise all call it.
    """
    open_streams()
    accept_interrupts()
    for stream in (sys.stdout, sys.stderr):  # a terminal may lack the letters of some names
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    code: Any = 0
    try:
        mpi.start()
        if led:
            lead(main)
        else:
            main()
            mpi.wait_for_all()  # MPI's own end would keep a core busy
    except SystemExit as end:  # after --help and --version
        code = end.code
    # OSError: a full disk or a folder without permission that no other function turned into an error.
    except (UserError, OSError, MemoryError) as error:
        code = _report(error)
    except KeyboardInterrupt:
        code = _fail(f"interrupted; {after_interrupt()}", INTERRUPTED)
    except Exception:
        if mpi.job().size == 1:
            raise
        traceback.print_exc()  # not raised: the other ranks would wait for this one
        code = 1
    try:
        sys.stdout.flush()
    except OSError as error:  # else the interpreter would complain, at its end
        _discard(sys.stdout)
        code = code or _report(error)
    except ValueError:  # `main` closed it
        pass
    if code:
        mpi.end(code)
        sys.exit(code)


def _report(error: UserError | OSError | MemoryError) -> int:
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    message = str(error)
    if isinstance(error, MemoryError):
        message = f"out of memory; free some, or give fewer images ({message or 'Python'})"
    return _fail(f"error: {' '.join(message.split())}", exit_code(error))


def _fail(message: str, code: int) -> int:
    if mpi.launched_rank():  # what fails everywhere is said once: the first rank ends the others
        time.sleep(FIRST_SPEAKS)
    try:
        if mpi.speaks():
            print(f"{sys.argv[0]}: {message}", file=sys.stderr, flush=True)
    except OSError:  # the code is all that can be said
        _discard(sys.stderr)
    return code


def _discard(stream: Any):
    """Send what a stream still holds, which cannot be written, nowhere."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
