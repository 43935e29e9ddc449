"""Memory in block RAM: data and sideband of every beat, one read and one write per cycle."""

from itertools import pairwise

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In

from hdl.beat import ROOM_READS, MemorySignature, Tag, side_words
from hdl.parts import BlockRAM

__all__ = ["OnChipMemory"]


class OnChipMemory(wiring.Component):
    """Block RAM behind the internal port.

    A response comes four cycles after its request, one per cycle.  A refused response stops the
    pipeline; requests then wait in a queue.  Writes are taken at once.

    Every 32-bit word of a beat is a RAM of its own, because it has its own write enable; its output
    register is that of the response.

    Parameters
    ----------
    config : DeviceConfig

    Members
    -------
    port : In(MemorySignature)
    """

    def __init__(self, config):
        self.config = config
        super().__init__({"port": In(MemorySignature(config.engine))})

    def elaborate(self, platform):
        m = Module()
        engine = self.config.engine
        depth = self.config.memory_beats
        port = self.port
        request, response = port.request.payload, port.response
        m.submodules.queue = queue = SyncFIFO(width=len(Value.cast(request)), depth=2 * ROOM_READS)
        waiting = data.View(request.shape(), queue.r_data)
        asked = Signal()            # a request is at the RAM's address
        first = Signal()            # a beat is in the RAM's first step
        address = Signal(engine.address_bits)
        move = Signal()
        m.d.comb += [
            move.eq(~response.valid | response.ready),
            queue.w_data.eq(request), queue.w_en.eq(port.request.valid), queue.r_en.eq(move),
            port.write_room.eq(1), port.idle.eq(~(queue.r_rdy | asked | first | response.valid)),
        ]
        m.d.sync += port.read_room.eq(queue.level < ROOM_READS - 3)
        with m.If(move):
            m.d.sync += [asked.eq(queue.r_rdy), address.eq(waiting.address),
                         first.eq(asked), response.valid.eq(first)]
            tags = [waiting.tag, *(Signal(Tag, name=f"tag_{i}") for i in range(2)), response.p.tag]
            m.d.sync += [after.eq(before) for before, after in pairwise(tags)]

        def word(name, write, bits, value, enable):
            m.submodules[name] = ram = BlockRAM(bits, depth, family=engine.family)
            m.d.comb += [
                ram.write_address.eq(write.payload.address), ram.write_data.eq(value),
                ram.write_enable.eq(write.valid & enable), ram.read_address.eq(address),
                ram.read_enable.eq(move), ram.output_enable.eq(move)]
            return ram.read_data

        write, side = port.write, port.side_write
        m.d.comb += [
            response.p.data.eq(Cat(
                word(f"data_{i}", write, 32,
                     write.payload.data.word_select(i % (engine.write_bits // 32), 32),
                     write.payload.mask[i])
                for i in range(engine.beat_bytes // 4))),
            response.p.side.eq(Cat(
                word(f"side_{i}", side, min(32, engine.side_bits - 32 * i), side.payload.data,
                     side.payload.mask[i])
                for i in range(side_words(engine)))),
        ]
        beyond = Cat(flow.valid & (flow.payload.address >= depth)
                     for flow in (port.request, write)).any()
        m.d.sync += port.fault.eq(beyond)
        return m
