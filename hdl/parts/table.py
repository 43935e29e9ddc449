"""The RAM that holds one lane's table."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hdl.parts.ram import BlockRAM

__all__ = ["TableRAM"]


class TableRAM(wiring.Component):
    """One table, read once and written once per cycle, with the read registered.

    Parameters
    ----------
    width, depth : int
        Bits of an entry; entries, both banks counted.
    store : str
        ``"distributed"`` (LUT RAM; a read takes one cycle) or ``"block"`` (two cycles).
    family : str
        See :class:`~hdl.parts.ram.BlockRAM`.

    Members
    -------
    write_address, write_data, write_enable : In
    read_address : In
    read_data : Out(width)
    """

    def __init__(self, width, depth, *, store="distributed", family="portable"):
        self.width = width
        self.depth = depth
        self.store = store
        self.family = family
        address = ceil_log2(depth)
        super().__init__({
            "write_address": In(address), "write_data": In(width), "write_enable": In(1),
            "read_address": In(address), "read_data": Out(width)})

    @property
    def latency(self):
        """Cycles from address to data."""
        return 1 if self.store == "distributed" else BlockRAM.LATENCY

    def elaborate(self, platform):
        m = Module()
        if self.store == "block":
            m.submodules.ram = ram = BlockRAM(self.width, self.depth, family=self.family)
            m.d.comb += [
                ram.write_address.eq(self.write_address), ram.write_data.eq(self.write_data),
                ram.write_enable.eq(self.write_enable), ram.read_address.eq(self.read_address),
                self.read_data.eq(ram.read_data)]
            return m
        m.submodules.memory = memory = Memory(shape=self.width, depth=self.depth, init=[])
        write = memory.write_port()
        read = memory.read_port(domain="comb")
        output = Signal(self.width, reset_less=True)
        m.d.comb += [
            write.addr.eq(self.write_address), write.data.eq(self.write_data),
            write.en.eq(self.write_enable), read.addr.eq(self.read_address),
            self.read_data.eq(output)]
        m.d.sync += output.eq(read.data)
        return m
