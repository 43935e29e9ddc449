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

from hdl.parts import WordRAM, add_select, delay
from hdl.walk import builder_members, walk_members

__all__ = ["SignedSumBuilder", "SignedSumWalk", "Step", "StepCounter", "step_program"]


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


class SignedSumWalk(wiring.Component):
    """Walks through the steps of all lane groups of a K tile: see :mod:`hdl.walk`.

    ``v + 2**(v-1) - 1`` cycles per lane group.
    """

    def __init__(self, config):
        self.config = config
        super().__init__(walk_members(config))

    def elaborate(self, platform):
        m = Module()
        config = self.config
        groups = config.lane_groups
        slot_bits = (config.tile_slots - 1).bit_length()

        # First cycle: where in the walk.  Groups of eight come after those of four.
        running = self.running
        slot = Signal(slot_bits)                # of the group, within the tile
        group_end, last_group = Signal(), Signal()
        wide = Signal()                         # the group's chunks are of 8
        m.submodules.steps = steps = StepCounter(config.chunks)
        m.d.comb += [steps.run.eq(running), steps.wide.eq(wide), group_end.eq(steps.last),
                     self.tile_end.eq(group_end & last_group)]
        m.d.sync += last_group.eq(slot == config.tile_slots - groups[-1] // 4)
        with m.If(group_end):
            m.d.sync += slot.eq(slot + Mux(wide, 2, 1))
        if len(set(groups)) > 1:
            with m.If(group_end & (slot == groups.index(8) - 1)):
                m.d.sync += wide.eq(1)
        with m.If(self.tile_end):
            m.d.sync += running.eq(0)
        with m.If(self.start):
            m.d.sync += [running.eq(1), slot.eq(0), wide.eq(groups[0] == 8)]

        # Second cycle: what to do there.
        slot_now = Signal(slot_bits)
        tile_now = Signal.like(self.tile)
        what = Signal(data.StructLayout({"write": 1, "last": 1}))
        m.d.sync += [what.write.eq(running), what.last.eq(self.tile_end),
                     slot_now.eq(slot), tile_now.eq(self.tile)]
        position = steps.step.position
        m.d.comb += self.walk.read_address.eq(
            Cat(position[:2], slot_now | position[2:], tile_now))

        # The bytes arrive, the builders add, the entries are written.
        now = delay(m, steps.step, WordRAM.LATENCY, name="step")
        here = delay(m, what, WordRAM.LATENCY, name="what", resettable=True)
        m.d.comb += [
            self.walk.step.restart.eq(now.restart), self.walk.step.double.eq(now.double),
            self.walk.step.negate.eq(now.negate),
            self.walk.step.unsigned.eq(delay(m, self.unsigned, 1 + WordRAM.LATENCY,
                                             name="unsigned"))]
        there = delay(m, here, SignedSumBuilder.LATENCY, name="write", resettable=True)
        # One-hot: the lane group whose entries come.
        into = delay(m, Cat(self.start, group_end),
                     WordRAM.LATENCY + SignedSumBuilder.LATENCY + 1, name="into", resettable=True)
        with m.If(into[0]):
            m.d.sync += self.walk.group.eq(1)
        with m.Elif(into[1]):
            m.d.sync += self.walk.group.eq(self.walk.group << 1)
        # `bank` changes after the last write of a tile; the next tile's first comes later.
        with m.If(there.last):
            m.d.sync += self.walk.bank.eq(~self.walk.bank)
        m.d.comb += [
            self.walk.entry.eq(delay(m, now.entry, SignedSumBuilder.LATENCY, name="entry")),
            self.table_ready.eq(there.last),
            # Until the last entry is in its table.
            self.active.eq(what.write | here.write | there.write)]
        if config.sparse:
            word = Cat(position[:2], slot_now | position[2:])
            wait = WordRAM.LATENCY + SignedSumBuilder.LATENCY
            m.d.comb += [
                self.walk.keep.eq(delay(m, here.write & ~now.double, SignedSumBuilder.LATENCY,
                                        name="keep", resettable=True)),
                self.walk.kept.eq(delay(m, word, wait, name="kept"))]
        return m


class SignedSumBuilder(wiring.Component):
    """The adders that make table entries for one row: the running sum of each builder.

    An entry comes :attr:`LATENCY` cycles after its word, the one that the step is aligned with.
    Members: see :func:`hdl.walk.builder_members`.
    """

    LATENCY = 2

    def __init__(self, config):
        self.config = config
        self.width = config.entry_bits(max(config.chunks))
        super().__init__(builder_members(config))

    def elaborate(self, platform):
        m = Module()
        size, wide = self.config.value_bits, self.config.byte_passes
        restart = delay(m, self.step.restart, 1, name="restart")
        negate = delay(m, self.step.negate, 1, name="negate")
        for b in range(self.config.builders):
            byte = self.word[size * b:size * (b + 1)]
            sign = byte[-1] & ~self.step.unsigned if wide else byte[-1]
            once = Cat(byte, sign).as_signed()
            operand = Signal(signed(10), name=f"operand_{b}")
            chosen = Mux(self.step.double, Cat(Const(0, 1), once).as_signed(), once)
            m.d.sync += operand.eq(Mux(self.step.negate, ~chosen, chosen))
            total = add_select(m, operand, self.entries[b], 0, restart, cin=negate,
                               width=self.width, family=self.config.family)
            m.d.sync += self.entries[b].eq(total)
        return m
