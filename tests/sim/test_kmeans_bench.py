"""Measurements of the kmeans format, on sizes that take a second."""

import numpy as np
import pytest

from sim import kmeans_bench

quiet = lambda text: None


def test_errors_are_compared_with_uniform_quantisation():
    rows = {r["quantiser"]: r for r in kmeans_bench.error_rows(quiet, M=8, N=48, K=1024,
                                                               channels=2)}
    best = rows["kmeans"]["error"]
    assert rows["kmeans"]["kmeans_share"] == 1 and 0 < best < rows["kmeans, W4A3"]["error"]
    for name, limit in (("uniform", 0.30), ("uniform, the same outliers kept", 0.70)):
        row = rows[name]
        assert row["limit"] == limit and row["met"] == (best <= limit * row["error"])
        assert row["kmeans_share"] == pytest.approx(best / row["error"], abs=2e-3)
    assert rows["uniform, the same outliers kept"]["error"] < rows["uniform"]["error"]


def test_uniform_rounds_to_the_levels_of_a_group():
    a = np.array([[7.0, -3.4, 0, 0, 0.7, 0.31, 0, -0.7]])
    assert np.allclose(kmeans_bench.uniform(a, group=4), [[7, -3, 0, 0, 0.7, 0.3, 0, -0.7]])
    assert np.allclose(kmeans_bench.uniform(a), [[7, -3, 0, 0, 1, 0, 0, -1]])
    assert not kmeans_bench.uniform(np.zeros((2, 4))).any()


def test_classifier():
    rows = {r["network"]: r for r in kmeans_bench.classifier_rows(quiet, seeds=2, hidden=(48,),
                                                                  epochs=40)}
    assert rows["float"]["accuracy"] > 90 and rows["float"]["limit"] is None
    for name, limit in (("kmeans W4A4", 0.5), ("kmeans W4A3", 1.0)):
        row = rows[name]
        assert row["limit"] == limit and row["met"] == (row["below_float"] <= limit)
        assert row["accuracy"] > 80 and row["worst"] <= row["accuracy"]
    assert rows["uniform W4A4"]["met"] is None
