"""Cycle counters of the stages, at two LUTs each.

A binary counter costs a LUT per bit and its bus another.  These are linear feedback shift
registers: the state after n events is x**n modulo a primitive polynomial, which the host turns back
into n.  They are read as one long shift register, a bit at a time.
"""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.parts import delay
from hdl.registers import COUNTER_BITS, COUNTER_TAPS

__all__ = ["Telemetry"]


class Telemetry(wiring.Component):
    """One counter per event; counts the cycles in which the event's bit is set.

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
        Move all counters by a bit towards `o`, a cycle later; counter 0 comes first, its lowest
        bit first.  The bits come back at the end: COUNTER_BITS * count shifts leave everything as
        it was.
    o : Out(1)
    """

    def __init__(self, count):
        self.count = count
        super().__init__({"clear": In(1), "enable": In(1), "events": In(count), "shift": In(1),
                          "o": Out(1)})

    def elaborate(self, platform):
        m = Module()
        counters = [Signal(COUNTER_BITS, init=1, name=f"counter_{i}") for i in range(self.count)]
        enable = delay(m, self.enable, 1, name="enable")
        clear = delay(m, self.clear, 1, name="clear")
        for i, counter in enumerate(counters):
            following = counters[(i + 1) % self.count]
            move = Signal(name=f"move_{i}")
            event = delay(m, self.events[i], 1, name=f"event_{i}")
            m.d.sync += move.eq((event & enable) | self.shift)
            shift = Signal(name=f"shift_{i}")
            m.d.sync += shift.eq(self.shift)
            top = Mux(shift, following[0], Cat(counter[t] for t in COUNTER_TAPS).xor())
            with m.If(clear):
                m.d.sync += counter.eq(1)
            with m.Elif(move):
                m.d.sync += counter.eq(Cat(counter[1:], top))
        m.d.comb += self.o.eq(counters[0][0])
        return m
