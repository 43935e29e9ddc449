"""The epilogue against exact rational arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
from amaranth.sim import Simulator

from hdl.epilogue import Epilogue
from hdl.layout import COARSE_STEP, FINE_SHIFT


def expected(value, multiplier, shift, relu, base):
    """``clip(rint((acc >> s) * multiplier / 2**21))`` on rationals; ties to even."""
    exact = Fraction((value >> (base + COARSE_STEP * shift)) * multiplier, 2**FINE_SHIFT)
    return min(127, max(0 if relu else -127, round(exact)))


def run(cases, width, relu=False, base=10):
    """Results of the RTL for (value, multiplier, shift) cases, fed back to back with gaps."""
    dut = Epilogue(width, base)
    out = []

    async def feed(ctx):
        ctx.set(dut.relu, relu)
        for i, (value, multiplier, shift) in enumerate(cases):
            payload = {"value": value, "multiplier": multiplier, "shift": shift}
            ctx.set(dut.i.payload, payload)
            ctx.set(dut.i.valid, 1)
            await ctx.tick()
            ctx.set(dut.i.valid, 0)
            if i % 7 == 3:
                await ctx.tick().repeat(2)
        await ctx.tick().repeat(dut.LATENCY + 1)

    async def collect(ctx):
        async for _, _, valid, byte in ctx.tick().sample(dut.o.valid, dut.o.payload):
            if valid:
                out.append(byte)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(feed)
    simulator.add_testbench(collect, background=True)
    simulator.run()
    return out


@pytest.mark.parametrize("width, base", [(48, 10), (56, 10), (39, 0)])
@pytest.mark.parametrize("relu", [False, True])
def test_equals_rational_arithmetic(width, base, relu):
    rng = np.random.default_rng(width + relu)
    largest = 2 ** (width - 1)
    cases = [(v, f, s) for v in (0, 1, -1, largest - 1, -largest, 255, -256)
             for f in (2048, 131071) for s in (0, 2, 3)]
    cases += [(v, 0, 0) for v in (0, -1, 1000, -1000)]
    cases += [(v << base, 0, 3) for v in (2**35 - 1, -2**35)]     # the largest that 0 can hide
    for _ in range(1500):
        shift = int(rng.integers(4))
        multiplier = int(rng.integers(2**11, 2**17))
        # Around the range of int8, and sometimes far outside.
        target = rng.normal(0, 80) if rng.random() < 0.9 else rng.normal(0, 1e5)
        value = int(target * 2**FINE_SHIFT / multiplier * 2 ** (base + COARSE_STEP * shift))
        cases.append((max(-largest, min(largest - 1, value)), multiplier, shift))
    assert run(cases, width, relu, base) == [expected(*c, relu, base) for c in cases]


def test_ties_go_to_even():
    # (2k + 1) / 2 exactly: value * 2**15 / 2**21 with value = 32 * (2k + 1)
    cases = [(32 * (2 * k + 1) << 10, 2**15, 0) for k in range(-130, 130)]
    results = run(cases, 48)
    assert results == [expected(*c, False, 10) for c in cases]
    assert results[130:134] == [0, 2, 2, 4]
