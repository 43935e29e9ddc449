"""What every command line of the project has in common; imports neither Amaranth nor NumPy.

A command has ``--help`` with examples, says in one line why it failed, shows on a terminal how far
its work is, and exits with 0 (done), 1 (failed) or 2 (bad usage).
"""

import argparse
import json
import os
import sys
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from hdl.errors import LutraError

__all__ = ["Parser", "kind", "live", "output", "print_summary", "progress_bar",
           "progress_steps", "run"]


_FILE_WIDTH = 250


class Parser(argparse.ArgumentParser):
    """Arguments of a command.

    Parameters
    ----------
    prog : str
        As a user calls it: ``"python -m hdl.build"``.
    description, examples : str
        What ``--help`` says above and below the options.
    """

    def __init__(self, prog, *, description, examples):
        super().__init__(prog=prog, description=description, epilog=examples,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        """Exit with status 2 and one line, without the usage."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def kind(name, convert):
    """`convert` as the ``type`` of an argument; errors say "invalid `name` value"."""
    convert.__name__ = name
    return convert


def run(parser, work, argv=None):
    """Parse arguments, do the work and say in one line why it failed.

    Parameters
    ----------
    parser : Parser
    work : callable
        Called as ``work(args)``; ``parser.error`` in it is bad usage.
    argv : list of str, optional
        Arguments; those of the process by default.

    Returns
    -------
    int
        Exit status: 0 done, 1 failed, 2 bad usage.
    """
    try:
        work(parser.parse_args(argv))
    except SystemExit as stop:      # argparse: 0 after --help, 2 after an error
        return stop.code
    except (LutraError, OSError, MemoryError, KeyboardInterrupt) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"{parser.prog}: error: {message}", file=sys.stderr)
        return 1
    return 0


def print_summary(summary, rows, *, as_json):
    """Print what a command found: a table of names and values, or JSON.

    Parameters
    ----------
    summary : dict
        For JSON.
    rows : list of (str, str)
        For the table.
    as_json : bool
    """
    if as_json:
        print(json.dumps(summary))
        return
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    # Markup off: names of tensors are in brackets.
    output(markup=False).print(table)


def output(**options):
    """A console on standard output; one that is no terminal is wide enough for every table."""
    console = Console(highlight=False, **options)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _FILE_WIDTH
    return console


def live(*columns, transient=True):
    """A :class:`rich.progress.Progress` on standard error, if that is a terminal."""
    console = Console(stderr=True, highlight=False)
    return Progress(*columns, console=console, transient=transient,
                    disable=not console.is_terminal)


@contextmanager
def progress_bar(description):
    """Show a bar with the time left.

    Yields
    ------
    callable
        ``progress(done, total)``.
    """
    with live(TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
              TimeElapsedColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def progress_steps():
    """Show steps of unknown length with the time that each took.

    Yields
    ------
    callable
        ``steps(title)``, a context manager around each step.
    """
    with live(SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"),
              TimeElapsedColumn(), transient=False) as bar:
        @contextmanager
        def step(title):
            task = bar.add_task(title, total=1)
            yield
            bar.update(task, completed=1)
        yield step
