"""Bad input is refused by one exception that names what is legal; the device hears nothing."""

import re

import numpy as np
import pytest

import host
import sim.golden
from hdl.isa import Instruction
from tests.conftest import random_matrix
from tests.hdl.test_core import SMALL

N, K = 8, 128
NAN, INF = float("nan"), float("inf")


def matrix(N=N, K=K):
    return random_matrix(np.random.default_rng(0), N, K, 2, None, "symmetric")


def scaled():
    """A matrix that multiplies large activations out of float32."""
    return host.from_codes("bitserial", codes=np.zeros((N, K), np.uint8), scales=np.ones((N, 1)),
                           bits=2, group_size=None, input_scale=np.full(K, 10, np.float32))


@pytest.fixture
def layer(devices):
    return devices(SMALL).load(matrix())


@pytest.fixture
def refused(devices, monkeypatch):
    """Checks that a call is refused, that it writes nothing, and that the device still works."""
    device = devices(SMALL)

    def write(address, data):
        pytest.fail("the device was written to")

    def check(error, message, call):
        with monkeypatch.context() as patch:
            patch.setattr(device.transport, "write", write)
            with pytest.raises(error, match=message) as caught:
                call(device)
        assert isinstance(caught.value, host.LutraError)
        x = np.random.default_rng(0).integers(-127, 128, (2, K))
        q = matrix()
        assert np.array_equal(device.load(q).integers(x), sim.golden.integers(q, x))

    return check


@pytest.mark.parametrize("q", ["x", None, np.zeros((N, K), np.float32)])
def test_what_is_no_matrix(refused, q):
    refused(host.ArgumentTypeError, "q must be a QuantizedMatrix.* not", lambda d: d.load(q))


@pytest.mark.parametrize("options, error, message", [
    (dict(bias=["a"] * N), host.ArgumentTypeError, "bias must be real numbers, got dtype <U1"),
    (dict(bias=[None] * N), host.ArgumentTypeError, "bias must be real numbers, got dtype object"),
    (dict(bias=[1j] * N), host.ArgumentTypeError, "bias must be real numbers, got dtype complex"),
    (dict(bias=[[1], [1, 2]]), host.ArgumentTypeError, "bias must be an array of numbers"),
    (dict(bias=np.zeros(N + 1)), host.ArgumentError, r"bias must have shape \[8\], not \[9\]"),
    (dict(bias=[NAN] * N), host.ArgumentError, "bias must be finite, not nan"),
    (dict(activation=3), host.ArgumentTypeError, "activation must be one of None, .* not 3"),
    (dict(activation=np.zeros(2)), host.ArgumentTypeError, "activation must be one of"),
    (dict(activation="tanh"), host.ArgumentError, "activation must be .* not 'tanh'"),
    (dict(activation="silu", out="int8", out_scale=1.0), host.ArgumentError, "only kmeans has"),
    (dict(out=8), host.ArgumentTypeError, "out must be one of 'float', 'int8', 'index', not 8"),
    (dict(out="int4"), host.ArgumentError, "out must be .* not 'int4'"),
    (dict(out="index"), host.ArgumentError, "not 'index'"),
    (dict(out="int8"), host.ArgumentError, "needs an out_scale"),
    (dict(progress=3), host.ArgumentTypeError, "progress must be callable or None, got 3"),
])
def test_options_of_a_layer(refused, options, error, message):
    refused(error, message, lambda d: d.load(matrix(), **options))


SCALES = [
    ("1", host.ArgumentTypeError, "must be real numbers"),
    (1j, host.ArgumentTypeError, "must be real numbers"),
    (True, host.ArgumentTypeError, "must be real numbers"),
    ([1.0, 2.0], host.ArgumentTypeError, r"must be one number, not of shape \[2\]"),
    *((value, host.ArgumentError,
       re.escape(f"must be positive and finite in float32, not {value!r}"))
      for value in (NAN, INF, 0, -1, 1e-60, 1e60))]


@pytest.mark.parametrize("value, error, message", SCALES)
def test_scales(refused, layer, value, error, message):
    for out in ("float", "int8"):
        refused(error, f"out_scale {message}",
                lambda d, out=out: d.load(matrix(), out=out, out_scale=value))
    refused(error, f"in_scale {message}", lambda d: d.chain([layer], in_scale=value))


@pytest.mark.parametrize("layers, error, message", [
    (["a"], host.ArgumentTypeError, "layer 0 of the chain must be a Layer.* not 'a'"),
    ("ab", host.ArgumentTypeError, "layers of a chain must be a list, not str"),
    (None, host.ArgumentTypeError, "layers of a chain must be a list, not NoneType"),
    ([], host.ArgumentError, "at least one layer"),
])
def test_what_is_no_chain(refused, layers, error, message):
    refused(error, message, lambda d: d.chain(layers))


@pytest.mark.parametrize("x, error, message", [
    ([[1.0], [1.0, 2.0]], host.ArgumentTypeError, "activations must be an array of numbers"),
    (np.zeros(K, complex), host.ArgumentTypeError, "float32 or float16, not complex128"),
    (["a"] * K, host.ArgumentTypeError, "float32 or float16, not <U1"),
    ([None] * K, host.ArgumentTypeError, "float32 or float16, not object"),
    (np.float32(1), host.ArgumentError, r"shape \[..., 128\], not \[\]"),
    (np.full(K, NAN, np.float32), host.ArgumentError, "NaN or infinity"),
    (np.full(K, -INF, np.float16), host.ArgumentError, "NaN or infinity"),
])
def test_float_activations(refused, layer, x, error, message):
    refused(error, message, lambda d: layer(x))
    refused(error, message, lambda d: d.chain([layer])(x))


def test_activations_that_the_input_scale_makes_infinite(refused, devices):
    x = np.full(K, 2e38, np.float32)
    layer = devices(SMALL).load(scaled())
    refused(host.ArgumentError, "input_scale, not 2e[+]38", lambda d: layer(x))
    refused(host.ArgumentError, "input_scale, not 2e[+]38", lambda d: d.chain([layer])(x))


@pytest.mark.parametrize("xq, error, message", [
    ([[1], [1, 2]], host.ArgumentTypeError, "activations must be an array of numbers"),
    (np.zeros(K), host.ArgumentTypeError, "activations must be integers, got dtype float64"),
    (["a"] * K, host.ArgumentTypeError, "activations must be integers"),
    ([2**70] * K, host.ArgumentTypeError, "activations must be integers, got dtype object"),
    (np.zeros((K, 1), int), host.ArgumentError, r"shape \[..., 128\], not \[128, 1\]"),
    ([2**15] * K, host.ArgumentError, "fit int16, -32768..32767, not 32768"),
    (np.full(K, 2**64 - 1, np.uint64), host.ArgumentError, f"int16.* not {2**64 - 1}"),
])
def test_integer_activations(refused, layer, xq, error, message):
    refused(error, message, lambda d: layer.integers(xq))


@pytest.mark.parametrize("call, error, message", [
    (lambda d: d.read_register("PC"), host.ArgumentError, "register must be one of 'MAGIC', "),
    (lambda d: d.write_register(4, 0), host.ArgumentTypeError, "register must be one of 'MAGIC', "),
    (lambda d: d.write_register("PROGRAM", "0"), host.ArgumentTypeError, "must be an integer"),
    (lambda d: d.write_register("PROGRAM", -1), host.ArgumentError, "must be in 0..4294967295"),
    (lambda d: d.run("HALT"), host.ArgumentTypeError, "program must be a list of Instruction"),
    (lambda d: d.run(["HALT"]), host.ArgumentTypeError, "program must be a list of Instruction"),
    (lambda d: d.run([], timeout="1"), host.ArgumentTypeError, "timeout must be real numbers"),
    (lambda d: d.run([], timeout=NAN), host.ArgumentError, "timeout must be positive"),
])
def test_registers_and_programs(refused, call, error, message):
    refused(error, message, call)


def test_a_refused_first_call_leaves_no_scale(devices):
    device = devices(SMALL)
    chain = device.chain([device.load(matrix(), out="int8", out_scale=1.0),
                          device.load(matrix(4, N))])
    x = np.random.default_rng(0).normal(0, 0.01, (2, K)).astype(np.float32)
    with pytest.raises(host.CapacityError, match="out_scale"):
        chain(x * np.float32(1e30))
    assert chain.in_scale is None
    assert np.array_equal(chain(x), sim.golden.chain(chain, x))
    assert chain.in_scale == np.float32(np.abs(x).max()) / np.float32(127)


def test_a_closed_device():
    x = np.zeros((1, K), np.float32)
    with host.open(SMALL) as device:
        layer = device.load(matrix())
        chain = device.chain([layer])
        chain(x)
    device.close()
    for call in (
            lambda: device.read_register("STATUS"), lambda: device.write_register("CONTROL", 0),
            lambda: device.reset(), lambda: device.run([Instruction.make("FENCE")]),
            lambda: device.load(matrix()), lambda: device.chain([layer]),
            lambda: device.load(matrix(), out="int8", out_scale=1.0),
            lambda: device.read_beats(0, 1), lambda: chain(x), lambda: chain(x[:0]),
            lambda: layer(x), lambda: layer(x[:0]), lambda: layer.integers(x.astype(int))):
        with pytest.raises(host.DeviceError, match=r"^sim:.* is closed$"):
            call()
    layer.free()
    assert "sim:" in repr(device)
