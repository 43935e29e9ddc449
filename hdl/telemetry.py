"""Cycle counters of the stages, at two LUTs each.

A binary counter of 32 bits costs 32 LUTs and its bus another 32.  These are linear feedback shift
registers: the state after n events is x**n modulo a primitive polynomial, which the host turns back
into n.  They are read as one long shift register, a bit at a time.
"""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.registers import COUNTER_TAPS

__all__ = ["Telemetry"]


class Telemetry(wiring.Component):
    """One 32-bit counter per event; counts the cycles in which the event's bit is set.

    Parameters
    ----------
    count : int

    Members
    -------
    clear : In(1)
        Set every counter to zero events (state 1).
    enable : In(1)
    events : In(count)
    shift : In(1)
        Move all counters by a bit towards `o`; counter 0 comes first, its lowest bit first.  The
        bits come back at the end: 32 * count shifts leave everything as it was.
    o : Out(1)
    """

    def __init__(self, count):
        self.count = count
        super().__init__({"clear": In(1), "enable": In(1), "events": In(count), "shift": In(1),
                          "o": Out(1)})

    def elaborate(self, platform):
        m = Module()
        counters = [Signal(32, init=1, name=f"counter_{i}") for i in range(self.count)]
        for i, counter in enumerate(counters):
            # Multiplication by x**-1 in Galois form moves down, as the readout does.
            following = counters[(i + 1) % self.count]
            event = Signal(name=f"event_{i}")
            m.d.sync += event.eq(self.events[i] & self.enable)
            feedback = Cat(counter[t] for t in COUNTER_TAPS).xor()
            top = Signal(name=f"top_{i}")
            with m.If(self.shift):
                m.d.comb += top.eq(following[0])
            with m.Else():
                m.d.comb += top.eq(feedback)
            with m.If(self.clear):
                m.d.sync += counter.eq(1)
            with m.Elif(event | self.shift):
                m.d.sync += counter.eq(Cat(counter[1:], top))
        m.d.comb += self.o.eq(counters[0][0])
        return m
