"""Adder trees: that of one scale point, of signed table entries, and plain ones."""

from typing import NamedTuple

from amaranth.hdl import Module, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.config import bits_for
from hdl.parts import add, delay

__all__ = ["Tree", "sum_of", "tree_levels"]


def tree_levels(leaves):
    """Adder levels, and so cycles, of a tree of that many leaves."""
    return max(0, (leaves - 1).bit_length())


class _Node(NamedTuple):
    value: Value     # as stored: the true sum, less `pending`
    invert: Value    # complement the value on the way into the next adder
    pending: Value   # the unit that complementing left out somewhere below


class Tree(wiring.Component):
    """Sums `len(bounds)` entries, each negated on request, one set per cycle.

    Negation inside an adder is one's complement and leaves out a unit.  Every adder has a carry
    in and makes up for one; of n units the n - 1 adders of the tree cover n - 1 and the last one
    is handed on: ``sum == total + pending``.

    Latency: :func:`tree_levels` cycles.  No back-pressure.

    Parameters
    ----------
    bounds : list of int
        Largest magnitude of each entry.
    family : str

    Members
    -------
    entries : In(array of signed)
    signs : In(len(bounds))
        1 negates the entry.
    total : Out(signed)
    pending : Out(1)
    """

    def __init__(self, bounds, family="portable"):
        self.bounds = list(bounds)
        self.family = family
        self.entry_bits = bits_for(max(self.bounds))
        super().__init__({
            "entries": In(data.ArrayLayout(signed(self.entry_bits), len(self.bounds))),
            "signs": In(len(self.bounds)),
            "total": Out(signed(bits_for(sum(self.bounds)))),
            "pending": Out(1)})

    def elaborate(self, platform):
        m = Module()
        nodes = [(_Node(self.entries[i], self.signs[i], self.signs[i]), bound)
                 for i, bound in enumerate(self.bounds)]
        level = 0
        while len(nodes) > 1:
            level += 1
            merged = []
            for i in range(0, len(nodes) - 1, 2):
                (a, a_bound), (b, b_bound) = nodes[i:i + 2]
                bound = a_bound + b_bound
                width = bits_for(bound)
                total = Signal(signed(width), name=f"sum_{level}_{i // 2}", reset_less=True)
                m.d.sync += total.eq(add(m, a.value, b.value, na=a.invert, nb=b.invert,
                                         cin=a.pending, width=width, family=self.family))
                merged.append((_Node(total, 0, delay(m, b.pending, 1, name="pending")), bound))
            if len(nodes) % 2:
                node, bound = nodes[-1]
                merged.append((_Node(*(delay(m, Value.cast(x), 1, name="wait") for x in node)),
                               bound))
            nodes = merged
        (root, _), = nodes
        if len(self.bounds) == 1:
            m.d.comb += self.total.eq(root.value ^ root.invert.replicate(self.entry_bits))
        else:
            m.d.comb += self.total.eq(root.value)
        m.d.comb += self.pending.eq(root.pending)
        return m


def sum_of(m, terms, family):
    """Registered sum of signed values, :func:`tree_levels` cycles later.

    Parameters
    ----------
    m : Module
    terms : list of (Value, int)
        With the largest magnitude of each.
    family : str
    """
    while len(terms) > 1:
        merged = []
        for (a, a_bound), (b, b_bound) in zip(terms[::2], terms[1::2]):
            width = bits_for(a_bound + b_bound)
            total = Signal(signed(width), name="scaled", reset_less=True)
            m.d.sync += total.eq(add(m, a, b, width=width, family=family))
            merged.append((total, a_bound + b_bound))
        terms = merged
    return terms[0][0]
