"""Re-quantisation of accumulators to int8 for the next layer.

``y = clip(rint((acc >> (base + 6 * shift)) * multiplier / 2**21), -127, 127)``: a coarse shift
leaves 18 bits for one hardware multiplier, the multiplier does the rest.  Ties go to even.  What
the coarse shift drops is less than 1/16 of a step of the result: a multiplier has 12 to 17
significant bits, so a step is at least 16 units of the shifted number.  Eight shifts of four bits
would drop less than 1/64 and cost 40 cells more.  The bias is in the accumulator already.
"""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.beat import Flow
from hdl.layout import COARSE_STEP, FINE_SHIFT, KEPT_BITS, PARAMETER_FIELDS
from hdl.parts import Multiplier, add, delay

__all__ = ["Epilogue"]


class Epilogue(wiring.Component):
    """Shift, multiply, round half to even, saturate, optionally clip at zero.

    One result per cycle, :attr:`LATENCY` cycles later; no back-pressure.

    Parameters
    ----------
    width : int
        Width of the accumulators.
    base : int
        Bits that are dropped of every one.
    family : str

    Members
    -------
    i : In(Flow of {value: signed(width), multiplier: 17, shift: 2})
        A multiplier from MULTIPLIER_MIN on; smaller ones only where the shifted value fits
        KEPT_BITS, or they saturate too early.
    relu : In(1)
    o : Out(Flow of signed(8))
    """

    LATENCY = 1 + Multiplier.LATENCY + 3

    def __init__(self, width, base, family="portable"):
        self.width = width
        self.base = base
        self.family = family
        super().__init__({
            "i": In(Flow(data.StructLayout({
                "value": signed(width), "multiplier": PARAMETER_FIELDS["multiplier"][1],
                "shift": PARAMETER_FIELDS["shift"][1]}))),
            "relu": In(1),
            "o": Out(Flow(signed(8))),
        })

    def elaborate(self, platform):
        m = Module()
        value = self.i.payload.value
        sign = value[-1]
        kept = Signal(signed(KEPT_BITS), reset_less=True)
        # Runs of a step's bits, each compared with the sign once and shared by all shifts.
        runs = [(value[i:i + COARSE_STEP] ^ sign.replicate(len(value[i:i + COARSE_STEP]))).any()
                for i in range(self.base + KEPT_BITS - 1, self.width, COARSE_STEP)]
        with m.Switch(self.i.payload.shift):
            for k in range(2 ** PARAMETER_FIELDS["shift"][1]):
                with m.Case(k):
                    m.d.sync += kept.eq(value >> self.base + COARSE_STEP * k)
        # What is above the kept bits is not just sign: a cycle later, beside the multiplier.
        beyond = Signal(reset_less=True)
        differs = delay(m, Cat(*runs), 1, name="differs")
        with m.Switch(delay(m, self.i.payload.shift, 1, name="shift")):
            for k in range(2 ** PARAMETER_FIELDS["shift"][1]):
                with m.Case(k):
                    m.d.sync += beyond.eq(differs[k:].any())
        m.submodules.multiplier = multiplier = Multiplier(
            KEPT_BITS, PARAMETER_FIELDS["multiplier"][1] + 1, self.family)
        m.d.comb += [multiplier.a.eq(kept),
                     multiplier.b.eq(delay(m, self.i.payload.multiplier, 1, name="factor"))]
        product = multiplier.o
        beyond = delay(m, beyond, Multiplier.LATENCY - 1, name="beyond")
        # A multiplier of 0 makes a negative number positive; beyond 18 bits the product is wrong.
        negative = Mux(beyond, delay(m, sign, 1 + Multiplier.LATENCY, name="negative"),
                       product[-1])

        # Products come from a far column of the chip: short reductions before the next register,
        # the rest of them after it.
        whole = Signal(signed(9), reset_less=True)
        half = Signal(reset_less=True)      # the bit below the result
        lowest = product[:FINE_SHIFT - 1]   # anything set below that?
        low = Signal(2, reset_less=True)
        above = product[FINE_SHIFT + 7:-1]  # all equal to the sign if the result fits 8 bits?
        differs = Signal(-(-len(above) // 3), reset_less=True)
        m.d.sync += [
            whole.eq(product[FINE_SHIFT:FINE_SHIFT + 8].as_signed()),
            half.eq(product[FINE_SHIFT - 1]),
            low.eq(Cat(lowest[::2].any(), lowest[1::2].any())),
            differs.eq(Cat((above[i:i + 3] ^ product[-1].replicate(len(above[i:i + 3]))).any()
                           for i in range(0, len(above), 3)))]
        rounded = Signal(signed(9), reset_less=True)
        out = Signal(reset_less=True)
        m.d.sync += [
            rounded.eq(add(m, whole, 0, cin=half & (low.any() | whole[0]), width=9,
                           family=self.family)),
            out.eq(differs.any() | delay(m, beyond, 1, name="beyond"))]
        negative = delay(m, negative, 2, name="negative")
        out = out | (rounded == 128) | (rounded == -128)
        with m.If(negative & self.relu):
            m.d.sync += self.o.payload.eq(0)
        with m.Elif(out):
            m.d.sync += self.o.payload.eq(Mux(negative, -127, 127))
        with m.Else():
            m.d.sync += self.o.payload.eq(rounded)
        m.d.comb += self.o.valid.eq(delay(m, self.i.valid, self.LATENCY, name="valid",
                                          resettable=True))
        return m
