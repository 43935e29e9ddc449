"""The device's end of the link protocol: frames in, bus accesses, frames out."""

from amaranth.hdl import Array, Cat, Module, Mux, ResetInserter, Signal, signed
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.crc.catalog import CRC32_ISO_HDLC
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hdl.errors import ConfigError
from hdl.link.cobs import Decoder, Encoder
from hdl.parts import BlockRAM
from hdl.protocol import (
    CRC,
    HELLO,
    MAX_WORDS,
    NAK_SEQ,
    REQUEST,
    RESPONSE,
    VERSION,
    WORD_BYTES,
    Op,
    Status,
    encoded_bytes,
)

__all__ = ["BusRequest", "BusResponse", "Endpoint"]


class BusRequest(data.Struct):
    """One access of a 32-bit word."""

    address: 64     # byte address, a multiple of 4
    data: 32        # undefined for reads
    write: 1


class BusResponse(data.Struct):
    """How the access ended."""

    data: 32        # ignored for writes
    status: 8       # `hdl.protocol.Status`: OK, or BAD_ADDRESS and up


class RequestHeader(data.Struct):
    """The start of a request in line order, see `hdl.protocol.REQUEST`."""

    seq: 8
    op: 8
    count: 16
    address: 64


class Part(enum.Enum, shape=2):
    """Which bytes go through the CRC: those of a request, or a part of the response."""

    REQUEST = 0
    HEAD = 1
    WORD = 2
    CRC = 3


class Endpoint(wiring.Component):
    """Answers the requests of `hdl.protocol`, one at a time.

    A request is buffered whole, checked, executed word by word, and its response is built in the
    same memory: a status that turns out bad at the last word still comes first.

    Back-pressure: hardly a byte is taken from `i` between the end of a request and the last byte
    of its response.  The bus must answer every request; the endpoint waits for ever.

    Latency and resources: a byte of a request takes 11 cycles, a word another 23 (WRITE) or 51
    (READ) beside the bus's own, and a response leaves at a byte per 4 cycles: faster than a UART
    at 8 clocks per bit.  One block RAM for `max_words` up to 507.

    Parameters
    ----------
    max_words : int
        Most payload words of a frame, 2 to 65535.
    family : str
        Form of the block RAM, see `hdl.parts.BlockRAM`.

    Members
    -------
    i : In(stream.Signature(8))
        Bytes from the host.
    o : Out(stream.Signature(8))
        Bytes to the host.
    bus_request : Out(stream.Signature(BusRequest))
    bus_response : In(stream.Signature(BusResponse))
        Exactly one per request; the next request comes after it.
    frame_good, frame_bad : Out(1)
        A frame ended and was sound or was answered by a NAK (strobes).
    """

    def __init__(self, max_words=MAX_WORDS, *, family="portable"):
        if not isinstance(max_words, int) or not 2 <= max_words <= 0xFFFF:
            raise ConfigError(f"max_words must be an integer from 2 to 65535, not {max_words!r}")
        self.max_words = max_words
        self.family = family
        super().__init__({
            "i": In(stream.Signature(8)),
            "o": Out(stream.Signature(8)),
            "bus_request": Out(stream.Signature(BusRequest)),
            "bus_response": In(stream.Signature(BusResponse)),
            "frame_good": Out(1),
            "frame_bad": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        payload = WORD_BYTES * self.max_words
        overhead = REQUEST.size + CRC.size      # 16, which the test for header bytes relies on
        address_bits = ceil_log2(max(payload + overhead,
                                     encoded_bytes(RESPONSE.size + payload + CRC.size)))

        m.submodules.decoder = decoder = Decoder()
        m.submodules.encoder = encoder = Encoder(address_bits)
        m.submodules.ram = ram = BlockRAM(8, 1 << address_bits, family=self.family)
        crc = CRC32_ISO_HDLC(1).create()
        crc_clear = Signal()
        # The reset costs nothing; the processor's own `start` is a multiplexer per bit.
        m.submodules.crc = ResetInserter(crc_clear)(crc)

        header = Signal(RequestHeader)
        left = Signal(range(self.max_words + 1))    # words of payload to be read or written
        status = Signal(8)
        word = Signal(32)
        written = Signal()      # a WRITE was executed in this session; its seq and status:
        written_seq = Signal(8)
        written_status = Signal(8)

        # Every byte of a frame passes here, turns once around for the bit-serial CRC (a fifth of
        # a byte-wide one), and goes to the memory.
        byte = Signal(8)
        turn = Signal(3)
        part = Signal(Part)
        step = Signal(2)        # bytes of a word or part done

        # Bytes of a request are counted from minus the overhead.  The count ends at the length of
        # the payload and also addresses the memory, in which the payload begins at minus the CRC.
        at = Signal(signed(address_bits + 1), init=-overhead)
        overlong = Signal()
        m.d.comb += overlong.eq(at == payload + 1)

        # Facts, a cycle old: there is always one between change and use.
        done = Signal()
        is_hello = Signal()
        is_read = Signal()
        is_write = Signal()
        delimiter = Signal()
        bad = Signal()
        bad_count = Signal()
        repeated = Signal()
        m.d.sync += [
            done.eq(left == 0),
            is_hello.eq(header.op == Op.HELLO),
            is_read.eq(header.op == Op.READ),
            is_write.eq(header.op == Op.WRITE),
            bad.eq(decoder.o.p.error | ~crc.match_detected | at[-1] | overlong |
                   is_write & (at != header.count << 2) | (is_hello | is_read) & (at != 0)),
            # In two halves: against a power of two, >= is free and > is a carry chain.
            bad_count.eq((header.count == 0) |
                         (header.count >= self.max_words) & (header.count != self.max_words)),
            repeated.eq(written & (written_seq == header.seq)),
        ]

        wiring.connect(m, wiring.flipped(self.i), decoder.i)
        element = decoder.o.p
        # Registered: block RAM is far from everything.
        write = Signal(data.StructLayout({"address": address_bits, "data": 8, "enable": 1}))
        m.d.sync += [
            ram.write_address.eq(write.address),
            ram.write_data.eq(write.data),
            ram.write_enable.eq(write.enable),
        ]
        m.d.comb += [
            encoder.i.p.data.eq(byte),
            encoder.o.ready.eq(1),
            write.address.eq(encoder.o.p.address),
            write.data.eq(encoder.o.p.data),
            write.enable.eq(encoder.o.valid),
            ram.read_address.eq(at),
            # Fed with the complement of its lowest bits, the CRC shifts down.
            crc.data.eq(byte[0] ^ (part == Part.CRC)),
            self.bus_request.p.address.eq(header.address),
            self.bus_request.p.data.eq(word),
            self.bus_request.p.write.eq(is_write),
            self.o.payload.eq(word[-8:]),
        ]

        def respond():
            m.d.sync += [part.eq(Part.HEAD), step.eq(0)]
            m.next = "REPLY"

        def refuse(code):
            m.d.sync += [status.eq(code), left.eq(0)]
            respond()

        # Of a READ or HELLO.
        def next_word():
            m.d.sync += part.eq(Part.WORD)
            m.next = "REPLY"
            with m.If(done):
                m.d.sync += part.eq(Part.CRC)
            with m.Elif(is_read):
                m.next = "REQUEST"

        with m.FSM():
            with m.State("RECEIVE"):
                m.d.comb += decoder.o.ready.eq(1)
                m.d.sync += byte.eq(element.data)
                with m.If(decoder.o.valid & element.end):
                    m.next = "CHECK"
                with m.Elif(decoder.o.valid):
                    m.next = "TURN"

            with m.State("TURN"):
                m.d.comb += crc.valid.eq(1)
                m.d.sync += [byte.eq(byte.rotate_right(1)), turn.eq(turn + 1)]
                with m.If(turn == 7):
                    m.next = "PUSH"
                    with m.If(part == Part.REQUEST):
                        m.next = "STORE"

            with m.State("STORE"):
                m.d.comb += [write.address.eq(at), write.data.eq(byte), write.enable.eq(1)]
                with m.If(at[-1] & ~at[2:4].all()):
                    m.d.sync += header.eq(Cat(header.as_value()[8:], byte))
                with m.If(~overlong):
                    m.d.sync += at.eq(at + 1)
                m.next = "RECEIVE"

            with m.State("CHECK"):
                m.d.sync += [at.eq(-CRC.size), status.eq(Status.OK), left.eq(header.count)]
                m.d.comb += [crc_clear.eq(1), self.frame_good.eq(~bad), self.frame_bad.eq(bad)]
                with m.If(bad):
                    m.d.sync += header.seq.eq(NAK_SEQ)
                    refuse(Status.BAD_FRAME)
                with m.Elif(~(is_hello | is_read | is_write)):
                    refuse(Status.BAD_OP)
                with m.Elif(is_hello):
                    m.d.sync += [written.eq(0), left.eq(HELLO.size // WORD_BYTES)]
                    respond()
                with m.Elif(bad_count):
                    refuse(Status.BAD_COUNT)
                with m.Elif(header.address[:2] != 0):
                    refuse(Status.BAD_ADDRESS)
                with m.Elif(is_read):
                    respond()
                with m.Elif(repeated):
                    refuse(written_status)
                with m.Else():
                    m.d.sync += [written.eq(1), written_seq.eq(header.seq), step.eq(0)]
                    m.next = "READ RAM"

            # The memory's two cycles, then a byte enters the word: to be written or to be sent.
            with m.State("READ RAM"):
                m.next = "WAIT RAM"
            with m.State("WAIT RAM"):
                m.next = "LOAD"
            with m.State("LOAD"):
                m.d.sync += [word.eq(Cat(word[8:], ram.read_data)), at.eq(at + 1),
                             step.eq(step + 1), delimiter.eq(ram.read_data == 0)]
                m.next = "READ RAM"
                with m.If(part == Part.CRC):
                    m.next = "SEND"
                with m.Elif(step == WORD_BYTES - 1):
                    m.next = "REQUEST"

            with m.State("REQUEST"):
                m.d.comb += self.bus_request.valid.eq(1)
                with m.If(self.bus_request.ready):
                    m.next = "RESPONSE"

            with m.State("RESPONSE"):
                m.d.comb += self.bus_response.ready.eq(1)
                with m.If(self.bus_response.valid):
                    m.d.sync += [word.eq(self.bus_response.p.data),
                                 status.eq(self.bus_response.p.status)]
                    m.next = "JUDGE"

            with m.State("JUDGE"):
                with m.If(is_write):
                    m.d.sync += written_status.eq(status)
                    m.next = "ADVANCE"
                with m.Else():
                    m.next = "REPLY"
                with m.If(status != Status.OK):
                    m.d.comb += [encoder.restart.eq(1), crc_clear.eq(1)]
                    m.d.sync += left.eq(0)
                    respond()

            # The address is incremented a byte at a time, rotating: a sixth of a 64-bit adder with
            # its multiplexer, and the line is slower anyway.
            with m.State("ADVANCE"):
                low = Signal(9)
                carry = Signal()
                m.d.comb += low.eq(header.address[:8] + Mux(turn == 0, WORD_BYTES, carry))
                m.d.sync += [header.address.eq(Cat(header.address[8:], low[:8])),
                             carry.eq(low[8]), turn.eq(turn + 1)]
                with m.If(turn == 0):
                    m.d.sync += left.eq(left - 1)
                with m.If(turn == 7):
                    with m.If(~is_write):
                        next_word()
                    with m.Elif(done):
                        respond()
                    with m.Else():
                        m.next = "READ RAM"

            with m.State("REPLY"):
                head = Array([header.seq, status, left[:8], left[8:]])
                # HELLO counts its two words from 2 down to 1.
                hello = Array(HELLO.pack(VERSION, self.max_words))
                with m.Switch(part):
                    with m.Case(Part.HEAD):
                        m.d.sync += byte.eq(head[step])
                    with m.Case(Part.WORD):
                        m.d.sync += byte.eq(Mux(is_hello,
                                                hello[Cat(step, left[0])], word[:8]))
                    with m.Case(Part.CRC):
                        m.d.sync += byte.eq(crc.crc[:8])
                m.next = "TURN"

            with m.State("PUSH"):
                m.d.comb += encoder.i.valid.eq(1)
                with m.If(encoder.i.ready):
                    m.d.sync += [step.eq(step + 1), word.eq(word[8:])]
                    m.next = "REPLY"
                    with m.If(step == WORD_BYTES - 1):
                        with m.Switch(part):
                            with m.Case(Part.HEAD):
                                next_word()
                            with m.Case(Part.WORD):
                                m.next = "ADVANCE"
                            with m.Case(Part.CRC):
                                m.next = "END"

            with m.State("END"):
                m.d.comb += [encoder.i.valid.eq(~encoder.o.p.last), encoder.i.p.end.eq(1)]
                with m.If(encoder.o.p.last):
                    m.d.sync += at.eq(0)
                    m.next = "READ RAM"

            with m.State("SEND"):
                m.d.comb += self.o.valid.eq(1)
                with m.If(self.o.ready):
                    m.next = "READ RAM"
                    with m.If(delimiter):
                        m.d.comb += crc_clear.eq(1)
                        m.d.sync += [at.eq(-overhead), part.eq(Part.REQUEST)]
                        m.next = "RECEIVE"
        return m
