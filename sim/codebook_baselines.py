"""Bare arrays for additive codebooks: Psumbook tables against dequantise-then-multiply.

As in :mod:`sim.baselines`, each sums one output column over a K tile, from registered codes to an
accumulator, without scales or control, and holds two K tiles that ``swap`` exchanges.

============= ========================================= ===================== ====================
array         a weight meets its activation             K tile is held in     a beat has codes of
============= ========================================= ===================== ====================
PsumbookArray when the tables are built, once per entry block RAM, two banks  `lanes` chunks, one
              and token                                                       codebook
DequantArray  in every product: centroids are read and  registers, twice      `lanes / codebooks`
              added, one multiplier per weight                                chunks, all codebooks
============= ========================================= ===================== ====================
"""

# mypy: disable-error-code="attr-defined"
# Amaranth makes members of a component at run time.

from amaranth.hdl import Module, Signal, signed
from amaranth.lib.wiring import In

from hdl.centroids import CentroidBuilder
from hdl.config import ACTIVATION_MAX, BLOCK, CENTROID_MAX, EngineConfig, bits_for
from hdl.parts import BlockRAM, Multiplier, add, delay
from hdl.tables import Tables, complemented, sections, table_latency
from hdl.tree import Tree, tree_levels
from hdl.walk import step
from sim.baselines import ACCUMULATOR_BITS, BareArray

__all__ = ["DequantArray", "PsumbookArray"]


class PsumbookArray(BareArray):
    """The engine's tables and builders; ``result`` changes ``latency`` cycles after a beat.

    Parameters
    ----------
    lanes, v, b, builders : int
        As of :class:`hdl.config.EngineConfig`.
    format : str
        ``"psumbook"``, of int8 activations, or ``"kmeans"``, of 18 bits.
    family : str

    Members
    -------
    codes : In(b * lanes)
    word, step : In
        Of :class:`hdl.centroids.CentroidBuilder`.
    group, entry : In
        Where its entries go, :meth:`hdl.centroids.CentroidBuilder.latency` later.
    """

    def __init__(self, lanes, v, b, *, builders, format="psumbook", family="portable"):
        self.config = config = EngineConfig(
            format=format, family=family, v=v, b=b, lanes=lanes, builders=builders,
            scale_points=1, block_ram_blocks=lanes * v // BLOCK,
            activation_bits=8 if format == "psumbook" else 16, zero_points=False, epilogue=False)
        self.latency = table_latency(config) + tree_levels(lanes) + 1
        super().__init__(config.column_code_bits, {
            "word": In(config.value_bits * config.buffers), "step": In(step(config)),
            "group": In(len(config.lane_groups)), "entry": In(b)}, family,
            accumulator_bits=config.accumulator_bits if config.encodes else ACCUMULATOR_BITS)

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.builder = builder = CentroidBuilder(config)
        m.submodules.tables = tables = Tables(config, 1)
        m.submodules.tree = tree = Tree([config.v * config.operand_max] * config.lanes,
                                        self.family)
        bank = Signal()
        with m.If(self.swap):
            m.d.sync += bank.eq(~bank)
        m.d.comb += [
            builder.word.eq(self.word), builder.step.eq(self.step),
            tables.codes.eq(self.codes), tables.write_bank.eq(~bank),
            *(tables.banks[s].eq(bank ^ complemented(s)) for s in range(sections(config))),
            tables.entries[0].eq(builder.entries), tables.group.eq(self.group),
            tables.entry.eq(self.entry),
            *(tree.entries[i].eq(value) for i, value in enumerate(tables.values[0]))]
        self.accumulate(m, tree.total, 0, self.valid, self.latency - 1)
        return m


class DequantArray(BareArray):
    """Centroids out of block RAM, added up, times activations in multipliers.

    ``result`` changes ``latency`` cycles after a beat.

    Parameters
    ----------
    chunks, v, b, codebooks : int
        Chunks per beat; `chunks * v` multipliers.
    family : str

    Members
    -------
    codes : In(chunks * codebooks * b)
        Chunk after chunk, its codebooks side by side.
    load : In(1), word : In(32)
        The next four activations, in K order.
    centroid : In(8 * v), centroid_address : In(b), centroid_write : In(codebooks)
        What is written into the codebooks.
    """

    def __init__(self, chunks, v, b, codebooks, *, family="portable"):
        self.chunks, self.v, self.b, self.codebooks = chunks, v, b, codebooks
        self.positions = chunks * v
        self.weight_max = codebooks * CENTROID_MAX
        self.latency = (BlockRAM.LATENCY + tree_levels(codebooks) + Multiplier.LATENCY
                        + tree_levels(self.positions) + 1)
        super().__init__(chunks * codebooks * b, {
            "load": In(1), "word": In(32), "centroid": In(8 * v), "centroid_address": In(b),
            "centroid_write": In(codebooks)}, family)

    def elaborate(self, platform):
        m = Module()
        v, b, books, family = self.v, self.b, self.codebooks, self.family
        activations = self.activations(m, self.positions, signed(8))
        m.submodules.tree = tree = Tree([self.weight_max * ACTIVATION_MAX] * self.positions, family)
        for j in range(self.chunks):
            read = []
            for c in range(books):
                m.submodules[f"codebook_{j}_{c}"] = ram = BlockRAM(8 * v, 2**b, family=family)
                code = (j * books + c) * b
                m.d.comb += [
                    ram.write_address.eq(self.centroid_address), ram.write_data.eq(self.centroid),
                    ram.write_enable.eq(self.centroid_write[c]),
                    ram.read_address.eq(self.codes[code:code + b])]
                read.append(ram.read_data)
            for t in range(v):
                weights = [data[8 * t:8 * t + 8].as_signed() for data in read]
                bound = CENTROID_MAX
                while len(weights) > 1:
                    bound *= 2
                    merged = []
                    for x, y in zip(weights[::2], weights[1::2]):
                        total = Signal(signed(bits_for(bound)), name="weight", reset_less=True)
                        m.d.sync += total.eq(add(m, x, y, width=len(total), family=family))
                        merged.append(total)
                    if len(weights) % 2:
                        merged.append(delay(m, weights[-1], 1, name="weight"))
                    weights = merged
                i = j * v + t
                m.submodules[f"multiplier_{i}"] = multiplier = Multiplier(
                    len(weights[0]), 8, family)
                # A swap may come while beats are on their way: each takes its tile's activation.
                held = delay(m, activations[i], BlockRAM.LATENCY + tree_levels(books),
                             name="activation")
                m.d.comb += [multiplier.a.eq(weights[0]), multiplier.b.eq(held),
                             tree.entries[i].eq(multiplier.o)]
        self.accumulate(m, tree.total, 0, self.valid, self.latency - 1)
        return m
