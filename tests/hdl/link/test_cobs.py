"""COBS decoder and encoder against the package of that name."""

import random

import pytest
from cobs import cobs

from hdl.link import Decoder, Encoder

pytestmark = pytest.mark.timeout(60)

BROKEN = None       # stands for a frame that cannot be decoded


def ends(element):
    return element.end


def reference_decode(line):
    """The frames in `line`, which ends with a delimiter."""
    frames = []
    for encoded in line.split(b"\0"):
        if encoded:
            try:
                frames.append(cobs.decode(encoded))
            except cobs.DecodeError:
                frames.append(BROKEN)
    return frames


def rtl_decode(simulate, line, **options):
    """The same; a frame at the end shows that nothing else comes after `line`."""
    dut = Decoder()
    sentinel = cobs.encode(b"sentinel") + b"\0"
    number = len(reference_decode(line)) + 1
    elements, = simulate(dut, [(dut.i, line + sentinel)], [(dut.o, number, ends)], **options)
    frames, frame = [], bytearray()
    for element in elements:
        if element.end:
            frames.append(BROKEN if element.error else bytes(frame))
            frame.clear()
        else:
            frame.append(element.data)
    assert frames.pop() == b"sentinel"
    return frames


def rtl_encode(simulate, frames, **options):
    """Encode `frames` one after the other; return the lines."""
    dut = Encoder(12)
    elements = []
    for frame in frames:
        elements += [{"data": byte} for byte in frame] + [{"end": 1}]
    writes, = simulate(dut, [(dut.i, elements)], [(dut.o, len(frames), lambda w: w.last)],
                       **options)
    lines, memory = [], {}
    for write in writes:
        memory[write.address] = write.data
        if write.last:
            assert write.address == len(memory) - 1
            lines.append(bytes(memory[i] for i in range(len(memory))))
            memory.clear()
    return lines


def run(n, seed=0):
    """A run of `n` bytes without a zero."""
    rng = random.Random(seed)
    return bytes(rng.randrange(1, 256) for _ in range(n))


RUNS = [run(n, n) for n in (1, 253, 254, 255, 256, 508, 509)]
FRAMES = [
    b"", b"\0", b"\0\0", b"\1", b"\xff", b"\0\1", b"\1\0", b"\xff" * 254, b"\0" * 300, *RUNS,
    *[r + b"\0" for r in RUNS], *[b"\0" + r for r in RUNS], run(254) + b"\0" + run(254),
]


def random_frames(seed, number=25):
    rng = random.Random(seed)
    return [bytes(rng.choice((0, 1, 255, rng.randrange(256))) for _ in range(rng.randrange(40)))
            for _ in range(number)]


def test_decodes_extremes(simulate):
    line = b"".join(cobs.encode(f) + b"\0" for f in FRAMES)
    assert rtl_decode(simulate, line) == FRAMES


def test_decodes_random_frames(simulate, stalls):
    frames = random_frames(1)
    line = b"".join(cobs.encode(f) + b"\0" for f in frames)
    assert rtl_decode(simulate, line, stalls=stalls) == frames


def test_skips_runs_of_delimiters(simulate, stalls):
    line = b"\0\0\0" + cobs.encode(b"one") + b"\0\0\0\0" + cobs.encode(b"two\0") + b"\0\0"
    assert rtl_decode(simulate, line, stalls=stalls) == [b"one", b"two\0"]


def test_last_block_of_254_bytes_with_an_empty_one(simulate):
    """Some encoders end a frame of 254 bytes with an empty block; it means the same."""
    line = b"\xff" + run(254) + b"\x01\0"
    assert reference_decode(line) == [run(254)]
    assert rtl_decode(simulate, line) == [run(254)]


def test_marks_broken_frames(simulate, stalls):
    rng = random.Random(2)
    line = bytearray()
    for frame in random_frames(3, 60):
        encoded = bytearray(cobs.encode(frame))
        del encoded[rng.randrange(len(encoded)):]       # truncated, mostly inside a block
        line += encoded + b"\0"
    frames = reference_decode(line)
    assert frames.count(BROKEN) > 20 and len(frames) - frames.count(BROKEN) > 5
    assert rtl_decode(simulate, line, stalls=stalls) == frames


def test_decodes_any_bytes(simulate):
    rng = random.Random(4)
    line = bytes(rng.choice((0, 1, 2, 3, 5, 9)) for _ in range(1500)) + b"\0"
    frames = reference_decode(line)
    assert 30 < frames.count(BROKEN) < len(frames) - 30
    assert rtl_decode(simulate, line) == frames


def test_encodes_extremes(simulate):
    assert rtl_encode(simulate, FRAMES) == [cobs.encode(f) + b"\0" for f in FRAMES]


def test_encodes_random_frames(simulate, stalls):
    frames = [*random_frames(5), run(254), run(255), b""]
    assert rtl_encode(simulate, frames, stalls=stalls) == [cobs.encode(f) + b"\0" for f in frames]


@pytest.mark.parametrize("already", [1, 3, 254, 300])
def test_restart_drops_an_unfinished_frame(simulate, put, already):
    dut = Encoder(12)
    dropped = run(already - 1) + b"\0"

    async def source(ctx):
        for step in [*dropped, "restart", 7, "end"]:
            if step == "restart":
                ctx.set(dut.restart, 1)
                await ctx.tick()
                ctx.set(dut.restart, 0)
            else:
                await put(ctx, dut.i, {"end": 1} if step == "end" else {"data": step})

    writes, = simulate(dut, [], [(dut.o, 1, lambda w: w.last)], processes=[source])
    assert [(w.address, w.data) for w in writes[-3:]] == [(1, 7), (0, 2), (2, 0)]
