"""Bit-serial matrices: integer codes of 1 to 8 bits with group scales, and their quantisers.

A weight is ``step * (q - z)`` with an integer zero point z, or ``step * (q - (2**bits - 1) / 2)``
without one.  The device reads every bit plane as +-1, that is the odd ``q' = 2q - (2**bits - 1)``
and ``z' = 2z + 1 - 2**bits``, and multiplies ``q' - z'`` by the group's 16-bit scale.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

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
    string,
)
from host.formats.hessian import damped_hessian, descend, feed_back, inverse_factor
from host.matrix import QuantizedMatrix, check_array, pack_bits, row_blocks, unpack_bits

__all__ = ["BitSerial", "BitSerialMatrix"]

_SCHEMES = ("symmetric", "asymmetric", "ternary", "binary")
_METHODS = ("rtn", "gptq")
_IMPLIED_BITS = {"ternary": 2, "binary": 1}


@dataclass(frozen=True, kw_only=True)
class BitSerial:
    """Configuration of the bit-serial format.

    Parameters
    ----------
    bits : int, optional
        Bits of a code, 1..8; 4 by default, and what `scheme` implies for ternary (2) and
        binary (1).
    group_size : int or None
        Weights along K that share a scale: 32, 64, 128, or None for the whole row.
    scheme : str
        ``"symmetric"``: the odd multiples -(2**bits - 1)..2**bits - 1 of half a step;
        ``"asymmetric"``: integer multiples of a step around an integer zero point;
        ``"ternary"``: -1, 0, 1 times the step; ``"binary"``: +-half a step.
    method : str or None
        ``"rtn"`` (round to nearest), ``"gptq"``, or None: gptq if there is calibration data.
    """

    bits: int | None = None     # None: not given, see __post_init__
    group_size: int | None = 128
    scheme: str = "symmetric"
    method: str | None = None

    def __post_init__(self):
        if string("scheme", self.scheme) not in _SCHEMES:
            raise ConfigError(f"scheme must be one of {', '.join(_SCHEMES)}, got {self.scheme!r}")
        implied = _IMPLIED_BITS.get(self.scheme)
        bits = (implied or 4) if self.bits is None else integer("bits", self.bits)
        if not 1 <= bits <= 8:
            raise ConfigError(f"bits must be 1..8, got {bits}")
        if implied not in (None, bits):
            raise ConfigError(f"{self.scheme} weights have bits={implied}, got bits={bits}")
        group_size = check_group_size(self.group_size)
        if string("method", self.method) not in (None, *_METHODS):
            raise ConfigError(f"method must be {', '.join(_METHODS)} or None, "
                              f"got {self.method!r}")
        object.__setattr__(self, "bits", bits)
        object.__setattr__(self, "group_size", group_size)

    @property
    def has_zeros(self):
        """bool: whether matrices carry zero points."""
        return self.scheme in ("asymmetric", "ternary")

    @property
    def largest_code(self):
        """int: the codes are 0..largest_code."""
        return 2 if self.scheme == "ternary" else 2**self.bits - 1

    def groups(self, K):
        """Number of scale groups along a row of K weights; the last may be shorter."""
        return 1 if self.group_size is None else -(-K // self.group_size)


class BitSerialMatrix(QuantizedMatrix):
    """A matrix of integer codes with group scales.

    Parameters
    ----------
    config : BitSerial
    codes : ndarray of uint8, [N, K]
        In the stored column order, that is after `permutation`.
    scales : ndarray of uint16, [N, groups]
        Group scales relative to the row's largest, which is 65535; an all-zero row has 0.
    row_scale : ndarray of float32, [N]
        Real value of one unit of :meth:`integer_weights`.
    zeros : ndarray of uint8, [N, groups], or None
        Zero points 0..2**bits - 1 of asymmetric weights, 1 everywhere for ternary ones, None
        for symmetric and binary ones.
    permutation, input_scale, output_scale
        See :class:`~host.matrix.QuantizedMatrix`.
    """

    format = "bitserial"

    def __init__(self, config, codes, scales, row_scale, zeros=None, *, permutation=None,
                 input_scale=None, output_scale=None):
        if not isinstance(config, BitSerial):
            raise ArgumentTypeError(f"config must be a BitSerial, got {type(config).__name__}")
        if not isinstance(codes, np.ndarray) or codes.ndim != 2:
            raise ArgumentError("codes must be an array of shape [N, K], "
                                f"got {getattr(codes, 'shape', type(codes).__name__)}")
        super().__init__(config, codes.shape, permutation, input_scale, output_scale)
        N, K = self.shape
        groups = N, config.groups(K)
        self.codes = check_array("codes", codes, np.uint8, self.shape, "[N, K]")
        if codes.max() > config.largest_code:
            raise ArgumentError(f"codes of {config.bits}-bit {config.scheme} weights must be "
                                f"0..{config.largest_code}, got {codes.max()}")
        self.scales, self.row_scale = check_scales(scales, row_scale, groups)
        self._check_magnitude(2.0 * SCALE_MAX * (2**config.bits - 1) * float(row_scale.max()))
        if (zeros is not None) != config.has_zeros:
            raise ArgumentError(f"{config.scheme} weights "
                                f"{'need zeros' if config.has_zeros else 'have no zeros'}")
        if zeros is not None:
            zeros = check_array("zeros", zeros, np.uint8, groups, "[N, groups]")
            _check_zeros(zeros, config)
        self.zeros = zeros

    @classmethod
    def quantize(cls, W, config, *, calibration, seed, output_scale, progress):
        method = config.method or ("rtn" if calibration is None else "gptq")
        if method == "gptq" and calibration is None:
            raise ArgumentError('method="gptq" needs calibration, floats of shape [tokens, K]; '
                                'method="rtn" does without')
        config = dataclasses.replace(config, method=method)
        quantizer = _Quantizer(W, config, calibration, progress)
        return cls(config, *quantizer.run(), output_scale=output_scale)

    @classmethod
    def from_codes(cls, *, codes, scales, bits, group_size, zeros=None, scheme=None, signed=False,
                   permutation=None, input_scale=None, output_scale=None):
        """Import codes of somebody else's quantiser.

        Parameters
        ----------
        codes : array of an integer dtype, [N, K]
            Stored column order.
        scales : array of real numbers, [N, groups]
            Steps s >= 0 of ``s * (q - z)``, or without zeros of ``s * (q - (2**bits - 1) / 2)``;
            they are rounded to 16 bits relative to the largest of their row.
        bits, group_size, scheme
            See :class:`BitSerial`; the default scheme is asymmetric with zeros or signed codes,
            else symmetric.
        zeros : array of an integer dtype, [N, groups], optional
            Zero points in the same coding as `codes`; for signed and ternary codes they have a
            default.
        signed : bool
            The codes are two's complement, -2**(bits - 1)..2**(bits - 1) - 1, or -1..1 for
            ternary; they are stored as unsigned codes with a zero point.
        permutation : array of an integer dtype, [K], optional
        input_scale : array of real numbers, [K], optional
        output_scale : float, optional

        Returns
        -------
        BitSerialMatrix
        """
        if not isinstance(signed, bool | np.bool_):
            raise ArgumentTypeError(f"signed must be a bool, got {signed!r:.80}")
        if scheme is None:
            scheme = "symmetric" if zeros is None and not signed else "asymmetric"
        config = BitSerial(bits=bits, group_size=group_size, scheme=scheme)
        codes = array_of("codes", codes, "iu")
        if codes.ndim != 2 or 0 in codes.shape:
            raise ArgumentError(f"codes must have shape [N, K], got {codes.shape}")
        if signed and not config.has_zeros:
            raise ArgumentError(f"{scheme} weights have no zero point, so that their codes are "
                                "unsigned; signed codes are asymmetric or ternary")
        N, K = codes.shape
        groups = N, config.groups(K)
        offset = 0
        if signed:
            offset = 1 if scheme == "ternary" else 2**(config.bits - 1)
        if zeros is None and (signed or scheme == "ternary"):
            zeros = np.full(groups, 1 if scheme == "ternary" and not signed else 0)
        low, high = -offset, config.largest_code - offset
        if codes.min() < low or codes.max() > high:
            bad = codes.min() if codes.min() < low else codes.max()
            hint = "" if signed or bad >= 0 else "; signed=True imports two's complement"
            raise ArgumentError(f"codes of {config.bits}-bit {scheme} weights must be "
                                f"{low}..{high}, got {bad}{hint}")
        per_group = f"[N, groups of {config.group_size or K} along K]"
        scales = imported_scales(scales, groups, per_group)
        if zeros is not None:
            zeros = array_of("zeros", zeros, "iu")
            check_array("zeros", zeros, zeros.dtype, groups, per_group)
            _check_zeros(zeros, config, offset)     # first: the largest uint64 fit no int64
            zeros = (zeros.astype(np.int64) + offset).astype(np.uint8)
        codes = (codes.astype(np.int64) + offset).astype(np.uint8)
        return cls(config, codes, *relative_scales(scales, 2), zeros, output_scale=output_scale,
                   **column_arguments(permutation, input_scale))

    def integer_weights(self, rows=slice(None)):
        """``scales * (q' - z')``: int64 [rows, K]."""
        K = self.shape[1]
        expand = lambda groups: np.repeat(
            groups[rows].astype(np.int64), self.config.group_size or K, axis=1)[:, :K]
        odd = 2 * self.codes[rows].astype(np.int64) - (2**self.config.bits - 1)
        if self.zeros is not None:
            odd -= 2 * expand(self.zeros) + 1 - 2**self.config.bits
        return expand(self.scales) * odd

    def needs(self, bits):
        needs = {"activation_bits": 16} if bits == 16 else {}
        return needs | ({"zero_points": True} if self.zeros is not None else {})

    @property
    def planes(self):
        """int: bit planes of a code."""
        return self.config.bits

    @property
    def code_bits_per_weight(self):
        """float: bits of a code."""
        return float(self.config.bits)

    def _arrays(self):
        return {"codes": self.codes, "scales": self.scales, "row_scale": self.row_scale,
                "zeros": self.zeros}

    def _stored_bits(self):
        bits = self.config.bits
        zeros = 0 if self.zeros is None else bits * self.zeros.size
        return bits * self.codes.size + 16 * self.scales.size + zeros + 32 * self.shape[0]

    @classmethod
    def _file_layout(cls, config, shape):
        N, K = shape
        groups = N, config.groups(K)
        planes = lambda values: (np.uint8, (config.bits, -(-values // 8)))
        layout = {"codes": planes(N * K), "scales": (np.uint16, groups),
                  "row_scale": (np.float32, (N,))}
        return layout | ({"zeros": planes(groups[0] * groups[1])} if config.has_zeros else {})

    def _to_file(self):
        tensors = {name: array for name, array in self._arrays().items() if array is not None}
        return tensors | {name: pack_bits(tensors[name], self.config.bits)
                          for name in ("codes", "zeros") if name in tensors}

    @classmethod
    def _from_file(cls, config, shape, tensors, **common):
        tensors["codes"] = unpack_bits(tensors["codes"], shape)
        if "zeros" in tensors:
            tensors["zeros"] = unpack_bits(tensors["zeros"], tensors["scales"].shape)
        return cls(config, **tensors, **common)


def _check_zeros(zeros, config, offset=0):
    """Check zero points in a coding that is `offset` lower than the stored one."""
    low, high = (1, 1) if config.scheme == "ternary" else (0, config.largest_code)
    low, high = low - offset, high - offset
    if zeros.min() < low or zeros.max() > high:
        bad = zeros.min() if zeros.min() < low else zeros.max()
        legal = f"{low}" + (f"..{high}" if low < high else "")
        raise ArgumentError(f"zeros of {config.bits}-bit {config.scheme} weights must be {legal}, "
                            f"got {bad}")


# The quantisers.  They work on transposed float64 blocks [K, rows], so that a column of the
# matrix is contiguous.  A "level" is q - z (half-integer without zero points): the weight over
# the step.

_BLOCK = 128            # columns between two updates of all later columns; a multiple of groups
_SWEEPS = 3             # coordinate descent gains little after the third
_RATIOS = np.geomspace(0.03, 1, 28)     # of the full range, searched for up to 4 bits


class _Quantizer:
    """One quantisation of `W` [N, K]; `run` gives the constructor's arrays."""

    def __init__(self, W, config, calibration, progress):
        self.W, self.config = W, config
        K = W.shape[1]
        size = config.group_size or K
        self.groups = [slice(i, min(i + size, K)) for i in range(0, K, size)]
        self.blocks = [slice(i, min(i + _BLOCK, K)) for i in range(0, K, _BLOCK)]
        self.calibration = calibration if config.method == "gptq" else None
        self.done, self.progress = 0, progress
        self.total = len(row_blocks(W.shape[0])) * (
            len(self.groups) if self.calibration is None else len(self.blocks) * (1 + _SWEEPS))
        if self.calibration is not None:
            self.total += len(row_blocks(len(calibration))) + 1

    def tick(self):
        self.done += 1
        self.progress(self.done, self.total)

    def run(self):
        """Codes, scales, row_scale and zeros as :class:`BitSerialMatrix` takes them."""
        (N, K), config = self.W.shape, self.config
        codes = np.empty((N, K), np.uint8)
        scales = np.empty((N, len(self.groups)), np.uint16)
        zeros = np.empty((N, len(self.groups)), np.uint8)
        row_scale = np.empty(N, np.float32)
        if self.calibration is not None:
            self.hessian = damped_hessian(self.calibration, self.tick)
            self.inverse = inverse_factor(self.hessian)
            self.tick()
        for rows in row_blocks(N):
            w = self.W[rows].T.astype(np.float64, order="C")
            search = self._round_to_nearest if self.calibration is None else self._gptq
            steps, origins, levels = search(w)
            scales[rows], row_scale[rows] = relative_scales(steps.T, 2)
            # From here on the steps are what the device computes with.
            steps = (2.0 * scales[rows] * row_scale[rows, None]).T
            if self.calibration is None:
                for group, step, origin in zip(self.groups, steps, origins):
                    levels[group] = _levels(w[group], step, origin, config)
            else:
                self._descend(w, steps, origins, levels)
            for group, origin in zip(self.groups, origins):
                codes[rows, group] = (levels[group] + (origin - _half(config))).T
            zeros[rows] = origins.T
        return codes, scales, row_scale, zeros if config.has_zeros else None

    def _round_to_nearest(self, w):
        """Steps and origins [groups, rows] of each group by itself; room for the levels."""
        steps, origins = np.empty((2, len(self.groups), w.shape[1]))
        for j, group in enumerate(self.groups):
            if self.config.scheme == "ternary":     # the absmean scale of BitNet b1.58
                steps[j], origins[j] = np.abs(w[group]).mean(axis=0), 1
            else:
                steps[j], origins[j] = _search(w[group], np.ones(len(w[group])), self.config)
            self.tick()
        return steps, origins, np.empty_like(w)

    def _gptq(self, w):
        """Round column by column; later columns make up for the error of earlier ones.

        Returns
        -------
        steps, origins : ndarray of float64, [groups, rows]
        levels : ndarray of float64, [K, rows]
        """
        levels = np.empty_like(w)
        weight = self.hessian.diagonal()
        steps, origins = np.empty((2, len(self.groups), w.shape[1]))
        size = self.groups[0].stop

        def rounded(i, now):
            j = i // size
            if i == self.groups[j].start:
                group = self.groups[j]
                steps[j], origins[j] = _search(now[group], weight[group], self.config)
            levels[i] = _levels(now[i], steps[j], origins[j], self.config)
            return steps[j] * levels[i]

        feed_back(w, self.inverse, self.blocks, rounded, self.tick)
        return steps, origins, levels

    def _descend(self, w, steps, origins, levels):
        """Improve `levels` in place: coordinate descent on the quadratic output error."""
        expand = lambda groups: np.repeat(groups, self.groups[0].stop, axis=0)[:len(w)]
        steps, origins = expand(steps), expand(origins)

        def rounded(i, wanted):
            levels[i] = _levels(wanted, steps[i], origins[i], self.config)
            return steps[i] * levels[i]

        descend(w, self.hessian, self.blocks, steps * levels, rounded, _SWEEPS, self.tick)


def _half(config):
    """Levels are integers plus this."""
    return 0.0 if config.has_zeros else 0.5


def _levels(w, step, origin, config):
    """Nearest level of each weight; 0 counts as positive where there is no level 0.

    Parameters
    ----------
    w : ndarray of float64, [..., rows]
    step, origin : ndarray of float64, [rows]
        The code of the lowest nonnegative level is `origin`.
    """
    nearest = np.rint if config.has_zeros else np.floor
    level = nearest(w / np.where(step > 0, step, np.inf))
    return np.clip(level, -origin, config.largest_code - origin) + _half(config)


def _search(w, weight, config):
    """Step and origin of a group, by least weighted squared error for up to 4 bits.

    Parameters
    ----------
    w : ndarray of float64, [group, rows]
    weight : ndarray of float64, [group]
        Positive.

    Returns
    -------
    step, origin : ndarray of float64, [rows]
    """
    low, high = np.minimum(w.min(axis=0), 0), np.maximum(w.max(axis=0), 0)
    if config.scheme == "asymmetric":
        full = (high - low) / config.largest_code
        origin = np.rint(-low / np.where(full > 0, full, np.inf))
    else:
        origin = np.full(w.shape[1], 1.0 if config.scheme == "ternary" else 2.0**(config.bits - 1))
        full = np.maximum(-low, high) / (config.largest_code / 2)
    best = full.copy(), origin
    if config.bits > 4:
        return best
    least = np.full(w.shape[1], np.inf)

    def attempt(step, origin):
        error = weight @ (step * _levels(w, step, origin, config) - w)**2
        better = error < least
        least[better] = error[better]
        for values, new in zip(best, (step, origin)):
            values[better] = new[better]

    for ratio in _RATIOS:
        attempt(ratio * full, origin.copy())
    for shift in (1, -1, 0) * 2 if config.scheme == "asymmetric" else (0,) * 3:
        shifted = np.clip(best[1] + shift, 0, config.largest_code)
        levels = _levels(w, best[0], shifted, config)
        square = weight @ levels**2
        attempt(weight @ (w * levels) / np.where(square > 0, square, np.inf), shifted)
    return best


