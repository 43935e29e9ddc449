"""The prepare stage: LOAD fills the buffers, BUILD fills a table bank per K tile and codebook.

Before that TOPK shows tokens to the encoder, in engines that have one (:mod:`hdl.encoder`).

Only the control; activation buffers and builders are with their rows (:mod:`hdl.rows`).
"""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hdl.beat import Client, Flow, read_request
from hdl.builder import walker
from hdl.config import TOKEN_BEAT
from hdl.control import fields_of
from hdl.isa import Buffer, Opcode
from hdl.parts import add_select, count_down, count_up, delay
from hdl.tables import sections
from hdl.token_units import ENCODE_CYCLES
from hdl.walk import walk

__all__ = ["Prepare", "places", "slot_bits"]


def places(config):
    """Places of a slot that a beat of LOAD can fill: rows first, then parts of the slot."""
    return config.slot_beats * config.rows


def slot_bits(config):
    """Width of the address that LOAD writes: a slot, or a word of another buffer."""
    return len(Value.cast(Signal(fields_of(Opcode.LOAD, config)).local))


class Prepare(wiring.Component):
    """Executes TOPK, LOAD and BUILD in program order.

    LOAD takes a beat per cycle, or as the encoder does; TOPK one per cycle and then waits for the
    encoder, row after row.  BUILD the cycles of the format's walk (:mod:`hdl.builder`) and two
    per tile and codebook; it waits for a free table bank before each.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    i_load, i_build, i_topk : In(stream.Signature(fields))
        Instructions; never two valid.
    o_request : Out(stream.Signature(read_request))
    i_beat : In(Flow of {last: 1, centroids})
        A beat that LOAD asked for, encoded if it has to be; its last.  What it is if it goes to
        a codebook.
    table_free : In(1)
        The gather stage has finished with a bank (strobe).
    table_ready : Out(1)
        A bank is complete (strobe).
    places : Out, slot : Out
        Which places of which rows' slot the beat of `i_beat` fills, one-hot (see :func:`places`).
    walk : Out(walk)
        A step of a table's building.
    fills : Out(Buffer)
        What LOAD fills.
    shows : Out(1)
        The beats asked for are those of TOPK.
    paced : Out(1)
        They take ENCODE_CYCLES each.
    static, indexes, pairs, norm, show, row, length, k, found, restart, beat
        The encoder's, see :class:`hdl.encoder.Encoder`.
    low, first_beat
        Those of :class:`hdl.bank_encoder.BankEncoder`.
    active : Out(1)
        An instruction is being executed.
    unused : Out(1)
        A bank was built and nobody has finished with it.
    busy, wait_table, wait_memory : Out(1)
        What the stage does in this cycle.
    """

    def __init__(self, config):
        self.config = config
        self.encodes = config.encodes
        members = {
            "i_load": In(stream.Signature(fields_of(Opcode.LOAD, config))),
            "i_build": In(stream.Signature(fields_of(Opcode.BUILD, config))),
            "o_request": Out(stream.Signature(read_request(config))),
            "i_beat": In(Flow(data.StructLayout({"last": 1, "centroids": config.centroid_bits}))),
            "table_free": In(1), "table_ready": Out(1),
            "places": Out(places(config)), "slot": Out(slot_bits(config)),
            "walk": Out(walk(config)), "fills": Out(Buffer),
            "active": Out(1), "unused": Out(1),
            "busy": Out(1), "wait_table": Out(1), "wait_memory": Out(1),
        }
        if self.encodes:
            tokens = range(config.token_values)
            members |= {
                "i_topk": In(stream.Signature(fields_of(Opcode.TOPK, config))),
                "shows": Out(1), "show": Out(1), "row": Out(range(config.rows)),
                "static": Out(1), "paced": Out(1), "length": Out(tokens), "found": In(1),
                "k": Out(range(config.bank) if config.bank else tokens),
                "restart": Out(1), "beat": Out(range(config.token_values // TOKEN_BEAT))}
            members |= {
                "low": Out(2), "first_beat": Out(range(config.token_values // TOKEN_BEAT)),
            } if config.bank else {"indexes": Out(1), "pairs": Out(1), "norm": Out(1)}
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        config, family = self.config, self.config.family
        loading = Signal()
        building = Signal()
        shows = self.shows if self.encodes else Const(0)
        # `ready` follows `valid` from a register, so that the counters load without delay.
        starts = [port.ready for port in self._instructions()]
        load_start, build_start, *_ = starts
        idle = ~Cat(loading, building, shows, *starts).any()
        m.d.sync += [port.ready.eq(port.valid & idle) for port in self._instructions()]

        # LOAD: requests first, then the beats as they come: a slot of one row after another.
        load = self.i_load.p
        request = self.o_request
        asked = request.valid & request.ready
        took = self.i_beat.valid
        address = Signal(config.address_bits)
        if self.encodes:
            asks = self._show(m, address, asked)
        else:
            asks = load_start
            count_up(m, address, load=load_start, value=load.address, step=asked, family=family)
        last_request = count_down(
            m, len(load.count), load=asks,
            value=Mux(shows, self.length[TOKEN_BEAT.bit_length() - 1:], load.count)
            if self.encodes else load.count, step=asked, family=family, name="requests_left")
        m.d.comb += [request.p.address.eq(address), request.p.tag.client.eq(Client.LOAD),
                     request.p.tag.flags.pass_end.eq(last_request)]
        # Beats that will be encoded are asked for as slowly: others come in between.
        asking = Signal()
        pause = Signal(ENCODE_CYCLES - 2)
        if self.encodes:
            m.d.comb += self.paced.eq(Mux(shows, 0 if config.bank else self.norm,
                                          self.fills == Buffer.ACTIVATIONS))
            m.d.sync += pause.eq(Cat(asked & self.paced, pause))
        m.d.comb += request.valid.eq(asking & ~pause.any())
        with m.If(asked & last_request):
            m.d.sync += asking.eq(0)
        with m.If(took & self.i_beat.payload.last):
            m.d.sync += loading.eq(0)
        with m.If(load_start):
            m.d.sync += [loading.eq(1), self.fills.eq(load.buffer)]
            if config.takes_indexes:
                m.d.sync += [self.indexes.eq(load.indexes), self.pairs.eq(load.pairs),
                             self.norm.eq(load.norm)]
                with m.If(load.indexes):
                    m.d.sync += self.length.eq(load.length)
        with m.If(asks):
            m.d.sync += asking.eq(1)

        m.submodules.walk = walk_stage = walker(config)
        to_buffers = self.fills == Buffer.ACTIVATIONS if config.centroid_bits else Const(1)
        place = Signal(places(config), init=1)
        slot = Signal.like(self.slot)
        count_up(m, slot, load=load_start, value=load.local,
                 step=took & (place[-1] | ~to_buffers), family=family)
        with m.If(load_start):
            m.d.sync += place.eq(1)
        with m.Elif(took & to_buffers):
            m.d.sync += place.eq(place.rotate_left(1))
        # A cycle later: buffers are far apart.
        m.d.sync += [self.places.eq(Mux(took & to_buffers, place, 0)), self.slot.eq(slot)]
        if config.centroid_bits:
            m.d.sync += walk_stage.load.eq(took & (self.fills == Buffer.CENTROIDS))
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
            self.active.eq(loading | building | shows | walk_stage.active),
            self.unused.eq(free_banks != 2),
            self.busy.eq(running | took | shows),
            self.wait_table.eq(building & ~running & ~start),
            self.wait_memory.eq(loading & ~took),
        ]
        return m

    def _instructions(self):
        """Streams of the stage's instructions."""
        return [self.i_load, self.i_build, *([self.i_topk] if self.encodes else [])]

    def _show(self, m, address, asked):
        """TOPK: the beats of one row after another; returns the strobe that starts requests.

        Rows lie beat by beat, so that those of one are so many addresses apart.
        """
        config = self.config
        load, topk = self.i_load, self.i_topk
        first = Signal(config.address_bits, reset_less=True)    # of the row
        last_row = self.row == config.rows - 1
        m.d.sync += self.show.eq(topk.ready)
        with m.If(topk.ready):
            m.d.sync += [self.shows.eq(1), self.k.eq(topk.p.k), self.static.eq(topk.p.static),
                         self.row.eq(0), first.eq(topk.p.address)]
            if config.bank:
                m.d.sync += [self.length.eq(config.bank - 1), self.low.eq(topk.p.low),
                             self.first_beat.eq(topk.p.beat)]
            else:
                m.d.sync += [self.length.eq(topk.p.length), self.norm.eq(topk.p.norm),
                             self.pairs.eq(topk.p.pairs)]
        with m.If(self.found):
            with m.If(last_row):
                m.d.sync += self.shows.eq(0)
            with m.Else():
                m.d.sync += [self.row.eq(self.row + 1), first.eq(first + 1), self.show.eq(1)]
        start = load.ready | self.show
        stride = Mux(self.shows, config.rows, 1) & ~start.replicate(config.rows.bit_length())
        following = add_select(m, stride, address, Mux(self.shows, first, load.p.address), start,
                               width=config.address_bits, family=config.family)
        with m.If(start | asked):
            m.d.sync += address.eq(following)
        # Beats to encode: all rows' of a slot after those of the one before.
        m.d.sync += [self.restart.eq(load.ready), self.beat.eq(load.p.local * config.slot_beats)]
        return start
