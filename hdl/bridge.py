"""What the link can reach: the registers, and the memory beside the engine."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hdl.beat import Client, MemorySignature
from hdl.link.endpoint import BusRequest, BusResponse
from hdl.protocol import Status as BusStatus
from hdl.registers import COUNTER_BITS, COUNTERS, REGISTERS, Error, Space, Status

__all__ = ["Bridge"]


class Bridge(wiring.Component):
    """Serves the link's bus: one request, one response.

    Registers answer in three cycles.  Memory shares the port with the engine, the engine first.  A
    read, and a write of a register while no program runs (it may start one), wait until the memory
    is idle.

    Parameters
    ----------
    config : DeviceConfig

    Members
    -------
    i : In(stream of BusRequest), o : Out(stream of BusResponse)
    engine : In(MemorySignature), memory : Out(MemorySignature)
        The engine's port, and the port to the memory.
    start : Out(1), program : Out(address_bits)
        Start the program (strobe) at this address.
    reset : Out(1)
        Hold the engine in reset; lasts until the memory owes the engine nothing.
    running, done, failed : In(1), error : In(Error)
        The engine's state.
    counter_shift : Out(1), counter_bit : In(1)
        The engine's cycle counters (see :class:`hdl.telemetry.Telemetry`).
    """

    def __init__(self, config):
        self.config = config
        engine = config.engine
        super().__init__({
            "i": In(stream.Signature(BusRequest)), "o": Out(stream.Signature(BusResponse)),
            "engine": In(MemorySignature(engine)), "memory": Out(MemorySignature(engine)),
            "start": Out(1), "reset": Out(1), "program": Out(engine.address_bits),
            "running": In(1), "done": In(1), "failed": In(1), "error": In(Error),
            "counter_shift": Out(1), "counter_bit": In(1),
        })

    def _registers(self):
        """Value of every readable register, by byte offset."""
        values = dict(self.config.identity())
        state = Signal(Status)
        values |= {"STATUS": Value.cast(state), "ERROR": Value.cast(self.error),
                   "PROGRAM": self.program}
        table = {}
        for register in REGISTERS.values():
            if register.name in values:
                table[register.offset] = values[register.name]
        return state, table

    def elaborate(self, platform):
        m = Module()
        engine = self.config.engine
        address = self.i.p.address
        beat_bits = (engine.beat_bytes - 1).bit_length()
        stride_bits = max(3, self.config.engine.side_stride - 1).bit_length()
        memory_beat = address[beat_bits:beat_bits + engine.address_bits]
        side_beat = address[stride_bits:stride_bits + engine.address_bits]
        space = address[62:]

        # Addresses: the top bits choose the space, the bits between must be zero.
        # Looked at for a cycle before the request is taken.
        legal = Signal()
        seen = Signal()
        m.d.sync += seen.eq(self.i.valid & ~self.i.ready)
        limit = self.config.memory_beats
        with m.Switch(space):
            with m.Case(Space.MEMORY):
                m.d.sync += legal.eq(address[beat_bits:62] < limit)
            with m.Case(Space.SIDEBAND):
                m.d.sync += legal.eq((address[stride_bits:62] < limit) & (engine.side_words > 0))

        state, registers = self._registers()
        m.d.comb += state.eq(Status.IDLE)
        with m.If(self.running):
            m.d.comb += state.eq(Status.RUNNING)
        with m.Elif(self.failed):
            m.d.comb += state.eq(Status.FAILED)
        with m.Elif(self.done):
            m.d.comb += state.eq(Status.DONE)

        # The engine's port passes through; the link's reads come in between.
        pending = Signal()      # a read of the link waits for the port
        reading = Signal()      # and for its beat
        request, response = self.memory.request, self.memory.response
        link_turn = Signal()
        storing = Signal()      # a write of the link waits for its turn
        write, side_write = self.memory.write, self.memory.side_write
        quiet = self.memory.idle & ~(write.valid | side_write.valid)
        idle = Signal()         # the memory is, a cycle later: nothing of the link's is as fast
        m.d.sync += idle.eq(quiet & ~storing)
        m.d.comb += [
            link_turn.eq(pending & idle & ~self.engine.request.valid),
            request.valid.eq(self.engine.request.valid | link_turn),
            request.payload.eq(self.engine.request.payload),
            self.engine.read_room.eq(self.memory.read_room & ~pending),
            self.engine.response.valid.eq(response.valid & ~self.reset
                                          & (response.p.tag.client != Client.LINK)),
            self.engine.response.payload.eq(response.payload),
            response.ready.eq(self.engine.response.ready | self.reset
                              | (response.p.tag.client == Client.LINK)),
            self.engine.write_room.eq(self.memory.write_room),
            self.engine.fault.eq(self.memory.fault), self.engine.idle.eq(quiet),
        ]
        # A soft reset lasts until the memory has answered what the engine had asked for.
        reset_now = Signal()
        with m.If(reset_now):
            m.d.sync += self.reset.eq(1)
        with m.Elif(quiet & ~self.engine.request.valid):
            m.d.sync += self.reset.eq(0)
        held = Signal(engine.address_bits)
        with m.If(link_turn):
            m.d.comb += [request.payload.address.eq(held),
                         request.payload.tag.client.eq(Client.LINK)]
            m.d.sync += pending.eq(0)

        word_offset = Signal(range(max(2, engine.beat_bytes // 4)))
        side_offset = Signal(range(max(2, engine.side_words)))
        # Sidebands lie a power of two apart: what is between them is written to no avail, so that a
        # host sends many at once, and reads as zero.
        side_words = max(1, engine.side_words)
        between = Signal()
        # Writes leave from registers.  The engine's go first; they are short.
        from_side = Signal()
        word = Signal(32)
        link_write = Signal()
        m.d.comb += link_write.eq(storing & ~self.engine.write.valid & self.memory.write_room)
        m.d.sync += [
            write.valid.eq(self.engine.write.valid | (link_write & ~from_side)),
            write.payload.eq(self.engine.write.payload),
            side_write.valid.eq(link_write & from_side & ~between),
            side_write.payload.address.eq(held), side_write.payload.data.eq(word),
            side_write.payload.mask.eq(Const(1, side_words) << side_offset)]
        with m.If(link_write):
            m.d.sync += [
                storing.eq(0), write.payload.address.eq(held),
                write.payload.data.eq(word.replicate(engine.write_bits // 32)),
                write.payload.mask.eq(Const(1, engine.beat_bytes // 4) << word_offset)]

        def answer(value, status=BusStatus.OK):
            return [self.o.valid.eq(1), self.o.p.data.eq(value), self.o.p.status.eq(status)]

        with m.If(self.o.valid & self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        busy = Signal()
        turning = Signal()
        settling = self.i.p.write & (space == Space.REGISTERS) & ~idle & ~self.running
        m.d.comb += busy.eq(Cat(self.o.valid, reading, storing, turning, reset_now, self.reset,
                                 settling).any())
        m.d.sync += [self.start.eq(0), reset_now.eq(0)]
        # The counters are one ring of bits; `at_front` is the number of the one that comes next.
        # The ring moves a cycle after the strobe, so that each bit takes two cycles.
        counters = REGISTERS["COUNTERS"].offset >> 2
        wanted = Signal(range(2 * len(COUNTERS)))
        at_front = Signal(range(len(COUNTERS)))
        bit = Signal(range(COUNTER_BITS))
        moving = Signal()
        found = Signal()
        m.d.comb += [found.eq(at_front == wanted[1:]), self.counter_shift.eq(turning & ~moving)]
        m.d.sync += moving.eq(self.counter_shift)
        with m.If(self.counter_shift):
            high = bit >= 32
            with m.If(high == wanted[0]):
                m.d.sync += self.o.p.data.eq(
                    Cat(self.o.p.data[1:], self.counter_bit))
            m.d.sync += bit.eq(bit + 1)
            with m.If(bit == COUNTER_BITS - 1):
                m.d.sync += [bit.eq(0), at_front.eq(Mux(at_front == len(COUNTERS) - 1, 0,
                                                        at_front + 1))]
                with m.If(found):
                    m.d.sync += [turning.eq(0), self.o.valid.eq(1)]
        with m.If(self.start | self.reset):
            m.d.sync += at_front.eq(0)
        # A word of the beat, then the answer: the multiplexer is as wide as the chip.
        picked, side_picked = Signal(32), Signal(32)
        arrived = Signal()
        words = Array(response.p.data[32 * i:32 * i + 32] for i in range(engine.beat_bytes // 4))
        sides = Array(response.p.side[32 * i:32 * i + 32]
                      for i in range(1 << (side_words - 1).bit_length()))
        m.d.sync += [picked.eq(words[word_offset]), side_picked.eq(sides[side_offset]),
                     arrived.eq(response.valid & (response.p.tag.client == Client.LINK))]
        with m.If(reading):
            with m.If(arrived):
                m.d.sync += [*answer(Mux(from_side, side_picked, picked)), reading.eq(0)]
        with m.Elif(seen & ~busy):
            with m.If(space == Space.REGISTERS):
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += answer(0, BusStatus.BAD_ADDRESS)
                with m.If(~address[8:62].any()), m.Switch(address[2:8]):
                    for offset, value in registers.items():
                        with m.Case(offset >> 2):
                            m.d.sync += answer(value)
                    if self.config.engine.counters:
                        with m.Case(*(counters + i for i in range(2 * len(COUNTERS)))):
                            m.d.sync += answer(0)
                            with m.If(~self.running):
                                m.d.sync += [turning.eq(1), self.o.valid.eq(0),
                                             wanted.eq(address[2:8] - counters)]
                    with m.Case(REGISTERS["CONTROL"].offset >> 2):
                        m.d.sync += [*answer(0), self.start.eq(self.i.p.write & self.i.p.data[0]),
                                     reset_now.eq(self.i.p.write & self.i.p.data[1])]
                with m.If(self.i.p.write & ~address[8:62].any()
                          & (address[2:8] == REGISTERS["PROGRAM"].offset >> 2)):
                    m.d.sync += self.program.eq(self.i.p.data)
            with m.Elif(~legal):
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += answer(0, BusStatus.BAD_ADDRESS)
            with m.Else():
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += [
                    from_side.eq(space == Space.SIDEBAND), held.eq(memory_beat),
                    word_offset.eq(address[2:beat_bits]), side_offset.eq(address[2:stride_bits]),
                    between.eq(address[2:stride_bits] >= side_words), word.eq(self.i.p.data)]
                with m.If(space == Space.SIDEBAND):
                    m.d.sync += held.eq(side_beat)
                with m.If(self.i.p.write):
                    m.d.sync += [storing.eq(1), *answer(0)]
                with m.Else():
                    m.d.sync += [pending.eq(1), reading.eq(1)]
        return m
