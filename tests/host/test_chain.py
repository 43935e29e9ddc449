"""Chains of layers on the device against the golden model."""

from itertools import pairwise

import numpy as np
import pytest

import host
import sim.golden
from host.requantization import requantization
from tests.conftest import random_matrix
from tests.hdl.test_core import ENGINES, SMALL


def scaled(rng, N, K, bits, scheme, group_size, permuted=False):
    q = random_matrix(rng, N, K, bits, group_size, scheme)
    extra = {}
    if permuted:
        extra = {"permutation": rng.permutation(K),
                 "input_scale": rng.random(K).astype(np.float32) + 0.5}
    groups = q.scales.shape[1]
    return host.from_codes(
        "bitserial", codes=q.codes, bits=bits, zeros=q.zeros, group_size=group_size,
        scales=rng.random((N, groups)) / np.sqrt(K) / 2**bits, scheme=scheme, **extra)


@pytest.mark.parametrize("engine", ["rows1", "rows2", "rows2columns2", "block", "rows16"])
def test_equals_the_golden_model(devices, engine):
    device = devices(SMALL + ENGINES[engine])
    for seed in range(4):
        rng = np.random.default_rng(seed)
        sizes = [int(rng.integers(1, 300)) for _ in range(4)]
        layers = []
        for i, (K, N) in enumerate(pairwise(sizes)):
            scheme = "asymmetric" if seed % 2 else "symmetric"
            q = scaled(rng, N, K, int(rng.integers(1, 6)), scheme, None,
                       permuted=i > 0 and seed > 1)
            last = i == len(sizes) - 2
            layers.append(device.load(
                q, bias=rng.normal(0, 1, N), activation="relu" if i == 0 else None,
                out="float" if last else "int8", out_scale=None if last else 0.05))
        chain = device.chain(layers)
        x = rng.normal(0, 1, (int(rng.integers(1, 6)), sizes[0])).astype(np.float32)
        y = chain(x)
        assert np.array_equal(y, sim.golden.chain(chain, x)), f"seed {seed}"
        assert np.array_equal(chain(x), y), "a second call must not differ"


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_rows_of_zeros(devices, scheme, biased, activation):
    """They have no scale; their result is the bias, rounded once."""
    device = devices(SMALL)
    rng = np.random.default_rng(3)
    W = rng.normal(0, 1 / 8, (40, 96))
    W[[0, 7, 39]] = 0
    first = host.quantize(W, bits=3, scheme=scheme)
    bias = rng.normal(0, 2, 40) if biased else None
    if biased:
        bias[[7, 39]] = 1e9, -0.3
    middle = scaled(rng, 40, 40, 2, scheme, None, permuted=True)
    last = scaled(rng, 10, 40, 4, scheme, None)
    layers = [device.load(first, bias, activation, "int8", 0.05),
              device.load(middle, out="int8", out_scale=0.05), device.load(last)]
    chain = device.chain(layers)
    x = rng.normal(0, 1, (3, 96)).astype(np.float32)
    assert np.array_equal(chain(x), sim.golden.chain(chain, x))
    r, = chain.links[0].requantizations
    steps = sim.golden.requantize(np.zeros((1, 40), int), r.bias, r.multiplier, r.shift,
                                  r.base, relu=activation == "relu")[0]
    fold = np.empty(40)
    fold[middle.permutation] = middle.input_scale
    exact = np.zeros(40) if bias is None else bias
    if activation:
        exact = np.maximum(exact, 0)
    zero = [0, 7, 39]
    assert np.array_equal(steps[zero], np.clip(np.rint(exact / 0.05 * fold), -127, 127)[zero])


def test_matrix_of_zeros(devices):
    device = devices(SMALL)
    q = host.quantize(np.zeros((8, 16)), bits=2)
    last = scaled(np.random.default_rng(0), 4, 8, 2, "symmetric", None)
    x = np.ones((2, 16), np.float32)
    chain = device.chain([device.load(q, out="int8", out_scale=1e-30), device.load(last)])
    assert not chain(x).any() and not sim.golden.chain(chain, x).any()


def test_scale_of_the_first_call_is_of_what_is_quantised(devices):
    device = devices(SMALL)
    rng = np.random.default_rng(0)
    q = scaled(rng, 12, 30, 3, "symmetric", None, permuted=True)
    layers = [device.load(q, out="int8", out_scale=0.05),
              device.load(scaled(rng, 5, 12, 2, "symmetric", None))]
    chain = device.chain(layers)
    x = rng.normal(0, 1, (4, 30)).astype(np.float32)
    y = chain(x)
    assert np.array_equal(y, sim.golden.chain(chain, x))
    largest = np.abs(x[:, q.permutation] * q.input_scale).max()
    assert chain.in_scale == float(largest / np.float32(127))


def test_calls_of_nothing_fix_no_scale(devices):
    device = devices(SMALL)
    rng = np.random.default_rng(0)
    layers = [device.load(scaled(rng, 12, 30, 3, "symmetric", None), rng.normal(0, 1, 12),
                          out="int8", out_scale=0.05),
              device.load(scaled(rng, 5, 12, 2, "symmetric", None))]
    chain = device.chain(layers)
    x = rng.normal(0, 1, (4, 30)).astype(np.float32)
    assert chain(x[:0]).shape == (0, 5) and chain.in_scale is None
    ones = device.chain(layers, in_scale=1.0)
    assert np.array_equal(chain(0 * x), ones(0 * x)) and chain.in_scale is None
    assert np.array_equal(ones(0 * x), sim.golden.chain(ones, 0 * x))
    del ones
    before = device.memory.largest()
    y = chain(x)
    assert chain.in_scale == float(np.abs(x).max() / np.float32(127))
    assert np.array_equal(y, sim.golden.chain(chain, x))
    assert device.memory.largest() >= before, "the images for the other scale are gone"


def test_approximates_the_float_layers(devices):
    device = devices(SMALL)
    rng = np.random.default_rng(5)
    W = [rng.normal(0, 1 / 8, (64, 96)), rng.normal(0, 1 / 8, (10, 64))]
    q = [host.quantize(w.astype(np.float32), bits=8, group_size=None) for w in W]
    x = rng.normal(0, 1, (5, 96)).astype(np.float32)
    hidden = np.maximum(x @ W[0].T, 0)
    first = device.load(q[0], activation="relu", out="int8", out_scale=hidden.max() / 127)
    chain = device.chain([first, device.load(q[1])])
    y, exact = chain(x), hidden @ W[1].T
    assert np.linalg.norm(y - exact) < 0.03 * np.linalg.norm(exact)


def test_factors_round_to_what_the_device_has():
    limits = {"bound": 2**30, "room": 2**40}
    r = requantization(2.0 ** np.arange(-38, -14), np.full(24, 103.0), 8, 10, **limits)
    # Smaller ones too, as long as no accumulator saturates early.
    for bound, legal in ((2**45 - 1, True), (2**45, False)):
        try:
            small = requantization([0, 2.0**-45], [0, 0], 1, 10, bound=bound, room=2**40)
            assert legal and small.multiplier.tolist() == [0, 16] and (small.shift == 3).all()
        except host.CapacityError:
            assert not legal
    value = r.multiplier / 2.0 ** (21 + 10 + 6 * r.shift)
    assert np.array_equal(value, 2.0 ** np.arange(-38, -14))
    assert (r.multiplier >= 2**11).all() and (r.multiplier < 2**17).all()
    assert (r.bias == 104).all()        # a multiple of 8
    with pytest.raises(host.CapacityError, match="out_scale"):
        requantization([2.0**-10], [0], 2, 10, **limits)
    r = requantization(2.0 ** np.arange(-28, -4), np.zeros(24), 1, 0, **limits)
    assert np.array_equal(r.multiplier / 2.0 ** (21 + 6 * r.shift), 2.0 ** np.arange(-28, -4))
    for factor, limits["bound"] in ((2.0**-29, 2**40), (2.0**-3, 2)):
        with pytest.raises(host.CapacityError, match=r"must be in 2\*\*-28\.\.2\*\*-4, not"):
            requantization([factor], [0], 1, 0, **limits)


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_large_biases_saturate_or_are_refused(devices, scheme):
    """A sum wider than a device's would come out as anything."""
    device = devices(SMALL)
    rng = np.random.default_rng(4)
    q, last = scaled(rng, 24, 70, 8, scheme, None), scaled(rng, 4, 24, 2, scheme, None)
    x = rng.normal(0, 1, (2, 70)).astype(np.float32)
    signs = np.where(np.arange(24) % 2, 1.0, -1.0)
    done = []
    for largest in (1e30, 100, 3, 1, 0.3):
        bias = signs * np.minimum(10.0 ** np.arange(-12, 12), largest)
        chain = device.chain([device.load(q, bias, out="int8", out_scale=0.05),
                              device.load(last)])
        try:
            y = chain(x)
        except host.CapacityError as error:
            assert "must be at most" in str(error) and not done
            continue
        assert np.array_equal(y, sim.golden.chain(chain, x))
        done.append(largest)
    assert len(done) > 1


def test_refuses_what_does_not_fit(devices):
    device = devices(SMALL)
    rng = np.random.default_rng(0)
    a = device.load(random_matrix(rng, 8, 16, 2, None, "symmetric"), out="int8", out_scale=1.0)
    b = device.load(random_matrix(rng, 4, 9, 2, None, "symmetric"))
    with pytest.raises(host.ArgumentError, match="gives 8 outputs, layer 1 takes 9"):
        device.chain([a, b])
    with pytest.raises(host.ArgumentError, match="must have out='float'"):
        device.chain([a])
    with pytest.raises(host.ArgumentError, match="at least one layer"):
        device.chain([])
    with pytest.raises(host.ArgumentError, match=r"device\.chain"):
        a(np.zeros((1, 16), np.float32))
    with pytest.raises(host.ArgumentError, match="out_scale"):
        device.load(random_matrix(rng, 8, 16, 2, None, "symmetric"), out="int8")
