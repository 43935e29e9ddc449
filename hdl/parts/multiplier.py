"""One hardware multiplier with all its pipeline registers."""

from amaranth.hdl import ClockSignal, Const, Instance, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Multiplier"]


class Multiplier(wiring.Component):
    """``o = a * b`` of two signed numbers of up to 18 bits, three cycles later.

    Free-running: one product per cycle, no enable and no reset.  The first of the three registers
    sits at the inputs, so that the logic in front needs none of its own.

    Parameters
    ----------
    a_width, b_width : int
        Widths of the operands, 1..18.
    family : str
        ``"portable"``, ``"ecp5"`` (MULT18X18D) or ``"xilinx7"`` (inferred: the tools use the
        registers of a DSP48E1).

    Members
    -------
    a : In(signed(a_width))
    b : In(signed(b_width))
    o : Out(signed(a_width + b_width))
    """

    LATENCY = 3

    def __init__(self, a_width, b_width, family="portable"):
        for name, width in (("a_width", a_width), ("b_width", b_width)):
            if not 1 <= width <= 18:
                raise ValueError(f"{name} must be in 1..18 to fit one multiplier, not {width}")
        self.a_width = a_width
        self.b_width = b_width
        self.family = family
        super().__init__({"a": In(signed(a_width)), "b": In(signed(b_width)),
                          "o": Out(signed(a_width + b_width))})

    def elaborate(self, platform):
        m = Module()
        if self.family == "ecp5":
            a = Signal(signed(18))
            b = Signal(signed(18))
            product = Signal(signed(36))
            m.d.comb += [a.eq(self.a), b.eq(self.b), self.o.eq(product)]
            m.submodules.dsp = Instance(
                "MULT18X18D",
                p_REG_INPUTA_CLK="CLK0", p_REG_INPUTB_CLK="CLK0",
                p_REG_PIPELINE_CLK="CLK0", p_REG_OUTPUT_CLK="CLK0",
                p_CLK0_DIV="ENABLED", p_GSR="DISABLED", p_RESETMODE="SYNC",
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
            m.d.sync += [a.eq(self.a), b.eq(self.b), product.eq(a * b), self.o.eq(product)]
        return m

