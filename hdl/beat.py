"""Payloads of the streams between memory and the stages."""

from enum import IntEnum

from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hdl.layout import bank_fields, side_fields

__all__ = [
    "ROOM_READS",
    "ROOM_WRITES",
    "Client",
    "Flags",
    "Flow",
    "Kind",
    "MemorySignature",
    "Tag",
    "bank_sides",
    "read_request",
    "read_response",
    "write_request",
]



ROOM_READS, ROOM_WRITES = 8, 32
"""Requests and writes that a memory still takes when it says that it has no room."""


class Client(IntEnum):
    """Who asked for a beat."""

    FETCH = 0
    LOAD = 1
    GATHER = 2
    LINK = 3


class Kind(IntEnum):
    """What a gathered beat is."""

    CODES = 0
    PARAMETERS = 1
    SUM = 2


class Flow(wiring.Signature):
    """A stream that the receiver always takes: `valid` and `payload`, no `ready`."""

    def __init__(self, shape):
        super().__init__({"valid": Out(1), "payload": Out(shape)})


class Flags(data.Struct):
    """What the array does with a beat; travels with it."""

    first_plane: 1   # of a column
    last_plane: 1    # of a column
    pass_start: 1    # first beat of a K tile
    pass_end: 1      # last beat of a K tile
    first: 1         # K tile that overwrites the accumulators
    last: 1          # K tile whose sums leave as results
    high: 1          # sums count 256 times
    bank: 1          # table bank
    kind: 2


class Tag(data.Struct):
    """What the memory returns with a beat as it came with the request."""

    client: 2
    flags: Flags


def read_request(config):
    """Payload of a read request: one beat."""
    return data.StructLayout({"address": config.address_bits, "tag": Tag})


def read_response(config):
    """Payload of a read response; responses come in the order of the requests."""
    return data.StructLayout({"data": config.code_bits, "side": config.side_bits, "tag": Tag})


def write_request(config):
    """Payload of a write: an enable per 32-bit word of the beat; the data repeats along it."""
    return data.StructLayout({"address": config.address_bits, "data": config.write_bits,
                              "mask": config.beat_bytes // 4})


class MemorySignature(wiring.Signature):
    """The internal memory port, seen from the engine.

    Members
    -------
    request : Out(Flow(read_request))
        One beat per transfer.  Always taken; while `read_room` is set the memory takes eight more.
    response : In(stream of read_response)
        In the order of the requests, any number of cycles later.
    write : Out(Flow of write_request)
        Always taken; while `write_room` is set the memory takes 32 more.
    side_write : Out(Flow)
        One 32-bit word of a beat's sideband (one bit of the mask is set); only the link writes it,
        never together with `write`, and `write_room` counts it too.
    read_room, write_room : In(1)
        See `request` and `write`.
    idle : In(1)
        No beat is owed and no write is under way of what was asked in earlier cycles; may come
        late, never early.
    fault : In(1)
        A read or write addressed a beat that does not exist, or failed in the memory (strobe); a
        read is answered anyhow.
    """

    def __init__(self, config):
        super().__init__({
            "request": Out(Flow(read_request(config))),
            "response": In(stream.Signature(read_response(config))),
            "write": Out(Flow(write_request(config))),
            "side_write": Out(Flow(data.StructLayout({
                "address": config.address_bits, "data": 32, "mask": config.side_words}))),
            "read_room": In(1), "write_room": In(1), "idle": In(1), "fault": In(1),
        })


def bank_sides(config, side, column):
    """(part of scale and exponent, high weights) of each bank of a column, as slices of the
    sideband."""
    banks, lanes = bank_fields(config)
    found = []
    for t in range(config.scale_points):
        bank = side[banks[column, t]:banks[column, t] + config.bank_bits]
        found.append((bank[:config.part_bits], bank[lanes[0][0]:]))
    return found


def side_slices(config, side, column):
    """(scale, zero sign) of each scale point of a column, as slices of the sideband."""
    fields = side_fields(config)
    return [(side[fields[column, t][0]:fields[column, t][1]], side[fields[column, t][1]])
            for t in range(config.scale_points)]
