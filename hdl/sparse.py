"""The sparse high-precision part of one bank: selected activations times high weights.

::

    place -> RAM of the bank's activations -> x high weight -> sum over lanes and beats of a column

(SQ-format, figure 2a: the path beside the dense low-precision array.)
"""

from amaranth.hdl import Module, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.beat import Flow
from hdl.config import ACTIVATION_MAX, bits_for
from hdl.parts import Multiplier, WordRAM, add_select, delay
from hdl.tree import Tree, tree_levels

__all__ = ["Sparse", "high_weights", "kept_bits", "sparse_latency"]


def kept_bits(config):
    """Address bits of a word of activations in a bank's RAM: the table bank lies above."""
    return (config.bank // config.builders - 1).bit_length()


def sparse_latency(config):
    """Cycles from the last beat of a column to its sum."""
    return WordRAM.LATENCY + Multiplier.LATENCY + tree_levels(config.high_lanes) + 1


def high_weights(config):
    """High weights of a bank in a beat: of each lane the weight and where its activation lies."""
    return data.ArrayLayout(data.StructLayout({
        "weight": signed(config.high_bits), "place": config.place_bits}), config.high_lanes)


class Sparse(wiring.Component):
    """High weights of one bank, for one row and output column.

    A beat per cycle; the sum of a column's beats leaves :func:`sparse_latency` and `wait` cycles
    after the last.  No back-pressure.

    Parameters
    ----------
    config : EngineConfig
    wait : int
        Cycles that the sum is to be late.

    Members
    -------
    keep : In(Flow of {address, word})
        Activations of the bank, one for each builder, for the RAM of each lane.
    high : In(high_weights)
        Of a beat; unused lanes have a weight of 0.
    table_bank : In(1)
        From which half of the RAMs.
    codes, first : In(1)
        A cycle before a sum with this beat leaves: it is one of codes; the first of its column.
    o : Out(signed)
        The column's sum, in steps of the bank's high weights.
    """

    def __init__(self, config, wait=0):
        self.config = config
        self.wait = wait
        self.width = bits_for(config.high_max)
        super().__init__({
            "keep": In(Flow(data.StructLayout({
                "address": kept_bits(config) + 1, "word": 8 * config.builders}))),
            "high": In(high_weights(config)), "table_bank": In(1),
            "codes": In(1), "first": In(1), "o": Out(signed(self.width))})

    def elaborate(self, platform):
        m = Module()
        config, family = self.config, self.config.family
        bound = config.high_weight_max * ACTIVATION_MAX
        m.submodules.tree = tree = Tree([bound] * config.high_lanes, family)
        for i in range(config.high_lanes):
            m.submodules[f"activations_{i}"] = ram = WordRAM(
                2 << kept_bits(config), family, parts=config.builders)
            m.submodules[f"multiplier_{i}"] = multiplier = Multiplier(
                bits_for(ACTIVATION_MAX), config.high_bits, family)
            m.d.comb += [
                ram.write_address.eq(self.keep.payload.address),
                ram.write_data.eq(self.keep.payload.word), ram.write_enable.eq(self.keep.valid),
                ram.read_address.eq(self.high[i].place | self.table_bank << config.place_bits),
                multiplier.a.eq(ram.read_data.as_signed()),
                multiplier.b.eq(delay(m, self.high[i].weight, ram.LATENCY, name=f"weight_{i}")),
                tree.entries[i].eq(multiplier.o)]
        products = delay(m, tree.total, self.wait, name="products")
        total = add_select(m, products, self.o, 0, self.first, width=self.width, family=family)
        with m.If(self.codes):
            m.d.sync += self.o.eq(total)
        return m
