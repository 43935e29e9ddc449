"""Tokens through the encoder against the golden model."""

import os

import numpy as np
import pytest
from amaranth.sim import Simulator

import sim.golden
from hdl.config import TOKEN_BEAT, EngineConfig
from hdl.encoder import Encoder
from hdl.token_units import CENTROID_BITS, ENCODE_CYCLES, GAIN_WORD
from host.formats.kmeans import KMeans, KMeansMatrix, step_min
from host.pack import pack

SEED = int(os.environ.get("LUTRA_SEED", "1"))


def config(rows):
    return EngineConfig(format="kmeans", v=2, b=8, lanes=32, rows=rows, builders=4, scale_points=1,
                        zero_points=False, epilogue=False, n_tile=16, activation_bytes=512)


def matrix(rng, K):
    """A matrix of one row; only its codebook and its outliers matter here."""
    book = np.sort(rng.choice(np.arange(-127, 128), 16, replace=False)).astype(np.int8)
    outliers = float(rng.choice([0, 0.02, 0.5]))
    return KMeansMatrix(KMeans(outliers=outliers), (1, K), np.zeros((1, K), np.uint8), book,
                        np.ones(1, np.float32), book, step_min(K) + rng.choice([0, 0.03, 2]))


@pytest.mark.parametrize("rows", [1, 2])
def test_values_and_their_order(rows):
    engine, rng = config(rows), np.random.default_rng(SEED)
    dut = Encoder(engine)

    async def load_codebook(ctx, q):
        book = pack(q, engine).data[64:64 + GAIN_WORD + 1, :4].view("<u4")[:, 0]
        assert book[0] & 255 == int(q.activation_centroids[0]) % 2**CENTROID_BITS
        ctx.set(dut.codebook.valid, 1)
        for word, value in enumerate(book):
            ctx.set(dut.codebook.payload.word, word)
            ctx.set(dut.codebook.payload.data, int(value) % 2**28)
            await ctx.tick()
        ctx.set(dut.codebook.valid, 0)

    def offer(ctx, port, beat, last):
        for element, value in zip(port.payload.elements, beat):
            ctx.set(element, int(value))
        ctx.set(port.payload.last, last)
        ctx.set(port.valid, 1)

    async def bench(ctx):
        for number in range(12):
            K = int(rng.integers(1, engine.token_values + 1))
            beats = -(-K // TOKEN_BEAT)
            q = matrix(rng, K)
            x = rng.integers(-32768, 32768, (rows, K)) >> rng.integers(0, 12, (rows, 1))
            if number % 4 == 0:
                x[0] = (0, 5, -32768)[number // 4 % 3]
            await load_codebook(ctx, q)
            shown = np.zeros((rows, beats * TOKEN_BEAT), np.int64)
            shown[:, :K] = x
            for r in range(rows):
                ctx.set(dut.row, r)
                ctx.set(dut.length, K - 1)
                ctx.set(dut.k, q.outlier_count)
                ctx.set(dut.show, 1)
                await ctx.tick()
                ctx.set(dut.show, 0)
                for n, beat in enumerate(shown[r].reshape(-1, TOKEN_BEAT)):
                    offer(ctx, dut.i_shown, beat, n == beats - 1)
                    await ctx.tick()
                    ctx.set(dut.i_shown.valid, 0)
                    await ctx.tick().repeat(int(rng.integers(1, 3)))
                await ctx.tick().until(dut.found)
            # From any beat on, of all rows, and one beyond the token where the buffer has it.
            first = int(rng.integers(0, beats))
            after = min((beats + 1) * TOKEN_BEAT, engine.token_values)
            loaded = rng.integers(-32768, 32768, (rows, after))
            loaded[:, :K] = x
            ctx.set(dut.beat, first)
            ctx.set(dut.restart, 1)
            await ctx.tick()
            ctx.set(dut.restart, 0)
            await ctx.tick().repeat(5)
            words = loaded.reshape(rows, -1, TOKEN_BEAT)[:, first:].transpose(1, 0, 2)
            words = words.reshape(-1, TOKEN_BEAT)
            expected = np.zeros(loaded.shape, np.int64)
            expected[:, :K] = [sim.golden.token_values(q, token)[0] for token in x]
            expected = expected.reshape(rows, -1, TOKEN_BEAT)[:, first:].transpose(1, 0, 2)
            found, ends, due = [], [], False
            pace = ENCODE_CYCLES + int(rng.integers(0, 2))
            for cycle in range(len(words) * pace + dut.latency + 4):
                n, phase = divmod(cycle, pace)
                ctx.set(dut.i.valid, 0)
                if phase == 0 and n < len(words):
                    offer(ctx, dut.i, words[n], n == len(words) - 1)
                if due:
                    found.append([ctx.get(value) for value in dut.values])
                due = ctx.get(dut.o.valid)
                if due:
                    ends.append(ctx.get(dut.o.payload.last))
                await ctx.tick()
            assert found == expected.reshape(-1, TOKEN_BEAT).tolist(), (number, SEED)
            assert ends == [0] * (len(words) - 1) + [1]

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
