"""Memory in block RAM: data and sideband of every beat, one read and one write per cycle."""

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered
from amaranth.lib.wiring import In

from hdl.beat import ROOM_READS, MemorySignature
from hdl.parts import BlockRAM, delay

__all__ = ["OnChipMemory"]

_DEPTH = 16
"""Beats that may wait for the engine: one LUT RAM cell deep, more than the loop of credits."""


class OnChipMemory(wiring.Component):
    """Block RAM behind the internal port.

    A response comes six cycles after its request, one per cycle.  Writes are taken at once.

    The RAMs never stop, so that no enable spans the chip: a beat is only asked of them when there
    is room for it in the queue behind.  Every 32-bit word of a beat is a RAM of its own, because it
    has its own write enable.

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
        owed = Signal(range(_DEPTH + 1))    # beats asked of the RAMs that the engine has not taken
        ask = Signal()
        may_ask = Signal()
        taken = Signal()
        m.d.comb += [
            queue.w_data.eq(request), queue.w_en.eq(port.request.valid), queue.r_en.eq(ask),
            ask.eq(queue.r_rdy & may_ask), taken.eq(response.valid & response.ready),
            port.write_room.eq(1), port.idle.eq(~queue.r_rdy & (owed == 0)),
        ]
        m.d.sync += [
            port.read_room.eq(queue.level < ROOM_READS - 3),
            owed.eq(owed + ask - taken), may_ask.eq(owed < _DEPTH - 1),
        ]
        address = Signal(engine.address_bits, reset_less=True)
        m.d.sync += address.eq(waiting.address)
        tag = delay(m, waiting.tag, 1 + BlockRAM.LATENCY, name="tag")
        arrived = delay(m, ask, 1 + BlockRAM.LATENCY, name="arrived", resettable=True)

        def word(name, write, bits, value, enable):
            m.submodules[name] = ram = BlockRAM(bits, depth, family=engine.family)
            m.d.comb += [
                ram.write_address.eq(write.payload.address), ram.write_data.eq(value),
                ram.write_enable.eq(write.valid & enable), ram.read_address.eq(address)]
            return ram.read_data

        write, side = port.write, port.side_write
        beat = Cat(
            *(word(f"data_{i}", write, 32,
                   write.payload.data.word_select(i % (engine.write_bits // 32), 32),
                   write.payload.mask[i])
              for i in range(engine.beat_bytes // 4)),
            *(word(f"side_{i}", side, min(32, engine.side_bits - 32 * i), side.payload.data,
                   side.payload.mask[i])
              for i in range(engine.side_words)))
        # The tags leave from registers: they decide whether the beat is taken.
        m.submodules.beats = beats = SyncFIFO(width=len(beat), depth=_DEPTH)
        m.submodules.tags = tags = SyncFIFOBuffered(width=len(Value.cast(tag)), depth=_DEPTH)
        m.d.comb += [
            beats.w_data.eq(beat), beats.w_en.eq(arrived), beats.r_en.eq(taken),
            tags.w_data.eq(tag), tags.w_en.eq(arrived), tags.r_en.eq(taken),
            response.valid.eq(tags.r_rdy), response.p.tag.eq(tags.r_data),
            response.p.data.eq(beats.r_data), response.p.side.eq(beats.r_data[engine.code_bits:]),
        ]
        beyond = Cat(flow.valid & (flow.payload.address >= depth)
                     for flow in (port.request, write)).any()
        m.d.sync += port.fault.eq(beyond)
        return m
