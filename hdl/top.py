"""A whole device: engine, registers, memory and link.  The same top is simulated and built."""

from amaranth.hdl import Module, ResetInserter, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from hdl.beat import MemorySignature
from hdl.bridge import Bridge
from hdl.core import Core
from hdl.link.endpoint import Endpoint
from hdl.link.uart import UART
from hdl.memory.axi import AXIMemory, AXISignature
from hdl.memory.onchip import OnChipMemory

__all__ = ["Top"]


class Top(wiring.Component):
    """The device that a :class:`~hdl.config.DeviceConfig` describes.

    Members
    -------
    i, o : byte streams of the link (``link="stream"``)
    rx : In(1), tx : Out(1) (``link="uart"``)
    memory : Out(MemorySignature) (``memory="port"``)
    axi : Out(AXISignature) (``memory="axi"``)
        In Verilog ``axi__awaddr`` and so on.
    running : Out(1)
        A program runs.
    """

    def __init__(self, config):
        self.config = config
        members = {"running": Out(1)}
        if config.link == "stream":
            members |= {"i": In(stream.Signature(8)), "o": Out(stream.Signature(8))}
        else:
            members |= {"rx": In(1), "tx": Out(1)}
        if config.memory == "port":
            members["memory"] = Out(MemorySignature(config.engine))
        elif config.memory == "axi":
            members["axi"] = Out(AXISignature(config))
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.endpoint = endpoint = Endpoint(family=config.engine.family)
        m.submodules.bridge = bridge = Bridge(config)
        reset = Signal()
        m.submodules.core = ResetInserter(reset)(core := Core(config.engine))
        m.d.comb += reset.eq(bridge.reset)

        if config.link == "stream":
            connect(m, flipped(self.i), endpoint.i)
            connect(m, endpoint.o, flipped(self.o))
        else:
            m.submodules.uart = uart = UART(config.clock_hz, family=config.engine.family)
            connect(m, uart.o, endpoint.i)
            connect(m, endpoint.o, uart.i)
            m.d.comb += [
                uart.rx.eq(self.rx), self.tx.eq(uart.tx),
                uart.frame_good.eq(endpoint.frame_good), uart.frame_bad.eq(endpoint.frame_bad)]
        connect(m, endpoint.bus_request, bridge.i)
        connect(m, bridge.o, endpoint.bus_response)

        engine = bridge.engine
        connect(m, core.o_request, engine.request)
        connect(m, engine.response, core.i_response)
        connect(m, core.o_write, engine.write)
        m.d.comb += [
            core.read_room.eq(engine.read_room), core.write_room.eq(engine.write_room),
            core.memory_idle.eq(engine.idle),
            core.memory_fault.eq(engine.fault),
            core.start.eq(bridge.start), core.program.eq(bridge.program),
            bridge.running.eq(core.running), bridge.done.eq(core.done),
            bridge.failed.eq(core.failed), bridge.error.eq(core.error),
            core.counter_shift.eq(bridge.counter_shift),
            bridge.counter_bit.eq(core.counter_bit), self.running.eq(core.running),
        ]
        if config.memory == "port":
            connect(m, bridge.memory, flipped(self.memory))
        elif config.memory == "onchip":
            m.submodules.memory = memory = OnChipMemory(config)
            connect(m, bridge.memory, memory.port)
        elif config.memory == "axi":
            m.submodules.memory = memory = AXIMemory(config)
            connect(m, bridge.memory, memory.port)
            connect(m, memory.axi, flipped(self.axi))
        return m
