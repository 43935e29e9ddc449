"""Block RAM that is written by words of four bytes and read by bytes."""

from amaranth.hdl import Array, Cat, Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hdl.parts.delay import delay
from hdl.parts.ram import dp16kd

__all__ = ["ByteRAM"]

_BLOCK_WORDS = 512      # of 36 bits


class ByteRAM(wiring.Component):
    """Simple dual-port memory with a wide write port; a read takes two cycles.

    As in :class:`~hdl.parts.ram.BlockRAM`, a read that collides with a write is undefined.

    Parameters
    ----------
    words : int
        Depth in words of 32 bits, a power of two.
    family : str
        ``"portable"``, ``"ecp5"`` (DP16KD, whose ports may differ in width; 512 words
        a block) or ``"xilinx7"`` (inferred).

    Members
    -------
    write_address : In, write_data : In(32), write_enable : In(1)
    read_address : In
        Byte address, lowest byte of a word first.
    read_data : Out(8)
    """

    LATENCY = 2

    def __init__(self, words, family="portable"):
        self.words = words
        self.family = family
        bits = (words - 1).bit_length()
        super().__init__({
            "write_address": In(bits), "write_data": In(32), "write_enable": In(1),
            "read_address": In(bits + 2), "read_data": Out(8)})

    def elaborate(self, platform):
        if self.family == "ecp5":
            return self._ecp5()
        m = Module()
        m.submodules.memory = memory = Memory(shape=32, depth=self.words, init=[])
        write = memory.write_port()
        read = memory.read_port()
        m.d.comb += [
            write.addr.eq(self.write_address), write.data.eq(self.write_data),
            write.en.eq(self.write_enable), read.addr.eq(self.read_address[2:]), read.en.eq(1)]
        which = delay(m, self.read_address[:2], 1, name="which")
        output = Signal(8, reset_less=True)
        m.d.sync += output.eq(Array(read.data[8 * i:8 * i + 8] for i in range(4))[which])
        m.d.comb += self.read_data.eq(output)
        return m

    def _ecp5(self):
        m = Module()
        # Nine bits a byte: the ninth is not used.
        data = Cat(*(Cat(self.write_data[8 * i:8 * i + 8], Const(0, 1)) for i in range(4)))
        outputs = []
        for n in range(max(1, self.words // _BLOCK_WORDS)):
            chosen = self.write_address[9:] == n if self.words > _BLOCK_WORDS else 1
            out = dp16kd(m, write_width=36, read_width=9, write_address=self.write_address[:9],
                         read_address=self.read_address[:11], write_data=data,
                         write_enable=self.write_enable & chosen)
            outputs.append(out[:8])
        if len(outputs) == 1:
            m.d.comb += self.read_data.eq(outputs[0])
        else:
            which = delay(m, self.read_address[11:], self.LATENCY, name="which")
            m.d.comb += self.read_data.eq(Array(outputs)[which])
        return m
