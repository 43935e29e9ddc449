"""Indexes and values of activations against the nearest centroid."""

import os

import numpy as np
from amaranth.sim import Simulator

from hdl.cluster import Cluster
from hdl.token_units import (
    FACTOR_BITS,
    INDEX_BITS,
    NEVER,
    SHIFT_BASE,
    SHIFTS,
    VALUE_MAX,
    unit_shift,
)

SEED = int(os.environ.get("LUTRA_SEED", "1"))
LANES = 4


def nearest(half_units, centroids):
    """Of two that are as near the larger: by distances, not by boundaries."""
    distance = np.abs(2 * centroids - half_units)
    return int(np.flatnonzero(distance == distance.min())[-1])


def test_cluster():
    dut, rng = Cluster(LANES), np.random.default_rng(SEED)
    seen = set()

    async def bench(ctx):
        for number in range(60):
            count = 2**int(rng.integers(2, INDEX_BITS + 1))
            centroids = np.sort(rng.choice(np.arange(-127, 128), count, replace=False))
            if number % 4 == 0:
                centroids = np.arange(count) - (127, 0, -128 + count)[number // 4 % 3]
            book = np.zeros(2**INDEX_BITS, int)
            boundaries = np.full(2**INDEX_BITS, NEVER)
            book[:count] = centroids
            boundaries[:count - 1] = centroids[1:] + centroids[:-1]
            ctx.set(dut.codebook.valid, 1)
            for i in range(2**INDEX_BITS):
                ctx.set(dut.codebook.payload.index, i)
                ctx.set(dut.codebook.payload.word.centroid, int(book[i]))
                ctx.set(dut.codebook.payload.word.boundary, int(boundaries[i]))
                await ctx.tick()
            ctx.set(dut.codebook.valid, 0)
            for _ in range(8):
                factor, shift = int(rng.integers(0, 2**FACTOR_BITS)), int(rng.integers(0, SHIFTS))
                x = rng.integers(-2**15, 2**15, LANES) >> int(rng.integers(0, 16))
                if number % 3 == 0:     # on the boundaries and beside them
                    factor, shift = 2**(SHIFT_BASE - 1), 0
                    x = rng.choice(boundaries[:count - 1], LANES) + rng.integers(-1, 2, LANES)
                if number % 3 == 1:     # the largest and the smallest values
                    factor, shift = 2**FACTOR_BITS - 1, 0
                    x = rng.choice([-32768, -32767, -1, 0, 32767], LANES)
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
                    half = int(value) * factor // 2**(unit_shift(shift) - 1)
                    index = nearest(half, centroids)
                    assert ctx.get(out.index) == index, (number, SEED)
                    assert ctx.get(out.centroid) == centroids[index], (number, SEED)
                    exact = (half + 1) // 2
                    assert ctx.get(out.value) == exact, (number, SEED, half)
                    seen.add(exact)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert min(seen) == -VALUE_MAX and max(seen) < VALUE_MAX and 0 in seen
