"""Memory behind an AXI4 master: a DRAM controller, a processor's port, HBM."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from hdl.beat import MemorySignature
from hdl.memory.axi_read import AXIReader
from hdl.memory.axi_write import AXIWriter

__all__ = ["AXIMemory", "AXISignature"]

_INCR = 1
_CACHE = 0b0011     # bufferable, modifiable: interconnects may change widths and split bursts


class AXISignature(wiring.Signature):
    """An AXI4 bus, seen from the master, under the names of the standard.

    One identifier (0), so that data come in the order of the addresses.

    Parameters
    ----------
    config : DeviceConfig
    """

    def __init__(self, config):
        def address(channel):
            return {channel + name: Out(shape) for name, shape in {
                "id": 1, "addr": config.axi_address_bits, "len": 8, "size": 3, "burst": 2,
                "lock": 1, "cache": 4, "prot": 3, "qos": 4, "valid": 1}.items()} | \
                {channel + "ready": In(1)}

        super().__init__({
            **address("aw"),
            "wdata": Out(config.axi_bits), "wstrb": Out(config.axi_bits // 8), "wlast": Out(1),
            "wvalid": Out(1), "wready": In(1),
            "bid": In(1), "bresp": In(2), "bvalid": In(1), "bready": Out(1),
            **address("ar"),
            "rid": In(1), "rdata": In(config.axi_bits), "rresp": In(2), "rlast": In(1),
            "rvalid": In(1), "rready": Out(1)})


class AXIMemory(wiring.Component):
    """The internal memory port as an AXI4 master (see :mod:`hdl.layout` for what lies where).

    Consecutive reads become bursts, writes into the same beat one beat.  Buffers are reserved
    before a burst is asked for: `rready` and `bready` are always 1.  Reads and writes have no
    order between them: who needs one waits for `idle`.

    Parameters
    ----------
    config : DeviceConfig

    Members
    -------
    port : In(MemorySignature)
    axi : Out(AXISignature)
    """

    def __init__(self, config):
        self.config = config
        super().__init__({"port": In(MemorySignature(config.engine)),
                          "axi": Out(AXISignature(config))})

    def elaborate(self, platform):
        m = Module()
        port, axi = self.port, self.axi
        m.submodules.reader = reader = AXIReader(self.config)
        m.submodules.writer = writer = AXIWriter(self.config)
        connect(m, flipped(port.request), reader.request)
        connect(m, reader.response, flipped(port.response))
        connect(m, flipped(port.write), writer.write)
        connect(m, flipped(port.side_write), writer.side_write)
        # Sidebands that were read before the write of one ended are old.
        stale = Signal()
        with m.If(port.side_write.valid):
            m.d.sync += stale.eq(1)
        with m.Elif(writer.idle):
            m.d.sync += stale.eq(0)
        m.d.sync += port.fault.eq(reader.fault | writer.fault)
        m.d.comb += [reader.forget.eq(port.side_write.valid | stale),
                     port.read_room.eq(reader.room), port.write_room.eq(writer.room)]
        m.d.sync += port.idle.eq(reader.idle & writer.idle & ~(
            port.request.valid | port.write.valid | port.side_write.valid))

        size = (self.config.axi_bits // 8).bit_length() - 1
        for channel in ("aw", "ar"):
            for name, value in (("size", size), ("burst", _INCR), ("cache", _CACHE)):
                m.d.comb += getattr(axi, channel + name).eq(value)
        m.d.comb += [
            axi.arvalid.eq(reader.ar.valid), reader.ar.ready.eq(axi.arready),
            axi.araddr.eq(reader.ar.p.address), axi.arlen.eq(reader.ar.p.length),
            axi.rready.eq(1), reader.r.valid.eq(axi.rvalid),
            reader.r.payload.data.eq(axi.rdata), reader.r.payload.error.eq(axi.rresp[1]),
            axi.awvalid.eq(writer.aw.valid), writer.aw.ready.eq(axi.awready),
            axi.awaddr.eq(writer.aw.p.address), axi.awlen.eq(writer.aw.p.length),
            axi.wvalid.eq(writer.w.valid), writer.w.ready.eq(axi.wready),
            axi.wdata.eq(writer.w.p.data), axi.wstrb.eq(writer.w.p.strobes),
            axi.wlast.eq(writer.w.p.last),
            axi.bready.eq(1), writer.b.valid.eq(axi.bvalid), writer.b.payload.eq(axi.bresp[1]),
        ]
        return m
