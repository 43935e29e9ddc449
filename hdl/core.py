"""The engine: three stages, the array of cells and the control, behind one memory port.

Knows no link, no board and no memory: :mod:`hdl.top` puts those around it.
"""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from hdl.beat import (
    Client,
    Flags,
    Flow,
    Kind,
    read_request,
    read_response,
    side_slices,
    write_request,
)
from hdl.cell import Cell, Timing
from hdl.control import Control
from hdl.isa import INSTRUCTION_BITS
from hdl.layout import PARAMETER_BITS
from hdl.parameters import ParameterQueue
from hdl.parts import count_down, delay
from hdl.prepare import Prepare
from hdl.registers import COUNTERS, Error
from hdl.requests import GatherRequests
from hdl.store import Store, spacing
from hdl.tables import Tables
from hdl.telemetry import Telemetry

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
        m.d.comb += hold.eq(flags.last & flags.last_plane & closed)
        with m.Switch(beat.tag.client):
            with m.Case(Client.FETCH):
                m.d.comb += control.i_beat.valid.eq(self.i_response.valid)
            with m.Case(Client.LOAD):
                m.d.comb += prepare.i_beat.valid.eq(self.i_response.valid)
            with m.Case(Client.GATHER):
                m.d.comb += gather_take.eq(self.i_response.valid & ~hold)
        m.d.comb += [
            self.i_response.ready.eq((beat.tag.client != Client.GATHER) | ~hold),
            control.i_beat.payload.eq(beat.data[:INSTRUCTION_BITS]),
            prepare.i_beat.payload.data.eq(beat.data),
            prepare.i_beat.payload.last.eq(flags.pass_end)]

        # The stream register; from here on nothing waits.
        codes = Signal(config.code_bits, reset_less=True)
        side = Signal(config.side_bits, reset_less=True)
        what = Signal(Flags, reset_less=True)
        valid = Signal()
        m.d.sync += [codes.eq(beat.data), side.eq(beat.side), what.eq(flags),
                     valid.eq(gather_take)]

        def at(cycle, value, name):
            return delay(m, value, cycle, name=name)

        strobes = Signal(data.StructLayout({
            "codes": 1, "first": 1, "column": 1, "clear": 1, "capture": 1, "end": 1,
            "parameters": 1}))
        is_codes = what.kind == Kind.CODES
        m.d.comb += [
            strobes.codes.eq(valid & is_codes),
            strobes.first.eq(valid & is_codes & what.first_plane),
            strobes.column.eq(valid & is_codes & what.last_plane),
            strobes.clear.eq(valid & what.pass_start),
            strobes.capture.eq(valid & (what.kind == Kind.SUM)),
            strobes.end.eq(valid & what.pass_end),
            strobes.parameters.eq(valid & (what.kind == Kind.PARAMETERS)),
        ]
        m.d.comb += prepare.table_free.eq(strobes.end)

        trail = [strobes]
        kinds = [what]
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

        signs = at(timing.zero, side, "side")
        scales = delay(m, signs, 1, name="scales")
        biases = [0] * config.columns
        if config.epilogue:
            # Parameters wait here for their column; the biases join its first plane.
            m.submodules.parameters = queue = ParameterQueue(config)
            early = timing.column - queue.LATENCY
            m.d.comb += [
                queue.write.eq(strobes.parameters), queue.restart.eq(store.sink_ready),
                *(queue.data[c].eq(codes[c * config.tile_k:][:PARAMETER_BITS])
                  for c in range(config.columns)),
                queue.read.eq(trail[early].first & kinds[early].last & store.int8),
                queue.capture.eq(trail[timing.column].column)]
            biases = [queue.bias[c] for c in range(config.columns)]
            m.d.comb += [store.multipliers[c].eq(queue.multiplier[c])
                         for c in range(config.columns)]
            m.d.comb += [store.shifts[c].eq(queue.shift[c]) for c in range(config.columns)]
        results = []
        for c in range(config.columns):
            m.submodules[f"tables_{c}"] = tables = Tables(config)
            m.d.comb += [
                tables.codes.eq(codes[c * config.tile_k:(c + 1) * config.tile_k]),
                tables.bank.eq(what.bank),
                tables.entries.eq(prepare.entries), tables.group.eq(prepare.group),
                tables.entry.eq(prepare.entry), tables.write_bank.eq(prepare.bank)]
            for r in range(config.rows):
                cell = Cell(config)
                m.submodules[f"cell_{c}_{r}"] = cell
                zero_signs = [z for _, z in side_slices(config, signs, c)]
                m.d.comb += [
                    cell.values.eq(tables.values[r]), cell.signs.eq(tables.signs),
                    *(cell.scales[t].eq(s)
                      for t, (s, _) in enumerate(side_slices(config, scales, c))),
                    cell.zero_signs.eq(Cat(*zero_signs)),
                    cell.sum_clear.eq(trail[timing.zero - 1].clear),
                    cell.sum_capture.eq(trail[timing.zero].capture),
                    cell.column_valid.eq(trail[timing.column].codes),
                    cell.column_first.eq(kinds[timing.column].first_plane),
                    cell.bias.eq(biases[c]),
                    cell.address.eq(address),
                    cell.overwrite.eq(kinds[timing.column].first),
                    cell.high.eq(kinds[timing.column + 1].high),
                    cell.write.eq(trail[timing.result].column),
                    cell.write_address.eq(write_address),
                ]
                results.append(cell.result)
        before = trail[timing.result - 1]
        m.d.comb += [
            store.results[i].eq(r) for i, r in enumerate(results)]
        m.d.comb += [
            store.result_valid.eq(delay(m, before.column & kinds[timing.result - 1].last, 1,
                                        name="result_valid", resettable=True)),
            store.result_last.eq(trail[timing.result].end),
        ]

        # Who moves, who waits.
        # A beat is in the array for a fixed time: count down from the last one.
        in_flight = Signal()
        drained = count_down(m, DRAIN_BITS, load=valid, value=2**DRAIN_BITS - 1,
                             step=in_flight, family=config.family, name="draining")
        m.d.comb += in_flight.eq(~drained)
        owing = Signal()
        m.d.sync += [
            owing.eq(valid | in_flight | ~self.memory_idle | self.o_request.valid),
            control.stages_busy.eq(prepare.active | requests.busy | store.busy | owing),
            control.progress.eq(prepare.busy | owing),
        ]

        if config.counters:
            m.submodules.telemetry = telemetry = Telemetry(len(COUNTERS))
            waits_beat = requests.busy & ~requests.wait_table & ~requests.wait_sink
            refused = self.i_response.valid & (beat.tag.client == Client.GATHER) & hold
            events = {
                "cycles": 1,
                "prepare_busy": prepare.busy,
                "prepare_wait_memory": prepare.wait_memory,
                "prepare_wait_table": prepare.wait_table,
                "gather_busy": strobes.codes,
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
