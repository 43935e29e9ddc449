"""The normaliser of a token against exact division."""

import os

import numpy as np
from amaranth.sim import Simulator

from hdl.token_scale import TokenScale
from hdl.token_units import FACTOR_BITS, GAIN_BITS, SHIFTS, unit_shift
from hdl.topk.leaves import LANES

SEED = int(os.environ.get("LUTRA_SEED", "1"))


def normaliser(x, gain):
    """The finest of the shifts with which ``gain / 256 / sum(|x|)`` fits the factor, and that."""
    total = int(np.abs(x.astype(np.int64)).sum())
    for shift in reversed(range(SHIFTS)):
        factor = (gain << unit_shift(shift) - 8) // (total or 1)
        if factor < 2**FACTOR_BITS and total:
            return factor or 1, shift, 0
    return 2**FACTOR_BITS - 1, 0, int(not total)


def test_quotient():
    dut, rng = TokenScale(), np.random.default_rng(SEED)
    cases = []
    for number in range(60):
        K, most = LANES * int(rng.integers(1, 40)), 2**int(rng.integers(0, 16))
        x = rng.integers(-most, min(most, 2**15 - 1) + 1, K)
        x[0] = x[0] or 1
        if number % 6 == 0:
            x = np.full(K, (-2**15, 2**15 - 1, 1)[number // 6 % 3])
        gain = int(rng.integers(1, 2**int(rng.integers(1, GAIN_BITS + 1))))
        outliers = rng.random(K) < (0, 0.1, 1)[number // 2 % 3]
        cases.append((x, outliers, (2**GAIN_BITS - 1, gain, 1)[min(number % 5, 2)]
                      if number % 5 < 3 else gain))
    found = []

    async def bench(ctx):
        async def strobe(signal):
            ctx.set(signal, 1)
            await ctx.tick()
            ctx.set(signal, 0)

        for x, outliers, gain in cases:
            ctx.set(dut.gain, gain)
            await strobe(dut.start)
            beats = x.reshape(-1, LANES)
            for beat in beats:
                for lane, value in zip(dut.i.payload, beat):
                    ctx.set(lane, int(value))
                await strobe(dut.i.valid)
                if rng.random() < 0.5:
                    await ctx.tick()
            await ctx.tick().repeat(5)
            for outlier in x[outliers]:
                ctx.set(dut.outlier.payload, int(outlier))
                await strobe(dut.outlier.valid)
            if outliers.any():
                await ctx.tick()
            await strobe(dut.divide)
            await ctx.tick().until(dut.done)
            found.append((ctx.get(dut.o.factor), ctx.get(dut.o.shift), ctx.get(dut.zero)))

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert found == [normaliser(x[~outliers], gain) for x, outliers, gain in cases], f"seed {SEED}"
    assert {shift for _, shift, _ in found} == set(range(SHIFTS))
    assert (2**FACTOR_BITS - 1, 0, 1) in found and (2**FACTOR_BITS - 1, 0, 0) in found
