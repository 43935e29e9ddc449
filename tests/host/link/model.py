"""A device as the protocol describes it, in plain Python, behind a line without noise."""

import zlib
from collections import Counter

from cobs import cobs

from host.link import ByteStream

OK, BAD_FRAME, BAD_OP, BAD_COUNT, BAD_ADDRESS = range(5)
NAK = b"\xff\x01\x00\x00"


class DeviceModel(ByteStream):
    """The device and the line to it.

    The line is as fast as thought, and its clock runs only while the host waits in vain.

    Attributes
    ----------
    memory : dict
        Words by address.
    applied : Counter
        How often the word at an address was written.
    frames : list of bytes
        Decoded frames that came, damaged ones as None.
    dead : bool
        Nothing is answered.
    """

    def __init__(self, *, max_words=256, version=1, limit=1 << 64, baud=None):
        self.max_words = max_words
        self.version = version
        self.limit = limit
        self.baud = baud
        self.name = "model:"
        self.memory = {}
        self.applied = Counter()
        self.frames = []
        self.dead = False
        self.closed = False
        self.now = 0.0
        self.last_write = None          # seq, status
        self._in = bytearray()
        self._out = bytearray()

    def send(self, data):
        self._in += data
        while b"\0" in self._in:
            encoded, _, self._in = self._in.partition(b"\0")
            if encoded and not self.dead:
                response = self.answer(bytes(encoded))
                crc = zlib.crc32(response).to_bytes(4, "little")
                self._out += cobs.encode(response + crc) + b"\0"

    def receive(self, max_bytes, timeout):
        data = bytes(self._out[:max_bytes])
        del self._out[:max_bytes]
        if not data:
            self.now += timeout
        return data

    def close(self):
        self.closed = True

    def time(self):
        return self.now

    def answer(self, encoded):
        """The response to an encoded request, without CRC."""
        self.frames.append(None)
        try:
            frame = cobs.decode(encoded)
        except cobs.DecodeError:
            return NAK
        if not 16 <= len(frame) <= 16 + 4 * self.max_words:
            return NAK
        if zlib.crc32(frame[:-4]) != int.from_bytes(frame[-4:], "little"):
            return NAK
        seq, op = frame[0], frame[1]
        count = int.from_bytes(frame[2:4], "little")
        address = int.from_bytes(frame[4:12], "little")
        payload = frame[12:-4]
        if op <= 2 and len(payload) != (4 * count if op == 2 else 0):
            return NAK
        self.frames[-1] = frame

        status, words = OK, []
        if op == 0:
            self.last_write = None
            words = [self.version, self.max_words]
        elif op > 2:
            status = BAD_OP
        elif not 1 <= count <= self.max_words:
            status = BAD_COUNT
        elif address % 4:
            status = BAD_ADDRESS
        elif op == 1:
            span = [(address + 4 * i) % (1 << 64) for i in range(count)]
            if any(a >= self.limit for a in span):
                status = BAD_ADDRESS
            else:
                words = [self.memory.get(a, 0) for a in span]
        elif self.last_write is not None and self.last_write[0] == seq:
            status = self.last_write[1]
        else:
            for i in range(count):
                a = (address + 4 * i) % (1 << 64)
                if a >= self.limit:
                    status = BAD_ADDRESS
                    break
                self.memory[a] = int.from_bytes(payload[4 * i:4 * i + 4], "little")
                self.applied[a] += 1
            self.last_write = seq, status
        head = bytes([seq, status]) + len(words).to_bytes(2, "little")
        return head + b"".join(w.to_bytes(4, "little") for w in words)
