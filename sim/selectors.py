"""Ways to find and fetch the activations of high weights, as bare units.

An ``sq`` engine gets the place of every high weight with it, and reads a RAM there
(:class:`hdl.sparse.Sparse`).  A stream that has only sentinels or a mask is shorter, but places
must be found from it; and a multiplexer could take the place of the RAM.  ``python -m sim.bench
--only sq-selectors`` measures them.  They are benchmarks: an engine would also have to hold back
the dense part, and to take out what sentinels add to it.
"""

# mypy: disable-error-code="attr-defined"
# Amaranth makes members of a component at run time.

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.parts import WordRAM, delay

__all__ = ["MultiplexedActivations", "PlaceFinder", "RAMActivations", "first_set", "found_order"]

_CHUNK = 4      # weights whose codes share a head


def first_set(m, bits, name):
    """Place of the lowest of `bits` that is set, and it alone: (place, one-hot), combinational.

    In groups of eight: the first group that has one, then the first within.
    """
    groups = [bits[i:i + 8] for i in range(0, len(bits), 8)]
    some = Signal(len(groups), name=f"{name}_some")
    m.d.comb += some.eq(Cat(g.any() for g in groups))
    group = Signal(len(groups), name=f"{name}_group")
    m.d.comb += group.eq(some & ~(some - 1)[:len(groups)])
    chosen = Signal(8, name=f"{name}_chosen")
    m.d.comb += chosen.eq(_either([Mux(group[i], g, 0) for i, g in enumerate(groups)]))
    one = Signal(8, name=f"{name}_one")
    m.d.comb += one.eq(chosen & ~(chosen - 1)[:8])
    place = Cat(_encode(one, 8), _encode(group, len(groups)))
    return place, Cat(Mux(group[i], one, 0) for i in range(len(groups)))


def _either(values):
    total = values[0]
    for value in values[1:]:
        total = total | value
    return total


def _encode(one, count):
    """Number of the bit that is set of a one-hot word."""
    return Cat(Cat(one[i] for i in range(count) if i >> b & 1).any()
               for b in range((count - 1).bit_length()))


def found_order(places, lanes):
    """Places of a bank in the order in which :class:`PlaceFinder` finds them.

    Parameters
    ----------
    places : list of int
        Ascending.
    lanes : int

    Returns
    -------
    list of list of int
        `lanes` per cycle: with two the lowest and the highest that are left.
    """
    left = list(places)
    found = []
    while left:
        cycle = [left.pop(0)]
        if lanes == 2:
            cycle.append(left.pop() if left else cycle[0])
        found.append(cycle)
    return found


class PlaceFinder(wiring.Component):
    """Finds the places of high weights of a bank, one or two per cycle.

    Parameters
    ----------
    bank : int
    lanes : int
        1: from the low end; 2: from both ends.
    kind : str
        ``"sentinel"``: from the planes of low codes, as half tables take them, of which that of a
        high weight is 0, the lowest; ``"mask"``: from as many bits of a mask per beat as bring it
        in `beats`.
    beats : int
        Of a column.

    Members
    -------
    i : In(bits of a beat), valid, first, last : In(1)
        A beat, the first of its column, the last.
    places : Out(array)
        Two cycles after the last beat, and in the cycles after that.
    """

    def __init__(self, bank, lanes, kind, beats=4):
        self.bank, self.lanes, self.kind = bank, lanes, kind
        self.part = bank if kind == "sentinel" else bank // beats
        super().__init__({
            "i": In(self.part), "valid": In(1), "first": In(1), "last": In(1),
            "places": Out(data.ArrayLayout((bank - 1).bit_length(), lanes))})

    def elaborate(self, platform):
        m = Module()
        mask = Signal(self.bank, reset_less=True)
        if self.kind == "sentinel":
            for k in range(self.bank):
                head = k - k % _CHUNK
                bit = ~self.i[k] if k == head else self.i[k] ^ ~self.i[head]
                with m.If(self.valid):
                    m.d.sync += mask[k].eq((self.first | mask[k]) & ~bit)
        else:
            with m.If(self.valid):
                m.d.sync += mask.eq(Cat(mask[self.part:], self.i))
        left = Signal(self.bank, reset_less=True)
        place, taken = first_set(m, left, "low")
        m.d.sync += self.places[0].eq(place)
        if self.lanes == 2:
            mirrored, also = first_set(m, left[::-1], "high")
            m.d.sync += self.places[1].eq(~mirrored)
            taken = taken | also[::-1]
        with m.If(delay(m, self.valid & self.last, 1, name="loads", resettable=True)):
            m.d.sync += left.eq(mask)
        with m.Else():
            m.d.sync += left.eq(left & ~taken)
        return m


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
