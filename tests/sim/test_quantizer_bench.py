"""The quantisers' measurements, on matrices small enough for a test."""

import numpy as np
import pytest

from sim import quantizer_bench


def test_error_rows_say_what_was_measured():
    rows = quantizer_bench.error_rows(lambda text: None, size=256)
    by_name = {row["weights"]: row for row in rows}
    assert by_name["m2v8, g row"]["code_bits"] == 2.0
    # A few thousand chunks for 512 centroids: less error than on a large matrix.
    assert by_name["m2v8, g row"]["error"] < 0.094 < 0.11 < by_name[
        "2-bit symmetric, g row"]["error"]
    assert [row["met"] for row in rows] == [True, True, None, True, True]
    assert all(row["bits"] > row["code_bits"] for row in rows)


def test_output_error_is_relative():
    W = np.eye(4)
    x = np.random.default_rng(0).standard_normal((10, 4))
    assert quantizer_bench.output_error(W, 0 * W, x) == pytest.approx(1)
    assert quantizer_bench.output_error(W, 0.9 * W, x) == pytest.approx(0.01)
    assert quantizer_bench.output_error(W, W, x) == 0


def test_calibrated_rows_are_compared_at_equal_bits(monkeypatch):
    rng = np.random.default_rng(0)
    W = rng.standard_normal((512, 256)).astype(np.float32)
    mix = rng.standard_normal((32, 256))
    X = (rng.standard_normal((600, 32)) @ mix
         + 0.3 * rng.standard_normal((600, 256))).astype(np.float32)
    monkeypatch.setattr(quantizer_bench, "_layers", lambda: [("small", W, X[:512], X[512:])])
    monkeypatch.setattr(quantizer_bench, "_CALIBRATED", (
        ("bitserial", dict(bits=2)), ("bitserial", dict(bits=2, group_size=32)),
        ("psumbook", dict(v=4, codebooks=2, code_bits=4, group_size=None)),
        ("psumbook", dict(v=4, codebooks=2, code_bits=4, group_size=64)),
        ("psumbook", dict(v=4, codebooks=3, code_bits=4))))
    coarse, fine, small, middle, large = quantizer_bench.calibration_rows(lambda text: None)
    assert coarse["met"] is fine["met"] is None and fine["error"] < coarse["error"]
    # The smallest GPTQ that is as large, whichever smaller one is better; none is as large as 3.
    assert small["bits"] < coarse["bits"] and small["gptq_error"] == coarse["error"]
    assert coarse["bits"] < middle["bits"] and middle["gptq_error"] == fine["error"]
    assert large["gptq_error"] is None and large["met"] is None
    assert small["met"] is (small["error"] < coarse["error"])
