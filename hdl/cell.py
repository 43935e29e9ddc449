"""One cell of the array: all that sums behind the tables, for one row and one output column.

::

    table entries -> tree (per scale point) -> + zero point -> x scale -> sum -> plane shift
                  -> + accumulator RAM -> result

Where banks have a sparse part beside the dense one (``sq``)::

    table entries -> tree (per bank) -> + zero point -> plane shift ---+
    high weights -> selected activations -> x -> sum -> << exponent -> + -> x scale -> sum
                  -> + accumulator RAM -> result
"""

from amaranth.hdl import Cat, Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.config import BLOCK, EXPONENT_BITS, SCALE_BITS, bits_for
from hdl.layout import lane_positions
from hdl.parts import BlockRAM, Multiplier, WideMultiplier, add, add_select, delay
from hdl.scaled_banks import ScaledBanks, dense_bits, scalers, scaling_latency
from hdl.sentinels import Sentinels
from hdl.sparse import Sparse, high_weights, kept_bits, sparse_latency
from hdl.tables import table_latency
from hdl.tree import Tree, sum_of, tree_levels

__all__ = ["Cell", "Timing"]


class Timing:
    """Cycles from the stream register (0) to each place of the array.

    Attributes
    ----------
    tables : int
        Entries leave the tables.
    high : int
        High weights and their places enter the sparse part.
    zero : int
        Group sums leave the tree and meet the zero-point leaf.
    parts : int
        The sums of both parts of banks are complete.
    column : int
        Scaled sums enter the plane-shift register; of banks those of the last turn.
    result : int
        The new accumulator value is written and leaves as a result.
    """

    def __init__(self, config):
        lanes = [len(point_lanes(config, t)) for t in range(config.scale_points)]
        self.tables = table_latency(config)
        self.zero = self.tables + tree_levels(max(lanes))
        self.high = Sentinels.LATENCY * config.sentinels
        if config.sparse:
            self.zero = max(self.zero, self.high + sparse_latency(config) - 2)
        self.parts = self.zero + 2
        self.column = self.zero
        if config.sparse:
            self.column = self.parts - 1 + scaling_latency(config) + config.turns
        elif config.scaled:
            self.column += 1 + scaler(config)[0].LATENCY + tree_levels(config.scale_points)
        self.result = self.column + 2
        self.address = self.column - 1 - BlockRAM.LATENCY
        """The accumulator's read address is registered here: output register, then operand."""


def scaler(config):
    """Multiplier of group sums and scales: a class, and its options."""
    if config.group_bits <= 18:
        return Multiplier, {}
    return WideMultiplier, {"dsps": config.scaler_dsps}


def point_lanes(config, t):
    """Lane numbers that scale point `t` sums."""
    blocks = config.blocks // config.scale_points
    low, high = t * blocks * BLOCK, (t + 1) * blocks * BLOCK
    return [i for i, k in enumerate(lane_positions(config)) if low <= k[0] < high]


class Cell(wiring.Component):
    """Trees, scaling and accumulators for one row and one column of the array.

    One beat per cycle; no back-pressure; the strobes come from the array's control at the cycles
    that :class:`Timing` names.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    values : In(one entry per lane), signs : In(lanes)
        What the tables gave, and whether it counts negative, at cycle ``tables``.
    scales : In(array of unsigned(16))
        Scales of the group sums, at cycle ``zero`` + 1; of banks, those of each turn, as
        :class:`hdl.scaled_banks.ScaledBanks` wants them.
    zero_signs : In(scale_points)
        Signs of the zero-point leaf, at cycle ``zero``.
    sum_clear, sum_capture : In(1)
        Forget the sums of the activations (before cycle ``zero``); take the group sums as such.
    column_valid, column_first : In(1)
        At cycle ``column``: shift in a plane; it is the column's first.  Banks, which have summed
        the planes before: add the sum of a turn.
    bias : In(signed(column_bits))
        Added to the first plane, at cycle ``column``; of ``sq`` to the first turn of banks,
        ``turns - 1`` cycles before.
    address : In
        Accumulator of the column, one cycle before its read.
    overwrite : In(1)
        The column's accumulator starts at zero, aligned with the operand register's load.
    high, write : In(1)
        Scale by 256 (cycle ``column`` + 1); write back (cycle ``result``).
    write_address : In
    result : Out(signed(accumulator_bits))
        The new value, at cycle ``result``.

    Of ``sq``:

    keep : In(scale_points), kept : In, word : In
        A word of activations for the RAMs of a bank (one-hot): see :class:`hdl.sparse.Sparse`.
    weights : In(per bank high_weights), table_bank : In(1)
        At cycle ``high``.
    plane_valid, plane_first : In(1)
        A cycle before ``parts``: shift in a plane of the dense part, add to the sparse one; it is
        the column's first.
    bank_end, turn, exponents : In
        From cycle ``parts`` on, see :class:`hdl.scaled_banks.ScaledBanks`.
    """

    def __init__(self, config):
        self.config = config
        self.lanes = lane_positions(config)
        entry = signed(config.entry_bits(max(config.chunks)))
        points = config.scale_points
        address = config.n_tile.bit_length() - 1
        sparse = {
            "keep": In(points), "kept": In(kept_bits(config) + 1),
            "word": In(8 * config.builders),
            "weights": In(data.ArrayLayout(high_weights(config), points)), "table_bank": In(1),
            "plane_valid": In(1), "plane_first": In(1),
            "bank_end": In(1), "turn": In(range(config.turns)),
            "exponents": In(EXPONENT_BITS * scalers(config)),
            "scales": In(SCALE_BITS * scalers(config))
        } if config.sparse else {}
        super().__init__({
            "values": In(data.ArrayLayout(entry, len(self.lanes))), "signs": In(len(self.lanes)),
            "scales": In(data.ArrayLayout(SCALE_BITS, points)), "zero_signs": In(points),
            "sum_clear": In(1), "sum_capture": In(1),
            "column_valid": In(1), "column_first": In(1), "bias": In(signed(config.column_bits)),
            "address": In(address), "overwrite": In(1), "high": In(1), "write": In(1),
            "write_address": In(address),
            "result": Out(signed(config.accumulator_bits)), **sparse,
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        family = config.family
        timing = Timing(config)

        lanes = self.lanes
        products, parts = [], []
        for t in range(config.scale_points):
            chosen = point_lanes(config, t)
            m.submodules[f"tree_{t}"] = tree = Tree(
                [len(lanes[i]) * config.operand_max for i in chosen], family)
            for j, i in enumerate(chosen):
                m.d.comb += [tree.entries[j].eq(self.values[i]), tree.signs[j].eq(self.signs[i])]
            levels = timing.zero - timing.tables
            short = levels - tree_levels(len(chosen))
            total = delay(m, tree.total, short, name=f"total_{t}")
            pending = delay(m, tree.pending, short, name=f"pending_{t}")

            # The zero point is one more leaf: plus or minus the sum of the group's activations,
            # which the tree itself found when the tile started (codes all plus, then all minus).
            plane_bits = bits_for(config.plane_max)
            group_sum = Signal(signed(plane_bits), name=f"group_sum_{t}")
            plus = Signal(signed(plane_bits), name=f"plus_{t}")
            minus = Signal(signed(plane_bits), name=f"minus_{t}")
            if config.zero_points:
                with m.If(self.sum_clear):
                    m.d.sync += [plus.eq(0), minus.eq(0)]
                with m.Elif(self.sum_capture):
                    m.d.sync += [minus.eq(group_sum), plus.eq(minus)]
            if config.signed_sums:
                m.d.comb += group_sum.eq(add_select(
                    m, total, plus, minus, self.zero_signs[t], cin=pending,
                    width=plane_bits, family=family))
            else:       # no signs
                m.d.comb += group_sum.eq(total)
            if config.sparse:
                parts.append(self._parts(m, t, group_sum))
                continue
            if not config.scaled:
                products.append((group_sum, config.group_max))
                continue
            kind, options = scaler(config)
            m.submodules[f"multiplier_{t}"] = multiplier = kind(
                config.group_bits, SCALE_BITS + 1, family, **options)
            # A register of its own: the multiplier may be far away.
            m.d.comb += [multiplier.a.eq(delay(m, group_sum, 1, name=f"group_sum_{t}")),
                         multiplier.b.eq(self.scales[t])]
            products.append((multiplier.o, config.group_max * (2**SCALE_BITS - 1)))

        if config.sparse:
            m.submodules.banks = banks = ScaledBanks(config)
            m.d.comb += [banks.end.eq(self.bank_end), banks.turn.eq(self.turn),
                         banks.exponents.eq(self.exponents), banks.scales.eq(self.scales)]
            dense, sparse = zip(*parts)
            m.d.comb += [banks.dense.eq(Cat(*dense)), banks.sparse.eq(Cat(*sparse))]
            scaled = banks.o
        else:
            scaled = sum_of(m, products, family)

        # Planes come most significant first: double and add.
        column = Signal(signed(config.column_bits), reset_less=True)
        shifted = add_select(m, scaled, column if config.sparse else column << 1, self.bias,
                             self.column_first,
                             width=config.column_bits, family=family)
        with m.If(self.column_valid):
            m.d.sync += column.eq(shifted)

        m.submodules.accumulators = ram = BlockRAM(
            config.accumulator_bits, config.n_tile, family=family)
        old = Signal(signed(config.accumulator_bits), reset_less=True)
        with m.If(self.overwrite):
            m.d.sync += old.eq(0)
        with m.Else():
            m.d.sync += old.eq(ram.read_data)
        if config.byte_passes:
            new = add_select(m, old, column, column << 8, self.high,
                             width=config.accumulator_bits, family=family)
        else:
            new = add(m, old, column, width=config.accumulator_bits, family=family)
        m.d.sync += self.result.eq(new)
        m.d.comb += [
            ram.read_address.eq(self.address),
            ram.write_address.eq(self.write_address), ram.write_data.eq(self.result),
            ram.write_enable.eq(self.write)]
        return m

    def _parts(self, m, t, plane):
        """Sums of a bank's two parts, at ``parts``: twice the dense one, and the sparse one."""
        config = self.config
        timing = Timing(config)
        m.submodules[f"sparse_{t}"] = sparse = Sparse(
            config, timing.parts - timing.high - sparse_latency(config))
        m.d.comb += [
            sparse.keep.valid.eq(self.keep[t]), sparse.keep.payload.address.eq(self.kept),
            sparse.keep.payload.word.eq(self.word), sparse.high.eq(self.weights[t]),
            sparse.table_bank.eq(self.table_bank), sparse.codes.eq(self.plane_valid),
            sparse.first.eq(self.plane_first)]
        dense = Signal(signed(dense_bits(config)), name=f"dense_{t}", reset_less=True)
        plane = delay(m, plane, 1, name=f"plane_{t}")
        total = add_select(m, plane, dense << 1, 0, self.plane_first, width=len(dense),
                           family=config.family)
        with m.If(self.plane_valid):
            m.d.sync += dense.eq(total)
        if config.late_steps:   # until the sparse part of the column comes, with the next one
            before = Signal.like(dense, name=f"before_{t}")
            with m.If(self.plane_valid & self.plane_first):
                m.d.sync += before.eq(dense)
            dense = before
        return dense, sparse.o
