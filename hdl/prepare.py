"""The prepare stage: LOAD fills the buffers, BUILD fills a table bank per K tile and codebook.

Only the control; activation buffers and builders are with their rows (:mod:`hdl.rows`).
"""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hdl.beat import Client, Flow, read_request
from hdl.builder import walker
from hdl.control import fields_of
from hdl.isa import Opcode
from hdl.parts import count_down, count_up, delay
from hdl.tables import sections
from hdl.walk import walk

__all__ = ["Prepare", "places", "slot_bits"]


def places(config):
    """Places of a slot that a beat of LOAD can fill: rows first, then parts of the slot."""
    return config.slot_beats * config.rows


def slot_bits(config):
    """Width of the address that LOAD writes: a slot, or a word of the codebook buffer."""
    return max((config.activation_depth - 1).bit_length(), config.codebook_word_bits)


class Prepare(wiring.Component):
    """Executes LOAD and BUILD in program order.

    LOAD takes a beat per cycle, BUILD the cycles of the format's walk (:mod:`hdl.builder`) and two
    per tile and codebook; it waits for a free table bank before each.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    i_load, i_build : In(stream.Signature(fields))
        Instructions; never both valid.
    o_request : Out(stream.Signature(read_request))
    i_beat : In(Flow of {last: 1, centroids})
        A beat that LOAD asked for; its last.  What it is if it goes to the codebook buffer.
    table_free : In(1)
        The gather stage has finished with a bank (strobe).
    table_ready : Out(1)
        A bank is complete (strobe).
    places : Out, slot : Out
        Which places of which rows' slot the beat of `i_beat` fills, one-hot (see :func:`places`).
    walk : Out(walk)
        A step of a table's building.
    active : Out(1)
        An instruction is being executed.
    busy, wait_table, wait_memory : Out(1)
        What the stage does in this cycle.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "i_load": In(stream.Signature(fields_of(Opcode.LOAD, config))),
            "i_build": In(stream.Signature(fields_of(Opcode.BUILD, config))),
            "o_request": Out(stream.Signature(read_request(config))),
            "i_beat": In(Flow(data.StructLayout({"last": 1, "centroids": config.centroid_bits}))),
            "table_free": In(1), "table_ready": Out(1),
            "places": Out(places(config)), "slot": Out(slot_bits(config)),
            "walk": Out(walk(config)),
            "active": Out(1), "busy": Out(1), "wait_table": Out(1), "wait_memory": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config, family = self.config, self.config.family
        loading = Signal()
        building = Signal()
        # `ready` follows `valid` from a register, so that the counters load without delay.
        load_start, build_start = self.i_load.ready, self.i_build.ready
        idle = ~(loading | building | load_start | build_start)
        m.d.sync += [load_start.eq(self.i_load.valid & idle),
                     build_start.eq(self.i_build.valid & idle)]

        # LOAD: requests first, then the beats as they come: a slot of one row after another.
        load = self.i_load.p
        request = self.o_request
        asked = request.valid & request.ready
        took = self.i_beat.valid
        address = Signal(config.address_bits)
        count_up(m, address, load=load_start, value=load.address, step=asked, family=family)
        last_request = count_down(m, len(load.count), load=load_start, value=load.count,
                                  step=asked, family=family, name="requests_left")
        m.d.comb += [request.p.address.eq(address), request.p.tag.client.eq(Client.LOAD),
                     request.p.tag.flags.pass_end.eq(last_request)]
        with m.If(asked & last_request):
            m.d.sync += request.valid.eq(0)
        with m.If(took & self.i_beat.payload.last):
            m.d.sync += loading.eq(0)
        with m.If(load_start):
            m.d.sync += [loading.eq(1), request.valid.eq(1)]

        m.submodules.walk = walk_stage = walker(config)
        to_codebook = Signal()
        place = Signal(places(config), init=1)
        slot = Signal.like(self.slot)
        count_up(m, slot, load=load_start, value=load.local,
                 step=took & (place[-1] | to_codebook), family=family)
        with m.If(took & ~to_codebook):
            m.d.sync += place.eq(place.rotate_left(1))
        # A cycle later: buffers are far apart.
        m.d.sync += [self.places.eq(Mux(took & ~to_codebook, place, 0)), self.slot.eq(slot)]
        if config.centroid_bits:
            with m.If(load_start):
                m.d.sync += to_codebook.eq(load.codebook)
            m.d.sync += walk_stage.load.eq(took & to_codebook)
            m.d.comb += [
                walk_stage.word.eq(self.slot),
                walk_stage.centroids.eq(delay(m, self.i_beat.payload.centroids, 1,
                                              name="centroids"))]

        # BUILD: walk each tile, with one codebook after the other.
        build = self.i_build.p
        unsigned = Signal()
        tile = Signal.like(walk_stage.tile)
        codebook = Signal(len(build.codebooks))
        codebooks = Signal.like(codebook)       # of the matrix, minus one
        free_banks = Signal(2, init=2)
        start = Signal()
        built = walk_stage.tile_end             # with a codebook
        tile_end = Signal()
        running = walk_stage.running
        m.d.sync += [start.eq(building & ~running & ~start & (free_banks != 0)),
                     free_banks.eq(free_banks + self.table_free - start)]
        last_tile = count_down(m, len(build.tiles), load=build_start, value=build.tiles,
                               step=tile_end, family=family, name="tiles_left")
        if len(tile):
            count_up(m, tile, load=build_start, value=build.local[-len(tile):], step=tile_end,
                     family=family)
        last_codebook = delay(m, codebook == codebooks, bool(config.centroid_bits),
                              name="last_codebook")
        m.d.comb += tile_end.eq(built & last_codebook)
        if config.centroid_bits:
            with m.If(built):
                m.d.sync += codebook.eq(Mux(tile_end, 0, codebook + 1))
            with m.If(build_start):
                m.d.sync += [codebook.eq(0), codebooks.eq(build.codebooks)]
        with m.If(tile_end & last_tile):
            m.d.sync += building.eq(0)
        with m.If(build_start):
            m.d.sync += [building.eq(1), unsigned.eq(build.unsigned)]
        m.d.comb += [
            walk_stage.start.eq(start), walk_stage.tile.eq(tile), walk_stage.unsigned.eq(unsigned),
            walk_stage.codebook.eq(codebook), self.walk.eq(walk_stage.walk),
            self.table_ready.eq(delay(m, walk_stage.table_ready, sections(config) - 1,
                                      name="table_ready", resettable=True))]

        m.d.comb += [
            self.active.eq(loading | building | walk_stage.active),
            self.busy.eq(running | took),
            self.wait_table.eq(building & ~running & ~start),
            self.wait_memory.eq(loading & ~took),
        ]
        return m
