"""The host's end of the link protocol (see :mod:`hdl.protocol`) over a line of bytes."""

import random
import zlib
from dataclasses import dataclass

from cobs import cobs

from hdl.protocol import (
    CRC,
    HELLO,
    NAK_SEQ,
    REQUEST,
    RESPONSE,
    VERSION,
    WORD_BYTES,
    Op,
    Status,
    encoded_bytes,
)
from host.errors import ArgumentError, ArgumentTypeError, DeviceError, LinkError, LinkTimeout
from host.link.transport import Transport

__all__ = ["Client", "Statistics"]

BITS_PER_BYTE = 10
RECEIVE_BYTES = 4096
RESYNC = bytes(4)       # delimiters that end whatever the device has half received


@dataclass
class Statistics:
    """What went over the line.

    Attributes
    ----------
    frames : int
        Requests sent, repeats included.
    retries : int
        Repeats among them.
    naks, timeouts, damaged : int
        Why: the device received a damaged frame, nothing came, a damaged response came.
    stale : int
        Responses to earlier requests, ignored.
    sessions : int
        HELLOs that were answered.
    bytes_sent, bytes_received : int
        On the line, with framing.
    """

    frames: int = 0
    retries: int = 0
    naks: int = 0
    timeouts: int = 0
    damaged: int = 0
    stale: int = 0
    sessions: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


class Client(Transport):
    """A device behind a line of bytes that may lose, change and repeat them.

    Every request is repeated until it is answered, up to `retries` times; a WRITE is applied once
    however often it is repeated.  One try lasts `timeout` plus the time that the longest request
    and response take at the line's baud rate; a damaged response or a NAK ends it early.  So an
    operation of one frame on a dead line raises within ::

        (retries + 1) * (timeout + 10 * (request + response) / baud)

    seconds, see `time_limit`: 2.0 s for the HELLO of a new connection with the defaults (a request
    without a session sends HELLO first).  The first frame that fails ends a longer transfer.

    After a :class:`~host.errors.LinkError` the outcome of the failed request is unknown; the next
    request starts a new session (delimiters, flushed input, HELLO) by itself.

    Parameters
    ----------
    stream : ByteStream
        Closed together with the client.
    retries : int
        Repeats of a request.
    timeout : float
        Seconds without a response, line time excluded, after which a request is repeated.
    name : str or None
        What messages call the device; None: the stream's name.

    Attributes
    ----------
    statistics : Statistics
    max_words : int
        Most payload words of a frame, 0 before the first session.
    """

    def __init__(self, stream, *, retries=7, timeout=0.25, name=None):
        if retries < 0:
            raise ArgumentError(f"retries must not be negative, not {retries!r}")
        if not timeout > 0:
            raise ArgumentError(f"timeout must be positive, not {timeout!r}")
        self.retries = retries
        self.timeout = timeout
        self.name = stream.name if name is None else name
        self.statistics = Statistics()
        self.max_words: int = 0     # HELLO tells
        self._stream = stream
        self._synchronised = False
        # A response to the previous process must not pass for ours.
        self._seq = random.randrange(NAK_SEQ)
        self._write_seq = None
        self._received = bytearray()

    def connect(self, *, retries=None):
        """Start a session; `read` and `write` do it when there is none.

        Parameters
        ----------
        retries : int or None
            Instead of the client's.

        Raises
        ------
        LinkTimeout, LinkError
            No answer, or only damaged ones.
        DeviceError
            The device speaks another version of the protocol.
        """
        self._synchronised = False
        self._stream.send(RESYNC)
        self._stream.flush_input()
        self._received.clear()
        status, payload = self._exchange(Op.HELLO, 0, 0, b"", HELLO.size // WORD_BYTES,
                                         self.retries if retries is None else retries)
        if status != Status.OK:
            raise self._refusal("HELLO", status)
        version, max_words = HELLO.unpack(payload)
        if version != VERSION:
            raise DeviceError(f"{self.name} speaks version {version} of the link protocol, this "
                              f"host version {VERSION}: rebuild the bitstream or update the host")
        self.max_words = max_words
        self.statistics.sessions += 1
        self._synchronised = True

    def read(self, address, nbytes):
        """See :meth:`Transport.read`; raises as :meth:`write` does."""
        address, nbytes = self.check_span(address, nbytes)
        return b"".join(self._request(Op.READ, at, count, b"")
                        for at, count in self._chunks(address, nbytes))

    def write(self, address, data):
        """See :meth:`Transport.write`.

        Raises
        ------
        LinkTimeout, LinkError
            The line is dead, or too noisy.
        ArgumentError
            The device has no such address.
        DeviceError
            The device refused for another reason.
        """
        try:
            data = memoryview(data).cast("B")
        except TypeError:
            raise ArgumentTypeError("data must be bytes or a contiguous buffer, not "
                                    f"{type(data).__name__}") from None
        address, nbytes = self.check_span(address, len(data))
        for at, count in self._chunks(address, nbytes):
            start = at - address
            self._request(Op.WRITE, at, count, data[start:start + count * WORD_BYTES])

    def close(self):
        """See :meth:`Transport.close`."""
        self._stream.close()

    def time_limit(self, words=None):
        """Seconds after which an operation of one frame raises at the latest.

        Parameters
        ----------
        words : int or None
            Payload of the frame; None: HELLO.
        """
        nbytes = HELLO.size if words is None else words * WORD_BYTES
        return (self.retries + 1) * self._try_seconds(nbytes)

    def _try_seconds(self, payload_bytes):
        """How long one try lasts if request or response carries `payload_bytes` bytes."""
        if self._stream.baud is None:
            return self.timeout
        line_bytes = (len(RESYNC) + encoded_bytes(REQUEST.size + payload_bytes + CRC.size)
                      + encoded_bytes(RESPONSE.size + payload_bytes + CRC.size))
        return self.timeout + BITS_PER_BYTE * line_bytes / self._stream.baud

    def _chunks(self, address, nbytes):
        """Yield (address, words) of each frame."""
        if nbytes and not self._synchronised:
            self.connect()
        done = 0
        while done < nbytes:
            count = min(self.max_words, (nbytes - done) // WORD_BYTES)
            yield address + done, count
            done += count * WORD_BYTES

    def _request(self, op, address, count, payload):
        """READ or WRITE one frame; return the data read."""
        # Until the outcome is known, whatever interrupts the exchange.
        self._synchronised = False
        status, data = self._exchange(op, address, count, payload,
                                      count if op is Op.READ else 0, self.retries)
        self._synchronised = True
        if status != Status.OK:
            nbytes = count * WORD_BYTES
            raise self._refusal(f"{op.name} of {nbytes} bytes at {address:#x}", status)
        return data

    def _exchange(self, op, address, count, payload, response_words, retries):
        """Repeat a request until it is answered; return status and payload of the response."""
        seq = self._next_seq(op)
        content = REQUEST.pack(seq, op, count, address) + bytes(payload)
        frame = cobs.encode(content + CRC.pack(zlib.crc32(content))) + b"\0"
        seconds = self._try_seconds(max(len(payload), response_words * WORD_BYTES))
        for attempt in range(retries + 1):
            if attempt:
                self.statistics.retries += 1
            self.statistics.frames += 1
            self.statistics.bytes_sent += len(frame)
            deadline = self._stream.time() + seconds
            self._stream.send(frame)
            status, data = self._response(seq, response_words, deadline)
            if status not in (None, Status.BAD_FRAME):
                return status, data
        tries = f"to {op.name} in {retries + 1} tries of {seconds:.2f} s"
        if status is None:
            raise LinkTimeout(f"{self.name}: no answer {tries}: check power, cable, baud rate and "
                              "that the bitstream is loaded")
        raise LinkError(f"{self.name}: no undamaged answer {tries}: the line is too noisy for its "
                        "baud rate")

    def _response(self, seq, words, deadline):
        """Await the response to request `seq`.

        Returns
        -------
        (int or None, bytes)
            Status and payload.  The status is BAD_FRAME after a NAK or a damaged response, both
            of which ask for a repeat, and None if nothing came.
        """
        while True:
            frame = self._frame(deadline)
            if frame is None:
                self.statistics.timeouts += 1
                return None, b""
            response = self._decode(frame)
            if response is None:
                self.statistics.damaged += 1
                return Status.BAD_FRAME, b""
            their_seq, status, payload = response
            if status == Status.BAD_FRAME:
                self.statistics.naks += 1
                return status, b""
            if their_seq == seq and (status != Status.OK or len(payload) == words * WORD_BYTES):
                return status, payload
            self.statistics.stale += 1

    def _frame(self, deadline):
        """Receive an encoded frame; None if there is none until the deadline."""
        while True:
            encoded, delimiter, rest = self._received.partition(b"\0")
            if delimiter:
                self._received = rest
                if encoded:
                    return encoded
                continue
            remaining = deadline - self._stream.time()
            if remaining <= 0:
                return None
            data = self._stream.receive(RECEIVE_BYTES, remaining)
            self.statistics.bytes_received += len(data)
            self._received += data

    @staticmethod
    def _decode(encoded):
        """Return (seq, status, payload) of a response, None if it is damaged."""
        try:
            frame = cobs.decode(encoded)
        except cobs.DecodeError:
            return None
        if len(frame) < RESPONSE.size + CRC.size:
            return None
        content, crc = frame[:-CRC.size], frame[-CRC.size:]
        seq, status, count = RESPONSE.unpack_from(content)
        payload = content[RESPONSE.size:]
        if CRC.unpack(crc)[0] != zlib.crc32(content) or len(payload) != count * WORD_BYTES:
            return None
        return seq, status, payload

    def _refusal(self, what, status):
        """The exception that says what the device's status means."""
        if status == Status.BAD_ADDRESS:
            return ArgumentError(f"{self.name} has no such address: {what}")
        if status == Status.BUS_ERROR:
            return DeviceError(f"{self.name}: the device's bus failed in {what}")
        if status in (Status.BAD_OP, Status.BAD_COUNT):
            return DeviceError(f"{self.name} refused {what} ({Status(status).name}): host and "
                               "bitstream don't fit together")
        return DeviceError(f"{self.name} refused {what} with the unknown status {status:#04x}")

    def _next_seq(self, op):
        """A seq for a new request: never that of the last WRITE, which the device remembers."""
        self._seq = (self._seq + 1) % NAK_SEQ
        if self._seq == self._write_seq:
            self._seq = (self._seq + 1) % NAK_SEQ
        if op is Op.WRITE:
            self._write_seq = self._seq
        return self._seq
