"""The arrays of the comparison are exact: small ones in Amaranth's simulator, against NumPy."""

import json
import os
from collections import Counter

import numpy as np
import pytest
from amaranth.sim import Simulator

from hdl.config import bits_for
from hdl.signed_sums import SignedSumBuilder, step_program
from hdl.synthesis import Bench, synthesize
from hdl.tree import tree_levels
from sim.baselines import AdderArray, MacArray, TableArray

SEED = int(os.environ.get("LUTRA_SEED", "1"))
LATENCY = 24    # more than any array here takes


# Weights and their codes.  A weight matrix is [columns, K]; `beats` gives codes plane by plane.

def bitserial_levels(planes):
    return np.arange(1 - 2**planes, 2**planes, 2)


def planes_of(weights, planes):
    """The +-1 planes of odd-level weights, most significant first: [columns, planes, K]."""
    q = (weights + 2**planes - 1) // 2
    return np.stack([2 * (q >> p & 1) - 1 for p in reversed(range(planes))], axis=1)


def pack(bits):
    return sum(int(b) << i for i, b in enumerate(bits))


def adder_code(signs):
    return pack(signs < 0)


def table_code(signs, chunks):
    """Per chunk: the sign of its first, then who differs from it."""
    bits = []
    for v, end in zip(chunks, np.cumsum(chunks)):
        chunk = signs[end - v:end]
        bits += [chunk[0] < 0, *(chunk[1:] != chunk[0])]
    return pack(bits)


def mac_levels(bits):
    return {1: np.array([-1, 1]), 2: np.arange(-2, 2), 4: np.arange(-10, 6)}[bits]


def mac_code(weights, bits):
    if bits == 1:
        return pack(weights < 0)
    low = (weights + 2) % 4 - 2
    digits = [low, (weights - low) // 4][:bits // 2]
    return pack(np.stack([d >> i & 1 for d in digits for i in (0, 1)], axis=1).ravel())


def steps_of(array, tile):
    """What is written into a tile's tables, in order: (group, step, activations of its lanes)."""
    starts = np.cumsum([0, *array.chunks])
    builders = array.config.builders
    for g, v in enumerate(array.config.lane_groups):
        lanes = starts[g * builders:(g + 1) * builders]
        for step in step_program(v):
            yield g, step, tile[lanes + step.position]


def tables_fill(array, tile):
    """Cycles of inputs that fill a bank of a :class:`TableArray` that takes entries."""
    total = 0
    for g, s, a in steps_of(array, tile):
        total = (0 if s.restart else total) + (-a if s.negate else a) * (1 + s.double)
        yield {"group": 1 << g, "entry": s.entry, "entries": total.tolist(), "odd": pack(a & 1)}


def builders_fill(array, tile):
    """The same for one with builders; entries come a latency after their word."""
    steps = list(steps_of(array, tile))
    for cycle in range(len(steps) + SignedSumBuilder.LATENCY):
        inputs = {"group": 0}
        if cycle < len(steps):
            _, s, a = steps[cycle]
            inputs |= {"word": int.from_bytes(a.astype(np.int8).tobytes(), "little"),
                       "clear": s.restart, "double": s.double, "negate": s.negate}
        if cycle >= SignedSumBuilder.LATENCY:
            g, s, _ = steps[cycle - SignedSumBuilder.LATENCY]
            inputs |= {"group": 1 << g, "entry": s.entry}
        yield inputs


def registers_fill(array, tile):
    for k in range(0, len(tile), 4):
        word = tile[k:k + 4].astype(np.int8).tobytes()
        yield {"load": 1, "word": int.from_bytes(word, "little")}


def run(array, fill, beats, tiles, expected, *, latency, seed=SEED):
    """Run two K tiles through an array, the second filled while the first is used.

    `beats[tile]` lists for each column its codes, plane by plane.  `expected` lists (tile, column)
    sums; every result must come exactly `latency` cycles after the column's last beat.  Bubbles
    fall at random between beats.
    """
    rng = np.random.default_rng(seed)
    timeline = [{**cycle} for cycle in fill(array, tiles[0])]
    due = {}
    for t, columns in enumerate(beats):
        timeline.append({"swap": 1})
        filling = list(fill(array, tiles[t + 1])) if t + 1 < len(tiles) else []
        cycles = []
        for c, planes in enumerate(columns):
            for p, code in enumerate(planes):
                cycles += [{"codes": int(rng.integers(256)), "restart": 1, "first": 1}
                           for _ in range(rng.integers(3))]
                cycles.append({"codes": code, "valid": 1, "first": p == 0,
                               "last": p == len(planes) - 1, "restart": c % 2 == 0})
            due[len(timeline) + len(cycles) - 1 + latency] = expected[t][c]
        length = max(len(cycles), len(filling))
        cycles += [{} for _ in range(length - len(cycles))]
        filling += [{"group": 0} if "group" in filling[0] else {"load": 0}
                    for _ in range(length - len(filling))] if filling else []
        timeline += [{**a, **b} for a, b in zip(cycles, filling or [{}] * length)]
    timeline += [{} for _ in range(LATENCY)]
    pulses = ("valid", "swap", "group" if hasattr(array, "group") else "load")
    found = {}

    async def bench(ctx):
        for cycle, inputs in enumerate(timeline):
            if cycle in due:
                found[cycle] = ctx.get(array.result)
            for name in pulses:
                ctx.set(getattr(array, name), 0)
            for name, value in inputs.items():
                ctx.set(getattr(array, name), value)
            await ctx.tick()

    simulator = Simulator(array)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert found == due


def cases(rng, levels, K, columns):
    """Two tiles of activations and weights: random with int8 extremes, then all extreme."""
    tiles = [rng.integers(-127, 128, K), np.full(K, 127)]
    tiles[0][:8] = [127, -127, 127, 127, -127, -127, -127, -127]
    tiles[1][K // 2:] = rng.choice([-127, 127], K // 2)
    weights = rng.choice(levels, (2, columns, K))
    weights[:, 0], weights[:, 1] = levels[0], levels[-1]
    weights[1, 2] = np.where(tiles[1] < 0, levels[0], levels[-1])   # the largest sum
    weights[1, 3] = np.where(tiles[1] < 0, levels[-1], levels[0])
    return tiles, weights


def sums(tiles, weights):
    """Column sums; an odd column also counts the one before it (no restart)."""
    expected = np.einsum("tck,tk->tc", weights, np.stack(tiles))
    expected[:, 1::2] += expected[:, ::2]
    return expected.tolist()


ARRAYS = {
    "tables": (lambda p: TableArray(32, p), tables_fill),
    "narrow tables": (lambda p: TableArray(32, p, narrow=True), tables_fill),
    "mixed tables": (lambda p: TableArray(32, p, block_ram_blocks=1), tables_fill),
    "block RAM": (lambda p: TableArray(32, p, block_ram_blocks=4), tables_fill),
    "tables, builders": (lambda p: TableArray(32, p, build=True), builders_fill),
    "narrow tables, builders": (lambda p: TableArray(32, p, build=True, narrow=True),
                                builders_fill),
    "mixed tables, builders": (lambda p: TableArray(32, p, build=True, block_ram_blocks=1),
                               builders_fill),
    "adders": (lambda p: AdderArray(32, p), registers_fill),
    "adders, odd": (lambda p: AdderArray(20, p), registers_fill),
}


@pytest.mark.parametrize("planes", [1, 2, 4])
@pytest.mark.parametrize("name", ARRAYS)
def test_bit_serial(name, planes):
    make, fill = ARRAYS[name]
    array = make(planes)
    K = len(array.codes)
    rng = np.random.default_rng([SEED, planes])
    tiles, weights = cases(rng, bitserial_levels(planes), K, 12)
    if isinstance(array, TableArray):
        code, latency = lambda signs: table_code(signs, array.chunks), array.latency
    else:
        code, latency = adder_code, tree_levels(K) + 2
    beats = [[[code(p) for p in column] for column in planes_of(w, planes)] for w in weights]
    run(array, fill, beats, tiles, sums(tiles, weights), latency=latency)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("positions", [16, 20])
def test_mac(positions, bits):
    array = MacArray(positions, bits)
    rng = np.random.default_rng([SEED, bits])
    tiles, weights = cases(rng, mac_levels(bits), positions, 12)
    beats = [[[mac_code(column, bits)] for column in w] for w in weights]
    run(array, registers_fill, beats, tiles, sums(tiles, weights),
        latency=tree_levels(positions) + (bits == 4) + 1)


# What is measured is what is meant: synthesis neither drops nor doubles anything.

def chain_cells(leaves, bound):
    """CCU2C of a tree: a carry in and the sum's bits, two positions each."""
    if leaves == 1:
        return 0
    return sum((bits_for(2 * bound) + 2) // 2 for _ in range(leaves // 2)) \
        + chain_cells(leaves // 2, 2 * bound)


ACCUMULATOR = 17
def shift_cells(positions):
    return (bits_for(positions * 127 * 15) + 2) // 2


CELLS = {
    "tables": (lambda: TableArray(32, 4, family="ecp5"), {
        "CCU2C": chain_cells(32, 508) + shift_cells(128) + ACCUMULATOR,
        "TRELLIS_DPR16X4": 96}),
    "narrow tables": (lambda: TableArray(32, 4, narrow=True, family="ecp5"), {
        "CCU2C": chain_cells(32, 508) + shift_cells(128) + ACCUMULATOR,
        "TRELLIS_DPR16X4": 64, "LUT4": 32 * 2}),
    "block RAM": (lambda: TableArray(32, 4, block_ram_blocks=4, family="ecp5"), {
        "CCU2C": chain_cells(16, 1016) + shift_cells(128) + ACCUMULATOR, "DP16KD": 16}),
    "adders": (lambda: AdderArray(32, 4, family="ecp5"), {
        "CCU2C": chain_cells(32, 127) + shift_cells(32) + ACCUMULATOR}),
    "W1": (lambda: MacArray(32, 1, family="ecp5"), {
        "CCU2C": chain_cells(32, 127) + ACCUMULATOR}),
    "W4": (lambda: MacArray(8, 4, family="ecp5"), {
        "CCU2C": 2 * chain_cells(8, 254) + bits_for(5 * 254 * 8) // 2 + ACCUMULATOR,
        "LUT4": 8 * 2 * 9}),
}


@pytest.mark.parametrize("name", CELLS)
def test_cells(name, tmp_path, monkeypatch):
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path))
    make, expected = CELLS[name]
    netlist = json.loads((synthesize(Bench(make())) / "top.json").read_text())
    cells = Counter(cell["type"] for cell in netlist["modules"]["top"]["cells"].values())
    assert {kind: cells[kind] for kind in expected if kind != "LUT4"} \
        == {kind: n for kind, n in expected.items() if kind != "LUT4"}
    # Besides the products: the folding of the outputs and a few strobes.
    products = expected.get("LUT4", 0)
    assert products <= cells["LUT4"] <= products + 16
