"""The quantiser of the psumbook format: additive codebooks, codes and group scales.

Residual k-means starts the codebooks; then codes (beam search) and codebooks (least squares) take
turns, on a sample without calibration, on the output error with it.  Centroids are rounded as the
device stores them before the final codes are chosen, and group scales are fitted to those.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import scipy.cluster.vq
import scipy.linalg

from hdl.config import CENTROID_MAX
from host.formats.common import relative_scales
from host.formats.hessian import damped_hessian, inverse_factor
from host.matrix import row_blocks

__all__ = ["beam_search", "train"]

BEAMS = 16              # with calibration 3 to 5 % less output error than 8
SAMPLE = 2**16          # chunks that codebooks are trained on
ROUNDS = 6              # of codes and codebooks in turn, on the sample
CALIBRATED_ROUNDS = 2   # on the whole matrix
STEPS = 8               # of conjugate gradients, per calibrated round
SWEEPS = 2              # of coordinate descent over the final codes
_BLOCK = 256            # chunks searched at a time


def train(W, config, calibration, seed, progress):
    """Quantise a matrix.

    Parameters
    ----------
    W : ndarray of a floating dtype, [N, K]
    config : host.formats.psumbook.Psumbook
    calibration : ndarray of a floating dtype, [tokens, K], or None
    seed : int
    progress : callable
        ``progress(done, total)``.

    Returns
    -------
    codes : ndarray of uint8, [codebooks, N, chunks]
    centroids : ndarray of int8, [codebooks, 2**code_bits, v]
    scales : ndarray of uint16, [N, groups]
    row_scale : ndarray of float32, [N]
    """
    N, K = W.shape
    rng = np.random.default_rng(seed)
    groups = _Groups(N, K, config)
    blocks = row_blocks(N)
    w = np.zeros((N, config.chunks(K) * config.v), np.float32)
    exponents = np.frexp(np.abs(W).max(axis=1).astype(np.float64))[1]
    for rows in blocks:     # powers of two keep float32 from overflow, and rows comparable
        w[rows, :K] = np.ldexp(W[rows].astype(np.float64), -exponents[rows, None])
    passes = 1 if calibration is None else CALIBRATED_ROUNDS + 1 + SWEEPS
    meter = _Meter(progress, ROUNDS * 4 + passes * (
        len(blocks) if calibration is None else config.chunks(K)) + 1)

    scales = groups.norms(w)
    books = _start(groups.divide(w, scales), config, rng, meter)
    if calibration is None:
        books = _rounded(books)
        codes = np.empty((config.codebooks, *groups.chunk_shape), np.uint8)
        for rows in blocks:
            chunks = groups.divide(w[rows], scales[rows]).reshape(-1, config.v)
            codes[:, rows] = beam_search(chunks, books.real).reshape(config.codebooks, -1,
                                                                     groups.chunks)
            meter.tick()
        scales = groups.fit(w, books.decode(codes), scales)
    else:
        problem = _Calibrated(w, groups, scales, calibration)
        codes, books = problem.solve(books, meter)
        scales = problem.scales
    meter.tick()
    scales, row_scale = relative_scales(scales.astype(np.float64) * books.unit, 1)
    with np.errstate(over="ignore"):
        row_scale = np.ldexp(row_scale, exponents).astype(np.float32)
    # What float32 cannot express is zero; the scale of such a row means nothing.
    lost = row_scale == 0
    scales[lost], row_scale[lost] = 0, 1
    return codes, books.integers, scales, row_scale


class _Meter:
    """Counts steps for a progress callback."""

    def __init__(self, progress, total):
        self.progress, self.total, self.done = progress, total, 0

    def tick(self, steps=1):
        self.done = min(self.done + steps, self.total)
        self.progress(self.done, self.total)


class _Groups:
    """Scale groups of a matrix whose rows are padded to whole chunks."""

    def __init__(self, N, K, config):
        self.chunks = config.chunks(K)
        self.chunk_shape = N, self.chunks
        width = self.chunks * config.v
        size = config.group_size or width
        self.starts = np.arange(0, width, size)
        self.of_column = np.arange(width) // size

    def _sums(self, values):
        return np.add.reduceat(values, self.starts, axis=1)

    def norms(self, w):
        """Root mean square of each group: float32 [N, groups]."""
        counts = np.diff([*self.starts, w.shape[1]])
        return np.sqrt(self._sums(w * w) / counts)

    def divide(self, w, scales):
        """`w` over its groups' scales; groups without weights stay zero."""
        return w * np.where(scales > 0, 1 / np.where(scales > 0, scales, 1), 0)[:, self.of_column]

    def expand(self, scales):
        """Scale of each weight."""
        return scales[:, self.of_column]

    def fit(self, w, values, scales):
        """Scales of least squared error for `w` about ``scale * values``; none is negative."""
        square = self._sums(values * values)
        best = self._sums(w * values) / np.where(square > 0, square, 1)
        return np.where(scales > 0, np.maximum(best, 0), 0)


@dataclass(frozen=True)
class _Books:
    """Codebooks as the device stores them: int8 and the value of a unit."""

    integers: np.ndarray    # int8 [m, 2**b, v]
    unit: float

    @property
    def real(self):
        return self.integers.astype(np.float32) * np.float32(self.unit)

    def decode(self, codes):
        """Sum of the named centroids: float32 [N, K]."""
        return _decode(codes, self.real)


def _decode(codes, books):
    total = sum(book[code] for book, code in zip(books, codes))
    return total.reshape(codes.shape[1], -1)


def _rounded(books):
    """Codebooks in int8, relative to their largest element."""
    unit = float(np.abs(books).max()) / CENTROID_MAX or 1.0
    return _Books(np.rint(books / unit).astype(np.int8), unit)


def beam_search(x, books, beams=BEAMS):
    """Codes whose centroids add up to each vector, nearly as well as any.

    Parameters
    ----------
    x : ndarray of float32, [n, v]
    books : ndarray of float32, [m, size, v]
    beams : int
        Candidates kept from codebook to codebook.

    Returns
    -------
    ndarray of uint8, [m, n]
    """
    m, size, _ = books.shape
    beams = min(beams, size)
    norms = (books * books).sum(axis=2)
    # Twice the products of centroids: what choosing one adds to the distance of another.
    gram = 2 * np.einsum("aiv,bjv->abij", books, books)
    codes = np.empty((m, len(x)), np.uint8)
    for start in range(0, len(x), _BLOCK):
        part = x[start:start + _BLOCK]
        n = np.arange(len(part))[:, None]
        chosen = np.zeros((len(part), 1, 0), np.intp)       # [n, beam, codebooks so far]
        cost = np.zeros((len(part), 1), np.float32)
        for c in range(m):
            costs = cost[:, :, None] + (norms[c] - 2 * part @ books[c].T)[:, None]
            for before in range(c):
                costs += gram[before, c][chosen[:, :, before]]
            flat = costs.reshape(len(part), -1)
            if c == m - 1:
                best = flat.argmin(axis=1)[:, None]
            else:
                best = np.argpartition(flat, beams - 1, axis=1)[:, :beams]
            beam, code = np.divmod(best, size)
            chosen = np.concatenate([chosen[n, beam], code[:, :, None]], axis=2)
            cost = flat[n, best]
        codes[:, start:start + len(part)] = chosen[:, 0].T
    return codes


def _start(x, config, rng, meter):
    """Codebooks for normalised weights [N, K]: float32 [m, 2**b, v]."""
    x = x.reshape(-1, config.v)
    x = x[x.any(axis=1)]
    size = 2**config.code_bits
    books = np.zeros((config.codebooks, size, config.v), np.float32)
    if len(x) > SAMPLE:
        x = x[np.sort(rng.choice(len(x), SAMPLE, replace=False))]
    different = np.unique(x, axis=0)
    if len(different) <= size:  # every chunk is a centroid; the rest stays zero
        books[0, :len(different)] = different
        meter.tick(ROUNDS * 4)
        return books
    rest = x
    for c in range(config.codebooks):
        different = np.unique(rest, axis=0)
        start = different[rng.choice(len(different), size, replace=len(different) < size)]
        with warnings.catch_warnings():     # a centroid that nothing is nearest to stays
            warnings.simplefilter("ignore")
            books[c], labels = scipy.cluster.vq.kmeans2(rest, start, iter=10, minit="matrix")
        rest = rest - books[c][labels]
    meter.tick(ROUNDS)
    for _ in range(ROUNDS):
        books = _least_squares(x, beam_search(x, books), books)
        meter.tick(3)
    return books


def _least_squares(x, codes, books):
    """Codebooks of least squared error for given codes; unused centroids stay as they are."""
    m, size, v = books.shape
    index = codes + (np.arange(m) * size)[:, None]
    pairs = np.zeros((m * size)**2)
    for a, b in np.ndindex(m, m):
        pairs += np.bincount(index[a] * m * size + index[b], minlength=(m * size)**2)
    pairs = pairs.reshape(m * size, m * size)
    right = np.stack([sum(np.bincount(index[c], column, m * size) for c in range(m))
                      for column in x.T], axis=1)
    used = pairs.diagonal() > 0
    # The sum does not change if a constant moves from one codebook to another: damp that.
    damped = pairs[np.ix_(used, used)] + 1e-3 * np.eye(used.sum())
    flat = books.reshape(m * size, v).astype(np.float64)
    correction = scipy.linalg.solve(damped, right[used] - pairs[np.ix_(used, used)] @ flat[used],
                                    assume_a="pos")
    flat[used] += correction
    return flat.reshape(m, size, v).astype(np.float32)


class _Calibrated:
    """Codes and codebooks that minimise the output error ``tr((W - V) H (W - V)^T)``.

    Parameters
    ----------
    w : ndarray of float32, [N, K of whole chunks]
    groups : _Groups
    scales : ndarray of float32, [N, groups]
    calibration : ndarray, [tokens, K]
    """

    def __init__(self, w, groups, scales, calibration):
        self.w, self.groups, self.scales = w, groups, scales
        tokens, K = calibration.shape
        padded = np.zeros((tokens, w.shape[1]), np.float32)
        padded[:, :K] = calibration / (np.abs(calibration).max() or 1)
        self.H = damped_hessian(padded, lambda: None)
        self.U = inverse_factor(self.H).astype(np.float32)
        self.H = self.H.astype(np.float32)

    def solve(self, books, meter):
        """Codes uint8 [m, N, chunks] and stored codebooks, from starting ones."""
        for _ in range(CALIBRATED_ROUNDS):
            codes = self._feedback(books, meter)
            self._fit_scales(_decode(codes, books))
            books = self._conjugate_gradients(codes, books)
        stored = _rounded(books)
        codes = self._feedback(stored.real, meter)
        for _ in range(SWEEPS):
            self._fit_scales(stored.decode(codes))
            self._descend(codes, stored.real, meter)
        self._fit_scales(stored.decode(codes))
        return codes, stored

    def _search(self, target, scale, books, factor):
        """Codes and values of a chunk: nearest to `target` [N, v] in the metric of `factor`."""
        weight = np.where(scale > 0, 1 / np.where(scale > 0, scale, 1), 0)[:, None]
        codes = beam_search((target * weight) @ factor, books @ factor)
        return codes, scale[:, None] * sum(book[code] for book, code in zip(books, codes))

    def _feedback(self, books, meter):
        """Chunk by chunk; later chunks make up for the error of earlier ones (GPTQ, GPTVQ)."""
        w, (N, chunks), v = self.w.copy(), self.groups.chunk_shape, books.shape[2]
        codes = np.empty((len(books), N, chunks), np.uint8)
        span = 16 * v       # columns between two updates of all later ones
        for first in range(0, w.shape[1], span):
            stop = min(first + span, w.shape[1])
            errors = np.empty((N, stop - first), np.float32)
            for k in range(first, stop, v):
                here = slice(k, k + v)
                factor = np.linalg.inv(self.U[here, here])
                scale = self.scales[:, self.groups.of_column[k]]
                codes[:, :, k // v], value = self._search(w[:, here], scale, books, factor)
                error = (w[:, here] - value) @ factor
                errors[:, k - first:k - first + v] = error
                w[:, k + v:stop] -= error @ self.U[here, k + v:stop]
                meter.tick()
            w[:, stop:] -= errors @ self.U[first:stop, stop:]
        return codes

    def _descend(self, codes, books, meter):
        """Improve the codes in place, each chunk with the others fixed."""
        v = books.shape[2]
        residual = (self.w - self.groups.expand(self.scales) * _decode(codes, books)) @ self.H
        span = 16 * v
        for first in range(0, residual.shape[1], span):
            stop = min(first + span, residual.shape[1])
            local = residual[:, first:stop].copy()
            changes = np.empty_like(local)
            for k in range(first, stop, v):
                here, inside = slice(k, k + v), slice(k - first, k - first + v)
                block = self.H[here, here]
                scale = self.scales[:, self.groups.of_column[k]]
                now = scale[:, None] * sum(book[code] for book, code
                                           in zip(books, codes[:, :, k // v]))
                wanted = local[:, inside] @ np.linalg.inv(block)
                factor = np.linalg.cholesky(block)
                found, value = self._search(now + wanted, scale, books, factor)
                change = value - now
                # A beam search may find worse than what is there.
                better = ((((wanted - change) @ factor)**2).sum(axis=1)
                          < ((wanted @ factor)**2).sum(axis=1))
                codes[:, better, k // v] = found[:, better]
                changes[:, inside] = change = np.where(better[:, None], change, 0)
                local -= change @ self.H[here, first:stop]
                meter.tick()
            residual -= changes @ self.H[first:stop]

    def _fit_scales(self, values):
        """Scale of every group, with those of the row's other groups fixed."""
        residual = (self.w - self.groups.expand(self.scales) * values) @ self.H
        for g, start in enumerate(self.groups.starts):
            stop = [*self.groups.starts, self.w.shape[1]][g + 1]
            here = slice(start, stop)
            pushed = values[:, here] @ self.H[here]         # what a unit more would do
            square = (pushed[:, here] * values[:, here]).sum(axis=1)
            step = (residual[:, here] * values[:, here]).sum(axis=1) / np.where(square > 0,
                                                                               square, np.inf)
            step = np.maximum(step, -self.scales[:, g])
            self.scales[:, g] += step
            residual -= step[:, None] * pushed

    def _conjugate_gradients(self, codes, books):
        """Codebooks of less output error for given codes."""
        m, size, v = books.shape
        scale = self.groups.expand(self.scales)
        index = codes + (np.arange(m) * size)[:, None, None]

        def expand(flat):
            return scale * _decode(codes, flat.reshape(m, size, v).astype(np.float32))

        def gather(matrix):
            weighted = (scale * matrix).reshape(-1, v)
            return np.stack([sum(np.bincount(index[c].ravel(), column, m * size)
                                 for c in range(m)) for column in weighted.T], axis=1)

        flat = books.reshape(m * size, v).astype(np.float64)
        residual = gather((self.w - expand(flat)) @ self.H)
        direction, square = residual.copy(), (residual**2).sum()
        for _ in range(STEPS):
            if square <= 0:
                break
            pushed = gather(expand(direction) @ self.H)
            step = square / max((direction * pushed).sum(), np.finfo(float).tiny)
            flat += step * direction
            residual -= step * pushed
            square, before = (residual**2).sum(), square
            direction = residual + square / before * direction
        return flat.reshape(m, size, v).astype(np.float32)
