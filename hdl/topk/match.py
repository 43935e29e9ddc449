"""One match of a tournament."""

from amaranth.lib import data

from hdl.parts import add

__all__ = ["also_largest", "contestant", "less", "wins"]


def contestant(width, place):
    """Who plays: whether there is an element, its key (larger wins), `place` bits of where."""
    return data.StructLayout({"alive": 1, "key": width, "place": place})


def less(m, a, b, family):
    """Whether ``a < b``, both signed: the sign of their difference."""
    return add(m, a, b, nb=1, cin=1, width=max(len(a), len(b)) + 1, family=family)[-1]


def also_largest(m, least, element, family):
    """Whether one of the smallest elements of a stream was given out as one of the largest before.

    `least` is the last of those.  Only equal elements can be both, the first by index first.
    """
    return (less(m, least.value, element.value, family)
            | (element.value == least.value) & (element.index <= least.index))


def wins(m, second, first, family):
    """Whether the second of two contestants wins: of equal keys the first does."""
    larger = less(m, first.key.as_signed(), second.key.as_signed(), family)
    return second.alive & (~first.alive | larger)
