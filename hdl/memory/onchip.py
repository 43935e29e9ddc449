"""Memory in block RAM: data and sideband of every beat, one read and one write per cycle."""

from amaranth.hdl import Module, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In

from hdl.beat import ROOM_READS, MemorySignature, Tag, side_words

__all__ = ["OnChipMemory"]


class OnChipMemory(wiring.Component):
    """Block RAM behind the internal port.

    A response comes three cycles after its request, one per cycle.  A refused response stops the
    pipeline; requests then wait in a queue.  Writes are taken at once.

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
        m.submodules.store = store = Memory(shape=engine.code_bits, depth=depth, init=[])
        words = 32 * side_words(engine)
        m.submodules.side = side = Memory(shape=words, depth=depth, init=[])
        write = store.write_port(granularity=32)
        read = store.read_port()
        side_write = side.write_port(granularity=32)
        side_read = side.read_port()
        first = Signal()            # a beat leaves the block RAM
        tag = Signal(Tag, reset_less=True)
        response = port.response
        move = Signal()
        m.submodules.queue = queue = SyncFIFO(width=len(Value.cast(port.request.payload)),
                                              depth=2 * ROOM_READS)
        request = data.View(port.request.payload.shape(), queue.r_data)
        m.d.sync += port.read_room.eq(queue.level < ROOM_READS - 3)
        m.d.comb += [
            move.eq(~response.valid | response.ready),
            queue.w_data.eq(port.request.payload), queue.w_en.eq(port.request.valid),
            queue.r_en.eq(move),
            read.addr.eq(request.address), side_read.addr.eq(request.address),
            read.en.eq(move), side_read.en.eq(move),
            write.addr.eq(port.write.payload.address), write.data.eq(
                port.write.payload.data.replicate(engine.code_bits // engine.write_bits)),
            write.en.eq(port.write.payload.mask
                        & port.write.valid.replicate(engine.beat_bytes // 4)),
            side_write.addr.eq(port.side_write.payload.address),
            side_write.data.eq(port.side_write.payload.data.replicate(side_words(engine))),
            side_write.en.eq(port.side_write.payload.mask
                             & port.side_write.valid.replicate(side_words(engine))),
            port.write_room.eq(1),
            port.idle.eq(~(queue.r_rdy | first | response.valid)),
        ]
        with m.If(move):
            m.d.sync += [
                first.eq(queue.r_rdy), tag.eq(request.tag),
                response.valid.eq(first), response.p.data.eq(read.data),
                response.p.side.eq(side_read.data), response.p.tag.eq(tag)]
        m.d.sync += port.fault.eq(
            port.request.valid & (port.request.payload.address >= depth)
            | port.write.valid & (port.write.payload.address >= depth))
        return m
