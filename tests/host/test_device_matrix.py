"""Matrices of every kind and size on the engine of ``sim:``, bit for bit."""

import numpy as np
import pytest

import host
import sim.golden
from hdl.config import MAX_DIM
from tests.conftest import random_matrix

LARGEST = 5000
GATHERED = 30_000
"""Beats that a case may gather, for the time that it takes."""


@pytest.fixture(scope="module")
def device():
    """One engine for all: none of the matrices needs another."""
    with host.open("sim:") as device:
        yield device
        assert device.generation == 0


def check(device, rng, M, N, K, bits, group_size, scheme):
    q = random_matrix(rng, N, K, bits, group_size, scheme)
    bias = rng.normal(0, 100, N)
    layer = device.load(q, bias=bias)
    for largest in (127, 32767):
        x = rng.integers(-largest, largest + 1, (M, K))
        assert np.array_equal(layer.integers(x), sim.golden.integers(q, x)), (M, N, K, largest)
    x = rng.normal(0, 3, (M, K)).astype(np.float32)
    assert np.array_equal(layer(x), sim.golden.matmul(q, x, bias)), (M, N, K)
    layer.free()


def sizes(rng, bits, tile_k):
    """M, N and K: the extremes of each, then any."""
    yield 1, LARGEST, int(rng.integers(1, tile_k))      # two N tiles
    for M, K in ((1, LARGEST), (17, int(rng.integers(1, 600))),
                 (int(rng.integers(2, 17)), int(rng.integers(1, LARGEST + 1)))):
        most = max(1, GATHERED // (M * bits * -(-K // tile_k)))
        yield M, int(rng.integers(1, min(most, LARGEST) + 1)), K


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_width(device, bits):
    rng = np.random.default_rng(bits)
    for index, size in enumerate(sizes(rng, bits, device.engine.tile_k)):
        scheme = ("symmetric", "asymmetric")[(bits + index) % 2]
        check(device, rng, *size, bits, (128, None)[rng.integers(2)], scheme)


@pytest.mark.parametrize("scheme, bits", [("ternary", 2), ("binary", 1)])
@pytest.mark.parametrize("group_size", [128, None])
def test_ternary_and_binary(device, scheme, bits, group_size):
    rng = np.random.default_rng(bits)
    for M, N, K in ((1, 150, 700), (5, 70, 256), (2, 9, 1)):
        check(device, rng, M, N, K, bits, group_size, scheme)


@pytest.mark.parametrize("scheme, bits", [
    ("symmetric", 1), ("symmetric", 8), ("asymmetric", 3), ("ternary", 2), ("binary", 1)])
def test_one_weight(device, scheme, bits):
    rng = np.random.default_rng(0)
    for M in (1, 3):
        check(device, rng, M, 1, 1, bits, None, scheme)


def test_largest_k(device):
    check(device, np.random.default_rng(0), 1, 2, MAX_DIM, 1, 128, "symmetric")


@pytest.mark.parametrize("N, K", [(1, MAX_DIM + 1), (MAX_DIM + 1, 1)])
def test_beyond_the_engine(device, N, K):
    q = random_matrix(np.random.default_rng(0), N, K, 1, 128, "symmetric")
    before = device.memory.largest()
    with pytest.raises(host.CapacityError, match=f"at most 16384, not {N} and {K}"):
        device.load(q)
    assert device.memory.largest() == before
    check(device, np.random.default_rng(0), 1, 3, 5, 2, None, "symmetric")
