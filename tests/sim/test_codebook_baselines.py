"""The bare arrays of codebooks against the products that they stand for."""

import os

import numpy as np
import pytest
from amaranth.sim import Simulator

from hdl.centroids import CentroidBuilder
from sim.codebook_baselines import DequantArray, PsumbookArray

SEED = int(os.environ.get("LUTRA_SEED", "1"))


def pack(values, bits):
    return sum((int(v) & (1 << bits) - 1) << i * bits for i, v in enumerate(values))


def run(array, cycles):
    """Results after each of a list of cycles of inputs."""
    found = []

    async def bench(ctx):
        for inputs in cycles:
            for name, value in inputs.items():
                ctx.set(getattr(array, name), value)
            await ctx.tick()
            found.append(ctx.get(array.result))

    simulator = Simulator(array)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return found


def extremes(rng, shape):
    """int8 in -127..127, often at the ends."""
    return np.where(rng.random(shape) < 0.3, rng.choice([-127, 127], shape),
                    rng.integers(-127, 128, shape))


@pytest.mark.parametrize("v, b", [(8, 4), (4, 5), (2, 4)])
def test_psumbook(v, b):
    rng = np.random.default_rng([SEED, v])
    lanes, builders = 32, 2
    array = PsumbookArray(lanes, v, b, builders=builders)
    centroids, x = extremes(rng, (2**b, v)), extremes(rng, (lanes, v))
    codes = rng.integers(0, 2**b, (20, lanes))
    latency = CentroidBuilder.latency(array.config)
    cycles = []
    for g in range(lanes // builders):
        mine = x[g * builders:(g + 1) * builders]
        cycles += [{"word": pack(mine[:, t], 8), "step": {"shift": 1}, "group": 0}
                   for t in range(v)]
        for i in range(2**b + latency):
            entry = i - latency
            cycles.append({
                "step": {"capture": i == 0,
                         "centroid": pack(centroids[min(i, 2**b - 1)], 8)},
                "group": (entry >= 0) << g, "entry": max(entry, 0)})
    cycles.append({"swap": 1, "group": 0})
    start = len(cycles)
    for n, code in enumerate(codes):
        cycles.append({"swap": 0, "valid": 1, "restart": n % 2 == 0, "codes": pack(code, b)})
    cycles += [{"valid": 0}] * (array.latency + 2)
    found = run(array, cycles)
    total = 0
    for n, code in enumerate(codes):
        total = (0 if n % 2 == 0 else total) + int((centroids[code] * x).sum())
        assert found[start + n + array.latency - 1] == total


@pytest.mark.parametrize("v, b, codebooks", [(8, 4, 2), (4, 4, 1), (2, 5, 3)])
def test_dequantise(v, b, codebooks):
    rng = np.random.default_rng([SEED, v, 1])
    chunks = 4
    array = DequantArray(chunks, v, b, codebooks)
    books = extremes(rng, (codebooks, 2**b, v))
    tiles = extremes(rng, (2, chunks, v))
    cycles = [{"centroid": pack(books[c, i], 8), "centroid_address": i, "centroid_write": 1 << c}
              for c in range(codebooks) for i in range(2**b)]
    words = lambda tile: [{"load": 1, "word": pack(w, 8), "centroid_write": 0}
                          for w in tile.reshape(-1, 4)]
    cycles += [*words(tiles[0]), {"load": 0, "swap": 1}]
    expected = {}
    for number, tile in enumerate(tiles):
        for _ in range(5):
            code = rng.integers(0, 2**b, (chunks, codebooks))
            weights = sum(books[c, code[:, c]] for c in range(codebooks))
            expected[len(cycles) + array.latency - 1] = int((weights * tile).sum())
            cycles.append({"swap": 0, "load": 0, "valid": 1, "restart": 1,
                           "codes": pack(code.ravel(), b)})
        if not number:
            cycles += [{**w, "valid": 0, "swap": 0} for w in words(tiles[1])]
            cycles.append({"load": 0, "swap": 1, "valid": 0})
    cycles += [{"valid": 0, "swap": 0}] * (array.latency + 2)
    found = run(array, cycles)
    assert {cycle: found[cycle] for cycle in expected} == expected
