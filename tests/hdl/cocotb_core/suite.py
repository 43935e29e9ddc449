"""cocotb tests of a whole core; `tests/hdl/test_core_cocotb.py` builds it and runs them.

All that varies does so at run time.  ``LUTRA_SEED`` (default 1) repeats a run.
"""

import functools
import json
import os
import zlib

import cocotb
import numpy as np

import sim.golden
from hdl.cell import Timing
from hdl.config import MIN_COLUMNS, EngineConfig
from hdl.isa import FIELDS, Instruction, Opcode, Target, assemble
from hdl.layout import COARSE_STEP, FINE_SHIFT
from hdl.registers import Error
from host.activations import arrange
from host.compiler import LayerCode, matmul_program
from host.device import collect, result_beats
from host.pack import pack
from tests.conftest import random_matrix
from tests.hdl.cocotb_core.memory import Bench, Memory, Stalls
from tests.host.test_sq import random_matrix as random_sq

CONFIG = EngineConfig.from_dict(json.loads(os.environ["LUTRA_ENGINE"]))
SEED = int(os.environ.get("LUTRA_SEED", "1"))
BEATS = 4000        # fewer than the addresses, so that there are faults
make = Instruction.make


def core_test(function=None, **options):
    """A cocotb test that gets a bench after reset, with a generator of its own."""
    if function is None:
        return functools.partial(core_test, **options)

    @functools.wraps(function)
    async def wrapper(dut):
        dut._log.info("LUTRA_SEED=%d", SEED)
        rng = np.random.default_rng([SEED, zlib.crc32(function.__name__.encode())])
        bench = Bench(dut, CONFIG, Memory(CONFIG, BEATS, rng))
        await bench.reset()
        await function(bench, rng)
    # `dut` must be the only argument that cocotb sees.
    del wrapper.__wrapped__
    return cocotb.test(timeout_time=2_000, timeout_unit="us", **options)(wrapper)


class Layout:
    """Places programs, layers, activations and results in a memory, one after the other."""

    def __init__(self, memory, start=0):
        self.memory = memory
        self.next = start

    def hold(self, beats):
        at = self.next
        self.next += beats
        if self.next > len(self.memory.data):
            raise MemoryError
        return at

    def program(self, instructions):
        """Store a program with a HALT; its address."""
        words = assemble([*instructions, make("HALT")], CONFIG.beat_bytes)
        data = np.frombuffer(words, np.uint8).reshape(-1, CONFIG.beat_bytes)
        at = self.hold(len(data))
        self.memory.store(at, data)
        return at


class Job:
    """A product of a matrix and tokens: in memory, as a program, and as it must come out.

    Parameters
    ----------
    layout : Layout
    q : quantised matrix
    xq : int [M, K]
    """

    def __init__(self, layout, q, xq):
        self.memory = layout.memory
        self.q = q
        self.xq = xq
        N, _ = q.shape
        passes = 1 if np.abs(xq).max(initial=0) <= 127 else 2
        image = pack(q, CONFIG)
        base = layout.hold(len(image.data))
        self.memory.store(base, image.data, image.side)
        self.code = LayerCode(tiles=[(base + first, steps) for first, steps in image.tiles],
                              k_tiles=image.k_tiles, planes=image.planes, zero=image.zero)
        self.tiles = image.tiles
        self.group_out = sum(result_beats(steps, CONFIG) for _, steps in image.tiles)
        self.groups = []
        planes = [xq] if passes == 1 else [xq >> 8, xq & 255]
        for i in range(0, len(xq), CONFIG.rows):
            data = np.concatenate([
                arrange(p[i:i + CONFIG.rows], image.positions, image.padded_k, CONFIG)
                for p in planes])
            at = layout.hold(len(data))
            self.memory.store(at, data)
            self.groups.append((at, layout.hold(self.group_out)))
        self.program = matmul_program(CONFIG, self.code, self.groups, passes=passes)
        self.N = N

    def check(self):
        """Compare the results in memory with the golden model."""
        expected = sim.golden.integers(self.q, self.xq)
        for g, (_, results) in enumerate(self.groups):
            tokens = slice(g * CONFIG.rows, (g + 1) * CONFIG.rows)
            found = collect(self.memory.load(results, self.group_out), self.tiles, CONFIG, self.N)
            want = expected[tokens]
            assert np.array_equal(found[:len(want)], want), self.describe(found[:len(want)], want)

    def describe(self, found, want):
        bad = np.argwhere(found != want)
        return (f"N, K = {self.q.shape}, {self.q.config}, M = {len(self.xq)}: {len(bad)} results "
                f"differ, the first at {bad[0]}: {found[tuple(bad[0])]}, not {want[tuple(bad[0])]}")


def matrix(rng, N, K, bits=None, group=0, scheme=None):
    """A random matrix; what is not given is drawn, of ``sq`` all."""
    if CONFIG.format == "sq":
        most = min(CONFIG.bank // 2, CONFIG.column_beats_max * CONFIG.high_lanes)
        return random_sq(rng, N, K, bank=CONFIG.bank, low=int(rng.integers(2, 5)),
                         sparsity=1 - int(rng.integers(1, most + 1)) / CONFIG.bank)
    bits = int(rng.integers(1, 9)) if bits is None else bits
    group = [32, 64, 128, None][rng.integers(4)] if group == 0 else group
    scheme = ["symmetric", "asymmetric"][rng.integers(2)] if scheme is None else scheme
    return random_matrix(rng, N, K, bits, group, scheme)


def tokens(rng, M, K, wide=False):
    if wide and CONFIG.activation_bits == 16:
        return rng.integers(-32768, 32768, (M, K))
    return rng.integers(-127, 128, (M, K))


def snapshot(memory, jobs):
    """All beats but those of results."""
    data = list(memory.data)
    for job in jobs:
        for _, at in job.groups:
            data[at:at + job.group_out] = [None] * job.group_out
    return data


async def run(bench, layout, jobs, *, fences=False, impatience=0.0):
    """Run jobs as one program and check results and all other memory."""
    instructions = []
    for job in jobs:
        instructions += job.program
        if fences and bench.rng.random() < 0.5:
            instructions.append(make("FENCE"))
    at = layout.program(instructions)
    before = snapshot(bench.memory, jobs)
    await bench.begin(at)
    error = await bench.finish(impatience=impatience)
    assert error == Error.NONE, Error(error).name
    for job in jobs:
        job.check()
    assert snapshot(bench.memory, jobs) == before, "a write went astray"


async def one_job(bench, rng, q, xq, **options):
    layout = Layout(bench.memory)
    await run(bench, layout, [Job(layout, q, xq)], **options)


async def still_works(bench, rng):
    """A small layer, after something that went wrong."""
    await bench.reset()
    bench.memory.stalls = Stalls()
    K = int(rng.integers(1, 200))
    await one_job(bench, rng, matrix(rng, 9, K, bits=2), tokens(rng, CONFIG.rows, K))


# Results

@core_test
async def random_layers(bench, rng):
    count = 0
    while count < 12:
        N, K, M = (int(rng.integers(1, high)) for high in (70, 700, 2 * CONFIG.rows + 2))
        wide = bool(rng.integers(3) == 0)
        try:
            layout = Layout(bench.memory)
            job = Job(layout, matrix(rng, N, K), tokens(rng, M, K, wide))
            layout.hold(100)        # for the program
        except MemoryError:
            continue
        layout.next -= 100
        bench.memory.stalls = Stalls.draw(rng)
        bench.dut._log.info("N %d K %d M %d wide %d: %s", N, K, M, wide, bench.memory.stalls)
        await run(bench, layout, [job], impatience=0.05)
        count += 1


@core_test
async def every_number_of_columns(bench, rng):
    """From one output to more column steps than the array has stages."""
    depth = Timing(CONFIG).result + 3
    for N in range(1, depth * CONFIG.columns + 1):
        K = int(rng.integers(1, 140))
        scheme = "asymmetric" if N % 2 else "symmetric"
        bench.memory.stalls = Stalls() if N % 3 else Stalls.draw(rng)
        await one_job(bench, rng, matrix(rng, N, K, bits=1 + N % 3 // 2, scheme=scheme),
                      tokens(rng, 1, K))


@core_test
async def tails_of_k(bench, rng):
    for K in (1, 4, 31, 32, 33, 64, 65, 127, 128, 129, 255, 257, 513):
        for scheme in ("symmetric", "asymmetric"):
            bench.memory.stalls = Stalls() if K % 2 else Stalls.draw(rng)
            await one_job(bench, rng, matrix(rng, 9, K, bits=2, scheme=scheme),
                          tokens(rng, CONFIG.rows, K, wide=K % 4 == 1))


@core_test
async def extreme_values(bench, rng):
    """The largest magnitudes that the widths allow for."""
    N, K = 9, 512
    for bits in (1, 8):
        for code in (0, 2**bits - 1):
            for scheme, zero in (("symmetric", None), ("asymmetric", 2**bits - 1 - code)):
                q = matrix(rng, N, K, bits=bits, group=64, scheme=scheme)
                groups = q.scales.shape
                q = type(q).from_codes(
                    codes=np.full((N, K), code, np.uint8), scales=np.ones(groups, np.float32),
                    zeros=None if zero is None else np.full(groups, zero, np.uint8), bits=bits,
                    group_size=64, scheme=scheme)
                assert (q.scales == 65535).all()
                largest = [-127, 127, -32768, 32767]
                for x in largest[2 * (bits == 1):] if scheme == "symmetric" else (127, -32768):
                    await one_job(bench, rng, q, np.full((CONFIG.rows, K), x))
                x = rng.choice(largest, (CONFIG.rows, K))
                await one_job(bench, rng, q, x)


@core_test
async def back_to_back(bench, rng):
    """Several products in one program, and programs one after the other without a reset."""
    for index in range(8):
        bench.memory.stalls = Stalls() if index < 2 else Stalls.draw(rng)
        layout = Layout(bench.memory)
        jobs = []
        for _ in range(5):
            N, K = int(rng.integers(1, 40)), int(rng.integers(1, 260))
            q = matrix(rng, N, K, bits=int(rng.integers(1, 4)))
            jobs.append(Job(layout, q, tokens(rng, int(rng.integers(1, 4)), K,
                                              wide=bool(rng.integers(4) == 0))))
        await run(bench, layout, jobs, fences=bool(index % 2), impatience=0.05 * (index % 3))


@core_test
async def int8_results(bench, rng):
    """The epilogue: parameters in the stream, results as LOAD reads them."""
    C, rows = CONFIG.columns, CONFIG.rows
    for index, N in enumerate((8 * C, 16 * C, 24 * C, 40 * C)):
        bench.memory.stalls = Stalls() if index == 0 else Stalls.draw(rng)
        K, bits, relu = int(rng.integers(1, 300)), int(rng.integers(1, 6)), bool(index % 2)
        q = matrix(rng, N, K, bits=bits)
        xq = tokens(rng, rows, K)
        acc = sim.golden.integers(q, xq)
        # Shifts and factors that spread the results over int8 and a bit beyond.
        peak = np.abs(acc).max() + 1.0
        base = CONFIG.coarse_base
        shift = np.clip((np.log2(peak) - 14 - base) // COARSE_STEP + rng.integers(0, 2, N),
                        0, 3).astype(int)
        coarse = peak / 2.0**(base + COARSE_STEP * shift)
        parameters = {
            "bias": rng.integers(-2**20, 2**20, N), "shift": shift,
            "multiplier": np.clip(2.0**FINE_SHIFT * rng.choice([50, 100, 300], N) / coarse,
                                  2048, 131071).astype(int)}     # smaller ones saturate early
        layout = Layout(bench.memory)
        image = pack(q, CONFIG, parameters)
        base = layout.hold(len(image.data))
        bench.memory.store(base, image.data, image.side)
        code = LayerCode(tiles=[(base + first, steps) for first, steps in image.tiles],
                         k_tiles=image.k_tiles, planes=image.planes, zero=image.zero,
                         requant=True)
        data = arrange(xq, image.positions, image.padded_k, CONFIG)
        at = layout.hold(len(data))
        bench.memory.store(at, data)
        layout.next += -layout.next % rows       # as STORE demands
        parts = [-(-steps * C // CONFIG.load_values) * rows for _, steps in image.tiles]
        results = layout.hold(sum(parts))
        program = layout.program(matmul_program(CONFIG, code, [(at, results)],
                                                target=Target.INT8, relu=relu))
        await bench.begin(program)
        assert await bench.finish() == Error.NONE
        want = sim.golden.requantize(acc, parameters["bias"] * q.bias_unit,
                                     parameters["multiplier"], shift, relu=relu)
        assert len(np.unique(want)) > 5        # not all clipped
        found = []
        beat = results
        for (_, steps), count in zip(image.tiles, parts):
            block = bench.memory.load(beat, count)[:, :CONFIG.load_values]
            block = block.reshape(-1, rows, CONFIG.load_values).transpose(1, 0, 2).reshape(rows, -1)
            found.append(block[:, :steps * C].view(np.int8))
            beat += count
        found = np.concatenate(found, axis=1)[:, :N]
        assert np.array_equal(found, want), (
            f"N {N} K {K} bits {bits} relu {relu}: {found.tolist()}, not {want.tolist()}")


# Errors

async def fails(bench, rng, words, error):
    """A program of encoded instructions must fail with this code, and a reset must cure it."""
    bench.memory.stalls = Stalls.draw(rng)
    data = np.array([list(w.to_bytes(CONFIG.beat_bytes, "little"))
                     for w in [*words, make("HALT").encode()]], np.uint8)
    bench.memory.store(0, data)
    await bench.begin(0)
    found = await bench.finish()
    assert found == error, f"{Error(found).name}, not {error.name}: {[hex(w) for w in words]}"
    # The code stays.
    for _ in range(20):
        await bench.cycle()
    assert bench.get("failed") and bench.get("error") == error


@core_test
async def bad_opcodes(bench, rng):
    for opcode in [0, *range(7, 16)]:
        await fails(bench, rng, [make("FENCE").encode(), opcode], Error.BAD_OPCODE)
    await still_works(bench, rng)
    # Without a reset too: nothing was under way.
    await fails(bench, rng, [0], Error.BAD_OPCODE)
    await one_job(bench, rng, matrix(rng, 3, 5, bits=1), tokens(rng, 1, 5))


@core_test
async def bad_fields(bench, rng):
    lmma, store = make("LMMA", columns=MIN_COLUMNS), make("STORE")
    words = [make("LMMA", columns=n).encode() for n in range(1, MIN_COLUMNS)]
    # Addresses beyond the port and bits without a meaning in any instruction.
    words += [
        make("LMMA", columns=MIN_COLUMNS, address=1 << CONFIG.address_bits).encode(),
        make("STORE", address=1 << CONFIG.address_bits).encode(),
        make("LOAD", address=1 << 39).encode(), make("LOAD", count=2**14 + 1).encode(),
        make("BUILD", local=CONFIG.activation_depth).encode(),
        make("BUILD", local=CONFIG.tile_slots // 2).encode(),
        make("LMMA", columns=MIN_COLUMNS, tiles=2**10 + 1).encode(),
        lmma.encode() | 1 << 127, store.encode() | 1 << 127, make("HALT").encode() | 1 << 110,
        make("FENCE").encode() | 1 << 120,
    ]
    if CONFIG.rows > 1:
        words.append(make("STORE", target=Target.INT8, address=1).encode())
    for word in words:
        await fails(bench, rng, [word], Error.BAD_FIELD)
    await still_works(bench, rng)


@core_test
async def counts_beyond_the_engine(bench, rng):
    for word in (make("LMMA", columns=CONFIG.n_tile + MIN_COLUMNS, first=1),
                 make("BUILD", tiles=2**10 + 1)):
        await fails(bench, rng, [word.encode()], Error.BAD_FIELD)
        await bench.reset()


@core_test
async def memory_faults(bench, rng):
    beyond = BEATS + 5
    await fails(bench, rng, [make("LOAD", address=beyond).encode()], Error.BAD_ADDRESS)
    await still_works(bench, rng)
    await fails(bench, rng, [make("LOAD", count=9, address=BEATS - 8).encode()],
                Error.BAD_ADDRESS)
    await still_works(bench, rng)
    build = make("BUILD").encode()
    await fails(bench, rng, [build, make("LMMA", columns=8, first=1, address=beyond).encode()],
                Error.BAD_ADDRESS)
    await still_works(bench, rng)
    await fails(bench, rng, [build, make("LMMA", columns=8, first=1, last=1, address=0).encode(),
                             make("STORE", address=beyond).encode()],
                Error.BAD_ADDRESS)
    await still_works(bench, rng)
    await bench.begin(beyond)       # the program itself
    assert await bench.finish() == Error.BAD_ADDRESS
    await still_works(bench, rng)


@core_test
async def deadlock_without_tables(bench, rng):
    words = [make("LMMA", columns=8, first=1).encode()]
    await fails(bench, rng, words, Error.DEADLOCK)
    await still_works(bench, rng)
    # One table for two K tiles.
    words = [make("BUILD").encode(), make("LMMA", columns=8, tiles=2, first=1).encode()]
    await fails(bench, rng, words, Error.DEADLOCK)
    await still_works(bench, rng)


@core_test
async def deadlock_without_store(bench, rng):
    words = [make("BUILD").encode(), make("LMMA", columns=8, first=1, last=1).encode()]
    await fails(bench, rng, words, Error.DEADLOCK)
    await still_works(bench, rng)


@core_test
async def deadlock_without_results(bench, rng):
    await fails(bench, rng, [make("STORE", address=100).encode()], Error.DEADLOCK)
    await still_works(bench, rng)
    # A K tile that finishes nothing gives none.
    words = [make("BUILD").encode(), make("LMMA", columns=8, first=1).encode(),
             make("STORE", address=100).encode()]
    await fails(bench, rng, words, Error.DEADLOCK)
    await still_works(bench, rng)


@core_test
async def deadlock_with_full_tables(bench, rng):
    """BUILD that finds no free bank."""
    await fails(bench, rng, [make("BUILD", tiles=3).encode()], Error.DEADLOCK)
    await still_works(bench, rng)


@core_test
async def halt_waits_for_tables(bench, rng):
    """The tables of two K tiles take about twice as long as those of one; nobody uses them."""
    cycles = []
    for tiles in (1, 2):
        await bench.begin(Layout(bench.memory).program([make("BUILD", tiles=tiles)]))
        start = bench.memory.cycle
        assert await bench.finish() == Error.DEADLOCK
        cycles.append(bench.memory.cycle - start)
        await bench.reset()
    assert cycles[1] > 1.5 * cycles[0], cycles


@core_test
async def patience(bench, rng):
    """A memory that is merely slow is no deadlock."""
    bench.memory.stalls = Stalls(latency=(150, 400), outstanding=2)
    await one_job(bench, rng, matrix(rng, 5, 40, bits=1), tokens(rng, 1, 40))
    # Without room for longer than several N tiles take: the memory counts the writes.
    bench.memory.stalls = Stalls(no_room=0.1, room_again=0.002)
    await one_job(bench, rng, matrix(rng, 6 * CONFIG.n_tile * CONFIG.columns, 40, bits=1),
                  tokens(rng, 1, 40))


# Soft reset

async def interrupt(bench, rng, after):
    """Begin a layer and leave it after some cycles."""
    layout = Layout(bench.memory)
    job = Job(layout, matrix(rng, 30, 300, bits=2), tokens(rng, 2, 300))
    await bench.begin(layout.program(job.program))
    for _ in range(after):
        if not bench.get("running"):
            break
        await bench.cycle()


@core_test
async def reset_in_mid_program(bench, rng):
    """Reset while the memory has nothing under way for the core, at many points of a program."""
    for _ in range(20):
        bench.memory.stalls = Stalls.draw(rng)
        await interrupt(bench, rng, int(rng.integers(1, 700)))
        await still_works(bench, rng)


assert set(FIELDS) == set(Opcode)
