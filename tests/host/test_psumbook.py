"""Psumbook matrices and their quantiser."""

import itertools
import json

import numpy as np
import pytest

import host
from host.formats import codebooks
from host.formats.codebooks import beam_search
from host.formats.psumbook import Psumbook, PsumbookMatrix

SMALL = {"v": 4, "codebooks": 2, "code_bits": 4, "group_size": 32}


def gaussian(N, K, seed=0):
    return np.random.default_rng(seed).standard_normal((N, K)).astype(np.float32)


def arrays(rng, N=6, K=50, **fields):
    """Arguments of the constructor, with random content."""
    config = Psumbook(**{**SMALL, **fields})
    m, size = config.codebooks, 2**config.code_bits
    scales = rng.integers(0, 65536, (N, config.groups(K))).astype(np.uint16)
    scales[:, 0] = 65535
    return {"config": config, "shape": (N, K),
            "codes": rng.integers(0, size, (m, N, config.chunks(K))).astype(np.uint8),
            "centroids": rng.integers(-127, 128, (m, size, config.v)).astype(np.int8),
            "scales": scales, "row_scale": (rng.random(N) + 0.1).astype(np.float32)}


class TestMatrix:
    @pytest.mark.parametrize("seed", range(5))
    def test_means_what_it_says(self, seed):
        rng = np.random.default_rng(seed)
        given = arrays(rng, v=int(rng.choice([2, 4, 8])), codebooks=int(rng.integers(1, 5)))
        q = PsumbookMatrix(**given)
        config, (N, K) = q.config, q.shape
        W = q.dequantize()
        for n, k in itertools.product(range(N), range(K)):
            j, t = divmod(k, config.v)
            total = sum(int(given["centroids"][c, given["codes"][c, n, j], t])
                        for c in range(config.codebooks))
            exact = total * int(given["scales"][n, k // 32]) * float(given["row_scale"][n])
            assert W[n, k] == np.float32(exact)
        assert q.row_bound == np.abs(q.integer_weights()).sum(axis=1).max()

    def test_bits(self):
        q = PsumbookMatrix(**arrays(np.random.default_rng(0), N=64, K=64, v=8, code_bits=5))
        assert q.code_bits_per_weight == 2 * 5 / 8
        codebooks = 8 * 2 * 32 * 8
        assert q.bits_per_weight == 1.25 + (16 * 2 * 64 + 32 * 64 + codebooks) / 64**2

    def test_file(self, tmp_path):
        q = PsumbookMatrix(**arrays(np.random.default_rng(1)),
                           permutation=np.random.default_rng(0).permutation(50))
        q.save(tmp_path / "q.safetensors")
        back = host.load(tmp_path / "q.safetensors")
        assert back.digest == q.digest and back.config == q.config
        assert np.array_equal(back.dequantize(), q.dequantize())

    @pytest.mark.parametrize("name, value, message", [
        ("codes", np.full((2, 6, 13), 16, np.uint8), r"0\.\.15, got 16"),
        ("codes", np.zeros((2, 6, 12), np.uint8), r"\(2, 6, 13\), got \(2, 6, 12\)"),
        ("codes", np.zeros((2, 6, 13)), "uint8"),
        ("centroids", np.full((2, 16, 4), -128, np.int8), r"-127\.\.127, got -128"),
        ("centroids", np.zeros((2, 32, 4), np.int8), r"\(2, 16, 4\)"),
        ("scales", np.ones((6, 2), np.uint16), "65535, or 0"),
        ("row_scale", np.zeros(6, np.float32), "positive"),
        ("row_scale", np.full(6, np.nan, np.float32), "finite"),
        ("row_scale", np.full(6, 1e35, np.float32), "float32"),
    ])
    def test_arrays_that_contradict_each_other(self, name, value, message):
        given = arrays(np.random.default_rng(0)) | {name: value}
        with pytest.raises(host.ArgumentError, match=message):
            PsumbookMatrix(**given)


class TestConfig:
    @pytest.mark.parametrize("fields, message", [
        ({"v": 3}, "v must be one of 2, 4, 8, got 3"), ({"code_bits": 9}, "code_bits .* got 9"),
        ({"code_bits": 3}, "got 3"), ({"codebooks": 0}, "codebooks .* got 0"),
        ({"codebooks": 5}, "got 5"), ({"group_size": 16}, "32, 64, 128 or None"),
    ])
    def test_illegal(self, fields, message):
        with pytest.raises(host.ConfigError, match=message):
            Psumbook(**fields)

    def test_wrong_type(self):
        with pytest.raises(host.ArgumentTypeError, match="integer"):
            Psumbook(v=4.0)


class TestFromCodes:
    def given(self, N=4, chunks=10, m=2, size=16, v=4):
        rng = np.random.default_rng(0)
        return {"codes": rng.integers(0, size, (m, N, chunks)),
                "codebooks": rng.standard_normal((m, size, v)),
                "scales": rng.random((N, 2)) + 0.1, "group_size": 32}

    def test_is_near_what_was_given(self):
        given = self.given()
        q = host.from_codes("psumbook", **given, K=37)
        total = sum(b[c] for b, c in zip(given["codebooks"], given["codes"])).reshape(4, -1)[:, :37]
        W = total * np.repeat(given["scales"], 32, axis=1)[:, :37]
        assert q.shape == (4, 37)
        # Half a unit of every centroid, and of the scales.
        assert np.abs(q.dequantize() - W).max() < 2.1 * np.abs(given["codebooks"]).max() / 254

    @pytest.mark.parametrize("change, message", [
        ({"codebooks": np.zeros((2, 17, 4))}, "power of two of centroids, got 17"),
        ({"codebooks": np.full((2, 16, 4), np.nan)}, "codebooks must be finite"),
        ({"codebooks": np.zeros((2, 512, 4))}, "code_bits .* got 9"),
        ({"scales": np.full((4, 2), np.inf)}, "scales must be finite"),
        ({"scales": -np.ones((4, 2))}, "not be negative"),
        ({"scales": np.ones((4, 3))}, r"\(4, 2\), got \(4, 3\)"),
        ({"codes": np.full((2, 4, 10), 16)}, r"0\.\.15, .* got 16"),
        ({"codes": np.full((2, 4, 10), -1)}, "got -1"),
        ({"codes": np.zeros((3, 4, 10), int)}, "2 codebooks"),
        ({"K": 36}, r"37\.\.40 weights a row, got K=36"),
    ])
    def test_contradictions(self, change, message):
        with pytest.raises(host.ArgumentError, match=message):
            host.from_codes("psumbook", **self.given() | change)


def test_command_line(tmp_path, capsys):
    from host.cli import quantize

    np.save(tmp_path / "w.npy", gaussian(32, 64))
    options = ["--format", "psumbook", "--v", "4", "--codebooks", "2", "--code-bits", "4"]
    assert quantize.main([str(tmp_path / "w.npy"), *options, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["config"] == {"v": 4, "codebooks": 2, "code_bits": 4, "group_size": 128}
    assert summary["code_bits_per_weight"] == 2.0
    assert quantize.main([str(tmp_path / "w.npy"), "--format", "psumbook", "--bits", "2"]) == 2
    assert "psumbook has no field 'bits'" in capsys.readouterr().err


def test_beam_search_finds_what_an_exhaustive_one_finds():
    rng = np.random.default_rng(0)
    books = rng.standard_normal((2, 16, 4)).astype(np.float32)
    x = rng.standard_normal((300, 4)).astype(np.float32)
    sums = (books[0][:, None] + books[1][None]).reshape(-1, 4)
    least = ((x[:, None] - sums[None])**2).sum(axis=2).min(axis=1)
    for beams in (16, 8):
        codes = beam_search(x, books, beams)
        found = ((x - books[0][codes[0]] - books[1][codes[1]])**2).sum(axis=1)
        assert np.allclose(found, least, atol=1e-4) if beams == 16 else \
            found.mean() < 1.1 * least.mean()


class TestQuantizer:
    def error(self, q, W):
        return float(((q.dequantize().astype(np.float64) - W)**2).mean() / (W**2).mean())

    @pytest.mark.parametrize("fields, most", [
        ({"v": 8, "codebooks": 2, "code_bits": 8}, 0.094),
        ({"v": 4, "codebooks": 1, "code_bits": 8}, 0.100),
        ({"v": 4, "codebooks": 2, "code_bits": 4}, 0.110),
    ])
    def test_gaussian_at_two_bits(self, fields, most):
        W = gaussian(256, 512)
        q = host.quantize(W, format="psumbook", group_size=None, **fields)
        assert q.code_bits_per_weight == 2.0 and self.error(q, W) < most

    def test_more_codebooks_are_better(self):
        W = gaussian(64, 256)
        errors = [self.error(host.quantize(W, format="psumbook", **SMALL | {"codebooks": m}), W)
                  for m in (1, 2, 3, 4)]
        assert errors == sorted(errors, reverse=True) and errors[3] < 0.02

    def test_the_seed_decides(self):
        W = gaussian(32, 64)
        same = [host.quantize(W, format="psumbook", seed=s, **SMALL).digest for s in (1, 1, 2)]
        assert same[0] == same[1] != same[2]

    def test_fewer_chunks_than_centroids(self):
        W = gaussian(2, 20)
        q = host.quantize(W, format="psumbook", v=4, codebooks=2, code_bits=8, group_size=None)
        assert self.error(q, W) < 1e-4 and not q.centroids[1].any()

    @pytest.mark.parametrize("W", [
        np.zeros((3, 40), np.float32), np.full((3, 40), -2.5, np.float32),
        gaussian(5, 33) * np.float32(1e30), gaussian(5, 33) * np.float32(1e-30),
        gaussian(3, 1), gaussian(1, 7), np.eye(40, dtype=np.float32),
        gaussian(4, 40) * np.array([[0], [1], [1e-20], [1e20]], np.float32),
    ])
    def test_odd_matrices(self, W):
        q = host.quantize(W, format="psumbook", **SMALL)
        assert q.shape == W.shape and np.isfinite(q.dequantize()).all()
        for row, back in zip(W.astype(np.float64), q.dequantize().astype(np.float64)):
            assert ((row - back)**2).sum() <= 0.5 * (row**2).sum()

    def test_calibration_lowers_the_output_error(self):
        rng = np.random.default_rng(0)
        W = gaussian(96, 128)
        mix = rng.standard_normal((128, 128)) / 8 + np.eye(128)
        X = (rng.standard_normal((512, 128)) @ mix).astype(np.float32)
        output = lambda q: float(((X @ (q.dequantize() - W).T)**2).sum())
        plain = host.quantize(W, format="psumbook", **SMALL)
        steps = []
        better = host.quantize(W, format="psumbook", calibration=X, **SMALL,
                               progress=lambda done, total: steps.append((done, total)))
        assert output(better) < 0.6 * output(plain)
        assert steps[-1][0] == steps[-1][1] and steps == sorted(steps)

    def test_descent_never_raises_the_output_error(self, monkeypatch):
        """Not even where beams find worse codes than those of the sweep before."""
        costs = []

        def checked(self, codes, books, meter):
            def cost():
                error = self.w - self.groups.expand(self.scales) * codebooks._decode(codes, books)
                return float(((error @ self.H) * error).sum())

            before = cost()
            descend(self, codes, books, meter)
            costs.append(cost() / before)

        descend = codebooks._Calibrated._descend
        monkeypatch.setattr(codebooks._Calibrated, "_descend", checked)
        monkeypatch.setattr(codebooks.beam_search, "__defaults__", (1,))
        rng = np.random.default_rng(0)
        mix = rng.standard_normal((8, 64)) * rng.lognormal(sigma=1, size=64)
        X = (rng.standard_normal((512, 8)) @ mix
             + 0.1 * rng.standard_normal((512, 64))).astype(np.float32)
        host.quantize(gaussian(128, 64), format="psumbook", v=8, codebooks=2, code_bits=6,
                      group_size=None, calibration=X)
        assert len(costs) == codebooks.SWEEPS and max(costs) <= 1

    def test_calibration_with_dead_inputs(self):
        X = gaussian(40, 50)
        X[:, 10:20] = 0
        W = gaussian(8, 50)
        q = host.quantize(W, format="psumbook", calibration=X, **SMALL)
        assert self.error(q, W) < 1
