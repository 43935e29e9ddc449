"""The memory behind a core in cocotb, and the clock that drives both.

A cycle is one coroutine: inputs change with the falling edge, outputs are looked at before the
rising one, so that the order of events within a time step does not matter.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
from amaranth.hdl import Shape
from cocotb.triggers import Timer

from hdl.beat import ROOM_READS, ROOM_WRITES, Tag
from hdl.config import EngineConfig

__all__ = ["Bench", "Memory", "Stalls"]

STILL_CYCLES = 5_000
"""Cycles without a beat after which a program hangs; an engine reports a deadlock far earlier."""


@dataclass(frozen=True)
class Stalls:
    """How the memory behaves; probabilities per cycle.

    Attributes
    ----------
    latency : (int, int)
        Cycles from a request to its response, at least and at most.
    idle, refuse : float
        No response though one is due; `read_room` goes for a while.
    no_room, room_again : float
        `write_room` goes and comes back.
    outstanding : int
        Requests under way from which there is no `read_room`.
    writing : int
        Cycles that a write is under way, at most.
    """

    latency: tuple = (1, 1)
    idle: float = 0.0
    refuse: float = 0.0
    no_room: float = 0.0
    room_again: float = 1.0
    outstanding: int = 64
    writing: int = 20

    @classmethod
    def draw(cls, rng):
        """One at random; every mechanism is also absent now and then."""
        low = int(rng.choice([1, 1, 2, 9, 30]))
        return cls(latency=(low, low + int(rng.choice([0, 0, 3, 25]))),
                   idle=float(rng.choice([0, 0, 0.2, 0.7])),
                   refuse=float(rng.choice([0, 0, 0.2, 0.7])),
                   no_room=float(rng.choice([0, 0, 0.02, 0.3])),
                   room_again=float(rng.choice([0.03, 0.3])),
                   outstanding=int(rng.choice([1, 4, 64])),
                   writing=int(rng.choice([1, 20, 200])))


class Memory:
    """Beats as integers, and what is under way.

    Parameters
    ----------
    config : EngineConfig
    beats : int
        Size; requests beyond it are faults.
    rng : numpy.random.Generator
    """

    def __init__(self, config: EngineConfig, beats, rng):
        self.config = config
        self.rng = rng
        self.stalls = Stalls()
        # Noise, so that a beat that should not be read or a word that should not be written shows.
        noise = rng.integers(0, 256, (beats, config.beat_bytes), np.uint8)
        self.data = [int.from_bytes(row.tobytes(), "little") for row in noise]
        self.side = [int(s) for s in rng.integers(0, 2**31, beats)]
        self.reads = deque()        # (cycle due, address, tag)
        self.writes = deque()       # (cycle due, address, data, mask)
        self.offered = None
        self.room = 1
        self.since_room = 0
        self.cycle = 0
        self.moved = 0              # cycle of the last beat
        self.fault = 0

    def store(self, address, data, side=None):
        """Put beats: uint8 [n, beat_bytes], uint32 [n, words]."""
        for i, row in enumerate(data):
            self.data[address + i] = int.from_bytes(row.tobytes(), "little")
            self.side[address + i] = 0 if side is None else \
                int.from_bytes(side[i].astype("<u4").tobytes(), "little")

    def load(self, address, count):
        """Beats as uint8 [count, beat_bytes]."""
        raw = b"".join(d.to_bytes(self.config.beat_bytes, "little")
                       for d in self.data[address:address + count])
        return np.frombuffer(raw, np.uint8).reshape(count, -1)

    def take_read(self, payload):
        self.moved = self.cycle
        address = payload & (1 << self.config.address_bits) - 1
        latency = int(self.rng.integers(self.stalls.latency[0], self.stalls.latency[1] + 1))
        self.reads.append((self.cycle + latency, address, payload >> self.config.address_bits))
        self.fault |= address >= len(self.data)

    def take_write(self, payload):
        self.moved = self.cycle
        config = self.config
        address = payload & (1 << config.address_bits) - 1
        data = payload >> config.address_bits & (1 << config.write_bits) - 1
        mask = payload >> config.address_bits + config.write_bits
        data *= sum(1 << i for i in range(0, config.code_bits, config.write_bits))
        if not self.room:
            self.since_room += 1
            assert self.since_room <= ROOM_WRITES, "more writes than the memory promised to take"
        if address >= len(self.data):
            self.fault = 1
        else:
            wait = int(self.rng.integers(1, self.stalls.writing + 1))
            due = max(self.cycle + wait, self.writes[-1][0] if self.writes else 0)
            self.writes.append((due, address, data, mask))

    def step(self):
        """Pass a cycle: writes arrive."""
        self.cycle += 1
        while self.writes and self.writes[0][0] <= self.cycle:
            _, address, data, mask = self.writes.popleft()
            bits = sum(0xFFFFFFFF << 32 * i for i in range(mask.bit_length()) if mask >> i & 1)
            self.data[address] = self.data[address] & ~bits | data & bits

    def response(self):
        """The payload to offer in this cycle, or None; an offer stands until it is taken."""
        if self.offered is None and self.reads and self.reads[0][0] <= self.cycle and not (
                self.stalls.idle and self.rng.random() < self.stalls.idle):
            _, address, tag = self.reads[0]
            config = self.config
            inside = address < len(self.data)
            data = self.data[address] if inside else 0
            side = (self.side[address] if inside else 0) & (1 << config.side_bits) - 1
            self.offered = data | side << config.code_bits | \
                tag << config.code_bits + config.side_bits
        return self.offered


class Bench:
    """A core, its clock and its memory.

    Parameters
    ----------
    dut : cocotb handle
    config : EngineConfig
    memory : Memory
    """

    def __init__(self, dut, config, memory):
        self.dut = dut
        self.config = config
        self.memory = memory
        self.rng = memory.rng
        names = ("o_request__valid", "o_request__payload", "read_room",
                 "i_response__valid", "i_response__payload", "i_response__ready",
                 "o_write__valid", "o_write__payload", "write_room", "memory_idle",
                 "start", "program", "running", "done", "failed", "error", "memory_fault",
                 "counter_shift", "clk", "rst")
        self.pins = {name: getattr(dut, name) for name in names}
        self.driven = {}
        self.since_read_room = 0        # requests since there was no room
        assert len(dut.i_response__payload) == config.code_bits + config.side_bits \
            + Shape.cast(Tag).width
        for name in ("start", "program", "counter_shift", "clk", "rst", "memory_fault"):
            self.drive(name, 0)

    def drive(self, name, value):
        """Set an input; only changes cost time."""
        if self.driven.get(name) != value:
            self.driven[name] = value
            self.pins[name].value = value

    def get(self, name):
        return int(self.pins[name].value)

    async def cycle(self):
        """One clock with the memory's behaviour."""
        memory, stalls, rng = self.memory, self.memory.stalls, self.memory.rng
        offer = memory.response()
        self.drive("i_response__valid", int(offer is not None))
        if offer is not None:
            self.drive("i_response__payload", offer)
        taking = len(memory.reads) < stalls.outstanding and not (
            stalls.refuse and rng.random() < stalls.refuse)
        self.drive("read_room", int(taking))
        if memory.room and stalls.no_room and rng.random() < stalls.no_room:
            memory.room = 0
            memory.since_room = 0
        elif not memory.room and rng.random() < stalls.room_again:
            memory.room = 1
        self.drive("write_room", memory.room)
        self.drive("memory_idle", int(not (memory.writes or memory.reads)))
        self.drive("memory_fault", memory.fault)
        memory.fault = 0
        await Timer(1, "ns")

        if offer is not None and self.get("i_response__ready"):
            memory.moved = memory.cycle
            memory.reads.popleft()
            memory.offered = None
        if not self.driven["rst"]:
            if taking:
                self.since_read_room = 0
            if self.get("o_request__valid"):
                self.since_read_room += not taking
                assert self.since_read_room <= ROOM_READS, "more requests than there was room for"
                memory.take_read(self.get("o_request__payload"))
            if self.get("o_write__valid"):
                memory.take_write(self.get("o_write__payload"))
        memory.step()
        self.pins["clk"].value = 1
        await Timer(1, "ns")
        self.pins["clk"].value = 0

    async def reset(self):
        """Reset the core for as long as the memory owes it beats, which it drops."""
        self.drive("rst", 1)
        await self.cycle()
        while self.memory.reads or self.memory.writes:
            await self.cycle()
        self.drive("rst", 0)

    async def begin(self, program):
        """Start the program at a beat address."""
        assert not self.get("running")
        self.drive("program", program)
        self.drive("start", 1)
        await self.cycle()
        self.drive("start", 0)
        await self.cycle()
        self.drive("program", int(self.rng.integers(1 << self.config.address_bits)))

    async def finish(self, impatience=0.0):
        """Wait until the program ends; its error code (0 if it is done).

        Parameters
        ----------
        impatience : float
            Probability per cycle of a start that must be ignored.
        """
        memory = self.memory
        memory.moved = memory.cycle
        while self.get("running"):
            still = memory.cycle - memory.moved
            assert still < STILL_CYCLES, f"the program runs, but for {still} cycles nothing moved"
            self.drive("start", int(impatience > 0 and self.rng.random() < impatience))
            await self.cycle()
            self.drive("start", 0)
        done, failed, error = self.get("done"), self.get("failed"), self.get("error")
        assert (done, failed) == (int(not error), int(bool(error))), (done, failed, error)
        if done:
            assert not self.memory.reads, "done while the memory owes beats"
            assert not self.memory.writes, "done before the last write arrived"
        return error
