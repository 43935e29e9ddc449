"""Tokens of int16 in two precisions, on their way into the activation buffers (SQ-format).

TOPK shows the encoder a bank, which finds its high elements, the largest in magnitude or the first
ones, and how large the largest of the others is; that decides the bank's exponent.  Then LOAD
brings the same beats again, and every element becomes the nearest level of its precision.
"""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.bank_units import HIGH_EXPONENT, UNIT_BITS, exponent_max
from hdl.beat import Flow
from hdl.config import HIGH_MAX, TOKEN_BEAT
from hdl.encoder import token_beat
from hdl.parts import BlockRAM, delay
from hdl.token_units import ENCODE_CYCLES
from hdl.topk import Orizuru

__all__ = ["BankEncoder"]

_LANES = TOKEN_BEAT // ENCODE_CYCLES    # elements encoded per cycle
_WITHIN = TOKEN_BEAT.bit_length() - 1
_EXPONENT_BITS = 3
_ENCODED = 4        # cycles from an element to its value


class BankEncoder(wiring.Component):
    """Finds high elements and exponents of the rows' banks, then encodes their elements.

    A row's bank is shown a beat per cycle; when its exponent is known, `found`.  Beats to encode
    come at least :data:`~hdl.token_units.ENCODE_CYCLES` cycles apart, beat by beat for all rows.
    No back-pressure.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    show : In(1), row : In, first_beat : In, k : In, low : In(2), static : In(1)
        A bank comes (strobe): of which row, its first beat within the token, how many elements
        are high, bits of the others less one, and whether the first are high instead of the
        largest.  They stay until `found`; `low` as long as beats of the bank are encoded.
    i_shown : In(Flow of {elements, last})
    found : Out(1)
        The bank's high elements and exponent are known (strobe).
    restart : In(1), beat : In
        Beats to encode come next (strobe), of which the first is this one of every row.
    i : In(Flow of {elements, last})
    o : Out(Flow of {last})
        A beat is encoded.
    values : Out
        Its values, in the cycle after that: see :mod:`hdl.bank_units`.
    """

    def __init__(self, config):
        self.config = config
        self.beats = config.token_values // TOKEN_BEAT
        token = data.StructLayout({"elements": token_beat(), "last": 1})
        super().__init__({
            "show": In(1), "row": In(range(config.rows)), "first_beat": In(range(self.beats)),
            "k": In(range(config.bank)), "low": In(2), "static": In(1),
            "i_shown": In(Flow(token)), "found": Out(1),
            "restart": In(1), "beat": In(range(self.beats)), "i": In(Flow(token)),
            "o": Out(Flow(data.StructLayout({"last": 1}))),
            "values": Out(data.ArrayLayout(signed(config.value_bits), TOKEN_BEAT))})

    def elaborate(self, platform):
        m = Module()
        config = self.config
        per_bank = (config.bank // TOKEN_BEAT).bit_length() - 1     # log2 of beats
        m.submodules.flags = flags = BlockRAM(TOKEN_BEAT, self.beats * config.rows,
                                              family=config.family)
        m.submodules.exponents = exponents = BlockRAM(
            _EXPONENT_BITS, max(2, (self.beats >> per_bank) * config.rows), family=config.family)
        # Of low elements: their largest exponent, and all ones where a magnitude has a bit.
        most, low_mask = Signal(_EXPONENT_BITS), Signal(3)
        with m.Switch(self.low):
            for low in range(1, 4):
                with m.Case(low):
                    m.d.comb += [most.eq(exponent_max(low + 1)), low_mask.eq((1 << low) - 1)]
        finding, address = self._find(m, flags, exponents, per_bank, most)

        # Number and row of the next beat to encode.
        beat, row = Signal(range(self.beats)), Signal(range(config.rows))
        with m.If(self.restart):
            m.d.sync += [beat.eq(self.beat), row.eq(0)]
        with m.Elif(self.i.valid):
            if config.rows > 1:
                m.d.sync += row.eq(row + 1)
            with m.If(row == config.rows - 1):
                m.d.sync += beat.eq(beat + 1)
        m.d.comb += [flags.read_address.eq(Mux(finding, address, Cat(beat, row))),
                     exponents.read_address.eq(Cat(beat[per_bank:], row))]
        self._encode(m, flags.read_data, exponents.read_data, low_mask)
        return m

    def _find(self, m, flags, exponents, per_bank, most):
        """High elements as flags, and the exponent: whether it searches, and where it reads."""
        config, family = self.config, self.config.family
        m.submodules.topk = topk = Orizuru(config.bank, one_sided=True, family=family)

        # Magnitudes; those that are high by their place are below all others.
        beat = Signal(per_bank)
        shown = Signal(token_beat(), reset_less=True)
        comes = delay(m, self.i_shown.valid, 1, name="comes", resettable=True)
        here = delay(m, beat, 1, name="here")
        m.d.sync += shown.eq(self.i_shown.payload.elements)
        with m.If(self.show):
            m.d.sync += beat.eq(0)
        with m.Elif(self.i_shown.valid):
            m.d.sync += beat.eq(beat + 1)
        placed = Signal(TOKEN_BEAT)
        keys = Signal(token_beat(), reset_less=True)
        for n in range(TOKEN_BEAT):
            m.d.comb += placed[n].eq(self.static & ((here << _WITHIN | n) < self.k))
            x = shown[n]
            magnitude = x[:15] ^ x[15].replicate(15)        # of -32768 as well
            with m.If(placed[n]):
                m.d.sync += keys[n].eq(-1)
            with m.Else():
                m.d.sync += keys[n].eq(magnitude + (x[15] & ~magnitude.all()))
        offered = delay(m, comes, 1, name="offered", resettable=True)
        levels = (config.bank // TOKEN_BEAT).bit_length() - 1
        m.d.comb += [
            topk.start.eq(self.show), topk.levels.eq(levels), topk.length.eq(config.bank),
            topk.k.eq(Mux(self.static, 0, self.k) + 1), topk.i.valid.eq(offered),
            topk.i.payload.eq(keys)]

        # Flags are cleared, or set by place, as the bank passes, and set as elements are found.
        first = Signal(range(config.bank + 1))      # elements that are still to be found
        with m.If(self.show):
            m.d.sync += first.eq(Mux(self.static, 0, self.k))
        with m.Elif(topk.o.valid & (first != 0)):
            m.d.sync += first.eq(first - 1)
        found = topk.o.valid & (first != 0)
        at = topk.o.payload.index
        address = Cat(at[_WITHIN:], self.first_beat[per_bank:], self.row)
        sets = delay(m, found, flags.LATENCY, name="sets", resettable=True)
        bit = delay(m, at[:_WITHIN], flags.LATENCY, name="bit")
        m.d.comb += [
            flags.write_enable.eq(comes | sets),
            flags.write_address.eq(Mux(
                sets, delay(m, address, flags.LATENCY, name="address"),
                Cat(here, self.first_beat[per_bank:], self.row))),
            flags.write_data.eq(Mux(sets, flags.read_data | 1 << bit, placed))]
        finding = Signal()
        with m.If(self.show):
            m.d.sync += finding.eq(1)
        with m.Elif(topk.done):
            m.d.sync += finding.eq(0)

        # The largest that is not high, m, and the smallest exponent e with
        # m < 1.25 * 2**(low - 1) * 2**(UNIT_BITS + e), from its three highest bits.
        largest = Signal(15)
        with m.If(topk.o.valid & (first == 0)):
            m.d.sync += largest.eq(topk.o.payload.value)
        exponent = Signal(_EXPONENT_BITS)
        bits = Signal(4)        # of it
        m.d.sync += bits.eq(0)
        for i in range(15):
            with m.If(largest[i]):
                m.d.sync += bits.eq(i + 1)
        # Below 1.25 times its highest bit: the two bits under that are 0.
        near = Signal()
        m.d.sync += near.eq(0)
        for i in range(2, 15):
            with m.If(bits == i + 1):
                m.d.sync += near.eq(~largest[i - 2:i].any())
        # `low` is stored less one: low - 1 + UNIT_BITS bits are free, one more if it is near.
        spare = Signal(signed(6))
        m.d.sync += spare.eq(bits - near - (UNIT_BITS + self.low))
        m.d.comb += exponent.eq(Mux(spare < 0, 0, Mux(spare > most, most, spare)))
        # Registers of the largest, its bits, near and spare.
        ends = delay(m, topk.done, 4, name="ends", resettable=True)
        m.d.comb += [
            exponents.write_enable.eq(ends), exponents.write_data.eq(exponent),
            exponents.write_address.eq(Cat(self.first_beat[per_bank:], self.row))]
        m.d.sync += self.found.eq(ends)
        return finding, address

    def _encode(self, m, flags, exponent, low_mask):
        """Elements to values, a few per cycle."""
        config = self.config
        elements = Signal(token_beat(), reset_less=True)
        high = Signal(TOKEN_BEAT, reset_less=True)
        own = Signal(_EXPONENT_BITS, reset_less=True)
        last = Signal(reset_less=True)
        left = Signal(range(ENCODE_CYCLES + 1))
        with m.If(self.i.valid):
            m.d.sync += [elements.eq(self.i.payload.elements), high.eq(flags), own.eq(exponent),
                         last.eq(self.i.payload.last), left.eq(ENCODE_CYCLES)]
        with m.Elif(left != 0):
            m.d.sync += [elements.eq(elements.as_value() >> 16 * _LANES),
                         high.eq(high >> _LANES), left.eq(left - 1)]
        encoded = []
        for n in range(_LANES):
            shift = Signal(_EXPONENT_BITS, name=f"shift_{n}")
            m.d.comb += shift.eq(Mux(high[n], HIGH_EXPONENT, own))
            # Half steps, then rounded: floor((floor(2 x / step) + 1) / 2).
            halves = Signal(signed(16 - UNIT_BITS + 1), name=f"halves_{n}", reset_less=True)
            m.d.sync += halves.eq((elements[n] >> UNIT_BITS - 1) >> shift)
            whole = Signal(signed(16 - UNIT_BITS + 1), name=f"whole_{n}", reset_less=True)
            m.d.sync += whole.eq((halves + 1) >> 1)
            # To -mask..mask: of negative ones the complement, which has -mask if it is mask - 1.
            negative, magnitude = whole[-1], Signal(len(whole) - 1, name=f"magnitude_{n}")
            mask = Signal.like(magnitude, name=f"mask_{n}")
            beyond, full = Signal(name=f"beyond_{n}"), Signal(name=f"full_{n}")
            m.d.comb += [mask.eq(Mux(delay(m, high[n], 2, name=f"high_{n}"), HIGH_MAX, low_mask)),
                         magnitude.eq(whole[:-1] ^ negative.replicate(len(magnitude))),
                         beyond.eq((magnitude & ~mask).any()),
                         full.eq(beyond | (magnitude == mask))]
            kept = (magnitude | beyond.replicate(len(magnitude))) & mask
            kept = Cat(kept[0] & ~(negative & full), kept[1:])
            clipped = Signal(signed(8), name=f"clipped_{n}", reset_less=True)
            m.d.sync += clipped.eq(kept[:7] ^ negative.replicate(8))
            value = Signal(signed(config.value_bits), name=f"value_{n}", reset_less=True)
            m.d.sync += value.eq(clipped << delay(m, shift, 3, name=f"shift_{n}"))
            encoded.append(value)
        with m.If(delay(m, left != 0, _ENCODED, name="goes", resettable=True)):
            m.d.sync += self.values.eq(Cat(*list(self.values)[_LANES:], *encoded))
        m.d.comb += [
            self.o.valid.eq(delay(m, left == 1, _ENCODED, name="ends_beat", resettable=True)),
            self.o.payload.last.eq(delay(m, last, _ENCODED, name="last"))]
