"""A line that damages what passes, for tests."""

import random
from collections import Counter

from host.link import ByteStream


class NoisyStream(ByteStream):
    """Wraps a line and damages frames in both directions.

    Parameters
    ----------
    inner : ByteStream
    rate : float
        Probability of a fault in a frame; of a second one in the same frame, and so on.
    seed : int

    Attributes
    ----------
    faults : Counter
        Faults injected, by (direction, kind).
    """

    KINDS = ("flip", "drop", "duplicate", "insert", "truncate", "drop frame", "duplicate frame")

    def __init__(self, inner, rate, seed):
        self.inner = inner
        self.rate = rate
        self.faults = Counter()
        self.name = inner.name
        self.baud = inner.baud
        self._random = random.Random(seed)
        self._part = b""        # of a frame to the host
        self._ready = b""       # damaged frames to the host

    def send(self, data):
        self.inner.send(self._damage(data, "to device"))

    def receive(self, max_bytes, timeout):
        deadline = self.time() + timeout
        while not self._ready:
            data = self.inner.receive(max_bytes, max(0, deadline - self.time()))
            if not data:
                break
            whole, delimiter, self._part = (self._part + data).rpartition(b"\0")
            self._ready += self._damage(whole + delimiter, "to host")
        data, self._ready = self._ready[:max_bytes], self._ready[max_bytes:]
        return data

    def close(self):
        self.inner.close()

    def time(self):
        return self.inner.time()

    def _damage(self, data, direction):
        """Damage each of the frames (with its delimiter) in `data`."""
        result = b""
        while data:
            end = data.find(0) + 1 or len(data)
            frame, data = bytearray(data[:end]), data[end:]
            while frame and self._random.random() < self.rate:
                kind = self._random.choice(self.KINDS)
                self.faults[direction, kind] += 1
                frame = self._fault(frame, kind)
            result += frame
        return bytes(result)

    def _fault(self, frame, kind):
        at = self._random.randrange(len(frame))
        match kind:
            case "flip":
                frame[at] ^= 1 << self._random.randrange(8)
            case "drop":
                del frame[at]
            case "duplicate":
                frame.insert(at, frame[at])
            case "insert":
                frame.insert(at, self._random.randrange(256))
            case "truncate":
                del frame[at:]
            case "drop frame":
                frame.clear()
            case "duplicate frame":
                return frame * 2
        return frame
