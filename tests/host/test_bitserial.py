"""The bit-serial format: configuration, meaning, import."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16

from host.errors import ArgumentError, ArgumentTypeError, ConfigError
from host.formats import FORMATS, BitSerial, BitSerialMatrix
from host.quantizer import from_codes


def imported(**changes):
    """A 2-bit import of 2 x 40 codes in groups of 32."""
    arguments = {"codes": np.arange(80).reshape(2, 40) % 4, "bits": 2, "group_size": 32,
                 "scales": np.array([[1.0, 0.5], [0.25, 2.0]])}
    return from_codes("bitserial", **arguments | changes)


class TestConfig:
    def test_defaults(self):
        config = BitSerial()
        assert (config.bits, config.group_size, config.scheme, config.method) == \
            (4, 128, "symmetric", None)
        assert FORMATS["bitserial"] == (BitSerial, BitSerialMatrix)

    @pytest.mark.parametrize("scheme, bits", [("ternary", 2), ("binary", 1), ("asymmetric", 4)])
    def test_schemes_imply_bits(self, scheme, bits):
        assert BitSerial(scheme=scheme).bits == bits
        assert BitSerial(scheme=scheme, bits=bits) == BitSerial(scheme=scheme)

    def test_is_frozen_and_hashable(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            BitSerial().bits = 3
        assert len({BitSerial(), BitSerial(bits=4), BitSerial(bits=3)}) == 2

    def test_is_keyword_only(self):
        with pytest.raises(TypeError):
            BitSerial(4)

    def test_numpy_integers_become_python_ones(self):
        config = BitSerial(bits=np.int64(3), group_size=np.uint8(64))
        assert type(config.bits) is int and type(config.group_size) is int

    @pytest.mark.parametrize("bits", range(1, 9))
    @pytest.mark.parametrize("group_size, K, groups", [(32, 33, 2), (128, 128, 1), (None, 999, 1)])
    def test_legal(self, bits, group_size, K, groups):
        config = BitSerial(bits=bits, group_size=group_size, scheme="asymmetric", method="gptq")
        assert config.groups(K) == groups and config.largest_code == 2**bits - 1

    @pytest.mark.parametrize("fields, message", [
        ({"bits": 0}, r"bits must be 1\.\.8, got 0"),
        ({"bits": 9}, r"bits must be 1\.\.8, got 9"),
        ({"group_size": 16}, r"group_size must be 32, 64, 128 or None .*, got 16"),
        ({"group_size": 0}, r"group_size must be .*, got 0"),
        ({"scheme": "fp4"}, r"scheme must be one of symmetric, .*, got 'fp4'"),
        ({"scheme": None}, r"scheme must be one of"),
        ({"scheme": "ternary", "bits": 4}, r"ternary weights have bits=2, got bits=4"),
        ({"scheme": "binary", "bits": 2}, r"binary weights have bits=1, got bits=2"),
        ({"method": "awq"}, r"method must be rtn, gptq or None, got 'awq'"),
    ])
    def test_illegal_values(self, fields, message):
        with pytest.raises(ConfigError, match=message):
            BitSerial(**fields)

    @pytest.mark.parametrize("name", ["bits", "group_size"])
    @pytest.mark.parametrize("value", ["4", 4.0, True, [4]])
    def test_wrong_kinds(self, name, value):
        with pytest.raises(ArgumentTypeError, match=f"{name} must be an integer"):
            BitSerial(**{name: value})


class TestMeaning:
    @settings(max_examples=60, deadline=None)
    @given(st.data(), st.integers(1, 8), st.sampled_from([32, 64, 128, None]), st.integers(1, 4),
           st.integers(1, 140), st.integers(0, 999))
    def test_affine_codes(self, data, bits, group_size, N, K, seed):
        """Dequantised weights are s * (q - z) to the precision of the stored scales."""
        rng = np.random.default_rng(seed)
        size = group_size or K
        G = -(-K // size)
        codes = rng.integers(0, 2**bits, (N, K))
        steps = rng.uniform(0.01, 1, (N, G)) * 10.0**data.draw(st.integers(-25, 25))
        zeros = data.draw(st.sampled_from([None, rng.integers(0, 2**bits, (N, G))]))
        q = from_codes("bitserial", codes=codes, scales=steps, zeros=zeros, bits=bits,
                       group_size=group_size)
        assert q.config.scheme == ("symmetric" if zeros is None else "asymmetric")
        zero = np.full((N, G), (2**bits - 1) / 2) if zeros is None else zeros
        expected = np.array([[steps[n, k // size] * (codes[n, k] - zero[n, k // size])
                              for k in range(K)] for n in range(N)])
        tolerance = steps.max(axis=1, keepdims=True) / 65535 * 2**bits
        assert (np.abs(q.dequantize() - expected) <= tolerance).all()

    @settings(max_examples=40, deadline=None)
    @given(st.integers(1, 8), st.booleans(), st.integers(0, 999))
    def test_integer_weights_are_planes_of_plus_minus_one(self, bits, zeros, seed):
        """The device's view: every bit plane of q and of z is +-1 with weight 2**i."""
        rng = np.random.default_rng(seed)
        q = from_codes("bitserial", codes=rng.integers(0, 2**bits, (3, 50)), bits=bits,
                       group_size=32, scales=rng.uniform(0.1, 1, (3, 2)),
                       zeros=rng.integers(0, 2**bits, (3, 2)) if zeros else None)
        group = np.arange(50) // 32
        planes = sum(2**i * (2 * (q.codes >> i & 1).astype(int) - 1) for i in range(bits))
        if zeros:
            # z' = 2z + 1 - 2^b is the same reading of z's planes.
            planes -= sum(2**i * (2 * (q.zeros >> i & 1).astype(int) - 1)
                          for i in range(bits))[:, group]
        weights = q.integer_weights()
        assert weights.dtype == np.int64
        assert np.array_equal(weights, q.scales.astype(int)[:, group] * planes)
        assert np.array_equal(q.integer_weights(slice(1, 3)), weights[1:])

    def test_scales_are_relative_to_the_rows_largest(self):
        q = imported(scales=np.array([[1.0, 0.5], [0.0, 2.0]]))
        assert q.scales.tolist() == [[65535, 32768], [0, 65535]]
        np.testing.assert_allclose(q.row_scale, np.array([1, 2]) / 131070, rtol=1e-7)

    def test_all_zero_row(self):
        q = imported(scales=np.array([[0.0, 0.0], [1.0, 1.0]]))
        assert q.scales[0].tolist() == [0, 0] and q.row_scale[0] == 1
        assert not q.dequantize()[0].any() and q.dequantize()[1].all()

    def test_steps_below_float32_become_zero(self):
        q = imported(scales=np.array([[1e-300, 1e-301], [1e-300, 1.0]]))
        assert q.scales.tolist() == [[0, 0], [0, 65535]] and q.row_scale[0] == 1

    def test_ternary(self):
        t = np.random.default_rng(0).integers(-1, 2, (2, 40))
        q = imported(codes=t + 1, scheme="ternary")
        assert q.config.bits == 2 and (q.zeros == 1).all()
        assert np.array_equal(np.sign(q.dequantize()), t)
        assert imported(codes=t, scheme="ternary", signed=True).digest == q.digest
        assert imported(codes=t + 1, scheme="ternary", zeros=np.ones((2, 2), int)).digest == \
            q.digest

    def test_binary(self):
        bits = np.random.default_rng(0).integers(0, 2, (2, 40))
        q = imported(codes=bits, scheme="binary", bits=1, scales=np.full((2, 2), 3.0))
        np.testing.assert_allclose(q.dequantize(), np.where(bits, 1.5, -1.5), rtol=1e-6)


class TestImport:
    @pytest.mark.parametrize("bits", [2, 4, 8])
    def test_twos_complement(self, bits):
        rng = np.random.default_rng(bits)
        codes = rng.integers(-2**(bits - 1), 2**(bits - 1), (2, 40), dtype=np.int8)
        scales = np.array([[1.0, 0.5], [2.0, 2.0]])
        q = imported(codes=codes, scales=scales, bits=bits, signed=True)
        assert q.config.scheme == "asymmetric" and (q.zeros == 2**(bits - 1)).all()
        expected = codes * np.repeat(scales, 32, axis=1)[:, :40]
        np.testing.assert_allclose(q.dequantize(), expected, rtol=2e-5)

    def test_signed_zero_points(self):
        q = imported(codes=np.full((2, 40), 1), zeros=np.array([[-2, 1], [0, -1]]), signed=True)
        assert q.zeros.tolist() == [[0, 3], [2, 1]]

    @pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64])
    def test_code_dtypes(self, dtype):
        codes = (np.arange(80).reshape(2, 40) % 4).astype(dtype)
        assert imported(codes=codes).digest == imported().digest

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, bfloat16, int])
    def test_scale_dtypes(self, dtype):
        scales = np.array([[1, 2], [4, 2]])
        assert imported(scales=scales.astype(dtype)).digest == imported(scales=1.0 * scales).digest

    def test_lists(self):
        q = from_codes("bitserial", codes=[[0, 3]], scales=[[2]], bits=2, group_size=None)
        np.testing.assert_allclose(q.dequantize(), [[-3, 3]], rtol=1e-6)

    @pytest.mark.parametrize("changes, message", [
        ({"codes": np.full((2, 40), 4)}, r"codes of 2-bit symmetric weights must be 0\.\.3, got 4"),
        ({"codes": np.full((2, 40), 300)}, r"must be 0\.\.3, got 300"),
        ({"codes": np.full((2, 40), -1)}, r"must be 0\.\.3, got -1; signed=True imports"),
        ({"codes": np.full((2, 40), 3), "scheme": "ternary"}, r"ternary weights must be 0\.\.2"),
        ({"codes": np.full((2, 40), 2), "signed": True}, r"must be -2\.\.1, got 2"),
        ({"codes": np.full((2, 40), -2), "signed": True, "scheme": "ternary"},
         r"must be -1\.\.1, got -2"),
        ({"signed": True, "scheme": "symmetric"}, r"symmetric weights have no zero point"),
        ({"codes": np.zeros(40, int)}, r"codes must have shape \[N, K\], got \(40,\)"),
        ({"codes": np.zeros((2, 0), int)}, r"codes must have shape \[N, K\], got \(2, 0\)"),
        ({"scales": np.ones((2, 3))},
         r"scales must have shape \[N, groups of 32 along K\] = \(2, 2\), got \(2, 3\)"),
        ({"scales": np.ones((2, 2, 1))}, r"= \(2, 2\), got \(2, 2, 1\)"),
        ({"scales": np.ones((1, 2))}, r"= \(2, 2\), got \(1, 2\)"),
        ({"scales": np.ones(2), "group_size": None}, r"groups of 40 along K\] = \(2, 1\)"),
        ({"scales": np.array([[1, -0.5], [1, 1]])}, r"scales must not be negative, got -0\.5"),
        ({"scales": np.array([[1, np.nan], [1, 1]])}, r"scales must be finite, got nan"),
        ({"scales": np.array([[1, np.inf], [1, 1]])}, r"scales must be finite, got inf"),
        ({"scales": np.full((2, 2), 1e39)}, r"weights must stay within float32"),
        ({"scales": np.full((2, 2), 1e300)}, r"weights must stay within float32"),
        ({"zeros": np.full((2, 2), 4)}, r"zeros of 2-bit asymmetric weights must be 0\.\.3, got 4"),
        ({"zeros": np.full((2, 2), -1)}, r"must be 0\.\.3, got -1"),
        ({"zeros": np.full((2, 2), 2), "signed": True, "codes": np.zeros((2, 40), int)},
         r"zeros of 2-bit asymmetric weights must be -2\.\.1, got 2"),
        ({"zeros": np.ones((2, 1), int)}, r"zeros must have shape .* = \(2, 2\), got \(2, 1\)"),
        ({"zeros": np.zeros((2, 2), int), "scheme": "ternary", "codes": np.ones((2, 40), int)},
         r"zeros of 2-bit ternary weights must be 1, got 0"),
        ({"zeros": np.zeros((2, 2), int), "scheme": "symmetric"},
         r"symmetric weights have no zeros"),
        ({"scheme": "asymmetric"}, r"asymmetric weights need zeros"),
        ({"permutation": np.arange(39)}, r"permutation must have shape \[K\] = \(40,\)"),
        ({"input_scale": np.full(40, 1e300)}, r"input_scale must be finite"),
        ({"permutation": np.full(40, 2**64 - 1, np.uint64)}, r"each of 0\.\.39 exactly once"),
        ({"zeros": np.full((2, 2), 2**64 - 1, np.uint64), "signed": True,
          "codes": np.zeros((2, 40), int)}, r"must be -2\.\.1, got 18446744073709551615"),
        ({"zeros": np.zeros((0, 2), int)}, r"zeros must have shape .*, got \(0, 2\)"),
        ({"output_scale": -1}, r"output_scale must be a positive float32 or None, got -1"),
        ({"bits": 9}, r"bits must be 1\.\.8"),
        ({"group_size": 40}, r"group_size must be 32"),
    ])
    def test_refused_values(self, changes, message):
        with pytest.raises(ArgumentError, match=message):
            imported(**changes)

    @pytest.mark.parametrize("changes, message", [
        ({"codes": np.zeros((2, 40))}, r"codes must be integers, got dtype float64"),
        ({"zeros": np.zeros((2, 2))}, r"zeros must be integers, got dtype float64"),
        ({"scales": np.full((2, 2), 1j)}, r"scales must be real numbers, got dtype complex128"),
        ({"permutation": np.arange(40.0)}, r"permutation must be integers"),
        *(({name: value}, rf"{name} must be an array of numbers: ")
          for name in ("codes", "scales", "zeros", "permutation", "input_scale")
          for value in ([[1], [1, 2]],)),
        *(({name: value}, rf"{name} must be (real numbers|integers), got dtype (object|<U1)")
          for name in ("codes", "scales", "zeros", "permutation", "input_scale")
          for value in ("x", object(), [["a"]], {"a": 1})),
        *(({name: np.zeros(2)}, rf"{name} must be a (string|bool), got array")
          for name in ("scheme", "signed")),
        *(({"output_scale": value}, "output_scale must be a real number or None, got ")
          for value in ("x", 1j, True, [1.0])),
        ({"bits": np.zeros(2, int)}, "bits must be an integer"),
        ({"offset": 1}, r"from_codes\('bitserial'\): .*'offset'; legal are codes, scales, bits, "),
    ])
    def test_refused_types(self, changes, message):
        with pytest.raises(ArgumentTypeError, match=message):
            imported(**changes)

    def test_missing_argument(self):
        with pytest.raises(ArgumentTypeError, match=r"missing .*'codes'; legal are codes, scales"):
            from_codes("bitserial", scales=[[1.0]], bits=2, group_size=None)

    @pytest.mark.parametrize("name", ["fp4", ""])
    def test_unknown_format(self, name):
        with pytest.raises(ArgumentError, match=r"format must be one of bitserial.*, got"):
            from_codes(name)


class TestConstructor:
    def make(self, scheme="symmetric", **changes):
        arguments = {"config": BitSerial(bits=2, group_size=32, scheme=scheme),
                     "codes": np.zeros((2, 40), np.uint8),
                     "scales": np.full((2, 2), 65535, np.uint16),
                     "row_scale": np.ones(2, np.float32)}
        return BitSerialMatrix(**arguments | changes)

    @pytest.mark.parametrize("changes, message", [
        ({"codes": np.zeros((2, 40), int)}, r"codes must be a NumPy array of uint8, got int64"),
        ({"codes": np.zeros(40, np.uint8)}, r"codes must be an array of shape \[N, K\]"),
        ({"codes": [[0]]}, r"codes must be an array of shape \[N, K\], got list"),
        ({"codes": np.full((2, 40), 4, np.uint8)}, r"codes of .* must be 0\.\.3, got 4"),
        ({"scales": np.ones((2, 2), np.float32)}, r"scales must be a NumPy array of uint16"),
        ({"scales": np.full((2, 1), 65535, np.uint16)}, r"scales must have shape .* = \(2, 2\)"),
        ({"scales": np.full((2, 2), 65534, np.uint16)}, r"must be 65535, or 0 .*, got 65534"),
        ({"row_scale": np.ones(2)}, r"row_scale must be a NumPy array of float32, got float64"),
        ({"row_scale": np.ones(3, np.float32)}, r"row_scale must have shape \[N\] = \(2,\)"),
        ({"row_scale": np.array([1, 0], np.float32)}, r"row_scale must be positive, got 0\.0"),
        ({"row_scale": np.array([1, np.nan], np.float32)}, r"row_scale must be finite, got nan"),
        ({"row_scale": np.full(2, 1e34, np.float32)}, r"weights must stay within float32"),
        ({"zeros": np.zeros((2, 2), np.uint8)}, r"symmetric weights have no zeros"),
        ({"scheme": "asymmetric"}, r"asymmetric weights need zeros"),
        ({"scheme": "asymmetric", "zeros": np.full((2, 2), 4, np.uint8)}, r"zeros of .* got 4"),
        ({"scheme": "asymmetric", "zeros": np.zeros((2, 2), int)}, r"zeros must be .* of uint8"),
        ({"scheme": "ternary", "zeros": np.zeros((2, 2), np.uint8)}, r"zeros of .* got 0"),
        ({"scheme": "ternary", "zeros": np.ones((2, 2), np.uint8),
          "codes": np.full((2, 40), 3, np.uint8)}, r"codes of .* must be 0\.\.2, got 3"),
    ])
    def test_refused(self, changes, message):
        with pytest.raises(ArgumentError, match=message):
            self.make(**changes)

    def test_config_of_another_kind(self):
        with pytest.raises(ArgumentTypeError, match="config must be a BitSerial, got dict"):
            self.make(config={})
