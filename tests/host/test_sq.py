"""SQ matrices and their quantiser."""

import itertools

import numpy as np
import pytest

import host
from host.formats.sq import SQ, SQMatrix

LEGAL = [{"bank": 32, "sparsity": 0.75, "low": 4}, {"bank": 64, "sparsity": 0.5, "low": 2},
         {"bank": 64, "sparsity": 0.984375, "low": 3}, {"bank": 128, "sparsity": 0.875, "low": 4},
         {"bank": 64, "sparsity": 0.875, "low": 4, "storage": "mask"}]


def random_matrix(rng, N, K, **fields):
    """A matrix of random weights, often the largest, and scales; some rows are zero."""
    config = SQ(**fields)
    banks, count = config.banks(K), config.high_count
    mask = np.argsort(rng.random((N, banks, config.bank)), axis=2) < count
    mask[rng.random((N, banks)) < 0.1] = np.arange(config.bank) < count      # one beside the other
    ends = rng.random((N, banks, config.bank)) < 0.3
    low = np.where(ends, rng.choice([-config.low_max, config.low_max], ends.shape),
                   rng.integers(-config.low_max, config.low_max + 1, ends.shape))
    high = np.where(rng.random((N, banks, count)) < 0.3, rng.choice([-127, 127], (N, banks, count)),
                    rng.integers(-127, 128, (N, banks, count)))
    scales = rng.integers(0, 65536, (N, banks))
    scales[np.arange(N), rng.integers(0, banks, N)] = 65535
    scales[rng.random(N) < 0.1] = 0
    return SQMatrix(
        config, (N, K), np.where(mask, config.sentinel, low).reshape(N, -1).astype(np.int8),
        high.astype(np.int8), scales.astype(np.uint16),
        rng.integers(0, 8, (N, banks)).astype(np.uint8), (rng.random(N) + 0.1).astype(np.float32))


def error(W, q):
    """Of the weights, relative."""
    return np.sqrt(np.square(q.dequantize() - W).mean() / np.square(W).mean())


class TestMatrix:
    @pytest.mark.parametrize("fields", LEGAL)
    def test_means_what_it_says(self, fields):
        q = random_matrix(np.random.default_rng(0), 5, 150, **fields)
        config, (N, K) = q.config, q.shape
        W = q.dequantize()
        for n in range(N):
            high = iter(q.high[n].reshape(-1).tolist())
            for k in range(K):
                bank = k // config.bank
                low = int(q.low[n, k])
                step = float(q.row_scale[n]) * int(q.scales[n, bank])
                value = low * 16 * step
                if low == -2**(config.low - 1):
                    value = next(high) * 2**int(q.exponents[n, bank]) * step
                assert W[n, k] == np.float32(value)
        assert q.row_bound == np.abs(q.integer_weights()).sum(axis=1).max()
        assert q.planes == config.low

    @pytest.mark.parametrize("fields, storage, bits", [
        # Per weight: low bits, the part that is high times eight, or a bit of mask.
        (dict(), "sentinel", 4 + 1), (dict(storage="mask"), "mask", 1 + 3.5 + 1),
        (dict(sparsity=0.75), "sentinel", 4 + 2), (dict(sparsity=0.5), "mask", 1 + 2 + 4),
        (dict(sparsity=0.5, low=2), "sentinel", 2 + 4), (dict(sparsity=0.5, low=3), "mask", 6.5)])
    def test_bits(self, fields, storage, bits):
        q = random_matrix(np.random.default_rng(0), 16, 256, **fields)
        assert q.config.storage == storage
        assert q.code_bits_per_weight == bits
        assert q.bits_per_weight == bits + (16 + 3) / 64 + 32 / 256
        low, sparsity = q.config.low, q.config.sparsity
        assert q.config.paper_bits == 8 * (1 - sparsity) + low * sparsity

    def test_padding_counts(self):
        q = random_matrix(np.random.default_rng(0), 16, 65)
        assert q.code_bits_per_weight == 5 * 128 / 65

    @pytest.mark.parametrize("fields", LEGAL)
    def test_file(self, fields, tmp_path):
        q = random_matrix(np.random.default_rng(1), 7, 200, **fields)
        q.save(tmp_path / "q.safetensors")
        back = host.load(tmp_path / "q.safetensors")
        assert back.digest == q.digest and back.config == q.config
        assert np.array_equal(back.dequantize(), q.dequantize())
        stored = (tmp_path / "q.safetensors").stat().st_size
        assert stored < q.bits_per_weight * 7 * 200 / 8 + 1500

    @pytest.mark.parametrize("name, value, message", [
        ("low", np.full((5, 192), -8, np.int8), "8 high weights .*not 64 as bank 0 of row 0"),
        ("low", np.zeros((5, 192), np.int8), "not 0 as bank 0 of row 0"),
        ("low", np.full((5, 192), 8, np.int8), r"-7\.\.7, .* sentinel -8; got 8"),
        ("low", np.zeros((5, 150), np.int8), r"\(5, 192\), got \(5, 150\)"),
        ("high", np.full((5, 3, 8), -128, np.int8), r"-127\.\.127, got -128"),
        ("high", np.zeros((5, 3, 7), np.int8), r"\(5, 3, 8\)"),
        ("exponents", np.full((5, 3), 8, np.uint8), r"0\.\.7, got 8"),
        ("scales", np.ones((5, 3), np.uint16), "65535, or 0"),
        ("row_scale", np.full(5, 1e35, np.float32), "float32"),
    ])
    def test_arrays_that_contradict_each_other(self, name, value, message):
        q = random_matrix(np.random.default_rng(0), 5, 150)
        given = q._arrays() | {name: value}
        with pytest.raises(host.ArgumentError, match=message):
            SQMatrix(q.config, q.shape, **given)


class TestConfig:
    def test_names_of_the_paper(self):
        config = SQ(bank=64, sparsity=0.875, high=8, low=4)
        assert (config.high_count, config.paper_bits, config.sentinel) == (8, 4.5, -8)

    @pytest.mark.parametrize("fields, message", [
        ({"bank": 16}, "bank must be 32, 64 or 128, got 16"),
        ({"low": 5}, "low must be 2, 3 or 4, got 5"), ({"high": 6}, "high must be 8, got 6"),
        ({"side": "both"}, "side must be 'weight'.* got 'both'"),
        ({"storage": "list"},
         "storage must be 'sentinel' or 'mask' with side='weight', got 'list'"),
        ({"importance": "x"}, "importance must be"), ({"method": "x"}, "method must be"),
        ({"smoothing": 2}, r"smoothing must be in 0\.\.1, got 2"),
        ({"sparsity": 0.9}, r"whole number .* bank of 64, 1\.\.32: .*0\.875, .*leaves 6\.4"),
        ({"sparsity": 0.25}, r"in 0\.5\.\.0\.984375"), ({"sparsity": 1.0}, "got 1"),
        ({"sparsity": float("nan")}, "got nan"),
    ])
    def test_illegal(self, fields, message):
        with pytest.raises(host.ConfigError, match=message):
            SQ(**fields)

    @pytest.mark.parametrize("fields", [
        {"bank": 64.0}, {"sparsity": "0.5"}, {"sparsity": True}, {"storage": 3}, {"side": []},
        {"side": np.array(["weight"])}, {"smoothing": np.array([0.5, 0.6])}])
    def test_wrong_type(self, fields):
        with pytest.raises(host.ArgumentTypeError):
            SQ(**fields)


class TestFromCodes:
    def given(self, N=4, banks=2):
        rng = np.random.default_rng(0)
        mask = np.argsort(rng.random((N, banks, 64)), axis=2).reshape(N, -1) < 8
        return {"low": rng.integers(-7, 8, (N, 64 * banks)), "mask": mask,
                "high": rng.integers(-127, 128, (N, banks, 8)),
                "scales": rng.random((N, banks)) + 0.1, "bank": 64, "sparsity": 0.875,
                "exponents": rng.integers(-4, 4, (N, banks))}

    def test_is_near_what_was_given(self):
        given = self.given()
        q = host.from_codes("sq", **given, K=100)
        W = given["low"].astype(float)
        W[given["mask"]] = (given["high"] * 2.0**given["exponents"][..., None]).reshape(-1)
        W = (W * np.repeat(given["scales"], 64, axis=1))[:, :100]
        assert q.shape == (4, 100)
        assert np.abs(q.dequantize() - W).max() < 1e-4 * np.abs(W).max()

    def test_sentinels_are_a_mask(self):
        given = self.given()
        q = host.from_codes("sq", **given)
        unsigned = given | {"low": given["low"] & 7}
        assert host.from_codes("sq", **unsigned).digest == host.from_codes(
            "sq", **unsigned | {"low": unsigned["low"].astype(np.uint8)}).digest
        given["low"][given["mask"]] = -8
        assert host.from_codes("sq", **given).digest == q.digest
        del given["mask"]
        assert host.from_codes("sq", **given).digest == q.digest

    @pytest.mark.parametrize("change, message", [
        ({"mask": None}, "8 high weights .*not 0 .*must not be the sentinel -8"),
        ({"low": np.full((4, 128), -8)}, r"-7\.\.7 \(-8 only where the mask is set"),
        ({"low": np.full((4, 128), 9)}, "got 9"),
        ({"low": np.zeros((4, 120), int)}, "whole banks of 64"),
        ({"mask": np.ones((4, 128), bool)}, "8 high weights .*not 64 as bank 0 of row 0"),
        ({"mask": np.ones((4, 64), bool)}, r"mask must have shape .*\(4, 128\)"),
        ({"mask": np.ones((4, 128), int)}, "mask must be"),
        ({"high": np.full((4, 2, 8), 128)}, r"-127\.\.127, got 128"),
        ({"high": np.zeros((4, 2, 9), int)}, r"\(4, 2, 8\)"),
        ({"exponents": np.full((4, 2), 4)}, r"-4\.\.3, got 4"),
        ({"scales": -np.ones((4, 2))}, "not be negative"),
        ({"low_bits": 5}, "low_bits must be 2, 3 or 4, got 5"),
        ({"bits": 4}, "low_bits is the width of low"), ({"side": "foo"}, "side must be"),
        ({"sparsity": 0.9}, "whole number"), ({"sparsity": 10**400}, "of 1329 bits"),
        ({"K": 64}, r"K = 65\.\.128 .*got K=64"),
    ])
    def test_illegal(self, change, message):
        with pytest.raises((host.ArgumentError, host.ArgumentTypeError), match=message):
            host.from_codes("sq", **self.given() | change)


class TestQuantizer:
    @pytest.mark.parametrize("name, draw, fields, most", [
        # Measured 0.0537, 0.0481, 0.0308 and 0.0924.
        ("gauss", lambda rng: rng.standard_normal((64, 512)), {}, 0.055),
        ("t4", lambda rng: rng.standard_t(4, (64, 512)), {}, 0.051),
        ("t4", lambda rng: rng.standard_t(4, (64, 512)), {"bank": 32, "sparsity": 0.75}, 0.033),
        ("gauss", lambda rng: rng.standard_normal((64, 512)), {"low": 2, "sparsity": 0.5}, 0.095)])
    def test_error(self, name, draw, fields, most):
        W = draw(np.random.default_rng(0)).astype(np.float32)
        assert error(W, host.quantize(W, format="sq", **fields)) < most

    def test_high_weights_are_the_largest_of_their_bank(self):
        W = np.random.default_rng(0).standard_normal((20, 100)).astype(np.float32)
        q = host.quantize(W, format="sq")
        for row, mask in zip(W, q.mask):
            for bank in range(2):
                part = np.abs(row[64 * bank:64 * bank + 64])
                assert set(np.flatnonzero(mask[64 * bank:64 * bank + 64])) == set(
                    np.argsort(-part, kind="stable")[:8])

    def test_storage_changes_nothing_but_the_file(self):
        W = np.random.default_rng(0).standard_normal((20, 100)).astype(np.float32)
        a, b = (host.quantize(W, format="sq", storage=s) for s in ("sentinel", "mask"))
        assert np.array_equal(a.dequantize(), b.dequantize()) and a.digest != b.digest

    @pytest.mark.parametrize("K", [1, 5, 64, 65])
    def test_few_columns(self, K):
        W = np.random.default_rng(0).standard_normal((3, K)).astype(np.float32)
        q = host.quantize(W, format="sq")
        assert q.dequantize().shape == (3, K) and error(W, q) < 0.06

    def test_zeros_ties_and_one_large_weight(self):
        W = np.zeros((4, 128), np.float32)
        W[1] = 3
        W[2, 5] = 1e6
        W[3, :64] = np.where(np.arange(64) == 7, 1e6, 1)
        q = host.quantize(W, format="sq")
        assert np.array_equal(q.dequantize()[:3], W[:3])
        assert np.abs(q.dequantize()[3, 7] / 1e6 - 1) < 0.01

    def test_calibration_helps(self):
        rng = np.random.default_rng(0)
        W = rng.standard_normal((64, 192)).astype(np.float32)
        X = (rng.standard_normal((400, 24)) @ rng.standard_normal((24, 192))
             + 0.1 * rng.standard_normal((400, 192)))
        X[:, 3] *= 30
        X = X.astype(np.float32)
        output_error = lambda q: np.square(X @ (q.dequantize() - W).T).mean()
        plain = output_error(host.quantize(W, format="sq"))
        found = {importance: output_error(host.quantize(W, format="sq", calibration=X,
                                                        importance=importance, smoothing=0))
                 for importance in ("gptq", "paper")}
        assert max(found.values()) < plain / 2
        assert found["gptq"] < output_error(host.quantize(W, format="sq", calibration=X,
                                                          method="rtn", smoothing=0))
        # A channel thirty times larger: smoothing pays.
        assert host.quantize(W, format="sq", calibration=X).input_scale is not None

    @pytest.mark.parametrize("size", [1e-30, 1e30, 8e37])
    def test_weights_of_any_size(self, size):
        W = np.random.default_rng(0).uniform(-size, size, (6, 70))
        assert error(W, host.quantize(W.astype(np.float32), format="sq")) < 0.06

    def test_what_needs_calibration(self):
        W = np.ones((2, 64), np.float32)
        for fields, name in (({"method": "gptq"}, "gptq"), ({"smoothing": 0.5}, "smoothing")):
            with pytest.raises(host.ArgumentError, match=f"{name}.* needs calibration"):
                host.quantize(W, format="sq", **fields)

    def test_progress_reaches_the_end(self):
        rng = np.random.default_rng(0)
        W, X = rng.standard_normal((600, 200)), rng.standard_normal((600, 200))
        for calibration, method in itertools.product((None, X), ("rtn", "gptq")):
            if calibration is None and method == "gptq":
                continue
            seen = []
            host.quantize(W, format="sq", method=method, calibration=calibration,
                          progress=lambda done, total, seen=seen: seen.append((done, total)))
            assert seen[-1][0] == seen[-1][1] and sorted(seen) == seen
