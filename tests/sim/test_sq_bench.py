"""Measurements of the sq format, on sizes that take a second."""

import numpy as np
import pytest

from sim import sq_bench

quiet = lambda text: None


@pytest.fixture
def small(monkeypatch):
    rng = np.random.default_rng(0)
    W = rng.standard_t(4, (64, 128)).astype(np.float32)
    x = rng.standard_normal((300, 128)).astype(np.float32)
    monkeypatch.setattr(sq_bench, "_layers", lambda: iter([
        ("drawn", W, None, None), ("with inputs", W, x[:256], x[256:])]))
    monkeypatch.setattr(sq_bench, "_POINTS", (dict(), dict(sparsity=0.75)))
    return W


def test_errors_stand_beside_those_of_integers(small):
    rows = sq_bench.error_rows(quiet)
    drawn = {r["weights"]: r for r in rows if r["layer"] == "drawn"}
    sparse, dense = drawn["64-(8/4)-0.875"], drawn["INT5, groups of 64"]
    assert sparse["error"] < dense["error"] and sparse["output_error"] is None
    assert sparse["paper_bits"] == 4.5 and sparse["bits"] > 5.25
    # Between two integers of which one has fewer bits: less than the larger error of the two.
    over = sparse["over_integers"]["error"]
    assert sparse["error"] / drawn["INT4, groups of 128"]["error"] < over < 1
    rows = {r["weights"]: r for r in rows if r["layer"] == "with inputs"}
    assert 0 < rows["64-(8/4)-0.75"]["output_error"] < rows["64-(8/4)-0.875"]["output_error"] < 0.1
    assert rows["INT8, groups of 32"]["over_integers"] is None


def test_a_power_of_two_costs_little_and_a_fixed_ratio_much(small):
    for row in sq_bench.relation_rows(quiet):
        assert 1 <= row["power_over_free"] < 1.05
        if "8/4" in row["weights"]:     # else 127/16 low steps are enough
            assert row["fixed_over_free"] > 1.5


def test_random_matrices_are_of_their_configuration():
    q = sq_bench.random_sq(np.random.default_rng(0), 10, 100, bank=32, sparsity=0.75, low=3)
    assert q.shape == (10, 100) and q.config.high_count == 8 and q.config.low == 3
