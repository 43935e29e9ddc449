"""The nearest centroid of an activation: an index, by comparisons with the boundaries between.

An element is normalised (:mod:`hdl.token_scale`) to half units of the codebook, so that the
boundary between two centroids is their sum; a search through the sorted boundaries takes as many
comparisons as an index has bits (KLLM, clustering unit).
"""

from amaranth.hdl import Cat, Const, Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hdl.beat import Flow
from hdl.parts import Multiplier, add, delay
from hdl.token_scale import factor
from hdl.token_units import (
    BOUNDARY_BITS,
    CENTROID_BITS,
    FACTOR_BITS,
    INDEX_BITS,
    SHIFT_BASE,
    SHIFT_STEP,
    SHIFTS,
    VALUE_MAX,
)

__all__ = ["Cluster", "centroid_word"]

_NEAR = BOUNDARY_BITS - 1       # bits of half units that are compared, saturated
_VALUE_BITS = VALUE_MAX.bit_length() + 1


def centroid_word():
    """An entry of the codebook: centroid i, and the boundary between it and centroid i + 1.

    Boundaries that there are not, of a codebook of fewer than 16 centroids, are
    :data:`~hdl.token_units.NEVER`.
    """
    return data.StructLayout({"centroid": signed(CENTROID_BITS), "boundary": signed(BOUNDARY_BITS)})


class Cluster(wiring.Component):
    """Finds the nearest centroids of elements, and their values in units of the codebook.

    All lanes each cycle, :attr:`LATENCY` cycles later; no back-pressure.  An element on a boundary
    belongs to the larger centroid.

    Parameters
    ----------
    lanes : int
        Elements per cycle, a multiplier each.
    family : str

    Members
    -------
    codebook : In(Flow of {index, word})
        Write an entry; all sixteen before elements come.
    i : In(Flow of {elements: lanes signed(16), scale: factor})
    o : Out(Flow of lanes {index, centroid, value})
        ``index = sum(2 * x >= boundary)``, and the element rounded, halves up.
    """

    LATENCY = Multiplier.LATENCY + 2 + 2 * INDEX_BITS + 1

    def __init__(self, lanes, *, family="portable"):
        self.lanes = lanes
        self.family = family
        super().__init__({
            "codebook": In(Flow(data.StructLayout({"index": INDEX_BITS,
                                                   "word": centroid_word()}))),
            "i": In(Flow(data.StructLayout({
                "elements": data.ArrayLayout(signed(16), lanes), "scale": factor()}))),
            "o": Out(Flow(data.ArrayLayout(data.StructLayout({
                "index": INDEX_BITS, "centroid": signed(CENTROID_BITS),
                "value": signed(_VALUE_BITS)}), lanes)))})

    def _look_up(self, m, field, index, name):
        """A field of the codebook's entry at `index`, a cycle later."""
        width = len(self.codebook.payload.word[field])
        m.submodules[name] = memory = Memory(shape=width, depth=2**INDEX_BITS, init=[])
        write, read = memory.write_port(), memory.read_port(domain="comb")
        out = Signal(signed(width), name=f"{name}_out", reset_less=True)
        m.d.comb += [write.addr.eq(self.codebook.payload.index), write.en.eq(self.codebook.valid),
                     write.data.eq(self.codebook.payload.word[field]), read.addr.eq(index)]
        m.d.sync += out.eq(read.data)
        return out

    def elaborate(self, platform):
        m = Module()
        scale = self.i.payload.scale
        shift = delay(m, scale.shift, Multiplier.LATENCY, name="shift")
        for n, element in enumerate(self.i.payload.elements):
            m.submodules[f"multiplier_{n}"] = multiplier = Multiplier(
                16, FACTOR_BITS + 1, self.family)
            m.d.comb += [multiplier.a.eq(element), multiplier.b.eq(scale.factor)]
            near, value = self._half_units(m, multiplier.o, shift, n)
            # From the middle boundary down to those of single centroids.
            index = Const(0, 0)
            for level in range(INDEX_BITS):
                rest = INDEX_BITS - 1 - level
                boundary = self._look_up(m, "boundary", Cat(Const(2**rest - 1, rest + 1), index),
                                         f"boundary_{n}_{level}")
                near = delay(m, near, 1, name=f"near_{n}")
                below = add(m, near, boundary, nb=1, cin=1, width=BOUNDARY_BITS + 1,
                            family=self.family)[-1]
                reached = Signal(name=f"reached_{n}_{level}", reset_less=True)
                m.d.sync += reached.eq(~below)
                index = Cat(reached, delay(m, index, 2, name=f"index_{n}_{level}"))
                near = delay(m, near, 1, name=f"near_{n}")
            out = self.o.payload[n]
            m.d.comb += [
                out.centroid.eq(self._look_up(m, "centroid", index, f"centroid_{n}")),
                out.index.eq(delay(m, index, 1, name=f"index_{n}")),
                out.value.eq(delay(m, value, 2 * INDEX_BITS + 1, name=f"value_{n}"))]
        m.d.comb += self.o.valid.eq(delay(m, self.i.valid, self.LATENCY, name="valid",
                                          resettable=True))
        return m

    def _half_units(self, m, product, shift, n):
        """The product in half units, saturated, and as a value: two cycles later."""
        least = SHIFT_BASE - 1
        shifted = Signal(signed(_VALUE_BITS + 1), name=f"shifted_{n}", reset_less=True)
        with m.Switch(shift):
            for s in range(SHIFTS):
                with m.Case(s):
                    m.d.sync += shifted.eq(product >> least + SHIFT_STEP * s)
        near = Signal(signed(_NEAR), name=f"near_{n}", reset_less=True)
        value = Signal(signed(_VALUE_BITS), name=f"value_{n}", reset_less=True)
        high = shifted[_NEAR - 1:]
        with m.If(high.all() | ~high.any()):
            m.d.sync += near.eq(shifted)
        with m.Else():
            m.d.sync += near.eq(Cat((~high[-1]).replicate(_NEAR - 1), high[-1]))
        m.d.sync += value.eq(add(m, shifted >> 1, 0, cin=shifted[0], width=_VALUE_BITS,
                                 family=self.family))
        return near, value
