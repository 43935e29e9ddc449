"""Roots of sums of squares against exact integers."""

import os
from math import isqrt

import numpy as np
from amaranth.sim import Simulator

from hdl.root_sum import RootSum

SEED = int(os.environ.get("LUTRA_SEED", "1"))
LARGEST = 2**14 - 1


def test_roots():
    rng = np.random.default_rng(SEED)
    tokens = [np.zeros(6, int), np.ones(2, int), np.full(16384, -LARGEST),
              np.array([LARGEST, 0]), np.array([-1, 1, 0, 1])]
    tokens += [rng.integers(-LARGEST, LARGEST + 1, 2 * n) >> rng.integers(0, 14)
               for n in rng.integers(1, 40, 30)]
    dut = RootSum(2)
    found = []

    async def bench(ctx):
        for token in tokens:
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            pairs = token.reshape(-1, 2)
            for n, pair in enumerate(pairs):
                for port, value in zip(dut.i.payload, pair):
                    ctx.set(port, int(value))
                ctx.set(dut.i.valid, 1)
                ctx.set(dut.last, n == len(pairs) - 1)
                await ctx.tick()
                ctx.set(dut.i.valid, 0)
                if n < len(pairs) - 1 and rng.random() < 0.5:
                    await ctx.tick().repeat(int(rng.integers(1, 3)))
            await ctx.tick().repeat(32)
            assert ctx.get(dut.done), "33 cycles after the last values"
            found.append(ctx.get(dut.o))

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert found == [isqrt(int((t.astype(object)**2).sum()) << 12) for t in tokens]
