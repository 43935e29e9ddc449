"""The nearest centroid of an activation: an index, by comparisons with the boundaries between.

An element is normalised (:mod:`hdl.token_scale`) to half units, so that the boundary between two
centroids is their sum; a search through the sorted boundaries takes as many comparisons as an
index has bits (KLLM, clustering unit).
"""

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.beat import Flow
from hdl.parts import Multiplier, delay
from hdl.token_scale import FACTOR_BITS, SHIFT_BASE, SHIFT_STEP, SHIFTS, factor

__all__ = ["INDEX_BITS", "NEVER", "Cluster", "boundaries"]

INDEX_BITS = 4
BOUNDARY_BITS = 10
"""Of sums of two int8 centroids, with room for one that no element reaches."""
NEVER = 2**(BOUNDARY_BITS - 1) - 1
"""A boundary above every element: these saturate at 255."""
_REACH = 9      # bits of a normalised element, saturated: less than NEVER


def boundaries():
    """Layout of 15 signed 10-bit sums of neighbouring centroids, increasing.

    Those that there are not, of a codebook of fewer than 16 centroids, are :data:`NEVER`.
    """
    return data.ArrayLayout(signed(BOUNDARY_BITS), 2**INDEX_BITS - 1)


class Cluster(wiring.Component):
    """Indexes of elements: ``sum(2 * x >= b for b in boundaries)`` of the normalised x.

    All lanes each cycle, :attr:`LATENCY` cycles later; no back-pressure.  An element on a boundary
    belongs to the larger centroid.

    Parameters
    ----------
    lanes : int
        Elements per cycle, a multiplier each.
    reach : int
        Bits of `half_units`, 9 or more, beyond which an element saturates: 9 for the index alone,
        19 for the value of an outlier.
    family : str

    Members
    -------
    i : In(Flow of {elements: lanes signed(16), scale: factor})
    boundaries : In(boundaries)
    o : Out(Flow of lanes {index, half_units})
        A 4-bit index, and the element in signed half units, rounded down.
    """

    LATENCY = Multiplier.LATENCY + 1 + INDEX_BITS

    def __init__(self, lanes, *, reach=_REACH, family="portable"):
        self.lanes = lanes
        self.reach = reach
        self.family = family
        super().__init__({
            "i": In(Flow(data.StructLayout({
                "elements": data.ArrayLayout(signed(16), lanes), "scale": factor()}))),
            "boundaries": In(boundaries()),
            "o": Out(Flow(data.ArrayLayout(data.StructLayout(
                {"index": INDEX_BITS, "half_units": signed(reach)}), lanes)))})

    def elaborate(self, platform):
        m = Module()
        scale = self.i.payload.scale
        shift = delay(m, scale.shift, Multiplier.LATENCY, name="shift")
        for n, element in enumerate(self.i.payload.elements):
            m.submodules[f"multiplier_{n}"] = multiplier = Multiplier(
                16, FACTOR_BITS + 1, self.family)
            m.d.comb += [multiplier.a.eq(element), multiplier.b.eq(scale.factor)]
            value = _saturated(m, multiplier.o, shift, _REACH, n)
            whole = value if self.reach == _REACH else \
                _saturated(m, multiplier.o, shift, self.reach, n)
            # From the middle boundary down to those of single centroids.
            index = None
            for level in range(INDEX_BITS):
                step = 2**(INDEX_BITS - 1 - level)
                choices = Array(self.boundaries[i] for i in range(step - 1, 2**INDEX_BITS - 1,
                                                                  2 * step))
                boundary = choices[0] if index is None else choices[index]
                bit = Signal(name=f"bit_{n}_{level}", reset_less=True)
                m.d.sync += bit.eq(value >= boundary)
                index = bit if index is None else Cat(bit, delay(m, index, 1, name=f"index_{n}"))
                value = delay(m, value, 1, name=f"value_{n}")
            m.d.comb += [self.o.payload[n].index.eq(index), self.o.payload[n].half_units.eq(
                delay(m, whole, INDEX_BITS, name=f"whole_{n}"))]
        m.d.comb += self.o.valid.eq(delay(m, self.i.valid, self.LATENCY, name="valid",
                                          resettable=True))
        return m


def _saturated(m, product, shift, reach, n):
    """``product >> (SHIFT_BASE - 1 + SHIFT_STEP * shift)`` in `reach` bits, a cycle later."""
    value = Signal(signed(reach), name=f"half_units_{n}", reset_less=True)
    shifts = [product >> SHIFT_BASE - 1 + SHIFT_STEP * s for s in range(SHIFTS)]
    with m.Switch(shift):
        for s, shifted in enumerate(shifts):
            with m.Case(s):
                fits = shifted[reach - 1:].all() | ~shifted[reach - 1:].any()
                most = Cat((~product[-1]).replicate(reach - 1), product[-1]).as_signed()
                m.d.sync += value.eq(Mux(fits, shifted, most))
    return value
