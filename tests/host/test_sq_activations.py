"""Activations in two precisions: matrices, and simulated devices bit for bit."""

import os

import numpy as np
import pytest

import host
import sim.golden
from hdl.config import EngineConfig
from hdl.isa import Instruction
from host.formats.sq import SQ
from host.formats.sq_activations import SQActivationMatrix, reordered
from host.performance import matmul_cycles
from tests.conftest import random_matrix as bitserial_matrix

SEED = int(os.environ.get("LUTRA_SEED", "1"))
SIDES = ("activation", "activation-dynamic")
SMALL = ("sim:?format=sq&activation_bits=16&zero_points=0&high_lanes=0&turns=1&n_tile=64"
         "&activation_bytes=2048&memory_mib=4")
DEVICES = {
    "two rows": f"{SMALL}&bank=64&lanes=32&rows=2",
    "two columns": f"{SMALL}&bank=32&lanes=32&columns=2&builders=2",
    "larger banks": f"{SMALL}&bank=128&lanes=32&builders=8",
}


def random_matrix(rng, N, K, *, permuted=False, bits=4, **fields):
    """Random weights of which the activations have two precisions."""
    config = SQ(bits=bits, **fields)
    q = bitserial_matrix(rng, N, K, bits, config.bank, "symmetric")
    return SQActivationMatrix(config, q.codes, q.scales, q.row_scale,
                              permutation=rng.permutation(K) if permuted else None)


def random_tokens(rng, M, K):
    """Of every size, with ties, zeros and extremes."""
    x = (rng.standard_t(3, (M, K)) * rng.choice([3, 100, 3000], (M, 1))).clip(-32767, 32767)
    x = x.astype(np.int64)
    for token in x:
        kind = rng.integers(6)
        if kind == 0:
            token[:] = rng.choice([-32768, 32767, 0, -32767], K)
        elif kind == 1:
            token[:] = rng.integers(-1, 2, K)
        elif kind == 2:
            token[rng.random(K) < 0.9] = 0
        elif kind == 3:     # ties where the exponent changes
            token[:] = rng.choice([1, -1], K) * (160 << rng.integers(0, 8)) - rng.integers(0, 2, K)
    return x


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    with host.open(DEVICES[request.param]) as opened:
        yield opened


@pytest.mark.parametrize("seed", range(SEED, SEED + 16))
def test_random_products(device, seed):
    rng = np.random.default_rng(seed)
    N, K = int(rng.integers(1, 150)), int(rng.choice([1, rng.integers(1, 700)]))
    M, bank = int(rng.integers(1, 5)), device.engine.bank
    high = int(rng.choice([1, bank // 2, rng.integers(1, bank // 2 + 1)]))
    q = random_matrix(rng, N, K, bank=bank, sparsity=1 - high / bank, low=int(rng.integers(2, 5)),
                      side=str(rng.choice(SIDES)), bits=int(rng.integers(1, 9)), permuted=True)
    x = random_tokens(rng, M, K)
    layer = device.load(q)
    stalls = device.transport.model.stalls
    stalls(seed, int(rng.integers(200)), int(rng.integers(200)))
    assert np.array_equal(layer.integers(x), sim.golden.integers(q, x)), (seed, N, K, M, q.config)
    stalls(0, 0, 0)
    tokens = rng.standard_t(3, (M, K)).astype(np.float32)
    assert np.array_equal(layer(tokens), sim.golden.matmul(q, tokens))
    layer.free()


@pytest.mark.parametrize("side", SIDES)
def test_largest_sums(device, side):
    bank = device.engine.bank
    K = 4 * device.engine.tile_k
    config = SQ(bank=bank, sparsity=0.5, bits=8, side=side)
    q = SQActivationMatrix(config, np.full((9, K), 255, np.uint8),
                           np.full((9, K // bank), 65535, np.uint16), np.ones(9, np.float32))
    x = np.array([[32767] * K, [-32768] * K])
    assert np.array_equal(device.load(q).integers(x), sim.golden.integers(q, x))


@pytest.mark.parametrize("side", SIDES)
def test_cycles_are_those_of_the_model(device, side):
    rng = np.random.default_rng(0)
    bank = device.engine.bank
    for N, K, M in ((300, 500, 2), (100, 300, 1)):
        q = random_matrix(rng, N, K, bank=bank, sparsity=0.875, side=side)
        layer = device.load(q)
        layer.integers(rng.integers(-32767, 32768, (M, K)))
        assert layer.stats["cycles"] == pytest.approx(matmul_cycles(device.engine, q, M), rel=0.06)


def test_a_token_beyond_the_buffers(device):
    q = random_matrix(np.random.default_rng(0), 9, 5000, bank=device.engine.bank, side=SIDES[1])
    with pytest.raises(host.CapacityError, match="must hold a whole token"):
        device.load(q).integers(np.zeros((1, 5000), int))


def test_no_chains(device):
    q = random_matrix(np.random.default_rng(0), 9, 50, bank=device.engine.bank, side=SIDES[0])
    for out in ("int8", "index"):
        with pytest.raises(host.ArgumentError, match="out='float'"):
            device.load(q, out=out, out_scale=1.0)
    with pytest.raises(host.ArgumentError, match="layer 0 of the chain must have side='weight'"):
        device.chain([device.load(q)])


def test_no_layer_at_the_end_of_a_chain():
    rng = np.random.default_rng(0)
    weights = host.quantize(rng.standard_normal((9, 50)), format="sq")
    q = random_matrix(rng, 5, 9, side=SIDES[1])
    with host.open(f"sim:?format=sq&lanes=32{SMALL[SMALL.index('&n_tile'):]}") as device:
        first = device.load(weights, out="int8", out_scale=1.0)
        with pytest.raises(host.ArgumentError, match=r"layer 1 .* not 'activation-dynamic'"):
            device.chain([first, device.load(q)])


def test_a_device_says_which_side_it_is_for():
    q = random_matrix(np.random.default_rng(0), 9, 50, side=SIDES[1])
    url = f"sim:?format=sq&high_lanes=2&lanes=32{SMALL[SMALL.index('&n_tile'):]}"
    with host.open(url) as device:
        with pytest.raises(host.DeviceError, match=r"high_lanes=2.* of side='activation-dynamic' "
                                                   r".*high_lanes=0.*: open sim: with other"):
            device.load(q).integers(np.zeros((1, 50), int))


def test_the_engine_becomes_another_side():
    rng = np.random.default_rng(0)
    with host.open(f"sim:?lanes=32{SMALL[SMALL.index('&n_tile'):]}") as device:
        for q in (random_matrix(rng, 9, 100, side=SIDES[0]),
                  host.quantize(rng.standard_normal((9, 100)), format="sq"),
                  random_matrix(rng, 9, 100, side=SIDES[1])):
            x = rng.integers(-127, 128, (1, 100))
            assert np.array_equal(device.load(q).integers(x), sim.golden.integers(q, x))


@pytest.mark.parametrize("fields", [{"length": 8}, {"norm": 1}, {"pairs": 1}, {"beat": 1},
                                    {"low": 1}])
def test_instructions_that_cannot_be(device, fields):
    with pytest.raises(host.ProgramError, match="BAD_FIELD"):
        device.run([Instruction.make("TOPK", **{"low": 4} | fields)])


def test_any_instruction_that_can_be_ends(device):
    """However few elements a bank has: TOPK gives back the stage."""
    rng = np.random.default_rng(SEED)
    bank, beats = device.engine.bank, device.engine.bank // 8
    for _ in range(20):
        device.run([Instruction.make(
            "TOPK", k=rng.integers(0, bank), low=rng.integers(2, 5), static=rng.integers(2),
            beat=beats * rng.integers(0, 4), address=rng.integers(0, 1000))], timeout=1e-3)


class TestMatrix:
    def test_means_its_weights(self, tmp_path):
        q = random_matrix(np.random.default_rng(0), 5, 100, side=SIDES[0], bits=3, permuted=True)
        odd = 2.0 * q.codes - 7
        W = np.empty((5, 100), np.float32)
        W[:, q.permutation] = (odd * np.repeat(q.scales, 64, axis=1)[:, :100]
                               * q.row_scale[:, None].astype(np.float64))
        assert np.array_equal(q.dequantize(), W)
        assert q.code_bits_per_weight == 3
        q.save(tmp_path / "q.safetensors")
        back = host.load(tmp_path / "q.safetensors")
        assert back.digest == q.digest and back.config == q.config
        assert np.array_equal(back.dequantize(), q.dequantize())

    @pytest.mark.parametrize("seed", range(SEED, SEED + 8))
    def test_values_are_the_golden_ones(self, seed):
        rng = np.random.default_rng(seed)
        K, bank = int(rng.integers(1, 400)), int(rng.choice([32, 64, 128]))
        high = int(rng.integers(1, bank // 2 + 1))
        q = random_matrix(rng, 1, K, bank=bank, low=int(rng.integers(2, 5)), side=SIDES[seed % 2],
                          sparsity=1 - high / bank)
        x = random_tokens(rng, 12, K)
        golden = [sim.golden.bank_values(q.config, token) for token in x]
        assert np.array_equal(q.values(x), golden)
        assert np.abs(golden).max() <= 254

    @pytest.mark.parametrize("side", SIDES)
    def test_import(self, side):
        rng = np.random.default_rng(0)
        codes, scales = rng.integers(0, 8, (5, 100)), rng.random((5, 2)) + 0.1
        order = rng.permutation(100)
        q = host.from_codes("sq", side=side, codes=codes, scales=scales, bank=64, sparsity=0.75,
                            bits=3, low_bits=2, permutation=order)
        assert (q.config.low, q.config.high_count, q.config.side) == (2, 16, side)
        W = (codes - 3.5) * np.repeat(scales, 64, axis=1)[:, :100]
        assert np.abs(q.dequantize()[:, order] - W).max() < 1e-4 * np.abs(W).max()

    @pytest.mark.parametrize("change, message", [
        ({"codes": None}, "takes codes and scales, got no codes"),
        ({"low": np.zeros((5, 64), int)}, "takes codes and scales, got low"),
        ({"side": "weight"}, "takes low and high, of which low_bits"),
        ({"codes": np.full((5, 64), 16)}, r"0\.\.15, got 16"),
        ({"low_bits": 5}, "low_bits must be"),
        ({"side": np.array(["weight", "x"])}, "side must be a string"),
        ({"side": "both"}, "side must be")])
    def test_illegal_import(self, change, message):
        given = {"codes": np.zeros((5, 64), int), "scales": np.ones((5, 1)), "bank": 64,
                 "sparsity": 0.875, "side": SIDES[0]}
        with pytest.raises((host.ArgumentError, host.ArgumentTypeError, host.ConfigError),
                           match=message):
            host.from_codes("sq", **given | change)

    def test_quantiser_uses_calibration(self):
        rng = np.random.default_rng(0)
        W = rng.standard_normal((32, 200)).astype(np.float32)
        X = rng.standard_normal((300, 200)).astype(np.float32)
        loud = rng.permutation(200)[:20]
        X[:, loud] *= 20
        q = host.quantize(W, format="sq", side=SIDES[0], calibration=X)
        high = np.concatenate([q.permutation[i:i + 8] for i in range(0, 200, 64)])
        assert set(loud) <= set(high) and sorted(q.permutation) == list(range(200))
        assert q.output_scale is not None
        dynamic = host.quantize(W, format="sq", side=SIDES[1], calibration=X)
        assert dynamic.permutation is None and dynamic.config.method == "gptq"
        assert host.quantize(W, format="sq", side=SIDES[1]).config.method == "rtn"
        with pytest.raises(host.ArgumentError, match="needs calibration"):
            host.quantize(W, format="sq", side=SIDES[0])

    @pytest.mark.parametrize("X", [np.zeros((4, 70)), np.full((4, 70), 1e-322)])
    def test_calibration_without_information(self, X):
        W = np.random.default_rng(0).standard_normal((5, 70)).astype(np.float32)
        q = host.quantize(W, format="sq", side=SIDES[0], method="rtn", calibration=X)
        assert np.abs(q.dequantize() - W).max() < 0.5
        assert q.values(np.zeros((0, 70), int)).shape == (0, 70)

    @pytest.mark.parametrize("config", [SQ(), "activation"])
    def test_of_another_side(self, config):
        with pytest.raises(host.ArgumentError, match="takes an SQ with side='activation'"):
            SQActivationMatrix(config, np.zeros((1, 64), np.uint8), np.zeros((1, 1), np.uint16),
                               np.ones(1, np.float32))

    def test_importance_of_the_paper(self):
        W = np.array([[1, -1, 1, 1.0], [-1, 1, 1, 1]])
        X = np.array([[5, 9, -1, 2.0], [5, -9, -1, 2]])
        order = lambda importance: reordered(
            np.tile(W, 20), SQ(bank=32, sparsity=1 - 1 / 32, side=SIDES[0], importance=importance),
            np.tile(X, 20))
        # Column sums of 0 do not count in the paper, whatever passes; energy sees what is large.
        assert order("paper")[0] % 4 == 3 and order("energy")[0] % 4 == 1

    @pytest.mark.parametrize("fields, message", [
        ({"side": "weight", "bits": 4}, "bits are of the weights where"),
        ({"side": SIDES[0], "bits": 9}, r"bits must be 1\.\.8, got 9"),
        ({"side": SIDES[0], "storage": "mask"},
         "storage must not be given with side='activation', got"),
        ({"side": SIDES[0], "importance": "gptq"},
         "importance must be 'energy' or 'paper' with side='activation'"),
        ({"side": SIDES[1], "importance": "energy"}, "importance must not be given with"),
        ({"side": SIDES[0], "smoothing": 0.5}, "smoothing is for side='weight'"),
    ])
    def test_illegal(self, fields, message):
        with pytest.raises(host.ConfigError, match=message):
            SQ(**fields)

    @pytest.mark.parametrize("fields, message", [
        ({"high_lanes": 2}, "high_lanes must be one of 0"),
        ({"turns": 2}, "turns must be one of 1"),
        ({"zero_points": True}, "zero_points must be one of False"),
        ({"block_ram_blocks": 1}, "block_ram_blocks must be 0 where tokens are encoded in banks"),
    ])
    def test_engines_that_cannot_be(self, fields, message):
        legal = dict(format="sq", bank=64, lanes=64, activation_bits=16, zero_points=False)
        assert EngineConfig(**legal).value_bits == 9
        with pytest.raises(host.ConfigError, match=message):
            EngineConfig(**{**legal, **fields})
