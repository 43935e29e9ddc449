"""K-means matrices and their quantiser."""

import itertools
import json

import numpy as np
import pytest
from scipy.special import ndtri

import host
import sim.golden
from host.activations import quantize_tokens
from host.formats.kmeans import KMeans, KMeansMatrix, step_min
from host.formats.kmeans1d import cluster, distinct


def arrays(rng, N=6, K=50, **fields):
    """Arguments of the constructor, with random content."""
    config = KMeans(**fields)

    def book(bits):
        return np.sort(rng.choice(np.arange(-127, 128), 2**bits, replace=False)).astype(np.int8)

    return {"config": config, "shape": (N, K),
            "codes": rng.integers(0, 2**config.bits, (N, K)).astype(np.uint8),
            "centroids": book(config.bits), "row_scale": rng.random(N).astype(np.float32),
            "activation_centroids": book(config.activation_bits), "activation_step": 0.03}


class TestMatrix:
    @pytest.mark.parametrize("bits", [2, 3, 4])
    def test_means_what_it_says(self, bits):
        given = arrays(np.random.default_rng(bits), bits=bits)
        W = KMeansMatrix(**given).dequantize()
        for n, k in itertools.product(*map(range, given["shape"])):
            exact = int(given["centroids"][given["codes"][n, k]]) * float(given["row_scale"][n])
            assert W[n, k] == np.float32(exact)

    def test_bits(self):
        q = KMeansMatrix(**arrays(np.random.default_rng(0), N=64, K=64, bits=3))
        assert q.code_bits_per_weight == 3
        assert q.bits_per_weight == 3 + (32 * 64 + 8 * 8 + 8 * 16 + 64) / 64**2

    def test_file(self, tmp_path):
        q = KMeansMatrix(**arrays(np.random.default_rng(1), bits=3, outliers=0.1),
                         input_scale=np.full(50, 2, np.float32), output_scale=0.5)
        q.save(tmp_path / "q.safetensors")
        back = host.load(tmp_path / "q.safetensors")
        assert back.digest == q.digest and back.config == q.config
        assert back.activation_step == q.activation_step
        assert np.array_equal(back.dequantize(), q.dequantize())

    @pytest.mark.parametrize("name, value, message", [
        ("codes", np.full((6, 50), 16, np.uint8), r"0\.\.15, got 16"),
        ("codes", np.zeros((6, 49), np.uint8), r"\(6, 50\), got \(6, 49\)"),
        ("centroids", np.arange(-128, -112).astype(np.int8), r"-127\.\.127, got -128"),
        ("centroids", np.zeros(16, np.int8), "increase, none repeated"),
        ("centroids", np.arange(16)[::-1].astype(np.int8), "increase"),
        ("centroids", np.arange(8).astype(np.int8), r"\(16,\), got \(8,\)"),
        ("activation_centroids", np.repeat(np.arange(8), 2).astype(np.int8),
         "activation_centroids must increase, none repeated"),
        ("row_scale", np.full(6, -1, np.float32), "not be negative"),
        ("row_scale", np.full(6, np.nan, np.float32), "finite"),
        ("row_scale", np.full(6, 1e37, np.float32), "float32"),
        ("activation_step", float("nan"), r"4\.76837e-05\.\.16 for K = 50"),
        ("activation_step", 1e-5, r"4\.76837e-05\.\.16 for K = 50"),
        ("activation_step", 17.0, r"\.\.16 for K = 50"),
        ("activation_step", "1", "real number"),
    ])
    def test_arrays_that_contradict_each_other(self, name, value, message):
        given = arrays(np.random.default_rng(0)) | {name: value}
        with pytest.raises((host.ArgumentError, host.ArgumentTypeError), match=message):
            KMeansMatrix(**given)


class TestConfig:
    @pytest.mark.parametrize("outliers, K, count", [
        (0.005, 4096, 21), (0, 4096, 0), (0.005, 2, 1), (0.005, 1, 0), (0.5, 7, 3), (1e-9, 10, 1)])
    def test_outliers_of_a_token(self, outliers, K, count):
        assert KMeans(outliers=outliers).outlier_count(K) == count

    @pytest.mark.parametrize("fields, message", [
        ({"bits": 5}, "bits must be one of 2, 3, 4, got 5"),
        ({"activation_bits": 1}, "activation_bits must be one of 2, 3, 4, got 1"),
        ({"outliers": 0.51}, r"outliers must be in 0\.\.0\.5"),
        ({"outliers": -0.1}, r"outliers must be in 0\.\.0\.5"),
        ({"outliers": float("nan")}, r"outliers must be in 0\.\.0\.5"),
        ({"outliers": True}, "real number"), ({"bits": 4.0}, "integer")])
    def test_bad_fields(self, fields, message):
        with pytest.raises((host.ConfigError, host.ArgumentTypeError), match=message):
            KMeans(**fields)


class TestImport:
    given = dict(codes=np.arange(12).reshape(3, 4), centroids=np.linspace(-1, 1, 16),
                 scales=np.ones(3), activation_centroids=np.linspace(-3, 3, 8))

    def test_rounds_centroids_to_int8(self):
        q = host.from_codes("kmeans", **self.given, outliers=0.25)
        assert q.config == KMeans(bits=4, activation_bits=3, outliers=0.25)
        exact = self.given["centroids"][self.given["codes"]]
        assert np.abs(q.dequantize() - exact).max() <= 0.5 / 127
        assert q.activation_step == pytest.approx(3 / 127)

    @pytest.mark.parametrize("name, value, message", [
        ("codes", np.full((3, 4), 16), r"0\.\.15, the centroids, got 16"),
        ("codes", np.full((3, 4), -1), "got -1"), ("codes", np.zeros(4, int), r"\[N, K\]"),
        ("codes", np.zeros((3, 4)), "integers"),
        ("centroids", np.linspace(-1, 1, 15), r"4, 8, 16 numbers, got shape \(15,\)"),
        ("centroids", np.r_[np.linspace(-1, 1, 15), 1], "increase, none repeated"),
        ("centroids", np.linspace(1, -1, 16), "increase"),
        ("centroids", np.r_[np.linspace(-1, 1, 15), np.inf], "finite"),
        ("centroids", np.r_[np.arange(15) * 1e-6, 1], "differ when they are rounded to int8"),
        ("activation_centroids", [np.nan] * 4, "finite"),
        ("activation_centroids", np.arange(-4, 4) * 1000.0,
         r"1e-30\.\.2032 in magnitude, got 4000"),
        ("centroids", np.arange(4) * 5e-324, "1e-30"),
        ("scales", -np.ones(3), "not be negative"), ("scales", np.ones(4), r"\(3,\), got \(4,\)"),
        ("outliers", 2, "outliers must be in")])
    def test_bad_arrays(self, name, value, message):
        with pytest.raises((host.ArgumentError, host.ArgumentTypeError), match=message):
            host.from_codes("kmeans", **{**self.given, name: value})


class TestCluster:
    @pytest.mark.parametrize("seed", range(60))
    def test_is_the_best_of_all_ways_to_cut(self, seed):
        rng = np.random.default_rng(seed)
        values = rng.integers(-5, 6, rng.integers(1, 9)).astype(float)
        weights = rng.random(len(values)) * (rng.random(len(values)) < 0.8)
        weights[0] = 1
        count = int(rng.integers(1, 5))

        def error(centroids):
            return (weights * (np.abs(values[:, None] - centroids).min(axis=1))**2).sum()

        different = np.unique(values[weights > 0])
        best = np.inf
        for cuts in itertools.combinations(range(1, len(different)),
                                           min(count, len(different)) - 1):
            runs = np.split(different, cuts)
            best = min(best, error(np.array(
                [np.average(values[m], weights=weights[m])
                 for run in runs for m in [np.isin(values, run) & (weights > 0)]])))
        found = cluster(values, weights, count)
        assert (np.diff(found) > 0).all() and len(found) <= count
        assert error(found) == pytest.approx(best, abs=1e-9)

    def test_gaussian_is_within_a_thousandth_of_the_best_quantiser(self):
        """Max's table: 0.009497 of the variance with 16 levels."""
        values = ndtri((np.arange(2**18) + 0.5) / 2**18)
        centroids = cluster(values, np.ones_like(values), 16)
        error = np.abs(values[:, None] - centroids).min(axis=1)
        assert (error**2).mean() == pytest.approx(0.009497, rel=2e-3)

    def test_distinct_fills_up(self):
        for given in ([], [0.2], [0.2, 0.3, 126.8], np.full(8, -127.0), np.linspace(-127, 127, 16)):
            found = distinct(np.asarray(given), 16)
            assert (np.diff(found.astype(int)) > 0).all() and len(found) == 16
            assert set(np.rint(given).astype(int)) <= set(found.tolist())


class TestQuantizer:
    def test_weights_are_at_the_best_error(self):
        W = np.random.default_rng(0).standard_normal((256, 512)).astype(np.float32)
        q = host.quantize(W, format="kmeans")
        assert ((q.dequantize() - W)**2).mean() < 1.04 * 0.0095 * W.var()

    def test_rows_of_any_size(self):
        W = np.random.default_rng(0).standard_normal((8, 64))
        W *= 10.0**np.arange(-30, 34, 8)[:, None]
        W[3] = 0
        q = host.quantize(W.astype(np.float32), format="kmeans")
        assert not q.dequantize()[3].any()
        error = np.abs(q.dequantize() - W).max(axis=1)
        assert (error[W.any(axis=1)] < 0.6 * np.abs(W).max(axis=1)[W.any(axis=1)]).all()

    @pytest.mark.parametrize("W", [np.zeros((3, 5)), np.ones((3, 5)), np.full((1, 1), -2.0)])
    def test_few_different_weights_are_exact(self, W):
        q = host.quantize(W.astype(np.float32), format="kmeans", bits=2)
        assert np.allclose(q.dequantize(), W, rtol=1e-6)

    @pytest.mark.parametrize("calibration", [np.zeros((3, 40)), np.eye(40)])
    def test_calibration_without_inliers_is_none(self, calibration):
        """Activations are taken for Gaussian then, as without calibration."""
        W = np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32)
        found, plain = (host.quantize(W, format="kmeans", calibration=c)
                        for c in (calibration, None))
        assert np.array_equal(found.activation_centroids, plain.activation_centroids)
        assert found.activation_step == plain.activation_step

    def test_largest_weights(self):
        W = np.zeros((2, 1000), np.float32)
        W[0], W[1, 0] = 2.0**126, 2.0**126
        q = host.quantize(W, format="kmeans")
        assert np.allclose(q.dequantize()[0], 2.0**126)

    @pytest.mark.parametrize("calibration", [
        np.zeros((4, 40)), np.ones((4, 40)), np.eye(4, 40), 1e30 * np.ones((1, 40)),
        np.full((2, 40), -1e-40)])
    def test_degenerate_calibration(self, calibration):
        W = np.random.default_rng(0).standard_normal((8, 40)).astype(np.float32)
        q = host.quantize(W, format="kmeans", calibration=calibration.astype(np.float32))
        error = np.linalg.norm(calibration @ (q.dequantize() - W).T.astype(float))
        assert error <= 0.1 * np.linalg.norm(calibration @ W.T.astype(float))

    @pytest.mark.parametrize("per_weight", [False, True])
    def test_sensitivity_decides_what_counts(self, per_weight):
        rng = np.random.default_rng(0)
        W = rng.standard_normal((60, 40)).astype(np.float32)
        S = np.full((60, 40) if per_weight else 40, 1e-3)
        chosen = rng.random(S.shape) < 0.1
        S[chosen] = 1e3
        mine, plain = (host.quantize(W, format="kmeans", bits=2, sensitivity=s).dequantize() - W
                       for s in (S, None))
        weight = np.broadcast_to(S, W.shape)
        assert (weight * mine**2).sum() < 0.7 * (weight * plain**2).sum()
        assert (mine**2).sum() > (plain**2).sum()

    def test_sensitivity_of_columns_is_that_of_calibration(self):
        rng = np.random.default_rng(1)
        W, X = rng.standard_normal((20, 30)), rng.standard_normal((50, 30))
        a = host.quantize(W, format="kmeans", sensitivity=(X**2).sum(axis=0))
        b = host.quantize(W, format="kmeans", calibration=X)
        assert np.array_equal(a.codes, b.codes) and np.array_equal(a.centroids, b.centroids)

    @pytest.mark.parametrize("sensitivity", [np.zeros(40), np.full((6, 40), 1e-300)])
    def test_sensitivity_of_nothing(self, sensitivity):
        W = np.random.default_rng(0).standard_normal((6, 40))
        error = host.quantize(W, format="kmeans", sensitivity=sensitivity).dequantize() - W
        assert np.linalg.norm(error) < 0.2 * np.linalg.norm(W)

    @pytest.mark.parametrize("sensitivity, error, message", [
        (np.ones(39), host.ArgumentError, r"shape \(6, 40\) or \(40,\), as W, got \(1, 39\)"),
        (np.ones((6, 4, 10)), host.ArgumentError, r"\[N, K\] or \[K\]"),
        (-np.ones(40), host.ArgumentError, "must not be negative, got -1.0"),
        (np.full(40, np.nan), host.ArgumentError, "must be finite"),
        (np.ones(40, int), host.ArgumentTypeError, "must be float16")])
    def test_bad_sensitivity(self, sensitivity, error, message):
        with pytest.raises(error, match=message):
            host.quantize(np.ones((6, 40)), format="kmeans", sensitivity=sensitivity)

    def test_sensitivity_is_for_kmeans(self):
        with pytest.raises(host.ArgumentTypeError, match="for format kmeans, not bitserial"):
            host.quantize(np.ones((6, 40)), sensitivity=np.ones(40))

    def test_calibration_decides_what_counts(self):
        rng = np.random.default_rng(0)
        W = rng.standard_t(3, (64, 128)).astype(np.float32)
        X = rng.standard_normal((256, 128)).astype(np.float32)
        X[:, 16:] *= 0.01
        error = {name: host.quantize(W, format="kmeans", bits=2, calibration=c).dequantize() - W
                 for name, c in (("with", X), ("without", None))}
        assert np.linalg.norm(X @ error["with"].T) < 0.9 * np.linalg.norm(X @ error["without"].T)

    def test_outliers_are_not_what_centroids_are_for(self):
        rng = np.random.default_rng(0)
        W, X = rng.standard_normal((8, 400)), rng.standard_normal((32, 400))
        X[:, 7] = 1000
        kept = host.quantize(W, format="kmeans", calibration=X, outliers=0.005)
        lost = host.quantize(W, format="kmeans", calibration=X, outliers=0.0)
        assert kept.activation_step * 127 < 3.5 and lost.activation_step * 127 > 50

    def test_output_error(self):
        """Of the goals, on a smaller layer: uniform W4A4 with a scale per row and token."""
        rng = np.random.default_rng(0)
        M, N, K = 16, 128, 2048
        loud = rng.choice(K, 4, replace=False)

        def activations(rows):
            x = rng.standard_t(4, (rows, K))
            x[:, loud] *= 20
            return x.astype(np.float32)

        def uniform(a):
            step = np.abs(a).max(axis=1, keepdims=True) / 7
            return np.rint(a / step) * step

        W, X, x = rng.standard_normal((N, K)).astype(np.float32), activations(64), activations(M)
        q = host.quantize(W, format="kmeans", calibration=X)
        exact = x.astype(float) @ W.T.astype(float)
        error = np.linalg.norm(sim.golden.matmul(q, x) - exact)
        assert error < 0.30 * np.linalg.norm(uniform(x) @ uniform(W).T - exact)

    def test_progress_reaches_its_end(self):
        seen = []
        W = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
        host.quantize(W, format="kmeans", progress=lambda *args: seen.append(args))
        assert seen[-1][0] == seen[-1][1] and seen == sorted(seen)


class TestToken:
    @pytest.mark.parametrize("huge", [False, True])
    def test_scale_is_as_good_as_an_oracle(self, huge):
        """At most 3 % more output error than with each token's best scale, one huge element or not.

        The best is that of the least error of the activations, of 21 within a factor of 1.6.
        """
        rng = np.random.default_rng(0)
        M, N, K = 24, 128, 1024
        W, X = rng.standard_normal((N, K)).astype(np.float32), rng.standard_t(4, (128, K))
        x = rng.standard_t(4, (M, K)).astype(np.float32)
        if huge:
            x[np.arange(M), rng.integers(K, size=M)] = 1000 * np.abs(x).mean()
        q = host.quantize(W, format="kmeans", calibration=X)
        levels, scale = quantize_tokens(x, 16)
        V = q.dequantize().astype(float)

        def errors(factor):
            """Norms of each token's errors, of the activations and of the outputs."""
            fields = {n: getattr(q, n) for n in ("codes", "centroids", "row_scale",
                                                 "activation_centroids")}
            scaled = KMeansMatrix(q.config, q.shape, **fields,
                                  activation_step=q.activation_step * factor)
            values = np.array([sim.golden.token_values(scaled, token)[0] for token in levels])
            error = values * scaled.token_units(levels, scale)[:, None].astype(float) - x
            return np.linalg.norm(error, axis=1), np.linalg.norm(error @ V.T, axis=1)

        candidates = np.array([errors(f) for f in np.geomspace(0.6, 1.6, 21)])
        best = candidates[candidates[:, 0].argmin(axis=0), 1, np.arange(M)]
        assert np.linalg.norm(errors(1)[1]) <= 1.03 * np.linalg.norm(best)

    def test_a_unit_beyond_float32_is_refused(self):
        q = host.from_codes("kmeans", codes=np.zeros((1, 8), int), centroids=np.arange(4.0) - 2,
                            scales=[1e-10], activation_centroids=np.arange(-2032, 0, 508.0))
        with pytest.raises(host.ArgumentError, match="must stay within float32"):
            q.token_units(np.full((1, 8), 32767), np.array([1e37], np.float32))

    def test_the_smallest_factor(self):
        """More equal elements than the gain counts, in the coarsest unit: still not zero."""
        q = host.from_codes("kmeans", codes=np.ones((1, 4200), int), scales=[1.0], outliers=0.5,
                            centroids=np.arange(16) - 8.0,
                            activation_centroids=np.linspace(-2032, 2032, 16))
        x = np.full((1, 4200), 32767)
        assert np.isfinite(q.token_units(x, np.ones(1, np.float32))).all()
        assert sim.golden.token_values(q, x[0])[1] == 2**30

    def test_step_of_the_longest_token_leaves_room(self):
        assert step_min(16384) < 2 / 127    # of a codebook that ends at two mean magnitudes


def test_command_line(tmp_path, capsys):
    from host.cli.quantize import main

    W = np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32)
    np.save(tmp_path / "w.npy", W)
    out = tmp_path / "q.safetensors"
    assert main([str(tmp_path / "w.npy"), "--format", "kmeans", "--bits", "3", "--activation-bits",
                 "4", "--outliers", "0.1", "--out", str(out), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["config"] == {"bits": 3, "activation_bits": 4, "outliers": 0.1}
    assert host.load(out).config == KMeans(bits=3, outliers=0.1)
