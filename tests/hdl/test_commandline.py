"""What the command lines share."""

import json
import subprocess
import sys

import pytest

from hdl.commandline import (
    Parser,
    kind,
    print_summary,
    progress_bar,
    progress_steps,
    run,
)
from hdl.errors import BuildError


@pytest.fixture
def parser():
    parser = Parser("python -m x", description="Does x.", examples="examples:\n  python -m x 3\n")
    parser.add_argument("n", type=kind("number of eggs", lambda text: int(text)))
    return parser


def test_done(parser):
    seen = []
    assert run(parser, lambda args: seen.append(args.n), ["3"]) == 0
    assert seen == [3]


def test_help_has_the_examples_as_they_are(parser, capsys):
    assert run(parser, None, ["--help"]) == 0
    out = capsys.readouterr().out
    assert "Does x." in out and "examples:\n  python -m x 3\n" in out


@pytest.mark.parametrize("argv, message", [
    ([], "the following arguments are required: n"),
    (["many"], "argument n: invalid number of eggs value: 'many'"),
])
def test_bad_usage(parser, capsys, argv, message):
    assert run(parser, None, argv) == 2
    assert capsys.readouterr() == ("", f"python -m x: error: {message}\n")


def test_bad_usage_that_the_work_finds(parser, capsys):
    assert run(parser, lambda args: parser.error(f"not {args.n},\nplease"), ["3"]) == 2
    assert capsys.readouterr() == ("", "python -m x: error: not 3, please\n")


@pytest.mark.parametrize("error, message", [
    (BuildError("two\nlines"), "two lines"), (OSError("no disk"), "no disk"),
    (MemoryError(), "MemoryError"), (KeyboardInterrupt(), "KeyboardInterrupt")])
def test_failure_is_one_line(parser, capsys, error, message):
    def work(args):
        raise error

    assert run(parser, work, ["3"]) == 1
    assert capsys.readouterr() == ("", f"python -m x: error: {message}\n")


def test_a_bug_is_not_hidden(parser):
    with pytest.raises(ZeroDivisionError):
        run(parser, lambda args: 1 / 0, ["3"])


def test_summary(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    summary, rows = {"a": [1]}, [("name", "m [bold]"), ("long", "x" * 80)]
    print_summary(summary, rows, as_json=True)
    assert json.loads(capsys.readouterr().out) == summary
    print_summary(summary, rows, as_json=False)
    out = capsys.readouterr().out
    assert "m [bold]" in out and out.count("x") == 80


def test_progress_shows_the_time_left(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")      # rich then takes stderr for a terminal
    with progress_bar("working") as progress:
        progress(1, 4)
        progress(2, 4)
    with progress_steps() as steps, steps("first"):
        pass
    out, err = capsys.readouterr()
    assert out == "" and "working" in err and "50%" in err and ":" in err and "first" in err


def test_progress_is_silent_without_a_terminal(capsys):
    with progress_bar("working") as progress:
        progress(1, 4)
    with progress_steps() as steps, steps("first"):
        pass
    assert capsys.readouterr() == ("", "")


def test_is_light():
    """Hosts without Amaranth use it."""
    code = ("import sys; sys.modules['amaranth'] = sys.modules['numpy'] = None; "
            "import hdl.commandline")
    subprocess.run([sys.executable, "-c", code], check=True)
