"""cocotb tests of the outlier detectors; `tests/hdl/topk/test_topk.py` builds them.

``LUTRA_SEED`` repeats a run.
"""

import os

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge

from hdl.topk.leaves import LANES

SEED = int(os.environ.get("LUTRA_SEED", "1"))
DEPTH = int(os.environ["LUTRA_DEPTH"])
STREAMS = int(os.environ["LUTRA_STREAMS"])
MOST = int(os.environ["LUTRA_MOST"])        # outliers of a side
PACE = int(os.environ["LUTRA_PACE"])        # cycles between beats, at least
ONE_SIDED = MOST == DEPTH                   # Orizuru with one tree
TREES = MOST == DEPTH // 2 or ONE_SIDED     # Orizuru, that is


def outliers(x, k):
    """By sorting: the k largest, then those of the k smallest that are not among them.

    Trees find the first of a side first, lists push out the last first.
    """
    index, order = np.arange(len(x)), 1 if TREES else -1
    largest = np.lexsort((index, -x))[:k][::order]
    if ONE_SIDED:
        return [*largest]
    smallest = np.lexsort((index ^ 1, x))[:k][::order]
    return [*largest, *(i for i in smallest if i not in set(largest))]


def streams(rng, count):
    """Elements and k: random, with many ties, equal, zero, sorted, reversed, extreme."""
    for number in range(count):
        K = DEPTH if number % 10 == 0 else int(rng.integers(1, DEPTH + 1))
        anything = rng.integers(-2**15, 2**15, K)
        x = (anything, rng.integers(-2, 3, K), np.full(K, anything[0]), np.zeros(K, np.int64),
             np.sort(anything), np.sort(anything)[::-1],
             rng.choice([-2**15, 0, 2**15 - 1], K))[number % 7]
        most = K if ONE_SIDED else min(K // 2, MOST)
        yield x, int(rng.choice([0, 1, most, rng.integers(0, most + 1), min(most, 20)]))


async def find(dut, rng, x, k):
    """What the detector gives out, how many comparisons it made, in how many cycles."""
    K = len(x)
    beats = -(-K // LANES)
    padded = rng.integers(-2**15, 2**15, beats * LANES)
    padded[:K] = x
    words = [int.from_bytes(row.astype("<i2").tobytes(), "little")
             for row in padded.reshape(-1, LANES)]
    if TREES:
        dut.levels.value = (beats - 1).bit_length()
    dut.length.value = K
    dut.k.value = k
    dut.start.value = 1
    await FallingEdge(dut.clk)
    dut.start.value = 0
    found, compares, cycles, pace = [], 0, 0, rng.choice([0.3, 1.0])
    free = 0        # the cycle from which a beat may come
    while not dut.done.value:
        valid = bool(words) and cycles >= free and rng.random() < pace
        free = cycles + PACE if valid else free
        dut.i__valid.value = int(valid)
        dut.i__payload.value = words.pop(0) if valid else int(rng.integers(0, 2**60))
        await FallingEdge(dut.clk)
        cycles += 1
        compares += int(dut.compares.value) if TREES else 0
        if dut.o__valid.value:
            out = int(dut.o__payload.value)
            bits = (DEPTH - 1).bit_length()
            value = out >> bits
            found.append((out % 2**bits, value - 2**16 * (value >> 15)))
        assert cycles < 40 * DEPTH + 1000, "it never ends"
    return found, compares, cycles


@cocotb.test()
async def finds_what_sorting_finds(dut):
    rng = np.random.default_rng(SEED)
    Clock(dut.clk, 10, unit="ns").start()
    dut.rst.value = 1
    for pin in (dut.start, dut.i__valid, dut.i__payload, dut.length, dut.k,
                *([dut.levels] if TREES else [])):
        pin.value = 0
    await FallingEdge(dut.clk)
    await FallingEdge(dut.clk)
    dut.rst.value = 0
    for number, (x, k) in enumerate(streams(rng, STREAMS)):
        found, compares, _ = await find(dut, rng, x, k)
        expected = [(int(i), int(x[i])) for i in outliers(x, k)]
        assert found == expected, f"stream {number} of seed {SEED}: {len(x)} elements, k={k}"
        leaves = 2 ** (len(x) - 1).bit_length()
        assert not TREES or compares <= 1.5 * leaves + 2 * k * (leaves - 1).bit_length(), number


@cocotb.test(skip=DEPTH < 4096 or not TREES)
async def compares_as_often_as_the_paper_says(dut):
    rng = np.random.default_rng(SEED)
    Clock(dut.clk, 10, unit="ns").start()
    for x in (rng.standard_t(4, 4096) * 1000, rng.integers(-3, 4, 4096), np.zeros(4096),
              np.arange(4096)):
        x = np.clip(x, -2**15, 2**15 - 1).astype(np.int64)
        found, compares, cycles = await find(dut, rng, x, 20)
        assert [i for i, _ in found] == outliers(x, 20)
        # All matches of both trees, but those of leaves once; then 12 levels for each of 40.
        assert 4096 // 2 + 2 * (4096 // 2 - 1) <= compares <= 6624, compares
        dut._log.info("%d comparisons in %d cycles", compares, cycles)
