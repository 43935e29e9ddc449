"""The store stage: writes finished accumulators to memory, as they are or as bytes."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hdl.beat import Flow, write_request
from hdl.config import CHAINED_CELLS
from hdl.control import fields_of
from hdl.epilogue import Epilogue
from hdl.isa import Opcode
from hdl.layout import PARAMETER_FIELDS
from hdl.parts import BlockRAM, add_select, delay

__all__ = ["Store", "spacing"]


def spacing(config):
    """Cycles between column steps that the store stage needs in the last K tile: (raw, int8)."""
    return config.store_beats, config.cells if config.epilogue else 1


def _choice_latency(config):
    """Cycles for the choice of a cell's result: one where the multiplexer is large."""
    return int(config.cells > CHAINED_CELLS)


class Store(wiring.Component):
    """Executes STORE: writes the results of a tile, until the last column step of its LMMA.

    Results come when the array finishes them; there is no back-pressure here.  The gather stage
    keeps column steps :func:`spacing` cycles apart and stops while the memory has no room.

    Accumulators are written as 64-bit numbers, cell after cell of a column step.  int8 results are
    written as LOAD reads activations: ``load_values`` columns of a row to a beat, rows beat by
    beat; a tile must have a multiple of eight columns.  Engines that take indexes replace every
    one by a byte of a table: its index in the next layer's codebook.  STORE fills the low or the
    high bytes of their elements.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    i : In(stream.Signature(STORE fields))
    results : In(one accumulator per cell, cell = column * rows + row), result_valid : In(1)
    result_last : In(1)
        They are those of the tile's last column step.
    table : In(Flow of {word, byte})
        The byte that replaces an int8 result, by its low eight bits.
    multipliers, shifts : In(per column)
        Re-quantisation parameters, with the result.
    int8 : Out(1)
        The tile being stored is re-quantised.
    sink_ready : Out(1)
        The next tile of results may come (strobe).
    o_write : Out(Flow(write_request))
    busy : Out(1)
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "i": In(stream.Signature(fields_of(Opcode.STORE, config))),
            "results": In(data.ArrayLayout(signed(config.accumulator_bits), config.cells)),
            "result_valid": In(1), "result_last": In(1),
            "multipliers": In(data.ArrayLayout(PARAMETER_FIELDS["multiplier"][1],
                                               config.columns)),
            "shifts": In(data.ArrayLayout(PARAMETER_FIELDS["shift"][1], config.columns)),
            **({"table": In(Flow(data.StructLayout({"word": 8, "byte": 8})))}
               if config.takes_indexes else {}),
            "int8": Out(1),
            "sink_ready": Out(1),
            "o_write": Out(Flow(write_request(config))),
            "busy": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        cells, rows = config.cells, config.rows
        per_beat = config.results_per_beat
        start = Signal()
        active = Signal()
        int8 = self.int8
        m.d.comb += [start.eq(self.i.ready), self.busy.eq(active), self.sink_ready.eq(start)]
        m.d.sync += self.i.ready.eq(self.i.valid & ~active & ~start)
        with m.If(start):
            m.d.sync += [active.eq(1), int8.eq(self.i.p.target)]

        # A column step's results leave one group per cycle: a beat's worth, or one if int8.
        groups = max(1, cells // per_beat)
        width = min(cells, per_beat)
        held = Signal(data.ArrayLayout(signed(config.accumulator_bits), cells), reset_less=True)
        index = Signal(range(cells))
        going = Signal()
        raw_valid = Signal()
        group_last = Signal()
        final = Signal()        # they are those of the last column step
        m.d.comb += group_last.eq(index == Mux(int8, cells - 1, groups - 1))
        with m.If(self.result_valid):
            m.d.sync += [held.eq(self.results), index.eq(0), going.eq(1), raw_valid.eq(~int8),
                         final.eq(self.result_last)]
        with m.Elif(group_last):
            m.d.sync += [going.eq(0), raw_valid.eq(0)]
        with m.Else():
            m.d.sync += index.eq(index + 1)
        words = [Cat(*(Cat(v, v[-1].replicate(64 - len(v)))
                       for v in (held[g * width + i] for i in range(width))))
                 for g in range(groups)]
        raw = Array(words)[index] if groups > 1 else words[0]

        # Accumulators fill a beat `width` at a time, int8 results a word of eight at a time.
        write = self.o_write.payload
        beat = Signal(config.address_bits)
        place = Signal(per_beat, init=1)        # one-hot: which 64-bit word of the beat
        step = width
        address = beat
        if config.epilogue:
            word, word_valid, word_row = self._requantised(m, going, held, index)
            limit = config.load_values // 8      # words of a beat that LOAD reads
            row_last = word_row.all() if rows > 1 else 1
            if rows > 1:
                address = Mux(int8, Cat(word_row, beat[rows.bit_length() - 1:]), beat)
            m.d.comb += [
                self.o_write.valid.eq(raw_valid | word_valid),
                write.data.eq(Mux(int8, word.replicate(width), raw)),
            ]
            word_next = word_valid & row_last
            int8_end = word_next & (1 if config.takes_indexes else place[limit - 1])
        else:
            m.d.comb += [self.o_write.valid.eq(raw_valid), write.data.eq(raw)]
            word_next, int8_end = 0, 0
        raw_end = raw_valid & place[per_beat - step]
        spread = [place[i // step * step] for i in range(per_beat)]
        if config.epilogue:
            spread = [Mux(int8, place[i], wide) for i, wide in enumerate(spread)]
        m.d.comb += [write.mask.eq(Cat(bit.replicate(2) for bit in spread)),
                     write.address.eq(address)]
        beat_end = int8_end | raw_end
        increment = Mux(int8, rows, 1) & ~start.replicate(rows.bit_length())
        following = add_select(m, increment, beat, self.i.p.address, start,
                               width=config.address_bits, family=config.family)
        with m.If(start | beat_end):
            m.d.sync += beat.eq(following)
        if config.takes_indexes:       # bytes go to the same word of every beat
            with m.If(start):
                m.d.sync += place.eq(Mux(self.i.p.target & self.i.p.high, 2, 1))
            with m.Elif(raw_end):
                m.d.sync += place.eq(1)
        else:
            with m.If(start | beat_end):
                m.d.sync += place.eq(1)
            with m.Elif(word_next):
                m.d.sync += place.eq(place << 1)
        with m.If(raw_valid & ~raw_end & ~start):
            m.d.sync += place.eq(place << step)

        # The last column step has left when it would have come through the epilogue.
        over = delay(m, going & group_last & final,
                     _choice_latency(config) + Epilogue.LATENCY + 1
                     + BlockRAM.LATENCY * config.takes_indexes, name="over", resettable=True)
        with m.If(over):
            m.d.sync += active.eq(0)
        return m

    def _requantised(self, m, going, held, index):
        """int8 results packed into words of eight columns: (word, valid, row)."""
        config = self.config
        cells, rows = config.cells, config.rows
        m.submodules.epilogue = epilogue = Epilogue(
            config.accumulator_bits, config.coarse_base, config.family)
        row_bits = rows.bit_length() - 1
        column = index[row_bits:] if config.columns > 1 else 0
        relu = Signal()
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += relu.eq(self.i.p.relu)
        parameters = (self.multipliers, self.shifts)
        parameters = tuple(Signal(p.shape(), name=f"held_parameters_{i}", reset_less=True)
                           for i, p in enumerate(parameters))
        with m.If(self.result_valid):
            m.d.sync += [parameters[0].eq(self.multipliers), parameters[1].eq(self.shifts)]
        wait = _choice_latency(config)
        m.d.comb += [
            epilogue.i.valid.eq(delay(m, going & self.int8, wait, name="chosen_valid",
                                      resettable=True)),
            epilogue.relu.eq(relu),
            epilogue.i.payload.value.eq(delay(m, held[index], wait, name="chosen")),
            epilogue.i.payload.multiplier.eq(delay(m, parameters[0][column], wait,
                                                   name="chosen_multiplier")),
            epilogue.i.payload.shift.eq(delay(m, parameters[1][column], wait,
                                              name="chosen_shift"))]
        byte, valid = epilogue.o.payload, epilogue.o.valid
        if config.takes_indexes:
            m.submodules.table = table = BlockRAM(8, 256, family=config.family)
            m.d.comb += [table.write_enable.eq(self.table.valid),
                         table.write_address.eq(self.table.payload.word),
                         table.write_data.eq(self.table.payload.byte),
                         table.read_address.eq(byte)]
            byte, valid = table.read_data, delay(m, valid, table.LATENCY, name="valid",
                                                 resettable=True)

        cell = Signal(range(cells)) if cells > 1 else Const(0, 1)
        eighth = Signal(3)
        column_end = cell[:row_bits].all() if rows > 1 else 1
        row = Signal(max(1, row_bits))
        full = Signal()
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += eighth.eq(0)
            if cells > 1:
                m.d.sync += cell.eq(0)
        with m.Elif(valid):
            m.d.sync += eighth.eq(eighth + column_end)
            if cells > 1:
                m.d.sync += cell.eq(cell + 1)
        # A row's word is complete, and written, one cycle after its eighth byte.
        packed = Signal(data.ArrayLayout(64, rows), reset_less=True)
        m.d.sync += [full.eq(valid & (eighth == 7)), row.eq(cell[:row_bits] if rows > 1 else 0)]
        for r in range(rows):
            with m.If(valid & (cell[:row_bits] == r if rows > 1 else 1)):
                m.d.sync += packed[r].eq(Cat(packed[r][8:], byte))
        return (packed[row] if rows > 1 else packed[0]), full, row
