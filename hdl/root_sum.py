"""The root of a token's sum of squares: what RMSNorm divides by, but for the root of its length.

Digit by digit, a bit of the root per cycle, as a division is done.
"""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.beat import Flow
from hdl.parts import Multiplier, add, delay
from hdl.token_units import MEANING_BITS, ROOT_BITS, ROOT_SUM_BITS

__all__ = ["RootSum"]


class RootSum(wiring.Component):
    """``floor(sqrt(sum(x**2)) * 2**6)``, values of 14 bits and a sign.

    All lanes each cycle, a multiplier for each; `done` comes 33 cycles after `last`.  No
    back-pressure.

    Parameters
    ----------
    lanes : int
    family : str

    Members
    -------
    start : In(1)
        A new token (strobe).
    i : In(Flow(lanes values))
    last : In(1)
        With the token's last values.
    o : Out(27)
        The root, when `done`; stays until the next.
    done : Out(1)
        Strobe.
    """

    def __init__(self, lanes, *, family="portable"):
        self.lanes = lanes
        self.family = family
        value = signed(MEANING_BITS + 1)
        super().__init__({
            "start": In(1), "i": In(Flow(data.ArrayLayout(value, lanes))), "last": In(1),
            "o": Out(ROOT_BITS), "done": Out(1)})

    def elaborate(self, platform):
        m = Module()
        family = self.family
        squares = []
        for n, value in enumerate(self.i.payload):
            m.submodules[f"square_{n}"] = square = Multiplier(len(value), len(value), family)
            m.d.comb += [square.a.eq(value), square.b.eq(value)]
            squares.append(square.o)
        valid = delay(m, self.i.valid, Multiplier.LATENCY, name="valid", resettable=True)
        pair = Signal(ROOT_SUM_BITS, reset_less=True)
        m.d.sync += pair.eq(sum(squares))
        total = Signal(ROOT_SUM_BITS, reset_less=True)
        with m.If(delay(m, valid, 1, name="summed", resettable=True)):
            m.d.sync += total.eq(add(m, total, pair, width=ROOT_SUM_BITS, family=family))
        with m.If(self.start):
            m.d.sync += total.eq(0)

        # Two bits of the sum, then of zeros behind the point, for each bit of the root.
        starts = delay(m, self.i.valid & self.last, Multiplier.LATENCY + 2, name="starts",
                       resettable=True)
        radicand = Signal(ROOT_SUM_BITS, reset_less=True)
        rest = Signal(ROOT_BITS + 2, reset_less=True)
        left = Signal(range(ROOT_BITS + 1))
        partial = Cat(radicand[-2:], rest)
        trial = add(m, partial, Cat(1, 0, self.o), nb=1, cin=1, width=ROOT_BITS + 4,
                    family=family)
        m.d.sync += self.done.eq(left == 1)
        with m.If(left != 0):
            m.d.sync += [
                left.eq(left - 1), radicand.eq(radicand << 2),
                rest.eq(Mux(trial[-1], partial, trial)), self.o.eq(Cat(~trial[-1], self.o))]
        with m.If(starts):
            m.d.sync += [radicand.eq(total), rest.eq(0), self.o.eq(0), left.eq(ROOT_BITS)]
        return m
