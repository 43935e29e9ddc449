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

__all__ = ["GatherRequests"]


class GatherRequests(wiring.Component):
    """Turns LMMA instructions into read requests, one per cycle.

    The first beat of a K tile waits for a ready table bank; of the last K tile also for the store
    stage.  Nothing else makes it wait but `o.ready`.

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
        job = Signal(self.i.p.shape())
        active = Signal()
        address = Signal(self.config.address_bits)
        plane = Signal(3)
        column = Signal(16)
        tile = Signal(16)
        inside = Signal()       # a K tile has begun
        sums = Signal(2)        # beats left that sum the activations
        parameters = Signal()   # the next beat holds a column's parameters
        bank = Signal()
        first = Signal()        # this K tile is the instruction's first

        banks = Signal(2)       # ready table banks
        sink = Signal()         # the store stage is ready
        last_tile = Signal()
        last_plane = Signal()
        last_column = Signal()
        ends_column = Signal()
        m.d.comb += [
            last_tile.eq(tile == 0),
            last_plane.eq(plane == 0),
            last_column.eq(column == 0),
            ends_column.eq((sums == 0) & (parameters | last_plane & ~(
                job.requant & job.last & last_tile))),
        ]
        needs_sink = Signal()
        may_start = Signal()
        m.d.comb += [
            needs_sink.eq(job.last & last_tile & ~sink),
            may_start.eq((banks != 0) & ~needs_sink),
            self.wait_table.eq(active & ~inside & (banks == 0)),
            self.wait_sink.eq(active & ~inside & (banks != 0) & needs_sink),
            self.busy.eq(active),
        ]

        out = self.o.p
        free = Signal()
        step = Signal()
        m.d.comb += [
            free.eq(~self.o.valid | self.o.ready),
            step.eq(active & free & (inside | may_start)),
        ]
        starts = Signal()
        ends = Signal()
        m.d.comb += [starts.eq(step & ~inside), ends.eq(step & ends_column & last_column)]
        m.d.sync += [
            banks.eq(banks + self.table_ready - starts),
            sink.eq((sink | self.sink_ready) & ~(starts & job.last & last_tile)),
        ]
        with m.If(free):
            m.d.sync += self.o.valid.eq(step)
            flags = out.tag.flags
            m.d.sync += [
                out.address.eq(address),
                out.tag.client.eq(Client.GATHER),
                flags.first_plane.eq(plane == job.planes),
                flags.last_plane.eq(last_plane & (sums == 0) & ~parameters),
                flags.pass_start.eq(~inside),
                flags.pass_end.eq(ends_column & last_column),
                flags.first.eq(first & job.first),
                flags.last.eq(job.last & last_tile),
                flags.high.eq(job.high),
                flags.bank.eq(bank),
                flags.kind.eq(Mux(sums != 0, Kind.SUM, Mux(parameters, Kind.PARAMETERS,
                                                           Kind.CODES))),
            ]
        with m.If(step):
            m.d.sync += [address.eq(address + 1), inside.eq(~(ends_column & last_column))]
            with m.If(sums != 0):
                m.d.sync += sums.eq(sums - 1)
            with m.Else():
                m.d.sync += parameters.eq(last_plane & ~parameters & ~ends_column)
                with m.If(~parameters):
                    m.d.sync += plane.eq(Mux(last_plane, job.planes, plane - 1))
                with m.If(ends_column):
                    m.d.sync += column.eq(column - 1)
                    with m.If(last_column):
                        m.d.sync += [
                            column.eq(job.columns), tile.eq(tile - 1), bank.eq(~bank),
                            first.eq(0), sums.eq(Mux(job.zero, 2, 0)),
                        ]
        m.d.comb += self.i.ready.eq(~active)
        with m.If(ends & last_tile):
            m.d.sync += active.eq(0)
        with m.Elif(self.i.valid & self.i.ready):
            m.d.sync += [
                active.eq(1), job.eq(self.i.p), address.eq(self.i.p.address),
                plane.eq(self.i.p.planes), column.eq(self.i.p.columns), tile.eq(self.i.p.tiles),
                sums.eq(Mux(self.i.p.zero, 2, 0)), first.eq(1),
            ]
        return m
