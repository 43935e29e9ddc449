"""The two seams of a link: memory access to a device, and the bytes beneath it."""

import operator
import time
from abc import ABC, abstractmethod

from hdl.protocol import WORD_BYTES
from host.errors import ArgumentError, ArgumentTypeError

__all__ = ["ByteStream", "Transport"]

FLUSH_BYTES = 4096


class Transport(ABC):
    """Reads and writes the address space of a device.

    Addresses are byte addresses of 64 bits; addresses and sizes are multiples of 4.  A transport
    is a context manager that closes itself, and serves one thread at a time.

    Attributes
    ----------
    name : str
        What messages call the device, usually its URL.
    fresh : bool
        Whether the device's memory can hold nothing from before.
    """

    name = "device"
    fresh = False

    @abstractmethod
    def read(self, address, nbytes):
        """Return `nbytes` bytes from `address` on.

        Parameters
        ----------
        address, nbytes : int

        Returns
        -------
        bytes
        """

    @abstractmethod
    def write(self, address, data):
        """Write `data` from `address` on, in the order of addresses.

        Parameters
        ----------
        address : int
        data : bytes-like
        """

    @abstractmethod
    def close(self):
        """Release the device; closing twice is harmless."""

    @staticmethod
    def check_span(address, nbytes):
        """Check that `nbytes` bytes from `address` on are whole words of the address space.

        Implementations call it before anything is sent.

        Returns
        -------
        (int, int)
            The two as Python integers, which don't overflow.

        Raises
        ------
        ArgumentTypeError
            One of the two is not an integer.
        ArgumentError
            One of the two is negative or no multiple of 4, or the end is above ``2**64``.
        """
        try:
            address, nbytes = operator.index(address), operator.index(nbytes)
        except TypeError:
            raise ArgumentTypeError("address and nbytes must be integers, not "
                                    f"{address!r} and {nbytes!r}") from None
        for name, value in (("address", address), ("nbytes", nbytes)):
            if value < 0 or value % WORD_BYTES:
                raise ArgumentError(f"{name} must be a multiple of {WORD_BYTES} and not negative, "
                                    f"not {value:#x}")
        if address + nbytes > 1 << 64:
            raise ArgumentError(f"{nbytes} bytes from {address:#x} on pass the end of the 64-bit "
                                "address space")
        return address, nbytes

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


class ByteStream(ABC):
    """A full-duplex line of bytes that may lose and change them.

    Attributes
    ----------
    name : str
        What messages call the line.
    baud : int or None
        Bits per second at ten bits per byte, for timeouts; None if bytes take no time.
    """

    name = "line"
    baud = None

    @abstractmethod
    def send(self, data):
        """Send `data`; may return before it is on the line.

        Raises
        ------
        LinkError
            The line is gone.
        """

    @abstractmethod
    def receive(self, max_bytes, timeout):
        """Return what has arrived, at most `max_bytes`; wait up to `timeout` seconds for a byte.

        Returns
        -------
        bytes
            Empty after the timeout.

        Raises
        ------
        LinkError
            The line is gone.
        """

    @abstractmethod
    def close(self):
        """Release the line; closing twice is harmless."""

    def set_baud(self, baud):
        """Change the baud rate; lines without one only remember it."""
        self.baud = baud

    def flush_input(self):
        """Drop what has arrived."""
        while len(self.receive(FLUSH_BYTES, 0)) == FLUSH_BYTES:
            pass

    def time(self):
        """Seconds on the clock that `receive` waits by; a simulated line has its own."""
        return time.monotonic()
