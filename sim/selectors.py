"""Ways to fetch the activations of high weights, as bare units.

An ``sq`` engine reads a RAM at the place of every high weight (:class:`hdl.sparse.Sparse`), which
comes with it or is found from sentinels (:class:`hdl.sentinels.Sentinels`); a multiplexer could
take the place of the RAM.  ``python -m sim.bench --only sq-selectors`` measures them.
"""

# mypy: disable-error-code="attr-defined"
# Amaranth makes members of a component at run time.

from amaranth.hdl import Array, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.parts import WordRAM, delay

__all__ = ["MultiplexedActivations", "RAMActivations"]


class RAMActivations(wiring.Component):
    """Activations at some places of a bank: a RAM each, as in :class:`hdl.sparse.Sparse`.

    Two cycles after their places.
    """

    def __init__(self, bank, lanes, family):
        self.bank, self.lanes, self.family = bank, lanes, family
        bits = (bank - 1).bit_length()
        super().__init__({
            "places": In(data.ArrayLayout(bits, lanes)), "word": In(32), "at": In(bits - 2),
            "write": In(1), "o": Out(data.ArrayLayout(8, lanes))})

    def elaborate(self, platform):
        m = Module()
        for i in range(self.lanes):
            m.submodules[f"ram_{i}"] = ram = WordRAM(self.bank // 4, self.family)
            m.d.comb += [ram.write_address.eq(self.at), ram.write_data.eq(self.word),
                         ram.write_enable.eq(self.write), ram.read_address.eq(self.places[i]),
                         self.o[i].eq(ram.read_data)]
        return m


class MultiplexedActivations(RAMActivations):
    """The same from registers, by multiplexers of two cycles."""

    def elaborate(self, platform):
        m = Module()
        kept = [Signal(8, name=f"kept_{k}", reset_less=True) for k in range(self.bank)]
        for k, register in enumerate(kept):
            with m.If(self.write & (self.at == k // 4)):
                m.d.sync += register.eq(self.word.word_select(k % 4, 8))
        for i in range(self.lanes):
            place = self.places[i]
            parts = []
            for j in range(0, self.bank, 8):
                part = Signal(8, name=f"part_{i}_{j}", reset_less=True)
                m.d.sync += part.eq(Array(kept[j:j + 8])[place[:3]])
                parts.append(part)
            m.d.sync += self.o[i].eq(Array(parts)[delay(m, place[3:], 1, name=f"high_{i}")])
        return m
