"""K-means matrices: weights and activations as indexes of two small codebooks (KLLM / OASIS).

``W[n, k] = row_scale[n] * centroids[codes[n, k]]`` with one codebook of int8 for the whole matrix.
The device turns a token into units of another codebook: every element becomes its nearest
activation centroid, but for the few largest and smallest, the outliers, which keep their value.
"""

from dataclasses import dataclass
from math import ceil, isfinite
from typing import ClassVar

import numpy as np

from hdl.config import CENTROID_MAX
from hdl.token_units import GAIN_BITS, VALUE_MAX, normaliser, unit_shift
from host.errors import ArgumentError, ArgumentTypeError, ConfigError
from host.formats.common import array_of, column_arguments, imported_scales, integer
from host.matrix import QuantizedMatrix, check_array, pack_bits, row_blocks, unpack_bits

__all__ = ["KMeans", "KMeansMatrix", "step_min"]

_BITS = (2, 3, 4)
_STEP_MAX = 16      # the normaliser of a token of the largest sum has eight bits left


def step_min(K):
    """The smallest activation step for tokens of K elements: what the device's gain can hold."""
    return K * 256 / (2**GAIN_BITS - 1)


@dataclass(frozen=True, kw_only=True)
class KMeans:
    """Configuration of the kmeans format.

    Parameters
    ----------
    bits : int
        Bits of a weight's index, 2..4.
    activation_bits : int
        Bits of an activation's index, 2..4.
    outliers : float
        Part of a token's elements that keep their value on each side, 0..0.5: the
        ``min(ceil(outliers * K), K // 2)`` largest and as many smallest.
    """

    group_size: ClassVar[None] = None

    bits: int = 4
    activation_bits: int = 4
    outliers: float = 0.005

    def __post_init__(self):
        for name in ("bits", "activation_bits"):
            value = integer(name, getattr(self, name))
            if value not in _BITS:
                raise ConfigError(f"{name} must be one of {', '.join(map(str, _BITS))}, "
                                  f"got {value}")
            object.__setattr__(self, name, value)
        if isinstance(self.outliers, bool) or not isinstance(
                self.outliers, int | float | np.integer | np.floating):
            raise ArgumentTypeError(f"outliers must be a real number, got {self.outliers!r:.80}")
        if not 0 <= self.outliers <= 0.5:
            raise ConfigError("outliers must be in 0..0.5, a part of the elements on each side, "
                              f"got {self.outliers!r}")
        object.__setattr__(self, "outliers", float(self.outliers))

    def outlier_count(self, K):
        """Outliers on each side of a token of K elements."""
        return min(ceil(self.outliers * K), K // 2)


class KMeansMatrix(QuantizedMatrix):
    """A matrix of indexes into one codebook, and the codebook of its activations.

    Parameters
    ----------
    config : KMeans
    shape : tuple of int
        ``(N, K)``.
    codes : ndarray of uint8, [N, K]
        In the stored column order.
    centroids : ndarray of int8, [2**bits]
        Of weights: increasing, in -127..127.
    row_scale : ndarray of float32, [N]
        Real value of one unit of :meth:`integer_weights`; 0 for a row of zeros.
    activation_centroids : ndarray of int8, [2**activation_bits]
        Increasing, in -127..127.
    activation_step : float
        What a unit of those is, in mean magnitudes of what is not an outlier of a token.
    permutation, input_scale, output_scale
        See :class:`~host.matrix.QuantizedMatrix`.
    """

    format = "kmeans"
    token_bits = 16

    def __init__(self, config, shape, codes, centroids, row_scale, activation_centroids,
                 activation_step, *, permutation=None, input_scale=None, output_scale=None):
        if not isinstance(config, KMeans):
            raise ArgumentTypeError(f"config must be a KMeans, got {type(config).__name__}")
        super().__init__(config, shape, permutation, input_scale, output_scale)
        N, K = self.shape
        self.codes = check_array("codes", codes, np.uint8, (N, K), "[N, K]")
        if codes.max() >= 2**config.bits:
            raise ArgumentError(f"codes of {config.bits} bits must be 0..{2**config.bits - 1}, "
                                f"got {codes.max()}")
        self.centroids = _check_codebook("centroids", centroids, config.bits)
        self.activation_centroids = _check_codebook("activation_centroids", activation_centroids,
                                                    config.activation_bits)
        self.row_scale = check_array("row_scale", row_scale, np.float32, (N,), "[N]")
        if row_scale.min() < 0:
            raise ArgumentError(f"row_scale must not be negative, got {row_scale.min()}")
        self.activation_step = _check_step(activation_step, K)
        magnitudes = np.abs(self.centroids.astype(np.float64))
        self._check_magnitude(max(
            float((magnitudes[self.codes[rows]].max(axis=1) * self.row_scale[rows]).max())
            for rows in row_blocks(N)))

    @classmethod
    def quantize(cls, W, config, *, calibration, seed, output_scale, progress, sensitivity=None):
        from host.formats.kmeans_training import train

        return cls(config, W.shape, *train(W, config, calibration, progress, sensitivity),
                   output_scale=output_scale)

    @classmethod
    def from_codes(cls, *, codes, centroids, scales, activation_centroids, outliers=0.005,
                   permutation=None, input_scale=None, output_scale=None):
        """Import codes of somebody else's quantiser.

        Parameters
        ----------
        codes : array of an integer dtype, [N, K]
            Stored column order, 0..2**bits - 1.
        centroids : array of real numbers, [2**bits]
            Of weights, increasing; rounded to int8 relative to the largest.
        scales : array of real numbers, [N]
            Factors of the centroids, not negative.
        activation_centroids : array of real numbers, [2**activation_bits]
            In mean magnitudes of a token, increasing; rounded to int8 relative to the largest.
        outliers : float
            See :class:`KMeans`.
        permutation : array of an integer dtype, [K], optional
        input_scale : array of real numbers, [K], optional
        output_scale : float, optional

        Returns
        -------
        KMeansMatrix
        """
        codes = array_of("codes", codes, "iu")
        if codes.ndim != 2 or 0 in codes.shape:
            raise ArgumentError(f"codes must have shape [N, K], got {codes.shape}")
        N, K = codes.shape
        (book, unit), (activation_book, step) = (
            _rounded(name, values, least, most) for name, values, least, most in (
                ("centroids", centroids, 0, 2.0**126),
                ("activation_centroids", activation_centroids, step_min(K),
                 _STEP_MAX * CENTROID_MAX)))
        config = KMeans(bits=len(book).bit_length() - 1,
                        activation_bits=len(activation_book).bit_length() - 1, outliers=outliers)
        if codes.min() < 0 or codes.max() >= len(book):
            bad = codes.min() if codes.min() < 0 else codes.max()
            raise ArgumentError(f"codes must be 0..{len(book) - 1}, the centroids, got {bad}")
        scales = imported_scales(scales, (N,), "[N]")
        with np.errstate(over="ignore"):        # the constructor refuses infinity
            row_scale = (scales * unit).astype(np.float32)
        return cls(config, (N, K), codes.astype(np.uint8), book, row_scale, activation_book, step,
                   output_scale=output_scale, **column_arguments(permutation, input_scale))

    def integer_weights(self, rows=slice(None)):
        """Centroids of the codes: int64 [rows, K]."""
        return self.centroids.astype(np.int64)[self.codes[rows]]

    def needs(self, bits):
        v = 4 if self.config.bits == 2 else 2
        return {"v": v, "b": v * self.config.bits}

    # What the device needs to know of the tokens.

    @property
    def gain(self):
        """int: the numerator of a token's normaliser, 28 bits."""
        inliers = max(1, self.shape[1] - 2 * self.outlier_count)
        return min(round(256 * inliers / self.activation_step), 2**GAIN_BITS - 1)

    @property
    def outlier_count(self):
        """int: outliers on each side of a token."""
        return self.config.outlier_count(self.shape[1])

    def activation_bound(self, bits):
        return VALUE_MAX

    def outliers(self, xq):
        """Which elements of tokens are outliers: bool [M, K].

        Of equal elements the largest are those that come first, the smallest those that come first
        in the order of ``index ^ 1`` (:class:`hdl.topk.Orizuru`).
        """
        xq = np.asarray(xq, np.int64)
        k, index = self.outlier_count, np.arange(xq.shape[1])
        found = np.zeros(xq.shape, bool)
        for order in (np.argsort(-xq, axis=1, kind="stable"),
                      np.lexsort((np.broadcast_to(index ^ 1, xq.shape), xq), axis=1)):
            np.put_along_axis(found, order[:, :k], True, axis=1)
        return found

    def token_units(self, xq, scale):
        """What a unit of the activation codebook is in each token: float32 [M].

        Parameters
        ----------
        xq : integers [M, K]
            int16 activations.
        scale : float32 [M]
            Real value of their unit.
        """
        magnitudes = np.abs(np.asarray(xq, np.int64))
        magnitudes[self.outliers(xq)] = 0
        factors, shifts = normaliser(magnitudes.sum(axis=1), self.gain)
        units = np.ldexp(np.asarray(scale, np.float64), unit_shift(shifts)) / factors
        if units.size and units.max() > np.finfo(np.float32).max:
            raise ArgumentError(
                "a unit of the activation codebook must stay within float32 in every token, not "
                f"{units.max():g}: this matrix takes smaller activations only")
        return units.astype(np.float32)

    @property
    def code_bits_per_weight(self):
        """float: bits of an index."""
        return float(self.config.bits)

    def _arrays(self):
        return {"codes": self.codes, "centroids": self.centroids, "row_scale": self.row_scale,
                "activation_centroids": self.activation_centroids,
                "activation_step": np.array([self.activation_step])}

    def _stored_bits(self):
        return (self.config.bits * self.codes.size + 32 * self.shape[0] + 64
                + 8 * (self.centroids.size + self.activation_centroids.size))

    @classmethod
    def _file_layout(cls, config, shape):
        N, K = shape
        return {"codes": (np.uint8, (config.bits, -(-N * K // 8))),
                "centroids": (np.int8, (2**config.bits,)), "row_scale": (np.float32, (N,)),
                "activation_centroids": (np.int8, (2**config.activation_bits,)),
                "activation_step": (np.float64, (1,))}

    def _to_file(self):
        return self._arrays() | {"codes": pack_bits(self.codes, self.config.bits)}

    @classmethod
    def _from_file(cls, config, shape, tensors, **common):
        codes = unpack_bits(tensors.pop("codes"), shape)
        step = float(tensors.pop("activation_step")[0])
        return cls(config, shape, codes, activation_step=step, **tensors, **common)


def _rounded(name, values, least, most):
    """Centroids of up to `most` as int8, and their unit, which is at least `least`."""
    values = array_of(name, values, "fiu").astype(np.float64)
    sizes = [2**bits for bits in _BITS]
    if values.ndim != 1 or len(values) not in sizes:
        raise ArgumentError(f"{name} must be a list of {', '.join(map(str, sizes))} numbers, "
                            f"got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ArgumentError(f"{name} must be finite, got {values[~np.isfinite(values)][0]} "
                            "among them")
    largest = float(np.abs(values).max())
    if not 1e-30 <= largest <= most:
        raise ArgumentError(f"the largest of {name} must be 1e-30..{most:g} in magnitude, "
                            f"got {largest:g}")
    if not (np.diff(values) > 0).all():
        raise ArgumentError(f"{name} must increase, none repeated, got {values.tolist()}")
    unit = max(float(np.abs(values).max()) / CENTROID_MAX, least)
    book = np.rint(values / unit).astype(np.int8)
    if not (np.diff(book.astype(int)) > 0).all():
        raise ArgumentError(f"{name} must differ when they are rounded to int8 relative to the "
                            f"largest, got {book.tolist()} from {values.tolist()}")
    return book, unit


def _check_codebook(name, centroids, bits):
    centroids = check_array(name, centroids, np.int8, (2**bits,), f"[2**{bits}]")
    if centroids.min() < -CENTROID_MAX:
        raise ArgumentError(f"{name} must be {-CENTROID_MAX}..{CENTROID_MAX}, "
                            f"got {centroids.min()}")
    if not (np.diff(centroids.astype(np.int64)) > 0).all():
        raise ArgumentError(f"{name} must increase, none repeated, got {centroids.tolist()}")
    return centroids


def _check_step(step, K):
    if isinstance(step, bool) or not isinstance(step, int | float | np.floating | np.integer):
        raise ArgumentTypeError(f"activation_step must be a real number, got {step!r:.80}")
    if (isinstance(step, float) and not isfinite(step)) or not step_min(K) <= step <= _STEP_MAX:
        raise ArgumentError(f"activation_step must be in {step_min(K):.6g}..{_STEP_MAX} for "
                            f"K = {K}, got {step!r}")
    return float(step)
