"""The gather stage's sequencer: walks LMMA instructions and asks the memory for their beats.

All sequencing happens here, at request time: what the array has to do with a beat travels through
the memory as the request's tag and comes back with the data.  So a late beat is a bubble and
nothing downstream counts anything but columns.
"""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hdl.beat import Client, Kind, read_request
from hdl.control import fields_of
from hdl.isa import Opcode
from hdl.parts import count_down, count_up

__all__ = ["GatherRequests"]


class GatherRequests(wiring.Component):
    """Turns LMMA instructions into read requests, one per cycle.

    The first beat of a K tile waits for a ready table bank; of the last K tile also for the store
    stage.  Nothing else makes it wait but `o.ready`.  An instruction takes two cycles more than
    its requests, and each K tile one.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    i : In(stream.Signature(LMMA fields))
        Instructions; accepted when the previous one's last request has left.
    o : Out(stream.Signature(read_request))
    table_ready : In(1)
        A table bank was built (strobe).
    sink_ready : In(1)
        The store stage takes the next tile of results (strobe).
    busy, wait_table, wait_sink : Out(1)
        What the stage does in this cycle.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "i": In(stream.Signature(fields_of(Opcode.LMMA, config))),
            "o": Out(stream.Signature(read_request(config))),
            "table_ready": In(1), "sink_ready": In(1),
            "busy": Out(1), "wait_table": Out(1), "wait_sink": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        family = self.config.family
        job = Signal(self.i.p.shape())
        prime = Signal()        # the counters load from `job`
        active = Signal()
        accept = Signal()
        m.d.comb += [accept.eq(self.i.valid & ~active & ~prime), self.i.ready.eq(accept),
                     self.busy.eq(active | prime)]
        m.d.sync += prime.eq(accept)
        with m.If(accept):
            m.d.sync += job.eq(self.i.p)

        # What the next request is, one-hot: a beat of sums, a column's parameters, or a plane.
        inside = Signal()       # a K tile has begun
        may_start = Signal()    # one may begin
        sums = Signal(2)        # beats left that sum the activations
        codes = Signal()
        parameters = Signal()
        first_plane = Signal()
        first_tile = Signal()
        bank = Signal()
        finishes = Signal()     # this K tile finishes the accumulators
        has_parameters = Signal()
        step = Signal()         # the request leaves
        ends_column = Signal()
        ends_tile = Signal()
        plane_step = Signal()
        column_step = Signal()
        tile_step = Signal()
        new_tile = prime | tile_step
        fresh = Signal()        # the cycle after, in which nothing leaves
        m.d.sync += fresh.eq(new_tile)
        # The plane's marks are made a plane ahead, so that nothing waits for `step`.
        plane = Signal.like(job.planes)
        last_plane = Signal()
        with m.If(prime):
            m.d.sync += [plane.eq(0), first_plane.eq(1), last_plane.eq(job.planes == 0)]
        with m.Elif(plane_step):
            m.d.sync += [
                plane.eq(Mux(last_plane, 0, plane + 1)), first_plane.eq(last_plane),
                last_plane.eq(Mux(last_plane, 0, plane + 1) == job.planes)]
        # High weights may be a column step behind the codes: one more for the last.
        late = self.config.late_steps
        last_column = count_down(m, len(job.columns) + late, load=fresh, value=job.columns + late,
                                 step=column_step, family=family, name="column")
        last_tile = count_down(m, len(job.tiles), load=prime, value=job.tiles, step=tile_step,
                               family=family, name="tile")
        address = Signal(self.config.address_bits)
        count_up(m, address, load=prime, value=job.address, step=step, family=family)
        m.d.sync += finishes.eq(job.last & last_tile)
        m.d.comb += [
            has_parameters.eq(job.requant & job.last & last_tile),
            ends_column.eq(codes & last_plane),
            ends_tile.eq(ends_column & last_column),
            plane_step.eq(step & codes),
            column_step.eq(step & ends_column),
            tile_step.eq(step & ends_tile),
        ]

        banks = Signal(2)       # ready table banks
        sink = Signal()         # the store stage is ready
        sink_missing = job.last & last_tile & ~sink
        # Looks at a new K tile a cycle after it became the current one.
        m.d.sync += may_start.eq(active & (banks != 0) & ~sink_missing & ~new_tile)
        m.d.comb += [
            self.wait_table.eq(active & ~inside & (banks == 0)),
            self.wait_sink.eq(active & ~inside & (banks != 0) & sink_missing),
            self.o.valid.eq(inside | may_start),
            step.eq(self.o.valid & self.o.ready),
        ]
        starts = step & ~inside
        m.d.sync += [
            banks.eq(banks + self.table_ready - starts),
            sink.eq((sink & ~(starts & finishes)) | self.sink_ready),
        ]
        starts_column = sums[0] | ends_column       # the next request does
        with m.If(step):
            m.d.sync += [
                inside.eq(~ends_tile), sums.eq(sums >> 1),
                codes.eq(parameters | (codes & ~last_plane) | (starts_column & ~has_parameters)),
                parameters.eq(starts_column & has_parameters),
            ]
        with m.If(fresh):
            m.d.sync += [sums.eq(Mux(job.zero, 2, 0)), codes.eq(~job.zero & ~has_parameters),
                         parameters.eq(~job.zero & has_parameters)]
        with m.If(tile_step):
            m.d.sync += bank.eq(~bank)
        with m.If(prime):
            m.d.sync += [active.eq(1), first_tile.eq(job.first)]
        with m.Elif(tile_step):
            m.d.sync += first_tile.eq(0)
            with m.If(last_tile):
                m.d.sync += active.eq(0)

        flags = self.o.p.tag.flags
        m.d.comb += [
            self.o.p.address.eq(address), self.o.p.tag.client.eq(Client.GATHER),
            flags.first_plane.eq(first_plane), flags.last_plane.eq(ends_column),
            flags.pass_start.eq(~inside), flags.pass_end.eq(ends_tile),
            flags.first.eq(first_tile), flags.last.eq(finishes), flags.high.eq(job.high),
            flags.bank.eq(bank),
            flags.kind.eq(Mux(parameters, Kind.PARAMETERS, Mux(codes, Kind.CODES, Kind.SUM))),
        ]
        return m
