# amaranth: UnusedElaboratable=no
"""The UART against senders and receivers in continuous time."""

import random
import zlib

import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.sim import Simulator
from cobs import cobs

from hdl.errors import ConfigError
from hdl.link import UART, Endpoint
from hdl.protocol import BAUDS, encoded_bytes

pytestmark = pytest.mark.timeout(60)

# Clock, baud rate, number of bytes: few clocks per bit, no whole number of them, many.
RATES = [(25e6, 3_000_000, 40), (27e6, 3_000_000, 30), (31.7e6, 2_000_000, 20),
         (25e6, 1_000_000, 15), (25e6, 115_200, 5), (250e6, 3_000_000, 8)]


def some_bytes(number):
    rng = random.Random(number)
    return bytes([0x00, 0xFF, 0x55, 0xAA, 0x01, 0x80, *rng.randbytes(number)])[:number]


def every(byte):
    return True


async def send(ctx, pin, data, baud, *, stop=1, bits=10):
    """Send bytes without a pause; `bits` and `stop` for bad ones."""
    for byte in data:
        for level in [0, *(byte >> i & 1 for i in range(8)), stop][:bits]:
            ctx.set(pin, level)
            await ctx.delay(1 / baud)
    ctx.set(pin, 1)


def listen(levels, clocks_per_bit):
    """Decode the line from its level at each clock: (bytes, clocks at which they start)."""
    data, starts, at = bytearray(), [], 0
    while 0 in levels[at:]:
        at = levels.index(0, at)
        bits = [levels[round(at + (i + 0.5) * clocks_per_bit)] for i in range(10)]
        assert bits[0] == 0 and bits[9] == 1, "framing error"
        data.append(sum(bit << i for i, bit in enumerate(bits[1:9])))
        starts.append(at)
        at = round(at + 9.5 * clocks_per_bit)
    return bytes(data), starts


@pytest.mark.parametrize("clock", [25e6, 33.3e6, 48e6, 100e6, 133e6, 166.7e6, 200e6, 250e6])
def test_rates_are_close(clock):
    bauds = (115_200, 1_000_000, 2_000_000, 3_000_000)
    for baud, actual in zip(bauds, UART(clock, bauds).actual_bauds):
        assert actual == pytest.approx(baud, rel=0.003)


@pytest.mark.parametrize("clock, baud, number", RATES)
@pytest.mark.parametrize("error", [-0.03, 0, 0.03])
def test_receives(simulate, clock, baud, number, error):
    dut = UART(clock, (baud,))
    data = some_bytes(number)

    async def sender(ctx):
        await ctx.delay((3 + random.Random(error).random()) / clock)
        await send(ctx, dut.rx, data, baud * (1 + error))

    received, = simulate(dut, [], [(dut.o, number, every)], processes=[sender], period=1 / clock)
    assert bytes(received) == data


@pytest.mark.parametrize("clock, baud, number", RATES)
def test_sends(simulate, clock, baud, number):
    data, levels = some_bytes(number), []
    dut = UART(clock, (baud,))

    async def record(ctx):
        while True:
            *_, level = await ctx.tick().sample(dut.tx)
            levels.append(level)

    async def until_sent(ctx):
        await ctx.delay(number * (10 / baud + 3 / clock) + 9 / clock)

    simulate(dut, [(dut.i, data)], [], processes=[record], until=until_sent, period=1 / clock)
    heard, starts = listen(levels, clock / baud)
    assert heard == data
    # Nothing but two clocks between bytes, and no bit too short.
    spacing = (starts[-1] - starts[0]) / (number - 1)
    assert -1 < spacing - 10 * clock / baud <= 3


def test_sends_after_pauses(simulate):
    levels, data = [], some_bytes(8)
    dut = UART(25e6, (3_000_000,))

    async def record(ctx):
        while True:
            *_, level = await ctx.tick().sample(dut.tx)
            levels.append(level)

    async def until_sent(ctx):
        await ctx.delay(1e-4)

    simulate(dut, [(dut.i, data)], [], processes=[record], until=until_sent, period=1 / 25e6,
             stalls=(0.99, 0))
    assert listen(levels, 25 / 3)[0] == data


def test_glitches_are_outvoted(simulate):
    """Spikes of a tenth of a bit: on the idle line and in the middle of each bit."""
    baud = 1_000_000
    dut = UART(25e6, (baud,))

    async def sender(ctx):
        for _ in range(3):
            ctx.set(dut.rx, 0)
            await ctx.delay(0.1 / baud)
            ctx.set(dut.rx, 1)
            await ctx.delay(12 / baud)
        for byte in b"\x35\xca\x00\xff":
            for level in [0, *(byte >> i & 1 for i in range(8)), 1]:
                for part, duration in ((level, 0.46), (1 - level, 0.08), (level, 0.46)):
                    ctx.set(dut.rx, part)
                    await ctx.delay(duration / baud)

    received, = simulate(dut, [], [(dut.o, 4, every)], processes=[sender], period=1 / 25e6)
    assert bytes(received) == b"\x35\xca\x00\xff"


def test_bytes_without_stop_bit_are_dropped(simulate):
    baud = 3_000_000
    dut = UART(25e6, (baud,))

    async def sender(ctx):
        await send(ctx, dut.rx, b"a", baud)
        await send(ctx, dut.rx, b"\x0f", baud, stop=0)      # framing error
        await ctx.delay(1 / baud)
        await send(ctx, dut.rx, b"b", baud)
        ctx.set(dut.rx, 0)                                  # break
        await ctx.delay(47.3 / baud)
        ctx.set(dut.rx, 1)
        await ctx.delay(0.5 / baud)
        await send(ctx, dut.rx, b"c", baud)

    received, = simulate(dut, [], [(dut.o, 3, every)], processes=[sender], period=1 / 25e6)
    assert bytes(received) == b"abc"


@pytest.mark.parametrize("stall", [0.0, 0.8])
def test_fifo_keeps_bytes_while_nobody_takes_them(simulate, stall):
    """And loses those for which it has no room, without harm to the others."""
    baud, depth, late = 3_000_000, 16, []
    dut = UART(25e6, (baud,), rx_depth=depth)

    async def run(ctx):
        for round_ in range(3):
            data = bytes(range(32 * round_, 32 * round_ + depth + 2))
            await send(ctx, dut.rx, data, baud)
            await ctx.delay(2 / baud)
            rng = random.Random(round_)
            for _ in range(400):
                ready = rng.random() >= stall
                ctx.set(dut.o.ready, ready)
                *_, valid, byte = await ctx.tick().sample(dut.o.valid, dut.o.payload)
                if valid and ready:
                    late.append(byte)
            ctx.set(dut.o.ready, 0)
            assert bytes(late) == data[:depth - 1]
            late.clear()

    sim = Simulator(dut)
    sim.add_clock(1 / 25e6)
    sim.add_testbench(run)
    sim.run()


def test_default_fifo_holds_the_longest_request():
    assert UART(100e6).rx_depth > encoded_bytes(16 + 4 * 256)
    assert UART(100e6).bauds == BAUDS


FAST, SLOW = 3_000_000, 500_000


def run_fallback(script, *, bauds=(FAST, SLOW), events=4):
    """Run ``script(ctx, dut)`` and return the bytes received."""
    dut = UART(25e6, bauds, fallback_events=events)
    received = []

    async def sink(ctx):
        ctx.set(dut.o.ready, 1)
        while True:
            *_, valid, byte = await ctx.tick().sample(dut.o.valid, dut.o.payload)
            if valid:
                received.append(byte)

    async def run(ctx):
        await script(ctx, dut)
        await ctx.delay(12 / SLOW)

    sim = Simulator(dut)
    sim.add_clock(1 / 25e6)
    sim.add_testbench(run)
    sim.add_testbench(sink, background=True)
    sim.run()
    return bytes(received)


async def strobe(ctx, signal, times=1):
    for _ in range(times):
        ctx.set(signal, 1)
        await ctx.tick()
        ctx.set(signal, 0)
        await ctx.tick()


def test_zeros_provoke_the_fallback_and_are_heard_after_it():
    async def script(ctx, dut):
        await send(ctx, dut.rx, bytes(3), SLOW)
        assert ctx.get(dut.rate) == 0
        await send(ctx, dut.rx, bytes(1), SLOW)
        assert ctx.get(dut.rate) == 1
        await send(ctx, dut.rx, bytes(4) + b"hello", SLOW)

    assert run_fallback(script) == bytes(4) + b"hello"


def test_zeros_in_one_piece():
    async def script(ctx, dut):
        await send(ctx, dut.rx, bytes(12) + b"hello", SLOW)

    received = run_fallback(script)
    assert received.lstrip(b"\0") == b"hello"
    assert len(received) >= 12


def test_fallback_goes_round():
    async def script(ctx, dut):
        await strobe(ctx, dut.frame_bad, 4)
        assert ctx.get(dut.rate) == 1
        # As `open_serial` does: zeros for the time of twice `events` of the slower bytes.
        await send(ctx, dut.rx, bytes(2 * 4 * FAST // SLOW), FAST)
        assert ctx.get(dut.rate) == 0
        await ctx.delay(3 / SLOW)
        await send(ctx, dut.rx, b"hello", FAST)

    assert run_fallback(script).endswith(b"hello")


def test_bad_frames_count():
    async def script(ctx, dut):
        await strobe(ctx, dut.frame_bad, 2)
        await send(ctx, dut.rx, b"\0", FAST, stop=0)
        await ctx.delay(1 / FAST)
        assert ctx.get(dut.rate) == 0
        await strobe(ctx, dut.frame_bad)
        assert ctx.get(dut.rate) == 1

    run_fallback(script)


@pytest.mark.parametrize("steps", [0, 1])
def test_good_frame_pins_the_rate(steps):
    async def script(ctx, dut):
        await strobe(ctx, dut.frame_bad, 4 * steps + 3)
        await strobe(ctx, dut.frame_good)
        await strobe(ctx, dut.frame_bad, 20)
        assert ctx.get(dut.rate) == steps
        for _ in range(10):
            await send(ctx, dut.rx, b"\0", (FAST, SLOW)[steps], stop=0)
            await ctx.delay(1 / SLOW)
        assert ctx.get(dut.rate) == steps

    run_fallback(script)


def test_single_rate_has_no_fallback():
    async def script(ctx, dut):
        await strobe(ctx, dut.frame_bad, 20)
        assert ctx.get(dut.rate) == 0
        await send(ctx, dut.rx, b"hello", FAST)

    assert run_fallback(script, bauds=(FAST,)) == b"hello"


class Device(wiring.Component):
    """UART and endpoint as on a board, without bus."""

    def __init__(self):
        super().__init__({"rx": wiring.In(1, init=1), "tx": wiring.Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.uart = uart = UART(25e6, (FAST, SLOW), fallback_events=4)
        m.submodules.endpoint = endpoint = Endpoint(4)
        wiring.connect(m, uart.o, endpoint.i)
        wiring.connect(m, endpoint.o, uart.i)
        m.d.comb += [uart.rx.eq(self.rx), self.tx.eq(uart.tx),
                     uart.frame_good.eq(endpoint.frame_good),
                     uart.frame_bad.eq(endpoint.frame_bad)]
        return m


@pytest.mark.parametrize("baud", [FAST, SLOW])
def test_hello_over_the_pins(baud):
    dut, levels = Device(), []
    hello = b"\x05" + bytes(11)
    frame = cobs.encode(hello + zlib.crc32(hello).to_bytes(4, "little")) + b"\0"

    async def run(ctx):
        await send(ctx, dut.rx, bytes(8 * baud // SLOW) + frame, baud)
        await ctx.delay(250 / baud)

    async def record(ctx):
        while True:
            *_, level = await ctx.tick().sample(dut.tx)
            levels.append(level)

    sim = Simulator(dut)
    sim.add_clock(1 / 25e6)
    sim.add_testbench(run)
    sim.add_testbench(record, background=True)
    sim.run()
    line, _ = listen(levels, 25e6 / baud)
    assert line.endswith(b"\0") and line.count(0) == 1
    content = cobs.decode(line[:-1])
    assert content[:-4] == bytes([5, 0, 2, 0, 1, 0, 0, 0, 4, 0, 0, 0])
    assert zlib.crc32(content[:-4]) == int.from_bytes(content[-4:], "little")


@pytest.mark.parametrize("options, message", [
    ({"bauds": ()}, "at least one rate"),
    ({"bauds": (4_000_000,)}, "4000000 baud needs a clock of at least 32000000 Hz, not 25000000"),
    ({"bauds": (300,)}, "300 baud is too slow for a clock of 25000000.0 Hz: the nearest rate is"),
    ({"rx_depth": 100}, "power of two"),
    ({"rx_depth": 1}, "power of two"),
    ({"fallback_events": 0}, "fallback_events"),
])
def test_bad_parameters(options, message):
    with pytest.raises(ConfigError, match=message):
        UART(25e6, **options)
