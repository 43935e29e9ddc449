"""Tokens through the bank encoder against the golden model."""

import os

import numpy as np
import pytest
from amaranth.sim import Simulator

import sim.golden
from hdl.bank_encoder import BankEncoder
from hdl.config import TOKEN_BEAT, EngineConfig
from hdl.token_units import ENCODE_CYCLES
from host.formats.sq import SQ
from tests.host.test_sq_activations import random_tokens

SEED = int(os.environ.get("LUTRA_SEED", "1"))


@pytest.mark.parametrize("rows, bank", [(1, 64), (2, 32), (2, 128)])
def test_values_and_their_order(rows, bank):
    engine = EngineConfig(format="sq", bank=bank, lanes=32, rows=rows, activation_bits=16,
                          zero_points=False, n_tile=16, activation_bytes=1024)
    rng = np.random.default_rng(SEED)
    dut = BankEncoder(engine)
    per_bank = bank // TOKEN_BEAT

    def offer(ctx, port, beat, last):
        for element, value in zip(port.payload.elements, beat):
            ctx.set(element, int(value))
        ctx.set(port.payload.last, last)
        ctx.set(port.valid, 1)

    async def show(ctx, config, x, number):
        """All rows of a bank, one after another."""
        for r in range(rows):
            ctx.set(dut.row, r)
            ctx.set(dut.first_beat, number * per_bank)
            ctx.set(dut.k, config.high_count)
            ctx.set(dut.low, config.low - 1)
            ctx.set(dut.static, config.side == "activation")
            ctx.set(dut.show, 1)
            await ctx.tick()
            ctx.set(dut.show, 0)
            for n in range(per_bank):
                at = number * bank + n * TOKEN_BEAT
                offer(ctx, dut.i_shown, x[r, at:at + TOKEN_BEAT], n == per_bank - 1)
                await ctx.tick()
                ctx.set(dut.i_shown.valid, 0)
                for _ in range(rng.integers(0, 3)):
                    await ctx.tick()
            for _ in range(100 + 40 * bank):
                if ctx.get(dut.found):
                    break
                await ctx.tick()
            else:
                pytest.fail("it never finds")

    async def bench(ctx):
        for number in range(10):
            config = SQ(bank=bank, low=int(rng.integers(2, 5)), sparsity=1 - int(
                rng.choice([1, bank // 2, rng.integers(1, bank // 2)])) / bank,
                side=str(rng.choice(["activation", "activation-dynamic"])))
            banks = int(rng.integers(1, engine.token_values // bank + 1))
            x = random_tokens(rng, rows, banks * bank)
            for b in range(banks):
                await show(ctx, config, x, b)
            first = int(rng.integers(0, banks)) * per_bank
            ctx.set(dut.beat, first)
            ctx.set(dut.restart, 1)
            await ctx.tick()
            ctx.set(dut.restart, 0)
            await ctx.tick().repeat(4)
            expected = [sim.golden.bank_values(config, token) for token in x]
            got, wanted = [], []
            for n in range(first, banks * per_bank):
                for r in range(rows):
                    span = slice(n * TOKEN_BEAT, (n + 1) * TOKEN_BEAT)
                    wanted.append(expected[r][span].tolist())
                    offer(ctx, dut.i, x[r, span], 0)
                    for _ in range(ENCODE_CYCLES + int(rng.integers(0, 3))):
                        await ctx.tick()
                        ctx.set(dut.i.valid, 0)
                        await collect(ctx, got)
            for _ in range(10):
                await ctx.tick()
                await collect(ctx, got)
            assert got == wanted, (SEED, number, config)

    pending = []

    async def collect(ctx, got):
        """Values, in the cycle after their strobe."""
        if pending:
            pending.clear()
            got.append([ctx.get(value) for value in dut.values])
        if ctx.get(dut.o.valid):
            pending.append(True)

    sim_ = Simulator(dut)
    sim_.add_clock(1e-9)
    sim_.add_testbench(bench)
    sim_.run()
