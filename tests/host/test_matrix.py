"""What quantised matrices of every format share: meaning, size, digest and file."""

import copy
import json
import os
import pickle

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from hdl.config import EngineConfig
from host.errors import ArgumentError, ArgumentTypeError, FileError
from host.formats import BitSerial, BitSerialMatrix
from host.matrix import load, pack_bits, shared_needs, unmet, unpack_bits
from host.quantizer import from_codes, quantize

SCHEMES = [("symmetric", 4), ("symmetric", 3), ("asymmetric", 8), ("asymmetric", 1),
           ("ternary", 2), ("binary", 1)]


def sample(N=5, K=70, scheme="asymmetric", bits=3, extras=True, seed=0):
    """A small matrix with everything that can be stored."""
    rng = np.random.default_rng(seed)
    common = {"permutation": rng.permutation(K), "output_scale": 0.1 + seed,
              "input_scale": rng.uniform(0.5, 2, K)} if extras else {}
    groups = N, -(-K // 32)
    zeros = rng.integers(0, 2**bits, groups) if scheme == "asymmetric" else None
    largest = 2 if scheme == "ternary" else 2**bits - 1
    return from_codes("bitserial", codes=rng.integers(0, largest + 1, (N, K)),
                      scales=rng.uniform(0.1, 1, groups), zeros=zeros, bits=bits, group_size=32,
                      scheme=scheme, **common)


def assert_equal(a, b):
    assert type(a) is type(b) and a.config == b.config and a.shape == b.shape
    for name in ("codes", "scales", "row_scale", "zeros", "permutation", "input_scale"):
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None), name
        assert x is None or (x.dtype == y.dtype and np.array_equal(x, y)), name
    assert a.output_scale == b.output_scale
    assert a.digest == b.digest


@pytest.fixture
def rewrite(tmp_path):
    """Write a sample, let a function change its tensors and metadata; returns the path."""
    def rewrite(change, q=None):
        path = tmp_path / "q.safetensors"
        (q or sample()).save(path)
        with safetensors.safe_open(path, "np") as file:
            metadata = file.metadata()
        tensors = safetensors.numpy.load_file(path)
        change(tensors, metadata)
        safetensors.numpy.save_file(tensors, path, metadata)
        return path
    return rewrite


class TestMeaning:
    def test_dequantize_undoes_permutation_and_input_scale(self):
        q = sample()
        W = q.dequantize()
        stored = q.integer_weights() * q.row_scale[:, None].astype(np.float64)
        expected = np.empty_like(W)
        for j in range(q.shape[1]):
            expected[:, q.permutation[j]] = stored[:, j] * float(q.input_scale[j])
        assert W.dtype == np.float32 and np.array_equal(W, expected)

    def test_matmul_with_transformed_activations(self):
        q = sample()
        x = np.random.default_rng(1).standard_normal((3, 70))
        transformed = x[:, q.permutation] * q.input_scale
        stored = q.integer_weights() * q.row_scale[:, None].astype(np.float64)
        np.testing.assert_allclose(transformed @ stored.T, x @ q.dequantize().T, rtol=1e-5)

    def test_more_rows_than_a_block(self):
        W = np.random.default_rng(0).standard_normal((1100, 3))
        q = quantize(W, bits=8)
        assert np.abs(q.dequantize() - W).max() < 0.02

    def test_arrays_are_read_only_and_not_the_callers(self):
        codes = np.zeros((2, 40), np.uint8)
        q = from_codes("bitserial", codes=codes, scales=np.ones((2, 2)), bits=2, group_size=32)
        codes[:] = 3
        assert not q.codes.any()
        with pytest.raises(ValueError, match="read-only"):
            q.scales[0, 0] = 1

    @pytest.mark.parametrize("duplicate", [
        copy.copy, copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))])
    def test_copies_are_equal_and_read_only(self, duplicate):
        q = sample()
        other = duplicate(q)
        assert_equal(other, q)
        for name in ("codes", "scales", "row_scale", "zeros", "permutation", "input_scale"):
            with pytest.raises(ValueError, match="read-only"):
                getattr(other, name)[:] = 0


class TestSize:
    def test_bits_per_weight(self):
        N, K, G = 5, 70, 3
        q = sample()
        stored = N * K * 3 + N * G * (16 + 3) + 32 * N + 32 * K + 7 * K
        assert q.bits_per_weight == stored / (N * K)
        assert q.code_bits_per_weight == 3

    @pytest.mark.parametrize("K, index_bits", [(1, 0), (2, 1), (64, 6), (65, 7)])
    def test_permutation_takes_the_bits_of_an_index(self, K, index_bits):
        arrays = {"codes": np.zeros((1, K), int), "scales": [[1.0]], "bits": 2, "group_size": None}
        q = from_codes("bitserial", **arrays, permutation=np.arange(K))
        assert q.bits_per_weight == (2 * K + 16 + 32 + index_bits * K) / K

    def test_bits_per_weight_without_extras(self):
        q = sample(scheme="symmetric", extras=False)
        assert q.bits_per_weight == (5 * 70 * 3 + 5 * 3 * 16 + 32 * 5) / 350

    @pytest.mark.parametrize("scheme, bits", SCHEMES)
    def test_file_has_the_stored_bits(self, tmp_path, scheme, bits):
        q = sample(256, 512, scheme, bits, extras=False)
        q.save(tmp_path / "q.safetensors")
        stored = q.bits_per_weight * 256 * 512 / 8
        assert stored < (tmp_path / "q.safetensors").stat().st_size < stored + 1000

    def test_repr(self):
        assert repr(sample(extras=False)).startswith(
            "<BitSerialMatrix 5x70 BitSerial(bits=3, group_size=32, scheme='asymmetric'")

    @settings(max_examples=30, deadline=None)
    @given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 20), st.integers(0, 99))
    def test_packing(self, bits, N, K, seed):
        values = np.random.default_rng(seed).integers(0, 2**bits, (N, K), dtype=np.uint8)
        planes = pack_bits(values, bits)
        assert planes.shape == (bits, -(-N * K // 8))
        assert np.array_equal(unpack_bits(planes, (N, K)), values)

    def test_packed_layout(self):
        assert pack_bits(np.array([1, 2, 3], np.uint8), 2).tolist() == [[0b10100000], [0b01100000]]


class TestDigest:
    def test_covers_everything(self):
        codes = np.arange(8, dtype=np.uint8).reshape(2, 4) % 4
        base = {"codes": codes, "scales": np.array([[1.0], [2.0]]), "bits": 2, "group_size": None,
                "zeros": np.array([[1], [2]])}
        changes = [{}, {"codes": codes[:, ::-1]}, {"scales": np.array([[1.0], [3.0]])}, {"bits": 3},
                   {"zeros": np.array([[1], [1]])}, {"group_size": 32},
                   {"permutation": np.arange(4)}, {"permutation": np.array([1, 0, 2, 3])},
                   {"input_scale": np.ones(4)}, {"output_scale": 1.0},
                   {"codes": codes.reshape(1, 8), "scales": np.ones((1, 1)),
                    "zeros": np.array([[1]])}]
        digests = [from_codes("bitserial", **base | change).digest for change in changes]
        assert len(set(digests)) == len(changes)
        assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in digests)

    def test_is_reproducible(self):
        assert sample().digest == sample().digest


class TestFile:
    @settings(max_examples=40, deadline=None)
    @given(st.sampled_from(SCHEMES), st.integers(1, 9), st.integers(1, 70), st.booleans(),
           st.integers(0, 99))
    def test_round_trip(self, tmp_path_factory, scheme, N, K, extras, seed):
        q = sample(N, K, *scheme, extras=extras, seed=seed)
        path = tmp_path_factory.getbasetemp() / "round-trip.safetensors"
        q.save(path)
        assert_equal(load(path), q)

    def test_str_paths(self, tmp_path):
        q = sample()
        q.save(str(tmp_path / "q.safetensors"))
        assert_equal(load(str(tmp_path / "q.safetensors")), q)

    def test_bytes_paths(self, tmp_path):
        path = os.fsencode(tmp_path / "q.safetensors")
        sample().save(path)
        assert_equal(load(path), sample())

    @pytest.mark.parametrize("path", [None, 3, ["q"]])
    def test_what_is_no_path(self, path):
        for call in (load, sample().save):
            with pytest.raises(ArgumentTypeError, match="path must be a str, bytes or os"):
                call(path)

    @pytest.mark.parametrize("path", ["a\0b", "a\ud800"])
    def test_paths_that_no_file_can_have(self, path):
        for call in (load, sample().save):
            with pytest.raises(FileError, match=r"not a readable|cannot be written"):
                call(path)

    @pytest.mark.parametrize("key", ["config", "shape", "output_scale"])
    def test_deeply_nested_metadata(self, rewrite, key):
        path = rewrite(lambda tensors, metadata: metadata.update({key: "[" * 100_000}))
        with pytest.raises(FileError, match="its metadata are nested too deeply"):
            load(path)

    def test_unchanged_rewrite_loads(self, rewrite):
        assert_equal(load(rewrite(lambda tensors, metadata: None)), sample())

    def test_digest_is_optional(self, rewrite):
        assert_equal(load(rewrite(lambda tensors, metadata: metadata.pop("digest"))), sample())

    @pytest.mark.parametrize("data", [b"", b"hello", b"\x93NUMPY" + bytes(100)])
    def test_not_safetensors(self, tmp_path, data):
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(FileError, match=r"x: not a readable safetensors file"):
            load(tmp_path / "x")

    @pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
    def test_truncated(self, tmp_path, keep):
        sample().save(tmp_path / "x")
        data = (tmp_path / "x").read_bytes()
        (tmp_path / "x").write_bytes(data[:int(len(data) * keep)])
        with pytest.raises(FileError, match="not a readable safetensors file"):
            load(tmp_path / "x")

    def test_missing(self, tmp_path):
        with pytest.raises(FileError, match=r"nowhere: not a readable .*No such file"):
            load(tmp_path / "nowhere")

    def test_unwritable(self, tmp_path):
        with pytest.raises(FileError, match=r"x: cannot be written: .*No such file"):
            sample().save(tmp_path / "nowhere" / "x")

    def test_somebody_elses_safetensors(self, tmp_path):
        safetensors.numpy.save_file({"weight": np.ones(3)}, tmp_path / "x")
        with pytest.raises(FileError, match=r"x: not a Lutra matrix"):
            load(tmp_path / "x")

    @pytest.mark.parametrize("key, value, message", [
        ("lutra", "2", r"version must be '1', got '2'"),
        ("format", "fp4", r"format must be one of bitserial.*, got 'fp4'"),
        ("config", "{", r"metadata 'config' must be JSON"),
        ("config", '{"bits": 3}', r"metadata 'config' must have the fields bits, group_size"),
        ("config", "[]", r"metadata 'config' must have the fields"),
        ("config", json.dumps({"bits": 9, "group_size": 32, "scheme": "asymmetric",
                               "method": None}), r"bits must be 1\.\.8, got 9"),
        ("config", json.dumps({"bits": "3", "group_size": 32, "scheme": "asymmetric",
                               "method": None}), r"bits must be an integer, got '3'"),
        ("shape", "[5]", r"metadata 'shape' must be two sizes"),
        ("shape", "[0, 70]", r"metadata 'shape' must be two sizes"),
        ("shape", "[5, true]", r"metadata 'shape' must be two sizes"),
        ("output_scale", '"x"', r"metadata 'output_scale' must be a number"),
        ("output_scale", "NaN", r"output_scale must be a positive float32"),
    ])
    def test_wrong_metadata(self, rewrite, key, value, message):
        with pytest.raises(FileError, match=r"q\.safetensors: .*" + message):
            load(rewrite(lambda tensors, metadata: metadata.update({key: value})))

    def test_missing_shape(self, rewrite):
        with pytest.raises(FileError, match="metadata 'shape' must be two sizes"):
            load(rewrite(lambda tensors, metadata: metadata.pop("shape")))

    @pytest.mark.parametrize("name", ["codes", "scales", "row_scale", "zeros"])
    def test_missing_tensor(self, rewrite, name):
        with pytest.raises(FileError, match=f"tensor '{name}' is missing"):
            load(rewrite(lambda tensors, metadata: tensors.pop(name)))

    def test_extra_tensor(self, rewrite):
        extra = {"bias": np.zeros(5, np.float32)}
        with pytest.raises(FileError, match="tensor 'bias' is not part of the format"):
            load(rewrite(lambda tensors, metadata: tensors.update(extra)))

    @pytest.mark.parametrize("name, change, message", [
        ("scales", lambda a: a.astype(np.float32), r"'scales' must be U16 \(5, 3\), got F32"),
        ("codes", lambda a: a.astype(np.int8), r"'codes' must be U8 \(3, 44\), got I8"),
        ("codes", lambda a: a[:2], r"'codes' must be U8 \(3, 44\), got U8 \(2, 44\)"),
        ("zeros", lambda a: a[:, :1], r"'zeros' must be U8 \(3, 2\), got U8 \(3, 1\)"),
        ("row_scale", lambda a: a[:4], r"'row_scale' must be F32 \(5,\), got F32 \(4,\)"),
        ("row_scale", lambda a: -a, r"row_scale must be positive"),
        ("permutation", lambda a: a.astype(np.int64), r"'permutation' must be U32 \(70,\)"),
        ("permutation", lambda a: 0 * a, r"permutation must hold each of 0\.\.69 exactly once"),
        ("input_scale", lambda a: a[:2], r"'input_scale' must be F32 \(70,\), got F32 \(2,\)"),
        ("input_scale", lambda a: a * np.float32(np.nan), r"input_scale must be finite, got nan"),
        ("scales", lambda a: a // 2, r"largest of a row's scales must be 65535"),
        ("codes", lambda a: a ^ 1, r"content is damaged: digest \w{16}, but \w{16} was written"),
    ])
    def test_wrong_tensor(self, rewrite, name, change, message):
        def damage(tensors, metadata):
            tensors[name] = np.ascontiguousarray(change(tensors[name]))
        with pytest.raises(FileError, match=r"q\.safetensors: .*" + message):
            load(rewrite(damage))


class TestConstructor:
    def make(self, **changes):
        arguments = {"config": BitSerial(bits=2, group_size=None),
                     "codes": np.zeros((2, 3), np.uint8),
                     "scales": np.full((2, 1), 65535, np.uint16),
                     "row_scale": np.ones(2, np.float32)}
        return BitSerialMatrix(**arguments | changes)

    def test_legal(self):
        q = self.make(permutation=np.array([2, 0, 1]), input_scale=np.ones(3, np.float32),
                      output_scale=np.float32(0.5))
        assert q.shape == (2, 3) and type(q.output_scale) is float

    def test_arrays_are_not_the_callers(self):
        arrays = {"codes": np.zeros((2, 3), np.uint8), "scales": np.full((2, 1), 65535, np.uint16),
                  "row_scale": np.ones(2, np.float32), "permutation": np.arange(3),
                  "input_scale": np.ones(3, np.float32)}
        before = {name: array.copy() for name, array in arrays.items()}
        q = self.make(**arrays)
        for name, array in arrays.items():
            array[:] = 0
            assert np.array_equal(getattr(q, name), before[name])

    @pytest.mark.parametrize("value", ["x", True, 1j, [1.0]])
    def test_output_scales_of_another_kind(self, value):
        with pytest.raises(ArgumentTypeError, match="output_scale must be a real number or None"):
            self.make(output_scale=value)

    @pytest.mark.parametrize("changes, message", [
        ({"permutation": np.array([0, 1])}, r"permutation must have shape \[K\] = \(3,\)"),
        ({"permutation": np.array([0, 1, 1])}, r"permutation must hold each of 0\.\.2"),
        ({"permutation": np.array([-1, 0, 1])}, r"permutation must hold each of 0\.\.2"),
        ({"permutation": [0, 1, 2]}, r"permutation must be a NumPy array of int64, got list"),
        ({"input_scale": np.ones(3)}, r"input_scale must be a NumPy array of float32, got float64"),
        ({"input_scale": np.array([1, np.inf, 1], np.float32)}, r"input_scale must be finite"),
        ({"input_scale": np.full(3, 1e35, np.float32)}, r"weights must stay within float32"),
        ({"output_scale": 0.0}, r"output_scale must be a positive float32 or None, got 0\.0"),
        ({"output_scale": 1e39}, r"output_scale must be a positive float32 or None"),
        ({"output_scale": float("nan")}, r"output_scale must be a positive float32 or None"),
        ({"codes": np.zeros((0, 3), np.uint8)}, r"at least one row and column, got 0 x 3"),
    ])
    def test_refused(self, changes, message):
        with pytest.raises(ArgumentError, match=message):
            self.make(**changes)


class TestNeeds:
    def test_what_suits_all_comes_first(self):
        needs = shared_needs([{"high_lanes": (16, 32, 8, 4), "bank": 64},
                              {"high_lanes": (1, 2, 4, 8, 16, 32), "bank": 64, "turns": (4, 2)}])
        assert needs == {"high_lanes": (16, 8, 4, 32), "bank": (64,), "turns": (4, 2)}

    def test_what_none_has_is_empty(self):
        assert shared_needs([{"bank": 64}, {"bank": 128}]) == {"bank": ()}

    def test_unmet(self):
        engine = EngineConfig(zero_points=False)
        assert unmet(engine, {"lanes": (engine.lanes,)}) is None
        assert unmet(engine, {"zero_points": (True,), "rows": (4, 2)}) == (
            "zero_points=False, rows=1", "zero_points=True, rows=2 or 4")
