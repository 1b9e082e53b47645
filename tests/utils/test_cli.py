import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from utils.cli import Parser, add_context_flags, boolean, number, run
from utils.errors import UserError


@pytest.fixture
def parser():
    parser = Parser()
    parser.add_argument("--monitor-path", "-m", default="tmp.monitor")
    parser.add_argument("--train_epochs", type=number(int, 1), default=270)
    parser.add_argument("--shuffle_rate", type=number(float, 0, 1), default=0.1)
    parser.add_argument("--learning_rate", type=number(float, 0, above=True), default=1.0)
    parser.add_argument("--shuffle_label", type=boolean, default=True)
    add_context_flags(parser)
    return parser


@pytest.mark.parametrize("argv", [
    ["--monitor-path", "a_b-c", "--train-epochs", "3"], ["--monitor_path=a_b-c", "--train_epochs=3"],
    ["-m", "a_b-c", "--train_epochs", "3"]])
def test_long_flags_take_hyphens_and_underscores(parser, argv):
    args = parser.parse_args(argv)
    assert (args.monitor_path, args.train_epochs) == ("a_b-c", 3)
    assert args.given == {"monitor_path", "train_epochs"}


def test_defaults_are_not_given(parser):
    args = parser.parse_args(["--train_epochs", "270"])
    assert (args.train_epochs, args.shuffle_label, args.context) == (270, True, None)
    assert args.given == {"train_epochs"}


@pytest.mark.parametrize(("argv", "message"), [
    (["--epochs", "3"], "--epochs.*--monitor-path, --train_epochs"),
    (["--train", "3"], r"--train\b.*--train_epochs"),
    (["stray"], r"\bstray\b.*--train_epochs"),
    (["--train_epochs", "0"], r"--train_epochs.*\b1\b.*'0'"),
    (["--train_epochs", "1.5"], r"--train_epochs.*\b1\b.*'1\.5'"),
    (["--shuffle_rate", "1.1"], r"--shuffle_rate.*\b0\b.*\b1\b.*'1\.1'"),
    (["--shuffle_rate", "nan"], r"--shuffle_rate.*\b0\b.*\b1\b.*'nan'"),
    (["--learning_rate", "0"], r"--learning_rate.*\b0\b.*'0'"),
    (["--learning_rate", "inf"], r"--learning_rate.*\b0\b.*'inf'"),
    (["--shuffle_label", "maybe"], r"--shuffle_label.*\bTrue\b.*\bFalse\b.*'maybe'"),
    (["--context", "tpu"], r"--context.*'tpu'.*\bcpu\b.*\bcudnn\b"),
    (["--train_epochs"], "--train_epochs(?!.*--)"),  # no list of known flags follows
])
def test_mistakes_say_what_was_expected(parser, argv, message):
    with pytest.raises(UserError, match=message):
        parser.parse_args(argv)


@pytest.mark.parametrize(("text", "value"), [("True", True), ("false", False), ("FALSE", False)])
def test_booleans(parser, text, value):
    assert parser.parse_args(["--shuffle_label", text]).shuffle_label is value


def raising(error):
    def main():
        raise error
    return main


@pytest.mark.parametrize(("error", "code", "line"), [
    (UserError("expected a,\nfound b"), 2, "expected a, found b"),
    (OSError(28, "No space left on device"), 1, "[Errno 28] No space left on device"),
    (KeyboardInterrupt(), 130, "do this"),
])
def test_mistakes_end_a_script_with_one_line(error, code, line, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(raising(error), after_interrupt="do this")
    assert exit_.value.code == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"{sys.argv[0]}: ") and err.endswith(f" {line}\n")


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


def test_names_that_the_terminal_cannot_show_are_escaped():
    code = "from utils import cli; cli.run(lambda: print('cat \\u732b'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "PYTHONIOENCODING": "latin-1"}, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "cat \\u732b\n", "")
