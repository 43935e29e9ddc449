"""Codebooks of outputs and the tables of chains against their definitions."""

import numpy as np
import pytest
from scipy.special import erf

import host
from host.indexes import Outputs, product_table

REAL = {None: lambda y: y, "relu": lambda y: np.where(y > 0, y, 0),
        "silu": lambda y: y / (1 + np.exp(-y)), "gelu": lambda y: y * (1 + erf(y / 2**0.5)) / 2,
        "exp": lambda y: np.e**y}
RESULTS = np.arange(-127, 128)


@pytest.mark.parametrize("activation", REAL)
@pytest.mark.parametrize("scale", [1e-6, 0.03, 0.5])
def test_bytes_mean_the_function_of_results(activation, scale):
    exact = REAL[activation](RESULTS * scale)
    outputs = Outputs.of(scale, activation, centroids=None)
    assert np.array_equal(outputs.byte_table[RESULTS], RESULTS % 256)
    means = outputs.value_table[outputs.byte_table[RESULTS]] * outputs.unit
    assert np.abs(means - exact).max() <= 0.501 * np.abs(exact).max() / (2**14 - 1)


@pytest.mark.parametrize("activation", REAL)
@pytest.mark.parametrize("count", [4, 8, 16])
def test_an_index_is_that_of_the_nearest_centroid(activation, count):
    outputs = Outputs.of(0.03, activation, centroids=count)
    assert len(outputs.centroids) == count and (np.diff(outputs.centroids) > 0).all()
    levels = outputs.levels[RESULTS]
    distance = np.abs(levels[:, None] - outputs.centroids)
    chosen = outputs.byte_table[RESULTS]
    assert np.array_equal(distance[np.arange(255), chosen], distance.min(axis=1))
    # Lloyd's condition: every centroid is the mean of what is nearest to it.
    mass = np.exp(-(RESULTS / 31.75)**2 / 2)
    for i in range(count):
        mine = chosen == i
        mean = np.average(levels[mine], weights=mass[mine])
        assert abs(mean - outputs.centroids[i]) <= 0.02 * np.abs(levels).max()


def test_few_different_results():
    """Of a scale so small that most results are one level, or all."""
    outputs = Outputs.of(1e-9, "exp", centroids=16)
    assert 1 <= len(outputs.centroids) <= 16 and (np.diff(outputs.centroids) > 0).all()
    values = outputs.value_table[outputs.byte_table[RESULTS]] * outputs.unit
    assert (np.abs(values - 1) < 1e-3).all()
    nothing = Outputs.of(1e-310, "relu", centroids=16)
    assert np.isfinite(nothing.unit) and nothing.unit > 0


def test_products_of_pairs():
    a, b = Outputs.of(0.05, "silu", centroids=16), Outputs.of(0.02, None, centroids=8)
    values, unit = product_table(a, b)
    assert values.shape == (256,)
    for i in range(16):
        for j in range(8):
            real = a.centroids[i] * a.unit * (b.centroids[j] * b.unit)
            assert abs(values[i | j << 4] * unit - real) <= 0.5001 * unit
    assert np.abs(values).max() < 2**14


def test_overflow_is_named():
    with pytest.raises(host.ArgumentError, match="smaller out_scale"):
        Outputs.of(1.0, "exp", centroids=16)
