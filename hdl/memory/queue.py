"""A queue in block RAM whose output is the RAM's own register."""

from amaranth.hdl import Module, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hdl.parts import BlockRAM

__all__ = ["Queue"]


class Queue(wiring.Component):
    """First-in first-out queue; one element per cycle, out three cycles after it came in.

    Nothing combinational leads from one side to the other.

    Parameters
    ----------
    shape : ShapeLike
    depth : int
        Elements it holds, a power of two.
    family : str
        Form of the block RAM (see :class:`hdl.parts.BlockRAM`).

    Members
    -------
    i : In(stream.Signature(shape)), o : Out(stream.Signature(shape))
    level : Out(range(depth + 1))
        Elements in the queue; one that leaves counts for another cycle.
    """

    def __init__(self, shape, depth, *, family="portable"):
        self.depth = depth
        self.family = family
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape)),
                          "level": Out(range(depth + 1))})

    def elaborate(self, platform):
        m = Module()
        element = Value.cast(self.i.payload)
        m.submodules.ram = ram = BlockRAM(len(element), self.depth, family=self.family)
        write = Signal(range(2 * self.depth))
        read = Signal.like(write)
        put, left = Signal(), Signal()
        between = Signal()      # an element is in the RAM's first step
        fill, move = Signal(), Signal()
        m.d.comb += [
            self.i.ready.eq(~self.level[-1]),
            put.eq(self.i.valid & self.i.ready),
            move.eq(~self.o.valid | self.o.ready), fill.eq(~between | move),
            ram.write_address.eq(write), ram.write_data.eq(element), ram.write_enable.eq(put),
            ram.read_address.eq(read), ram.read_enable.eq(fill), ram.output_enable.eq(move),
            Value.cast(self.o.payload).eq(ram.read_data),
        ]
        m.d.sync += left.eq(self.o.valid & self.o.ready)
        with m.If(put):
            m.d.sync += write.eq(write + 1)
        with m.If(put & ~left):
            m.d.sync += self.level.eq(self.level + 1)
        with m.If(left & ~put):
            m.d.sync += self.level.eq(self.level - 1)
        with m.If(fill):
            m.d.sync += between.eq(read != write)
            with m.If(read != write):
                m.d.sync += read.eq(read + 1)
        with m.If(move):
            m.d.sync += self.o.valid.eq(between)
        return m
