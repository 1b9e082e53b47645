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
    (["--epochs", "3"], "unknown argument --epochs; known: .*--monitor-path, --train_epochs"),
    (["--train", "3"], "unknown argument --train"),
    (["stray"], "unknown argument stray"),
    (["--train_epochs", "0"], "train_epochs: expected an integer from 1, found '0'"),
    (["--train_epochs", "1.5"], "expected an integer from 1, found '1.5'"),
    (["--shuffle_rate", "1.1"], "expected a number from 0 to 1, found '1.1'"),
    (["--shuffle_rate", "nan"], "expected a number from 0 to 1, found 'nan'"),
    (["--learning_rate", "0"], "expected a number above 0, found '0'"),
    (["--learning_rate", "inf"], "expected a number above 0, found 'inf'"),
    (["--shuffle_label", "maybe"], "expected True or False, found 'maybe'"),
    (["--context", "tpu"], "'tpu'.*cpu.*cudnn"),
    (["--train_epochs"], "expected one argument"),
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
    (UserError("expected a,\nfound b"), 2, "error: expected a, found b"),
    (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device"),
    (KeyboardInterrupt(), 130, "interrupted; run it again"),
])
def test_mistakes_end_a_script_with_one_line(error, code, line, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(raising(error))
    assert exit_.value.code == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.rstrip("\n").endswith(f": {line}")


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


def test_names_that_the_terminal_cannot_show_are_escaped():
    code = "from utils import cli; cli.run(lambda: print('cat \\u732b'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "PYTHONIOENCODING": "latin-1"}, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "cat \\u732b\n", "")
