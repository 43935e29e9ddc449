"""What calibration data say about a layer: the Hessian of its output error."""

import numpy as np
import scipy.linalg

from host.matrix import row_blocks

__all__ = ["damped_hessian", "inverse_factor"]

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
