"""The engine: three stages, the array of cells and the control, behind one memory port.

Knows no link, no board and no memory: :mod:`hdl.top` puts those around it.
"""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from hdl.bank_encoder import BankEncoder
from hdl.beat import (
    Client,
    Flags,
    Flow,
    Kind,
    read_request,
    read_response,
    write_request,
)
from hdl.cell import Timing
from hdl.config import PARAMETER_BITS
from hdl.control import Control
from hdl.encoder import Encoder, codebook_data, elements_of
from hdl.isa import INSTRUCTION_BITS, Buffer
from hdl.parameters import ParameterQueue
from hdl.parts import count_down, delay
from hdl.prepare import Prepare
from hdl.registers import COUNTERS, Error
from hdl.requests import GatherRequests
from hdl.rows import Rows, array_input
from hdl.sentinels import Sentinels
from hdl.store import Store, spacing
from hdl.tables import complemented, sections
from hdl.telemetry import Telemetry
from hdl.token_units import ENCODE_CYCLES

__all__ = ["Core"]

DRAIN_BITS = 6
"""More than log2 of the cycles from the stream register to the last write."""


class Core(wiring.Component):
    """A complete engine.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    o_request : Out(Flow(read_request))
        One beat per request.
    read_room : In(1)
        The memory takes at least eight more requests.
    i_response : In(stream.Signature(read_response))
        Beats in the order of the requests.  Stalls only while the last K tile waits for
        `write_room`.
    o_write : Out(Flow(write_request))
    write_room : In(1)
        The memory takes at least 32 more writes; without it the last K tile pauses.
    memory_idle : In(1)
        The memory owes no beat and all writes have reached it.
    start : In(1), program : In(address_bits), running, done, failed : Out(1), error : Out(Error)
        See :class:`hdl.control.Control`.
    memory_fault : In(1)
        The memory was asked for a beat that it does not have.
    counter_shift : In(1), counter_bit : Out(1)
        Reading the counters (see :class:`hdl.telemetry.Telemetry`).
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "o_request": Out(Flow(read_request(config))),
            "i_response": In(stream.Signature(read_response(config))),
            "o_write": Out(Flow(write_request(config))),
            "read_room": In(1), "write_room": In(1), "memory_idle": In(1),
            "start": In(1), "program": In(config.address_bits),
            "running": Out(1), "done": Out(1), "failed": Out(1), "error": Out(Error),
            "memory_fault": In(1),
            "counter_shift": In(1), "counter_bit": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        timing = Timing(config)
        m.submodules.control = control = Control(config)
        m.submodules.prepare = prepare = Prepare(config)
        m.submodules.requests = requests = GatherRequests(config)
        m.submodules.store = store = Store(config)
        connect(m, control.o_load, prepare.i_load)
        connect(m, control.o_build, prepare.i_build)
        connect(m, control.o_lmma, requests.i)
        connect(m, control.o_store, store.i)
        connect(m, store.o_write, flipped(self.o_write))
        m.d.comb += [
            control.start.eq(self.start), control.program.eq(self.program),
            control.memory_fault.eq(self.memory_fault),
            self.running.eq(control.running), self.done.eq(control.done),
            self.failed.eq(control.failed), self.error.eq(control.error),
            requests.table_ready.eq(prepare.table_ready),
            requests.sink_ready.eq(store.sink_ready),
        ]

        # Requests: control before loads before codes; short streams first.  Who may ask is decided
        # a cycle before, so that no path runs from one stage's state to another's.
        fetch, load, gather = control.o_request, prepare.o_request, requests.o
        m.d.sync += [
            fetch.ready.eq(self.read_room & fetch.valid),
            load.ready.eq(self.read_room & ~fetch.valid & load.valid),
            gather.ready.eq(self.read_room & ~fetch.valid & ~load.valid),
            self.o_request.valid.eq(Cat(s.valid & s.ready for s in (fetch, load, gather)).any()),
            # Only gathered beats have flags, but for the end of a LOAD.
            self.o_request.payload.eq(gather.payload),
        ]
        with m.If(fetch.ready):
            m.d.sync += [self.o_request.payload.address.eq(fetch.p.address),
                         self.o_request.payload.tag.client.eq(Client.FETCH)]
        with m.If(load.ready):
            m.d.sync += [self.o_request.payload.address.eq(load.p.address),
                         self.o_request.payload.tag.client.eq(Client.LOAD),
                         self.o_request.payload.tag.flags.pass_end.eq(load.p.tag.flags.pass_end)]

        # Responses go to whom they are for.
        beat = self.i_response.p
        flags = beat.tag.flags
        gather_take = Signal()
        hold = Signal()
        closed = Signal()       # no column may end
        gaps = spacing(config)
        if max(gaps) > 1:
            since = Signal(range(max(gaps)))    # cycles to wait before the next column's end
            gap = Signal.like(since)
            ends = gather_take & flags.last & flags.last_plane
            m.d.sync += gap.eq(Mux(store.int8, gaps[1] - 1, gaps[0] - 1))
            with m.If(ends):
                m.d.sync += [since.eq(gap), closed.eq((gap != 0) | ~self.write_room)]
            with m.Else():
                m.d.sync += [since.eq(Mux(since == 0, 0, since - 1)),
                             closed.eq((since > 1) | ~self.write_room)]
        else:
            m.d.sync += closed.eq(~self.write_room)
        is_gather = beat.tag.client == Client.GATHER
        is_load = beat.tag.client == Client.LOAD
        load_take = Signal()
        encoding = Signal()     # the encoder takes no beat yet
        m.d.comb += [
            hold.eq(flags.last & flags.last_plane & closed),
            gather_take.eq(self.i_response.valid & is_gather & ~hold),
            load_take.eq(self.i_response.valid & is_load & ~encoding),
            self.i_response.ready.eq(~(is_gather & hold) & ~(is_load & encoding)),
        ]

        # The stream register; from here on nothing waits.
        codes = Signal(config.code_bits, reset_less=True)
        side = Signal(config.side_bits, reset_less=True)
        what = Signal(Flags, reset_less=True)
        gathered, fetched, loaded, parameters = Signal(), Signal(), Signal(), Signal()
        m.d.sync += [
            codes.eq(beat.data), side.eq(beat.side), what.eq(flags), gathered.eq(gather_take),
            fetched.eq(self.i_response.valid & (beat.tag.client == Client.FETCH)),
            loaded.eq(load_take),
            parameters.eq(gather_take & (flags.kind == Kind.PARAMETERS))]
        is_codes = gathered & (what.kind == Kind.CODES)
        ends_tile = gathered & what.pass_end
        ends_column, has_parameters = what.last_plane, parameters
        if config.late_steps:   # a K tile's first step completes no column
            completes = Signal()
            with m.If(gathered & what.pass_start):
                m.d.sync += completes.eq(0)
            with m.Elif(is_codes & what.last_plane):
                m.d.sync += completes.eq(1)
            ends_column, has_parameters = ends_column & completes, parameters & completes
        m.d.comb += [
            control.i_beat.valid.eq(fetched), control.i_beat.payload.eq(codes[:INSTRUCTION_BITS]),
            prepare.i_beat.payload.centroids.eq(codes[:config.centroid_bits]),
            prepare.table_free.eq(ends_tile),
        ]
        if config.encodes:
            m.submodules.encoder = encoder = (BankEncoder if config.bank else Encoder)(config)
            connect(m, control.o_topk, prepare.i_topk)
            self._encode(m, prepare, encoder, loaded, what, codes)
            if config.takes_indexes:
                table = self._filled(m, prepare, loaded, Buffer.BYTE_TABLE)
                m.d.comb += [store.table.valid.eq(table),
                             store.table.payload.word.eq(prepare.slot),
                             store.table.payload.byte.eq(delay(m, codes[:8], 1, name="byte"))]
            # Beats to encode come so many cycles apart.
            m.d.comb += encoding.eq(~count_down(
                m, ENCODE_CYCLES.bit_length(), load=load_take & prepare.paced,
                value=ENCODE_CYCLES - 1, step=encoding, family=config.family, name="encoding"))
        else:
            m.d.comb += [prepare.i_beat.valid.eq(loaded),
                         prepare.i_beat.payload.last.eq(what.pass_end)]

        # The array: rows after rows, each link a cycle later than the one before.
        late = len(config.row_groups) - 1
        drive = Signal(array_input(config))
        m.d.comb += [
            drive.codes.eq(codes), drive.side.eq(side), drive.flags.eq(what),
            drive.gather.eq(gathered), drive.places.eq(prepare.places),
            drive.slot.eq(prepare.slot), drive.walk.eq(prepare.walk)]
        if config.encodes:
            m.d.comb += drive["values"].eq(encoder.values)
        if config.sentinels:
            m.submodules.sentinels = sentinels = Sentinels(config)
            taken = gather_take & (flags.kind == Kind.CODES)
            m.d.comb += [sentinels.codes.eq(codes), sentinels.first.eq(what.first_plane),
                         drive.high_places.eq(sentinels.places),
                         drive.flags.last_plane.eq(ends_column)]
            m.d.sync += [sentinels.valid.eq(taken), sentinels.end.eq(taken & flags.last_plane)]
        # The bank in a register for each section of tables.  Equal ones would be merged: each is
        # of another kind, by its reset or as a complement.
        m.d.comb += drive.banks[0].eq(what.bank)
        for s in range(1, sections(config)):
            bank = Signal(name=f"bank_{s}", reset_less=s == 3, init=s in (2, 5))
            m.d.sync += bank.eq(flags.bank ^ complemented(s))
            m.d.comb += drive.banks[s].eq(bank)
        if config.epilogue:
            # Parameters wait here for their column; the biases join its first plane.
            m.submodules.parameters = queue = ParameterQueue(config)
            # With a column's first plane; with the first turn of banks, after its last.
            early = timing.column - queue.LATENCY - (config.turns - 1)
            joins = ends_column if config.sparse else what.first_plane
            first = delay(m, is_codes & joins & what.last, early - 1,
                          name="first", resettable=True)
            read = delay(m, first & store.int8, 1, name="read", resettable=True)
            column = delay(m, is_codes & ends_column, timing.column, name="column",
                           resettable=True)
            m.d.comb += [
                queue.write.eq(delay(m, has_parameters, 1, name="parameters", resettable=True)),
                queue.restart.eq(store.sink_ready),
                *(queue.data[c].eq(delay(
                    m, codes[c * config.column_code_bits:][:PARAMETER_BITS], 1, name="to_queue"))
                  for c in range(config.columns)),
                queue.read.eq(read), queue.capture.eq(column),
                drive.biases.eq(queue.bias),
                store.multipliers.eq(delay(m, queue.multiplier, late, name="multiplier")),
                store.shifts.eq(delay(m, queue.shift, late, name="shift"))]
        for i, rows in enumerate(config.row_groups):
            m.submodules[f"rows_{i}"] = part = Rows(config, rows)
            m.d.comb += part.i.eq(drive)
            drive = part.o
            for c, results in enumerate(part.results):
                for r, result in zip(rows, results, strict=True):
                    m.d.comb += store.results[c * config.rows + r].eq(
                        delay(m, result, late - i, name=f"result_{c}_{r}"))
        m.d.comb += [store.result_valid.eq(part.result_valid),
                     store.result_last.eq(part.result_last)]

        # Who moves, who waits.
        # A beat is in the array for a fixed time: count down from the last one.
        in_flight = Signal()
        drained = count_down(m, DRAIN_BITS, load=gathered, value=2**DRAIN_BITS - 1,
                             step=in_flight, family=config.family, name="draining")
        m.d.comb += in_flight.eq(~drained)
        owing = Signal()
        m.d.sync += [
            owing.eq(gathered | in_flight | ~self.memory_idle | self.o_request.valid),
            control.stages_busy.eq(prepare.active | requests.busy | store.busy | owing),
            control.progress.eq(prepare.busy | owing), control.unmatched.eq(prepare.unused),
        ]

        if config.counters:
            m.submodules.telemetry = telemetry = Telemetry(len(COUNTERS))
            waits_beat = requests.busy & ~requests.wait_table & ~requests.wait_sink
            refused = self.i_response.valid & is_gather & hold
            events = {
                "cycles": 1,
                "prepare_busy": prepare.busy,
                "prepare_wait_memory": prepare.wait_memory,
                "prepare_wait_table": prepare.wait_table,
                "gather_busy": is_codes,
                "gather_wait_table": requests.wait_table,
                "gather_wait_store": requests.wait_sink | refused,
                "gather_wait_memory": waits_beat & ~self.i_response.valid,
                "store_busy": store.busy,
                "beats_read": self.i_response.valid & self.i_response.ready,
                "beats_written": self.o_write.valid,
                "instructions": control.issued,
            }
            m.d.comb += [
                telemetry.clear.eq(control.starts), telemetry.enable.eq(control.running),
                telemetry.events.eq(Cat(events[name] for name in COUNTERS)),
                telemetry.shift.eq(self.counter_shift), self.counter_bit.eq(telemetry.o)]
        return m

    def _encode(self, m, prepare, encoder, loaded, what, codes):
        """The encoder between the stream register and the prepare stage."""
        config = self.config
        to_encoder = Const(1) if config.bank else prepare.fills == Buffer.ACTIVATIONS
        elements = elements_of(codes)
        for port, valid in ((encoder.i_shown, loaded & prepare.shows),
                            (encoder.i, loaded & ~prepare.shows & to_encoder)):
            m.d.comb += [port.valid.eq(valid), port.payload.elements.eq(elements),
                         port.payload.last.eq(what.pass_end)]
        m.d.comb += [
            encoder.show.eq(prepare.show), encoder.row.eq(prepare.row),
            encoder.k.eq(prepare.k), prepare.found.eq(encoder.found),
            encoder.static.eq(prepare.static),
            encoder.restart.eq(prepare.restart), encoder.beat.eq(prepare.beat),
            prepare.i_beat.valid.eq(Mux(to_encoder, encoder.o.valid, loaded & ~prepare.shows)),
            prepare.i_beat.payload.last.eq(Mux(to_encoder, encoder.o.payload.last,
                                               what.pass_end))]
        if config.bank:
            m.d.comb += [encoder.low.eq(prepare.low), encoder.first_beat.eq(prepare.first_beat)]
            return
        m.d.comb += [
            encoder.length.eq(prepare.length), encoder.indexes.eq(prepare.indexes),
            encoder.pairs.eq(prepare.pairs), encoder.norm.eq(prepare.norm),
            encoder.codebook.valid.eq(
                self._filled(m, prepare, loaded, Buffer.ACTIVATION_CODEBOOK)),
            encoder.codebook.payload.word.eq(prepare.slot)]
        entry = delay(m, codes[:codebook_data()], 1, name="entry")
        m.d.comb += encoder.codebook.payload.data.eq(entry)
        if config.takes_indexes:
            m.d.comb += [
                encoder.table.valid.eq(self._filled(m, prepare, loaded, Buffer.VALUE_TABLE)),
                encoder.table.payload.word.eq(prepare.slot),
                encoder.table.payload.value.eq(entry)]

    def _filled(self, m, prepare, loaded, buffer):
        """Whether a beat of this buffer was in the stream register a cycle ago."""
        return delay(m, loaded & ~prepare.shows & (prepare.fills == buffer), 1,
                     name=f"fills_{buffer.name.lower()}", resettable=True)
