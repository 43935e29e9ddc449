"""Reads of the AXI4 master: requests of beats become bursts, transfers become responses."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from hdl.beat import ROOM_READS, Client, Flow, Tag, read_request, read_response
from hdl.layout import frame_beats, frame_sides
from hdl.memory.frames import (
    FRAME_BITS,
    Sidebands,
    burst,
    byte_address,
    differences,
    place_bits,
    place_in_memory,
)
from hdl.memory.queue import Queue

__all__ = ["READ_BEATS", "AXIReader"]

READ_BEATS = 256
"""Beats under way or waiting for the engine; at one per cycle they cover as many cycles."""
STILL_BITS = 2
"""A burst that grows leaves 2**STILL_BITS cycles after the last request that joined it."""


class AXIReader(wiring.Component):
    """Asks for beats in bursts and answers in the order of the requests.

    A request of GATHER or LINK in another frame than the last one's first reads the frame's
    sidebands, as beats like any other; FETCH and LOAD leave the sideband undefined.  FETCH also
    forgets the frame: between programs somebody else may have written to the memory.

    A request joins the burst before it where its address follows.  A burst leaves when it ends at
    a multiple of the longest burst (so none crosses 4 KiB), when the next request does not join, or
    when none has come for a while and little is under way.

    The data of a request beyond the memory mean nothing and may change while they wait.

    Takes one request and one transfer per cycle, one address every other cycle.  Latency beside
    the memory's: 9 cycles to the address of a full burst, 4 more for an unfinished one, 6 back.

    Parameters
    ----------
    config : DeviceConfig

    Members
    -------
    request : In(Flow(read_request)), response : Out(stream of read_response)
    room, idle : Out(1)
        See :class:`hdl.beat.MemorySignature`; `idle` speaks of requests of earlier cycles.
    forget : In(1)
        The sidebands last read may have been overwritten.
    fault : Out(1)
        A request was beyond the memory, or a transfer failed (strobe).
    ar : Out(stream of burst)
    r : In(Flow)
        Transfers; always taken.
    """

    def __init__(self, config):
        self.config = config
        engine = config.engine
        super().__init__({
            "request": In(Flow(read_request(engine))), "room": Out(1), "idle": Out(1),
            "response": Out(stream.Signature(read_response(engine))),
            "forget": In(1), "fault": Out(1),
            "ar": Out(stream.Signature(burst(config))),
            "r": In(Flow(data.StructLayout({"data": config.axi_bits, "error": 1}))),
        })

    def elaborate(self, platform):
        m = Module()
        family = self.config.engine.family
        # What every beat on the bus is, and what every response is, in order.
        m.submodules.kinds = kinds = Queue(
            data.StructLayout({"side": 1, "index": FRAME_BITS}), 2 * READ_BEATS, family=family)
        m.submodules.tags = tags = Queue(
            data.StructLayout({"tag": Tag, "beyond": 1}), READ_BEATS, family=family)
        item, move = self._items(m, kinds, tags)
        self._bursts(m, kinds, item, move)
        self._responses(m, kinds, tags)
        return m

    def _items(self, m, kinds, tags):
        """Requests as beats to read, sidebands included; returns (frame and position), move."""
        config, engine = self.config, self.config.engine
        layout = read_request(engine)
        m.submodules.requests = requests = SyncFIFOBuffered(width=layout.size,
                                                            depth=2 * ROOM_READS)
        head = data.View(layout, requests.r_data)
        job = Signal(layout)
        have, beyond, fetch = Signal(), Signal(), Signal()
        done = Signal()
        held = Signal(engine.address_bits - FRAME_BITS)     # frame whose sidebands were read last
        holds = Signal()
        load = requests.r_rdy & (~have | done)
        client = head.tag.client
        wants = (client == Client.GATHER) | (client == Client.LINK)
        frame = head.address[FRAME_BITS:]
        outside = head.address >= config.memory_beats
        m.d.comb += [requests.w_data.eq(self.request.payload), requests.r_en.eq(~have | done),
                     requests.w_en.eq(self.request.valid),
                     self.idle.eq(~(have | tags.i.valid | self.response.valid)
                                  & (requests.level == 0) & (tags.level == 0))]
        m.d.sync += self.room.eq(requests.level < ROOM_READS - 3)
        with m.If(load):
            m.d.sync += [have.eq(1), job.eq(head), beyond.eq(outside),
                         fetch.eq(wants & ~(holds & (held == frame)) & engine.scaled)]
            with m.If(wants):
                m.d.sync += [held.eq(frame), holds.eq(~outside)]
            with m.Elif(client == Client.FETCH):
                m.d.sync += holds.eq(0)
        with m.Elif(done):
            m.d.sync += have.eq(0)
        with m.If(self.forget):
            m.d.sync += holds.eq(0)

        # One beat per cycle, as long as there is room for all that is under way.
        sides = frame_sides(engine)
        side = Signal(range(max(1, sides)))
        step, move, room = Signal(), Signal(), Signal()
        reads_side = fetch & ~beyond
        m.d.comb += [step.eq(have & move & room), done.eq(step & ~reads_side)]
        kind, tag = Signal(kinds.i.p.shape()), Signal(tags.i.p.shape())
        m.d.sync += [
            kinds.i.valid.eq(step & ~beyond), kind.side.eq(reads_side),
            kind.index.eq(job.address[:FRAME_BITS]),
            tags.i.valid.eq(done), tag.tag.eq(job.tag), tag.beyond.eq(beyond),
            # With a margin for those that the levels do not yet show.
            room.eq((tags.level < READ_BEATS - 4) & (kinds.level < kinds.depth - 4)),
        ]
        m.d.comb += [kinds.i.payload.eq(kind), tags.i.payload.eq(tag)]
        with m.If(step & reads_side):
            m.d.sync += side.eq(side + 1)
            with m.If(side == max(0, sides - 1)):
                m.d.sync += [side.eq(0), fetch.eq(0)]
        m.d.sync += self.fault.eq((tags.i.valid & tag.beyond)
                                  | (self.r.valid & self.r.payload.error))

        item = Signal(data.StructLayout({
            "valid": 1, "frame": len(held), "position": range(frame_beats(engine))}))
        with m.If(move):
            m.d.sync += [
                item.valid.eq(step & ~beyond), item.frame.eq(job.address[FRAME_BITS:]),
                item.position.eq(Mux(reads_side, side, job.address[:FRAME_BITS] + sides))]
        return item, move

    def _bursts(self, m, kinds, item, move):
        """Join beats that follow each other."""
        config, engine = self.config, self.config.engine
        transfers = engine.code_bits // config.axi_bits
        # So short that an unfinished burst is never all that is under way when it has to wait.
        most = min(4096 // engine.beat_bytes, config.axi_burst // transfers, READ_BEATS // 4)
        low = most.bit_length() - 1

        ahead = place_in_memory(m, config, item.frame, item.position, move=move, name="ahead")
        place = Signal(place_bits(config), reset_less=True)
        expected = Signal.like(place)       # the place after the last one that passed
        valids = Signal(3)
        valid = valids[2]
        differ, follows = Signal(4), Signal()
        m.d.comb += follows.eq(differ == 0)
        with m.If(move):
            m.d.sync += [valids.eq(Cat(item.valid, valids)), place.eq(ahead),
                         differ.eq(differences(ahead, expected))]
            with m.If(valids[1]):
                m.d.sync += expected.eq(ahead + 1)

        growing, full = Signal(), Signal()
        start = Signal.like(place, reset_less=True)
        count = Signal(range(most))         # beats minus one
        still = Signal(STILL_BITS + 1)
        little = Signal()
        joins, leaves, free = Signal(), Signal(), Signal()
        m.d.comb += [
            free.eq(~self.ar.valid),        # not `ready`: it would lead through the whole pipeline
            joins.eq(growing & ~full & follows),
            leaves.eq(growing & free & (full | Mux(valid, ~joins, still[-1] & little))),
            move.eq(~valid | joins | ~growing | free),
        ]
        m.d.sync += [still.eq(Mux(valid, 0, still + ~still[-1])),
                     little.eq(kinds.level < READ_BEATS // 2)]
        with m.If(valid & move):
            m.d.sync += [growing.eq(1), full.eq(place[:low].all()), count.eq(count + 1)]
            with m.If(~joins):
                m.d.sync += [start.eq(place), count.eq(0)]
        with m.Elif(leaves):
            m.d.sync += [growing.eq(0), full.eq(0)]
        with m.If(leaves):
            m.d.sync += [
                self.ar.valid.eq(1), self.ar.p.address.eq(byte_address(config, start)),
                self.ar.p.length.eq(Cat(Const(transfers - 1, transfers.bit_length() - 1), count))]
        with m.Elif(self.ar.ready):
            m.d.sync += self.ar.valid.eq(0)

    def _responses(self, m, kinds, tags):
        """Transfers become beats, and beats meet their sidebands and tags."""
        config, engine = self.config, self.config.engine
        width, transfers = config.axi_bits, engine.code_bits // config.axi_bits
        got, last = Signal(), Signal()
        word = Signal(width, reset_less=True)
        m.d.sync += [got.eq(self.r.valid), word.eq(self.r.payload.data)]
        beat = word
        m.d.comb += last.eq(1)
        if transfers > 1:
            count = Signal(range(transfers))
            earlier = Signal(engine.code_bits - width, reset_less=True)
            beat = Cat(earlier, word)
            m.d.comb += last.eq(count == transfers - 1)
            with m.If(got):
                m.d.sync += [count.eq(count + 1), earlier.eq(beat[width:])]

        # What the transfer is, out of flip-flops: the RAM's output is slow to get anywhere.
        kind, known = Signal(kinds.o.p.shape()), Signal()
        m.d.comb += kinds.o.ready.eq(~known | (got & last))
        with m.If(kinds.o.ready):
            m.d.sync += [kind.eq(kinds.o.p), known.eq(kinds.o.valid)]
        m.submodules.beats = beats = Queue(engine.code_bits, READ_BEATS, family=engine.family)
        whole = Signal(engine.code_bits, reset_less=True)
        m.d.sync += [beats.i.valid.eq(got & last & ~kind.side), whole.eq(beat)]
        m.d.comb += beats.i.payload.eq(whole)
        response, tag = self.response, tags.o.p
        known, take = beats.o.valid, Signal()
        if engine.scaled:
            # The sideband follows its beat a cycle later: what it takes to choose it is a path of
            # its own.  So a beat is there whenever its sideband is.
            m.submodules.sidebands = sidebands = Sidebands(config)
            m.submodules.sides = sides = Queue(engine.side_bits, READ_BEATS, family=engine.family)
            known = sides.o.valid
            m.d.sync += sides.i.valid.eq(beats.i.valid)
            m.d.comb += [
                sides.i.payload.eq(sidebands.side), response.p.side.eq(sides.o.payload),
                sides.o.ready.eq(take), sidebands.write.eq(got & kind.side),
                sidebands.data.eq(word), sidebands.index.eq(kind.index)]
        m.d.comb += [
            response.valid.eq(tags.o.valid & (tag.beyond | known)),
            response.p.data.eq(beats.o.payload),
            Value.cast(response.p.tag).eq(tag.tag),
            tags.o.ready.eq(response.ready & (tag.beyond | known)),
            take.eq(response.ready & tags.o.valid & ~tag.beyond),
            beats.o.ready.eq(take & known),
        ]
