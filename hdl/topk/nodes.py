"""The nodes of a tree above its beats: each holds the winner of the match below it."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.beat import Flow
from hdl.parts import BlockRAM, delay
from hdl.topk.match import contestant, wins

__all__ = ["Nodes"]


class Nodes(wiring.Component):
    """Nodes numbered as in a heap: 1 is the root, ``2 * n`` and ``2 * n + 1`` play for node n.

    Even and odd nodes lie in a memory each, so that both sides of a match are read at once.  A
    match per cycle; its winner is written :attr:`LATENCY` cycles after it was asked for.

    Parameters
    ----------
    top : int
        Levels above the beats, at most; the place of a contestant is the number of its beat.
    width : int
    family : str

    Members
    -------
    put : In(Flow of {node, who})
        Write a contestant; it is also the one that climbs.
    play : In(Flow of {child, climbs})
        The match that `child` and its sibling play.  If `climbs`, the winner of the match before
        takes the place of `child`, whose node may not have been written yet; a contestant that
        was put climbs in a match that is asked for a cycle earlier, or later.
    root : Out(contestant)
        Who was last written to node 1.
    compared : Out(1)
        Keys are compared in this cycle, for those who count.
    """

    LATENCY = BlockRAM.LATENCY + 3

    def __init__(self, top, *, width=16, family="portable"):
        self.top = top
        self.family = family
        self.who = contestant(width, top)
        super().__init__({
            "put": In(Flow(data.StructLayout({"node": top + 1, "who": self.who}))),
            "play": In(Flow(data.StructLayout({"child": top + 1, "climbs": 1}))),
            "root": Out(self.who), "compared": Out(1)})

    def elaborate(self, platform):
        m = Module()
        sides = []
        node = Signal(self.top + 1, reset_less=True)
        who = Signal(self.who, reset_less=True)
        writes = Signal()
        for side in (0, 1):
            ram = BlockRAM(self.who.size, 2**self.top, family=self.family)
            m.submodules[("even", "odd")[side]] = ram
            m.d.comb += [
                ram.read_address.eq(self.play.payload.child[1:]),
                ram.write_address.eq(node[1:]), ram.write_data.eq(who),
                ram.write_enable.eq(writes & (node[0] == side))]
            # A register of its own: the comparison takes a cycle.
            sides.append(data.View(self.who, delay(m, ram.read_data, 1, name=f"side_{side}")))
        arrives = BlockRAM.LATENCY + 1
        plays = delay(m, self.play.valid, arrives, name="plays", resettable=True)
        child, climbs = (delay(m, self.play.payload[name], arrives, name=name)
                         for name in ("child", "climbs"))
        first = Signal(self.who)
        second = Signal(self.who)
        m.d.comb += [first.eq(Mux(climbs & ~child[0], who, sides[0])),
                     second.eq(Mux(climbs & child[0], who, sides[1])),
                     self.compared.eq(plays & first.alive & second.alive)]
        later = wins(m, second, first, self.family)
        m.d.sync += writes.eq(plays | self.put.valid)
        with m.If(plays):
            m.d.sync += [who.eq(Mux(later, second, first)), node.eq(child[1:])]
        with m.If(self.put.valid):
            m.d.sync += [who.eq(self.put.payload.who), node.eq(self.put.payload.node)]
        with m.If(writes & (node == 1)):
            m.d.sync += self.root.eq(who)
        return m
