"""Indexes of activations against the nearest centroid."""

import os

import numpy as np
import pytest
from amaranth.sim import Simulator

from hdl.cluster import INDEX_BITS, NEVER, Cluster
from hdl.token_scale import FACTOR_BITS, SHIFT_BASE, SHIFT_STEP, SHIFTS

SEED = int(os.environ.get("LUTRA_SEED", "1"))
LANES = 4


def nearest(half_units, centroids):
    """Of two that are as near the larger: by distances, not by boundaries."""
    distance = np.abs(2 * centroids - half_units)
    return int(np.flatnonzero(distance == distance.min())[-1])


@pytest.mark.parametrize("reach", [9, 19])
def test_cluster(reach):
    dut, rng = Cluster(LANES, reach=reach), np.random.default_rng(SEED)
    limit = 2**(reach - 1)

    async def bench(ctx):
        for number in range(60):
            count = 2**int(rng.integers(2, INDEX_BITS + 1))
            centroids = np.sort(rng.choice(np.arange(-127, 128), count, replace=False))
            if number % 4 == 0:
                centroids = np.arange(count) - (127, 0, -128 + count)[number // 4 % 3]
            boundaries = np.full(2**INDEX_BITS - 1, NEVER)
            boundaries[:count - 1] = centroids[1:] + centroids[:-1]
            for signal, value in zip(dut.boundaries, boundaries):
                ctx.set(signal, int(value))
            for _ in range(8):
                factor, shift = int(rng.integers(0, 2**FACTOR_BITS)), int(rng.integers(0, SHIFTS))
                x = rng.integers(-2**15, 2**15, LANES) >> int(rng.integers(0, 16))
                if number % 3 == 0:     # on the boundaries and beside them
                    factor, shift = 2**(SHIFT_BASE - 1), 0
                    x = rng.choice(boundaries[:count - 1], LANES) + rng.integers(-1, 2, LANES)
                for signal, value in zip(dut.i.payload.elements, x):
                    ctx.set(signal, int(value))
                ctx.set(dut.i.payload.scale.factor, factor)
                ctx.set(dut.i.payload.scale.shift, shift)
                ctx.set(dut.i.valid, 1)
                await ctx.tick()
                ctx.set(dut.i.valid, 0)
                await ctx.tick().repeat(dut.LATENCY - 1)
                assert ctx.get(dut.o.valid)
                for out, value in zip(dut.o.payload, x):
                    half = int(value) * factor // 2**(SHIFT_BASE - 1 + SHIFT_STEP * shift)
                    assert ctx.get(out.index) == nearest(half, centroids), (number, SEED)
                    assert ctx.get(out.half_units) == max(-limit, min(limit - 1, half))

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
