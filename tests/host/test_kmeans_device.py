"""K-means matrices on simulated devices: exact for any bits, outliers, M, N and K, and ties."""

import os

import numpy as np
import pytest

import host
import sim.golden
from hdl.config import DeviceConfig, EngineConfig
from hdl.isa import Instruction
from hdl.registers import Space, base_of
from hdl.token_units import VALUE_MAX
from host.device import Device
from host.formats.kmeans import KMeans, KMeansMatrix, step_min
from host.performance import matmul_cycles
from sim.device import SimTransport, default_engine

SEED = int(os.environ.get("LUTRA_SEED", "1"))
SMALL = "&n_tile=64&memory_mib=4"
DEVICES = {
    # name: (URL, bits)
    # Tables in several sections; every buffer serves two builders of some.
    "block RAM, two rows": (f"sim:?format=kmeans&v=2&b=8&lanes=64&rows=2&builders=16"
                            f"&activation_bytes=4096{SMALL}", 4),
    "mixed stores, four weights": (f"sim:?format=kmeans&v=4&b=8&lanes=32&builders=4"
                                   f"&block_ram_blocks=2&activation_bytes=2048{SMALL}", 2),
    "three bits, two columns": (f"sim:?format=kmeans&v=2&b=6&lanes=32&columns=2"
                                f"&activation_bytes=2048{SMALL}", 3),
}


def codebook(rng, bits):
    """Increasing int8 numbers, often at the ends of the range."""
    count = 2**bits
    if rng.random() < 0.3:
        return (np.arange(count) + rng.choice([-127, 128 - count])).astype(np.int8)
    return np.sort(rng.choice(np.arange(-127, 128), count, replace=False)).astype(np.int8)


def random_matrix(rng, N, K, bits, *, activation_bits=None, outliers=None):
    if outliers is None:
        outliers = float(rng.choice([0, 0.005, 0.05, 0.5, rng.random() / 2]))
    config = KMeans(bits=bits, activation_bits=activation_bits or int(rng.integers(2, 5)),
                    outliers=outliers)
    step = step_min(K) + rng.choice([0, 0.03, rng.random()])
    return KMeansMatrix(config, (N, K), rng.integers(0, 2**bits, (N, K)).astype(np.uint8),
                        codebook(rng, bits), rng.random(N).astype(np.float32),
                        codebook(rng, config.activation_bits), float(step))


def tokens(rng, M, K):
    """int16 tokens: anything, few values, one huge element, one value, nothing."""
    x = rng.integers(-32767, 32768, (M, K))
    for m in range(M):
        kind = rng.integers(6)
        if kind == 1:
            x[m] = rng.integers(-3, 4, K)
        elif kind == 2:
            x[m] = rng.integers(-32, 33, K)
            x[m, rng.integers(K)] = rng.choice([-32768, 32767])
        elif kind == 3:
            x[m] = rng.choice([-32768, -1, 1, 32767])
        elif kind == 4:
            x[m] = 0
        elif kind == 5:
            x[m] *= rng.random(K) < 3 / K
    return x


def open_device(request):
    """A device of :data:`DEVICES` and the bits of its weights."""
    url, bits = DEVICES[request.param]
    with host.open(url) as opened:
        yield opened, bits
        assert opened.generation == 0


device = pytest.fixture(scope="module", params=DEVICES)(open_device)


@pytest.mark.parametrize("seed", range(SEED, SEED + 20))
def test_random_products(device, seed):
    opened, bits = device
    rng = np.random.default_rng(seed)
    most = opened.engine.token_values
    N, K = (int(rng.choice([1, rng.integers(1, 20), rng.integers(1, limit + 1)]))
            for limit in (200, most))
    M = int(rng.integers(1, 4))
    q = random_matrix(rng, N, K, bits)
    x = tokens(rng, M, K)
    layer = opened.load(q)
    # Beats late, and no room for results, at random.
    opened.transport.model.stalls(seed, int(rng.integers(200)), int(rng.integers(200)))
    assert np.array_equal(layer.integers(x), sim.golden.integers(q, x)), (seed, N, K, M, q.config)
    reals = (rng.standard_t(4, (M, K)) * 10.0**rng.integers(-30, 30)).astype(np.float32)
    bias = rng.standard_normal(N)
    with_bias = opened.load(q, bias=bias)
    assert np.array_equal(with_bias(reals), sim.golden.matmul(q, reals, bias)), seed
    opened.transport.model.stalls(0, 0, 0)
    layer.free()
    with_bias.free()


def test_largest_sums(device):
    """Everything as large as it can be: no width is too small."""
    opened, bits = device
    rng = np.random.default_rng(SEED)
    K = opened.engine.token_values
    book = (np.arange(2**bits) + 128 - 2**bits).astype(np.int8)
    for outliers in (0.0, 0.5):
        config = KMeans(bits=bits, activation_bits=4, outliers=outliers)
        q = KMeansMatrix(config, (9, K), np.full((9, K), 2**bits - 1, np.uint8), book,
                         np.ones(9, np.float32), (np.arange(16) + 112).astype(np.int8),
                         step_min(K))
        x = np.zeros((3, K), np.int64)
        x[0] = 32767
        x[1, rng.integers(K)] = -32768      # the largest value, if it is an outlier
        x[2] = -32768
        got = opened.load(q).integers(x)
        assert np.array_equal(got, sim.golden.integers(q, x))
        if outliers:
            assert (np.abs(got) > 127 * (VALUE_MAX // 2)).any()


def test_zero_tokens_give_the_bias(device):
    opened, bits = device
    rng = np.random.default_rng(SEED)
    q = random_matrix(rng, 30, 100, bits, outliers=0.05)
    bias = rng.standard_normal(30).astype(np.float32)
    y = opened.load(q, bias=bias)(np.zeros((3, 100), np.float32))
    assert np.array_equal(y, np.broadcast_to(bias, (3, 30)))


def test_outliers_are_as_exact_as_they_are(device):
    """One element a thousand times the others, and outliers in one tile, cost no accuracy."""
    opened, bits = device
    rng = np.random.default_rng(SEED)
    K = opened.engine.token_values
    q = random_matrix(rng, 16, K, bits, activation_bits=4, outliers=0.02)
    x = rng.standard_normal((2, K)).astype(np.float32)
    x[0, K // 3] = 1000
    first = slice(0, min(K, opened.engine.tile_k), 3)
    x[1, first] = 50 * rng.standard_normal(len(range(K)[first]))
    assert np.array_equal(opened.load(q)(x), sim.golden.matmul(q, x))


def test_cycles_do_not_depend_on_where_outliers_lie(device):
    """All in one K tile, the worst case of compensation beside the main path, or spread."""
    opened, bits = device
    rng = np.random.default_rng(SEED)
    K = opened.engine.token_values
    q = random_matrix(rng, 60, K, bits, outliers=0.04)
    layer, cycles = opened.load(q), set()
    for places in (np.arange(K), rng.permutation(K)):
        x = rng.integers(-100, 101, (1, K))
        x[0, places[:q.outlier_count]] = 30000
        x[0, places[q.outlier_count:2 * q.outlier_count]] = -30000
        assert np.array_equal(layer.integers(x), sim.golden.integers(q, x))
        cycles.add(layer.stats["cycles"])
    assert len(cycles) == 1


def test_tokens_longer_than_the_buffers_are_refused(device):
    opened, bits = device
    K = opened.engine.token_values + 1
    q = random_matrix(np.random.default_rng(0), 8, K, bits)
    layer = opened.load(q)
    with pytest.raises(host.CapacityError, match=f"room for {K - 1} elements, and it has {K}"):
        layer.integers(np.ones((1, K), int))


def test_engine_without_epilogue():
    """As small ones are: exact, and says what chains need."""
    rng = np.random.default_rng(SEED)
    q, x = random_matrix(rng, 16, 16, 4), tokens(rng, 3, 16)
    with host.open("sim:?format=kmeans&lanes=16&builders=4&epilogue=0&activation_bytes=1024"
                   f"{SMALL}") as opened:
        assert np.array_equal(opened.load(q).integers(x), sim.golden.integers(q, x))
        layers = [opened.load(q, out="int8", out_scale=1.0), opened.load(q)]
        with pytest.raises(host.CapacityError, match="without the epilogue"):
            opened.chain(layers)(np.ones((1, 16), np.float32))
        for instruction in (
                Instruction.make("LOAD", buffer=3), Instruction.make("LOAD", buffer=4),
                Instruction.make("LOAD", indexes=1), Instruction.make("LOAD", pairs=1),
                Instruction.make("LOAD", length=2), Instruction.make("STORE", high=1),
                Instruction.make("LOAD", norm=1), Instruction.make("TOPK", length=8, norm=1),
                Instruction.make("TOPK", length=8, pairs=1),
                Instruction.make("TOPK", length=8, static=1)):
            with pytest.raises(host.ProgramError, match="BAD_FIELD"):
                opened.run([instruction])
        assert np.array_equal(opened.load(q).integers(x), sim.golden.integers(q, x))


def test_programs_that_make_no_sense_end(device):
    """Tokens that no TOPK showed, more outliers than elements, entries that there are not."""
    opened, bits = device
    make = Instruction.make
    engine = opened.engine
    tile = engine.tile_beats
    with opened.memory.hold(64) as base:
        with pytest.raises(host.ProgramError, match="tables that no LMMA has used"):
            opened.run([make("LOAD", count=tile, address=base), make("BUILD")])
        most = engine.token_values // 2
        for length in (1, 9, engine.token_values // 8):
            opened.run([make("TOPK", length=length, k=most - 1, address=base)])
        opened.run([make("LOAD", buffer=2, count=32, address=base)])
        with pytest.raises(host.ProgramError, match="BAD_FIELD"):
            opened.run([make("LOAD", buffer=5, address=base)])
        with pytest.raises(host.ProgramError, match="BAD_ADDRESS"):
            opened.run([make("TOPK", length=engine.token_values, k=1,
                             address=2**engine.address_bits - 1)])
    q = random_matrix(np.random.default_rng(0), 8, 40, bits)
    x = np.arange(40)[None]
    assert np.array_equal(opened.load(q).integers(x), sim.golden.integers(q, x))


def test_cycles_are_those_of_the_model(device):
    opened, bits = device
    rng = np.random.default_rng(0)
    for N, K, M, outliers in ((64, 500, 2, 0.005), (200, 300, 1, 0.05), (40, 250, 3, 0)):
        q = random_matrix(rng, N, K, bits, outliers=outliers)
        layer = opened.load(q)
        layer.integers(rng.integers(-32767, 32768, (M, K)))
        assert layer.stats["cycles"] == pytest.approx(matmul_cycles(opened.engine, q, M), rel=0.06)


def test_memory_without_sidebands():
    """Memory in the device, reached through the link alone."""
    engine = EngineConfig(**default_engine("kmeans", lanes=32, n_tile=64, activation_bytes=2048))
    config = DeviceConfig(engine=engine.replace(address_bits=11), memory="onchip",
                          memory_beats=2048)
    rng = np.random.default_rng(SEED)
    q = random_matrix(rng, 20, 150, 4)
    x = tokens(rng, 2, 150)
    with Device(SimTransport(config)) as opened:
        assert np.array_equal(opened.load(q).integers(x), sim.golden.integers(q, x))
        with pytest.raises(host.ArgumentError, match="no such address"):
            opened.transport.read(base_of(Space.SIDEBAND), 4)


def test_programs_that_leave_something_behind(device):
    """A table that no LMMA uses is an error, half of a slot is forgotten."""
    opened, bits = device
    rng = np.random.default_rng(SEED)
    q, x = random_matrix(rng, 16, 100, bits), tokens(rng, 3, 100)
    layer = opened.load(q)
    with pytest.raises(host.ProgramError, match="tables that no LMMA has used"):
        opened.run([Instruction.make("BUILD")])
    assert np.array_equal(layer.integers(x), sim.golden.integers(q, x))
    opened.run([Instruction.make("LOAD", count=1)])
    assert np.array_equal(layer.integers(x), sim.golden.integers(q, x))


def test_adapting_keeps_what_was_asked_for():
    rng = np.random.default_rng(SEED)
    url = f"sim:?format=kmeans&lanes=16&builders=4&activation_bytes=1024{SMALL}"
    with host.open(url) as opened:
        for bits in (4, 3):
            q, x = random_matrix(rng, 8, 32, bits), tokens(rng, 1, 32)
            assert np.array_equal(opened.load(q).integers(x), sim.golden.integers(q, x))
            assert opened.engine.lanes == 16 and opened.engine.b == 2 * bits


def test_other_bits_are_another_engine():
    legal = dict(format="kmeans", v=2, b=8, lanes=32, activation_bits=16, zero_points=False,
                 scale_points=1, epilogue=False)
    EngineConfig(**legal)
    for fields, message in (({"v": 8}, "v must be one of 2, 4, not 8"),
                            ({"v": 4, "b": 6}, "b must be v times an index .* 8 for v=4, not 6"),
                            ({"activation_bits": 8}, "activation_bits must be one of 16"),
                            ({"scale_points": 2}, "scale_points must be one of 1"),
                            ({"builders": 2}, "builders must be one of 4, 8, 16")):
        with pytest.raises(host.ConfigError, match=message):
            EngineConfig(**{**legal, **fields})
