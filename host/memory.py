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
    """

    ALIGN = 2   # beats; 64 bytes at the narrowest usual beat of 32

    def __init__(self, beats):
        self.beats = beats
        self._taken = []        # (first, end), sorted

    def _gaps(self):
        at = 0
        for first, end in self._taken:
            yield at, first
            at = -(-end // self.ALIGN) * self.ALIGN
        yield at, self.beats

    def largest(self):
        """Size of the largest free part."""
        return max(0, max(end - first for first, end in self._gaps()))

    def take(self, count):
        """Address of `count` free beats, now taken, or None."""
        for first, end in self._gaps():
            if end - first >= count:
                insort(self._taken, (first, first + count))
                return first
        return None

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
