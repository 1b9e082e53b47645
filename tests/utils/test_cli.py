import errno
import io
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, refused
from utils.cli import (
    Boolean,
    Parser,
    add_context_flags,
    nearest,
    number,
    other_script,
    run,
    take_recorded,
)
from utils.errors import RunError, UserError


@pytest.fixture
def parser():
    parser = Parser()
    parser.add_argument("--monitor-path", "-m", default="tmp.monitor")
    parser.add_argument("--train_epochs", type=number(int, 1), default=270)
    parser.add_argument("--shuffle_rate", type=number(float, 0, 1), default=0.1)
    parser.add_argument("--learning_rate", type=number(float, 0, above=True), default=1.0)
    parser.add_argument("--shuffle_label", action=Boolean, default=None)
    parser.add_run_flag({"monitor_path": ".", "output": "report"}, help="one folder")
    parser.add_argument("--output", type=Path, default=Path("figure"))
    add_context_flags(parser)
    return parser


@pytest.mark.parametrize("argv", [
    ["--monitor-path", "a_b-c", "--train-epochs", "3"], ["--monitor_path=a_b-c", "--train_epochs=3"],
    ["-m", "a_b-c", "--train_epochs", "3"]])
def test_long_flags_take_hyphens_and_underscores(parser, argv):
    args = parser.parse_args(argv)
    assert (args.monitor_path, args.train_epochs) == ("a_b-c", 3)
    assert args.given == {"monitor_path", "train_epochs"}


@pytest.mark.parametrize("text", ["-1..1", "-1", "-.5"])
def test_values_may_begin_like_a_number(parser, text):
    parser.add_argument("--backbone_input")
    assert parser.parse_args(["--backbone-input", text, "-m", "a"]).backbone_input == text


def test_defaults_are_not_given(parser):
    args = parser.parse_args(["--train_epochs", "270"])
    assert (args.train_epochs, args.shuffle_label, args.context) == (270, None, None)
    assert args.given == {"train_epochs"}


@pytest.mark.parametrize(("argv", "message"), [
    (["--epochs", "3"], "--epochs.*--train_epochs(?!.*--)"),  # no list of all known flags
    (["--epochs=3"], "--epochs=3.*--train_epochs(?!.*--)"),
    (["--train", "3"], r"--train\b.*--train_epochs"),
    (["--shuffle", "3"], "--shuffle.*--shuffle_rate.*--shuffle_label"),
    (["stray"], r"\bstray\b.*--help(?!.*--)"),
    (["--shuffle_label", "stray"], "--shuffle_label.*'stray'"),
    (["--shuffle_label", "True", "stray"], r"\bstray\b.*--help"),
    (["--no-shuffle_label=True"], "--no-shuffle_label.*'True'"),
    (["--no-train_epochs"], "--no-train_epochs"),
    (["-c", "CPU"], r"--context.*\bcudnn\b.*'CPU'.*\bcpu\b"),
    (["--train_epochs", "0"], r"--train_epochs.*\b1\b.*'0'"),
    (["--train_epochs", "1.5"], r"--train_epochs.*\b1\b.*'1\.5'"),
    (["--shuffle_rate", "1.1"], r"--shuffle_rate.*\b0\b.*\b1\b.*'1\.1'"),
    (["--shuffle_rate", "nan"], r"--shuffle_rate.*\b0\b.*\b1\b.*'nan'"),
    (["--learning_rate", "0"], r"--learning_rate.*\b0\b.*'0'"),
    (["--learning_rate", "inf"], r"--learning_rate.*\b0\b.*'inf'"),
    (["--shuffle_label", "maybe"], r"--shuffle_label.*\bTrue\b.*\bFalse\b.*'maybe'"),
    (["--context", "tpu"], r"--context.*\bcpu\b.*\bcudnn\b.*'tpu'"),
    (["--train_epochs"], "--train_epochs(?!.*--)"),  # no list of known flags follows
])
def test_mistakes_say_what_was_expected(parser, argv, message):
    with pytest.raises(UserError, match=message):
        parser.parse_args(argv)


@pytest.mark.parametrize(("words", "value"), [
    (["--shuffle_label", "True"], True), (["--shuffle_label", "false"], False),
    (["--shuffle-label=FALSE"], False), (["--shuffle_label"], True), (["--no-shuffle-label"], False),
    (["--no_shuffle_label"], False), (["--no-shuffle_label", "--shuffle_label"], True)])
def test_booleans(parser, words, value):
    args = parser.parse_args([*words, "--train_epochs", "3"])
    assert (args.shuffle_label, args.train_epochs) == (value, 3)
    assert args.given == {"shuffle_label", "train_epochs"}


@pytest.mark.parametrize("recorded", [True, False, None])
def test_booleans_are_taken_from_a_record(parser, recorded):
    args = parser.parse_args([])
    take_recorded(args, parser, ["shuffle_label"], {"shuffle_label": recorded}, "a run")
    assert args.shuffle_label is recorded
    args = parser.parse_args(["--no-shuffle_label"])
    if recorded is False:
        take_recorded(args, parser, ["shuffle_label"], {"shuffle_label": recorded}, "a run")
    else:
        with refused("--shuffle_label", str(recorded), "a run"):
            take_recorded(args, parser, ["shuffle_label"], {"shuffle_label": recorded}, "a run")


@pytest.mark.parametrize(("words", "folders"), [
    ([], ("tmp.monitor", "figure")), (["--run", "a b"], ("a b", "a b/report")),
    (["--run", "r", "--output", "figure"], ("r", "figure")),
    (["-m", "tmp.monitor", "--run", "r"], ("tmp.monitor", "r/report"))])
def test_run_sets_the_folders_that_are_not_given(parser, words, folders):
    args = parser.parse_args(words)
    assert (Path(args.monitor_path), args.output) == tuple(map(Path, folders))


@pytest.mark.parametrize(("name", "known", "near"), [
    ("--epochs", ["--train_epochs", "--engine", "--nmaps"], ["--train_epochs"]),
    ("--batch-size", ["--train_batch_size", "--size", "--val_batch_size"],
     ["--train_batch_size", "--val_batch_size"]),
    ("--lr", ["--layers", "--learning_rate"], ["--learning_rate"]),
    ("--laers", ["--layers", "--learning_rate"], ["--layers"]),
    ("AUM", ["tracin", "aum", "aum_late"], ["aum"]),
    ("Resnet23", ["resnet23", "resnet56"], ["resnet23"]),
    ("cifar_10", ["cifar10", "cifar100"], ["cifar10"]),
    ("photos", ["cifar10", "digits"], []), ("", ["cifar10"], []), ("--", ["--train"], []),
    ("gpu", ["cpu", "cudnn"], [])])
def test_hint_names_the_nearest(name, known, near):
    hint = nearest(name, known)
    assert [other for other in known if f" {other} " in hint.replace("?", " ")] == near
    assert bool(hint) == bool(near)


def test_typed_command_can_be_pasted():
    code = "from utils.cli import typed_command; print(typed_command('--checkpoint', 'a b'))"
    done = subprocess.run([sys.executable, "-c", code, "it's"], cwd=ROOT, capture_output=True, text=True,
                          check=True)
    assert shlex.split(done.stdout) == [sys.executable, "-c", code, "it's", "--checkpoint", "a b"]


def raising(error):
    def main():
        raise error
    return main


@pytest.mark.parametrize(("error", "code", "line"), [
    (UserError("expected a,\nfound b"), 2, "expected a, found b"),
    (RunError("a failure"), 1, "a failure"),
    (OSError(28, "No space left on device"), 1, "[Errno 28] No space left on device"),
    (OSError(errno.ENOENT, "No such file", "a"), 2, "[Errno 2] No such file: 'a'"),
    (PermissionError(errno.EACCES, "Permission denied", "a"), 2, "[Errno 13] Permission denied: 'a'"),
    (OSError("no reason known"), 1, "no reason known"),
    (MemoryError("1 EiB"), 1, "(1 EiB)"),
    (KeyboardInterrupt(), 130, "do this"),
])
def test_mistakes_end_a_script_with_one_line(error, code, line, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(raising(error), after_interrupt=lambda: "do this")
    assert exit_.value.code == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"{sys.argv[0]}: ") and err.endswith(f" {line}\n")


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


@pytest.mark.parametrize(("error", "cause", "code"), [
    (UserError, OSError(errno.EIO, "Input/output error"), 1), (UserError, MemoryError(), 1),
    (UserError, OSError(errno.ENOENT, "No such file"), 2), (UserError, OSError("not a picture"), 2),
    (UserError, ValueError("not a number"), 2), (UserError, None, 2),
    (RunError, PermissionError(errno.EACCES, "Permission denied"), 1)])
def test_failures_of_the_disk_are_not_the_users(error, cause, code, capsys):
    def main():
        raise error("cannot read") from cause
    with pytest.raises(SystemExit) as exit_:
        run(main)
    assert exit_.value.code == code


def python(code: str, **options) -> subprocess.CompletedProcess:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run([sys.executable, "-c", code], **{
        "cwd": ROOT, "env": buffered, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True,
        "check": False, **options})


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_names_that_the_terminal_cannot_show_are_escaped(encoding):
    done = python("from utils import cli; cli.run(lambda: print('cat \\u732b'))",
                  env={**os.environ, "PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stdout, done.stderr) == (0, "cat \\u732b\n", "")


@pytest.mark.parametrize("closed", [[1], [2], [1, 2], [0, 1, 2]], ids=str)
def test_closed_descriptors_are_not_taken_by_files(tmp_path, closed):
    """What a library prints by number must not land in a file that got this number."""
    code = f"""
import os, sys
from utils import cli
from utils.errors import UserError
def main():
    with open({str(tmp_path / "file")!r}, "wb") as file:
        for number in (1, 2):
            os.write(number, b"")
            assert file.fileno() > 2
        print("said"), print("said", file=sys.stderr), file.write(b"content")
    raise UserError("expected")
cli.run(main)
"""
    done = python(code, preexec_fn=lambda: [os.close(number) for number in closed])
    assert done.returncode == 2
    assert (tmp_path / "file").read_bytes() == b"content"
    assert done.stdout == ("" if 1 in closed else "said\n")
    assert len(done.stderr.splitlines()) == (0 if 2 in closed else 2)


class PlainStream:
    """A text stream with no more methods than `print` needs, as those of notebooks."""

    def __init__(self):
        self.text = ""

    def write(self, text: str):
        self.text += text

    def flush(self):
        pass


def closed_stream() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("make", [PlainStream, closed_stream, lambda: None])
def test_odd_streams_are_let_be(monkeypatch, make):
    stdout, stderr = make(), make()
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "stderr", stderr)

    def main():
        print("said")
        raise UserError("expected")
    with pytest.raises(SystemExit) as exit_:
        run(main)
    assert exit_.value.code == 2
    if isinstance(stdout, PlainStream):
        assert stdout.text == "said\n" and "expected" in stderr.text


@pytest.mark.parametrize("main", [
    "print('a')", "[print('a' * 9999) for _ in range(99)]", "print('a', flush=True)",
    "cli.Parser(description='a').parse_args(['--help'])"])
def test_output_that_nobody_reads_ends_quietly(main):
    """As shells report a broken pipe, and without a complaint of the interpreter at its end."""
    reader, writer = os.pipe()
    os.close(reader)
    done = python(f"from utils import cli; cli.run(lambda: {main})", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_errors_that_nobody_reads_keep_their_code():
    reader, writer = os.pipe()
    os.close(reader)
    done = python("from utils import cli\ncli.run(lambda: cli.Parser().parse_args(['--a']))",
                  stdout=writer, stderr=writer)
    os.close(writer)
    assert done.returncode == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_at_the_last_line_is_one_line():
    with open("/dev/full", "w") as full:
        done = python("from utils import cli; cli.run(lambda: print('a'))", stdout=full)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_interrupt_while_a_script_is_imported_ends_it_quietly():
    code = ("import os, signal, sys; "
            f"sys.modules['__main__'].__file__ = {str(ROOT / 'train.py')!r}; import utils; "
            "interrupt = lambda: os.kill(os.getpid(), signal.SIGINT); ")
    done = python(code + "interrupt()")
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
    done = python(code + "from utils import cli; cli.run(interrupt)")
    assert (done.returncode, done.stderr.count("\n")) == (130, 1)
    assert "cli.run(interrupt)" in done.stderr  # what to do: the command as it was typed


def test_printed_paths_are_not_taken_for_flags():
    command = other_script("train.py", "--run", Path("-r"), "-c", "cpu")
    assert shlex.split(command)[-4:] == ["--run", "./-r", "-c", "cpu"]
