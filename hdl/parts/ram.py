"""Block RAM with one write port, one read port and its output register."""

from math import ceil

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

__all__ = ["BlockRAM", "block_rams", "dp16kd"]


def _slice(depth):
    """Widest port (36, 18, 9, 4, 2 or 1 bits) at which one block is deep enough."""
    for width, words in ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384)):
        if depth <= words:
            return width
    return 18


def block_rams(width, depth):
    """DP16KD blocks of a memory of `depth` words of `width` bits."""
    part = _slice(depth)
    return ceil(width / part) * max(1, ceil(depth * part / 18432))


class BlockRAM(wiring.Component):
    """Simple dual-port memory; a read takes two cycles.

    A read that collides with a write of the same word returns an undefined value: users keep the
    two apart, which saves the bypass logic that a defined value costs on most FPGAs.  The portable
    form returns the old word.

    Parameters
    ----------
    width, depth : int
        Bits of a word, words.
    family : str
        ``"portable"``, ``"ecp5"`` (DP16KD with its output register, up to 16384 words) or
        ``"xilinx7"`` (inferred).

    Members
    -------
    write_address, write_data, write_enable : In
    read_address : In
    read_enable, output_enable : In(1)
        Without them the first step of a read or the second stands still; the second is never
        enabled without the first.  1 if not connected.
    read_data : Out(width)
        The word addressed two (enabled) cycles ago.
    """

    LATENCY = 2

    def __init__(self, width, depth, *, family="portable"):
        self.width = width
        self.depth = depth
        self.family = family
        address = ceil_log2(depth)
        super().__init__({
            "write_address": In(address), "write_data": In(width), "write_enable": In(1),
            "read_address": In(address), "read_enable": In(1, init=1),
            "output_enable": In(1, init=1), "read_data": Out(width)})

    @property
    def block_rams(self):
        """DP16KD blocks that the ECP5 form takes."""
        return block_rams(self.width, self.depth)

    def elaborate(self, platform):
        if self.family == "ecp5" and self.depth <= 16384:
            return self._ecp5()
        m = Module()
        m.submodules.memory = memory = Memory(shape=self.width, depth=self.depth, init=[])
        write = memory.write_port()
        read = memory.read_port()
        m.d.comb += [
            write.addr.eq(self.write_address), write.data.eq(self.write_data),
            write.en.eq(self.write_enable), read.addr.eq(self.read_address),
            read.en.eq(self.read_enable)]
        output = Signal(self.width, reset_less=True)
        with m.If(self.output_enable):
            m.d.sync += output.eq(read.data)
        m.d.comb += self.read_data.eq(output)
        return m

    def _ecp5(self):
        m = Module()
        width = _slice(self.depth)
        for i in range(0, self.width, width):
            bits = min(width, self.width - i)
            out = dp16kd(m, write_width=width, read_width=width,
                         write_address=self.write_address, read_address=self.read_address,
                         write_data=self.write_data[i:i + bits], write_enable=self.write_enable,
                         read_enable=self.read_enable, output_enable=self.output_enable)
            m.d.comb += self.read_data[i:i + bits].eq(out)
        return m


def dp16kd(m, *, write_width, read_width, write_address, read_address, write_data, write_enable,
           read_enable=1, output_enable=1):
    """One ECP5 block RAM: port A writes, port B reads through its output register.

    Addresses count words of the port's own width.  The lowest address pins of ports of 18 and 36
    bits are byte enables.  A word of 36 bits goes in at DIA, then DIB, and comes out at DOA, then
    DOB; each half has its output register.
    """
    def address(value, width):
        unused = {36: 5, 18: 4, 9: 3, 4: 2, 2: 1, 1: 0}[width]
        enables = Const({36: 15, 18: 3}.get(width, 0), unused)
        return Cat(enables, value, Const(0, 14))[:14]

    a, b = address(write_address, write_width), address(read_address, read_width)
    data = Cat(write_data, Const(0, 36))[:36]
    enables = [Value.cast(enable) for enable in (read_enable, output_enable)]
    wide = read_width == 36
    out = Signal(36 if wide else 18)
    low = {f"o_DOA{j}": out[j] for j in range(18)} if wide else {}
    m.submodules += Instance(
        "DP16KD", p_DATA_WIDTH_A=write_width, p_DATA_WIDTH_B=read_width,
        p_REGMODE_A="OUTREG" if wide else "NOREG", p_REGMODE_B="OUTREG",
        p_RESETMODE="SYNC", p_GSR="DISABLED",
        p_WRITEMODE_A="NORMAL", p_WRITEMODE_B="NORMAL",
        p_CSDECODE_A="0b000", p_CSDECODE_B="0b000", p_CLKAMUX="CLKA", p_CLKBMUX="CLKB",
        i_CLKA=ClockSignal(), i_CLKB=ClockSignal(),
        i_CEA=Const(1, 1), i_OCEA=enables[1] if wide else Const(0, 1),
        i_CEB=enables[0], i_OCEB=enables[1],
        i_RSTA=Const(0, 1), i_RSTB=Const(0, 1), i_WEA=write_enable, i_WEB=Const(0, 1),
        **{f"i_CSA{j}": Const(0, 1) for j in range(3)},
        **{f"i_CSB{j}": Const(0, 1) for j in range(3)},
        **{f"i_ADA{j}": a[j] for j in range(14)}, **{f"i_ADB{j}": b[j] for j in range(14)},
        **{f"i_DIA{j}": data[j] for j in range(18)},
        **{f"i_DIB{j}": data[18 + j] for j in range(18)},
        **low, **{f"o_DOB{j}": out[18 * wide + j] for j in range(18)})
    return out
