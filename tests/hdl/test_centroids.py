"""The walk over the centroids: what is written where, whatever pauses there are between tiles."""

import os
import random

import pytest
from amaranth.sim import Simulator

from hdl.centroids import CentroidBuilder, CentroidWalk
from hdl.config import EngineConfig
from hdl.parts import WordRAM

SEED = int(os.environ.get("LUTRA_SEED", "1"))


def config(v, b, builders=4):
    return EngineConfig(format="psumbook", v=v, b=b, lanes=32, builders=builders, scale_points=1,
                        activation_bits=8, zero_points=False, n_tile=16, activation_bytes=2048)


@pytest.mark.parametrize("v, b, builders", [(8, 4, 4), (4, 5, 8), (2, 4, 2), (8, 4, 16),
                                           (8, 6, 8)])
def test_walk(v, b, builders):
    engine = config(v, b, builders)
    walk, rng = CentroidWalk(engine), random.Random(SEED)
    groups, depth = len(engine.lane_groups), 2**engine.codebook_word_bits
    served = builders // engine.buffers
    books = [[rng.randbytes(4 * v) for _ in range(depth // 4)] for _ in range(4)]
    tiles = [(rng.randrange(2), rng.randrange(4)) for _ in range(7)]
    # Pauses of every remainder of the entry counter's period.
    pauses = [rng.randrange(2, 3 * 2**b) for _ in tiles]
    seen = []       # (read address, shift, capture, centroid, group, entry, bank, ready) per cycle

    async def bench(ctx):
        def look():
            w = walk.walk
            seen.append((ctx.get(w.read_address), ctx.get(w.step.shift), ctx.get(w.step.capture),
                         ctx.get(w.step.centroid), ctx.get(w.group), ctx.get(w.entry),
                         ctx.get(w.bank), ctx.get(walk.table_ready), ctx.get(walk.active)))

        ctx.set(walk.load, 1)
        for book, words in enumerate(books):
            for i, word in enumerate(words):
                ctx.set(walk.word, book * depth // 4 + i)
                ctx.set(walk.centroids, int.from_bytes(word, "little"))
                await ctx.tick()
        ctx.set(walk.load, 0)
        for (tile, book), pause in zip(tiles, pauses):
            ctx.set(walk.tile, tile)
            ctx.set(walk.codebook, book)
            ctx.set(walk.start, 1)
            look()
            await ctx.tick()
            ctx.set(walk.start, 0)
            while not ctx.get(walk.tile_end):
                look()
                await ctx.tick()
            for _ in range(pause):
                look()
                await ctx.tick()
        for _ in range(60):
            look()
            await ctx.tick()

    simulator = Simulator(walk)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()

    # What builders would do with it: (tile's byte addresses, centroid) of every entry written.
    chunks, held, latency = [[] for _ in range(served)], None, CentroidBuilder.latency(engine)
    made, written, ready = [], [], 0
    for cycle, (_, shift, capture, centroid, group, entry, bank, done, active) in enumerate(seen):
        if capture:
            # Captures what was there before this cycle's byte.
            held = [address for chunk in chunks for address in chunk[-v:]]
        for turn, chunk in enumerate(chunks):
            if shift >> turn & 1:
                chunk.append(seen[cycle - WordRAM.LATENCY][0])
        made.append((held, centroid))
        if group:
            assert active
            addresses, product = made[cycle - latency]
            written.append((bank, group.bit_length() - 1, entry, tuple(addresses), product))
        ready += done
    expected = []
    for number, (tile, book) in enumerate(tiles):
        for g in range(groups):
            first = (tile * groups + g) * v * served
            for i in range(2**b):
                word = books[book][i // 4]
                value = int.from_bytes(bytes(word[4 * t + i % 4] for t in range(v)), "little")
                expected.append((number % 2, g, i, tuple(range(first, first + v * served)), value))
    assert written == expected
    assert ready == len(tiles) and not seen[-1][-1]
