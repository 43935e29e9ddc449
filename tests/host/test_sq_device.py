"""SQ matrices on simulated devices: exact for any bank, sparsity, low bits, M, N and K."""

import os

import numpy as np
import pytest

import host
import sim.golden
from hdl.config import EngineConfig
from hdl.isa import Instruction
from hdl.registers import Space, base_of
from host.formats.sq import SQ, SQMatrix
from host.pack import pack
from host.performance import matmul_cycles
from tests.conftest import check_int8_chain
from tests.host.test_sq import random_matrix

SEED = int(os.environ.get("LUTRA_SEED", "1"))
SMALL = "&n_tile=64&activation_bytes=1024&memory_mib=4"
DEVICES = {
    "two rows": f"sim:?format=sq&bank=64&high_lanes=2&turns=4&lanes=64&rows=2{SMALL}",
    "two columns": f"sim:?format=sq&bank=32&high_lanes=1&turns=2&lanes=32&columns=2"
                   f"&builders=2{SMALL}",
    # Banks of one tile that lie in their RAMs in different orders.
    "some block RAM": f"sim:?format=sq&bank=32&high_lanes=4&turns=4&lanes=32&builders=2"
                      f"&block_ram_blocks=1{SMALL}",
    "sentinels": f"sim:?format=sq&bank=64&high_lanes=2&turns=4&lanes=64&rows=2&sentinels=1{SMALL}",
    "sentinels, two columns": f"sim:?format=sq&bank=32&high_lanes=1&turns=2&lanes=32&columns=2"
                              f"&builders=2&block_ram_blocks=1&sentinels=1{SMALL}",
    # Banks that the sparse part is ahead of.
    "block RAM": f"sim:?format=sq&bank=128&high_lanes=8&lanes=32&block_ram_blocks=4{SMALL}",
}


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    with host.open(DEVICES[request.param]) as opened:
        yield opened


def fields(rng, engine):
    """A configuration that an engine can run."""
    most = min(engine.bank // 2, engine.column_beats_max * engine.high_lanes)
    count = int(rng.choice([1, most, rng.integers(1, most + 1)]))
    return {"bank": engine.bank, "sparsity": 1 - count / engine.bank,
            "low": int(rng.integers(2, 5)), "storage": str(rng.choice(["sentinel", "mask"]))}


@pytest.mark.parametrize("seed", range(SEED, SEED + 25))
def test_random_products(device, seed):
    rng = np.random.default_rng(seed)
    N, K = (int(rng.choice([1, rng.integers(1, 20), rng.integers(1, most)])) for most in (300, 700))
    M = int(rng.integers(1, 6))
    q = random_matrix(rng, N, K, **fields(rng, device.engine))
    x = rng.integers(-127, 128, (M, K))
    x[0] = rng.choice([-127, 0, 127])
    layer = device.load(q)
    stalls = device.transport.model.stalls
    stalls(seed, int(rng.integers(200)), int(rng.integers(200)))
    assert np.array_equal(layer.integers(x), sim.golden.integers(q, x)), (seed, N, K, M, q.config)
    stalls(0, 0, 0)
    tokens = rng.standard_normal((M, K)).astype(np.float32)
    assert np.array_equal(layer(tokens), sim.golden.matmul(q, tokens))
    layer.free()


def test_largest_sums(device):
    """Every product at its largest: no width is too small."""
    engine = device.engine
    count = min(engine.bank // 2, engine.column_beats_max * engine.high_lanes)
    config = SQ(bank=engine.bank, sparsity=1 - count / engine.bank)
    K = 4 * engine.tile_k
    banks = config.banks(K)
    low = np.full((9, banks, engine.bank), 7, np.int8)
    low[:, :, :count] = config.sentinel
    q = SQMatrix(config, (9, K), low.reshape(9, -1),
                 np.full((9, banks, count), 127, np.int8), np.full((9, banks), 65535, np.uint16),
                 np.full((9, banks), 7, np.uint8), np.ones(9, np.float32))
    x = np.array([[127] * K, [-127] * K])
    layer = device.load(q)
    assert np.array_equal(layer.integers(x), sim.golden.integers(q, x))
    # The dense part alone, as large as it can be beside sentinels.
    low = np.where(low == config.sentinel, config.sentinel, -7)
    q = SQMatrix(config, (9, K), low.reshape(9, -1).astype(np.int8),
                 np.zeros((9, banks, count), np.int8), np.full((9, banks), 65535, np.uint16),
                 np.full((9, banks), 7, np.uint8), np.ones(9, np.float32))
    assert np.array_equal(device.load(q).integers(x), sim.golden.integers(q, x))


def test_chain_with_requantisation(device):
    rng = np.random.default_rng(SEED)
    first = random_matrix(rng, 40, 70, **fields(rng, device.engine))
    second = random_matrix(rng, 12, 40, **fields(rng, device.engine))
    check_int8_chain(device, rng, first, second)


def test_chain_of_unlike_layers():
    """One engine that suits both, whatever each would like best; it stays."""
    rng = np.random.default_rng(SEED)
    first, second = (random_matrix(rng, *shape, bank=64, low=low, sparsity=sparsity)
                     for shape, low, sparsity in (((40, 70), 2, 0.5), ((12, 40), 4, 0.9375)))
    with host.open(f"sim:?format=sq&lanes=32{SMALL}") as device:
        chain = check_int8_chain(device, rng, first, second)
        before = device.generation
        x = rng.standard_normal((2, 70)).astype(np.float32)
        assert np.array_equal(chain(x), sim.golden.chain(chain, x))
        assert device.generation == before


def test_an_engine_that_cannot_hold_the_matrix_packs_nothing(device):
    bank = 32 if device.engine.bank == 64 else 64
    q = random_matrix(np.random.default_rng(0), 5, 40, bank=bank)
    with pytest.raises(host.ConfigError, match=f"must have bank={bank}, not bank="):
        pack(q, device.engine)


def test_cycles_are_those_of_the_model(device):
    rng = np.random.default_rng(0)
    engine = device.engine
    for N, K, M, count in ((300, 500, 2, engine.high_lanes), (300, 300, 1, 4 * engine.high_lanes)):
        q = random_matrix(rng, N, K, bank=engine.bank, sparsity=1 - count / engine.bank, low=2)
        layer = device.load(q)
        layer.integers(rng.integers(-127, 128, (M, K)))
        assert layer.stats["cycles"] == pytest.approx(matmul_cycles(engine, q, M), rel=0.06)
        assert layer.stats["peak_macs_per_cycle"] == engine.tile_k * engine.cells / 2


def test_columns_of_too_few_or_too_many_beats_are_refused(device):
    legal = range(device.engine.column_beats, device.engine.column_beats_max + 1)
    for planes in range(1, 9):
        program = [Instruction.make("LMMA", planes=planes, columns=8, zero=1)]
        # Those that can be wait for tables that nobody builds.
        with pytest.raises(host.ProgramError,
                           match="DEADLOCK" if planes in legal else "BAD_FIELD"):
            device.run(program)


def test_a_matrix_without_zero_points_is_refused(device):
    planes = device.engine.column_beats
    with pytest.raises(host.ProgramError, match="BAD_FIELD"):
        device.run([Instruction.make("LMMA", planes=planes, columns=8)])


def test_sidebands_over_the_link(device, monkeypatch):
    """As many words as they have: those in between are written, and go nowhere."""
    rng = np.random.default_rng(SEED)
    engine = device.engine
    q = random_matrix(rng, 11, 150, bank=engine.bank, sparsity=1 - 2 / engine.bank)
    monkeypatch.setattr(device.transport, "direct", False)
    sides = device.transport.model.side
    layer = device.load(q)
    image, at = layer._image, layer._code.tiles[0][0]
    assert np.array_equal(sides[at:at + len(image.side)], image.side)
    x = rng.integers(-127, 128, (2, 150))
    assert np.array_equal(layer.integers(x), sim.golden.integers(q, x))
    # And back: what is in between reads as zero.
    words = engine.side_stride // 4
    raw = device.transport.read(base_of(Space.SIDEBAND) + at * engine.side_stride, 4 * words * 3)
    rows = np.frombuffer(raw, np.uint32).reshape(3, words)
    assert np.array_equal(rows[:, :engine.side_words], image.side[:3])
    assert not rows[:, engine.side_words:].any()


def test_wide_activations_are_refused(device):
    layer = device.load(random_matrix(np.random.default_rng(0), 8, 16, bank=device.engine.bank,
                                      sparsity=1 - 2 / device.engine.bank))
    with pytest.raises(host.ArgumentError, match=r"sq .* int8"):
        layer.integers(np.full((1, 16), 300))
    assert layer.integers(np.zeros((1, 16), int)).shape == (1, 8)


def test_other_banks_need_another_engine(device):
    bank = 64 if device.engine.bank != 64 else 32
    q = random_matrix(np.random.default_rng(0), 8, 16, bank=bank)
    with pytest.raises(host.DeviceError, match=rf"built with bank=\d+; .* need bank={bank}"):
        device.load(q)


def test_more_high_weights_than_beats_bring():
    with host.open(DEVICES["two columns"]) as device:
        q = random_matrix(np.random.default_rng(0), 8, 16, bank=32, sparsity=0.5)
        with pytest.raises(host.DeviceError, match=r"high_lanes=1; .* high_lanes=2 or 4 or 8"):
            device.load(q)


def test_every_place_is_found_from_sentinels():
    """High weights in one byte, in eight, at both ends: wherever they lie."""
    rng = np.random.default_rng(SEED)
    masks = [range(8), range(56, 64), range(0, 64, 8), range(7, 64, 8), [0, *range(56, 63)],
             [0, 1, 2, 3, 60, 61, 62, 63], [7, 8, 15, 16, 23, 24, 31, 32]]
    masks += [rng.choice(64, 8, replace=False) for _ in range(200)]
    N, banks = len(masks), 5
    low = rng.integers(-7, 8, (N, banks * 64))
    mask = np.zeros((N, banks, 64), bool)
    for t in range(banks):
        for row, places in enumerate(masks):
            mask[(row + 3 * t) % N, t, list(places)] = True
    q = host.from_codes(
        "sq", low=low, mask=mask.reshape(N, -1), high=rng.integers(-127, 128, (N, banks, 8)),
        scales=rng.random((N, banks)) + 0.1, exponents=rng.integers(-4, 4, (N, banks)), bank=64,
        sparsity=0.875)
    x = rng.integers(-127, 128, (3, banks * 64))
    with host.open(DEVICES["sentinels"]) as device:
        layer = device.load(q)
        for seed in range(3):
            device.transport.model.stalls(seed, 100 * seed, 0)
            assert np.array_equal(layer.integers(x), sim.golden.integers(q, x))


def test_more_sentinels_than_beats_find():
    with host.open(DEVICES["sentinels"]) as device:
        q = random_matrix(np.random.default_rng(0), 8, 16, bank=64, sparsity=0.75)
        with pytest.raises(host.DeviceError, match=r"sentinels=True; .* need sentinels=False"):
            device.load(q)
    with host.open(DEVICES["sentinels, two columns"]) as device:
        q = random_matrix(np.random.default_rng(0), 8, 16, bank=32, sparsity=0.75)
        with pytest.raises(host.DeviceError, match=r"at most 4 high .* 8: .* high_lanes=2 or sent"):
            device.load(q)
        with pytest.raises(host.ConfigError, match=r"at most 4 high .* 8: .* high_lanes=2 or sent"):
            pack(q, device.engine)
        layer = device.load(random_matrix(np.random.default_rng(0), 8, 16, bank=32))
        assert layer.integers(np.zeros((1, 16), int)).shape == (1, 8)


@pytest.mark.parametrize("low, count", [(2, 5), (2, 8), (3, 8), (4, 4), (4, 8)])
def test_engines_with_sentinels_keep_to_two_lanes(low, count):
    q = random_matrix(np.random.default_rng(0), 8, 16, bank=64, low=low, sparsity=1 - count / 64)
    with host.open(DEVICES["sentinels"].replace("high_lanes=2&", "").replace("rows=2", "rows=1")
                   ) as device:
        layer = device.load(q)
        assert device.engine.sentinels and device.engine.high_lanes <= 2
        assert np.array_equal(layer.integers(np.ones((1, 16), int)),
                              sim.golden.integers(q, np.ones((1, 16), int)))


def test_steps_that_sentinels_do_not_divide_take_more_beats():
    """A sentinel of two bits counts for a quarter of the largest high step."""
    engine = EngineConfig(format="sq", bank=64, high_lanes=1, lanes=64, sentinels=True,
                          activation_bits=8)
    low = np.zeros((8, 64), int)
    low[:, 5] = -2
    for exponent, beats in ((-4, 2), (1, 2), (2, 3), (3, 4)):
        q = host.from_codes("sq", low=low, high=np.full((8, 1, 1), 99), scales=np.ones((8, 1)),
                            exponents=np.full((8, 1), exponent), bank=64, sparsity=1 - 1 / 64,
                            low_bits=2)
        assert pack(q, engine).planes == beats
        assert pack(q, engine.replace(sentinels=False)).planes == 2


def test_any_format_becomes_it_and_it_any_other():
    rng = np.random.default_rng(0)
    with host.open(f"sim:?lanes=32{SMALL}") as device:
        for q in (random_matrix(rng, 20, 100, sparsity=0.5), random_matrix(rng, 20, 100),
                  host.quantize(rng.standard_normal((20, 100)))):
            x = rng.integers(-127, 128, (1, 100))
            assert np.array_equal(device.load(q).integers(x), sim.golden.integers(q, x))
            assert device.engine.format == q.format


@pytest.mark.parametrize("fields, message", [
    ({"bank": 16}, "bank must be one of 32, 64, 128, not 16"),
    ({"bank": 0}, "bank must be one of"), ({"high_lanes": 0}, "high_lanes must be one of 1, 2"),
    ({"builders": 8}, "builders must be one of 2, 4"),
    ({"activation_bits": 16}, "high_lanes must be one of 0, not 2"),
    ({"zero_points": False}, "zero_points must be one of True"),
    ({"sentinels": 1}, "sentinels must be one of False, True, not 1"),
    ({"sentinels": True, "high_lanes": 4}, "high_lanes must be 1 or 2 where places are found"),
    ({"bank": 128, "lanes": 16, "columns": 2, "epilogue": False}, "bank must be at most 64"),
])
def test_engines_that_cannot_be(fields, message):
    legal = dict(format="sq", bank=64, high_lanes=2, lanes=64, activation_bits=8)
    assert EngineConfig(**legal).scale_points == 4
    assert EngineConfig(**legal).replace(lanes=32).scale_points == 2
    with pytest.raises(host.ConfigError, match=message):
        EngineConfig(**{**legal, **fields})


@pytest.mark.parametrize("fields", [{"bank": 64}, {"high_lanes": 2}, {"sentinels": True}])
def test_banks_are_of_sq_alone(fields):
    with pytest.raises(host.ConfigError, match=r"must be one of (0|False)"):
        EngineConfig(**fields)
