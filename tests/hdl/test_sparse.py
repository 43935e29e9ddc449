"""The sparse part of a bank against a sum of products."""

import os

import numpy as np
import pytest
from amaranth.sim import Simulator

from hdl.config import EngineConfig
from hdl.sparse import Sparse, sparse_latency

SEED = int(os.environ.get("LUTRA_SEED", "1"))


def run(config, wait, activations, columns, table_bank):
    """Sums of columns: each a list of beats, lists of (weight, place)."""
    dut = Sparse(config, wait)
    latency = sparse_latency(config) + wait
    beats = [(beat, number == 0, number == len(column) - 1)
             for column in columns for number, beat in enumerate(column)]
    found = []
    last = len(beats) + latency

    async def bench(ctx):
        parts = config.builders
        for address in range(config.bank // parts):
            ctx.set(dut.keep.valid, 1)
            word = activations[parts * address:parts * (address + 1)]
            ctx.set(dut.keep.payload.address, address | table_bank * config.bank // parts)
            ctx.set(dut.keep.payload.word, int.from_bytes(word.tobytes(), "little"))
            await ctx.tick()
        ctx.set(dut.keep.valid, 0)
        ctx.set(dut.table_bank, table_bank)
        for cycle in range(last + 1):
            if cycle < len(beats):
                for i, (weight, place) in enumerate(beats[cycle][0]):
                    ctx.set(dut.high[i].weight, weight)
                    ctx.set(dut.high[i].place, place)
            if 0 <= cycle - latency + 1 < len(beats):
                ctx.set(dut.codes, 1)
                ctx.set(dut.first, beats[cycle - latency + 1][1])
            else:
                ctx.set(dut.codes, 0)
            if 0 <= cycle - latency < len(beats) and beats[cycle - latency][2]:
                found.append(ctx.get(dut.o))
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-9)
    sim.add_testbench(bench)
    sim.run()
    return found


@pytest.mark.parametrize("bank, high_lanes, builders, wait", [
    (64, 2, 4, 0), (32, 1, 2, 1), (128, 4, 4, 0), (64, 8, 2, 2)])
def test_sums_of_products(bank, high_lanes, builders, wait):
    rng = np.random.default_rng(SEED)
    config = EngineConfig(format="sq", bank=bank, high_lanes=high_lanes, builders=builders,
                          activation_bits=8)
    activations = rng.integers(-127, 128, bank).astype(np.int8)
    activations[:4] = 127, -127, 127, 0
    columns = []
    for number in range(12):
        column = [[(int(rng.integers(-127, 128)), int(rng.integers(bank)))
                   for _ in range(high_lanes)] for _ in range(rng.integers(2, 5))]
        if number == 3:     # the largest sum
            column = [[(127, 0)] * high_lanes] * 8
        columns.append(column)
    expected = [sum(w * int(activations[p]) for beat in column for w, p in beat)
                for column in columns]
    for table_bank in (0, 1):
        assert run(config, wait, activations, columns, table_bank) == expected
