"""COBS: framing of bytes by a zero delimiter (Cheshire and Baker, 1999).

An encoded frame is a row of blocks; a block is a code byte `n` and `n - 1` bytes that are not
zero, and stands for these bytes and a zero after them.  The zero is absent from blocks with code
255 and from the last block.  So encoded bytes are never zero, and a zero ends the frame.
"""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Decoder", "Encoder", "FrameElement"]


class FrameElement(data.Struct):
    """One element of a frame stream: a byte, or the mark that ends the frame.

    The mark is an element of its own, so that empty frames exist and no byte waits for the next.
    """

    data: 8     # undefined if `end`
    end: 1      # the frame ended before this element
    error: 1    # with `end`: the encoding was broken; the frame's bytes are meaningless


class Decoder(wiring.Component):
    """Takes COBS off a byte stream.

    Runs of delimiters are skipped.  A delimiter inside a block ends the frame with `error`; the
    next byte begins a new frame.

    Latency and back-pressure: one cycle, at most one element per byte.  `i` waits while `o` is
    valid, so that a byte takes two cycles; no combinational path leads through.

    Members
    -------
    i : In(stream.Signature(8))
    o : Out(stream.Signature(FrameElement))
    """

    i: In(stream.Signature(8))
    o: Out(stream.Signature(FrameElement))

    def elaborate(self, platform):
        m = Module()
        left = Signal(8)        # bytes left in the block, if it is unfinished
        unfinished = Signal()
        inside = Signal()       # a frame has begun
        zero_due = Signal()     # the block stands for a zero, unless it proves to be the last

        delimiter = Signal()
        code = Signal()
        before = Signal(8)
        m.d.comb += [
            delimiter.eq(self.i.payload == 0),
            code.eq(~delimiter & ~unfinished),
            before.eq(Mux(code, self.i.payload, left)),
            self.i.ready.eq(~self.o.valid),
        ]
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [
                self.o.p.data.eq(Mux(code, 0, self.i.payload)),
                self.o.p.end.eq(delimiter),
                self.o.p.error.eq(unfinished),
                self.o.valid.eq(Mux(delimiter, inside, ~code | zero_due)),
                left.eq(before - 1),
                unfinished.eq(~delimiter & (before != 1)),
                inside.eq(~delimiter),
            ]
            with m.If(code):
                m.d.sync += zero_due.eq(self.i.payload != 0xFF)
            with m.Elif(delimiter):
                m.d.sync += zero_due.eq(0)
        return m


class Encoder(wiring.Component):
    """Puts COBS on a frame stream, as writes into a memory.

    A code byte precedes its block but is known only after it.  Instead of holding back a block,
    the encoder leaves a gap and writes the code there later: the frame then lies in the memory
    from address 0 to the delimiter, which is its only zero.

    Latency and back-pressure: combinational, one write per element, one more per 254 bytes
    without a zero, and one for the delimiter; each waits for `o.ready`.  The encoded frame is one
    byte per started 254 bytes, and the delimiter, longer (see `hdl.protocol.encoded_bytes`).

    Parameters
    ----------
    address_bits : int
        Width of the memory's address.

    Members
    -------
    i : In(stream.Signature(FrameElement))
        `error` is ignored.
    restart : In(1)
        Drops an unfinished frame: the next element begins another.  Not while `o.valid`.
    o : Out(stream.Signature({address, data, last}))
        Writes of a byte; `last` marks the delimiter, after which the frame is complete.
    """

    def __init__(self, address_bits):
        self.address_bits = address_bits
        super().__init__({
            "i": In(stream.Signature(FrameElement)),
            "restart": In(1),
            "o": Out(stream.Signature(data.StructLayout(
                {"address": address_bits, "data": 8, "last": 1}))),
        })

    def elaborate(self, platform):
        m = Module()
        gap = Signal(self.address_bits)             # where the block's code goes
        at = Signal(self.address_bits, init=1)      # where the next byte goes
        code = Signal(8, init=1)
        full = Signal()                             # the code is 255
        ended = Signal()                            # only the delimiter is missing

        closes = Signal()
        m.d.comb += [
            closes.eq(full | self.i.p.end | (self.i.p.data == 0)),
            self.o.p.last.eq(ended),
            self.o.p.address.eq(Mux(closes | ended, gap, at)),
            self.o.p.data.eq(Mux(ended, 0, Mux(closes, code, self.i.p.data))),
            self.o.valid.eq(self.i.valid | ended),
            # A full block is closed first, unless the frame ends with it.
            self.i.ready.eq(self.o.ready & ~ended & (~full | self.i.p.end)),
        ]
        with m.If(self.restart | self.o.valid & self.o.ready & ended):
            m.d.sync += [gap.eq(0), at.eq(1), code.eq(1), full.eq(0), ended.eq(0)]
        with m.Elif(self.o.valid & self.o.ready):
            m.d.sync += [at.eq(at + 1), code.eq(code + 1), full.eq(code == 0xFE)]
            with m.If(closes):
                m.d.sync += [gap.eq(at), code.eq(1), full.eq(0), ended.eq(self.i.p.end)]
        return m
