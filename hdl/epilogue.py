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

        # A window of 8 result bits and the round bit, and a sticky bit for all below.  Above the
        # window only "does it overflow" matters, so each step saturates the magnitude bits it drops.
        value = whole << 1                  # bit 0 becomes the round bit of shift 0
        sticky = 0
        for step, keep in ((16, 9 + 15 + 1), (4, 9 + 3 + 1), (1, 9 + 1)):
            choices = []
            for q in range(4):
                n = q * step
                body = value >> n
                lost = value[:n].any() if n else 0
                high, inside = body[keep - 1:], body[:keep]
                fits = high.all() | ~high.any() if len(body) > keep else 1
                sign = value[-1]
                clipped = Mux(fits, inside, Cat((~sign).replicate(keep - 1), sign))
                choices.append((clipped, lost))
            amount = shift[{16: 4, 4: 2, 1: 0}[step]:][:2]
            next_value = Signal(signed(keep), name=f"window_{step}", reset_less=True)
            next_sticky = Signal(name=f"sticky_{step}", reset_less=True)
            with m.Switch(amount):
                for q, (clipped, lost) in enumerate(choices):
                    with m.Case(q):
                        m.d.sync += [next_value.eq(clipped), next_sticky.eq(sticky | lost)]
            value, sticky = next_value, next_sticky
            shift = delay(m, shift, 1, name="shift")
        rounded = Signal(signed(10), reset_less=True)
        up = value[0] & (sticky | value[1])
        m.d.sync += rounded.eq((value >> 1) + up)
        relu = delay(m, self.relu, 1, name="relu")
        limited = Signal(signed(8), reset_less=True)
        low_limit = Mux(relu, 0, -127)
        m.d.sync += limited.eq(Mux(rounded > 127, 127, Mux(rounded < low_limit, low_limit,
                                                           rounded)))
        m.d.comb += [self.o.payload.eq(limited),
                     self.o.valid.eq(delay(m, self.i.valid, self.latency, name="valid",
                                           resettable=True))]
        return m
