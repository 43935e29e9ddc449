"""What calibration data say about a layer: the Hessian of its output error, and how to use it."""

import numpy as np
import scipy.linalg

from host.matrix import row_blocks

__all__ = ["damped_hessian", "descend", "feed_back", "inverse_factor"]

_DAMPING = 0.01         # of the Hessian's mean diagonal, as in the GPTQ paper


def damped_hessian(calibration, tick):
    """Damped ``X.T @ X`` of calibration data; GPTQ's factor 2 cancels everywhere.

    Off-diagonal entries that are estimated from few tokens are partly noise; they are shrunk as
    :func:`_shrinkage` says.

    Parameters
    ----------
    calibration : ndarray of a floating dtype, [tokens, K]
    tick : callable
        Called once per block of 512 tokens.

    Returns
    -------
    ndarray of float64, [K, K]
        Positive definite.
    """
    tokens, K = calibration.shape
    hessian = np.zeros((K, K))
    for block in row_blocks(tokens):
        x = calibration[block].astype(np.float64)
        hessian += x.T @ x
        tick()
    diagonal = hessian.diagonal().copy()
    hessian *= 1 - _shrinkage(hessian, tokens)
    # Columns that calibration never touched keep the damping alone: no error flows there.
    hessian[np.diag_indices(K)] = diagonal + (_DAMPING * diagonal.mean() or 1.0)
    return hessian


def _shrinkage(hessian, tokens):
    """Part of the off-diagonal entries that is noise: 0 if tokens abound, 1 for white inputs.

    The oracle approximating estimator (Chen, Wiesel, Eldar and Hero 2010, equation 23), of the
    correlations, so that loud channels do not decide it.
    """
    used = hessian.diagonal() > 0
    columns = int(used.sum())
    norms = np.sqrt(np.where(used, hessian.diagonal(), 1))
    square = float((np.square(hessian / norms).sum(axis=1) / norms**2).sum())
    excess = square - columns       # of the squared correlations of different columns
    if excess <= 0:
        return 1.0
    noise = (1 - 2 / columns) * square + columns**2
    return min(1.0, noise / ((tokens + 1 - 2 / columns) * excess))


def inverse_factor(hessian):
    """Upper triangular U [K, K], float64, with ``U.T @ U`` the inverse of `hessian`."""
    # hessian = R @ R.T with R upper triangular (a Cholesky factor in reverse order), U = 1 / R.
    R = scipy.linalg.cholesky(hessian[::-1, ::-1], lower=True)[::-1, ::-1]
    return np.ascontiguousarray(scipy.linalg.lapack.dtrtri(R)[0])


def feed_back(w, inverse, blocks, rounded, tick):
    """Round column by column; later columns make up for the error of earlier ones (GPTQ).

    Parameters
    ----------
    w : ndarray of float64, [K, rows]
    inverse : ndarray of float64, [K, K]
        As of :func:`inverse_factor`.
    blocks : list of slice
        Columns between two updates of all later ones.
    rounded : callable
        ``rounded(i, now)`` gives the values [rows] that column `i` gets, where all of `w` is what
        `now` says: for every column once, in order.
    tick : callable
        Called once per block.
    """
    w = w.copy()
    for block in blocks:
        errors = np.empty_like(w[block])
        for i in range(block.start, block.stop):
            errors[i - block.start] = error = (w[i] - rounded(i, w)) / inverse[i, i]
            w[i + 1:block.stop] -= np.outer(inverse[i, i + 1:block.stop], error)
        w[block.stop:] -= inverse[block, block.stop:].T @ errors
        tick()


def descend(w, hessian, blocks, values, rounded, sweeps, tick):
    """Improve `values` in place: coordinate descent on the quadratic output error.

    Parameters
    ----------
    w, values : ndarray of float64, [K, rows]
    hessian : ndarray of float64, [K, K]
    blocks : list of slice
        Columns between two updates of all residuals.
    rounded : callable
        ``rounded(i, wanted)`` gives the values [rows] that column `i` gets instead.
    sweeps : int
    tick : callable
        Called once per block and sweep.
    """
    residual = hessian @ (w - values)
    for _ in range(sweeps):
        for block in blocks:
            local, change = residual[block].copy(), np.empty_like(w[block])
            for i in range(block.start, block.stop):
                k = i - block.start
                new = rounded(i, values[i] + local[k] / hessian[i, i])
                change[k] = new - values[i]
                values[i] = new
                local[k + 1:] -= np.outer(hessian[i, i + 1:block.stop], change[k])
            residual -= hessian[:, block] @ change
            tick()
