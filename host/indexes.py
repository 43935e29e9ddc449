"""Indexes between the layers of a kmeans chain: codebooks of outputs, and the device's tables.

The epilogue leaves int8 results.  One table of the device replaces each by the index of its nearest
centroid, after the activation function; the table of the next layer says what an index means, or a
pair of indexes: the product of two layers' outputs.  So no function and no product is ever
computed on the device.  (KLLM promises nonlinear operations on indexes in its abstract; how is not
published, so this is our own design.)

The next layer multiplies by what the table says, exactly: its own activation codebook is not used.
"""

from dataclasses import dataclass

import numpy as np

from hdl.token_units import INDEX_BITS, MEANING_BITS
from host import functions
from host.errors import ArgumentError
from host.formats.kmeans1d import cluster

__all__ = ["Outputs", "product_table"]

_LARGEST = 2**MEANING_BITS - 1
_SIGMA = 127 / 4        # of int8 results


@dataclass(frozen=True)
class Outputs:
    """What a layer leaves on the device.

    Attributes
    ----------
    levels : int64 [256]
        What an int8 result is after the activation function, in `unit`; by its low eight bits.
    unit : float
    centroids : int64 [16 or fewer] or None
        Increasing, in `unit`; None: bytes are the results themselves.
    """

    levels: np.ndarray
    unit: float
    centroids: np.ndarray | None

    @classmethod
    def of(cls, scale, activation, *, centroids):
        """Outputs of a layer.

        Parameters
        ----------
        scale : float
            Step of its int8 results.
        activation : str or None
        centroids : int or None
            How many, 4, 8 or 16; None: no codebook.  They are those of the function of Gaussian
            results, of which int8 holds four standard deviations.

        Raises
        ------
        ArgumentError
            The function overflows.
        """
        results = np.arange(256)
        results[128:] -= 256
        with np.errstate(over="ignore"):
            real = functions.apply(activation, results * float(scale))
        real[128] = 0       # -128 never comes
        largest = float(np.abs(real).max())
        if not largest <= float(np.finfo(np.float32).max):
            raise ArgumentError(f"{activation} of a result of {127 * scale:g} overflows float32: "
                                "choose a smaller out_scale")
        unit = largest / _LARGEST or 1.0
        levels = np.rint(real / unit).astype(np.int64)
        if centroids is None:
            return cls(levels, unit, None)
        results = np.arange(-127, 128)
        found = cluster(levels[results].astype(np.float64),
                        np.exp(-(results / _SIGMA)**2 / 2), centroids)
        return cls(levels, unit, np.unique(np.rint(found).astype(np.int64)))

    @property
    def byte_table(self):
        """uint8 [256]: what replaces an int8 result; of two centroids as near the larger."""
        if self.centroids is None:
            return np.arange(256, dtype=np.uint8)
        boundaries = self.centroids[1:] + self.centroids[:-1]
        return np.searchsorted(boundaries, 2 * self.levels, side="right").astype(np.uint8)

    @property
    def value_table(self):
        """int64 [256]: what a byte means, in `unit`."""
        if self.centroids is None:
            return self.levels
        values = np.zeros(256, np.int64)
        values[:len(self.centroids)] = self.centroids
        return values


def product_table(low, high):
    """What a pair of indexes means: the product of two layers' outputs.

    Parameters
    ----------
    low, high : Outputs
        With centroids; of the low and the high half of a pair.

    Returns
    -------
    values : int64 [256]
        Rounded, halves up.
    unit : float
    """
    a, b = low.value_table[:2**INDEX_BITS], high.value_table[:2**INDEX_BITS]
    products = a[None, :] * b[:, None] + 2 ** (MEANING_BITS - 1) >> MEANING_BITS
    return products.reshape(-1), low.unit * high.unit * 2.0**MEANING_BITS
