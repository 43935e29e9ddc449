"""K-means of numbers, exactly: the centroids of least weighted squared error.

Sorted numbers are cut into runs, so that dynamic programming finds the best cuts; of many
different numbers those of a bin count as one.
"""

import numpy as np

__all__ = ["cluster", "distinct"]

_BINS = 2048
_LIMIT = 127


def cluster(values, weights, count):
    """Centroids of numbers.

    Parameters
    ----------
    values, weights : ndarray of float64, [n]
        Weights are not negative, and not all zero.
    count : int
        Centroids.

    Returns
    -------
    ndarray of float64, [count or fewer]
        Increasing; fewer where there are fewer different numbers.
    """
    mass, points = _binned(values, weights)
    n = len(points)
    if n <= count:
        return points
    # sums[j] - sums[i]: of points i..j-1, relative to their centre, so that nothing cancels.
    centred = points - np.average(points, weights=mass)
    sums = [np.concatenate([[0], np.cumsum(mass * centred**p)]) for p in range(3)]
    m, first, second = (s[None, :] - s[:, None] for s in sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.where(m > 0, second - first**2 / m, 0)
    cost = np.maximum(cost, 0)
    cost[np.tril_indices(n + 1)] = np.inf       # no empty run
    best = cost[0].copy()
    cuts = []
    for _ in range(count - 1):
        total = best[:, None] + cost
        cuts.append(total.argmin(axis=0))
        best = total[cuts[-1], np.arange(n + 1)]
    ends = [n]
    for cut in reversed(cuts):
        ends.append(int(cut[ends[-1]]))
    starts = np.array([0, *reversed(ends[1:])])
    return np.add.reduceat(mass * points, starts) / np.add.reduceat(mass, starts)


def _binned(values, weights):
    """Mass and mean of the numbers in each bin that has any: two float64 arrays, increasing."""
    different = np.unique(values[weights > 0]) if values.size <= 2**16 else ()
    if 0 < len(different) <= _BINS:
        return np.bincount(np.searchsorted(different, values[weights > 0]),
                           weights[weights > 0]), different
    # Narrow bins near zero, where most numbers are.
    roots = np.sign(values) * np.sqrt(np.abs(values))
    low, high = roots.min(), roots.max()
    bins = np.minimum((roots - low) * (_BINS / ((high - low) or 1)), _BINS - 1).astype(np.intp)
    mass = np.bincount(bins, weights, _BINS)
    total = np.bincount(bins, weights * values, _BINS)
    used = mass > 0
    return mass[used], total[used] / mass[used]


def distinct(centroids, count):
    """Increasing int8 numbers near real ones in -127..127.

    Parameters
    ----------
    centroids : ndarray of float64, [count or fewer]
        Increasing.
    count : int
        How many to return, at most 255; what is missing is put where there is room.

    Returns
    -------
    ndarray of int8, [count]
        Increasing, in -127..127.
    """
    found = sorted(set(np.rint(centroids).astype(int).tolist()))
    free = sorted(set(range(-_LIMIT, _LIMIT + 1)) - set(found), key=lambda c: (abs(c), c))
    return np.array(sorted(found + free[:count - len(found)]), np.int8)
