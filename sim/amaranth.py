"""The device in Amaranth's own simulator, behind the byte stream of its link: slow, no compiler."""

from collections import deque
from typing import Any

from amaranth.sim import Simulator

from hdl.top import Top
from host.link.transport import ByteStream

__all__ = ["AmaranthStream"]

_STEP = 64      # cycles between two looks at what has arrived


class AmaranthStream(ByteStream):
    """The link of a device with ``link="stream"`` and memory of its own; waiting steps it.

    Parameters
    ----------
    config : DeviceConfig

    Attributes
    ----------
    cycle : int
        Clock cycles since the start.
    """

    name = "Amaranth's simulator"

    def __init__(self, config):
        self.cycle = 0
        self._hz = config.clock_hz
        self._to_device: deque[int] = deque()
        self._from_device: deque[int] = deque()
        top: Any = Top(config)

        async def line(ctx):
            ctx.set(top.o.ready, 1)
            while True:
                ctx.set(top.i.valid, bool(self._to_device))
                if self._to_device:
                    ctx.set(top.i.payload, self._to_device[0])
                taken = ctx.get(top.i.valid) and ctx.get(top.i.ready)
                if ctx.get(top.o.valid):
                    self._from_device.append(ctx.get(top.o.payload))
                await ctx.tick()
                self.cycle += 1
                if taken:
                    self._to_device.popleft()

        self._simulator = Simulator(top)
        self._simulator.add_clock(1 / self._hz)
        self._simulator.add_testbench(line, background=True)

    def _advance(self):
        end = self.cycle + _STEP
        while self.cycle < end:
            self._simulator.advance()

    def send(self, data):
        self._to_device.extend(data)

    def receive(self, max_bytes, timeout):
        end = self.cycle + max(1000, int(timeout * self._hz))
        while not self._from_device and self.cycle < end:
            self._advance()
        count = min(max_bytes, len(self._from_device))
        return bytes(self._from_device.popleft() for _ in range(count))

    def flush_input(self):
        self._from_device.clear()

    def time(self):
        return self.cycle / self._hz

    def close(self):
        pass
