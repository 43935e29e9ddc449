"""The matches of a beat of leaves: the lowest rounds of both trees."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.beat import Flow
from hdl.parts import delay
from hdl.topk.match import contestant, less, wins

__all__ = ["LANES", "LeafMatches", "inner_winner", "leaf_word"]

LANES = 8
ROUNDS = LANES.bit_length() - 1
PAIRS, QUADS = LANES // 2, LANES // 4


def leaf_word():
    """What a tree keeps of a beat, 15 bits.

    Who won its matches, round after round (0: the first of the two), and which leaves have not been
    popped.
    """
    return data.StructLayout({"pairs": PAIRS, "quads": QUADS, "top": 1, "alive": LANES})


def inner_winner(word, within=0, rounds=ROUNDS):
    """Number of the leaf that won the first `rounds` rounds of those that `within` names.

    Nothing for all rounds; the number of a quad, pair or leaf for fewer: the bits along the way
    down are the rest.
    """
    place = Cat(within)[:ROUNDS - rounds]
    for bits in (word.pairs, word.quads, word.top)[rounds - 1::-1] if rounds else ():
        place = Cat(bits.bit_select(place, 1), place)
    return place


class LeafMatches(wiring.Component):
    """Three rounds of matches among eight leaves, for the largest and for the smallest.

    The first round is played once: the smallest of a pair is the one that did not win, so that of
    two equal leaves it is the second.  A beat per cycle, :data:`ROUNDS` cycles later; no
    back-pressure.

    Members
    -------
    i : In(Flow of {leaves, alive})
    o : Out(Flow of (largest, smallest) of {word, key, alive})
        The keys of the smallest are complemented: larger wins in both trees.
    compares : Out
        Comparisons of the beats under way, for those who count.
    """

    def __init__(self, width=16, family="portable"):
        self.width = width
        self.family = family
        result = data.StructLayout({"word": leaf_word(), "key": width, "alive": 1})
        super().__init__({
            "i": In(Flow(data.StructLayout({
                "leaves": data.ArrayLayout(signed(width), LANES), "alive": LANES}))),
            "o": Out(Flow(data.ArrayLayout(result, 2))),
            "compares": Out(5)})

    def elaborate(self, platform):
        m = Module()
        leaves, alive = self.i.payload.leaves, self.i.payload.alive
        valid = self.i.valid
        counted = []
        rounds = [[[]], [[]]]       # of each tree: the bits of each round
        players = [[], []]
        for p in range(PAIRS):
            a, b = leaves[2 * p], leaves[2 * p + 1]
            a_alive, b_alive = alive[2 * p], alive[2 * p + 1]
            ordered = ~less(m, a, b, self.family)
            counted.append(valid & a_alive & b_alive)
            for low in (0, 1):
                second = Signal(name=f"second_{low}_{p}", reset_less=True)
                winner = Signal(contestant(self.width, 0), name=f"pair_{low}_{p}", reset_less=True)
                later = b_alive & (~a_alive | (ordered if low else ~ordered))
                m.d.sync += [second.eq(later), winner.alive.eq(a_alive | b_alive),
                             winner.key.eq(Mux(later, b, a) ^ (-low))]
                rounds[low][0].append(second)
                players[low].append(winner)
        valid = delay(m, valid, 1, name="valid", resettable=True)
        for r in range(1, ROUNDS):
            for low in (0, 1):
                rounds[low] = [[delay(m, bit, 1, name="bit") for bit in bits]
                               for bits in rounds[low]] + [[]]
                winners = []
                for i, (a, b) in enumerate(zip(players[low][::2], players[low][1::2])):
                    second = Signal(name=f"second_{low}_{r}_{i}", reset_less=True)
                    winner = Signal.like(a, name=f"winner_{low}_{r}_{i}", reset_less=True)
                    later = wins(m, b, a, self.family)
                    m.d.sync += [second.eq(later), winner.eq(Mux(later, b, a))]
                    counted.append(valid & a.alive & b.alive)
                    rounds[low][-1].append(second)
                    winners.append(winner)
                players[low] = winners
            valid = delay(m, valid, 1, name="valid", resettable=True)
        m.d.comb += [self.o.valid.eq(valid), self.compares.eq(sum(counted))]
        left = delay(m, alive, ROUNDS, name="alive")
        for low, out in enumerate(self.o.payload):
            bits = [Cat(*r) for r in rounds[low]]
            m.d.comb += [out.word.pairs.eq(bits[0]), out.word.quads.eq(bits[1]),
                         out.word.top.eq(bits[2]), out.word.alive.eq(left),
                         out.key.eq(players[low][0].key), out.alive.eq(players[low][0].alive)]
        return m
