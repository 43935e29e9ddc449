"""cocotb tests of a device with an AXI4 memory; `tests/hdl/test_axi_cocotb.py` builds it.

The host's own `Device` talks to the device's link, from a thread.  ``LUTRA_SEED`` repeats a run.
"""

import functools
import json
import os
import zlib
from collections import deque

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.task import bridge, resume
from cocotb.triggers import ClockCycles, FallingEdge, RisingEdge
from cocotbext.axi import AxiBus, AxiRam

import sim.golden
from hdl.config import DeviceConfig
from hdl.layout import beat_offset, side_offset, side_slots, stored_bytes
from hdl.registers import Error, Status
from host.device import Device
from host.errors import ProgramError
from host.link import ByteStream, Client
from tests.hdl.cocotb_core.suite import CONFIG as ENGINE
from tests.hdl.cocotb_core.suite import Job, Layout, make, matrix, tokens

CONFIG = DeviceConfig(engine=ENGINE, **json.loads(os.environ["LUTRA_DEVICE_OPTIONS"]))
SEED = int(os.environ.get("LUTRA_SEED", "1"))
PATIENCE = 300_000      # cycles


class Line(ByteStream):
    """The byte streams of the link; the host's thread waits while the simulation goes on."""

    name = "cocotb:"

    def __init__(self, dut):
        self.dut = dut
        self.sending, self.received = deque(), bytearray()
        self.cycle = 0
        cocotb.start_soon(self._drive())

    async def _drive(self):
        """A byte each way; inputs change with the falling edge."""
        dut = self.dut
        dut.o__ready.value = 1
        while True:
            await FallingEdge(dut.clk)
            dut.i__valid.value = int(bool(self.sending))
            dut.i__payload.value = self.sending[0] if self.sending else 0
            await RisingEdge(dut.clk)
            self.cycle += 1
            if dut.o__valid.value:
                self.received.append(int(dut.o__payload.value))
            if self.sending and dut.i__ready.value:
                self.sending.popleft()

    @resume
    async def wait(self, ready):
        for _ in range(PATIENCE):
            if ready():
                return
            await ClockCycles(self.dut.clk, 1)
        raise AssertionError(f"nothing came for {PATIENCE} cycles")

    def send(self, data):
        self.sending.extend(data)

    def receive(self, max_bytes, timeout):
        if timeout:
            self.wait(lambda: self.received)
        data = bytes(self.received[:max_bytes])
        del self.received[:max_bytes]
        return data

    def time(self):
        return self.cycle / CONFIG.clock_hz

    def close(self):
        pass


class Memory:
    """The beats in the RAM behind the bus, for whoever has it beside the device (DMA)."""

    def __init__(self, ram):
        self.ram = ram
        self.data = range(CONFIG.memory_beats)

    def store(self, address, data, side=None):
        """Put beats: uint8 [n, beat_bytes], uint32 [n, words]."""
        for i, row in enumerate(data):
            self.ram.write(beat_offset(ENGINE, address + i), row.tobytes())
            for word, size in enumerate(side_slots(ENGINE)) if side is not None else ():
                value = int(side[i, word]).to_bytes(4, "little")
                self.ram.write(side_offset(ENGINE, address + i, word), value[:size])

    def load(self, address, count):
        """Beats as uint8 [count, beat_bytes]."""
        raw = b"".join(self.ram.read(beat_offset(ENGINE, address + i), ENGINE.beat_bytes)
                       for i in range(count))
        return np.frombuffer(raw, np.uint8).reshape(count, -1)


def pauses(rng, rate):
    while True:
        yield rng.random() < rate


def axi_test(function):
    """A cocotb test of a blocking function of (device, memory, stall, rng)."""
    @functools.wraps(function)
    async def wrapper(dut):
        rng = np.random.default_rng([SEED, zlib.crc32(function.__name__.encode())])
        Clock(dut.clk, 10, unit="ns").start()
        dut.i__valid.value = 0
        dut.rst.value = 1
        # The RAM's addresses wrap at its size, a power of two that divides the base.
        size = 1 << (stored_bytes(ENGINE, CONFIG.memory_beats) - 1).bit_length()
        ram = AxiRam(AxiBus.from_prefix(dut, "axi_"), dut.clk, dut.rst, size=size)
        ram.write(0, rng.integers(0, 256, size, np.uint8).tobytes())
        await ClockCycles(dut.clk, 4)
        dut.rst.value = 0
        line = Line(dut)

        def stall(rate, writes=None):
            for name in ("ar", "r", "aw", "w", "b"):
                bus = ram.read_if if name in ("ar", "r") else ram.write_if
                p = rate if bus is ram.read_if or writes is None else writes
                channel = getattr(bus, f"{name}_channel")
                channel.set_pause_generator(pauses(rng, p) if p else None)
                channel.pause = False

        await bridge(lambda: function(Device(Client(line)), Memory(ram), stall, rng))()
    del wrapper.__wrapped__
    return cocotb.test(timeout_time=10, timeout_unit="ms")(wrapper)


def run(device, layout, job):
    """Run a job whose image lies in the memory, and check its results."""
    device.write_register("PROGRAM", layout.program(job.program))
    device.write_register("CONTROL", 1)
    while device.read_register("STATUS") == Status.RUNNING:
        pass
    assert device.read_register("STATUS") == Status.DONE, Error(device.read_register("ERROR")).name
    job.check()


@axi_test
def through_the_link(device, memory, stall, rng):
    """The host uploads a matrix, runs it and reads the results, all through the link."""
    assert device.engine == ENGINE and device.memory_beats == CONFIG.memory_beats
    for rate in (0, 0.3):
        stall(rate)
        q = matrix(rng, 11, 90, bits=2)
        layer = device.load(q)
        x = tokens(rng, 2, 90)
        assert np.array_equal(layer.integers(x), sim.golden.integers(q, x))
        layer.free()


@axi_test
def image_in_the_memory(device, memory, stall, rng):
    """Larger matrices, put into the memory by somebody else, one over the other."""
    for rate in (0, 0.1, 0.5, 0):
        stall(rate)
        layout = Layout(memory)
        N, K = int(rng.integers(20, 60)), int(rng.integers(100, 500))
        run(device, layout, Job(layout, matrix(rng, N, K, bits=int(rng.integers(1, 5))),
                                tokens(rng, 2, K, wide=rate == 0.1)))


@axi_test
def what_was_written_is_read(device, memory, stall, rng):
    """Word after word through the link, each read at once: data, sidebands, a program."""
    stall(0.3, writes=0.999)     # slower than the link
    for address in (0, 31, 32, CONFIG.memory_beats - 1):
        data = rng.integers(0, 256, (1, ENGINE.beat_bytes), np.uint8)
        side = rng.integers(0, 4, (1, 2)).astype(np.uint32)
        device.write_beats(address, data, side)
        assert np.array_equal(device.read_beats(address, 1), data)
        raw = device.transport.read((1 << 62) + address * CONFIG.engine.side_stride, 8)
        assert raw == side.tobytes()
    for _ in range(4):
        assert device.run([make("FENCE")] * int(rng.integers(3)))["instructions"] >= 1


@axi_test
def errors_and_resets(device, memory, stall, rng):
    """A program beyond the memory, and resets while the memory owes beats."""
    stall(0.3)
    try:
        device.run([make("LOAD", address=CONFIG.memory_beats + 3)])
    except ProgramError as error:
        assert "BAD_ADDRESS" in str(error)
    else:
        raise AssertionError("no error")
    for _ in range(6):
        layout = Layout(memory)
        job = Job(layout, matrix(rng, 40, 300, bits=4), tokens(rng, 1, 300))
        device.write_register("PROGRAM", layout.program(job.program))
        device.write_register("CONTROL", 1)
        for _ in range(int(rng.integers(3))):
            assert device.read_register("STATUS") in (Status.RUNNING, Status.DONE)
        device.reset()
        layout = Layout(memory)
        run(device, layout, Job(layout, matrix(rng, 9, 100, bits=2), tokens(rng, 1, 100)))
