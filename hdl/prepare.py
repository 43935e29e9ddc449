"""The prepare stage: LOAD fills the activation buffers, BUILD fills a table bank per K tile."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hdl.beat import Client, Flow, read_request
from hdl.builder import SignedSumBuilder, step_program
from hdl.control import fields_of
from hdl.isa import Opcode
from hdl.parts import BlockRAM, delay

__all__ = ["ActivationWrite", "Prepare"]


def ActivationWrite(config):
    """Payload of a write into the activation buffers: one word, an enable per row and byte."""
    return data.StructLayout({
        "address": (config.activation_depth - 1).bit_length(),
        "data": data.ArrayLayout(8 * config.builders, config.rows),
        "mask": data.ArrayLayout(config.builders, config.rows),
    })


class Prepare(wiring.Component):
    """Executes LOAD and BUILD in program order.

    LOAD takes ``word_steps`` cycles per beat, BUILD ``v + 2**(v-1) - 1`` cycles per lane group
    plus a few at the end of a tile; it waits for a free table bank before each tile.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    i_load, i_build : In(stream.Signature(fields))
        Instructions; never both valid.
    o_request : Out(stream.Signature(read_request))
    i_beat : In(stream.Signature(code_bits))
        Beats that LOAD asked for.
    i_write : In(stream.Signature(ActivationWrite))
        Results that stay on the device; always taken (the compiler keeps LOAD away meanwhile).
    table_free : In(1)
        The gather stage has finished with a bank (strobe).
    table_ready : Out(1)
        A bank is complete (strobe).
    entries : Out(one array of entries per row)
    group : Out(lane groups)
        One bit per lane group: write the entries to its lanes.
    entry, bank : Out
        Where in the table.
    busy, wait_table, wait_memory : Out(1)
    """

    def __init__(self, config):
        self.config = config
        self.groups = [v for v in config.chunks for _ in range(max(1, 32 // v // config.builders))]
        self.entry_width = max(config.chunks) - 1
        entry = signed(config.entry_bits(max(config.chunks)))
        super().__init__({
            "i_load": In(stream.Signature(fields_of(Opcode.LOAD, config))),
            "i_build": In(stream.Signature(fields_of(Opcode.BUILD, config))),
            "o_request": Out(stream.Signature(read_request(config))),
            "i_beat": In(stream.Signature(config.code_bits)),
            "i_write": In(Flow(ActivationWrite(config))),
            "table_free": In(1), "table_ready": Out(1),
            "entries": Out(data.ArrayLayout(data.ArrayLayout(entry, config.builders), config.rows)),
            "group": Out(len(self.groups)), "entry": Out(self.entry_width), "bank": Out(1),
            "busy": Out(1), "wait_table": Out(1), "wait_memory": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        local = Signal(self.i_write.payload.address.shape())

        # LOAD: requests run ahead of the words written.
        asked = Signal(16)
        asking = Signal()
        loading = Signal()
        left = Signal(16)
        request = self.o_request.p
        m.d.comb += [self.o_request.valid.eq(asking), request.tag.client.eq(Client.LOAD)]
        address = Signal(config.address_bits)
        m.d.comb += request.address.eq(address)
        with m.If(self.o_request.valid & self.o_request.ready):
            m.d.sync += [address.eq(address + 1), asked.eq(asked - 1), asking.eq(asked != 0)]

        steps, row_groups = config.word_steps, config.row_groups
        step = Signal(range(max(2, steps)))
        row_group = Signal(range(max(2, row_groups)))
        word_bits = 8 * config.builders
        last_step = Signal()
        m.d.comb += [last_step.eq(step == steps - 1),
                     self.i_beat.ready.eq(last_step)]
        writes = Signal(config.rows)
        beat_rows = config.rows // row_groups
        words = Array(
            self.i_beat.payload[s * beat_rows * word_bits:(s + 1) * beat_rows * word_bits]
            for s in range(steps))[step]
        loaded = Signal(config.rows * word_bits)
        m.d.comb += loaded.eq(words.replicate(row_groups))
        load_write = Signal()
        m.d.comb += load_write.eq(self.i_beat.valid)
        for r in range(config.rows):
            m.d.comb += writes[r].eq(load_write & (row_group == r // beat_rows))
        local_ends = Signal()
        m.d.comb += local_ends.eq(row_group == row_groups - 1)
        load_done = Signal()
        m.d.comb += load_done.eq(loading & load_write & last_step & (left == 0))
        with m.If(load_write):
            m.d.sync += step.eq(Mux(last_step, 0, step + 1))
            with m.If(last_step):
                m.d.sync += [row_group.eq(Mux(local_ends, 0, row_group + 1)), left.eq(left - 1)]
            with m.If(local_ends):
                m.d.sync += local.eq(local + 1)

        # The buffers: one per row, a byte per builder in a word.
        read_address = Signal.like(local)
        words_read = []
        for r in range(config.rows):
            ram = BlockRAM(word_bits, config.activation_depth, granularity=8, family=config.family)
            m.submodules[f"buffer_{r}"] = ram
            with m.If(self.i_write.valid):
                m.d.comb += [
                    ram.write_address.eq(self.i_write.payload.address),
                    ram.write_data.eq(self.i_write.payload.data[r]),
                    ram.write_enable.eq(self.i_write.payload.mask[r]),
                ]
            with m.Else():
                m.d.comb += [
                    ram.write_address.eq(local),
                    ram.write_data.eq(loaded[r * word_bits:(r + 1) * word_bits]),
                    ram.write_enable.eq(writes[r].replicate(config.builders)),
                ]
            m.d.comb += ram.read_address.eq(read_address)
            words_read.append(ram.read_data)

        # BUILD: walk the steps of each lane group of each tile.
        building = Signal()
        running = Signal()      # inside a tile
        tiles = Signal(16)
        unsigned = Signal()
        bank = Signal()
        free_banks = Signal(2, init=2)
        start = Signal()
        tile_end = Signal()
        m.d.comb += start.eq(building & ~running & (free_banks != 0))
        m.d.sync += free_banks.eq(free_banks + self.table_free - start)

        programs = {v: step_program(v) for v in set(config.chunks)}
        longest = max(len(p) for p in programs.values())
        count = Signal(range(longest))
        ring = Signal(len(self.groups), init=1)     # one-hot: lane group being built
        group_end = Signal()
        position = Signal(range(max(config.chunks)))
        word_base = Signal.like(local)
        what = Signal(data.StructLayout({
            "restart": 1, "double": 1, "negate": 1, "unsigned": 1, "entry": self.entry_width,
            "write": 1, "last": 1}))
        by_v = {v: Cat(ring[g] for g, w in enumerate(self.groups) if w == v).any()
                for v in programs}
        for v, program in programs.items():
            with m.If(by_v[v]), m.Switch(count):
                for c, s in enumerate(program):
                    with m.Case(c):
                        m.d.comb += [
                            position.eq(s.position), what.restart.eq(s.restart),
                            what.double.eq(s.double), what.negate.eq(s.negate),
                            what.entry.eq(s.entry), group_end.eq(c == len(program) - 1)]
        m.d.comb += [
            what.write.eq(running), what.last.eq(running & tile_end), what.unsigned.eq(unsigned),
            tile_end.eq(group_end & ring[-1]), read_address.eq(word_base | position)]
        v_now = Signal(range(9))
        for v in programs:
            with m.If(by_v[v]):
                m.d.comb += v_now.eq(v)
        with m.If(running):
            m.d.sync += count.eq(Mux(group_end, 0, count + 1))
            with m.If(group_end):
                m.d.sync += [ring.eq(ring.rotate_left(1)), word_base.eq(word_base + v_now)]
                with m.If(tile_end):
                    m.d.sync += [running.eq(0), tiles.eq(tiles - 1), building.eq(tiles != 0)]
        with m.If(start):
            m.d.sync += running.eq(1)

        # The words arrive, the builders add, the entries are written.
        here = delay(m, what, BlockRAM.LATENCY, name="step", resettable=True)
        for r in range(config.rows):
            builder = SignedSumBuilder(config)
            m.submodules[f"builder_{r}"] = builder
            m.d.comb += [
                builder.word.eq(words_read[r]), builder.unsigned.eq(here.unsigned),
                builder.restart.eq(here.restart), builder.double.eq(here.double),
                builder.negate.eq(here.negate), self.entries[r].eq(builder.entries)]
        total = BlockRAM.LATENCY + SignedSumBuilder.LATENCY
        there = delay(m, here, SignedSumBuilder.LATENCY, name="write", resettable=True)
        where = delay(m, ring, total, name="ring")
        m.d.comb += [
            self.group.eq(where & there.write.replicate(len(self.groups))),
            self.entry.eq(there.entry), self.bank.eq(bank), self.table_ready.eq(there.last)]
        with m.If(there.last):
            m.d.sync += bank.eq(~bank)

        # `bank` changes after the last write of a tile; the next tile's first write comes later.
        idle = Signal()
        m.d.comb += [
            idle.eq(~loading & ~building),
            self.i_load.ready.eq(idle), self.i_build.ready.eq(idle),
            self.busy.eq(running | loading & self.i_beat.valid),
            self.wait_table.eq(building & ~running & ~start),
            self.wait_memory.eq(loading & ~self.i_beat.valid),
        ]
        with m.If(load_done):
            m.d.sync += loading.eq(0)
        with m.If(self.i_load.valid & idle):
            load = self.i_load.p
            m.d.sync += [loading.eq(1), asking.eq(1), asked.eq(load.count), left.eq(load.count),
                         address.eq(load.address), local.eq(load.local)]
        with m.If(self.i_build.valid & idle):
            build = self.i_build.p
            m.d.sync += [building.eq(1), tiles.eq(build.tiles), word_base.eq(build.local),
                         unsigned.eq(build.unsigned)]
        return m
