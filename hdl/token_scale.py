"""The normaliser of a token: what its elements are multiplied by to become units of a codebook.

A token is divided by the mean magnitude of what is not an outlier, however large those are; it
takes no multiplier.  The mean of all is known earlier, but one element a thousand times the others
doubles it where there are 1024.  The factor is a number of 17 bits and one of four shifts, so that
the elements need one hardware multiplier and a small choice each.
"""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.beat import Flow
from hdl.parts import add, delay
from hdl.token_units import (
    FACTOR_BITS,
    GAIN_BITS,
    ROOT_BITS,
    SHIFT_STEP,
    SHIFTS,
    unit_shift,
)
from hdl.topk.leaves import LANES

__all__ = ["TokenScale", "factor"]

_QUOTIENT_BITS = GAIN_BITS + unit_shift(SHIFTS - 1) - 8     # the gain has 8 behind the point


def factor():
    """The normaliser: a factor and one of four shifts (:mod:`hdl.token_units`)."""
    return data.StructLayout({"factor": FACTOR_BITS, "shift": 2})


class TokenScale(wiring.Component):
    """Sums the magnitudes of a token, less those of outliers, and divides ``gain`` by the sum.

    A beat per cycle, then one cycle per bit of the quotient: 50.  ``factor`` is the quotient
    ``gain / 256 / sum`` with as many of 30 bits behind the point as leave it below 2**17, in
    steps of five; what is larger than all saturates.  Of a sum of zero the factor is the largest,
    and `zero` is set.

    Members
    -------
    start : In(1)
        A new token (strobe).
    gain : In(28)
        Of the layer; stays until `done`.
    i : In(Flow(8 elements))
        Beats; elements that there are not are 0.
    outlier : In(Flow(element))
        One that does not count; at least five cycles after the last beat.
    divide : In(1)
        Everything has come (strobe); at least four cycles after the last beat, two after the last
        outlier.
    root : In(27), divide_root : In(1)
        As `divide`, by this number instead of the sum (strobe).
    o : Out(factor), zero : Out(1)
    done : Out(1)
        `o` is there (strobe), and stays until the next.
    """

    SUM_BITS = 31       # of 16384 elements of -32768

    def __init__(self, *, width=16, family="portable"):
        self.width = width
        self.family = family
        super().__init__({
            "start": In(1), "gain": In(GAIN_BITS),
            "i": In(Flow(data.ArrayLayout(signed(width), LANES))),
            "outlier": In(Flow(signed(width))), "divide": In(1),
            "root": In(ROOT_BITS), "divide_root": In(1),
            "o": Out(factor()), "zero": Out(1), "done": Out(1)})

    def elaborate(self, platform):
        m = Module()
        width, family = self.width, self.family

        # |x| is x or its complement plus one: eight ones for the carry inputs of eight adders.
        signs = [x[-1] for x in self.i.payload]
        sums = []
        for a, b, c in zip(self.i.payload[::2], self.i.payload[1::2], signs[::2]):
            total = Signal(signed(width + 1), name="pair", reset_less=True)
            m.d.sync += total.eq(add(m, a, b, na=a[-1], nb=b[-1], cin=c, width=width + 1,
                                     family=family))
            sums.append(total)
        ones = [delay(m, s, 1, name="one") for s in signs[1::2]]
        while len(sums) > 1:
            merged = []
            for a, b in zip(sums[::2], sums[1::2]):
                merged.append(Signal(signed(len(a) + 1), name="sum", reset_less=True))
                m.d.sync += merged[-1].eq(add(m, a, b, cin=ones.pop(), width=len(a) + 1,
                                         family=family))
            ones = [delay(m, s, 1, name="one") for s in ones]
            sums = merged
        rounds = LANES.bit_length() - 1
        total = Signal(signed(self.SUM_BITS), reset_less=True)
        # An outlier is taken off as it is if it is negative, else its complement and one.
        less = delay(m, self.outlier.valid, 1, name="less", resettable=True)
        outlier = delay(m, self.outlier.payload, 1, name="outlier")
        positive = less & ~outlier[-1]
        summed = add(m, total, Mux(less, outlier, sums[0]), nb=positive,
                     cin=Mux(less, positive, ones.pop()), width=self.SUM_BITS, family=family)
        with m.If(delay(m, self.i.valid, rounds, name="valid", resettable=True) | less):
            m.d.sync += total.eq(summed)
        with m.If(self.start):
            m.d.sync += total.eq(0)
        with m.If(self.divide_root):
            m.d.sync += total.eq(self.root)
        divide = self.divide | delay(m, self.divide_root, 1, name="divide_root", resettable=True)

        # Division, a bit of the quotient per cycle, the highest first.
        dividend = Signal(GAIN_BITS, reset_less=True)
        rest = Signal(self.SUM_BITS, reset_less=True)
        quotient = Signal(FACTOR_BITS, reset_less=True)
        over = Signal(reset_less=True)          # it has more bits than that
        left = Signal(range(_QUOTIENT_BITS + 1))
        partial = Cat(dividend[-1], rest)
        trial = add(m, partial, total, nb=1, cin=1, width=self.SUM_BITS + 2, family=family)
        following = Cat(~trial[-1], quotient)
        m.d.sync += self.done.eq(left == 1)
        with m.If(left != 0):
            m.d.sync += [
                left.eq(left - 1), dividend.eq(dividend << 1),
                rest.eq(Mux(trial[-1], partial, trial)),
                quotient.eq(following), over.eq(over | following[-1])]
            # The finest shift with which it fits, or all ones.
            for shift in range(SHIFTS):
                with m.If((left == SHIFT_STEP * (SHIFTS - 1 - shift) + 1)
                          & ~(over | following[-1])):
                    m.d.sync += [self.o.factor.eq(following), self.o.shift.eq(shift)]
                    if shift == SHIFTS - 1:     # never 0, which has no inverse
                        m.d.sync += self.o.factor[0].eq(following[0] | ~following.any())
        with m.If(divide):
            m.d.sync += [dividend.eq(self.gain), rest.eq(0), quotient.eq(0), over.eq(0),
                         left.eq(_QUOTIENT_BITS), self.zero.eq(total == 0),
                         self.o.factor.eq(2**FACTOR_BITS - 1),
                         self.o.shift.eq(0)]
        return m
