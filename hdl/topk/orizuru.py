"""Orizuru: the largest and the smallest elements of a token, from two trees that share leaves.

One tournament finds the largest, another the smallest element (KLLM, outlier detection).  A bit
per match says who won; the comparison of two leaves serves both trees, so that 1.5 comparisons per
element make them.  Popping a root's element takes as many comparisons as the tree has levels: its
match in each is played again without it.

A beat of leaves is a small tree of its own, whose bits lie in one word; the nodes above hold the
winners themselves.
"""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.beat import Flow
from hdl.parts import BlockRAM, delay
from hdl.topk.leaves import LANES, ROUNDS, LeafMatches, inner_winner, leaf_word
from hdl.topk.match import also_largest, contestant, wins
from hdl.topk.nodes import Nodes

__all__ = ["Orizuru"]

_NEAR = 8       # nodes so near to the root that a match waits for those below it
_PHASES = 3 + 1 + 2 * ROUNDS + 1


class Orizuru(wiring.Component):
    """Finds the `k` largest and the `k` smallest of a stream of elements.

    Of equal elements the largest are those that came first; the smallest are those that come
    first in the order of ``index ^ 1``, since two leaves share their comparison with the other
    tree.  An element of both is given out once.

    Takes a beat per cycle, then as many cycles again and up to fifty to finish the trees, then
    ``18 + levels`` per element.  No back-pressure on either side.

    Parameters
    ----------
    depth : int
        Most elements, a power of two from 32 on.
    width : int
        Bits of an element.
    one_sided : bool
        Give out the `k` largest alone; `k` may be all of the elements.
    family : str

    Members
    -------
    start : In(1)
        A new stream (strobe).  `levels`, `length` and `k` stay until `done`.
    levels : In
        The tree has ``2**levels`` beats, at least ``length / 8``.
    length : In
        Elements.
    k : In
        How many of each side, at most half of `length`; may be 0.
    i : In(Flow(8 elements))
        Beats, in order, the first not before the cycle after `start`.  Those behind `length` are
        made here, a cycle each.
    o : Out(Flow of {index, value})
        An outlier.
    done : Out(1)
        All were given out (strobe).
    compares : Out
        Comparisons made in this cycle, for those who count.
    """

    def __init__(self, depth, *, width=16, one_sided=False, family="portable"):
        self.depth = depth
        self.one_sided = one_sided
        self.width = width
        self.family = family
        self.top = (depth // LANES).bit_length() - 1
        super().__init__({
            "start": In(1), "levels": In(range(self.top + 1)), "length": In(range(depth + 1)),
            "k": In(range(depth + 1 if one_sided else depth // 2 + 1)),
            "i": In(Flow(data.ArrayLayout(signed(width), LANES))),
            "o": Out(Flow(data.StructLayout({"index": (depth - 1).bit_length(),
                                             "value": signed(width)}))),
            "done": Out(1), "compares": Out(5)})

    def elaborate(self, platform):
        m = Module()
        width, top, family = self.width, self.top, self.family
        beats = self.depth // LANES
        word = leaf_word()
        m.submodules.matches = matches = LeafMatches(width, family)
        trees = [Nodes(top, width=width, family=family) for _ in range(2)]
        m.submodules.largest, m.submodules.smallest = trees
        m.submodules.leaves = leaf_ram = BlockRAM(LANES * width, beats, family=family)
        m.submodules.words = word_ram = BlockRAM(2 * word.size, beats, family=family)

        leaf_node = Signal(top + 1)     # that of beat 0
        # Leaves come in; behind the last of them empty beats complete the tree.
        filling = Signal()
        beat = Signal(top + 1)
        left = Signal(signed(len(self.length) + 1))     # elements from this beat on
        take = Signal()
        leaves = Signal(self.i.payload.shape(), reset_less=True)
        alive = Signal(LANES, reset_less=True)
        m.d.comb += take.eq(filling & (beat != leaf_node) & (self.i.valid | (left <= 0)))
        whole = ~left[-1] & left[ROUNDS:-1].any()
        m.d.sync += [leaves.eq(self.i.payload), alive.eq(Cat(
            whole | ~left[-1] & (left[:ROUNDS] > j) for j in range(LANES)))]
        with m.If(take):
            m.d.sync += [beat.eq(beat + 1), left.eq(left - LANES)]
        taken = delay(m, take, 1, name="taken", resettable=True)
        taken_beat = delay(m, beat[:top], 1, name="taken_beat")
        m.d.comb += [
            matches.i.valid.eq(taken), matches.i.payload.leaves.eq(leaves),
            matches.i.payload.alive.eq(alive),
            leaf_ram.write_enable.eq(taken), leaf_ram.write_address.eq(taken_beat),
            leaf_ram.write_data.eq(leaves)]
        matched = matches.o.valid
        matched_beat = delay(m, taken_beat, ROUNDS, name="matched_beat")
        m.d.comb += leaf_node.eq(1 << self.levels)

        # Then the nodes, from the last to the root; near it each waits for those below.
        playing = Signal()
        node = Signal(top + 1)
        wait = Signal(6)
        ready = Signal()
        m.d.comb += ready.eq(wait == 0)
        with m.If(~ready):
            m.d.sync += wait.eq(wait - 1)
        play = playing & ready & (node != 0)

        # Then pops, `k` from one tree, `k` from the other.
        popping = Signal()
        low = Const(0) if self.one_sided else Signal()
        count = Signal.like(self.k)
        begin = Signal()
        root = Signal(trees[0].who)
        m.d.comb += [begin.eq(popping & ready & (count != 0)),
                     root.eq(Mux(low, trees[1].root, trees[0].root))]
        found = Signal()            # the tree had an element left
        place = Signal(top, reset_less=True)
        with m.If(begin):
            m.d.sync += [place.eq(root.place), found.eq(root.alive), count.eq(count - 1)]
        phase = Signal(BlockRAM.LATENCY + _PHASES)
        m.d.sync += phase.eq(Cat(begin, phase))
        fetched, names, takes, *rounds, leaves_beat = phase[BlockRAM.LATENCY:]
        # A rival is looked up before its round, while the one before is played.
        looks_up, pairs_up, plays = rounds[:-1:2], rounds[1::2], rounds[2::2]
        m.d.comb += [leaf_ram.read_address.eq(place), word_ram.read_address.eq(place)]

        # The leaf below the root, and who else could have won each round in its beat.
        mine = Signal(word, reset_less=True)
        other = Signal(word, reset_less=True)
        elements = Signal(data.ArrayLayout(width, LANES), reset_less=True)
        leaf = Signal(range(LANES), reset_less=True)
        rivals = [Signal(range(LANES), name=f"rival_{r}", reset_less=True) for r in range(ROUNDS)]
        words = data.View(data.ArrayLayout(word, 2), word_ram.read_data)
        with m.If(fetched):
            m.d.sync += [mine.eq(Mux(low, words[1], words[0])),
                         other.eq(Mux(low, words[0], words[1])),
                         elements.eq(leaf_ram.read_data)]
        with m.If(names):
            m.d.sync += leaf.eq(inner_winner(mine))
        with m.If(takes):
            m.d.sync += [*(rival.eq(inner_winner(mine, leaf[r:] ^ 1, r))
                           for r, rival in enumerate(rivals)),
                         mine.alive.eq(mine.alive & ~(1 << leaf))]

        # The leaf goes; what remains plays its matches, two cycles each.
        where = Signal(range(LANES))
        value = Signal(signed(width))
        player, rival, first, second = (
            Signal(contestant(width, 0), name=name, reset_less=True)
            for name in ("player", "rival", "first", "second"))
        m.d.comb += [where.eq(leaf), value.eq(Array(elements)[where])]
        m.d.sync += [rival.alive.eq(mine.alive.bit_select(where, 1)),
                     rival.key.eq(value ^ low.replicate(width))]
        with m.If(takes):
            m.d.sync += player.alive.eq(0)
        for now, index in zip(looks_up, rivals):
            with m.If(now):
                m.d.comb += where.eq(index)
        for r, now in enumerate(pairs_up):
            with m.If(now):
                m.d.sync += [first.eq(Mux(leaf[r], rival, player)),
                             second.eq(Mux(leaf[r], player, rival))]
        second_won = wins(m, second, first, family)
        with m.If(Cat(*plays).any()):
            m.d.sync += player.eq(Mux(second_won, second, first))
        for r, (now, bits) in enumerate(zip(plays, (mine.pairs, mine.quads, mine.top))):
            with m.If(now):
                m.d.sync += bits.bit_select(leaf[r + 1:], 1).eq(second_won)
        compared = Signal()
        m.d.comb += compared.eq(Cat(*plays).any() & first.alive & second.alive)

        # The word goes back, and the beat's new winner climbs.
        climbs = Signal()
        child = Signal(top + 1, reset_less=True)
        with m.If(rounds[-2]):
            m.d.sync += [climbs.eq(1), child.eq(leaf_node | place)]
        with m.Elif(child[1:] == 0):
            m.d.sync += climbs.eq(0)
        with m.Else():
            m.d.sync += child.eq(child >> 1)
        m.d.comb += [
            word_ram.write_enable.eq(matched | leaves_beat),
            word_ram.write_address.eq(Mux(matched, matched_beat, place)),
            word_ram.write_data.eq(Mux(
                matched, Cat(*(o.word for o in matches.o.payload)),
                Mux(low, Cat(other, mine), Cat(mine, other))))]
        for side, tree in enumerate(trees):
            best = matches.o.payload[side]
            put = tree.put.payload
            m.d.comb += [
                tree.put.valid.eq(matched | leaves_beat & (low == side)),
                put.node.eq(leaf_node | Mux(matched, matched_beat, place)),
                put.who.place.eq(Mux(matched, matched_beat, place)),
                put.who.alive.eq(Mux(matched, best.alive, player.alive)),
                put.who.key.eq(Mux(matched, best.key, player.key)),
                tree.play.valid.eq(play | climbs & (child[1:] != 0) & (low == side)),
                tree.play.payload.climbs.eq(climbs),
                tree.play.payload.child.eq(Mux(climbs, child, node << 1))]
        m.d.comb += self.compares.eq(
            matches.compares + compared + trees[0].compared + trees[1].compared)

        # What leaves: not again what the other tree gave.  Only equal elements can be in both.
        out, last = Signal(self.o.payload.shape(), reset_less=True), Signal(
            self.o.payload.shape(), reset_less=True)
        with m.If(takes):
            m.d.sync += [out.index.eq(Cat(leaf, place)), out.value.eq(value)]
        with m.If(rounds[0] & ~low):
            m.d.sync += last.eq(out)
        twice = low & also_largest(m, last, out, family)
        m.d.sync += [self.o.valid.eq(rounds[0] & found & ~twice), self.o.payload.eq(out),
                     self.done.eq(0)]

        # From one to the next.
        with m.If(filling & (beat == leaf_node)):
            m.d.sync += [filling.eq(0), playing.eq(1), node.eq(leaf_node - 1),
                         wait.eq(ROUNDS + Nodes.LATENCY)]
        with m.If(play):
            m.d.sync += node.eq(node - 1)
            with m.If(node[:-1] <= _NEAR):
                m.d.sync += wait.eq(Nodes.LATENCY)
        with m.If(playing & ready & (node == 0)):
            m.d.sync += [playing.eq(0), popping.eq(1), count.eq(self.k)]
            if not self.one_sided:
                m.d.sync += low.eq(0)
        with m.If(begin):
            m.d.sync += wait.eq(BlockRAM.LATENCY + _PHASES + Nodes.LATENCY + self.levels)
        with m.If(popping & ready & (count == 0)):
            with m.If(1 if self.one_sided else low):
                m.d.sync += [popping.eq(0), self.done.eq(1)]
            if not self.one_sided:
                with m.Else():
                    m.d.sync += [low.eq(1), count.eq(self.k)]
        with m.If(self.start):
            m.d.sync += [filling.eq(1), beat.eq(0), left.eq(self.length), playing.eq(0),
                         popping.eq(0), wait.eq(0)]
        return m
