"""The quantiser of the kmeans format: one codebook for weights, one for activations.

Both are exact k-means of numbers (:mod:`host.formats.kmeans1d`).  Weights count as the mean square
of their activations, activations as the energy of their weights: what an error does to the outputs.
"""

import numpy as np
from scipy.special import ndtri

from hdl.config import CENTROID_MAX
from host.formats.kmeans import step_min
from host.formats.kmeans1d import cluster, distinct
from host.matrix import row_blocks

__all__ = ["train"]

ROUNDS = 3          # of codebook and row scales in turn
_QUANTILES = 4096   # of a Gaussian, where there is no calibration
_DAMPING = 0.01     # of the mean: columns that calibration never touched count for something


def train(W, config, calibration, progress, sensitivity=None):
    """Quantise a matrix.

    Parameters
    ----------
    W : ndarray of a floating dtype, [N, K]
    config : host.formats.kmeans.KMeans
    calibration : ndarray of a floating dtype, [tokens, K], or None
    progress : callable
        ``progress(done, total)``.
    sensitivity : ndarray of float64, [N or 1, K], or None
        What the square of an error of each weight counts; None: as `calibration` says.

    Returns
    -------
    codes : ndarray of uint8, [N, K]
    centroids : ndarray of int8, [2**bits]
    row_scale : ndarray of float32, [N]
    activation_centroids : ndarray of int8, [2**activation_bits]
    activation_step : float
    """
    N, K = W.shape
    if sensitivity is None:
        importance = (np.ones(K) if calibration is None else _mean_squares(calibration))[None]
    else:       # what counts for nothing counts for little
        largest = sensitivity.max() or 1.0
        importance = sensitivity / largest
        importance = importance + (_DAMPING * importance.mean() or 1.0)
    of = (lambda rows: importance) if len(importance) == 1 else (lambda rows: importance[rows])
    # Powers of two keep float32 from overflow, and rows comparable.
    exponents = np.frexp(np.abs(W).max(axis=1).astype(np.float64))[1]
    w = np.empty((N, K), np.float32)
    for rows in row_blocks(N):
        w[rows] = np.ldexp(W[rows].astype(np.float64), -exponents[rows, None])
    total = 2 * ROUNDS + 1
    progress(0, total)
    scales = np.sqrt(np.concatenate([
        (w[rows].astype(np.float64)**2 * of(rows)).sum(axis=1) / of(rows).sum(axis=1)
        for rows in row_blocks(N)]))
    # Rows count by their own size, as they do in the outputs' error.
    sizes = np.ldexp(1.0, exponents - exponents.max())
    centroids, unit = np.zeros(0, np.int8), 1.0
    codes = np.empty((N, K), np.uint8)
    for number in range(ROUNDS):
        inverse = np.where(scales > 0, 1 / np.where(scales > 0, scales, 1), 0)
        mass = ((scales * sizes)**2)[:, None] * importance
        if not mass.any():
            mass[:] = 1
        found = cluster((w * inverse[:, None]).ravel().astype(np.float64), mass.ravel(),
                        2**config.bits)
        unit = np.abs(found).max() / CENTROID_MAX or 1.0
        centroids = distinct(found / unit, 2**config.bits)
        progress(2 * number + 1, total)
        values = (centroids * unit).astype(np.float64)
        edges = (values[1:] + values[:-1]) / 2
        for rows in row_blocks(N):
            part = w[rows].astype(np.float64)
            codes[rows] = np.searchsorted(edges, part * inverse[rows, None], side="right")
            chosen = values[codes[rows]]
            square = (chosen**2 * of(rows)).sum(axis=1)
            best = (part * chosen * of(rows)).sum(axis=1) / np.where(square > 0, square, 1)
            scales[rows] = np.where(scales[rows] > 0, np.maximum(best, 0), 0)
        progress(2 * number + 2, total)
    with np.errstate(over="ignore"):
        row_scale = np.ldexp(scales * unit, exponents).astype(np.float32)
    energy = (((row_scale / (row_scale.max() or 1))[:, None].astype(np.float64)
               * centroids[codes])**2).sum(axis=0)
    activations = _activation_codebook(config, calibration, energy, K)
    progress(total, total)
    return codes, centroids, row_scale, *activations


def _mean_squares(calibration):
    """Mean square of every column, relative to the largest; 1 where all are zero."""
    largest = float(np.abs(calibration).max()) or 1.0
    squares = sum(((calibration[rows].astype(np.float64) / largest)**2).sum(axis=0)
                  for rows in row_blocks(len(calibration)))
    return squares + _DAMPING * squares.mean() if squares.any() else np.ones_like(squares)


def _activation_codebook(config, calibration, energy, K):
    """Centroids int8 and the step: of the tokens' elements in mean magnitudes, less outliers."""
    count = config.outlier_count(K)
    parts, masses = [], []
    if calibration is not None:
        for rows in row_blocks(len(calibration)):
            x = calibration[rows].astype(np.float64)
            x /= np.abs(x).max(axis=1, keepdims=True, initial=0) + (~x.any(axis=1))[:, None]
            order = np.argsort(x, axis=1, kind="stable")[:, count:K - count]
            inliers = np.take_along_axis(x, order, axis=1)
            mean = np.abs(inliers).sum(axis=1) / max(1, K - 2 * count)
            used = mean > 0
            parts.append((inliers[used] / mean[used, None]).ravel())
            masses.append(energy[order[used]].ravel())
    values, weights = (np.concatenate([np.zeros(0), *a]) for a in (parts, masses))
    if not weights.any():
        weights = np.ones_like(values)
    if not values.size:     # or all of it zeros and outliers
        quantiles = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
        values = ndtri(quantiles)
        outside = min(count / K, 0.49)
        values = values[(quantiles > outside) & (quantiles < 1 - outside)]
        values /= np.abs(values).mean()
        weights = np.ones_like(values)
    found = cluster(values, weights, 2**config.activation_bits)
    step = max(float(np.abs(found).max()) / CENTROID_MAX, step_min(K))
    return distinct(found / step, 2**config.activation_bits), step
