"""What calibration data say about a layer: the Hessian of its output error."""

import numpy as np
import scipy.linalg

from host.matrix import row_blocks

__all__ = ["damped_hessian", "inverse_factor"]

_DAMPING = 0.01         # of the Hessian's mean diagonal, as in the GPTQ paper
_SHRINKAGE = 0.1        # of the diagonal, times K / tokens; see damped_hessian


def damped_hessian(calibration, tick):
    """Damped ``X.T @ X`` of calibration data; GPTQ's factor 2 cancels everywhere.

    The paper's damping is for calibration sets much larger than K.  Off-diagonal entries that are
    estimated from few tokens are mostly noise, which shrinking them (here: a larger diagonal)
    suppresses.

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
    diagonal = hessian.diagonal()
    damping = _DAMPING * diagonal.mean() + min(1.0, _SHRINKAGE * K / tokens) * diagonal
    # Columns that calibration never touched keep the damping alone: no error flows there.
    hessian[np.diag_indices(K)] += damping if damping.any() else 1.0
    return hessian


def inverse_factor(hessian):
    """Upper triangular U [K, K], float64, with ``U.T @ U`` the inverse of `hessian`."""
    # hessian = R @ R.T with R upper triangular (a Cholesky factor in reverse order), U = 1 / R.
    R = scipy.linalg.cholesky(hessian[::-1, ::-1], lower=True)[::-1, ::-1]
    return np.ascontiguousarray(scipy.linalg.lapack.dtrtri(R)[0])
