"""Fixtures shared by all tests."""

import numpy as np
import pytest

import host
import sim.golden


@pytest.fixture(scope="session")
def devices():
    """Opens devices by URL and keeps them for the session: ``devices("sim:?rows=2")``."""
    opened = {}

    def get(url):
        if url not in opened:
            opened[url] = host.open(url)
        return opened[url]

    yield get
    for device in opened.values():
        device.close()


def random_matrix(rng, N, K, bits, group_size, scheme):
    """A bit-serial matrix of random codes, scales and zero points: every value occurs."""
    groups = 1 if group_size is None else -(-K // group_size)
    codes = rng.integers(0, 3 if scheme == "ternary" else 2**bits, (N, K)).astype(np.uint8)
    scales = rng.random((N, groups)).astype(np.float32) + 1e-3
    zeros = None
    if scheme == "asymmetric":
        zeros = rng.integers(0, 2**bits, (N, groups)).astype(np.uint8)
    elif scheme == "ternary":
        zeros = np.ones((N, groups), np.uint8)
    return host.from_codes("bitserial", codes=codes, scales=scales, zeros=zeros, bits=bits,
                           group_size=group_size, scheme=scheme)


def check_int8_chain(device, rng, first, second):
    """Two layers with a bias and ReLU between them, as one program, against the golden model.

    Returns the chain.
    """
    N, K = first.shape
    x = rng.standard_normal((5, K)).astype(np.float32)
    scale = float(np.abs(sim.golden.matmul(first, x)).max() / 100)
    chain = device.chain([
        device.load(first, bias=rng.standard_normal(N) * scale * 20, activation="relu",
                    out="int8", out_scale=scale), device.load(second)])
    assert np.array_equal(chain(x), sim.golden.chain(chain, x))
    return chain
