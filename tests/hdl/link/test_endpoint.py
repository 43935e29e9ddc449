# amaranth: UnusedElaboratable=no
"""The endpoint: requests on a line of bytes against a bus with a memory."""

import random
import zlib

import pytest
from cobs import cobs

from hdl.errors import ConfigError
from hdl.link import Endpoint

pytestmark = pytest.mark.timeout(60)

HELLO, READ, WRITE = range(3)
OK, BAD_FRAME, BAD_OP, BAD_COUNT, BAD_ADDRESS, BUS_ERROR = range(6)
NAK = (0xFF, BAD_FRAME, [])


def content(seq, op, count=0, address=0, words=()):
    """A request without its CRC."""
    return (bytes([seq, op]) + count.to_bytes(2, "little") + address.to_bytes(8, "little")
            + b"".join(w.to_bytes(4, "little") for w in words))


def frame(data, *, crc=None):
    """`data` with its CRC, or another, on the line."""
    crc = zlib.crc32(data) if crc is None else crc
    return cobs.encode(data + crc.to_bytes(4, "little")) + b"\0"


def hello(seq=0):
    return frame(content(seq, HELLO))


def read(seq, address, count=1):
    return frame(content(seq, READ, count, address))


def write(seq, address, *words):
    return frame(content(seq, WRITE, len(words), address, words))


def responses(line):
    """(seq, status, words) of each response on the line, which must be sound."""
    result = []
    assert line.endswith(b"\0")
    for encoded in line[:-1].split(b"\0"):
        data = cobs.decode(encoded)
        assert zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little")
        seq, status, count = data[0], data[1], int.from_bytes(data[2:4], "little")
        payload = data[4:-4]
        assert len(payload) == 4 * count
        result.append((seq, status, [int.from_bytes(payload[i:i + 4], "little")
                                     for i in range(0, len(payload), 4)]))
    return result


class Bus:
    """A memory of 2**64 bytes in which some words fail; takes its time at random."""

    def __init__(self, failing=(), slowness=0.0, seed=0):
        self.memory = {}
        self.failing = dict(failing)        # address: status
        self.accesses = []                  # address, write
        self.verdicts = []                  # frame_good, frame_bad
        self._slowness = slowness
        self._random = random.Random(seed)

    async def _pause(self, ctx):
        while self._random.random() < self._slowness:
            await ctx.tick()

    def serve(self, dut, put):
        request, response = dut.bus_request, dut.bus_response

        async def serve(ctx):
            while True:
                await self._pause(ctx)
                ctx.set(request.ready, 1)
                if not ctx.get(request.valid):
                    await ctx.posedge(request.valid)
                _, _, valid, p = await ctx.tick().sample(request.valid, request.payload)
                assert valid
                ctx.set(request.ready, 0)
                self.accesses.append((p.address, p.write))
                status = self.failing.get(p.address, OK)
                data = self._random.getrandbits(32)     # of no meaning, unless it is read
                if status == OK and p.write:
                    self.memory[p.address] = p.data
                elif status == OK:
                    data = self.memory.get(p.address, 0)
                await self._pause(ctx)
                assert not ctx.get(request.valid), "two requests are outstanding"
                await put(ctx, response, {"data": data, "status": status})
        return serve

    def watch(self, dut):
        async def watch(ctx):
            while True:
                good, bad = await ctx.changed(dut.frame_good, dut.frame_bad)
                assert not (good and bad)
                if good or bad:
                    self.verdicts.append(good)
        return watch


@pytest.fixture
def talk(simulate, put):
    def talk(lines, number=None, *, bus=None, max_words=4, **options):
        """Send `lines`; return the `number` responses, by default one for each line."""
        dut = Endpoint(max_words)
        bus = Bus() if bus is None else bus
        sink = dut.o, len(lines) if number is None else number, lambda byte: byte == 0
        line, = simulate(dut, [(dut.i, b"".join(lines))], [sink],
                         processes=[bus.serve(dut, put), bus.watch(dut)], **options)
        return responses(bytes(line))
    return talk


def test_hello(talk):
    assert talk([hello(7)], max_words=300) == [(7, OK, [1, 300])]


def test_write_and_read(talk, stalls):
    bus = Bus(slowness=stalls[0])
    assert talk([hello(0), write(1, 0x40, 1, 0, 0xFF00FF00), read(2, 0x40, 3), read(3, 0x44),
                 write(4, 0x44, 5), read(5, 0x40, 4)],
                bus=bus, stalls=stalls) == [
        (0, OK, [1, 4]), (1, OK, []), (2, OK, [1, 0, 0xFF00FF00]), (3, OK, [0]), (4, OK, []),
        (5, OK, [1, 5, 0xFF00FF00, 0])]
    assert bus.memory == {0x40: 1, 0x44: 5, 0x48: 0xFF00FF00}
    assert bus.verdicts == [1] * 6


@pytest.mark.parametrize("address", [
    0xFC, 0xFFF8, 0xFFFF_FFFC, 0x00FF_FFFF_FFFF_FFF8, 0xFFFF_FFFF_FFFF_FFF8])
def test_address_carries(talk, address):
    bus = Bus()
    words = [3, 2, 1, 9]
    span = [(address + 4 * i) % (1 << 64) for i in range(4)]
    assert talk([write(1, address, *words), read(2, address, 4)], bus=bus)[1] == (2, OK, words)
    assert bus.accesses == [(a, 1) for a in span] + [(a, 0) for a in span]
    assert bus.memory == dict(zip(span, words))


def test_long_runs_and_full_frames(talk):
    """256 words without a zero byte and with runs of various lengths around 254; zeros."""
    rng = random.Random(1)
    solid = [int.from_bytes(bytes(rng.randrange(1, 256) for _ in range(4)), "little")
             for _ in range(256)]
    runs = list(solid)
    for i in (63, 64, 127, 191, 255):
        runs[i] &= ~(0xFF << 8 * (i % 4))
    zeros = 0x1000
    answers = talk([write(1, 0, *solid), read(2, 0, 256), write(3, 0, *runs), read(4, 0, 256),
                    read(5, zeros, 256)], max_words=256)
    assert answers == [(1, OK, []), (2, OK, solid), (3, OK, []), (4, OK, runs),
                       (5, OK, [0] * 256)]


@pytest.mark.parametrize("max_words", [2, 3, 7, 64])
def test_largest_frames_of_other_sizes(talk, max_words):
    words = list(range(0x01010101, 0x01010101 + max_words))
    assert talk([write(1, 0, *words), read(2, 0, max_words), read(3, 0, max_words + 1)],
                max_words=max_words)[1:] == [(2, OK, words), (3, BAD_COUNT, [])]


@pytest.mark.parametrize("extra", [1, 2, 3, 4, 40, 500])
def test_overlong_frame_is_swallowed(talk, extra):
    bus = Bus()
    long = frame(content(1, WRITE, 4, 0, (1, 2, 3, 4)) + bytes(range(1, 256)) * 4)[:-1]
    lines = [cobs.encode(cobs.decode(long)[:16 + 16 + extra]) + b"\0", write(2, 0, 7)]
    assert talk(lines, bus=bus) == [NAK, (2, OK, [])]
    assert bus.memory == {0: 7}
    assert bus.verdicts == [0, 1]


def test_sound_but_overlong_frame(talk):
    bus = Bus()
    lines = [write(1, 0, 1, 2, 3, 4, 5), frame(content(1, 9) + bytes(24)), write(2, 0, 7)]
    assert talk(lines, bus=bus) == [NAK, NAK, (2, OK, [])]
    assert bus.memory == {0: 7}


def test_short_frames(talk):
    """Of every length, each with the CRC of its content where it has room for one."""
    data = content(1, WRITE, 1, 0, (1,))
    short = [frame(data[:n]) for n in range(12)]
    tiny = [cobs.encode(b"\x01\x02\x03\x04"[:n]) + b"\0" for n in range(4)]
    bus = Bus()
    assert talk([*short, *tiny, write(2, 0, 7)], bus=bus) == [NAK] * 16 + [(2, OK, [])]
    assert bus.memory == {0: 7}


def test_truncated_line(talk):
    whole = write(1, 0, 1, 2, 3)
    lines = [whole[:n] + b"\0" for n in range(1, len(whole) - 1)]
    bus = Bus()
    assert talk([*lines, read(2, 0)], bus=bus) == [NAK] * len(lines) + [(2, OK, [0])]
    assert bus.verdicts == [0] * len(lines) + [1]


def test_flipped_bits_are_found(talk):
    data = content(1, WRITE, 1, 0x10, (0x12345678,))
    data += zlib.crc32(data).to_bytes(4, "little")
    lines = []
    for bit in range(0, 8 * len(data), 5):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        lines.append(cobs.encode(flipped) + b"\0")
    bus = Bus()
    assert talk(lines, bus=bus) == [NAK] * len(lines)
    assert not bus.accesses


def test_broken_encoding_of_sound_content(talk):
    """The last block claims more bytes than come: its bytes and the CRC would be right."""
    bus = Bus()
    line = bytearray(write(1, 0, 0x01010101))
    code = 0
    while code + line[code] < len(line) - 1:
        code += line[code]
    line[code] += 1
    assert talk([bytes(line), hello(2)], bus=bus) == [NAK, (2, OK, [1, 4])]
    assert not bus.accesses


@pytest.mark.parametrize("count, words", [(2, 1), (1, 2), (0x4001, 1), (0x101, 1), (5, 4)])
def test_length_that_contradicts_the_count(talk, count, words):
    bus = Bus()
    lines = [frame(content(1, WRITE, count, 0, [1] * words)), hello(3)]
    assert talk(lines, bus=bus) == [NAK, (3, OK, [1, 4])]
    assert not bus.accesses


def test_payload_where_none_belongs(talk):
    bus = Bus()
    lines = [frame(content(1, READ, 1, 0, (1,))), frame(content(1, HELLO, 0, 0, (1,)))]
    assert talk(lines, bus=bus) == [NAK, NAK]
    assert not bus.accesses


def test_bad_requests(talk):
    bus = Bus()
    lines = [
        frame(content(1, 3)), frame(content(2, 0xFF)), frame(content(3, 0x82, 1, 0, (1,))),
        read(4, 0, 0), read(5, 0, 5), read(6, 0, 0xFFFF), read(7, 0, 0x101), write(8, 0),
        read(9, 2), write(10, 1, 5), read(11, (1 << 63) + 3),
    ]
    assert talk(lines, bus=bus) == [
        (1, BAD_OP, []), (2, BAD_OP, []), (3, BAD_OP, []),
        (4, BAD_COUNT, []), (5, BAD_COUNT, []), (6, BAD_COUNT, []), (7, BAD_COUNT, []),
        (8, BAD_COUNT, []),
        (9, BAD_ADDRESS, []), (10, BAD_ADDRESS, []), (11, BAD_ADDRESS, [])]
    assert not bus.accesses
    assert bus.verdicts == [1] * len(lines)


@pytest.mark.parametrize("op", [READ, WRITE])
@pytest.mark.parametrize("failing", range(4))
@pytest.mark.parametrize("status", [BAD_ADDRESS, BUS_ERROR, 0xA5])
def test_bus_errors(talk, op, failing, status):
    bus = Bus({0x100 + 4 * failing: status})
    request = read(1, 0x100, 4) if op == READ else write(1, 0x100, 5, 6, 7, 8)
    assert talk([request, read(2, 0)], bus=bus) == [(1, status, []), (2, OK, [0])]
    assert len(bus.accesses) == failing + 2
    if op == WRITE:
        assert bus.memory == {0x100 + 4 * i: 5 + i for i in range(failing)}


def test_repeated_write_is_applied_once(talk, stalls):
    """The host repeats when a response is lost."""
    bus = Bus()
    again = write(1, 0, 7)
    assert talk([again, again, read(2, 0), again, write(3, 0, 8), write(3, 0, 8), read(4, 0)],
                bus=bus, stalls=stalls) == [
        (1, OK, []), (1, OK, []), (2, OK, [7]), (1, OK, []), (3, OK, []), (3, OK, []),
        (4, OK, [8])]
    assert [a for a in bus.accesses if a[1]] == [(0, 1), (0, 1)]


def test_repeated_write_after_damage(talk):
    """A damaged frame is neither executed nor remembered nor a reason to forget."""
    bus = Bus()
    data = content(2, WRITE, 1, 0, (8,))
    broken = frame(data, crc=zlib.crc32(data) ^ 1)
    assert talk([broken, write(2, 0, 8), broken, write(2, 0, 8)], bus=bus) == [
        NAK, (2, OK, []), NAK, (2, OK, [])]
    assert bus.accesses == [(0, 1)]


def test_repeated_write_has_the_same_status(talk):
    bus = Bus({4: BUS_ERROR})
    again = write(1, 0, 7, 8)
    assert talk([again, read(2, 0), again], bus=bus) == [
        (1, BUS_ERROR, []), (2, OK, [7]), (1, BUS_ERROR, [])]
    assert bus.accesses == [(0, 1), (4, 1), (0, 0)]


def test_first_write_of_any_seq_is_applied(talk):
    bus = Bus()
    assert talk([write(0, 0, 7)], bus=bus) == [(0, OK, [])]
    assert bus.memory == {0: 7}


def test_refused_write_is_not_remembered(talk):
    bus = Bus()
    assert talk([write(1, 2, 7), write(1, 0, 7)], bus=bus) == [(1, BAD_ADDRESS, []), (1, OK, [])]
    assert bus.memory == {0: 7}


def test_hello_forgets_the_last_write(talk):
    bus = Bus()
    assert talk([write(1, 0, 7), hello(9), write(1, 0, 7), write(1, 0, 7)], bus=bus) == [
        (1, OK, []), (9, OK, [1, 4]), (1, OK, []), (1, OK, [])]
    assert bus.accesses == [(0, 1)] * 2


def test_repeated_read_is_executed_again(talk):
    bus = Bus()
    assert talk([read(1, 0), read(1, 0)], bus=bus) == [(1, OK, [0])] * 2
    assert bus.accesses == [(0, 0)] * 2


def test_runs_of_delimiters_mean_nothing(talk):
    bus = Bus()
    lines = [b"\0" * 50, hello(1), b"\0\0", read(2, 0), b"\0"]
    assert talk(lines, 2, bus=bus) == [(1, OK, [1, 4]), (2, OK, [0])]
    assert bus.verdicts == [1, 1]


def test_words_after_odd_responses(talk):
    """A word is assembled from its first byte on, whatever was sent before."""
    lines = []
    for n in range(1, 4):
        lines += [b"\x02" + b"\x01\0", write(n, 0, 0x04030201)]
        lines += [frame(content(n, 9 + n)), read(10 + n, 0, n)]
    answers = talk(lines)
    assert [a[2][0] for a in answers[3::4]] == [0x04030201] * 3


@pytest.mark.parametrize("max_words", [0, 1, 65536, 2.0, None])
def test_bad_parameter(max_words):
    with pytest.raises(ConfigError, match=r"^max_words must be an integer from 2 to 65535"):
        Endpoint(max_words)
