"""A few rows of the array: activation buffers, builders, tables and cells.

Rows share codes and control.  Those of one :class:`Rows` share registers too; a larger array is a
chain of them, each handing on what it was given a cycle later, so that no wire spans the chip.
In each, building is as late as gathering, so nothing else knows.
"""

from amaranth.hdl import Array, Cat, Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.beat import Flags, Kind, bank_sides, side_slices
from hdl.builder import builder
from hdl.cell import Cell, Timing
from hdl.config import EXPONENT_BITS, SCALE_BITS, TOKEN_BEAT
from hdl.parts import WordRAM, delay
from hdl.prepare import places, slot_bits
from hdl.scaled_banks import exponent_cycle, scalers
from hdl.sentinels import high_places
from hdl.signed_sums import SignedSumBuilder
from hdl.sparse import kept_bits
from hdl.tables import Tables, sections
from hdl.walk import walk

__all__ = ["Rows", "array_input"]


def array_input(config):
    """What the array is given in a cycle.

    ``codes``, ``side`` and ``flags`` are the stream register, a beat for the array if ``gather`` is
    set; a beat of LOAD was in ``codes`` a cycle before, for ``slot`` of the buffers that ``places``
    names (one-hot; zero: none).  A beat of a ``kmeans`` token is in ``values`` instead, when
    ``places`` is set.  ``walk`` is a step of building tables (:func:`hdl.walk.walk`),
    ``biases`` what is added to the first plane of the column that is at cycle ``column`` of
    :class:`~hdl.cell.Timing`, ``high_places`` where the high weights lie of the beat at cycle
    ``high``, if they come without.  ``banks`` is the flag ``bank`` for each section of tables, see
    :class:`hdl.tables.Tables`.
    """
    return data.StructLayout({
        "codes": config.code_bits, "side": config.side_bits, "flags": Flags, "gather": 1,
        "banks": sections(config),
        "high_places": high_places(config),
        "places": places(config), "slot": slot_bits(config),
        "values": config.value_bits * TOKEN_BEAT * config.encodes,
        "walk": walk(config),
        "biases": data.ArrayLayout(signed(config.column_bits), config.columns)})


class Rows(wiring.Component):
    """The array for some of its rows, all output columns.

    One beat per cycle; no back-pressure.

    Parameters
    ----------
    config : EngineConfig
    rows : range
        Which ones.

    Members
    -------
    i : In(array_input)
    o : Out(array_input)
        The same a cycle later, for the next rows.
    results : Out(per column and row signed(accumulator_bits))
        At cycle ``result`` of :class:`~hdl.cell.Timing`, counted from `i`.
    result_valid, result_last : Out(1)
        They are of the last K tile; of its last column step.
    """

    def __init__(self, config, rows):
        self.config = config
        self.rows = rows
        super().__init__({
            "i": In(array_input(config)), "o": Out(array_input(config)),
            "results": Out(data.ArrayLayout(data.ArrayLayout(
                signed(config.accumulator_bits), len(rows)), config.columns)),
            "result_valid": Out(1), "result_last": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        timing = Timing(config)
        m.d.comb += self.o.eq(delay(m, self.i, 1, name="handed_on"))
        m.d.comb += [self.o[name].eq(delay(m, self.i[name], 1, name=name, resettable=True))
                     for name in ("gather", "places")]

        # Building: a byte per buffer and row, sums of them into the tables.
        entries, words = [], []
        words_per_beat = config.load_values // config.word_values
        word_bits = config.word_values * config.value_bits
        loaded = self.i["values"] if config.encodes else delay(
            m, self.i.codes[:word_bits * words_per_beat], 1, name="loaded")
        for r in self.rows:
            row = []
            for b in range(config.buffers):
                part, word = divmod(b, words_per_beat)
                m.submodules[f"buffer_{r}_{b}"] = ram = WordRAM(
                    config.activation_depth, config.family, parts=config.word_values,
                    bits=config.value_bits)
                m.d.comb += [
                    ram.write_address.eq(self.i.slot),
                    ram.write_data.eq(loaded[word_bits * word:word_bits * (word + 1)]),
                    ram.write_enable.eq(self.i.places[part * config.rows + r]),
                    ram.read_address.eq(self.i.walk.read_address)]
                row.append(ram.read_data)
            if config.sparse:
                words.append(delay(m, Cat(*row), SignedSumBuilder.LATENCY, name=f"word_{r}"))
            m.submodules[f"builder_{r}"] = row_builder = builder(config)
            m.d.comb += [row_builder.word.eq(Cat(*row)), row_builder.step.eq(self.i.walk.step)]
            entries.append(row_builder.entries)

        # Strobes and flags of a beat, as they travel with it.
        flags = self.i.flags
        is_codes = self.i.gather & (flags.kind == Kind.CODES)
        strobes = Signal(data.StructLayout({
            "codes": 1, "column": 1, "clear": 1, "capture": 1, "end": 1}))
        m.d.comb += [
            strobes.codes.eq(is_codes),
            strobes.column.eq(is_codes & flags.last_plane),
            strobes.clear.eq(self.i.gather & flags.pass_start),
            strobes.capture.eq(self.i.gather & (flags.kind == Kind.SUM)),
            strobes.end.eq(self.i.gather & flags.pass_end),
        ]
        trail, kinds = [strobes], [flags]
        for i in range(timing.result):
            trail.append(delay(m, trail[-1], 1, name=f"strobes_{i}", resettable=True))
            kinds.append(delay(m, kinds[-1], 1, name=f"flags_{i}"))

        # Columns are counted where their accumulator is addressed.
        column = Signal(range(config.n_tile))
        address = Signal.like(column, reset_less=True)
        here = trail[timing.address]
        m.d.sync += address.eq(column)
        with m.If(here.end):
            m.d.sync += column.eq(0)
        with m.Elif(here.column):
            m.d.sync += column.eq(column + 1)
        write_address = delay(m, address, timing.result - timing.address - 1, name="address")

        if config.sparse:
            self._take_turns(m, timing, trail)
        else:
            signs = delay(m, self.i.side, timing.zero, name="side")
            scales = delay(m, signs, 1, name="scales")
        if config.sparse:
            turns = [trail[timing.column - i].column for i in range(config.turns)]
            added, added_first = Cat(turns).any(), turns[-1]
        else:
            added, added_first = (trail[timing.column].codes,
                                  kinds[timing.column].first_plane)
        for c in range(config.columns):
            m.submodules[f"tables_{c}"] = tables = Tables(config, len(self.rows))
            m.d.comb += [
                tables.codes.eq(
                    self.i.codes[c * config.column_code_bits:(c + 1) * config.column_code_bits]),
                tables.banks.eq(self.i.banks),
                *(tables.entries[i].eq(e) for i, e in enumerate(entries)),
                tables.group.eq(self.i.walk.group), tables.entry.eq(self.i.walk.entry),
                tables.write_bank.eq(self.i.walk.bank)]
            if config.sparse:
                sides = self._bank_sides(m, c, timing, trail)
            for i, r in enumerate(self.rows):
                m.submodules[f"cell_{c}_{r}"] = cell = Cell(config)
                if config.sparse:
                    m.d.comb += self._bank_inputs(cell, timing, trail, kinds, sides, words[i])
                elif config.scaled:
                    m.d.comb += [
                        *(cell.scales[t].eq(s)
                          for t, (s, _) in enumerate(side_slices(config, scales, c))),
                        cell.zero_signs.eq(Cat(z for _, z in side_slices(config, signs, c)))]
                m.d.comb += [
                    cell.values.eq(tables.values[i]), cell.signs.eq(tables.signs),
                    cell.sum_clear.eq(trail[timing.zero - 1].clear),
                    cell.sum_capture.eq(trail[timing.zero].capture),
                    cell.column_valid.eq(added), cell.column_first.eq(added_first),
                    cell.bias.eq(self.i.biases[c]),
                    cell.address.eq(address),
                    cell.overwrite.eq(kinds[timing.column].first),
                    cell.high.eq(kinds[timing.column + 1].high),
                    cell.write.eq(trail[timing.result].column),
                    cell.write_address.eq(write_address),
                    self.results[c][i].eq(cell.result),
                ]
        before = trail[timing.result - 1]
        m.d.comb += [
            self.result_valid.eq(delay(m, before.column & kinds[timing.result - 1].last, 1,
                                       name="result_valid", resettable=True)),
            self.result_last.eq(trail[timing.result].end),
        ]
        return m

    def _take_turns(self, m, timing, trail):
        """Whose turn it is among the banks of a scaler: for scales, and later for sums."""
        self.turn = Signal(range(self.config.turns))
        with m.If(trail[1].column):
            m.d.sync += self.turn.eq(0)
        with m.Else():
            m.d.sync += self.turn.eq(self.turn + 1)
        self.later_turn = delay(m, self.turn, timing.parts - 1, name="turn")

    def _bank_sides(self, m, c, timing, trail):
        """Of a column's banks: high weights, exponents and scales of each turn."""
        config, turns = self.config, self.config.turns
        sides = bank_sides(config, self.i.side, c)
        high = self._high_weights(m, c, timing, [high for _, high in sides])
        whole = []
        for t, (part, _) in enumerate(sides):
            # Complete after a column's last beat: the lowest part came first.
            parts = Signal(config.column_beats * config.part_bits, name=f"parts_{c}_{t}",
                           reset_less=True)
            with m.If(trail[0].codes):
                m.d.sync += parts.eq(Cat(parts[config.part_bits:], part))
            if turns > 1:   # until its turn
                held = Signal.like(parts, name=f"side_{c}_{t}")
                with m.If(trail[1].column):
                    m.d.sync += held.eq(parts)
                parts = held
            whole.append(parts)
        exponents, scales = [], []
        early = 1 + (turns > 1)
        for s in range(scalers(config)):
            mine = Array(whole[s * turns:(s + 1) * turns])[self.turn]
            mine = delay(m, mine, timing.parts + exponent_cycle(config) - early,
                         name=f"exponent_{c}_{s}")
            exponents.append(mine[SCALE_BITS:SCALE_BITS + EXPONENT_BITS])
            scales.append(delay(m, mine[:SCALE_BITS], 2, name=f"scale_{c}_{s}"))
        return high, exponents, scales

    def _high_weights(self, m, c, timing, given):
        """High weights of each bank of a column, with their places, at cycle ``high``."""
        config = self.config
        if not config.sentinels:
            return given
        given = delay(m, Cat(*given), timing.high, name=f"high_{c}")
        return [Cat(Cat(given.word_select(n, config.high_bits),
                        self.i.high_places[c * config.scale_points * config.high_lanes + n])
                    for n in range(t * config.high_lanes, (t + 1) * config.high_lanes))
                for t in range(config.scale_points)]

    def _bank_inputs(self, cell, timing, trail, kinds, sides, word):
        """Assignments to the inputs of a cell that has banks."""
        walk, split = self.i.walk, kept_bits(self.config)
        here = timing.parts - 1
        points = range(self.config.scale_points)
        highest = trail[timing.zero].codes & kinds[timing.zero].first_plane
        weights, exponents, scales = sides
        return [
            cell.keep.eq(Cat(walk.keep & (walk.kept[split:] == t) for t in points)),
            cell.kept.eq(Cat(walk.kept[:split], walk.bank)), cell.word.eq(word),
            cell.table_bank.eq(kinds[timing.high].bank), cell.weights.as_value().eq(Cat(*weights)),
            cell.plane_valid.eq(trail[here].codes), cell.plane_first.eq(kinds[here].first_plane),
            # The zero point's highest plane counts minus, the others plus.
            cell.zero_signs.eq(highest.replicate(len(points))),
            cell.bank_end.eq(trail[timing.parts].column), cell.turn.eq(self.later_turn),
            cell.exponents.eq(Cat(*exponents)),
            cell.scales.eq(Cat(*scales))]
