"""The boards that Lutra is built for, by name."""

from boards.arty import ARTY_A7_35, ARTY_A7_100
from boards.board import Board
from boards.ulx3s import ULX3S
from hdl.errors import ArgumentError

__all__ = ["BOARDS", "Board", "find"]

BOARDS = {board.name: board for board in (ARTY_A7_35, ARTY_A7_100, ULX3S)}


def find(name):
    """The board of a name; :exc:`~hdl.errors.ArgumentError` lists them if there is none."""
    if name not in BOARDS:
        raise ArgumentError(f"board must be one of {', '.join(BOARDS)}, not {name!r}")
    return BOARDS[name]
