"""The bare arrays of indexes against the products that they stand for."""

import os

import numpy as np
import pytest
from amaranth.sim import Simulator

from hdl.centroids import CentroidBuilder
from sim.codebook_baselines import PsumbookArray
from sim.index_macs import (
    BucketArray,
    CentroidMacArray,
    Compensation,
    HistogramCounter,
    ProductArray,
)
from tests.sim.test_codebook_baselines import extremes, pack, run

SEED = int(os.environ.get("LUTRA_SEED", "1"))
LARGEST = 2**17 - 1


def values_of(rng, shape):
    """Centroids, and here and there an outlier as large as it can be."""
    return np.where(rng.random(shape) < 0.2, rng.choice([-LARGEST, LARGEST], shape),
                    extremes(rng, shape))


def beats(found, cycles, array, sums):
    """Check a running total that starts anew with every second beat."""
    start = next(i for i, c in enumerate(cycles) if c.get("valid"))
    total = 0
    for n, value in enumerate(sums):
        total = (0 if n % 2 == 0 else total) + int(value)
        assert found[start + n + array.latency - 1] == total, n


def drive(cycles, codes, bits, array):
    cycles.append({"swap": 1, "load": 0} if "load" in array.signature.members else {"swap": 1})
    cycles += [{"swap": 0, "valid": 1, "restart": n % 2 == 0, "codes": pack(code, bits)}
               for n, code in enumerate(codes)]
    cycles += [{"valid": 0}] * (array.latency + 2)
    return run(array, cycles)


def test_tables_of_true_values():
    rng = np.random.default_rng(SEED)
    array = PsumbookArray(16, 2, 8, builders=4, format="kmeans")
    config = array.config
    book, x = extremes(rng, 16), values_of(rng, (16, 2))
    codes = rng.integers(0, 256, (20, 16))
    latency = CentroidBuilder.latency(config)
    cycles = []
    for g in range(4):
        mine = x[4 * g:4 * g + 4]
        cycles += [{"word": pack(mine[:, t], 18), "step": {"shift": 1}, "group": 0}
                   for t in range(2)]
        for i in range(256 + latency):
            j, entry = min(i, 255), i - latency
            cycles.append({"step": {"capture": i == 0,
                                    "centroid": pack([book[j & 15], book[j >> 4]], 8)},
                           "group": (entry >= 0) << g, "entry": max(entry, 0)})
    cycles.append({"group": 0})
    found = drive(cycles, codes, 8, array)
    weights = np.stack([book[codes & 15], book[codes >> 4]], axis=-1)
    beats(found, cycles, array, (weights * x).sum(axis=(1, 2)))


@pytest.mark.parametrize("pairs", [1, 2])
def test_products(pairs):
    rng = np.random.default_rng([SEED, pairs])
    lanes, bits = 8, 4 // pairs
    array = ProductArray(lanes, pairs=pairs)
    weights, centroids = extremes(rng, 2**bits), extremes(rng, 2**bits)
    mask = 2**bits - 1

    def product(w, a):
        return sum(int(weights[w >> bits * t & mask]) * int(centroids[a >> bits * t & mask])
                   for t in range(pairs))

    cycles = [{"table_write": 1, "table_address": a << 4 | w, "table": product(w, a)}
              for a in range(16) for w in range(16)]
    tile, codes = rng.integers(0, 16, lanes), rng.integers(0, 16, (20, lanes))
    cycles += [{"table_write": 0, "load": 1, "word": pack(word, 4)} for word in tile.reshape(-1, 4)]
    found = drive(cycles, codes, 4, array)
    beats(found, cycles, array, [sum(product(w, a) for w, a in zip(code, tile)) for code in codes])


def test_centroids_and_multipliers():
    rng = np.random.default_rng(SEED)
    array = CentroidMacArray(8)
    book, tile = extremes(rng, 16), values_of(rng, 8)
    cycles = [{"centroid_write": 1, "centroid_address": i, "centroid": int(c)}
              for i, c in enumerate(book)]
    cycles += [{"centroid_write": 0, "load": 1, "word": pack(word, 18)}
               for word in tile.reshape(-1, 4)]
    codes = rng.integers(0, 16, (20, 8))
    found = drive(cycles, codes, 4, array)
    beats(found, cycles, array, (book[codes] * tile).sum(axis=1))


@pytest.mark.parametrize("value_bits", [8, 18])
def test_buckets(value_bits):
    rng = np.random.default_rng([SEED, value_bits])
    columns, K = 4, 50
    array = BucketArray(columns, value_bits=value_bits)
    book = extremes(rng, 16)
    cycles, due = [], {}
    for _ in range(2):
        codes = rng.integers(0, 16, (K, columns))
        x = extremes(rng, K) if value_bits == 8 else values_of(rng, K)
        codes[:10] = 3      # one bucket after itself
        cycles += [{"valid": 1, "value": int(v), "codes": pack(c, 4), "shift": 0}
                   for v, c in zip(x, codes)]
        cycles.append({"valid": 0})
        for bucket in range(16):
            cycles += [{"drain": 1, "bucket": bucket, "shift": 0},
                       {"drain": 0, "centroid": int(book[bucket]), "first": bucket == 0}]
            for n in range(columns):
                if bucket == 15:
                    due[len(cycles) + array.LATENCY - 1] = int((book[codes[:, n]] * x).sum())
                cycles.append({"shift": 1})
        cycles.append({"shift": 0})
    cycles += [{"shift": 0}] * 8
    found = run(array, cycles)
    assert {cycle: found[cycle] for cycle in due} == due


@pytest.mark.parametrize("outliers", [1, 4])
def test_compensation_makes_sums_of_centroids_exact(outliers):
    """Sum of centroids and compensation equals the split of inliers and outliers."""
    rng = np.random.default_rng([SEED, outliers])
    unit = Compensation(16, outliers)
    unit.result = unit.o
    book, own = extremes(rng, 16), extremes(rng, 16)
    cycles = [{"centroid_write": 1, "centroid_address": i, "centroid": int(c)}
              for i, c in enumerate(book)]
    cycles.append({"centroid_write": 0})
    expected = {}
    for _ in range(6):
        indexes = rng.integers(0, 16, 16)
        x = own[indexes]
        where = rng.choice(16, outliers, replace=False)
        x[where] = rng.integers(-2**16, 2**16, outliers)
        errors = x[where] - own[indexes[where]]
        cycles += [{"shift": 1, "position": int(p), "error": int(e)}
                   for p, e in zip(where, errors)]
        cycles.append({"shift": 0, "swap": 1})
        for _ in range(8):
            codes = rng.integers(0, 16, 16)
            expected[len(cycles) + unit.latency - 1] = int(
                (book[codes] * x).sum() - (book[codes] * own[indexes]).sum())
            cycles.append({"swap": 0, "codes": pack(codes, 4)})
    cycles += [{}] * (unit.latency + 1)
    found = run(unit, cycles)
    assert {cycle: found[cycle] for cycle in expected} == expected


def test_histogram():
    rng = np.random.default_rng(SEED)
    array = HistogramCounter(4)
    pairs = rng.integers(0, 256, (40, 4))
    pairs[:10] = 7
    counts = []

    async def bench(ctx):
        ctx.set(array.clear, 1)
        await ctx.tick()
        ctx.set(array.clear, 0)
        for beat in pairs:
            ctx.set(array.valid, 1)
            ctx.set(array.pairs, pack(beat, 8))
            await ctx.tick()
            if rng.random() < 0.2:
                ctx.set(array.valid, 0)
                await ctx.tick()
        ctx.set(array.valid, 0)
        await ctx.tick().repeat(4)
        for pair in range(256):
            ctx.set(array.select, pair)
            await ctx.tick().repeat(2)
            counts.append(ctx.get(array.count))

    simulator = Simulator(array)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert counts == np.bincount(pairs.ravel(), minlength=256).tolist()
