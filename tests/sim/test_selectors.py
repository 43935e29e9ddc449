"""Selectors against the masks that they search."""

import os

import numpy as np
import pytest
from amaranth.sim import Simulator

from sim.selectors import MultiplexedActivations, PlaceFinder, RAMActivations, found_order

SEED = int(os.environ.get("LUTRA_SEED", "1"))
BEATS = 4


def simulate(dut, bench):
    sim = Simulator(dut)
    sim.add_clock(1e-9)
    sim.add_testbench(bench)
    sim.run()


def beats_of(kind, mask, rng):
    """What brings a mask: planes of low codes for half tables, or its bits."""
    bank = len(mask)
    if kind == "mask":
        return np.split(mask, BEATS)
    codes = np.where(mask, 0, rng.integers(1, 16, bank))
    planes = [codes >> p & 1 for p in range(BEATS - 1, -1, -1)]
    heads = np.arange(bank) // 4 * 4
    return [np.where(np.arange(bank) == heads, 1 - p, p ^ p[heads]) for p in planes]


@pytest.mark.parametrize("kind", ["sentinel", "mask"])
@pytest.mark.parametrize("bank, lanes", [(64, 2), (64, 1), (32, 2), (128, 1)])
def test_every_high_weight_is_found(kind, bank, lanes):
    rng = np.random.default_rng(SEED)
    dut = PlaceFinder(bank, lanes, kind, BEATS)
    masks = [np.arange(bank) < BEATS * lanes, np.arange(bank) >= bank - BEATS * lanes]
    masks += [rng.permutation(bank) < BEATS * lanes for _ in range(10)]
    found = []

    async def bench(ctx):
        cycle = 0
        stream = [(bits, n) for mask in masks for n, bits in enumerate(beats_of(kind, mask, rng))]
        for cycle in range(len(stream) + BEATS + 2):
            if cycle < len(stream):
                bits, n = stream[cycle]
                ctx.set(dut.i, sum(int(b) << i for i, b in enumerate(bits)))
                ctx.set(dut.first, n == 0)
                ctx.set(dut.last, n == BEATS - 1)
            ctx.set(dut.valid, cycle < len(stream))
            await ctx.tick()
            if cycle >= BEATS + 1:
                found.append([ctx.get(place) for place in dut.places])

    simulate(dut, bench)
    expected = [cycle for mask in masks for cycle in found_order(np.flatnonzero(mask), lanes)]
    assert found[:len(expected)] == expected


@pytest.mark.parametrize("kind", [RAMActivations, MultiplexedActivations])
def test_activations(kind):
    rng = np.random.default_rng(SEED)
    dut = kind(64, 2, "portable")
    activations = rng.integers(0, 256, 64)
    places = rng.integers(0, 64, (30, 2))
    found = []

    async def bench(ctx):
        ctx.set(dut.write, 1)
        for at in range(16):
            ctx.set(dut.at, at)
            ctx.set(dut.word, sum(int(a) << 8 * i for i, a in enumerate(activations[4 * at:][:4])))
            await ctx.tick()
        ctx.set(dut.write, 0)
        for pair in [*places, places[0], places[0]]:
            for i, place in enumerate(pair):
                ctx.set(dut.places[i], int(place))
            await ctx.tick()
            found.append([ctx.get(o) for o in dut.o])

    simulate(dut, bench)
    assert np.array_equal(found[1:31], activations[places])
