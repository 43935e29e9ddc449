"""Places found from sentinels: in the order that the packer counts on, whenever beats come."""

import os

import numpy as np
import pytest
from amaranth.sim import Simulator

from hdl.config import EngineConfig
from hdl.layout import bank_places, lane_positions
from hdl.sentinels import PlaceFinder, Sentinels

SEED = int(os.environ.get("LUTRA_SEED", "1"))


def simulate(dut, bench):
    sim = Simulator(dut)
    sim.add_clock(1e-9)
    sim.add_testbench(bench)
    sim.run()


@pytest.mark.parametrize("bank", [32, 64, 128])
def test_bits_are_found_from_the_lowest_on(bank):
    rng = np.random.default_rng(SEED)
    words = []      # places, and cycles to the next word: at least as many
    for number in range(60):
        count = int(rng.integers(2, 9))
        start = int(rng.integers(bank - count + 1))
        places = [range(start, start + count), rng.choice(bank, count, replace=False),
                  np.arange(count) * (bank // 8)][number % 3]
        words.append((sorted(map(int, places)), count + int(rng.integers(3)) * (number % 4)))
    dut = PlaceFinder(bank)
    expected, found = [], []

    async def bench(ctx):
        due = []
        for places, cycles in [*words, ([0], 4)]:
            for cycle in range(cycles):
                ctx.set(dut.load, cycle == 0)
                # Only while it is loaded does the word count.
                ctx.set(dut.word, sum(1 << p for p in places) if cycle == 0 else
                        int(rng.integers(1 << 30)))
                due.append(places[cycle] if cycle < len(places) else None)
                if len(due) > dut.LATENCY and due[-1 - dut.LATENCY] is not None:
                    expected.append(due[-1 - dut.LATENCY])
                    found.append(ctx.get(dut.place))
                await ctx.tick()

    simulate(dut, bench)
    assert len(found) > 200
    assert found == expected


@pytest.mark.parametrize("fields", [
    dict(bank=64, high_lanes=2, lanes=64), dict(bank=32, high_lanes=1, lanes=32, columns=2),
    dict(bank=64, high_lanes=2, lanes=32, block_ram_blocks=1),
    dict(bank=128, high_lanes=2, lanes=64, builders=2)])
def test_places_come_with_the_beats_of_the_next_step(fields):
    rng = np.random.default_rng(SEED)
    config = EngineConfig(format="sq", activation_bits=8, sentinels=True, **fields)
    points, lanes, tile = config.scale_points, config.high_lanes, config.tile_k
    heads = np.repeat([lane[0] for lane in lane_positions(config)],
                      [len(lane) for lane in lane_positions(config)])
    within = np.array(bank_places(config))
    beats, expected = [], []        # (codes, first, last) or None: no beat; places of each beat
    before = None
    for step in range(40):
        planes = int(rng.integers(2, 5))
        count = int(rng.integers(1, planes * lanes + 1)) if step % 3 else planes * lanes
        weights = rng.integers(1, 2**planes, (config.columns, tile))
        places = []
        for c in range(config.columns):
            for t in range(points):
                chosen = t * config.bank + rng.choice(config.bank, count, replace=False)
                weights[c, chosen] = 0
                order = sorted(int(p) for p in within[chosen])
                half = -(-count // lanes)
                places += [order[:half], order[half:][::-1]][:lanes]
        if before is not None:      # found by now, given as far as this step has beats
            for number in range(planes):
                expected.append([p[number] if number < len(p) else None for p in before])
        else:
            expected += [None] * planes
        before = places
        for plane in range(planes - 1, -1, -1):
            bits = weights >> plane & 1
            codes = np.where(np.arange(tile) == heads, 1 - bits, bits ^ bits[:, heads])
            for _ in range(int(rng.integers(3)) * (step % 2)):
                beats.append(None)
            beats.append((sum(int(b) << i for i, b in enumerate(codes.reshape(-1))),
                          plane == planes - 1, plane == 0))
    dut = Sentinels(config)
    checked = 0

    async def bench(ctx):
        nonlocal checked
        left = iter(expected)
        due = [None] * dut.LATENCY
        for beat in beats + [None] * dut.LATENCY:
            ctx.set(dut.valid, beat is not None)
            if beat is not None:
                for name, value in zip(("codes", "first", "end"), beat, strict=True):
                    ctx.set(getattr(dut, name), value)
            else:
                ctx.set(dut.codes, int(rng.integers(1 << 60)))
                ctx.set(dut.first, 1)
                ctx.set(dut.end, 0)
            due.append(None if beat is None else next(left))
            wanted = due.pop(0)
            for i, place in enumerate(wanted or ()):
                if place is not None:
                    checked += 1
                    assert ctx.get(dut.places[i]) == place, (SEED, checked)
            await ctx.tick()

    simulate(dut, bench)
    assert checked > 150
