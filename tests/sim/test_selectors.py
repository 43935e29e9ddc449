"""Units that fetch activations against an array of them."""

import os

import numpy as np
import pytest
from amaranth.sim import Simulator

from sim.selectors import MultiplexedActivations, RAMActivations

SEED = int(os.environ.get("LUTRA_SEED", "1"))


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

    sim = Simulator(dut)
    sim.add_clock(1e-9)
    sim.add_testbench(bench)
    sim.run()
    assert np.array_equal(found[1:31], activations[places])
