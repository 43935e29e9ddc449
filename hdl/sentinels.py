"""Where high weights lie, found from the sentinels among the low ones.

::

    codes -> which low weights are sentinels -> bytes that have one, from both ends -> places

A sentinel is the lowest number of its planes, so that nothing is known before a column's last.
Places come with the beats of the next column step, in which the stream brings the high weights:
they are a column step behind the low ones (SQ-format, section 3.1 and figure 2a).
"""

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hdl.config import SENTINEL_BEATS
from hdl.layout import bank_places, lane_positions
from hdl.parts import delay

__all__ = ["PlaceFinder", "Sentinels", "high_places"]

_GROUP = 8


def high_places(config):
    """Places of the high weights of a beat: of each output column's banks, of each lane; none
    where they come with them."""
    lanes = config.columns * config.scale_points * config.high_lanes
    return data.ArrayLayout(config.place_bits, lanes * config.sentinels)


class PlaceFinder(wiring.Component):
    """Finds the bits that are set of a word, the lowest first, one per cycle.

    The word is taken apart in groups of eight bits.  Only groups that have a bit are looked at:
    which is the next one is known a cycle ahead.

    Parameters
    ----------
    bank : int
        Bits of the word.

    Members
    -------
    word : In(bank), load : In(1)
        Find its bits.
    place : Out(range(bank))
        Of the lowest bit two cycles after `load`, then of one after the other; until two cycles
        after the next `load`, though that has taken another word.
    """

    LATENCY = 2

    def __init__(self, bank):
        self.bank = bank
        super().__init__({"word": In(bank), "load": In(1), "place": Out(range(bank))})

    def elaborate(self, platform):
        m = Module()
        count = self.bank // _GROUP
        groups = [self.word.word_select(i, _GROUP) for i in range(count)]
        some = Signal(count)
        m.d.comb += some.eq(Cat(group.any() for group in groups))
        kept = [Signal(_GROUP, name=f"group_{i}", reset_less=True) for i in range(count)]
        left = Signal(count, reset_less=True)       # groups that no one has looked at
        here = Signal(count, reset_less=True)       # the next one, one-hot
        which = Signal(range(count), reset_less=True)
        bits = Signal(_GROUP, reset_less=True)      # of this group that are left
        starts = delay(m, self.load, 1, name="starts", resettable=True)
        follows = Signal()
        m.d.comb += follows.eq(starts | ~_several(bits))
        candidates = Signal(count)
        m.d.comb += candidates.eq(Mux(self.load, some, left))
        with m.If(self.load):
            m.d.sync += [k.eq(g) for k, g in zip(kept, groups, strict=True)]
        with m.If(self.load | follows):
            m.d.sync += [here.eq(_lowest(candidates)), left.eq(_without_lowest(candidates))]
        m.d.sync += bits.eq(Mux(
            follows, _either(Mux(here[i], kept[i], 0) for i in range(count)),
            _without_lowest(bits)))
        with m.If(follows):
            m.d.sync += which.eq(_encode(here))
        m.d.comb += self.place.eq(Cat(_encode(_lowest(bits)), which))
        return m


def _lowest(bits):
    """The lowest bit that is set, one-hot."""
    return Cat(bit & ~bits[:i].any() for i, bit in enumerate(bits))


def _without_lowest(bits):
    return Cat(bit & bits[:i].any() for i, bit in enumerate(bits))


def _several(bits):
    """Whether more than one bit is set, in as few levels as there are."""
    if len(bits) == 2:
        return bits[0] & bits[1]
    low, high = bits[:len(bits) // 2], bits[len(bits) // 2:]
    return _several(low) | _several(high) | low.any() & high.any()


def _either(values):
    return reduce(or_, values)


def _encode(one):
    """Number of the bit that is set of a one-hot word."""
    return Cat(Cat(one[i] for i in range(len(one)) if i >> b & 1).any()
               for b in range((len(one) - 1).bit_length()))


class Sentinels(wiring.Component):
    """Places of high weights for the array: found in one column step, given in the next.

    With one high lane a bank's places come from the lowest on; with two those of the second come
    from the highest on.  A beat per cycle; no back-pressure.

    Parameters
    ----------
    config : EngineConfig
        With `sentinels`.

    Members
    -------
    codes : In(code_bits), valid, first, end : In(1)
        The stream register; it is a beat of codes, the first plane of its column, the last plane.
    places : Out(high_places)
        Of the high weights that come with a beat, :attr:`LATENCY` cycles after it.
    """

    LATENCY = 2 + PlaceFinder.LATENCY

    def __init__(self, config):
        self.config = config
        super().__init__({
            "codes": In(config.code_bits), "valid": In(1), "first": In(1), "end": In(1),
            "places": Out(high_places(config))})

    def elaborate(self, platform):
        m = Module()
        config = self.config
        heads = [lane[0] for lane in lane_positions(config) for _ in lane]
        within = bank_places(config)
        load = delay(m, self.end, 1, name="load", resettable=True)
        found = []
        for c in range(config.columns):
            column = self.codes[c * config.column_code_bits:][:config.column_code_bits]
            for t in range(config.scale_points):
                sentinels = Signal(config.bank, name=f"sentinels_{c}_{t}", reset_less=True)
                for k in range(t * config.bank, (t + 1) * config.bank):
                    # Half tables take minus of a chunk's first weight, of others the difference.
                    head = ~column[heads[k]]
                    plane = head if k == heads[k] else head ^ column[k]
                    bit = sentinels[within[k]]
                    with m.If(self.valid):
                        m.d.sync += bit.eq((self.first | bit) & ~plane)
                for i in range(config.high_lanes):
                    m.submodules[f"finder_{c}_{t}_{i}"] = finder = PlaceFinder(config.bank)
                    m.d.comb += [finder.word.eq(sentinels[::-1] if i else sentinels),
                                 finder.load.eq(load)]
                    found.append(~finder.place if i else finder.place)

        # Found one after the other, while beats may come late: they wait for theirs.
        half, number = Signal(), Signal(range(SENTINEL_BEATS))
        writes = Signal()
        starts = delay(m, load, PlaceFinder.LATENCY - 1, name="starts", resettable=True)
        with m.If(starts):
            m.d.sync += [half.eq(~half), number.eq(0), writes.eq(1)]
        with m.Else():
            m.d.sync += [number.eq(number + 1), writes.eq(writes & ~number.all())]
        asked, beat = Signal(), Signal(range(SENTINEL_BEATS))
        with m.If(self.end):
            m.d.sync += [asked.eq(~asked), beat.eq(0)]
        with m.Elif(self.valid):
            m.d.sync += beat.eq(beat + 1)
        m.submodules.waiting = waiting = Memory(
            shape=len(Cat(*found)), depth=2 * SENTINEL_BEATS, init=[])
        write, read = waiting.write_port(), waiting.read_port(domain="comb")
        m.d.comb += [
            write.addr.eq(Cat(number, half)), write.data.eq(Cat(*found)), write.en.eq(writes),
            read.addr.eq(delay(m, Cat(beat, asked), self.LATENCY - 1, name="asked"))]
        m.d.sync += self.places.as_value().eq(read.data)
        return m
