"""One hardware multiplier with all its pipeline registers."""

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.parts.adder import add, add_select
from hdl.parts.delay import delay

__all__ = ["Multiplier", "NarrowMultiplier", "WideMultiplier"]

LOW_BITS = 17
"""Unsigned bits of the low part of a wide operand: 18 with its sign."""


class Multiplier(wiring.Component):
    """``o = a * b`` of two signed numbers of up to 18 bits, three cycles later.

    Free-running: one product per cycle, no reset.  The first of the three registers sits at the
    inputs, so that the logic in front needs none of its own.

    Parameters
    ----------
    a_width, b_width : int
        Widths of the operands, 1..18.
    family : str
        ``"portable"``, ``"ecp5"`` (MULT18X18D) or ``"xilinx7"`` (inferred: the tools use the
        registers of a DSP48E1).
    hold : bool
        Whether the first register of `a` can be held.

    Members
    -------
    a : In(signed(a_width))
    hold : In(1)
        Keep the `a` of the cycle before; with `hold` only.
    b : In(signed(b_width))
    o : Out(signed(a_width + b_width))
    """

    LATENCY = 3

    def __init__(self, a_width, b_width, family="portable", *, hold=False):
        for name, width in (("a_width", a_width), ("b_width", b_width)):
            if not 1 <= width <= 18:
                raise ValueError(f"{name} must be in 1..18 to fit one multiplier, not {width}")
        self.a_width = a_width
        self.b_width = b_width
        self.family = family
        self.holds = hold
        super().__init__({"a": In(signed(a_width)), "b": In(signed(b_width)),
                          "o": Out(signed(a_width + b_width)), **({"hold": In(1)} if hold else {})})

    def elaborate(self, platform):
        m = Module()
        if self.family == "ecp5":
            a = Signal(signed(18))
            b = Signal(signed(18))
            product = Signal(signed(36))
            m.d.comb += [a.eq(self.a), b.eq(self.b), self.o.eq(product)]
            enable = {"p_REG_INPUTA_CE": "CE1", "i_CE1": ~self.hold} if self.holds else {}
            m.submodules.dsp = Instance(
                "MULT18X18D",
                p_REG_INPUTA_CLK="CLK0", p_REG_INPUTB_CLK="CLK0",
                p_REG_PIPELINE_CLK="CLK0", p_REG_OUTPUT_CLK="CLK0",
                **enable, p_CLK0_DIV="ENABLED", p_GSR="DISABLED", p_RESETMODE="SYNC",
                i_CLK0=ClockSignal(), i_CE0=Const(1, 1), i_RST0=Const(0, 1),
                i_SIGNEDA=Const(1, 1), i_SIGNEDB=Const(1, 1),
                i_SOURCEA=Const(0, 1), i_SOURCEB=Const(0, 1),
                **{f"i_A{i}": a[i] for i in range(18)},
                **{f"i_B{i}": b[i] for i in range(18)},
                **{f"o_P{i}": product[i] for i in range(36)})
        else:
            a = Signal.like(self.a, reset_less=True)
            b = Signal.like(self.b, reset_less=True)
            product = Signal.like(self.o, reset_less=True)
            with m.If(~self.hold if self.holds else 1):
                m.d.sync += a.eq(self.a)
            m.d.sync += [b.eq(self.b), product.eq(a * b), self.o.eq(product)]
        return m


class NarrowMultiplier(wiring.Component):
    """``o = a * b`` of two signed numbers, `a` of up to eight bits, three cycles later.

    Of adders: two bits of `a` choose what is added of `b`.  For devices whose DSPs are spent.
    The operands are not registered.

    Parameters and members as for :class:`Multiplier`, without `hold`.
    """

    LATENCY = Multiplier.LATENCY

    def __init__(self, a_width, b_width, family="portable"):
        if not 1 <= a_width <= 8:
            raise ValueError(f"a_width must be in 1..8 for three levels of adders, not {a_width}")
        self.a_width = a_width
        self.b_width = b_width
        self.family = family
        super().__init__({"a": In(signed(a_width)), "b": In(signed(b_width)),
                          "o": Out(signed(a_width + b_width))})

    def elaborate(self, platform):
        m = Module()
        width = self.b_width + 2    # of -2 * b .. 3 * b
        sums = []
        for i in range(0, self.a_width, 2):
            low, high = self.a[i], self.a[min(i + 1, self.a_width - 1)]
            twice = self.b << 1
            negative = i + 2 >= self.a_width    # its high bit is the sign
            sums.append(add_select(
                m, Mux(low, self.b, 0), 0, ~twice if negative else twice, high,
                cin=high if negative else 0, width=width, family=self.family))
        shift = 2
        for level in range(self.LATENCY):
            kept = []
            for j, value in enumerate(sums):
                register = Signal(signed(len(value)), name=f"sum_{level}_{j}", reset_less=True)
                m.d.sync += register.eq(value)
                kept.append(register)
            if level == self.LATENCY - 1 or len(kept) == 1:
                sums = kept
                continue
            sums = []
            for low, high in zip(kept[::2], kept[1::2]):
                total = add(m, low >> shift, high, width=len(high), family=self.family)
                sums.append(Cat(low[:shift], total).as_signed())
            if len(kept) % 2:
                sums.append(kept[-1])
            shift *= 2
        m.d.comb += self.o.eq(sums[0])
        return m


class WideMultiplier(wiring.Component):
    """``o = a * b`` of two signed numbers of up to 34 and 18 bits, five cycles later.

    Two multipliers, of the high part of `a` and of its low 17 bits, and an adder, with a register
    between: the multipliers may be far away.

    Parameters and members as for :class:`Multiplier`, without `hold`, and

    dsps : int
        2, or 1 for a high part that is multiplied by adders: `a` of up to 25 bits.
    """

    LATENCY = Multiplier.LATENCY + 2

    def __init__(self, a_width, b_width, family="portable", *, dsps=2):
        self.a_width = a_width
        self.b_width = b_width
        self.family = family
        self.high = Multiplier if dsps == 2 else NarrowMultiplier
        super().__init__({"a": In(signed(a_width)), "b": In(signed(b_width)),
                          "o": Out(signed(a_width + b_width))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.high = high = self.high(self.a_width - LOW_BITS, self.b_width, self.family)
        m.submodules.low = low = Multiplier(LOW_BITS + 1, self.b_width, self.family)
        m.d.comb += [high.a.eq(self.a[LOW_BITS:]), low.a.eq(self.a[:LOW_BITS]),
                     high.b.eq(self.b), low.b.eq(self.b)]
        upper = delay(m, high.o, 1, name="high")
        lower = delay(m, low.o, 1, name="low")
        total = add(m, upper, lower[LOW_BITS:-1].as_signed(), width=len(upper),
                    family=self.family)
        m.d.sync += self.o.eq(Cat(lower[:LOW_BITS], total))
        return m
