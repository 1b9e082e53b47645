"""Command lines of the three scripts: shared flags, errors in one line, exit codes."""
import argparse
import io
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from utils.errors import RunError, UserError

UNSET = object()


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that accepts long flags with hyphens and with underscores.

    Its namespaces have one more attribute, `given`: the names of the arguments on the command line.

    Raises:
        UserError: the command line cannot be parsed.
    """

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
                         **options)

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        flags = {flag.replace("-", "_"): flag for flag in self._option_string_actions
                 if flag.startswith("--")}
        words = []
        for word in sys.argv[1:] if args is None else args:
            name, equals, value = word.partition("=")
            if name.startswith("--"):
                word = flags.get(name.replace("-", "_"), name) + equals + value
            words.append(word)
        result, unknown = self.parse_known_args(words, namespace)
        if unknown:
            self.error(f"unknown argument {unknown[0]}; known: {', '.join(flags.values())}")
        unset = argparse.Namespace(**{action.dest: UNSET for action in self._actions})
        given, _ = self.parse_known_args(words, unset)
        result.given = {name for name, value in vars(given).items() if value is not UNSET}
        return result

    def error(self, message: str):
        raise UserError(message)


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
    parser.add_argument("-c", "--context", choices=["cpu", "cudnn"],
                        help="where to compute (default: cudnn if a GPU works, else cpu; the first "
                             "line of output says which)")
    parser.add_argument("-d", "--device-id", type=number(int, 0), default=0,
                        help="number of the GPU (default: %(default)s)")
    parser.add_argument("-t", "--type-config", choices=["float", "half"], default="float",
                        help="precision (default: %(default)s; half needs a GPU)")


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
    known = parser.parse_args([f"--{name}={value}" for name, value in recorded.items()
                               if value is not None])
    for name in names:
        made_with = None if recorded.get(name, ...) is None else getattr(known, name)
        found = getattr(args, name)
        if name in args.given and found != made_with:
            raise UserError(f"--{name} {found} contradicts {source}, which was made with {made_with}; "
                            "leave the flag out, or start over without --checkpoint")
        setattr(args, name, made_with)


def run(main: Callable[[], object], after_interrupt: str = "run it again"):
    """Run `main` and exit: 0, or 2 after a wrong call or bad input, 1 after a failure, 130 after Ctrl-C.

    Args:
        main: a script's main function.
        after_interrupt: what the user can do after an interrupt.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal may lack the letters of some names
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    # OSError: a full disk or a folder without permission that no other function turned into an error.
    except (UserError, OSError) as error:
        message = " ".join(str(error).split())
        sys.exit(_fail(f"error: {message}", getattr(error, "code", RunError.code)))
    except KeyboardInterrupt:
        sys.exit(_fail(f"interrupted; {after_interrupt}", 130))


def _fail(message: str, code: int) -> int:
    print(f"{sys.argv[0]}: {message}", file=sys.stderr, flush=True)
    return code
