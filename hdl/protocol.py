"""The link protocol between host and device: one request, one response, nothing applied twice.

A frame is encoded with COBS (Consistent Overhead Byte Stuffing) and ended by a zero byte; empty
frames (runs of zero bytes) mean nothing.  Its decoded content is little-endian:

========  ==================================================================================
request   seq u8, op u8, count u16 (words), address u64 (bytes), payload (WRITE: words), crc u32
response  seq u8, status u8, count u16 (words of payload), payload, crc u32
========  ==================================================================================

A word has 32 bits, an address is a multiple of 4, consecutive words have consecutive addresses.
The CRC is that of zlib, over everything before it.

Rules
-----
* Stop and wait: the host has one request outstanding and repeats it, with the same seq, until the
  response with that seq arrives.  It ignores responses with another seq.
* A frame whose CRC or length is wrong changes nothing and is answered by a NAK: status BAD_FRAME,
  seq `NAK_SEQ`.
* The device remembers seq and status of the last WRITE that it executed, and answers a WRITE of
  that seq from memory.  So the host never gives a new request the seq of its last WRITE.
* HELLO starts a session: the device forgets that WRITE.  Its count and address are ignored; the
  response's payload is the words of `HELLO`: protocol version, most payload words of a frame.
* READ has no side effects and is executed again when repeated.
* A WRITE stops at the first word that the bus refuses; the words before it are applied.  The
  response to a failed request has no payload.
"""

from enum import IntEnum
from struct import Struct

__all__ = [
    "BAUDS", "CRC", "FALLBACK_EVENTS", "HELLO", "MAX_WORDS", "NAK_SEQ", "REQUEST", "RESPONSE",
    "VERSION", "WORD_BYTES", "Op", "Status", "encoded_bytes",
]

VERSION = 1
WORD_BYTES = 4
MAX_WORDS = 256             # of a frame's payload, by default: 1 KiB
NAK_SEQ = 0xFF              # no request carries it

REQUEST = Struct("<BBHQ")   # seq, op, count, address
RESPONSE = Struct("<BBH")   # seq, status, count
CRC = Struct("<I")
HELLO = Struct("<II")       # protocol version, most payload words

BAUDS = (1_000_000, 115_200)    # what a serial device tries, in this order
FALLBACK_EVENTS = 16            # framing errors and bad frames after which it tries the next


class Op(IntEnum):
    """What a request asks for."""

    HELLO = 0
    READ = 1
    WRITE = 2


class Status(IntEnum):
    """How a request ended.  Values from BAD_ADDRESS up come from the device's bus."""

    OK = 0
    BAD_FRAME = 1
    BAD_OP = 2
    BAD_COUNT = 3
    BAD_ADDRESS = 4
    BUS_ERROR = 5


def encoded_bytes(content):
    """Most bytes that `content` bytes take on the line: with COBS overhead and delimiter."""
    return content + content // 254 + 2
