"""The AXI4 master against a slave that stalls, waits and fails at random.

``LUTRA_SEED`` repeats a run.
"""

import os
import random
from collections import deque
from dataclasses import dataclass

import pytest
from amaranth.sim import Simulator

from hdl.beat import ROOM_READS, Client
from hdl.config import DeviceConfig, EngineConfig
from hdl.errors import ConfigError
from hdl.layout import (
    FRAME,
    beat_offset,
    frame_beats,
    frame_sides,
    side_offset,
    side_slots,
    stored_bytes,
)
from hdl.memory.axi import AXIMemory
from hdl.memory.axi_read import READ_BEATS

pytestmark = pytest.mark.timeout(240)

SEED = int(os.environ.get("LUTRA_SEED", "1"))
BEATS = 1000        # fewer than the addresses, and no multiple of a frame
OKAY, SLVERR, DECERR = 0, 2, 3


def device(axi, **options):
    own = {k: options.pop(k) for k in ("axi_burst", "axi_base", "axi_address_bits", "memory_beats")
           if k in options}
    engine = EngineConfig(**dict(n_tile=16, activation_bytes=512, address_bits=10) | options)
    return DeviceConfig(engine=engine, memory="axi", axi_bits=axi,
                        **dict(memory_beats=BEATS) | own)


CONFIGS = {
    # Sidebands of 34, 68, 17, 136, 34 and no bits; beats of 1 to 16 transfers.
    "equal": device(128, lanes=32),
    "narrowest": device(32, lanes=32, scale_points=4, axi_address_bits=64, axi_base=0x9_4000_3000),
    "axi3": device(64, lanes=64, scale_points=1, axi_burst=16, axi_base=0x8000_1000),
    "all_scales": device(256, lanes=64, scale_points=8, axi_burst=256),
    "single": device(512, lanes=128, scale_points=2, axi_burst=1),
    "wide_writes": device(128, lanes=64, rows=4, axi_burst=256),
    "columns": device(256, lanes=128, columns=2, scale_points=8, address_bits=10),
    "no_sidebands": device(128, format="kmeans", v=2, b=8, lanes=64, scale_points=1,
                           zero_points=False, epilogue=False),
}


@dataclass(frozen=True)
class Stalls:
    """How the slave and the engine behave; probabilities per cycle.

    Attributes
    ----------
    latency : (int, int)
        Cycles from an address, or the last word of data, to the response: at least and at most.
    ar, r, aw, w, b : float
        That a channel pauses.
    engine : float
        That the engine takes no response.
    pause : float
        That the engine makes no request.
    read_errors, write_errors : float
        Per transfer, per burst.
    """

    latency: tuple = (1, 1)
    ar: float = 0
    r: float = 0
    aw: float = 0
    w: float = 0
    b: float = 0
    engine: float = 0
    pause: float = 0
    read_errors: float = 0
    write_errors: float = 0

    @classmethod
    def draw(cls, rng):
        low = rng.choice([1, 2, 10, 60])
        rates = {n: rng.choice([0, 0, 0.3, 0.8])
                 for n in ("ar", "r", "aw", "w", "b", "engine", "pause")}
        return cls(latency=(low, low + rng.choice([0, 0, 20])), **rates)


class Slave:
    """An AXI memory: checks the rules of the protocol and answers in order.

    Parameters
    ----------
    config : DeviceConfig
    rng : random.Random
    """

    HELD = {channel: [channel + n for n in names] for channel, names in {
        "aw": ("addr", "len", "size", "burst", "id"), "w": ("data", "strb", "last"),
        "ar": ("addr", "len", "size", "burst", "id")}.items()}

    def __init__(self, config, rng):
        self.config = config
        self.rng = rng
        self.stalls = Stalls()
        self.unit = config.axi_bits // 8
        self.memory = bytearray(rng.randbytes(
            stored_bytes(config.engine, config.memory_beats)))
        self.reads, self.bursts, self.writes, self.answers = deque(), [], deque(), deque()
        self.words = deque()
        self.offered = {"r": None, "b": None}
        self.waited = {}
        self.cycle = 0
        self.errors = 0

    def pauses(self, channel):
        return self.rng.random() < getattr(self.stalls, channel)

    def due(self):
        return self.cycle + self.rng.randint(*self.stalls.latency)

    def drive(self):
        """Inputs of the master for the next cycle."""
        for channel, queue in (("r", self.reads), ("b", self.answers)):
            if self.offered[channel] is None and queue and queue[0][0] <= self.cycle \
                    and not self.pauses(channel):
                self.offered[channel] = queue.popleft()[1]
        r, b = self.offered["r"], self.offered["b"]
        noise = self.rng.getrandbits(8 * self.unit)
        return {
            "arready": not self.pauses("ar"), "awready": not self.pauses("aw"),
            "wready": not self.pauses("w"),
            "rvalid": r is not None, "rdata": r[0] if r else noise, "rresp": r[1] if r else 3,
            "rlast": r[2] if r else 0, "bvalid": b is not None, "bresp": b or 0}

    def step(self, out, driven):
        """Look at a cycle's outputs."""
        self.cycle += 1
        for channel, names in self.HELD.items():
            payload = [out[n] for n in names]
            if channel in self.waited:
                assert out[channel + "valid"], f"{channel}valid fell before ready"
                assert payload == self.waited[channel], f"{channel} changed before ready"
            self.waited.pop(channel, None)
            if out[channel + "valid"] and not driven[channel + "ready"]:
                self.waited[channel] = payload
        for channel in ("r", "b"):
            if driven[channel + "valid"] and out[channel + "ready"]:
                self.offered[channel] = None
        if out["arvalid"] and driven["arready"]:
            self.read(*self.span("ar", out))
        if out["awvalid"] and driven["awready"]:
            self.writes.append(self.span("aw", out))
        if out["wvalid"] and driven["wready"]:
            self.words.append((out["wdata"], out["wstrb"], out["wlast"]))
        while self.writes and len(self.words) >= self.writes[0][1]:
            self.write(*self.writes.popleft())

    def span(self, channel, out):
        """(offset in the memory, transfers) of a burst, which must be legal."""
        address, transfers = out[channel + "addr"], out[channel + "len"] + 1
        assert out[channel + "burst"] == 1 and 1 << out[channel + "size"] == self.unit
        assert out[channel + "id"] == 0
        size = transfers * self.unit
        assert address % self.unit == 0
        assert address // 4096 == (address + size - 1) // 4096, "a burst crosses 4 KiB"
        beat = self.config.engine.beat_bytes
        assert transfers <= max(self.config.axi_burst, beat // self.unit)
        offset = address - self.config.axi_base
        assert 0 <= offset and offset + size <= len(self.memory), "beyond the memory"
        assert offset % beat == 0 and size % beat == 0
        return offset, transfers

    def read(self, offset, transfers):
        self.bursts.append(transfers)
        due = self.due()
        for i in range(transfers):
            at = offset + i * self.unit
            word = int.from_bytes(self.memory[at:at + self.unit], "little")
            status = OKAY
            if self.rng.random() < self.stalls.read_errors:
                status = self.rng.choice([SLVERR, DECERR])
                self.errors += 1
            self.reads.append((due, (word, status, i == transfers - 1)))

    def write(self, offset, transfers):
        written = 0
        for i in range(transfers):
            word, strobes, last = self.words.popleft()
            assert last == (i == transfers - 1), "wlast"
            written |= strobes
            for j in range(self.unit):
                if strobes >> j & 1:
                    self.memory[offset + i * self.unit + j] = word >> 8 * j & 255
        assert written, "a burst that writes nothing"
        status = OKAY
        if self.rng.random() < self.stalls.write_errors:
            status = self.rng.choice([SLVERR, DECERR])
            self.errors += 1
        self.answers.append((self.due(), status))

    @property
    def busy(self):
        return self.waited or self.reads or self.writes or self.words or self.answers \
            or any(o is not None for o in self.offered.values())


class Bench:
    """The master, its slave, and what must be in the memory.

    Attributes
    ----------
    data, side : dict of int to int
        By beat.
    """

    def __init__(self, config, seed):
        self.config = config
        self.rng = random.Random(f"{SEED} {seed}")
        self.dut = AXIMemory(config)
        self.slave = Slave(config, self.rng)
        engine = config.engine
        self.data, self.side = {}, {}
        for beat in range(config.memory_beats):
            self.data[beat] = self.rng.getrandbits(engine.code_bits)
            self.side[beat] = self.rng.getrandbits(engine.side_bits)
            self.put(beat_offset(engine, beat), self.data[beat], engine.beat_bytes)
            for i, size in enumerate(side_slots(engine)):
                self.put(side_offset(engine, beat, i), self.side[beat] >> 32 * i
                         & (1 << 8 * size) - 1, size)
        self.expected = deque()
        self.offer = None
        self.held = None
        self.faults = 0
        self.taken = []         # cycle of every response
        self.room, self.since_room, self.idle, self.quiet = 0, 0, 0, 1
        self.read_room, self.since_read_room = 0, 0

    def put(self, offset, value, size):
        self.slave.memory[offset:offset + size] = value.to_bytes(size, "little")

    def run(self, script):
        """Simulate ``script(bench)``, a coroutine function."""
        async def testbench(ctx):
            self.ctx = ctx
            await script(self)

        sim = Simulator(self.dut)
        sim.add_clock(1e-6)
        sim.add_testbench(testbench)
        sim.run()

    async def cycle(self, request=None, write=None, side_write=None, take=None):
        """One clock; returns whether there was room for the request."""
        ctx, port, axi, slave = self.ctx, self.dut.port, self.dut.axi, self.slave
        ctx.set(port.request.valid, request is not None)
        taken = False
        if self.read_room:
            self.since_read_room = 0
        if request is not None:
            address, client, flags = request
            ctx.set(port.request.payload.address, address)
            ctx.set(port.request.payload.tag.client, client)
            ctx.set(port.request.payload.tag.flags.as_value(), flags)
            # As late as the port allows.
            taken = self.read_room or self.since_read_room < ROOM_READS
            self.since_read_room += taken and not self.read_room
            ctx.set(port.request.valid, taken)
        for flow, value in ((port.write, write), (port.side_write, side_write)):
            ctx.set(flow.valid, value is not None)
            for name, part in zip(("address", "data", "mask"), value or ()):
                ctx.set(flow.payload[name], part)
        if take is None:
            take = self.rng.random() >= slave.stalls.engine
        ctx.set(port.response.ready, take)
        driven = slave.drive()
        for name, value in driven.items():
            ctx.set(getattr(axi, name), value)
        names = [n for n, member in axi.signature.members.items()
                 if member.flow.flip().name == "In"]
        *_, self.read_room, valid, response, fault, room, idle = await ctx.tick().sample(
            *(getattr(axi, n) for n in names), port.read_room, port.response.valid,
            port.response.payload, port.fault, port.write_room, port.idle)
        out = dict(zip(names, _[2:]))
        slave.step(out, driven)
        # `idle` falls in the cycle after a write or a request.
        quiet = write is None and side_write is None and request is None
        assert not (idle and (self.expected or not self.quiet)), "idle too early"
        self.room, self.idle, self.quiet = room, idle and quiet, quiet
        self.since_room = 0 if room else self.since_room
        self.faults += fault
        if self.held is not None:
            assert valid and response == self.held, "a response changed"
        self.held = response if valid and not take and self.expected \
            and self.expected[0][0] < self.config.memory_beats else None
        if valid and take:
            self.check(response)
        if taken:
            self.expected.append(request)
        return bool(taken)

    def check(self, response):
        assert self.expected, "a response too many"
        address, client, flags = self.expected.popleft()
        self.taken.append(self.slave.cycle)
        assert response.tag.client == client and response.tag.flags.as_bits() == flags
        if address >= self.config.memory_beats or self.slave.stalls.read_errors:
            return
        assert response.data == self.data[address], f"data of beat {address}"
        if client in (Client.GATHER, Client.LINK):
            assert response.side == self.side[address], f"sideband of beat {address}"

    def change(self, write, side_write):
        """Do a write to what must be in the memory."""
        engine = self.config.engine
        if write is not None and write[0] < self.config.memory_beats:
            address, data, mask = write
            data *= sum(1 << i for i in range(0, engine.code_bits, engine.write_bits))
            bits = sum(0xFFFFFFFF << 32 * i for i in range(engine.beat_bytes // 4)
                       if mask >> i & 1)
            self.data[address] = self.data[address] & ~bits | data & bits
        if side_write is not None and side_write[0] < self.config.memory_beats:
            address, data, mask = side_write
            at = 32 * (mask.bit_length() - 1)
            changed = self.side[address] & ~(0xFFFFFFFF << at) | data << at
            self.side[address] = changed & (1 << engine.side_bits) - 1

    async def settle(self):
        """Let faults of the last accesses arrive."""
        for _ in range(4):
            await self.cycle()

    async def traffic(self, requests=(), writes=(), limit=30_000):
        """Make requests and writes, until all are answered and `idle`."""
        requests, writes = deque(requests), deque(writes)
        offer = None
        left = limit
        while requests or writes or offer or self.expected or not self.idle or self.slave.busy:
            left -= 1
            assert left, "nothing comes any more"
            if offer is None and requests and self.rng.random() >= self.slave.stalls.pause:
                offer = requests.popleft()
            write, side_write = None, None
            if writes and (self.room or self.since_room < 32) and (
                    self.rng.random() >= self.slave.stalls.pause):
                self.since_room += not self.room
                write, side_write = writes.popleft()
                self.change(write, side_write)
            if await self.cycle(offer, write, side_write):
                offer = None


def tag(rng):
    return rng.getrandbits(10)


def consecutive(rng, client, first, count):
    return [(first + i, client, tag(rng)) for i in range(count)]


def random_requests(rng, runs, limit=BEATS):
    """Runs of consecutive beats of all clients, some mixed into another."""
    requests = []
    for _ in range(runs):
        client = rng.choice([Client.GATHER, Client.GATHER, Client.LOAD, Client.FETCH, Client.LINK])
        count = rng.choice([1, 1, 2, 7, 40, 150]) if client in (Client.GATHER, Client.LOAD) else 1
        run = consecutive(rng, client, rng.randrange(limit), count)
        run = [r for r in run if r[0] < limit]
        if rng.random() < 0.3:
            run.insert(rng.randrange(len(run) + 1), (rng.randrange(limit), Client.FETCH, tag(rng)))
        requests += run
    return requests


def random_writes(rng, config, count, limit=BEATS, sides=True):
    """(write, None) and (None, side_write), many into the same beat as the one before."""
    engine, writes, address = config.engine, [], 0
    words = len(side_slots(engine))
    for _ in range(count):
        if rng.random() < 0.4:
            address = rng.randrange(limit)
        if words and sides and rng.random() < 0.3:
            writes.append((None, (address, rng.getrandbits(32), 1 << rng.randrange(words))))
        else:
            mask = rng.getrandbits(engine.beat_bytes // 4) or 1
            writes.append(((address, rng.getrandbits(engine.write_bits), mask), None))
    return writes


@pytest.mark.parametrize("name", CONFIGS)
def test_layout_is_dense_and_without_overlap(name):
    engine = CONFIGS[name].engine
    used = [0] * stored_bytes(engine, 3 * FRAME)
    for beat in range(3 * FRAME):
        spans = [(beat_offset(engine, beat), engine.beat_bytes)]
        spans += [(side_offset(engine, beat, i), size)
                  for i, size in enumerate(side_slots(engine))]
        for at, size in spans:
            assert at % size == 0
            for i in range(at, at + size):
                used[i] += 1
    assert max(used) == 1
    assert used.count(0) < 3 * engine.beat_bytes        # less than a beat per frame
    assert beat_offset(engine, 31) + engine.beat_bytes == stored_bytes(engine, 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_random_traffic(name):
    """Reads and writes of different halves at the same time, then the other way round."""
    config = CONFIGS[name]
    half = 512

    async def script(bench):
        rng = bench.rng
        for phase in range(5):
            bench.slave.stalls = Stalls() if phase == 0 else Stalls.draw(rng)
            low = phase % 2 * half
            reads = [r for r in random_requests(rng, 20) if low <= r[0] < low + half]
            writes = [w for w in random_writes(rng, config, 60)
                      if not low <= (w[0] or w[1])[0] < low + half]
            await bench.traffic(reads, writes)
            assert not bench.faults
        # All that was written, sidebands included, and nothing else.
        bench.slave.stalls = Stalls()
        await bench.traffic(consecutive(rng, Client.GATHER, 0, BEATS))

    bench = Bench(config, f"traffic {name}")
    bench.run(script)


@pytest.mark.parametrize("name", CONFIGS)
def test_ends_of_frames_and_of_memory(name):
    config = CONFIGS[name]

    async def script(bench):
        rng = bench.rng
        places = [0, 1, FRAME - 1, FRAME, FRAME + 13, BEATS - FRAME, BEATS - 1]
        for place in places:
            for client in Client:
                await bench.traffic([(place, client, tag(rng))])
            await bench.traffic(consecutive(rng, Client.GATHER, place, min(40, BEATS - place)))
            engine = config.engine
            for i in range(len(side_slots(engine))):
                await bench.traffic((), [(None, (place, rng.getrandbits(32), 1 << i))])
                await bench.traffic([(place, Client.LINK, 0), (place ^ 1, Client.LINK, 0)])
            await bench.traffic((), [((place, rng.getrandbits(engine.write_bits), 1), None)])
            await bench.traffic([(place, Client.LOAD, 0)])
        assert not bench.faults

    Bench(config, f"ends {name}").run(script)


def test_sidebands_are_read_again_after_a_write():
    """Also when the write is still under way at the first request, and after FETCH."""
    config = CONFIGS["equal"]

    async def script(bench):
        rng = bench.rng
        gather = [(40, Client.GATHER, 0), (41, Client.GATHER, 0)]
        await bench.traffic(gather)
        await bench.traffic((), [(None, (41, 0x12345678, 1))])
        await bench.traffic(gather)

        bench.slave.stalls = Stalls(latency=(60, 60), w=0.9)
        value = bench.side[40] ^ 0xFFFF
        await bench.cycle(side_write=(40, value & 0xFFFFFFFF, 1))
        await bench.traffic([(50, Client.GATHER, 0)])       # may read the old sidebands
        bench.change(None, (40, value & 0xFFFFFFFF, 1))
        await bench.traffic(gather)

        # Somebody else writes between programs.
        bench.side[41] ^= 1
        bench.put(side_offset(config.engine, 41, 0), bench.side[41] & 0xFFFFFFFF, 4)
        await bench.traffic([(3, Client.FETCH, tag(rng)), *gather])

    Bench(config, "sidebands").run(script)


@pytest.mark.parametrize("name", ["equal", "axi3"])
def test_addresses_beyond_the_memory(name):
    """A fault each; reads are answered in order and nothing goes to the bus."""
    config = CONFIGS[name]

    async def script(bench):
        rng = bench.rng
        for client in Client:
            before = bench.faults
            await bench.traffic([(a, client, tag(rng)) for a in (BEATS, BEATS + 7, 1023)])
            await bench.settle()
            assert bench.faults - before == 3
        assert not bench.slave.bursts
        before = bench.faults
        await bench.traffic((), [((BEATS, 1, 1), None), (None, (1023, 1, 1))])
        await bench.settle()
        assert bench.faults - before == 2 and not bench.slave.bursts
        # Between others, with stalls; the sidebands read before and after are the right ones.
        bench.slave.stalls = Stalls(latency=(5, 30), r=0.3, engine=0.3)
        requests = random_requests(rng, 20, limit=1024)
        before = bench.faults
        await bench.traffic(requests)
        await bench.settle()
        assert bench.faults - before == sum(r[0] >= BEATS for r in requests) > 0

    Bench(config, f"beyond {name}").run(script)


@pytest.mark.parametrize("name", ["equal", "narrowest"])
def test_errors_of_the_bus_are_faults(name):
    config = CONFIGS[name]

    async def script(bench):
        rng, slave = bench.rng, bench.slave
        for client in Client:
            slave.stalls = Stalls(read_errors=1)
            before = bench.faults
            await bench.traffic([(5, client, tag(rng))])
            await bench.settle()
            assert bench.faults > before
        slave.stalls = Stalls(read_errors=0.05, latency=(3, 40), engine=0.2)
        await bench.traffic(random_requests(rng, 20))
        slave.stalls = Stalls(write_errors=1)
        before, errors = bench.faults, slave.errors
        await bench.traffic((), [((9, 1, 1), None), ((20, 1, 1), None), (None, (9, 1, 1))])
        await bench.settle()
        assert bench.faults - before == slave.errors - errors == 3
        slave.stalls = Stalls()
        before = bench.faults
        await bench.traffic((), random_writes(rng, config, 20))
        await bench.traffic(random_requests(rng, 20))
        assert bench.faults == before

    Bench(config, f"errors {name}").run(script)


def test_room_for_32_writes():
    """The slave takes none; writes go on until `room` falls, and 32 more."""
    config = CONFIGS["wide_writes"]

    async def script(bench):
        bench.slave.stalls = Stalls(w=1, aw=1)
        await bench.cycle()
        await bench.cycle()
        count = 0
        while bench.room or bench.since_room < 32:
            write = (count % BEATS, bench.rng.getrandbits(config.engine.write_bits), 3)
            bench.since_room += not bench.room
            bench.change(write, None)
            await bench.cycle(write=write)
            count += 1
            assert count < 1000
        for _ in range(5):
            await bench.cycle()
            assert not bench.room and not bench.idle
        bench.slave.stalls = Stalls()
        await bench.traffic()
        await bench.traffic(consecutive(bench.rng, Client.LOAD, 0, BEATS))

    Bench(config, "room").run(script)


def test_words_of_a_beat_are_written_together():
    config = CONFIGS["equal"]

    async def script(bench):
        bench.slave.stalls = Stalls(latency=(9, 9))
        count = len(bench.slave.bursts)
        writes = [((beat, bench.rng.getrandbits(64), 3 << 2 * i), None)
                  for beat in range(20) for i in range(2)]
        arrived = []
        write = bench.slave.write
        bench.slave.write = lambda *span: (arrived.append(span), write(*span))
        await bench.traffic((), writes)
        assert len(arrived) == 20 and count == 0
        await bench.traffic(consecutive(bench.rng, Client.LOAD, 0, 20))

    Bench(config, "together").run(script)


def test_a_lone_request_leaves_soon():
    config = CONFIGS["equal"]

    async def script(bench):
        for latency in (1, 60):
            bench.slave.stalls = Stalls(latency=(latency, latency))
            for client, beats in ((Client.FETCH, 1), (Client.LOAD, 1),
                                  (Client.GATHER, 1 + frame_sides(config.engine))):
                start = bench.slave.cycle
                await bench.traffic([(70, client, 0)])
                assert bench.taken[-1] - start <= latency + beats + 25

    Bench(config, "alone").run(script)


@pytest.mark.parametrize("client", [Client.LOAD, Client.GATHER])
def test_a_beat_per_cycle(client):
    """A slave with 60 cycles of latency and nothing else: only the sidebands take time."""
    config = device(256, lanes=64)
    count = 800
    cost = frame_beats(config.engine) / FRAME if client is Client.GATHER else 1

    async def script(bench):
        bench.slave.stalls = Stalls(latency=(60, 60))
        await bench.traffic(consecutive(bench.rng, client, 64, count))
        cycles = bench.taken[-1] - bench.taken[0]
        assert cycles <= count * cost + 4, f"{cycles} cycles for {count} beats"
        bursts = bench.slave.bursts
        gaps = 0 if client is Client.GATHER else count / FRAME      # sidebands left out
        assert len(bursts) <= count * cost / config.axi_burst + gaps + 2

    Bench(config, f"rate {client}").run(script)


def test_short_bursts_of_a_slow_bus_are_joined():
    """Where the bus is the limit, requests come one by one; bursts are still long."""
    config = device(32, lanes=32)

    async def script(bench):
        bench.slave.stalls = Stalls(latency=(30, 30))
        await bench.traffic(consecutive(bench.rng, Client.GATHER, 0, 704))
        transfers = 704 // FRAME * frame_beats(config.engine) * 4
        assert sum(bench.slave.bursts) == transfers
        assert len(bench.slave.bursts) < 1.1 * transfers / config.axi_burst

    Bench(config, "slow").run(script)


def test_never_more_under_way_than_there_is_room_for():
    """The engine takes nothing; the slave may deliver all that it was asked for."""
    config = CONFIGS["equal"]

    async def script(bench):
        requests = deque(consecutive(bench.rng, Client.GATHER, 0, 600))
        for _ in range(1500):
            if await bench.cycle(requests[0], take=False):
                requests.popleft()
        assert not bench.slave.busy and READ_BEATS - 8 < len(bench.expected) \
            <= READ_BEATS + 2 * ROOM_READS
        await bench.traffic(requests)

    Bench(config, "credit").run(script)


@pytest.mark.parametrize("changes, message", [
    (dict(axi_bits=512), r"axi_bits must be one of 32, 64, 128, 256 for beats of 256 bits"),
    (dict(axi_bits=48), r"axi_bits must be one of"),
    (dict(axi_address_bits=40), r"axi_address_bits must be 32 or 64"),
    (dict(axi_burst=3), r"axi_burst must be one of 2, 4, .*256"),
    (dict(axi_burst=1), r"axi_burst must be one of 2, "),
    (dict(axi_base=0x800), r"axi_base must be a multiple of 4096 in 0..0xfb600000"),
    (dict(axi_base=0xFB601000), r"axi_base must be a multiple of 4096"),
    (dict(axi_base=-4096), r"axi_base must be a multiple of 4096"),
])
def test_configurations_that_are_refused(changes, message):
    DeviceConfig(memory="axi", axi_base=0xFB600000)
    DeviceConfig(**changes)     # without AXI they mean nothing
    with pytest.raises(ConfigError, match=message):
        DeviceConfig(memory="axi", **changes)
