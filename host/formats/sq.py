"""SQ-format matrices: of every bank of weights a fixed number in eight bits, the others in few.

A bank is `bank` consecutive weights of a row.  Its low weights are ``step * low``, its high ones
``step * 2**(exponent - 4) * high``: one 16-bit scale and one 3-bit exponent for each bank and row,
so that one integer accumulator serves both (SQ-format, equation 1 and algorithm 1; the exponent
takes the place of the paper's second scale).
"""

from dataclasses import dataclass

import numpy as np

from hdl.config import (
    EXPONENT_BITS,
    HIGH_BITS,
    HIGH_MAX,
    LOW_SHIFT,
    MAX_PLANES,
    SENTINEL_BEATS,
)
from host.errors import ArgumentError, ArgumentTypeError, ConfigError
from host.formats.common import (
    array_of,
    check_scales,
    column_arguments,
    imported_scales,
    integer,
    relative_scales,
    string,
)
from host.formats.sq_activations import SQActivationMatrix
from host.matrix import QuantizedMatrix, check_array, pack_bits, unpack_bits

__all__ = ["SQ", "SQMatrix"]

_BANKS = (32, 64, 128)
_LOW = (2, 3, 4)
_STORAGES = ("sentinel", "mask")
_METHODS = ("rtn", "gptq")
_SIDES = ("weight", "activation", "activation-dynamic")
_IMPORTANCES = {"weight": ("gptq", "paper"), "activation": ("energy", "paper")}
_HIGH_LANES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class SQ:
    """Configuration of the sq format.

    Parameters
    ----------
    bank : int
        Weights along K of which a fixed number are high: 32, 64 or 128.  They share a scale.
    sparsity : float
        Part of them that is low, 0.5 or more and below 1: ``(1 - sparsity) * bank`` must be a
        whole number.
    high, low : int
        Bits of high weights, 8, and of low ones, 2..4.
    side : str
        The operand in this format: ``"weight"``; ``"activation"``, of whose channels always the
        same are high; or ``"activation-dynamic"``, of which the largest of every token are.
    bits : int or None
        Bits of weights where activations are in this format, 1..8; 4 by default.
    storage : str or None
        How a file says which weights are high: ``"sentinel"``, by a code that no low weight has,
        ``"mask"``, by a bit for each; None: the smaller.
    method : str or None
        ``"rtn"`` (round to nearest), ``"gptq"`` (with error feedback), or None: gptq if there is
        calibration data.
    importance : str or None
        By what high weights are chosen: ``"gptq"``, ``w**2 / inv(H)[i, i]``, or ``"paper"``,
        ``w**2 / inv(H)[i, i]**2``.  Of channels: ``"energy"``, root mean square times norm of the
        column of weights, or ``"paper"``, ``|mean * sum of the column|``.  None: the first.
    smoothing : float or None
        Migration strength of SmoothQuant, 0 (none) to 1; None: the best of 0, 0.25, 0.5 and 0.75
        on the calibration data, which the matrix's configuration then names (to search again, set
        it to None again).  Without those there is none, nor for activations in this format.
    """

    bank: int = 64
    sparsity: float = 0.875
    high: int = 8
    low: int = 4
    side: str = "weight"
    bits: int | None = None
    storage: str | None = None
    method: str | None = None
    importance: str | None = None
    smoothing: float | None = None

    def __post_init__(self):
        for name, legal in (("bank", _BANKS), ("high", (HIGH_BITS,)), ("low", _LOW)):
            value = integer(name, getattr(self, name))
            if value not in legal:
                raise ConfigError(f"{name} must be {_either(legal)}, got {value}")
            object.__setattr__(self, name, value)
        of_weights = string("side", self.side) == "weight"
        if self.smoothing is not None:
            object.__setattr__(self, "smoothing", _real("smoothing", self.smoothing))
        names: dict[str, tuple] = {
            "side": _SIDES, "method": (None, *_METHODS),
            "storage": (None, *_STORAGES) if of_weights else (None,),
            "importance": (None, *_IMPORTANCES.get(self.side, ()))}
        for name, choices in names.items():
            given = string(name, getattr(self, name))
            if given not in choices:
                named = [repr(choice) for choice in choices if choice is not None]
                rule = f"be {_either(named)}" if named else "not be given"
                with_side = "" if name in ("side", "method") else f" with side={self.side!r}"
                raise ConfigError(f"{name} must {rule}{with_side}, got {given!r}")
        if of_weights and self.bits is not None:
            raise ConfigError("bits are of the weights where activations have two precisions; "
                              f"with side='weight' low and high say them, got bits={self.bits}")
        if not of_weights:
            bits = 4 if self.bits is None else integer("bits", self.bits)
            if not 1 <= bits <= 8:
                raise ConfigError(f"bits must be 1..8, got {bits}")
            object.__setattr__(self, "bits", bits)
            if self.smoothing:
                raise ConfigError("smoothing is for side='weight': activations in two precisions "
                                  f"keep their large channels, got {self.smoothing!r}")
        if self.importance is None and self.side in _IMPORTANCES:
            object.__setattr__(self, "importance", _IMPORTANCES[self.side][0])
        sparsity = _real("sparsity", self.sparsity)
        high = round((1 - sparsity) * self.bank) if 0 <= sparsity <= 1 else 0
        if not 1 <= high <= self.bank // 2 or abs((1 - sparsity) * self.bank - high) > 1e-6:
            some = ", ".join(f"{1 - n / self.bank:g}" for n in _powers(self.bank // 2))
            raise ConfigError(
                f"sparsity must leave a whole number of high weights in a bank of {self.bank}, 1.."
                f"{self.bank // 2}: a multiple of 1/{self.bank} in 0.5..{1 - 1 / self.bank:g}, for "
                f"instance {some}; got {self.sparsity!r}, which leaves "
                f"{(1 - sparsity) * self.bank:g}")
        object.__setattr__(self, "sparsity", 1 - high / self.bank)
        if self.smoothing is not None and not 0 <= self.smoothing <= 1:
            raise ConfigError(f"smoothing must be in 0..1, got {self.smoothing!r}")
        if of_weights and self.storage is None:
            object.__setattr__(self, "storage", "sentinel" if self.high_count * self.low
                               <= self.bank else "mask")

    @property
    def group_size(self):
        """int: weights along K that share a scale: those of a bank."""
        return self.bank

    @property
    def high_count(self):
        """int: high weights of a bank."""
        return round((1 - self.sparsity) * self.bank)

    @property
    def low_max(self):
        """int: largest magnitude of a low weight."""
        return 2**(self.low - 1) - 1

    @property
    def sentinel(self):
        """int: the code that stands where a weight is high; no low weight has it."""
        return -2**(self.low - 1)

    @property
    def name(self):
        """str: as the paper writes it, ``b-(high/low)-s``."""
        return f"{self.bank}-({self.high}/{self.low})-{self.sparsity:.10g}"

    @property
    def paper_bits(self):
        """float: the paper's "equivalent bits" of a weight, or of an activation: positions and
        scales do not count, and a low one is stored only where no high one is."""
        return (1 - self.sparsity) * self.high + self.sparsity * self.low

    def banks(self, K):
        """Number of banks along a row of K weights; the last is filled with zeros."""
        return -(-K // self.bank)


def _either(legal):
    *most, last = map(str, legal)
    return f"{', '.join(most)} or {last}" if most else last


def _powers(most):
    return [2**i for i in range(most.bit_length())][::-1]


def _real(name, value):
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise ArgumentTypeError(f"{name} must be a real number, got {value!r:.80}")
    try:
        return float(value)
    except OverflowError:
        raise ArgumentError(f"{name} must be a real number, got an integer of "
                            f"{int(value).bit_length()} bits") from None


class SQMatrix(QuantizedMatrix):
    """A matrix of low weights, in every bank some high ones instead.

    Parameters
    ----------
    config : SQ
    shape : tuple of int
        ``(N, K)``.
    low : ndarray of int8, [N, banks * bank]
        Low weights, in the stored column order, the last bank filled up; ``config.sentinel``
        where a weight is high: as often in every bank.
    high : ndarray of int8, [N, banks, high_count]
        High weights in that order, in -127..127.
    scales : ndarray of uint16, [N, banks]
        Of the banks relative to the row's largest, which is 65535; an all-zero row has 0.
    exponents : ndarray of uint8, [N, banks]
        0..7: a high step is ``2**(exponent - 4)`` low ones.
    row_scale : ndarray of float32, [N]
        Real value of one unit of :meth:`integer_weights`, of which a low step of scale 1 has 16.
    permutation, input_scale, output_scale
        See :class:`~host.matrix.QuantizedMatrix`.
    """

    format = "sq"

    def __init__(self, config, shape, low, high, scales, exponents, row_scale, *,
                 permutation=None, input_scale=None, output_scale=None):
        if not isinstance(config, SQ):
            raise ArgumentTypeError(f"config must be an SQ, got {type(config).__name__}")
        if config.side != "weight":
            raise ArgumentError("an SQMatrix has side='weight', an SQActivationMatrix the others; "
                                f"got {config.side!r}")
        super().__init__(config, shape, permutation, input_scale, output_scale)
        N, K = self.shape
        banks = config.banks(K)
        self.low = check_array("low", low, np.int8, (N, banks * config.bank), "[N, banks * bank]")
        self.high = check_array("high", high, np.int8, (N, banks, config.high_count),
                                "[N, banks, high_count]")
        if np.abs(self.low.astype(np.int16)).max() > config.low_max:
            _check_low(self.low, config)
        _check_counts(self.mask, config)
        if self.high.min() < -HIGH_MAX:
            raise ArgumentError(f"high weights must be {-HIGH_MAX}..{HIGH_MAX}, "
                                f"got {self.high.min()}")
        self.scales, self.row_scale = check_scales(scales, row_scale, (N, banks))
        self.exponents = check_array("exponents", exponents, np.uint8, (N, banks), "[N, banks]")
        if self.exponents.max() >= 2**EXPONENT_BITS:
            raise ArgumentError(f"exponents must be 0..{2**EXPONENT_BITS - 1}, "
                                f"got {self.exponents.max()}")
        largest = np.maximum(np.abs(self.high.astype(np.int64)).max(axis=2) << self.exponents,
                             config.low_max << LOW_SHIFT)
        self._check_magnitude(float(((largest * self.scales).max(axis=1)
                                     * self.row_scale.astype(np.float64)).max()))

    @classmethod
    def quantize(cls, W, config, *, calibration, seed, output_scale, progress):
        from host.formats.sq_training import train

        if config.side != "weight":
            return SQActivationMatrix.quantize(
                W, config, calibration=calibration, seed=seed, output_scale=output_scale,
                progress=progress)
        return train(W, config, calibration, output_scale, progress)

    @classmethod
    def from_codes(cls, *, scales, bank, sparsity, low=None, high=None, side="weight", codes=None,
                   exponents=None, bits=None, low_bits=4, mask=None, K=None, permutation=None,
                   input_scale=None, output_scale=None):
        """Import codes of somebody else's quantiser.

        Parameters
        ----------
        scales : array of real numbers, [N, banks]
            Low steps, not negative; rounded to 16 bits relative to the largest of their row.
            Of another side than weights: steps s of ``s * (q - (2**bits - 1) / 2)``.
        bank, sparsity, side
            See :class:`SQ`.
        low : array of an integer dtype, [N, banks * bank]
            Stored column order, ``-(2**(low_bits - 1) - 1)..2**(low_bits - 1) - 1``; where a
            weight is high the sentinel ``-2**(low_bits - 1)``, or with a `mask` that or a low one.
        high : array of an integer dtype, [N, banks, high weights of a bank]
            -127..127, in the order of K.
        codes : array of an integer dtype, [N, K]
            Of another side than weights, instead of `low` and `high`: codes q of uniform weights,
            0..2**bits - 1, in the stored column order; with side ``"activation"`` the first
            ``(1 - sparsity) * bank`` columns of each bank are high.
        exponents : array of an integer dtype, [N, banks], optional
            A high step is ``2**exponent`` low steps, -4..3; -4 by default.
        bits : int
            Of another side than weights: of codes, 1..8; 4 by default.
        low_bits : int
            Of a low weight or a low activation, 2..4.
        mask : array of bool, [N, banks * bank], optional
            Which weights are high, if no sentinel says so.
        K : int, optional
            Weights of a row; by default all banks are whole.
        permutation : array of an integer dtype, [K], optional
        input_scale : array of real numbers, [K], optional
        output_scale : float, optional

        Returns
        -------
        SQMatrix or SQActivationMatrix
        """
        low_bits = integer("low_bits", low_bits)
        if low_bits not in _LOW:
            raise ConfigError(f"low_bits must be {_either(_LOW)}, got {low_bits}")
        of_weights = {"low": low, "high": high, "exponents": exponents, "mask": mask, "K": K}
        # Of what is wrong with it the configuration complains.
        if string("side", side) in _SIDES and side != "weight":
            given = [name for name, array in of_weights.items() if array is not None]
            if given or codes is None:
                raise ArgumentTypeError(f"side={side!r} takes codes and scales, "
                                        f"got {', '.join(given) or 'no codes'}")
            return SQActivationMatrix.from_codes(
                SQ(bank=bank, sparsity=sparsity, low=low_bits, side=side, bits=bits), codes=codes,
                scales=scales, permutation=permutation, input_scale=input_scale,
                output_scale=output_scale)
        config = SQ(bank=bank, sparsity=sparsity, low=low_bits, side=side)
        if low is None or high is None or codes is not None or bits is not None:
            raise ArgumentTypeError("side='weight' takes low and high, of which low_bits is the "
                                    "width of low, and no codes of other bits")
        low, high = array_of("low", low, "iu"), array_of("high", high, "iu")
        if low.ndim != 2 or 0 in low.shape or low.shape[1] % config.bank:
            raise ArgumentError("low must have shape [N, banks * bank], whole banks of "
                                f"{config.bank}, got {low.shape}")
        N, padded = low.shape
        banks = padded // config.bank
        K = padded if K is None else integer("K", K)
        if K < 1 or config.banks(K) != banks:
            raise ArgumentError(f"{banks} banks of {config.bank} hold K = "
                                f"{padded - config.bank + 1}..{padded} weights a row, got K={K}")
        if mask is not None:
            mask = array_of("mask", mask, "b")
            check_array("mask", mask, np.bool_, (N, padded), "[N, banks * bank]")
            _check_counts(mask, config)
            _check_low(np.where(mask & (low == config.sentinel), 0, low), config, sentinel=False)
            low = np.where(mask, config.sentinel, low.astype(np.int64))
        else:
            _check_low(low, config)
        check_array("high", high, high.dtype, (N, banks, config.high_count),
                    f"[N, banks, {config.high_count} of a bank]")
        if high.min() < -HIGH_MAX or high.max() > HIGH_MAX:
            bad = high.min() if high.min() < -HIGH_MAX else high.max()
            raise ArgumentError(f"high weights must be {-HIGH_MAX}..{HIGH_MAX}, got {bad}")
        scales = imported_scales(scales, (N, banks), "[N, banks]")
        least, most = -LOW_SHIFT, 2**EXPONENT_BITS - 1 - LOW_SHIFT
        exponents = np.full((N, banks), least) if exponents is None else array_of(
            "exponents", exponents, "iu")
        check_array("exponents", exponents, exponents.dtype, (N, banks), "[N, banks]")
        if exponents.min() < least or exponents.max() > most:
            bad = exponents.min() if exponents.min() < least else exponents.max()
            raise ArgumentError(f"exponents must be {least}..{most}, got {bad}")
        steps, row_scale = relative_scales(scales, 1 << LOW_SHIFT)
        return cls(config, (N, K), low.astype(np.int8), high.astype(np.int8), steps,
                   (exponents.astype(np.int64) + LOW_SHIFT).astype(np.uint8), row_scale,
                   output_scale=output_scale, **column_arguments(permutation, input_scale))

    @property
    def mask(self):
        """ndarray of bool, [N, banks * bank]: which weights are high."""
        return self.low == self.config.sentinel

    def integer_weights(self, rows=slice(None)):
        """``scales * (16 * low or 2**exponent * high)``: int64 [rows, K]."""
        bank, K = self.config.bank, self.shape[1]
        weights = self.low[rows].astype(np.int64) << LOW_SHIFT
        weights[self.mask[rows]] = (self.high[rows].astype(np.int64)
                                    << self.exponents[rows, :, None]).reshape(-1)
        return (np.repeat(self.scales[rows].astype(np.int64), bank, axis=1) * weights)[:, :K]

    def needs(self, bits):
        if bits > 8:
            raise ArgumentError("activations of sq matrices with side='weight' must be int8, "
                                "-127..127")
        least, natural = (-(-self.config.high_count // beats)
                          for beats in (MAX_PLANES, self.config.low))
        enough = [lanes for lanes in _HIGH_LANES if lanes >= least]
        # First those that let the low planes run at their full rate.
        enough.sort(key=lambda lanes: (lanes < natural, abs(lanes - natural)))
        # On an engine with more turns than planes a column takes more beats.
        turns = sorted((1, 2, 4), key=lambda turns: (turns > self.planes, -turns))
        return {"bank": self.config.bank, "activation_bits": 8, "zero_points": True,
                "high_lanes": tuple(enough), "turns": tuple(turns),
                "sentinels": (False, True)[:1 + (self.config.high_count <= 2 * SENTINEL_BEATS)]}

    def refusal(self, engine):
        most = engine.column_beats_max * engine.high_lanes
        if self.config.high_count <= most:
            return None
        return (f"an engine that finds places from sentinels with high_lanes={engine.high_lanes} "
                f"takes at most {most} high weights of a bank, and the matrix has "
                f"{self.config.high_count}: use one with high_lanes=2 or sentinels=False")

    @property
    def planes(self):
        """int: bit planes of a low weight."""
        return self.config.low

    @property
    def bias_unit(self):
        """int: 1, for planes are summed before biases join."""
        return 1

    @property
    def code_bits_per_weight(self):
        """float: bits of low and high weights and of what says which are which, padding
        included."""
        return self._code_bits() / (self.shape[0] * self.shape[1])

    def _code_bits(self):
        config, low = self.config, self.low.size
        if config.storage == "mask":
            low += (self.low.size - self.high.size) * config.low
        else:
            low *= config.low
        return low + config.high * self.high.size

    def _stored_bits(self):
        return (self._code_bits() + 16 * self.scales.size + EXPONENT_BITS * self.exponents.size
                + 32 * self.shape[0])

    def _arrays(self):
        return {"low": self.low, "high": self.high, "scales": self.scales,
                "exponents": self.exponents, "row_scale": self.row_scale}

    @classmethod
    def _file_layout(cls, config, shape):
        if config.side != "weight":
            return SQActivationMatrix._file_layout(config, shape)
        N, K = shape
        banks = config.banks(K)
        total = N * banks * config.bank
        high = N * banks * config.high_count
        low = {"low": (np.uint8, (config.low, -(-total // 8)))} if config.storage == "sentinel" \
            else {"low": (np.uint8, (config.low, -(-(total - high) // 8))),
                  "mask": (np.uint8, (1, -(-total // 8)))}
        return low | {
            "high": (np.int8, (N, banks, config.high_count)), "scales": (np.uint16, (N, banks)),
            "exponents": (np.uint8, (EXPONENT_BITS, -(-N * banks // 8))),
            "row_scale": (np.float32, (N,))}

    def _to_file(self):
        config, mask = self.config, self.mask
        codes = (self.low if config.storage == "sentinel" else self.low[~mask]).view(np.uint8)
        tensors = self._arrays() | {"low": pack_bits(codes & 2**config.low - 1, config.low),
                                    "exponents": pack_bits(self.exponents, EXPONENT_BITS)}
        if config.storage == "mask":
            tensors["mask"] = pack_bits(mask.astype(np.uint8), 1)
        return tensors

    @classmethod
    def _from_file(cls, config, shape, tensors, **common):
        if config.side != "weight":
            return SQActivationMatrix._from_file(config, shape, tensors, **common)
        N, K = shape
        banks = config.banks(K)
        whole = N, banks * config.bank
        mask = tensors.pop("mask", None)
        if mask is None:
            low = unpack_bits(tensors.pop("low"), whole)
        else:
            mask = unpack_bits(mask, whole).astype(bool)
            _check_counts(mask, config)
            low = np.full(whole, 2**(config.low - 1), np.uint8)
            low[~mask] = unpack_bits(tensors.pop("low"), (int((~mask).sum()),))
        signed = (low.astype(np.int16) ^ 2**(config.low - 1)) - 2**(config.low - 1)
        exponents = unpack_bits(tensors.pop("exponents"), (N, banks))
        return cls(config, shape, signed.astype(np.int8), exponents=exponents, **tensors,
                   **common)


def _check_low(low, config, sentinel=True):
    """Refuse what is neither a low weight nor, where it may stand, the sentinel."""
    least = config.sentinel if sentinel else -config.low_max
    if low.min() < least or low.max() > config.low_max:
        bad = low.min() if low.min() < least else low.max()
        also = f", or where a weight is high the sentinel {config.sentinel}" if sentinel else \
            f" ({config.sentinel} only where the mask is set)"
        raise ArgumentError(f"low weights of {config.low} bits must be -{config.low_max}.."
                            f"{config.low_max}{also}; got {bad}")


def _check_counts(mask, config):
    """Refuse masks that do not name as many weights of every bank as the sparsity says."""
    counts = mask.reshape(len(mask), -1, config.bank).sum(axis=2)
    if (counts != config.high_count).any():
        n, bank = np.argwhere(counts != config.high_count)[0]
        raise ArgumentError(f"every bank of {config.bank} must have {config.high_count} high "
                            f"weights (sparsity {config.sparsity:g}), not {counts[n, bank]} as "
                            f"bank {bank} of row {n}; a low weight must not be the sentinel "
                            f"{config.sentinel}")
