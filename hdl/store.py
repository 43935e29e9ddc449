"""The store stage: takes finished accumulators and writes them to memory, as they are or as int8."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hdl.beat import Flow, write_request
from hdl.control import fields_of
from hdl.epilogue import Epilogue
from hdl.isa import Opcode
from hdl.layout import PARAMETER_BITS, PARAMETER_FIELDS
from hdl.parts import BlockRAM, count_down

__all__ = ["Store", "spacing"]

_QUEUE = 64     # more column steps than the array can have under way


def spacing(config):
    """Cycles between column steps that the store stage needs in the last K tile."""
    return config.cells if config.epilogue else config.store_beats


class Store(wiring.Component):
    """Executes STORE: numbers the results of a tile and writes them out.

    Results come when the array finishes them; there is no back-pressure here.  The gather stage
    keeps column steps :func:`spacing` cycles apart and stops while the memory has no room.

    Accumulators are written as 64-bit numbers, cell after cell of a column step.  int8 results are
    written as LOAD reads activations: ``load_bytes`` columns of a row to a beat, rows beat by beat.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    i : In(stream.Signature(STORE fields))
    results : In(one accumulator per cell, cell = column * rows + row), result_valid : In(1)
    result_soon : In(1)
        `result_valid` two cycles ahead.
    parameters : In(80 bits per column), parameters_valid : In(1)
        Re-quantisation parameters, before the column's result (see :mod:`hdl.layout`).
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
            "result_valid": In(1), "result_soon": In(1),
            "parameters": In(data.ArrayLayout(PARAMETER_BITS, config.columns)),
            "parameters_valid": In(1),
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
        int8 = Signal()
        relu = Signal()
        m.d.comb += [start.eq(self.i.valid & ~active), self.i.ready.eq(~active),
                     self.busy.eq(active), self.sink_ready.eq(start)]
        with m.If(start):
            m.d.sync += [active.eq(1), int8.eq(self.i.p.target), relu.eq(self.i.p.relu)]

        # A column step's results leave one group per cycle: a beat's worth, or one if int8.
        groups = max(1, cells // per_beat)
        width = min(cells, per_beat)
        held = Signal(data.ArrayLayout(signed(config.accumulator_bits), cells), reset_less=True)
        index = Signal(range(max(2, cells)))
        going = Signal()
        group_last = Signal()
        if cells == 1:
            m.d.comb += [held.eq(self.results), going.eq(self.result_valid), group_last.eq(1)]
        else:
            m.d.comb += group_last.eq(index == Mux(int8, cells - 1, groups - 1))
            with m.If(self.result_valid):
                m.d.sync += [held.eq(self.results), index.eq(0), going.eq(1)]
            with m.Elif(going):
                m.d.sync += [index.eq(index + 1), going.eq(~group_last)]

        words = [Cat(*(Cat(v, v[-1].replicate(64 - len(v)))
                       for v in (held[g * width + i] for i in range(width))))
                 for g in range(groups)]
        raw = (Array(words)[index] if groups > 1 else words[0]).replicate(per_beat // width)
        raw_slots = per_beat // width

        write = self.o_write.payload
        beat = Signal(config.address_bits)      # of the row, if int8
        raw_place = Signal(raw_slots, init=1)   # one-hot: where in the beat
        raw_mask = Cat(raw_place[i // (8 * width)] for i in range(config.beat_bytes))
        raw_end = raw_place[-1]
        valid, done, ends_beat = Signal(), Signal(), Signal()
        raw_valid = going & ~int8
        if config.epilogue:
            m.submodules.epilogue = epilogue = Epilogue(config.accumulator_bits, config.family)
            value = Array(held[i] for i in range(cells))[index] if cells > 1 else held[0]
            m.d.comb += [epilogue.i.valid.eq(going & int8), epilogue.relu.eq(relu),
                         epilogue.i.payload.value.eq(value)]
            for name, field in self._parameters(m, start, index).items():
                m.d.comb += epilogue.i.payload[name].eq(field)
            byte, byte_valid = epilogue.o.payload, epilogue.o.valid
            # Rows come before the next column.
            cell_last, row = 1, None
            if cells > 1:
                cell = Signal(range(cells))
                cell_last = cell == cells - 1
                with m.If(byte_valid):
                    m.d.sync += cell.eq(cell + 1)
                row = cell[:rows.bit_length() - 1]
            row_last = row.all() if rows > 1 else 1
            place = Signal(config.load_bytes, init=1)   # one-hot: which byte
            with m.If(start):
                m.d.sync += place.eq(1)
            with m.Elif(byte_valid & row_last):
                m.d.sync += place.eq(place.rotate_left(1))
            address = beat if rows == 1 else Cat(row, beat[rows.bit_length() - 1:])
            rest = config.beat_bytes - config.load_bytes
            m.d.comb += [
                valid.eq(raw_valid | byte_valid),
                ends_beat.eq(Mux(int8, place[-1] & row_last, raw_end)),
                done.eq(Mux(int8, byte_valid & cell_last, raw_valid & group_last)),
                write.mask.eq(Mux(int8, Cat(place, Const(0, rest)), raw_mask)),
                write.data.eq(Mux(int8, byte.as_unsigned().replicate(config.beat_bytes), raw)),
                write.address.eq(Mux(int8, address, beat)),
            ]
        else:
            m.d.comb += [valid.eq(raw_valid), ends_beat.eq(raw_end), write.data.eq(raw),
                         done.eq(raw_valid & group_last), write.mask.eq(raw_mask),
                         write.address.eq(beat)]
        m.d.comb += self.o_write.valid.eq(valid)
        with m.If(raw_valid):
            m.d.sync += raw_place.eq(raw_place.rotate_left(1))
        advance = Mux(int8, rows, 1) if config.epilogue and rows > 1 else 1
        with m.If(start):
            m.d.sync += [beat.eq(self.i.p.address), raw_place.eq(1)]
        with m.Elif(valid & ends_beat):
            m.d.sync += beat.eq(beat + advance)

        last = count_down(m, len(self.i.p.columns), load=start, value=self.i.p.columns, step=done,
                          family=config.family, name="columns_left")
        with m.If(done & last):
            m.d.sync += active.eq(0)
        return m

    def _parameters(self, m, start, index):
        """Queue the parameters of the columns under way; those of the current result."""
        config = self.config
        width = PARAMETER_BITS * config.columns
        m.submodules.parameters = ram = BlockRAM(width, _QUEUE, family=config.family)
        tail = Signal(range(_QUEUE))
        head = Signal(range(_QUEUE))
        m.d.comb += [
            ram.write_address.eq(tail), ram.write_data.eq(self.parameters),
            ram.write_enable.eq(self.parameters_valid), ram.read_address.eq(head)]
        with m.If(start):
            m.d.sync += [tail.eq(0), head.eq(0)]
        with m.Else():
            m.d.sync += [tail.eq(tail + self.parameters_valid), head.eq(head + self.result_soon)]
        # The address of a column stands while its result is two cycles away.
        if config.cells == 1:
            word = ram.read_data
        else:
            held = Signal(width, reset_less=True)
            with m.If(self.result_valid):
                m.d.sync += held.eq(ram.read_data)
            rows_bits = config.rows.bit_length() - 1
            word = held if config.columns == 1 else Array(
                held[c * PARAMETER_BITS:(c + 1) * PARAMETER_BITS]
                for c in range(config.columns))[index[rows_bits:]]
        return {name: word[o:o + w] for name, (o, w) in PARAMETER_FIELDS.items()}
