"""Golden models: what a device must return, bit for bit, from the algebra.

The engine gathers signed sums plane by plane; here a quantised weight is one integer
``scale * (q' - z')`` (LUT Tensor Core, eq. 2 and 3) and a layer one exact dot product.
"""

from fractions import Fraction
from math import isqrt

import numpy as np

from host.errors import ArgumentError
from host.functions import apply

__all__ = ["bank_values", "chain", "integers", "matmul", "requantize", "token_values"]

EXACT = 2**53


def _exact_matmul(x, W):
    """``x @ W.T`` of int64 matrices, exact: through float64 where every partial sum is exact."""
    bound = np.abs(x).sum(axis=1).max(initial=0) * np.abs(W).max(initial=0)
    if bound < EXACT:
        return (x.astype(np.float64) @ W.T.astype(np.float64)).astype(np.int64)
    return np.array([[sum(int(a) * int(b) for a, b in zip(row, w)) for w in W] for row in x],
                    dtype=object)


def integers(q, xq):
    """Accumulators of a quantised matrix for integer activations.

    Parameters
    ----------
    q : host.matrix.QuantizedMatrix
    xq : integers [..., K]
        In the stored column order.

    Returns
    -------
    int64 [..., N]
    """
    xq = np.asarray(xq, np.int64)
    N, K = q.shape
    if xq.shape[-1] != K:
        raise ArgumentError(f"activations must have shape [..., {K}], not {list(xq.shape)}")
    flat = xq.reshape(-1, K)
    if q.format == "sq" and q.config.side != "weight":
        flat = np.array([bank_values(q.config, token) for token in flat], np.int64).reshape(-1, K)
    if q.format == "kmeans":
        flat = np.array([token_values(q, token)[0] for token in flat], np.int64).reshape(-1, K)
    return _exact_matmul(flat, q.integer_weights()).reshape(*xq.shape[:-1], N)


def token_values(q, xq):
    """A token as a kmeans matrix takes it: centroids, and outliers as they are.

    By division, distances and sorting; the device has a factor, boundaries and two tournaments.

    Parameters
    ----------
    q : host.formats.kmeans.KMeansMatrix
    xq : int64 [K]
        int16 activations.

    Returns
    -------
    values : int64 [K]
        In units of the activation codebook; where all but outliers are 0, so are their values.
    unit : Fraction
        What such a unit is, in units of `xq`.
    """
    xq = [int(x) for x in xq]
    outliers = _outliers(xq, q.outlier_count)
    total = sum(abs(x) for i, x in enumerate(xq) if i not in outliers)
    factor, one = _normaliser(q.gain, total)
    half = np.array([2 * x * factor // one for x in xq])
    values = (_nearest(q.activation_centroids.astype(np.int64), half) if total
              else np.zeros(len(xq), np.int64))
    for i in outliers:
        values[i] = (half[i] + 1) // 2
    return values, Fraction(one, factor)


def bank_values(config, xq):
    """A token as a matrix with two precisions of activations takes it: int64 [K].

    By sorting, trying every exponent and division; the device has a tournament, looks at bits and
    shifts.

    Parameters
    ----------
    config : host.formats.sq.SQ
        With another side than weights.
    xq : int64 [K]
        int16 activations.
    """
    values = []
    most = 2**(config.low - 1) - 1
    for start in range(0, len(xq), config.bank):
        bank = [int(x) for x in xq[start:start + config.bank]]
        bank += [0] * (config.bank - len(bank))
        size = [min(abs(x), 32767) for x in bank]
        order = range(config.bank) if config.side == "activation" else sorted(
            range(config.bank), key=lambda i: (-size[i], i))
        high = set(order[:config.high_count])
        largest = max(size[i] for i in range(config.bank) if i not in high)
        exponent = 0
        while exponent < 9 - config.low and \
                Fraction(largest, 128 * 2**exponent) >= Fraction(5, 4) * 2**(config.low - 1):
            exponent += 1
        for i, x in enumerate(bank):
            limit, power = (127, 2) if i in high else (most, 2**exponent)
            level = (x + 64 * power) // (128 * power)
            values.append(power * max(-limit, min(limit, level)))
    return np.array(values[:len(xq)], np.int64)


def _normaliser(gain, total):
    """``gain / 256 / total`` as a factor and its denominator."""
    # The finest of four shifts with which the quotient has at most 17 bits.
    fitting = [(gain * one // (256 * total), one) for one in (2**15, 2**20, 2**25, 2**30)
               if gain * one < 256 * total * 2**17]
    factor, one = max(fitting) if fitting else (2**17 - 1, 2**15)
    return (factor, one) if factor else (1, 2**30)


def _outliers(xq, k):
    """Which elements of a token are outliers: a set of indexes."""
    # Ties: the largest that came first; the smallest that is first in the order of index ^ 1.
    everything = range(len(xq))
    return {*sorted(everything, key=lambda i: (-xq[i], i))[:k],
            *sorted(everything, key=lambda i: (xq[i], i ^ 1))[:k]}


def _nearest(centroids, half):
    """The nearest centroids of numbers [n] in half units; of two as near the larger."""
    falling = centroids[::-1]
    return falling[np.abs(2 * falling - half[:, None]).argmin(axis=1)]


def _tokens(q, x):
    """Integer activations and float32 scales of float tokens [M, K], by the numeric contract."""
    x = np.asarray(x, np.float32)
    if q.permutation is not None:
        x = np.take(x, q.permutation, axis=1)
    if q.input_scale is not None:
        x = np.multiply(x, q.input_scale, dtype=np.float32)
    peak = np.maximum(x.max(axis=1, initial=0), -x.min(axis=1, initial=0))
    largest = 127 if q.token_bits == 8 else 32767
    scale = np.divide(peak, np.float32(largest), dtype=np.float32)
    scale[scale == 0] = 1
    levels = np.round(np.divide(x, scale[:, None], dtype=np.float32))
    return np.maximum(np.minimum(levels, largest), -largest).astype(np.int64), scale


def matmul(q, x, bias=None):
    """``x @ W.T + bias`` as a device computes it.

    Parameters
    ----------
    q : host.matrix.QuantizedMatrix
    x : float32 or float16 [..., K]
        In the original column order.
    bias : float [N] or None

    Returns
    -------
    float32 [..., N]
    """
    N, K = q.shape
    x = np.asarray(x)
    xq, token_scale = _tokens(q, x.reshape(-1, K))
    acc = integers(q, xq).astype(np.float64)
    if q.format == "kmeans":
        units = [token_values(q, token)[1] for token in xq]
        token_scale = np.array([float(s) * u.numerator / u.denominator
                                for s, u in zip(token_scale, units)], np.float32)
    elif q.token_bits == 16:        # two precisions
        token_scale = token_scale * np.float32(128)
    y = acc * q.row_scale.astype(np.float64) * token_scale.astype(np.float64)[:, None]
    if bias is not None:
        y = y + np.asarray(bias, np.float64)
    return y.astype(np.float32).reshape(*x.shape[:-1], N)


def chain(chain, x):
    """What a :class:`host.chain.Chain` computes, from its layers and integers.

    Parameters
    ----------
    chain : host.chain.Chain
        Called at least once, or given an ``in_scale``.
    x : float32 [M, K]

    Returns
    -------
    float32 [M, N]
    """
    x = np.asarray(x, np.float32)
    encoded = chain.stages[0][0].q.format == "kmeans"
    if chain.norms[0]:
        square = (x.astype(np.float64)**2).mean(axis=1, keepdims=True)
        x = (x / np.where(square > 0, square, 1)**0.5).astype(np.float32)
    tokens = [_static_token(layer.q, x, unit) if encoded else _levels(layer.q, x, unit, 127)
              for layer, unit in zip(chain.stages[0], chain.links[0].in_units)]
    for i, stage in enumerate(chain.stages):
        sums = [_exact_matmul(token, layer.q.integer_weights())
                for token, layer in zip(tokens, stage)]
        if i == len(chain.stages) - 1:
            break
        results = [requantize(acc, r.bias, r.multiplier, r.shift, r.base,
                              relu=layer.activation == "relu" and not encoded)
                   for acc, r, layer in zip(sums, chain.links[i].requantizations, stage)]
        if encoded:
            results = _meanings(chain.links[i].outputs, results)
        if chain.norms[i + 1]:
            results = [np.array([_over_rms(token) for token in results[0]], np.int64).reshape(
                results[0].shape)]
        following = chain.stages[i + 1]
        tokens = [results[0] if layer.q.permutation is None
                  else np.take(results[0], layer.q.permutation, axis=1) for layer in following]
        tokens = [token.astype(np.int64) for token in tokens]
    layer, unit = chain.stages[-1][0], chain.links[-1].in_units[0]
    y = sums[0].astype(np.float64) * layer.q.row_scale.astype(np.float64) * unit
    if layer.bias is not None:
        y = y + layer.bias
    return apply(layer.activation, y).astype(np.float32)


def _over_rms(token):
    """A token of integers over its root mean square, in 64ths."""
    K = len(token)
    root = isqrt(sum(int(v)**2 for v in token) << 12)
    if root == 0:
        return np.zeros(K, np.int64)
    factor, one = _normaliser(round(2**20 * K**0.5), root)
    return np.array([(2 * int(v) * factor // one + 1) // 2 for v in token], np.int64)


def _levels(q, x, scale, largest):
    """Integers of float tokens [M, K] with a scale that all share."""
    if q.permutation is not None:
        x = np.take(x, q.permutation, axis=1)
    if q.input_scale is not None:
        x = x * q.input_scale
    scale = np.maximum(np.float32(scale), np.float32(2.0**-126))
    with np.errstate(over="ignore"):
        levels = np.round(np.divide(x, scale, dtype=np.float32))
    return np.maximum(np.minimum(levels, largest), -largest).astype(np.int64)


def _static_token(q, x, unit):
    """Tokens as :func:`token_values` has them, where a unit is four steps of int16 in all."""
    found = []
    for token in _levels(q, x, unit / 4, 32767):
        outliers = _outliers(token, q.outlier_count)
        half = token // 2
        values = _nearest(q.activation_centroids.astype(np.int64), half)
        inliers = [i for i in range(len(token)) if i not in outliers]
        if not token[inliers].any():
            values[:] = 0
        for i in outliers:
            values[i] = (half[i] + 1) // 2
        found.append(values)
    return np.array(found, np.int64).reshape(-1, q.shape[1])


def _meanings(outputs, results):
    """What int8 results of one layer or two become: a list of one int64 [M, N]."""
    values = []
    for output, result in zip(outputs, results):
        level = output.levels[result.astype(np.int64) & 255]
        values.append(level if output.centroids is None
                      else _nearest(output.centroids, 2 * level.reshape(-1)).reshape(level.shape))
    if len(values) == 2:
        return [np.floor_divide(values[0] * values[1] + 2**13, 2**14)]
    return values


def requantize(acc, bias, multiplier, shift, base=10, relu=False):
    """int8 results of the epilogue.

    ``clip(rint(((acc + bias) >> (base + 6 * shift)) * multiplier / 2**21))`` on exact rationals;
    ties go to even.
    """
    def one(a, b, f, s):
        shifted = (int(a) + int(b)) // 2 ** (base + 6 * int(s))
        return min(127, max(0 if relu else -127, round(Fraction(shifted * int(f), 2**21))))

    return np.array([[one(a, b, f, s) for a, b, f, s in zip(row, bias, multiplier, shift)]
                     for row in acc], np.int8).reshape(np.shape(acc))
