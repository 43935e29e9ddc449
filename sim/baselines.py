"""Bare arrays that ``python -m sim.bench`` compares: tables against adders against plain MACs.

Each array sums one output column's dot product over a K tile, from registered codes to an
accumulator of :data:`ACCUMULATOR_BITS` bits, with the same tree, adder part and accumulator and
without DSPs; what differs is how a weight meets its activation.  They are benchmarks, not formats:
no scales, no zero points, no control.

All of them take a beat per cycle without back-pressure, and hold two K tiles: one that the beats
use and one that is being filled.  ``swap`` exchanges them.

============= ======================================= ======================= =================
array         weight times activation                 K tile is held in       code bits per MAC
============= ======================================= ======================= =================
TableArray    read of a table of 4 or 8 activations   RAM, two banks          1, plane by plane
AdderArray    inversion in the first adder            registers, twice        1, plane by plane
MacArray      one LUT4 per bit and radix-4 digit      registers, twice        all at once
============= ======================================= ======================= =================
"""

# mypy: disable-error-code="attr-defined"
# Amaranth makes members of a component at run time.

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.config import EngineConfig, bits_for
from hdl.errors import ConfigError
from hdl.layout import lane_positions
from hdl.parts import TableRAM, add, add_select, delay
from hdl.signed_sums import SignedSumBuilder
from hdl.tables import Tables, table_latency
from hdl.tree import Tree, tree_levels

__all__ = ["ACCUMULATOR_BITS", "AdderArray", "BareArray", "MacArray", "TableArray"]

ACCUMULATOR_BITS = 32
WORD = 4
"""Activations that the registers of :class:`AdderArray` and :class:`MacArray` take per cycle."""
OPERAND = 127
CHUNK = 4


class BareArray(wiring.Component):
    """What the arrays share: strobes beside the beat, plane shift, accumulator.

    Members
    -------
    codes : In(code_bits)
    valid : In(1)
        There is a beat in this cycle.
    first, last : In(1)
        It is the column's first (most significant), last plane.  Without planes both are ignored.
    restart : In(1)
        The column's accumulator starts at zero; with the beat that is accumulated.
    swap : In(1)
        From the next cycle on, beats use the tile that was filled and fills go to the other.
    result : Out(signed(accumulator_bits))
    """

    def __init__(self, code_bits, fill, family, *, accumulator_bits=ACCUMULATOR_BITS):
        self.family = family
        self.accumulator_bits = accumulator_bits
        super().__init__({
            "codes": In(code_bits), "valid": In(1), "first": In(1), "last": In(1),
            "restart": In(1), "swap": In(1), "result": Out(signed(accumulator_bits)), **fill})

    def shift_planes(self, m, total, pending, bound, latency):
        """Doubles and adds the planes' sums; ends as :meth:`accumulate` does."""
        width = bits_for(bound * (2**self.planes - 1))
        column = Signal(signed(width), reset_less=True)
        shifted = add_select(m, total, column << 1, 0, delay(m, self.first, latency, name="first"),
                             cin=pending, width=width, family=self.family)
        with m.If(delay(m, self.valid, latency, name="valid", resettable=True)):
            m.d.sync += column.eq(shifted)
        self.accumulate(m, column, 0, self.valid & self.last, latency + 1)

    def accumulate(self, m, total, pending, strobe, latency):
        """Adds `total` to the result, `latency` cycles after the beat and its `strobe`."""
        restart = delay(m, self.restart, latency, name="restart")
        result = add_select(m, total, self.result, 0, restart, cin=pending,
                            width=self.accumulator_bits, family=self.family)
        with m.If(delay(m, strobe, latency, name="strobe", resettable=True)):
            m.d.sync += self.result.eq(result)

    def activations(self, m, count, shape):
        """`count` registers, loaded in K order through a port of one word a cycle.

        The tile being filled is a shift register, which costs no LUT; a swap copies it.
        """
        used = Signal(data.ArrayLayout(shape, count), reset_less=True)
        filled = Signal(len(used.as_value()), reset_less=True)
        with m.If(self.load):
            m.d.sync += filled.eq(Cat(filled[len(self.word):], self.word))
        with m.If(self.swap):
            m.d.sync += used.eq(filled)
        return [used[k] for k in range(count)]


class TableArray(BareArray):
    """The engine's tables: a code is a sign and an index of a signed sum.

    ``result`` changes ``latency`` cycles after a column's last plane.

    Parameters
    ----------
    lanes : int
        Of four weights; ``4 * lanes`` one-bit weights per beat.
    planes : int
        Most planes of a weight.
    builders : int
        Lanes that are written together, a *group*.
    block_ram_blocks : int
        Blocks of 32 weights whose tables are in block RAM, with chunks of eight.
    build : bool
        Whether the builders are part of the array; otherwise it takes finished entries.
    narrow : bool
        Whether the two low bits of the entries stay out of the tables.  Negation changes a number
        by an even amount, so bit 0 of all signed sums of a chunk is the same; and by twice an odd
        number exactly if the number is odd, so bit 1 is an exclusive or of index bits that are
        masked with the activations' low bits.  Eight bits are left, two DPR16X4 instead of three.
        Not with block RAM, whose words are wide enough.
    family : str

    Members
    -------
    codes : In(4 * lanes)
        Chunk after chunk: sign first, index above it; an index bit j - 1 negates activation j
        against activation 0.
    group : In(lane groups)
        One bit per group: write its lanes.  All entries of a group must be written between two
        swaps, in the order of :func:`hdl.signed_sums.step_program` if `narrow`.
    entry : In
    entries : In(array of signed)
        One per builder; without `build`.
    odd : In(builders)
        Bit 0 of the activation that entered each builder's sum with this entry; without `build`.
    word, clear, double, negate : In
        Of :class:`hdl.signed_sums.SignedSumBuilder`, its latency before their entry; with `build`.
    """

    def __init__(self, lanes, planes, *, builders=2, block_ram_blocks=0, build=False,
                 narrow=False, family="portable"):
        if narrow and block_ram_blocks:
            raise ConfigError("narrow tables must be in LUT RAM: block_ram_blocks must be 0, not "
                              f"{block_ram_blocks}")
        self.config = config = EngineConfig(
            family=family, lanes=lanes, builders=builders, block_ram_blocks=block_ram_blocks,
            activation_bits=8, scale_points=1)
        self.planes = planes
        self.build = build
        self.narrow = narrow
        self.tables = Tables(config, 1) if not narrow else None
        self.positions = lane_positions(config)
        self.chunks = [len(positions) for positions in self.positions]
        self.latency = (table_latency(self.config) if self.tables else 1) \
            + tree_levels(len(self.chunks)) + 2
        most = max(self.chunks)
        fill = {"group": In(len(config.lane_groups)), "entry": In(most - 1)}
        if build:
            fill |= {"word": In(8 * builders), "clear": In(1), "double": In(1), "negate": In(1)}
        else:
            fill |= {"entries": In(data.ArrayLayout(signed(config.entry_bits(most)), builders)),
                     "odd": In(builders)}
        super().__init__(config.tile_k, fill, family)

    def elaborate(self, platform):
        m = Module()
        builders = self.config.builders
        if self.build:
            m.submodules.builder = builder = SignedSumBuilder(self.config)
            m.d.comb += [builder.word.eq(self.word), builder.step.restart.eq(self.clear),
                         builder.step.double.eq(self.double),
                         builder.step.negate.eq(self.negate)]
            entries = builder.entries
            odd = delay(m, Cat(self.word[8 * b] for b in range(builders)), builder.LATENCY)
        else:
            entries, odd = self.entries, self.odd

        bank = Signal()
        with m.If(self.swap):
            m.d.sync += bank.eq(~bank)
        bounds = [v * OPERAND for v in self.chunks]
        m.submodules.tree = tree = Tree(bounds, self.family)
        tables = self.tables
        if tables is None:
            self.narrow_tables(m, tree, entries, odd, bank)
        else:
            m.submodules.tables = tables
            m.d.comb += [
                tables.codes.eq(self.codes), tables.banks.eq(bank), tables.entries[0].eq(entries),
                tables.group.eq(self.group), tables.entry.eq(self.entry),
                tables.write_bank.eq(~bank), tree.signs.eq(tables.signs),
                *(tree.entries[i].eq(v) for i, v in enumerate(tables.values[0]))]
        self.shift_planes(m, tree.total, tree.pending, sum(bounds), self.latency - 2)
        return m

    def narrow_tables(self, m, tree, entries, odd, bank):
        """The tree's entries from tables without their two low bits."""
        for i, positions in enumerate(self.positions):
            group, builder = divmod(i, self.config.builders)
            write = self.group[group]
            entry = entries[builder].as_unsigned()
            code = self.codes[positions[0]:positions[0] + CHUNK]
            sign, index = code[0], code[1:]
            table = TableRAM(self.config.entry_bits(CHUNK) - 2, 2**CHUNK, family=self.family)
            m.submodules[f"table_{i}"] = table
            m.d.comb += [
                table.write_address.eq(Cat(self.entry, ~bank)), table.write_enable.eq(write),
                table.write_data.eq(entry[2:]), table.read_address.eq(Cat(index, bank))]
            low = self.low_bits(m, index, entry[:2], odd[builder], write)
            m.d.comb += [tree.entries[i].eq(Cat(low, table.read_data).as_signed()),
                         tree.signs[i].eq(delay(m, sign, table.latency, name=f"sign_{i}"))]

    def low_bits(self, m, index, entry, odd, write):
        """Bits 0 and 1 of a lane's entry, from registers; as late as a table's read.

        The builder's last four steps add activations 3, 1, 2 and 1 and end at the entry where 3
        is negated: no strobe has to say which write to keep, the last ones stay.
        """
        layout = data.StructLayout({"low": 2, "three": 1, "one": 1, "two": 1})
        filled = Signal(layout, reset_less=True)
        last = Signal(reset_less=True)
        used = Signal(layout, reset_less=True)
        with m.If(write):
            m.d.sync += [filled.low.eq(entry), last.eq(odd), filled.two.eq(last),
                         filled.one.eq(filled.two), filled.three.eq(filled.one)]
        with m.If(self.swap):
            m.d.sync += used.eq(filled)
        bits = Signal(2, reset_less=True)
        m.d.sync += bits.eq(Cat(used.low[0], used.low[1] ^ (index[0] & used.one)
                                ^ (index[1] & used.two) ^ (~index[2] & used.three)))
        return bits


class AdderArray(BareArray):
    """Bit-serial without tables: every one-bit weight adds or subtracts its activation.

    ``result`` changes ``tree_levels(positions) + 2`` cycles after a column's last plane.

    Parameters
    ----------
    positions : int
        One-bit weights per beat, a multiple of 4.
    planes : int
        Most planes of a weight.
    family : str

    Members
    -------
    codes : In(positions)
        1 subtracts.
    word : In(32)
        The next four activations of the tile.
    load : In(1)
    """

    def __init__(self, positions, planes, *, family="portable"):
        self.positions = positions
        self.planes = planes
        super().__init__(positions, {"word": In(8 * WORD), "load": In(1)}, family)

    def elaborate(self, platform):
        m = Module()
        m.submodules.tree = tree = Tree([OPERAND] * self.positions, self.family)
        for k, activation in enumerate(self.activations(m, self.positions, signed(8))):
            m.d.comb += tree.entries[k].eq(activation)
        m.d.comb += tree.signs.eq(self.codes)
        self.shift_planes(m, tree.total, tree.pending, self.positions * OPERAND,
                          tree_levels(self.positions))
        return m


class MacArray(BareArray):
    """Plain multiply-accumulate: all bits of a weight in one cycle, look-up tables for products.

    A weight of one bit is +-1.  Wider ones are radix-4 digits from -2 to 1: a digit's magnitude
    times the activation is one LUT4 per bit, and the first adder negates it for nothing.  Levels
    +-1 and +-3 need a tripled activation and products of one more bit; a tree per plane costs a
    little more (docs/measurements.md).  Each digit has a tree of its own, because shifting sums
    once is cheaper than wider adders everywhere.

    Levels are thus +-1, -2..1 and -10..5: uniform, so that any zero point can be a further leaf,
    which no array here has.

    ``result`` changes ``tree_levels(positions) + log2(digits) + 1`` cycles after its beat.

    Parameters
    ----------
    positions : int
        Weights per beat, a multiple of 4.
    bits : int
        Bits of a weight: 1, 2 or 4.
    activation_bits : int
    family : str

    Members
    -------
    codes : In(positions * bits)
        Weight by weight, low digit first; a digit in two's complement, a single bit as in
        :class:`AdderArray`.
    word, load : In
        As in :class:`AdderArray`.
    """

    def __init__(self, positions, bits, *, activation_bits=8, family="portable"):
        self.positions = positions
        self.bits = bits
        self.activation_bits = activation_bits
        super().__init__(positions * bits, {"word": In(activation_bits * WORD), "load": In(1)},
                         family)

    def elaborate(self, platform):
        m = Module()
        activations = self.activations(m, self.positions, signed(self.activation_bits))
        digits = max(1, self.bits // 2)
        largest = 2**(self.activation_bits - 1) - 1
        bound = largest if self.bits == 1 else 2 * largest
        trees = [Tree([bound] * self.positions, self.family) for _ in range(digits)]
        for d, tree in enumerate(trees):
            m.submodules[f"tree_{d}"] = tree
            for k, activation in enumerate(activations):
                code = self.codes[self.bits * k + 2 * d:]
                if self.bits == 1:
                    product, sign = activation, code[0]
                else:
                    one, sign = code[0], code[1]
                    double = Mux(sign, activation << 1, 0)
                    product = Mux(one, activation, double)
                m.d.comb += [tree.entries[k].eq(product), tree.signs[k].eq(sign)]
        latency = tree_levels(self.positions)
        total, pending = trees[0].total, trees[0].pending
        if digits == 2:
            high = trees[1]
            width = bits_for(5 * bound * self.positions) - 2
            upper = Signal(signed(width), reset_less=True)
            m.d.sync += upper.eq(add(m, high.total, total >> 2, cin=high.pending, width=width,
                                     family=self.family))
            total = Cat(delay(m, total[:2], 1), upper).as_signed()
            pending = delay(m, pending, 1)
            latency += 1
        self.accumulate(m, total, pending, self.valid, latency)
        return m
