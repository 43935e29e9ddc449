"""Psumbook matrices on simulated devices: exact for any m, v, b, group, M, N and K."""

import os

import numpy as np
import pytest

import host
import sim.golden
from hdl.config import EngineConfig
from host.formats.common import relative_scales
from host.formats.psumbook import Psumbook, PsumbookMatrix
from host.performance import matmul_cycles
from tests.conftest import check_int8_chain
from tests.conftest import random_matrix as bitserial_matrix

SEED = int(os.environ.get("LUTRA_SEED", "1"))
SMALL = "&n_tile=64&activation_bytes=1024&zero_points=0&activation_bits=8&memory_mib=4"
DEVICES = {
    # name: (URL, v, b)
    # Tables in four sections, each written a cycle after the one before; a buffer for four
    # builders; group sums of 22 bits, the high ones multiplied by adders.
    "block RAM, two rows": (f"sim:?format=psumbook&v=8&b=6&lanes=128&rows=2&builders=8"
                            f"&scale_points=8&scaler_dsps=1&block_ram_blocks=32{SMALL}", 8, 6),
    "mixed stores": (f"sim:?format=psumbook&v=4&b=5&lanes=32&builders=8&scale_points=4"
                     f"&block_ram_blocks=2{SMALL}", 4, 5),
    "LUT RAM, two columns": (f"sim:?format=psumbook&v=2&b=4&lanes=32&columns=2&builders=2"
                             f"&scale_points=2{SMALL}", 2, 4),
}


def random_matrix(rng, N, K, v, m, b, group_size):
    """Random codes, and centroids that are often at the ends of their range."""
    config = Psumbook(v=v, codebooks=m, code_bits=b, group_size=group_size)
    centroids = np.where(rng.random((m, 2**b, v)) < 0.3, rng.choice([-127, 127], (m, 2**b, v)),
                         rng.integers(-127, 128, (m, 2**b, v))).astype(np.int8)
    scales = rng.random((N, config.groups(K))) * (rng.random((N, config.groups(K))) < 0.9)
    return PsumbookMatrix(config, (N, K), rng.integers(
        0, 2**b, (m, N, config.chunks(K))).astype(np.uint8), centroids,
        *relative_scales(scales, 1))


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    url, v, b = DEVICES[request.param]
    with host.open(url) as opened:
        yield opened, v, b


@pytest.mark.parametrize("seed", range(SEED, SEED + 25))
def test_random_products(device, seed):
    opened, v, b = device
    rng = np.random.default_rng(seed)
    N, K = (int(rng.choice([1, rng.integers(1, 20), rng.integers(1, most)]))
            for most in (300, max(300, 5 * opened.transport.config.engine.tile_k // 2)))
    M, m = int(rng.integers(1, 6)), int(rng.integers(1, 5))
    group = [32, 64, 128, None][rng.integers(4)]
    q = random_matrix(rng, N, K, v, m, b, group)
    x = rng.integers(-127, 128, (M, K))
    x[0] = rng.choice([-127, 0, 127])
    layer = opened.load(q)
    assert np.array_equal(layer.integers(x), sim.golden.integers(q, x)), (seed, N, K, M, m, group)
    tokens = rng.standard_normal((M, K)).astype(np.float32)
    assert np.array_equal(layer(tokens), sim.golden.matmul(q, tokens))
    layer.free()


def test_largest_sums(device):
    """Every product at its largest: no width is too small."""
    opened, v, b = device
    config = Psumbook(v=v, codebooks=4, code_bits=b, group_size=None)
    K = 1000
    q = PsumbookMatrix(config, (9, K), np.zeros((4, 9, config.chunks(K)), np.uint8),
                       np.full((4, 2**b, v), 127, np.int8),
                       np.full((9, 1), 65535, np.uint16), np.ones(9, np.float32))
    x = np.array([[127] * K, [-127] * K])
    assert np.array_equal(opened.load(q).integers(x), sim.golden.integers(q, x))


def test_chain_with_requantisation(device):
    opened, v, b = device
    rng = np.random.default_rng(SEED)
    first = random_matrix(rng, 40, 70, v, 2, b, 32)
    second = random_matrix(rng, 12, 40, v, 3, b, None)
    check_int8_chain(opened, rng, first, second)


def test_wide_activations_are_refused(device):
    opened, v, b = device
    q = random_matrix(np.random.default_rng(0), 8, 16, v, 1, b, None)
    layer = opened.load(q)
    with pytest.raises(host.ArgumentError, match=r"psumbook .* int8"):
        layer.integers(np.full((1, 16), 300))
    assert layer.integers(np.zeros((1, 16), int)).shape == (1, 8)


def test_another_chunk_needs_another_engine(device):
    opened, v, b = device
    q = random_matrix(np.random.default_rng(0), 8, 16, v, 1, 8 if b != 8 else 7, None)
    with pytest.raises(host.DeviceError, match=rf"built with b={b}; .* need b=8"):
        opened.load(q)


def test_another_format_needs_another_build(device):
    opened, *_ = device
    for scheme in ("symmetric", "asymmetric"):
        q = bitserial_matrix(np.random.default_rng(0), 8, 64, 2, 32, scheme)
        with pytest.raises(host.DeviceError, match="built for psumbook, the matrix is bitserial"):
            opened.load(q)


def test_cycles_are_those_of_the_model(device):
    opened, v, b = device
    rng = np.random.default_rng(0)
    for N, K, m, M in ((64, 500, 2, 2), (300, 300, 1, 1)):
        q = random_matrix(rng, N, K, v, m, b, 128)
        layer = opened.load(q)
        layer.integers(rng.integers(-127, 128, (M, K)))
        assert layer.stats["cycles"] == pytest.approx(matmul_cycles(opened.engine, q, M), rel=0.06)


@pytest.mark.parametrize("fields, message", [
    ({"v": 3}, "v must be one of 2, 4, 8"), ({"b": 9}, "b must be one of 4, 5, 6, 7, 8"),
    ({"activation_bits": 16}, "activation_bits must be one of 8"),
    ({"zero_points": True}, "zero_points must be one of False"),
    ({"v": 2, "lanes": 16, "builders": 16, "scale_points": 1}, "builders must be at most 8"),
    ({"lanes": 16, "b": 4, "epilogue": True}, "epilogue needs 72 bits .* not 64"),
])
def test_engines_that_cannot_be(fields, message):
    legal = dict(format="psumbook", v=8, b=8, lanes=64, activation_bits=8, zero_points=False)
    EngineConfig(**legal)
    with pytest.raises(host.ConfigError, match=message):
        EngineConfig(**{**legal, **fields})
