"""Tokens of int16 on their way into the activation buffers: their unit, outliers and values.

TOPK shows a token to the encoder, which finds what a unit of the codebook is in it and which of
its elements are outliers; those are remembered as flags.  Then LOAD brings the same beats again,
and every element becomes its nearest centroid, or if it is an outlier its own value.

Elements that the layer before left as indexes are looked up instead: a table says what they mean.
"""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.beat import Flow
from hdl.cluster import Cluster, centroid_word
from hdl.config import TOKEN_BEAT
from hdl.parts import BlockRAM, delay
from hdl.root_sum import RootSum
from hdl.token_scale import TokenScale, factor
from hdl.token_units import (
    AS_IT_IS,
    ENCODE_CYCLES,
    GAIN_BITS,
    GAIN_WORD,
    MEANING_BITS,
    STATIC,
)
from hdl.topk import Orizuru

__all__ = ["TABLE_ENTRIES", "Encoder", "codebook_data", "elements_of"]

TABLE_ENTRIES = 256
"""Of what indexes mean."""

_LANES = TOKEN_BEAT // ENCODE_CYCLES    # elements encoded per cycle
_SUMMED = 6         # cycles until a sum is complete
_WITHIN = TOKEN_BEAT.bit_length() - 1


def codebook_data():
    """Bits of a beat that LOAD takes for the activation codebook: an entry, or the gain."""
    return max(centroid_word().size, GAIN_BITS)


def token_beat():
    """Elements of a beat of a token, each of two bytes."""
    return data.ArrayLayout(signed(16), TOKEN_BEAT)


def elements_of(beat):
    """The elements of a beat, whose low bytes lie before their high bytes."""
    low, high = beat[:8 * TOKEN_BEAT], beat[8 * TOKEN_BEAT:16 * TOKEN_BEAT]
    return Cat(Cat(low.word_select(n, 8), high.word_select(n, 8)) for n in range(TOKEN_BEAT))


class Encoder(wiring.Component):
    """Finds units and outliers of the rows' tokens, then encodes their elements.

    A row's token is shown a beat per cycle; when its outliers are known, `found`.  Beats to encode
    come at least :data:`~hdl.token_units.ENCODE_CYCLES` cycles apart, beat by beat for all rows,
    and leave `latency` cycles later.  Beats that are shown for their root mean square are as slow.
    No back-pressure.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    codebook : In(Flow of {word, data})
        An entry of the activation codebook, or at :data:`~hdl.token_units.GAIN_WORD` the gain.
    table : In(Flow of {word, value})
        An entry of the table that says what indexes mean.
    static : In(1)
        The unit is that of :data:`~hdl.token_units.STATIC`, whatever the token.
    indexes, pairs : In(1)
        Beats to encode hold indexes: low bytes, or the low halves of both bytes.
    norm : In(1)
        Beats that are shown hold indexes too, of which the root mean square becomes the unit: those
        to encode are divided by it.
    show : In(1), row : In, length : In, k : In
        A token comes (strobe): of which row, how many elements less one, how many outliers on
        each side.  They stay until `found`.
    i_shown : In(Flow of {elements, last})
    found : Out(1)
        The row's unit and outliers are known (strobe).
    restart : In(1), beat : In
        Beats to encode come next (strobe), of which the first is this one of every row.
    i : In(Flow of {elements, last})
    o : Out(Flow of {last})
        A beat is encoded.
    values : Out
        Its values, in the cycle after that.  Elements from `length` on are 0; so are all but the
        outliers of a token where those are 0.
    """

    def __init__(self, config):
        self.config = config
        self.beats = config.token_values // TOKEN_BEAT
        self.latency = Cluster.LATENCY + ENCODE_CYCLES + BlockRAM.LATENCY * config.takes_indexes
        token = data.StructLayout({"elements": token_beat(), "last": 1})
        values = data.ArrayLayout(signed(config.value_bits), TOKEN_BEAT)
        super().__init__({
            "codebook": In(Flow(data.StructLayout({"word": 5, "data": codebook_data()}))),
            "table": In(Flow(data.StructLayout({
                "word": range(TABLE_ENTRIES), "value": signed(MEANING_BITS + 1)}))),
            "static": In(1), "indexes": In(1), "pairs": In(1), "norm": In(1),
            "show": In(1), "row": In(range(config.rows)), "length": In(range(config.token_values)),
            "k": In(range(config.token_values // 2 + 1)),
            "i_shown": In(Flow(token)), "found": Out(1),
            "restart": In(1), "beat": In(range(self.beats)),
            "i": In(Flow(token)),
            "o": Out(Flow(data.StructLayout({"last": 1}))), "values": Out(values)})

    def elaborate(self, platform):
        m = Module()
        config = self.config
        word = self.codebook.payload
        gain = Signal(GAIN_BITS)
        with m.If(self.codebook.valid & (word.word == GAIN_WORD)):
            m.d.sync += gain.eq(word.data)
        m.submodules.flags = flags = BlockRAM(TOKEN_BEAT, self.beats * config.rows,
                                              family=config.family)
        units = Signal(data.ArrayLayout(data.StructLayout({"scale": factor(), "zero": 1}),
                                        config.rows))
        finding, address = self._find(m, gain, units, flags)
        counted = Signal()
        if config.takes_indexes:
            m.d.comb += counted.eq(self.i_shown.valid & self.norm)
        beat, row = self._place(m, counted)
        m.d.comb += flags.read_address.eq(Mux(finding, address, Cat(beat, row)))
        self._encode(m, counted, units[row if config.rows > 1 else 0], beat, flags.read_data)
        return m

    def _find(self, m, gain, units, flags):
        """A row's unit, and its outliers as flags: whether it searches, and where it reads."""
        config, family = self.config, self.config.family
        shown = self.i_shown
        searches = Signal()     # for outliers; RMSNorm has none
        m.d.comb += searches.eq(~self.norm if config.takes_indexes else 1)
        m.submodules.token_scale = unit = TokenScale(family=family)
        m.submodules.topk = topk = Orizuru(config.token_values, family=family)
        m.d.comb += [
            unit.gain.eq(gain), unit.start.eq(self.show), unit.i.valid.eq(shown.valid),
            unit.i.payload.eq(shown.payload.elements),
            unit.outlier.valid.eq(topk.o.valid), unit.outlier.payload.eq(topk.o.payload.value),
            topk.start.eq(self.show & searches), topk.k.eq(self.k),
            topk.length.eq(self.length + 1), topk.i.valid.eq(shown.valid & searches),
            topk.i.payload.eq(shown.payload.elements),
            unit.divide.eq(delay(m, topk.done, _SUMMED, name="divide", resettable=True))]
        if config.takes_indexes:
            m.submodules.root_sum = root = RootSum(_LANES, family=family)
            m.d.comb += [root.start.eq(self.show), unit.root.eq(root.o),
                         unit.divide_root.eq(root.done)]
        beats = self.length[_WITHIN:]       # less one
        for level in range(len(beats)):
            with m.If(beats[level]):
                m.d.comb += topk.levels.eq(level + 1)
        for r in range(config.rows):
            with m.If(unit.done & (self.row == r)):
                m.d.sync += [units[r].scale.eq(unit.o), units[r].zero.eq(unit.zero)]
                if config.takes_indexes:
                    with m.If(self.static):
                        m.d.sync += units[r].scale.eq(Const(STATIC, factor()))

        # Flags are cleared as the token passes, and set as outliers are found.
        beat = Signal(range(self.beats))
        with m.If(self.show):
            m.d.sync += beat.eq(0)
        with m.Elif(shown.valid):
            m.d.sync += beat.eq(beat + 1)
        outlier = topk.o.payload.index
        address = Cat(outlier[_WITHIN:], self.row)
        sets = delay(m, topk.o.valid, flags.LATENCY, name="sets", resettable=True)
        bit = delay(m, outlier[:_WITHIN], flags.LATENCY, name="bit")
        m.d.comb += [
            flags.write_enable.eq(shown.valid | sets),
            flags.write_address.eq(Mux(
                sets, delay(m, address, flags.LATENCY, name="address"), Cat(beat, self.row))),
            flags.write_data.eq(Mux(sets, flags.read_data | 1 << bit, 0))]

        finding = Signal()
        with m.If(self.show):
            m.d.sync += finding.eq(1)
        with m.Elif(unit.done):
            m.d.sync += finding.eq(0)
        m.d.sync += self.found.eq(unit.done)
        return finding, address

    def _place(self, m, counted):
        """Number and row of the next beat; its flags and unit are there before it is.

        Beats to encode are those of all rows in turn; where a token's root mean square is found,
        those of its row.
        """
        rows = self.config.rows
        beat, row = Signal(range(self.beats)), Signal(range(rows))
        with m.If(self.restart):
            m.d.sync += [beat.eq(self.beat), row.eq(0)]
        with m.Elif(self.show):
            m.d.sync += beat.eq(0)
        with m.Elif(self.i.valid):
            if rows > 1:
                m.d.sync += row.eq(row + 1)
            with m.If(row == rows - 1):
                m.d.sync += beat.eq(beat + 1)
        with m.Elif(counted):
            m.d.sync += beat.eq(beat + 1)
        return beat, row

    def _encode(self, m, counted, unit, beat, outliers):
        """Elements to values, a few per cycle."""
        config = self.config
        m.submodules.cluster = cluster = Cluster(_LANES, family=config.family)
        word = self.codebook.payload
        m.d.comb += [
            cluster.codebook.valid.eq(self.codebook.valid & (word.word < GAIN_WORD)),
            cluster.codebook.payload.index.eq(word.word),
            cluster.codebook.payload.word.eq(word.data)]

        # Which elements of the next beat there are.
        unit_next = Signal(unit.shape(), reset_less=True)
        m.d.sync += unit_next.eq(unit)
        length = Signal(len(self.length) + 1)
        whole, part, exists = Signal(), Signal(), Signal(TOKEN_BEAT)
        m.d.sync += [length.eq(self.length + 1), whole.eq(beat < length[_WITHIN:]),
                     part.eq(beat == length[_WITHIN:])]
        m.d.comb += exists.eq(Cat(
            whole | part & (n < length[:_WITHIN]) for n in range(TOKEN_BEAT)))

        elements = Signal(token_beat(), reset_less=True)
        kept, own = Signal(TOKEN_BEAT, reset_less=True), Signal(TOKEN_BEAT, reset_less=True)
        scale = Signal(factor(), reset_less=True)
        last, counts = Signal(reset_less=True), Signal(reset_less=True)
        left = Signal(range(ENCODE_CYCLES + 1))
        takes = self.i.valid | counted
        nonzero = ~unit_next.zero
        if config.takes_indexes:
            nonzero = nonzero | self.indexes & ~self.norm
            with m.If(takes):
                m.d.sync += [elements.eq(Mux(counted, self.i_shown.payload.elements,
                                             self.i.payload.elements)),
                             own.eq(outliers | self.indexes.replicate(TOKEN_BEAT)),
                             last.eq(Mux(counted, self.i_shown.payload.last, self.i.payload.last)),
                             scale.eq(Mux(self.indexes & ~self.norm, Const(AS_IT_IS, factor()),
                                          unit_next.scale)), counts.eq(counted)]
            outliers = Mux(self.indexes, 0, outliers)
        else:
            with m.If(takes):
                m.d.sync += [elements.eq(self.i.payload.elements), own.eq(outliers),
                             last.eq(self.i.payload.last), scale.eq(unit_next.scale)]
        with m.If(takes):
            m.d.sync += [kept.eq(exists & (outliers | nonzero.replicate(TOKEN_BEAT)
                                           | counted.replicate(TOKEN_BEAT))),
                         left.eq(ENCODE_CYCLES)]
        with m.Elif(left != 0):
            m.d.sync += [elements.eq(elements.as_value() >> 16 * _LANES),
                         kept.eq(kept >> _LANES), own.eq(own >> _LANES),
                         left.eq(left - 1)]

        # What is encoded: elements, or what they mean where they are indexes.
        chosen, wait = [elements[n] for n in range(_LANES)], 0
        if config.takes_indexes:
            chosen, wait = self._look_up(m, chosen), BlockRAM.LATENCY
            root = m.submodules.root_sum
            going, final = (delay(m, strobe & counts, wait, name=name, resettable=True)
                            for name, strobe in (("counting", left != 0), ("counted", left == 1)))
            existing = delay(m, kept[:_LANES], wait, name="existing")
            m.d.comb += [
                root.i.valid.eq(going), root.last.eq(final & delay(m, last, wait, name="at_last")),
                *(root.i.payload[n].eq(Mux(existing[n], value, 0))
                  for n, value in enumerate(chosen))]
        busy = (left != 0) & ~counts
        m.d.comb += [
            cluster.i.valid.eq(delay(m, busy, wait, name="goes", resettable=True)),
            cluster.i.payload.scale.eq(delay(m, scale, wait, name="scale")),
            *(cluster.i.payload.elements[n].eq(value) for n, value in enumerate(chosen))]
        wait += cluster.LATENCY
        kept, own = (delay(m, flags[:_LANES], wait, name=name)
                     for name, flags in (("kept", kept), ("own", own)))
        encoded = []
        for n, found in enumerate(cluster.o.payload):
            value = Signal(signed(config.value_bits), name=f"value_{n}")
            m.d.comb += value.eq(Mux(kept[n], Mux(own[n], found.value, found.centroid), 0))
            encoded.append(value)
        with m.If(cluster.o.valid):
            m.d.sync += self.values.eq(Cat(*list(self.values)[_LANES:], *encoded))
        m.d.comb += [
            self.o.valid.eq(delay(m, (left == 1) & ~counts, wait, name="ends", resettable=True)),
            self.o.payload.last.eq(delay(m, last, wait, name="last"))]

    def _look_up(self, m, elements):
        """Elements, or what they mean; :attr:`BlockRAM.LATENCY` cycles later."""
        chosen = []
        indexes = self.indexes | self.norm
        for n, element in enumerate(elements):
            # A block RAM each: all are read in every cycle.
            m.submodules[f"table_{n}"] = table = BlockRAM(
                MEANING_BITS + 1, TABLE_ENTRIES, family=self.config.family)
            index = element.as_unsigned()
            m.d.comb += [
                table.write_enable.eq(self.table.valid),
                table.write_address.eq(self.table.payload.word),
                table.write_data.eq(self.table.payload.value),
                table.read_address.eq(Cat(index[:4], Mux(self.pairs, index[8:12], index[4:8])))]
            chosen.append(Mux(indexes, table.read_data.as_signed(),
                              delay(m, element, table.LATENCY, name=f"element_{n}")))
        return chosen
