"""Command lines of the three scripts: shared flags, and mistakes told in one line."""
import argparse
import sys
from collections.abc import Callable, Sequence

from utils.errors import UserError

UNSET = object()


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that takes long flags with hyphens and with underscores.

    Its namespaces have one more attribute, `given`: the names of the arguments that stood on the
    command line.  What it cannot parse raises `UserError`.
    """

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
                         **options)

    def parse_args(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        flags = {flag.replace("-", "_"): flag for flag in self._option_string_actions
                 if flag.startswith("--")}
        words = []
        for word in sys.argv[1:] if argv is None else argv:
            name, equals, value = word.partition("=")
            if name.startswith("--"):
                word = flags.get(name.replace("-", "_"), name) + equals + value
            words.append(word)
        args, unknown = self.parse_known_args(words)
        if unknown:
            self.error(f"unknown argument {unknown[0]}; known: {', '.join(flags.values())}")
        unset = argparse.Namespace(**{action.dest: UNSET for action in self._actions})
        given, _ = self.parse_known_args(words, unset)
        args.given = {name for name, value in vars(given).items() if value is not UNSET}
        return args

    def error(self, message: str):
        raise UserError(message)


def boolean(text: str) -> bool:
    """True or False, in any case."""
    try:
        return {"true": True, "false": False}[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"expected True or False, found {text!r}") from None


def number(kind: type, low: float, high: float | None = None, above: bool = False) -> Callable:
    """A parser of numbers of `kind` from `low` (or, with `above`, above it) up to `high`."""
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
    """The flags of `utils.context.set_context`."""
    parser.add_argument("-c", "--context", choices=["cpu", "cudnn"],
                        help="where to compute; default: cudnn where its extension and a GPU are "
                             "there, else cpu")
    parser.add_argument("-d", "--device-id", type=number(int, 0), default=0,
                        help="which GPU (default: %(default)s)")
    parser.add_argument("-t", "--type-config", choices=["float", "half"], default="float",
                        help="type of computation (default: %(default)s; half needs a GPU)")


def take_recorded(args: argparse.Namespace, parser: Parser, names: Sequence[str], recorded: dict,
                  source: str):
    """Set the arguments called `names` to what a run was made with.

    Args:
        args: from `parser`; what stood on the command line may not differ.
        parser: what `recorded` is read with, like a command line: it may come from a stranger, or
            from an older version that knew fewer arguments.
        names: arguments to take.
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
                            "leave the flag out, or train afresh without --checkpoint")
        setattr(args, name, made_with)


def run(main: Callable[[], object], after_interrupt: str = "run it again"):
    """Run `main` and exit: 2 after a mistake told in one line, 1 after a mishap, 130 after an interrupt.

    Args:
        main: a script's main function.
        after_interrupt: what the user can do after an interrupt.
    """
    for stream in (sys.stdout, sys.stderr):  # names come in all scripts, terminals in few
        stream.reconfigure(errors="backslashreplace")
    try:
        main()
    # An OSError that nothing closer caught: a full disk, a folder without permission.
    except (UserError, OSError) as error:
        message = " ".join(str(error).split())
        sys.exit(_fail(f"error: {message}", getattr(error, "code", UserError.code)))
    except KeyboardInterrupt:
        sys.exit(_fail(f"interrupted; {after_interrupt}", 130))


def _fail(message: str, code: int) -> int:
    print(f"{sys.argv[0]}: {message}", file=sys.stderr, flush=True)
    return code
