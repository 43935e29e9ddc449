"""The client against the gateware's endpoint in the simulator, with noise."""

import random
from collections import Counter

import pytest
from amaranth.sim import Simulator

from hdl.link import Endpoint
from host.errors import ArgumentError, LinkTimeout
from host.link import ByteStream, Client

from .noise import NoisyStream

pytestmark = pytest.mark.timeout(60)

LIMIT = 0x1000


class SimulatedStream(ByteStream):
    """An endpoint with a memory; its clock is the simulator's, a cycle per millisecond."""

    name = "pysim:"

    def __init__(self, max_words):
        self.memory = {}
        self.applied = Counter()
        self._cycles = 0
        self._in = bytearray()
        self._out = bytearray()
        self._dut = Endpoint(max_words)
        self._sim = Simulator(self._dut)
        self._sim.add_clock(1e-6)
        for process in (self._line, self._bus):
            self._sim.add_testbench(process)

    async def _line(self, ctx):
        i, o = self._dut.i, self._dut.o
        ctx.set(o.ready, 1)
        while True:
            ctx.set(i.valid, bool(self._in))
            ctx.set(i.payload, self._in[0] if self._in else 0)
            *_, taken, valid, byte = await ctx.tick().sample(i.valid & i.ready, o.valid, o.payload)
            self._cycles += 1
            if taken:
                del self._in[0]
            if valid:
                self._out.append(byte)

    async def _bus(self, ctx):
        request, response = self._dut.bus_request, self._dut.bus_response
        while True:
            ctx.set(request.ready, 1)
            await ctx.posedge(request.valid)
            *_, access = await ctx.tick().sample(request.payload)
            ctx.set(request.ready, 0)
            bad = access.address >= LIMIT
            if access.write and not bad:
                self.memory[access.address] = access.data
                self.applied[access.address] += 1
            ctx.set(response.payload, {"data": self.memory.get(access.address, 0),
                                       "status": 4 if bad else 0})
            ctx.set(response.valid, 1)
            while not ctx.get(response.ready):
                await ctx.tick()
            await ctx.tick()
            ctx.set(response.valid, 0)

    def send(self, data):
        self._in += data

    def receive(self, max_bytes, timeout):
        deadline = self.time() + timeout
        while not self._out and self.time() < deadline:
            self._sim.advance()
        data = bytes(self._out[:max_bytes])
        del self._out[:max_bytes]
        return data

    def close(self):
        pass

    def time(self):
        return self._cycles / 1000


def test_client_and_endpoint():
    line = SimulatedStream(4)
    client = Client(line, timeout=2)
    data = random.Random(1).randbytes(40)
    client.write(0x100, data)
    assert client.max_words == 4
    assert client.read(0x100, 40) == data
    with pytest.raises(ArgumentError, match="no such address: READ of 8 bytes at 0xffc"):
        client.read(LIMIT - 4, 8)
    assert client.read(0x120, 4) == data[32:36]
    assert client.statistics.retries == 0


def test_client_and_endpoint_with_noise(capsys):
    rng = random.Random(3)
    line = SimulatedStream(4)
    noise = NoisyStream(line, rate=0.22, seed=4)
    client = Client(noise, timeout=1.2, retries=30)
    expected, writes = {}, Counter()
    for _ in range(50):
        address, count = 4 * rng.randrange(8), rng.choice((1, 2, 6))
        span = [address + 4 * i for i in range(count)]
        if rng.random() < 0.7:
            data = rng.randbytes(4 * count)
            client.write(address, data)
            expected.update((a, int.from_bytes(data[4 * i:4 * i + 4], "little"))
                            for i, a in enumerate(span))
            writes.update(span)
        else:
            assert client.read(address, 4 * count) == b"".join(
                expected.get(a, 0).to_bytes(4, "little") for a in span)
    with capsys.disabled():
        print(f"\n{noise.faults.total()} faults, {client.statistics}")
    assert noise.faults.total() > 50
    assert line.memory == expected
    assert line.applied == writes


def test_endpoint_that_got_stuck_in_a_frame():
    """The next session begins with delimiters."""
    line = SimulatedStream(4)
    line.send(b"\xfehalf a frame")
    client = Client(line, timeout=2, retries=1)
    assert client.read(0, 4) == bytes(4)
    assert client.statistics.naks <= 1
    line.send(b"\x03\x01")
    with pytest.raises(LinkTimeout):
        Client(line, timeout=0.01, retries=0).connect()
    assert client.read(0, 4) == bytes(4)
