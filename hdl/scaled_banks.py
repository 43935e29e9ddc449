"""Where the two parts of banks meet: ``(dense + (sparse << exponent)) * scale``, summed.

A column has several beats, so that a few banks take turns at one shifter and one multiplier.
"""

from amaranth.hdl import Array, Cat, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.config import EXPONENT_BITS, LOW_MAX, LOW_SHIFT, SCALE_BITS, bits_for
from hdl.parts import WideMultiplier, add, delay
from hdl.tree import sum_of, tree_levels

__all__ = ["ScaledBanks", "dense_bits", "exponent_cycle", "scalers", "scaling_latency"]


def scalers(config):
    """Scalers of a cell; of ``sq``, scaler `s` has the banks from ``s * turns`` on, in turn."""
    return config.scale_points // config.turns


def dense_bits(config):
    """Width of twice the dense part of a bank: planes are +-1, and the zero point is one of them.
    """
    return bits_for(2 * config.bank * config.operand_max * LOW_MAX)


def exponent_cycle(config):
    """Cycles from the sums of banks to the exponent of the first; its scale is wanted two later."""
    return 1 + (config.turns > 1)


def scaling_latency(config):
    """Cycles from the sums of banks to the first turn's `o`."""
    return exponent_cycle(config) + 2 + WideMultiplier.LATENCY + tree_levels(scalers(config))


class ScaledBanks(wiring.Component):
    """Scales the banks of one cell; a sum of ``scalers`` products per turn.

    No back-pressure: `end` at most once in ``turns`` cycles.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    dense, sparse : In(signed numbers, one of each bank after the other)
        Twice the dense part in low steps; the sparse part in high steps.
    end : In(1)
        Those of a column are complete.
    turn : In
        From the cycle after `end` on: 0, 1, ...
    exponents, scales : In(one of each scaler after the other)
        Of the turn's banks, see :func:`exponent_cycle`.
    o : Out(signed)
        Their sum, in steps of the finest exponent and of a scale of 1; :func:`scaling_latency`.
    """

    def __init__(self, config):
        self.config = config
        self.bound = scalers(config) * config.group_max * (2**SCALE_BITS - 1)
        points = config.scale_points
        super().__init__({
            "dense": In(dense_bits(config) * points),
            "sparse": In(bits_for(config.high_max) * points),
            "end": In(1), "turn": In(range(config.turns)),
            "exponents": In(EXPONENT_BITS * scalers(config)),
            "scales": In(SCALE_BITS * scalers(config)),
            "o": Out(signed(bits_for(self.bound)))})

    def elaborate(self, platform):
        m = Module()
        config, family = self.config, self.config.family
        turns = config.turns
        products = []
        for s in range(scalers(config)):
            banks = [Cat(self.dense.word_select(t, dense_bits(config)),
                         self.sparse.word_select(t, bits_for(config.high_max)))
                     for t in range(s * turns, (s + 1) * turns)]
            if turns > 1:
                held = [Signal(len(banks[0]), name=f"held_{s}_{i}", reset_less=True)
                        for i in range(turns)]
                with m.If(self.end):
                    m.d.sync += [h.eq(b) for h, b in zip(held, banks)]
                banks = [Array(held)[self.turn]]
            mine = delay(m, banks[0], 1, name=f"bank_{s}")
            dense = mine[:dense_bits(config)].as_signed()
            sparse = mine[dense_bits(config):].as_signed()
            shifted = Signal(signed(len(sparse) + 2**EXPONENT_BITS - 1), name=f"shifted_{s}",
                             reset_less=True)
            m.d.sync += shifted.eq(sparse << self.exponents.word_select(s, EXPONENT_BITS))
            total = Signal(signed(config.group_bits), name=f"total_{s}", reset_less=True)
            twice = delay(m, dense, 1, name=f"dense_{s}")
            m.d.sync += total.eq(add(m, twice << LOW_SHIFT - 1, shifted, width=config.group_bits,
                                     family=family))
            m.submodules[f"multiplier_{s}"] = multiplier = WideMultiplier(
                config.group_bits, SCALE_BITS + 1, family)
            m.d.comb += [multiplier.a.eq(total),
                         multiplier.b.eq(self.scales.word_select(s, SCALE_BITS))]
            products.append((multiplier.o, config.group_max * (2**SCALE_BITS - 1)))
        m.d.comb += self.o.eq(sum_of(m, products, family))
        return m
