"""Cycle counters of the stages."""

from amaranth.hdl import Module
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Telemetry"]


class Telemetry(wiring.Component):
    """One 32-bit counter per event; counts the cycles in which the event's bit is set.

    Members
    -------
    clear : In(1)
    events : In(count)
    counts : Out(array of 32 bits)
    """

    def __init__(self, count):
        self.count = count
        super().__init__({"clear": In(1), "events": In(count),
                          "counts": Out(data.ArrayLayout(32, count))})

    def elaborate(self, platform):
        m = Module()
        for i in range(self.count):
            with m.If(self.clear):
                m.d.sync += self.counts[i].eq(0)
            with m.Elif(self.events[i]):
                m.d.sync += self.counts[i].eq(self.counts[i] + 1)
        return m
