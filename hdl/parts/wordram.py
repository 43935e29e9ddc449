"""Block RAM that is written by words and read by their parts."""

from amaranth.hdl import Array, Cat, Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hdl.parts.delay import delay
from hdl.parts.ram import dp16kd

__all__ = ["WordRAM"]

_BLOCK_WORDS = 512      # of 36 bits


class WordRAM(wiring.Component):
    """Simple dual-port memory with a wide write port; a read takes two cycles.

    As in :class:`~hdl.parts.ram.BlockRAM`, a read that collides with a write is undefined.

    Parameters
    ----------
    words : int
        Depth in words, a power of two.
    family : str
        ``"portable"``, ``"ecp5"`` (DP16KD, whose ports may differ in width; 512 words
        a block) or ``"xilinx7"`` (inferred).
    parts : int
        Parts of a word: 4 of up to 9 bits, or 2 of up to 18.
    bits : int
        Bits of a part.

    Members
    -------
    write_address : In, write_data : In(parts * bits), write_enable : In(1)
    read_address : In
        Of a part, the lowest part of a word first.
    read_data : Out(bits)
    """

    LATENCY = 2

    def __init__(self, words, family="portable", *, parts=4, bits=8):
        self.words = words
        self.family = family
        self.parts = parts
        self.bits = bits
        address = (words - 1).bit_length()
        self.part_bits = parts.bit_length() - 1
        super().__init__({
            "write_address": In(address), "write_data": In(parts * bits), "write_enable": In(1),
            "read_address": In(address + self.part_bits), "read_data": Out(bits)})

    def elaborate(self, platform):
        if self.family == "ecp5":
            return self._ecp5()
        m = Module()
        m.submodules.memory = memory = Memory(shape=self.parts * self.bits, depth=self.words,
                                              init=[])
        write = memory.write_port()
        read = memory.read_port()
        m.d.comb += [
            write.addr.eq(self.write_address), write.data.eq(self.write_data),
            write.en.eq(self.write_enable), read.addr.eq(self.read_address[self.part_bits:]),
            read.en.eq(1)]
        which = delay(m, self.read_address[:self.part_bits], 1, name="which")
        output = Signal(self.bits, reset_less=True)
        m.d.sync += output.eq(Array(read.data[self.bits * i:self.bits * (i + 1)]
                                    for i in range(self.parts))[which])
        m.d.comb += self.read_data.eq(output)
        return m

    def _ecp5(self):
        m = Module()
        # A part has nine bits of the memory, or 18, not all of which need be used.
        width = 36 // self.parts
        data = Cat(*(Cat(self.write_data[self.bits * i:self.bits * (i + 1)],
                         Const(0, width - self.bits)) for i in range(self.parts)))
        within = (_BLOCK_WORDS - 1).bit_length()
        outputs = []
        for n in range(max(1, self.words // _BLOCK_WORDS)):
            chosen = self.write_address[within:] == n if self.words > _BLOCK_WORDS else 1
            out = dp16kd(m, write_width=36, read_width=width,
                         write_address=self.write_address[:within],
                         read_address=self.read_address[:within + self.part_bits],
                         write_data=data, write_enable=self.write_enable & chosen)
            outputs.append(out[:self.bits])
        if len(outputs) == 1:
            m.d.comb += self.read_data.eq(outputs[0])
        else:
            which = delay(m, self.read_address[within + self.part_bits:], self.LATENCY,
                          name="which")
            m.d.comb += self.read_data.eq(Array(outputs)[which])
        return m
