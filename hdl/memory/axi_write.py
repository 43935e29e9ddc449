"""Writes of the AXI4 master: words of the engine and the link become beats."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hdl.beat import Flow, write_request
from hdl.layout import FRAME, frame_beats, frame_sides, side_slots
from hdl.memory.frames import (
    FRAME_BITS,
    burst,
    byte_address,
    differences,
    place_bits,
    place_in_memory,
)
from hdl.memory.queue import Queue
from hdl.parts import delay

__all__ = ["AXIWriter"]

WRITES = 256
"""Writes that wait; `room` goes when a quarter is left: 32 as promised, and those on the way."""
STILL_BITS = 4
"""A beat that is being filled leaves 2**STILL_BITS cycles after the last write into it."""
OUTSTANDING_BITS = 6


class AXIWriter(wiring.Component):
    """Collects writes into the same beat and writes it in one burst, with strobes.

    Every burst is one beat.  A beat takes three cycles more than its transfers.

    Parameters
    ----------
    config : DeviceConfig

    Members
    -------
    write, side_write : In(Flow)
        See :class:`hdl.beat.MemorySignature`; never both.
    room, idle : Out(1)
    fault : Out(1)
        A write was beyond the memory, or failed (strobe).
    aw : Out(stream of burst)
    w : Out(stream of data, strobes and last)
    b : In(Flow(1))
        A burst has arrived; 1 if it failed.
    """

    def __init__(self, config):
        self.config = config
        engine = config.engine
        super().__init__({
            "write": In(Flow(write_request(engine))),
            "side_write": In(Flow(data.StructLayout({
                "address": engine.address_bits, "data": 32, "mask": engine.side_words}))),
            "room": Out(1), "idle": Out(1), "fault": Out(1),
            "aw": Out(stream.Signature(burst(config))),
            "w": Out(stream.Signature(data.StructLayout({
                "data": config.axi_bits, "strobes": config.axi_bits // 8, "last": 1}))),
            "b": In(Flow(1)),
        })

    def elaborate(self, platform):
        m = Module()
        config, engine = self.config, self.config.engine
        words = engine.beat_bytes // 4
        entry = data.StructLayout({"place": place_bits(config), "data": engine.write_bits,
                                   "mask": words, "bytes": 4, "joins": 1})
        m.submodules.queue = queue = Queue(entry, WRITES, family=engine.family)
        beyond, arriving = self._enter(m, queue)

        # Writes into one beat gather here and leave from here.
        head = queue.o.p
        place = Signal(place_bits(config), reset_less=True)
        beat = Signal(data.ArrayLayout(32, words), reset_less=True)
        mask, enables = Signal(words), Signal(4, reset_less=True)     # `mask` leaves with its words
        filling, take, leaves = Signal(), Signal(), Signal()
        still = Signal(STILL_BITS)
        outstanding = Signal(OUTSTANDING_BITS)
        may_begin = Signal()
        aw, w = self.aw, self.w
        m.d.sync += may_begin.eq(~aw.valid & ~w.valid & ~outstanding.all() & ~filling & ~leaves)
        m.d.comb += [
            leaves.eq(filling & Mux(queue.o.valid, ~head.joins, still.all())),
            queue.o.ready.eq(Mux(filling, head.joins, may_begin)),
            take.eq(queue.o.valid & queue.o.ready),
        ]
        m.d.sync += [still.eq(Mux(take, 0, still + ~still.all())),
                     outstanding.eq(outstanding + leaves - self.b.valid)]
        with m.If(take):
            m.d.sync += [filling.eq(1), place.eq(head.place), enables.eq(head.bytes),
                         mask.eq(head.mask | mask)]
        with m.Elif(leaves):
            m.d.sync += filling.eq(0)
        per_write = engine.write_bits // 32
        transfers = engine.code_bits // config.axi_bits
        step = words // transfers           # words of a transfer
        left = Signal(range(transfers))
        with m.If(w.valid & w.ready):
            m.d.sync += [left.eq(left - 1), mask.eq(mask >> step), w.valid.eq(left != 0)]
        for i in range(words):
            if i + step < words:
                with m.If(w.valid & w.ready):
                    m.d.sync += beat[i].eq(beat[i + step])
            with m.If(take & head.mask[i]):
                m.d.sync += beat[i].eq(head.data.word_select(i % per_write, 32))
        with m.If(leaves):
            m.d.sync += [aw.valid.eq(1), aw.p.address.eq(byte_address(config, place)),
                         w.valid.eq(1), left.eq(transfers - 1)]
        with m.Elif(aw.ready):
            m.d.sync += aw.valid.eq(0)
        m.d.comb += [
            aw.p.length.eq(transfers - 1),
            w.p.data.eq(Cat(*(beat[i] for i in range(step)))), w.p.last.eq(left == 0),
            w.p.strobes.eq(Cat(enables & mask[i].replicate(4) for i in range(step))),
            self.idle.eq(~arriving & (queue.level == 0) & ~filling & (outstanding == 0)),
        ]
        m.d.sync += [self.room.eq(queue.level < WRITES * 3 // 4),
                     self.fault.eq(beyond | (self.b.valid & self.b.payload))]
        return m

    def _enter(self, m, queue):
        """Give writes their place in external memory; returns (beyond the memory, on the way).

        An entry of the queue `joins` the one before it where both go into the same beat.
        """
        config, engine = self.config, self.config.engine
        words = engine.beat_bytes // 4
        write, side = self.write.payload, self.side_write.payload
        came, is_side = Signal(), Signal()
        address = Signal(engine.address_bits)
        payload = Signal(engine.write_bits)
        mask = Signal(words)
        m.d.sync += [
            came.eq(self.write.valid | self.side_write.valid), is_side.eq(self.side_write.valid),
            address.eq(Mux(self.side_write.valid, side.address, write.address)),
            payload.eq(Mux(self.side_write.valid, side.data.replicate(engine.write_bits // 32),
                           write.data)),
            mask.eq(Mux(self.side_write.valid, side.mask, write.mask))]

        index = address[:FRAME_BITS]
        position = Signal(range(frame_beats(engine)))
        entry = Signal(data.StructLayout({"data": engine.write_bits, "mask": words, "bytes": 4}))
        m.d.comb += [position.eq(index + frame_sides(engine)), entry.data.eq(payload),
                     entry.mask.eq(mask), entry.bytes.eq(15)]
        if engine.scaled:
            self._place_side(m, index, mask, payload, is_side, position, entry)

        inside = Signal()
        m.d.comb += inside.eq(address < config.memory_beats)
        place = place_in_memory(m, config, address[FRAME_BITS:], position, name="place")
        entry = delay(m, entry, 3, name="entry")
        valids = Signal(3)
        before, differ = Signal.like(place), Signal(4)
        m.d.sync += [valids.eq(Cat(came & inside, valids)),
                     differ.eq(differences(before, place))]
        with m.If(valids[1]):
            m.d.sync += before.eq(place)
        bytes_before = Signal(4)
        with m.If(valids[2]):
            m.d.sync += bytes_before.eq(entry.bytes)
        m.d.comb += [
            queue.i.valid.eq(valids[2]), queue.i.p.place.eq(before),
            queue.i.p.joins.eq((differ == 0) & (bytes_before == entry.bytes)),
            queue.i.p.data.eq(entry.data), queue.i.p.mask.eq(entry.mask),
            queue.i.p.bytes.eq(entry.bytes)]
        return came & ~inside, came | valids.any()

    def _place_side(self, m, index, mask, payload, is_side, position, entry):
        """A word of a sideband is a word, or some bytes of one, in the beats before the data."""
        engine = self.config.engine
        words = engine.beat_bytes // 4
        slots = side_slots(engine)
        which = Signal(range(len(slots)))
        for i in range(len(slots)):
            with m.If(mask[i]):
                m.d.comb += which.eq(i)
        in_frame = Signal(range(frame_sides(engine) * words))
        enables = Signal(4)
        value = Signal(32)
        m.d.comb += [in_frame.eq(Cat(index, which)), enables.eq(15), value.eq(payload[:32])]
        if slots[-1] < 4:
            size = slots[-1]
            part = {1: 2, 2: 1}[size]       # address bits within a word
            with m.If(mask[len(slots) - 1]):
                m.d.comb += [
                    in_frame.eq(FRAME * (len(slots) - 1) + index[part:]),
                    enables.eq(Const(2**size - 1, 4) << (index[:part] * size)),
                    value.eq(payload[:8 * size].replicate(4 // size))]
        low = words.bit_length() - 1
        with m.If(is_side):
            m.d.comb += [
                position.eq(in_frame[low:]), entry.mask.eq(Const(1, words) << in_frame[:low]),
                entry.bytes.eq(enables), entry.data.eq(value.replicate(engine.write_bits // 32))]
