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

__all__ = ["SignedSumBuilder", "Step", "StepCounter", "step_program"]


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


class StepCounter(wiring.Component):
    """Walks through :func:`step_program`, over and over.

    The steps are counted, not looked up: a ROM of the 135 of v = 8 costs 280 LUTs, this a tenth.
    Step j of the Gray code flips bit tz(j), the number of zeros at the end of j, and bit tz(j) + 1
    of j says which way.

    Parameters
    ----------
    chunks : collection of int
        Chunk lengths v that occur: 4, 8.

    Members
    -------
    run : In(1)
        Take a step in this cycle.
    wide : In(1)
        Its table is of v = 8.
    last : Out(1)
        It is the table's last step.
    step : Out(struct)
        The step itself, a cycle later.
    """

    def __init__(self, chunks):
        self.most = max(chunks)
        super().__init__({
            "run": In(1), "wide": In(1), "last": Out(1),
            "step": Out(data.StructLayout({
                "position": range(self.most), "restart": 1, "double": 1, "negate": 1,
                "entry": self.most - 1}))})

    def elaborate(self, platform):
        m = Module()
        bits = self.most - 1
        count = Signal(bits)        # of the sums from 0, of the Gray code from 1
        gray = Signal()
        sums_end = count[:2].all() & (count[2:].any() | ~self.wide)
        m.d.sync += self.last.eq(self.run & ~self.last & gray & ~count[0] & count[1:3].all()
                                 & (count[3:].all() | ~self.wide))
        with m.If(self.run):
            m.d.sync += count.eq(count + 1)
            with m.If(~gray & sums_end):
                m.d.sync += [gray.eq(1), count.eq(1)]
            with m.If(self.last):
                m.d.sync += [gray.eq(0), count.eq(0)]

        step = self.step
        m.d.sync += [step.restart.eq(~gray & (count == 0)), step.double.eq(gray),
                     step.negate.eq(0), step.position.eq(count), step.entry.eq(0)]
        with m.If(gray):
            m.d.sync += step.entry.eq(count ^ count >> 1)
            for i in reversed(range(bits)):
                with m.If(count[i]):
                    m.d.sync += [step.position.eq(i + 1),
                                 step.negate.eq(~count[i + 1] if i + 1 < bits else 1)]
        return m


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
