"""Chains of K-means layers: indexes between layers, functions and products by tables."""

import os

import numpy as np
import pytest

import host
import sim.golden
from host.formats.kmeans import KMeans, KMeansMatrix
from tests.host.test_kmeans_device import DEVICES, codebook, open_device

SEED = int(os.environ.get("LUTRA_SEED", "1"))
FUNCTIONS = (None, "relu", "silu", "gelu", "exp")


device = pytest.fixture(scope="module", params=DEVICES)(open_device)


def random_matrix(rng, N, K, bits):
    """Codes of anything; outputs about as large as inputs."""
    config = KMeans(bits=bits, activation_bits=int(rng.integers(2, 5)),
                    outliers=float(rng.choice([0, 0.02, 0.3])))
    return KMeansMatrix(config, (N, K), rng.integers(0, 2**bits, (N, K)).astype(np.uint8),
                        codebook(rng, bits), (rng.random(N) / 80 / K**0.5).astype(np.float32),
                        codebook(rng, config.activation_bits), 0.03)


def spread(acc):
    """A step with which results fill int8 and now and then more."""
    return float(np.abs(acc).max() / 100) or 1.0


def random_layer(opened, rng, N, K, bits, out, x):
    """A layer, and what it makes of `x` about: outputs that say which out_scale to take."""
    q = random_matrix(rng, N, K, bits)
    bias = rng.standard_normal(N) if rng.random() < 0.5 else None
    activation = str(rng.choice(FUNCTIONS[1:])) if rng.random() < 0.7 else None
    y = x @ q.dequantize().T.astype(np.float64) + (0 if bias is None else bias)
    scale = spread(y)
    if activation == "exp" and scale > 0.02:
        activation = "gelu"     # exp overflows
    # What the epilogue can do: a unit of accumulators is at most 1/16 of a step.
    factor = q.row_scale.max() * 0.03 * np.abs(x).mean() / scale
    if not 2.0**-22 < factor < 2.0**-8:
        scale *= factor / 2.0**(-22 if factor < 2.0**-22 else -8)
    return opened.load(q, bias, activation, out, None if out == "float" else scale), y


@pytest.mark.parametrize("seed", range(SEED, SEED + 12))
def test_equals_the_golden_model(device, seed):
    """Stages of one layer or a pair, int8 or indexes, of any size; with stalls."""
    opened, bits = device
    rng = np.random.default_rng(seed)
    most = opened.engine.token_values
    K = int(rng.choice([1, rng.integers(1, 40), rng.integers(1, most + 1)]))
    x = rng.standard_t(3, (int(rng.integers(1, 4)), K)).astype(np.float32)
    if seed % 4 == 0:
        x[0] = 0
    stages, y = [host.RMSNorm()] if rng.random() < 0.3 else [], x
    for _ in range(int(rng.integers(1, 4))):
        N, K = int(rng.choice([rng.integers(1, 20), rng.integers(1, 200)])), y.shape[1]
        if rng.random() < 0.5:
            pair = [random_layer(opened, rng, N, K, bits, "index", y) for _ in range(2)]
            stages.append(tuple(layer for layer, _ in pair))
            y = np.clip(pair[0][1] * pair[1][1], -10, 10)
        else:
            layer, y = random_layer(opened, rng, N, K, bits, str(rng.choice(["int8", "index"])), y)
            stages.append(layer)
            y = np.clip(y, -10, 10)
        if rng.random() < 0.3:
            stages.append(host.RMSNorm())
            y = y / np.sqrt((y**2).mean(axis=1, keepdims=True) + 1e-9)
    stages.append(random_layer(opened, rng, int(rng.integers(1, 100)), y.shape[1], bits, "float",
                               y)[0])
    opened.transport.model.stalls(seed, int(rng.integers(200)), int(rng.integers(200)))
    chain = opened.chain(stages)
    y = chain(x)
    assert np.array_equal(y, sim.golden.chain(chain, x)), seed
    assert np.array_equal(chain(x), y), "a second call must not differ"
    opened.transport.model.stalls(0, 0, 0)


def test_a_gated_block_approximates_the_float_layers(devices):
    """gate and up, SiLU, product, down: one program, no float in between."""
    device = devices("sim:?format=kmeans&lanes=32&rows=2&n_tile=256&activation_bytes=4096")
    rng = np.random.default_rng(5)
    K, N = 192, 256
    W = [rng.normal(0, K**-0.5, (N, K)), rng.normal(0, K**-0.5, (N, K)),
         rng.normal(0, N**-0.5, (K, N))]
    x = rng.standard_normal((6, K)).astype(np.float32)
    gate, up = x @ W[0].T, x @ W[1].T
    hidden = gate / (1 + np.exp(-gate)) * up
    q = [host.quantize(w.astype(np.float32), format="kmeans", outliers=0.02, calibration=c)
         for w, c in zip(W, (x, x, hidden.astype(np.float32)))]
    layers = [device.load(q[0], activation="silu", out="index"), device.load(q[1], out="index"),
              device.load(q[2])]
    programs = []
    run = device.run
    device.run = lambda program, **options: programs.append(program) or run(program, **options)
    chain = device.chain([tuple(layers[:2]), layers[2]])
    y, exact = chain(x), hidden @ W[2].T
    del device.run
    assert np.array_equal(y, sim.golden.chain(chain, x))
    assert len(programs) == 1, "one instruction stream"
    assert np.linalg.norm(y - exact) < 0.3 * np.linalg.norm(exact)
    assert chain.stats["tokens"] == 6
    # What it is compared with: the layers by themselves, their products and functions in float.
    alone = [device.load(m) for m in q]
    a, b = alone[0](x), alone[1](x)
    apart = alone[2]((a / (1 + np.exp(-a)) * b).astype(np.float32))
    assert np.linalg.norm(y - exact) < 2 * np.linalg.norm(apart - exact)


@pytest.mark.parametrize("pair", [False, True])
def test_normalised_tokens(device, pair):
    """Over their root mean square, whatever their scale; zeros stay zeros."""
    opened, bits = device
    rng = np.random.default_rng(SEED)
    K, N = 60, 90
    x = rng.standard_normal((7, K)).astype(np.float32)
    x *= 2.0 ** -np.arange(7)[:, None]
    x[5] = 0
    q = random_matrix(rng, N, K, bits)
    last = random_matrix(rng, 12, N, bits)
    scale = spread(x @ q.dequantize().T)
    layer = opened.load(q, out="index" if pair else "int8", out_scale=scale)
    stage = (layer, layer) if pair else layer
    chain = opened.chain([stage, host.RMSNorm(), opened.load(last)], in_scale=0.8)
    y = chain(x)
    assert np.array_equal(y, sim.golden.chain(chain, x))
    # The same token again, half as large: nearly the same outputs, if it fills int8 well.
    h = x.astype(np.float64) @ q.dequantize().T
    h = h * h if pair else h
    exact = (h / np.sqrt((h**2).mean(axis=1, keepdims=True) + 1e-300)) @ last.dequantize().T
    assert np.linalg.norm(y[0] - exact[0]) < 0.5 * np.linalg.norm(exact[0])
    if not pair:
        assert not y[5].any()
        assert np.linalg.norm(y[1]) > 0.6 * np.linalg.norm(y[0])


def test_norms_are_refused_where_there_are_none(device):
    opened, bits = device
    rng = np.random.default_rng(SEED)
    q = random_matrix(rng, 16, 16, bits)
    layer = opened.load(q, out="int8", out_scale=1.0)
    with pytest.raises(host.ArgumentError, match="not at the end"):
        opened.chain([layer, host.RMSNorm()])
    with pytest.raises(host.ArgumentError, match="not twice"):
        opened.chain([layer, host.RMSNorm(), host.RMSNorm(), opened.load(q)])
    with pytest.raises(host.ArgumentTypeError, match=r"a tuple of two, or RMSNorm\(\), not <class"):
        opened.chain([layer, host.RMSNorm, opened.load(q)])
    scaled = type(q)(q.config, q.shape, q.codes, q.centroids, q.row_scale, q.activation_centroids,
                     q.activation_step, input_scale=np.ones(16, np.float32))
    chain = opened.chain([layer, host.RMSNorm(), opened.load(scaled)])
    with pytest.raises(host.ArgumentError, match="not after RMSNorm"):
        chain(np.ones((1, 16), np.float32))


def test_rows_of_zeros(device):
    """Their codes are of centroids that are not zero; their result is."""
    opened, bits = device
    rng = np.random.default_rng(SEED)
    q = random_matrix(rng, 40, 60, bits)
    scale = q.row_scale.copy()
    scale[[0, 7, 39]] = 0
    q = type(q)(q.config, q.shape, q.codes, q.centroids, scale, q.activation_centroids,
                q.activation_step)
    last = random_matrix(rng, 8, 40, bits)
    x = rng.standard_normal((2, 60)).astype(np.float32)
    layers = [opened.load(q, out="int8", out_scale=spread(x @ q.dequantize().T)),
              opened.load(last)]
    chain = opened.chain(layers)
    assert np.array_equal(chain(x), sim.golden.chain(chain, x))
    # Without them nothing changes.
    kept = np.setdiff1d(np.arange(40), [0, 7, 39])
    fewer = type(q)(q.config, (37, 60), q.codes[kept], q.centroids, scale[kept],
                    q.activation_centroids, q.activation_step)
    narrow = type(q)(last.config, (8, 37), last.codes[:, kept], last.centroids, last.row_scale,
                     last.activation_centroids, last.activation_step + 1)
    other = opened.chain([opened.load(fewer, out="int8", out_scale=layers[0].out_scale),
                          opened.load(narrow)])
    assert np.array_equal(other(x), chain(x))
    bias = np.zeros(40)
    bias[7] = 1
    with pytest.raises(host.CapacityError, match="row 7 has one"):
        opened.chain([opened.load(q, bias, out="int8", out_scale=1.0), layers[1]])(x)


def test_layers_with_their_own_order_of_columns(device):
    opened, bits = device
    rng = np.random.default_rng(SEED)
    q = [random_matrix(rng, N, K, bits) for N, K in ((50, 30), (50, 30), (20, 50))]
    for i, permuted in enumerate(q):
        K = permuted.shape[1]
        q[i] = type(permuted)(
            permuted.config, permuted.shape, permuted.codes, permuted.centroids,
            permuted.row_scale, permuted.activation_centroids, permuted.activation_step,
            permutation=rng.permutation(K), input_scale=rng.random(K).astype(np.float32) + 0.5)
    x = rng.standard_normal((3, 30)).astype(np.float32)
    scales = [spread(x @ m.dequantize().T) for m in q[:2]]
    gate = opened.load(q[0], activation="silu", out="index", out_scale=scales[0])
    up = opened.load(q[1], out="index", out_scale=scales[1])
    chain = opened.chain([(gate, up), opened.load(q[2])])
    assert np.array_equal(chain(x), sim.golden.chain(chain, x))
    with pytest.raises(host.ArgumentError, match="input_scale works after activation None"):
        opened.chain([(up, gate), opened.load(q[2])])(x)


def test_saturating_biases(device):
    opened, bits = device
    rng = np.random.default_rng(SEED)
    q, last = random_matrix(rng, 32, 20, bits), random_matrix(rng, 8, 32, bits)
    x = rng.standard_normal((2, 20)).astype(np.float32)
    scale = spread(x @ q.dequantize().T)
    bias = np.where(np.arange(32) % 2, 1.0, -1.0) * 10.0 ** rng.integers(0, 30, 32)
    chain = opened.chain([opened.load(q, bias, out="int8", out_scale=scale), opened.load(last)])
    assert np.array_equal(chain(x), sim.golden.chain(chain, x))
    r, = chain.links[0].requantizations
    far = np.abs(bias) > 1e15 * scale
    top = sim.golden.requantize(np.zeros((1, 32), int), r.bias, r.multiplier, r.shift, r.base)[0]
    assert np.array_equal(top[far & (q.row_scale > 0)],
                          (127 * np.sign(bias))[far & (q.row_scale > 0)])


def test_refuses_what_it_cannot_chain(device):
    opened, bits = device
    rng = np.random.default_rng(0)
    q, other, narrow = (random_matrix(rng, *shape, bits) for shape in
                        ((16, 16), (16, 16), (8, 16)))
    one = {out: opened.load(q, out=out, out_scale=1.0) for out in ("index", "int8")}
    last = opened.load(q)
    with pytest.raises(host.ArgumentError, match="must have out='index', not 'int8'"):
        opened.chain([(one["index"], one["int8"]), last])
    with pytest.raises(host.ArgumentError, match=r"layer 0 of 2 .* not 0 layers"):
        opened.chain([(), last])
    with pytest.raises(host.ArgumentTypeError, match=r"a tuple of two, or .* not \[<host"):
        opened.chain([[one["index"], one["index"]], last])
    wider = random_matrix(rng, 16, 16, 3 if bits == 4 else 4)
    with pytest.raises(host.ArgumentError, match=r"must run on one engine; these need [vb]="):
        opened.chain([one["int8"], opened.load(wider, out="int8", out_scale=1.0), last])
    with pytest.raises(host.CapacityError, match="layer 0 of the chain, whose input has units of"):
        opened.chain([one["int8"], last], in_scale=1e10)(np.ones((1, 16), np.float32))
    with pytest.raises(host.ArgumentError, match=r"pair of them, whose outputs .* not 3 layers"):
        opened.chain([(one["index"],) * 3, last])
    with pytest.raises(host.ArgumentError, match="before the last"):
        opened.chain([one["int8"], (last, last)])
    with pytest.raises(host.ArgumentError, match="same shape"):
        opened.chain([(one["index"], opened.load(narrow, out="index", out_scale=1.0)), last])
    with pytest.raises(host.ArgumentError, match="must have out='int8' or 'index', not 'float'"):
        opened.chain([opened.load(other), last])
    with pytest.raises(host.ArgumentError, match="needs an out_scale"):
        opened.load(q, out="index")
    with pytest.raises(host.ArgumentError, match=r"exp of a result of .* overflows"):
        opened.chain([opened.load(q, activation="exp", out="int8", out_scale=10.0), last])(
            np.ones((1, 16), np.float32))
    with pytest.raises(host.ArgumentError, match=r"'relu', 'silu', 'gelu', 'exp'"):
        opened.load(q, activation="tanh")


def test_tiny_inputs_are_zeros(device):
    opened, bits = device
    rng = np.random.default_rng(SEED)
    q, last = random_matrix(rng, 16, 16, bits), random_matrix(rng, 8, 16, bits)
    layer = opened.load(q, rng.standard_normal(16), out="index", out_scale=0.02)
    chain = opened.chain([layer, opened.load(last)])
    x = np.zeros((2, 16), np.float32)
    x[0, 3] = 1e-43
    y = chain(x)
    assert np.array_equal(y[0], y[1]) and np.array_equal(y, sim.golden.chain(chain, x))


def test_memory_that_holds_a_few_tokens(device):
    """Many tokens, many N tiles, little memory: in several programs, or refused; nothing lost."""
    opened, bits = device
    rng = np.random.default_rng(SEED)
    K = 40
    wide, last = random_matrix(rng, 300, K, bits), random_matrix(rng, 8, 300, bits)
    x = rng.standard_normal((9, K)).astype(np.float32)
    alone = opened.load(random_matrix(rng, 20, K, bits))
    y_alone = alone(x)
    layer = opened.load(wide, out="int8", out_scale=spread(x @ wide.dequantize().T))
    chain = opened.chain([layer, opened.load(last)])
    y = chain(x)
    calls = 0
    for left in (1200, 500, 250, 120, 40, 4, 1):
        if opened.memory.largest() <= left:
            continue
        taken = opened.memory.take(opened.memory.largest() - left)
        try:
            assert np.array_equal(chain(x), y), left
            calls += 1
        except host.CapacityError as error:
            assert "needs" in str(error) and left <= 500
        finally:
            opened.memory.give(taken)
        assert np.array_equal(alone(x), y_alone), left
    assert calls
    assert np.array_equal(chain(x), y)
