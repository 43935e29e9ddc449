"""One match of a tournament."""

from amaranth.lib import data

__all__ = ["contestant", "wins"]


def contestant(width, place):
    """Who plays: whether there is an element, its key (larger wins), `place` bits of where."""
    return data.StructLayout({"alive": 1, "key": width, "place": place})


def wins(second, first):
    """Whether the second of two contestants wins: of equal keys the first does."""
    return second.alive & (~first.alive | (second.key.as_signed() > first.key.as_signed()))
