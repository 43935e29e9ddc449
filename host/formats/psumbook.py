"""Psumbook matrices: chunks of weights as sums of centroids from additive codebooks (CodeGEMM).

``W[n, j*v + t] = row_scale[n] * scales[n, group] * sum_c centroids[c, codes[c, n, j], t]``, with
centroids of int8 that the whole matrix shares and 16-bit group scales.  The device builds, for
every chunk of activations, the products with all centroids of a codebook, and adds up those that
the codes name.
"""

from dataclasses import dataclass

import numpy as np

from hdl.config import CENTROID_MAX
from host.errors import ArgumentError, ArgumentTypeError, ConfigError
from host.formats.common import (
    SCALE_MAX,
    array_of,
    check_group_size,
    check_scales,
    column_arguments,
    imported_scales,
    integer,
    relative_scales,
)
from host.matrix import QuantizedMatrix, check_array, pack_bits, unpack_bits

__all__ = ["Psumbook", "PsumbookMatrix"]


@dataclass(frozen=True, kw_only=True)
class Psumbook:
    """Configuration of the psumbook format.

    Parameters
    ----------
    v : int
        Weights in a chunk: 2, 4 or 8.
    codebooks : int
        Additive codebooks m, 1..4.
    code_bits : int
        Bits b of a code, 4..8: a codebook has 2**b centroids.
    group_size : int or None
        Weights along K that share a scale: 32, 64, 128, or None for the whole row.
    """

    v: int = 8
    codebooks: int = 2
    code_bits: int = 8
    group_size: int | None = 128

    def __post_init__(self):
        for name, legal in (("v", (2, 4, 8)), ("codebooks", range(1, 5)),
                            ("code_bits", range(4, 9))):
            value = integer(name, getattr(self, name))
            if value not in legal:
                raise ConfigError(f"{name} must be one of {', '.join(map(str, legal))}, "
                                  f"got {value}")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "group_size", check_group_size(self.group_size))

    def groups(self, K):
        """Number of scale groups along a row of K weights; the last may be shorter."""
        return 1 if self.group_size is None else -(-K // self.group_size)

    def chunks(self, K):
        """Number of chunks along a row of K weights; the last may be shorter."""
        return -(-K // self.v)


class PsumbookMatrix(QuantizedMatrix):
    """A matrix of codes that name centroids, with group scales.

    Parameters
    ----------
    config : Psumbook
    shape : tuple of int
        ``(N, K)``.
    codes : ndarray of uint8, [codebooks, N, chunks]
        In the stored column order; of a last chunk that K cuts short, the rest means nothing.
    centroids : ndarray of int8, [codebooks, 2**code_bits, v]
        In -127..127.
    scales : ndarray of uint16, [N, groups]
        Group scales relative to the row's largest, which is 65535; an all-zero row has 0.
    row_scale : ndarray of float32, [N]
        Real value of one unit of :meth:`integer_weights`.
    permutation, input_scale, output_scale
        See :class:`~host.matrix.QuantizedMatrix`.
    """

    format = "psumbook"

    def __init__(self, config, shape, codes, centroids, scales, row_scale, *, permutation=None,
                 input_scale=None, output_scale=None):
        if not isinstance(config, Psumbook):
            raise ArgumentTypeError(f"config must be a Psumbook, got {type(config).__name__}")
        super().__init__(config, shape, permutation, input_scale, output_scale)
        N, K = self.shape
        m, size = config.codebooks, 2**config.code_bits
        self.codes = check_array("codes", codes, np.uint8, (m, N, config.chunks(K)),
                                 "[codebooks, N, chunks]")
        if codes.max() >= size:
            raise ArgumentError(f"codes of {config.code_bits} bits must be 0..{size - 1}, "
                                f"got {codes.max()}")
        self.centroids = check_array("centroids", centroids, np.int8, (m, size, config.v),
                                     "[codebooks, 2**code_bits, v]")
        if centroids.min() < -CENTROID_MAX:
            raise ArgumentError(f"centroids must be {-CENTROID_MAX}..{CENTROID_MAX}, "
                                f"got {centroids.min()}")
        self.scales, self.row_scale = check_scales(scales, row_scale, (N, config.groups(K)))
        self._check_magnitude(float(SCALE_MAX * CENTROID_MAX * m) * float(row_scale.max()))

    @classmethod
    def quantize(cls, W, config, *, calibration, seed, output_scale, progress):
        from host.formats.codebooks import train

        return cls(config, W.shape, *train(W, config, calibration, seed, progress),
                   output_scale=output_scale)

    @classmethod
    def from_codes(cls, *, codes, codebooks, scales, group_size, K=None, permutation=None,
                   input_scale=None, output_scale=None):
        """Import codes of somebody else's quantiser.

        Parameters
        ----------
        codes : array of an integer dtype, [m, N, chunks]
            Stored column order, 0..2**b - 1.
        codebooks : array of real numbers, [m, 2**b, v]
            The centroids; they are rounded to int8 relative to the largest element.
        scales : array of real numbers, [N, groups]
            Factors of the centroids, not negative; rounded to 16 bits relative to the largest of
            their row.
        group_size : int or None
            See :class:`Psumbook`.
        K : int, optional
            Weights of a row; by default all chunks are whole.
        permutation : array of an integer dtype, [K], optional
        input_scale : array of real numbers, [K], optional
        output_scale : float, optional

        Returns
        -------
        PsumbookMatrix
        """
        codes = array_of("codes", codes, "iu")
        codebooks = array_of("codebooks", codebooks, "fiu").astype(np.float64)
        if codebooks.ndim != 3 or 0 in codebooks.shape:
            raise ArgumentError(f"codebooks must have shape [m, 2**b, v], got {codebooks.shape}")
        m, size, v = codebooks.shape
        if size & (size - 1):
            raise ArgumentError(f"codebooks must have a power of two of centroids, got {size}")
        config = Psumbook(v=v, codebooks=m, code_bits=size.bit_length() - 1,
                          group_size=group_size)
        if codes.ndim != 3 or len(codes) != m or 0 in codes.shape:
            raise ArgumentError(f"codes must have shape [{m}, N, chunks] for {m} codebooks, "
                                f"got {codes.shape}")
        N, chunks = codes.shape[1:]
        K = chunks * v if K is None else integer("K", K)
        if config.chunks(K) != chunks or K < 1:
            raise ArgumentError(f"{chunks} chunks of {v} hold K = {(chunks - 1) * v + 1}.."
                                f"{chunks * v} weights a row, got K={K}")
        if codes.min() < 0 or codes.max() >= size:
            bad = codes.min() if codes.min() < 0 else codes.max()
            raise ArgumentError(f"codes must be 0..{size - 1}, the codebooks' centroids, got {bad}")
        check_array("codebooks", codebooks, np.float64, codebooks.shape, "[m, 2**b, v]")
        scales = imported_scales(scales, (N, config.groups(K)),
                                 f"[N, groups of {group_size or K} along K]")
        unit = np.abs(codebooks).max() / CENTROID_MAX or 1.0
        centroids = np.rint(codebooks / unit).astype(np.int8)
        return cls(config, (N, K), codes.astype(np.uint8), centroids,
                   *relative_scales(scales * unit, 1), output_scale=output_scale,
                   **column_arguments(permutation, input_scale))

    def integer_weights(self, rows=slice(None)):
        """``scales * sum of centroids``: int64 [rows, K]."""
        K = self.shape[1]
        total = sum(book.astype(np.int64)[codes[rows]]
                    for book, codes in zip(self.centroids, self.codes))
        scales = np.repeat(self.scales[rows].astype(np.int64), self.config.group_size or K, axis=1)
        return scales[:, :K] * total.reshape(len(total), -1)[:, :K]

    def needs(self, bits):
        if bits > 8:
            raise ArgumentError("activations of psumbook matrices must be int8, -127..127: table "
                                "entries of wider ones do not fit 18 bits")
        return {"v": self.config.v, "b": self.config.code_bits}

    @property
    def codebooks(self):
        """int: codebooks whose centroids add up."""
        return self.config.codebooks

    @property
    def code_bits_per_weight(self):
        """float: bits of the codes, padding of the last chunk included."""
        return self.config.code_bits * self.codes.size / (self.shape[0] * self.shape[1])

    def _arrays(self):
        return {"codes": self.codes, "centroids": self.centroids, "scales": self.scales,
                "row_scale": self.row_scale}

    def _stored_bits(self):
        return (self.config.code_bits * self.codes.size + 8 * self.centroids.size
                + 16 * self.scales.size + 32 * self.shape[0])

    @classmethod
    def _file_layout(cls, config, shape):
        N, K = shape
        codes = config.codebooks * N * config.chunks(K)
        return {"codes": (np.uint8, (config.code_bits, -(-codes // 8))),
                "centroids": (np.int8, (config.codebooks, 2**config.code_bits, config.v)),
                "scales": (np.uint16, (N, config.groups(K))), "row_scale": (np.float32, (N,))}

    def _to_file(self):
        return self._arrays() | {"codes": pack_bits(self.codes, self.config.code_bits)}

    @classmethod
    def _from_file(cls, config, shape, tensors, **common):
        codes = unpack_bits(tensors.pop("codes"), (config.codebooks, shape[0],
                                                   config.chunks(shape[1])))
        return cls(config, shape, codes, **tensors, **common)
