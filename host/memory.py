"""Who has which part of a device's memory."""

from bisect import insort
from contextlib import contextmanager

from host.errors import CapacityError

__all__ = ["Allocator"]


class Allocator:
    """First-fit allocation of beats.

    Parameters
    ----------
    beats : int
        Size of the memory.
    align : int
        Parts start at multiples of so many beats.
    evict : callable
        Frees something that can be had again, or returns False: there is nothing.
    """

    def __init__(self, beats, align=1, evict=lambda: False):
        self.beats = beats
        self._align = align
        self._evict = evict
        self._taken = []        # (first, end), sorted

    def _gaps(self):
        at = 0
        for first, end in self._taken:
            yield at, first
            at = -(-end // self._align) * self._align
        yield at, self.beats

    def largest(self):
        """Size of the largest free part."""
        return max(0, max(end - first for first, end in self._gaps()))

    def room(self, wanted):
        """Size of the largest free part, after evicting what keeps it below `wanted`."""
        while self.largest() < wanted <= self.beats and self._evict():
            pass
        return self.largest()

    def take(self, count):
        """Address of `count` free beats, now taken, or None."""
        count = max(1, count)       # a part of nothing would share its address with another
        self.room(count)
        for first, end in self._gaps():
            if end - first >= count:
                self.claim(first, count)
                return first
        return None

    def claim(self, first, count):
        """Take the `count` beats from `first` on, which must be free."""
        insort(self._taken, (first, first + count))

    def give(self, address):
        """Free what starts at `address`."""
        self._taken = [part for part in self._taken if part[0] != address]

    @contextmanager
    def hold(self, count):
        """Take `count` beats for the length of a ``with`` block."""
        address = self.take(count)
        if address is None:
            raise CapacityError(f"{count} beats of device memory are needed; the largest free "
                                f"part has {self.largest()}")
        try:
            yield address
        finally:
            self.give(address)
