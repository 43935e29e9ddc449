"""Table builders of the bit-serial format: every signed sum of a chunk, by adders only.

A half table of a chunk a[0..v-1] holds ``a[0] +- a[1] +- ... +- a[v-1]``, entry `i` with a minus
where bit j-1 of `i` is set; the other half is its negation (LUT Tensor Core, section 3.1.2, eq. 5).
Entries are made in Gray-code order, so that each differs from the one before by twice one
activation: one adder per builder.
"""

from typing import NamedTuple

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.parts import add_select, delay

__all__ = ["SignedSumBuilder", "Step", "step_program"]


class Step(NamedTuple):
    """What a builder does in one cycle with the activation at `position` of its chunk."""

    position: int
    restart: bool   # forget the sum so far
    double: bool    # count the activation twice
    negate: bool    # subtract it
    entry: int      # table entry to write the sum to; a later step of the same table overwrites it


def step_program(v):
    """The steps that fill one table of chunk length `v`: v sums, then 2**(v-1) - 1 Gray steps."""
    program = [Step(k, k == 0, False, False, 0) for k in range(v)]
    for j in range(1, 2 ** (v - 1)):
        gray = j ^ j >> 1
        bit = (j & -j).bit_length() - 1
        program.append(Step(bit + 1, False, True, bool(gray >> bit & 1), gray))
    return program


class SignedSumBuilder(wiring.Component):
    """The adders that make table entries for one row.

    Builder `b` of B serves the lanes congruent to b modulo B; all work in lock step.  An entry
    comes :attr:`LATENCY` cycles after its word, one per builder and cycle; there is no
    back-pressure.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    word : In(8 * builders)
        One activation per builder.
    restart, double, negate : In(1)
        What to do with it (see :class:`Step`), aligned with the word.
    unsigned : In(1)
        The bytes are unsigned (low bytes of int16).
    entries : Out(array of signed(entry_bits))
        The running sum of each builder.
    """

    LATENCY = 2

    def __init__(self, config):
        self.config = config
        self.width = config.entry_bits(max(config.chunks))
        super().__init__({
            "word": In(8 * config.builders), "restart": In(1), "double": In(1), "negate": In(1),
            "unsigned": In(1),
            "entries": Out(data.ArrayLayout(signed(self.width), config.builders)),
        })

    def elaborate(self, platform):
        m = Module()
        wide = self.config.activation_bits == 16
        restart = delay(m, self.restart, 1, name="restart")
        negate = delay(m, self.negate, 1, name="negate")
        for b in range(self.config.builders):
            byte = self.word[8 * b:8 * b + 8]
            sign = byte[7] & ~self.unsigned if wide else byte[7]
            once = Cat(byte, sign).as_signed()
            operand = Signal(signed(10), name=f"operand_{b}")
            chosen = Mux(self.double, Cat(Const(0, 1), once).as_signed(), once)
            m.d.sync += operand.eq(Mux(self.negate, ~chosen, chosen))
            total = add_select(m, operand, self.entries[b], 0, restart, cin=negate,
                               width=self.width, family=self.config.family)
            m.d.sync += self.entries[b].eq(total)
        return m
