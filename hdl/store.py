"""The store stage: takes finished accumulators and sends them to memory or to the next layer."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hdl.beat import Flow, write_request
from hdl.config import BLOCK
from hdl.control import fields_of
from hdl.epilogue import Epilogue
from hdl.isa import Opcode, Target
from hdl.layout import PARAMETER_BITS, PARAMETER_FIELDS, activation_slot
from hdl.prepare import ActivationWrite

__all__ = ["Store", "spacing"]


def spacing(config):
    """Cycles between column steps that the store stage needs in the last K tile."""
    return config.cells if config.epilogue else config.store_beats


class Store(wiring.Component):
    """Executes STORE: numbers the results of a tile and writes them out.

    Results come when the array finishes them; there is no back-pressure here.  The gather stage
    keeps column steps :func:`spacing` cycles apart and stops while `o_write` has no room.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    i : In(stream.Signature(STORE fields))
    results : In(one accumulator per cell, cell = column * rows + row), result_valid : In(1)
    parameters : In(80 bits per column), parameters_valid : In(1)
        Re-quantisation parameters, before the column's result (see :mod:`hdl.layout`).
    sink_ready : Out(1)
        The next tile of results may come (strobe).
    o_write : Out(Flow(write_request))
    o_activation : Out(Flow(ActivationWrite))
    busy : Out(1)
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "i": In(stream.Signature(fields_of(Opcode.STORE, config))),
            "results": In(data.ArrayLayout(signed(config.accumulator_bits), config.cells)),
            "result_valid": In(1),
            "parameters": In(data.ArrayLayout(PARAMETER_BITS, config.columns)),
            "parameters_valid": In(1),
            "sink_ready": Out(1),
            "o_write": Out(Flow(write_request(config))),
            "o_activation": Out(Flow(ActivationWrite(config))),
            "busy": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        cells = config.cells
        per_beat = config.results_per_beat

        job = Signal(self.i.p.shape())
        active = Signal()
        columns_left = Signal(16)
        raw = Signal()
        m.d.comb += [self.i.ready.eq(~active), self.busy.eq(active),
                     raw.eq(job.target == Target.ACCUMULATORS)]

        # A column step's results, one group per cycle: `per_step` at a time when raw, else one.
        groups = max(1, cells // per_beat)
        held = Signal(data.ArrayLayout(signed(config.accumulator_bits), cells), reset_less=True)
        index = Signal(range(max(2, cells)))
        going = Signal()
        if cells == 1:
            m.d.comb += [held.eq(self.results), going.eq(self.result_valid)]
        else:
            with m.If(self.result_valid):
                m.d.sync += [held.eq(self.results), index.eq(0), going.eq(1)]
            with m.Elif(going):
                final = Mux(raw, groups - 1, cells - 1)
                m.d.sync += [index.eq(index + 1), going.eq(index != final)]
        step_last = Signal()
        m.d.comb += step_last.eq(going & (index == Mux(raw, groups - 1, cells - 1)))

        # Raw: 64-bit results, as many as there are or as fit a beat.
        width = min(cells, per_beat)
        words = []
        for g in range(groups):
            words.append(Cat(*(
                Cat(held[g * width + i],
                    held[g * width + i][-1].replicate(64 - config.accumulator_bits))
                for i in range(width))))
        raw_data = Array(words)[index] if groups > 1 else words[0]
        raw_beat = raw_data.replicate(per_beat // width)
        slots = per_beat // width

        write = self.o_write.payload
        position = Signal(range(config.beat_bytes))      # slot within a beat
        address = Signal(config.address_bits)
        done = Signal()
        if config.epilogue:
            m.submodules.epilogue = epilogue = Epilogue(config.accumulator_bits, config.family)
            parameters = self._parameters(m, going & ~raw, index)
            m.d.comb += [
                epilogue.i.valid.eq(going & ~raw),
                epilogue.i.payload.value.eq(Array(held[i] for i in range(cells))[index]
                                      if cells > 1 else held[0]),
                epilogue.i.payload.bias.eq(parameters["bias"].as_signed()),
                epilogue.i.payload.multiplier.eq(parameters["multiplier"]),
                epilogue.i.payload.shift.eq(parameters["shift"]),
                epilogue.relu.eq(job.relu)]
            byte_valid, byte = epilogue.o.valid, epilogue.o.payload
            self._activations(m, job, byte_valid, byte)
            to_memory = Signal()
            m.d.comb += to_memory.eq(byte_valid & (job.target == Target.INT8))
            m.d.comb += [
                self.o_write.valid.eq(going & raw | to_memory),
                write.data.eq(Mux(raw, raw_beat, byte.as_unsigned().replicate(
                    config.beat_bytes))),
            ]
            byte_mask = Const(1, config.beat_bytes) << position
            byte_end = position == config.beat_bytes - 1
        else:
            byte_valid = Const(0, 1)
            m.d.comb += [self.o_write.valid.eq(going), write.data.eq(raw_beat)]
            byte_mask, byte_end = Const(0, 1), Const(0, 1)
        raw_mask = Const(2 ** (8 * width) - 1, config.beat_bytes) << (position * 8 * width)
        m.d.comb += [write.address.eq(address), write.mask.eq(Mux(raw, raw_mask, byte_mask))]
        with m.If(self.o_write.valid):
            beat_end = Mux(raw, position == slots - 1, byte_end)
            m.d.sync += position.eq(Mux(beat_end, 0, position + 1))
            with m.If(beat_end):
                m.d.sync += address.eq(address + 1)

        # The STORE ends with its last result, whichever way it took.
        left = Signal(range(cells)) if cells > 1 else None
        if left is None:
            m.d.comb += done.eq(Mux(raw, going, byte_valid))
        else:
            byte_done = byte_valid & (left == 0)
            with m.If(byte_valid):
                m.d.sync += left.eq(Mux(left == 0, cells - 1, left - 1))
            m.d.comb += done.eq(Mux(raw, step_last, byte_done))
        with m.If(done):
            m.d.sync += columns_left.eq(columns_left - 1)
            with m.If(columns_left == 0):
                m.d.sync += active.eq(0)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [active.eq(1), job.eq(self.i.p), columns_left.eq(self.i.p.columns),
                         address.eq(self.i.p.address), position.eq(0)]
            m.d.comb += self.sink_ready.eq(1)
            if left is not None:
                m.d.sync += left.eq(cells - 1)
        return m

    def _parameters(self, m, take, index):
        """Queue the parameters of the columns on their way and return those of this result."""
        config = self.config
        depth = 32      # more columns than the array can have under way
        m.submodules.parameters = queue = Queue(PARAMETER_BITS * config.columns, depth)
        rows_end = Signal()
        m.d.comb += [
            queue.write.eq(self.parameters_valid), queue.data.eq(self.parameters),
            rows_end.eq(index == config.cells - 1 if config.cells > 1 else 1),
            queue.read.eq(take & rows_end)]
        if config.columns > 1:
            row_bits = config.rows.bit_length() - 1
            word = Array(queue.head[c * PARAMETER_BITS:(c + 1) * PARAMETER_BITS]
                         for c in range(config.columns))[index >> row_bits]
        else:
            word = queue.head
        return {name: word[o:o + w] for name, (o, w) in PARAMETER_FIELDS.items()}

    def _activations(self, m, job, valid, byte):
        """Write int8 results where the next layer's builders look for them."""
        config = self.config
        cells, rows, columns = config.cells, config.rows, config.columns
        number = Signal(range(cells)) if cells > 1 else Const(0, 1)
        n = Signal(16)          # output column: the next layer's K position
        out = self.o_activation.payload
        if cells > 1:
            row = number[:rows.bit_length() - 1] if rows > 1 else Const(0, 1)
            with m.If(valid):
                m.d.sync += number.eq(Mux(number == cells - 1, 0, number + 1))
            next_column = Signal()
            m.d.comb += next_column.eq(row == rows - 1 if rows > 1 else 1)
        else:
            row, next_column = Const(0, 1), Const(1, 1)
        with m.If(valid & next_column):
            m.d.sync += n.eq(n + 1)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += n.eq(0)
            if cells > 1:
                m.d.sync += number.eq(0)

        # Within a block the slot is a permutation of the bits of n.
        words_per_block = BLOCK // config.builders
        slots = {}
        block_ends = {}
        first = {}
        for block, v in enumerate(config.chunks):
            first.setdefault(v, block * BLOCK)
            block_ends[v] = (block + 1) * BLOCK
        for v, base in first.items():
            slots[v] = [activation_slot(config, base + i) for i in range(BLOCK)]
        word_bits = words_per_block.bit_length() - 1
        word = Signal(max(1, word_bits))
        lane = Signal(range(max(2, config.builders)))
        for v in first:
            inside = (n[:config.tile_k.bit_length() - 1] >= first[v])
            with m.If(inside), m.Switch(n[:5]):
                for i, (w, b) in enumerate(slots[v]):
                    with m.Case(i):
                        m.d.comb += [word.eq(w % words_per_block), lane.eq(b)]
        offset = Cat(word[:word_bits], n[5:])
        m.d.comb += [
            self.o_activation.valid.eq(valid & (job.target == Target.ACTIVATIONS)),
            out.address.eq(job.local + offset)]
        for r in range(rows):
            m.d.comb += out.data[r].eq(byte.as_unsigned().replicate(config.builders))
            for b in range(config.builders):
                m.d.comb += out.mask[r][b].eq((lane == b) & (row == r))
        del columns


class Queue(wiring.Component):
    """A small first-in first-out memory without flow control; `head` is the oldest word.

    The user never reads when empty nor writes when full.  A word is at `head` two cycles after
    its write at the latest.
    """

    def __init__(self, width, depth):
        self.width = width
        self.depth = depth
        super().__init__({"write": In(1), "data": In(width), "read": In(1), "head": Out(width)})

    def elaborate(self, platform):
        from amaranth.lib.memory import Memory
        m = Module()
        m.submodules.memory = memory = Memory(shape=self.width, depth=self.depth, init=[])
        port = memory.write_port()
        read = memory.read_port(domain="comb")
        tail = Signal(range(self.depth))
        front = Signal(range(self.depth))
        m.d.comb += [port.addr.eq(tail), port.data.eq(self.data), port.en.eq(self.write),
                     read.addr.eq(front), self.head.eq(read.data)]
        with m.If(self.write):
            m.d.sync += tail.eq(tail + 1)
        with m.If(self.read):
            m.d.sync += front.eq(front + 1)
        return m
