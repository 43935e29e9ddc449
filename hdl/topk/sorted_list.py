"""Sorted lists: the plain way to the largest and the smallest elements of a stream.

Every element is compared with all that are kept, and pushes those behind it one place on: a
comparator and a register for each, and elements come one by one.
"""

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.beat import Flow
from hdl.parts import delay
from hdl.topk.leaves import LANES
from hdl.topk.match import also_largest, less

__all__ = ["SortedLists"]


class SortedLists(wiring.Component):
    """Finds the `k` largest and the `k` smallest of a stream of elements, with the same ties as
    :class:`~hdl.topk.orizuru.Orizuru`, each side from its last on.

    Takes a beat every :attr:`PACE` cycles; after the last one about ``PACE + 2 most`` cycles give
    the elements out.  No back-pressure on either side.

    Parameters
    ----------
    depth : int
        Most elements of a stream.
    most : int
        Most elements of each side.
    width : int
        Bits of an element.
    family : str

    Members
    -------
    start : In(1)
        A new stream (strobe).  `length` and `k` stay until `done`.
    length, k : In
        Elements; how many of each side, at most half of `length` and at most `most`.
    i : In(Flow(8 elements))
    o : Out(Flow of {index, value})
    done : Out(1)
        All were given out (strobe).
    """

    PACE = LANES

    def __init__(self, depth, most, *, width=16, family="portable"):
        self.depth = depth
        self.most = most
        self.width = width
        self.family = family
        self.index_bits = (depth - 1).bit_length()
        super().__init__({
            "start": In(1), "length": In(range(depth + 1)), "k": In(range(most + 1)),
            "i": In(Flow(data.ArrayLayout(signed(width), LANES))),
            "o": Out(Flow(data.StructLayout({"index": self.index_bits, "value": signed(width)}))),
            "done": Out(1)})

    def elaborate(self, platform):
        m = Module()
        within = LANES.bit_length() - 1

        # One element after the other; for the smallest, pairs the other way round.
        elements = Signal(self.i.payload.shape(), reset_less=True)
        step, stepping = Signal(within), Signal()
        beat = Signal(self.index_bits + 1 - within)
        with m.If(self.i.valid):
            m.d.sync += [elements.eq(self.i.payload), step.eq(0), stepping.eq(1)]
        with m.Elif(step == LANES - 1):
            m.d.sync += stepping.eq(0)
        with m.Else():
            m.d.sync += step.eq(step + 1)
        with m.If(self.start):
            m.d.sync += beat.eq(0)
        with m.Elif(stepping & (step == LANES - 1)):
            m.d.sync += beat.eq(beat + 1)
        lists, pushes = [], [Signal(name=f"push_{low}") for low in (0, 1)]
        for low in (0, 1):
            index = Cat(step ^ low, beat)
            value = Signal(signed(self.width), name=f"value_{low}", reset_less=True)
            place = Signal(self.index_bits, name=f"place_{low}", reset_less=True)
            comes = Signal(name=f"comes_{low}")
            m.d.sync += [value.eq(Array(elements)[step ^ low] ^ (-low)), place.eq(index),
                         comes.eq(stepping & (index < self.length))]
            lists.append(self._keep(m, value, place, comes, pushes[low], low))

        # When all have come: nothing pushes them out, the last of each list first.
        seen = Signal(range(self.depth + 2 * LANES))
        giving, low = Signal(), Signal()
        count = Signal(range(self.most + 1))
        m.d.comb += seen.eq(Cat(0, 0, 0, beat))
        complete = delay(m, stepping & (step == LANES - 1), 2, name="complete", resettable=True)
        with m.If(complete & (seen >= self.length)):
            m.d.sync += [giving.eq(1), low.eq(0), count.eq(self.most)]
        m.d.comb += [pushes[0].eq(giving & ~low), pushes[1].eq(giving & low)]
        first, second = (cells[-1] for cells in lists)
        out = Signal(self.o.payload.shape(), reset_less=True)
        least = Signal(self.o.payload.shape(), reset_less=True)     # of the largest
        given, fresh = Signal(), Signal()
        m.d.sync += [
            out.value.eq(Mux(low, ~second.key, first.key)),
            out.index.eq(Mux(low, second.place, first.place)),
            given.eq(giving & Mux(low, second.alive, first.alive))]
        of_second = delay(m, low, 1, name="of_second")
        with m.If(self.start):
            m.d.sync += fresh.eq(1)
        with m.Elif(given & fresh):
            m.d.sync += [fresh.eq(0), least.eq(out)]
        with m.If(giving):
            m.d.sync += count.eq(count - 1)
            with m.If(count == 1):
                m.d.sync += [count.eq(self.most), low.eq(1), giving.eq(~low)]
        twice = of_second & also_largest(m, least, out, self.family)
        m.d.sync += [self.o.valid.eq(given & ~twice), self.o.payload.eq(out)]
        m.d.comb += self.done.eq(delay(m, giving & low & (count == 1), 3, name="done",
                                       resettable=True))
        return m

    def _keep(self, m, value, place, comes, push, low):
        """A list of the largest values, the first first: {alive, key, place} each."""
        cell = data.StructLayout({"alive": 1, "key": signed(self.width), "place": self.index_bits})
        cells = [Signal(cell, name=f"cell_{low}_{i}") for i in range(self.most)]
        beats = [~c.alive | less(m, c.key, value, self.family) for c in cells]
        wanted = Signal(self.most, name=f"wanted_{low}")    # places below k
        m.d.sync += wanted.eq(Cat(self.k > i for i in range(self.most)))
        for i, c in enumerate(cells):
            with m.If(self.start):
                m.d.sync += c.alive.eq(0)
            with m.Elif(comes & beats[i] | push):
                if i:
                    with m.If(push | beats[i - 1]):
                        m.d.sync += [c.eq(cells[i - 1]),
                                     c.alive.eq(cells[i - 1].alive & (push | wanted[i]))]
                    with m.Else():
                        m.d.sync += [c.alive.eq(wanted[i]), c.key.eq(value), c.place.eq(place)]
                else:
                    m.d.sync += [c.alive.eq(wanted[i] & ~push), c.key.eq(value),
                                 c.place.eq(place)]
        return cells
