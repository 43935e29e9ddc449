"""The prepare stage: LOAD fills the activation buffers, BUILD fills a table bank per K tile.

Only the control; buffers and builders are with their rows (:mod:`hdl.rows`).
"""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hdl.beat import Client, Flow, read_request
from hdl.builder import SignedSumBuilder, StepCounter
from hdl.control import fields_of
from hdl.isa import Opcode
from hdl.parts import ByteRAM, add_select, count_down, count_up, delay

__all__ = ["Prepare", "places", "walk"]


def places(config):
    """Places of a slot that a beat of LOAD can fill: rows first, then parts of the slot."""
    return config.slot_beats * config.rows


def walk(config):
    """A step of building tables, each field at its own time.

    ``read_address`` of the buffers, lowest bits a byte of a word; :data:`ByteRAM.LATENCY` later
    ``step``, what the builders do with the byte; :data:`SignedSumBuilder.LATENCY` later where the
    sum goes: ``entry`` of ``bank`` in the lanes of ``group`` (one-hot; zero: nowhere).
    """
    return data.StructLayout({
        "read_address": (config.activation_depth - 1).bit_length() + 2,
        "step": data.StructLayout({"restart": 1, "double": 1, "negate": 1, "unsigned": 1}),
        "group": len(config.lane_groups), "entry": max(config.chunks) - 1, "bank": 1})


class Prepare(wiring.Component):
    """Executes LOAD and BUILD in program order.

    LOAD takes a beat per cycle, BUILD ``v + 2**(v-1) - 1`` cycles per lane group and one per tile;
    it waits for a free table bank before each tile.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    i_load, i_build : In(stream.Signature(fields))
        Instructions; never both valid.
    o_request : Out(stream.Signature(read_request))
    i_beat : In(Flow of {last: 1})
        A beat that LOAD asked for; its last.
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
            "i_beat": In(Flow(data.StructLayout({"last": 1}))),
            "table_free": In(1), "table_ready": Out(1),
            "places": Out(places(config)), "slot": Out((config.activation_depth - 1).bit_length()),
            "walk": Out(walk(config)),
            "active": Out(1), "busy": Out(1), "wait_table": Out(1), "wait_memory": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config, family = self.config, self.config.family
        slot_bits = (config.activation_depth - 1).bit_length()
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

        place = Signal(places(config), init=1)
        count_up(m, self.slot, load=load_start, value=load.local, step=took & place[-1],
                 family=family)
        with m.If(took):
            m.d.sync += place.eq(place.rotate_left(1))
        m.d.comb += self.places.eq(Mux(took, place, 0))

        # BUILD: walk the steps of each lane group of each tile.
        build = self.i_build.p
        running = Signal()      # inside a tile
        unsigned = Signal()
        bank = Signal()
        free_banks = Signal(2, init=2)
        start = Signal()
        tile_end = Signal()
        group_end = Signal()
        m.d.sync += [start.eq(building & ~running & ~start & (free_banks != 0)),
                     free_banks.eq(free_banks + self.table_free - start)]
        last_tile = count_down(m, len(build.tiles), load=build_start, value=build.tiles,
                               step=tile_end, family=family, name="tiles_left")

        # First cycle: where in the walk.  Groups of eight come after those of four.
        groups = config.lane_groups
        m.submodules.steps = steps = StepCounter(config.chunks)
        base = Signal(slot_bits)                # of the group; tiles begin at multiples of theirs
        last_group = Signal()
        wide = Signal()                         # the group's chunks are of 8
        m.d.comb += [steps.run.eq(running), steps.wide.eq(wide), group_end.eq(steps.last),
                     tile_end.eq(group_end & last_group)]
        in_tile = base[:(config.tile_slots - 1).bit_length()]
        m.d.sync += last_group.eq(in_tile == config.tile_slots - groups[-1] // 4)
        following = add_select(
            m, Mux(build_start, 0, Mux(wide, 2, 1)), base, build.local, build_start,
            width=slot_bits, family=family)
        with m.If(build_start | group_end):
            m.d.sync += base.eq(following)
        if len(set(groups)) > 1:
            with m.If(group_end & (in_tile == groups.index(8) - 1)):
                m.d.sync += wide.eq(1)
        with m.If(tile_end):
            m.d.sync += [running.eq(0), building.eq(~last_tile)]
        with m.If(start):
            m.d.sync += [running.eq(1), wide.eq(groups[0] == 8)]
        with m.If(build_start):
            m.d.sync += [building.eq(1), unsigned.eq(build.unsigned)]

        # Second cycle: what to do there.
        slot_now = Signal(slot_bits)
        what = Signal(data.StructLayout({"write": 1, "last": 1}))
        m.d.sync += [what.write.eq(running), what.last.eq(tile_end), slot_now.eq(base)]
        position = steps.step.position
        m.d.comb += self.walk.read_address.eq(Cat(position[:2], slot_now | position[2:]))

        # The bytes arrive, the builders add, the entries are written.
        step = delay(m, steps.step, ByteRAM.LATENCY, name="step")
        here = delay(m, what, ByteRAM.LATENCY, name="what", resettable=True)
        m.d.comb += [
            self.walk.step.restart.eq(step.restart), self.walk.step.double.eq(step.double),
            self.walk.step.negate.eq(step.negate),
            self.walk.step.unsigned.eq(delay(m, unsigned, 1 + ByteRAM.LATENCY, name="unsigned"))]
        there = delay(m, here, SignedSumBuilder.LATENCY, name="write", resettable=True)
        entry = delay(m, step.entry, SignedSumBuilder.LATENCY, name="entry")
        # One-hot: the lane group whose entries come.
        ring = Signal(len(groups))
        into = delay(m, Cat(start, group_end), ByteRAM.LATENCY + SignedSumBuilder.LATENCY + 1,
                     name="into", resettable=True)
        with m.If(into[0]):
            m.d.sync += ring.eq(1)
        with m.Elif(into[1]):
            m.d.sync += ring.eq(ring << 1)
        # `bank` changes after the last write of a tile; the next tile's first comes later.
        m.d.comb += [self.walk.group.eq(ring), self.walk.entry.eq(entry), self.walk.bank.eq(bank),
                     self.table_ready.eq(there.last)]
        with m.If(there.last):
            m.d.sync += bank.eq(~bank)

        m.d.comb += [
            # Until the last entry is in its table.
            self.active.eq(loading | building | what.write | here.write | there.write),
            self.busy.eq(running | took),
            self.wait_table.eq(building & ~running & ~start),
            self.wait_memory.eq(loading & ~took),
        ]
        return m
