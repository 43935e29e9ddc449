"""Re-quantisation of accumulators to int8 for the next layer.

``y = clip(rint((acc + bias) * multiplier / 2**shift), -127, 127)`` with ties to even, all exact:
the product is formed in full (three multipliers of 18 x 17 bits), then shifted in three steps that
remember whether anything was shifted out.
"""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.beat import Flow
from hdl.layout import PARAMETER_FIELDS
from hdl.parts import Multiplier, add, delay

__all__ = ["Epilogue"]

_DIGIT = 17


class Epilogue(wiring.Component):
    """Bias, multiply, shift, round half to even, saturate, optionally clip at zero.

    One result per cycle, :attr:`latency` cycles later; no back-pressure.

    Parameters
    ----------
    width : int
        Width of the accumulators.
    family : str

    Members
    -------
    i : In(stream of {value: signed(width), bias: signed(56), multiplier: 16, shift: 6})
    relu : In(1)
    o : Out(stream of signed(8))
    """

    def __init__(self, width, family="portable"):
        self.width = width
        self.family = family
        self.digits = -(-(width + 1) // _DIGIT)
        super().__init__({
            "i": In(Flow(data.StructLayout({
                "value": signed(width), "bias": signed(PARAMETER_FIELDS["bias"][1]),
                "multiplier": PARAMETER_FIELDS["multiplier"][1],
                "shift": PARAMETER_FIELDS["shift"][1]}))),
            "relu": In(1),
            "o": Out(Flow(signed(8))),
        })

    @property
    def latency(self):
        """Cycles from `i` to `o`."""
        return 1 + Multiplier.LATENCY + (self.digits - 1) + 5

    def elaborate(self, platform):
        m = Module()
        family = self.family
        width = self.width + 1
        biased = Signal(signed(width), reset_less=True)
        m.d.sync += biased.eq(add(m, self.i.payload.value, self.i.payload.bias, width=width, family=family))
        factor = delay(m, self.i.payload.multiplier, 1, name="factor")

        # Digits of 17 bits, the highest signed; partial products are added lowest first.
        low = None
        bits = []
        for d in range(self.digits):
            m.submodules[f"multiplier_{d}"] = part = Multiplier(18, 17, family)
            top = d == self.digits - 1
            digit = biased[d * _DIGIT:] if top else biased[d * _DIGIT:(d + 1) * _DIGIT]
            m.d.comb += [part.a.eq(digit.as_signed() if top else digit), part.b.eq(factor)]
            product = delay(m, part.o, max(0, d - 1), name=f"product_{d}")
            if d == 0:
                low = product
                continue
            total = Signal(signed(36), name=f"partial_{d}", reset_less=True)
            m.d.sync += total.eq(add(m, product, low[_DIGIT:].as_signed(), width=36,
                                     family=family))
            bits = [delay(m, b, 1, name="digit") for b in [*bits, low[:_DIGIT]]]
            low = total
        whole = Cat(*bits, low).as_signed()
        elapsed = 1 + Multiplier.LATENCY + (self.digits - 1)
        shift = delay(m, self.i.payload.shift, elapsed, name="shift")

        # Three steps shift by 16, 4 and 1 times two bits of the shift.  Each keeps what later steps
        # and the result (8 bits and the round bit) can still see; below that only "anything set"
        # matters, above only "anything but the sign".
        value = whole << 1                  # bit 0 becomes the round bit of shift 0
        sticky = overflow = 0
        for step, keep, bit in ((16, 25, 4), (4, 13, 2), (1, 10, 0)):
            sign = value[-1]
            window = Signal(signed(keep), name=f"window_{step}", reset_less=True)
            lost = Signal(name=f"lost_{step}", reset_less=True)
            beyond = Signal(name=f"beyond_{step}", reset_less=True)
            # Runs of `step` bits, each reduced once and shared by the four choices.
            width = len(value)
            low = [value[i * step:(i + 1) * step].any() for i in range(3)]
            high = [(value[i:min(i + step, width)]
                     ^ sign.replicate(min(i + step, width) - i)).any()
                    for i in range(keep - 1, width, step)]
            with m.Switch(shift[bit:bit + 2]):
                for q in range(4):
                    with m.Case(q):
                        m.d.sync += [
                            window.eq((value >> q * step)[:keep].as_signed()),
                            lost.eq(Cat(sticky, *low[:q]).any()),
                            beyond.eq(Cat(overflow, *high[q:]).any())]
            whole_sign = delay(m, sign if step == 16 else whole_sign, 1, name="sign")
            value, sticky, overflow = window, lost, beyond
            shift = delay(m, shift, 1, name="shift")
        rounded = Signal(signed(10), reset_less=True)
        up = value[0] & (sticky | value[1])
        m.d.sync += rounded.eq((value >> 1) + up)
        overflow = delay(m, overflow, 1, name="overflow")
        whole_sign = delay(m, whole_sign, 1, name="sign")
        limited = Signal(signed(8), reset_less=True)
        # Outside -127..127: the bits above differ from the sign, or it is -128.
        out = overflow | (rounded[7:] ^ whole_sign.replicate(3)).any() | (rounded[:8] == 128)
        with m.If(whole_sign & self.relu):
            m.d.sync += limited.eq(0)
        with m.Elif(out):
            m.d.sync += limited.eq(Mux(whole_sign, -127, 127))
        with m.Else():
            m.d.sync += limited.eq(rounded)
        m.d.comb += [self.o.payload.eq(limited),
                     self.o.valid.eq(delay(m, self.i.valid, self.latency, name="valid",
                                           resettable=True))]
        return m
