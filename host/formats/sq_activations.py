"""SQ-format on the side of activations: uniform weights, tokens in two precisions (algorithm 2).

Of every bank of a token's elements a fixed number is kept in eight bits, the others in few, with a
power of two between their steps that each token and bank has for itself
(:mod:`hdl.bank_units`).  *Static*: the same channels are high in every token, and columns are
reordered so that they are the first of their banks; *dynamic*: those that are the largest.
"""

import dataclasses

import numpy as np

from hdl.bank_units import BANK_UNIT, BANK_VALUE_MAX, HIGH_EXPONENT, UNIT_BITS, exponent_max
from hdl.config import HIGH_MAX, TOKEN_SIDE
from host.errors import ArgumentError
from host.formats.bitserial import BitSerial, BitSerialMatrix
from host.formats.common import column_arguments
from host.matrix import QuantizedMatrix, row_blocks

__all__ = ["SQActivationMatrix", "fitted", "reordered"]

_FACTORS = np.geomspace(0.5**0.5, 2**0.5, 9)
_SAMPLE = 256       # tokens on which factors are compared
_GAIN = 0.97        # what another factor must bring: less is chance


class SQActivationMatrix(QuantizedMatrix):
    """A matrix of uniform weights whose activations have two precisions.

    Parameters
    ----------
    config : host.formats.sq.SQ
    codes : ndarray of uint8, [N, K]
        Odd levels as of a symmetric :class:`~host.formats.bitserial.BitSerialMatrix`.
    scales : ndarray of uint16, [N, banks]
    row_scale : ndarray of float32, [N]
    permutation, input_scale, output_scale
        See :class:`~host.matrix.QuantizedMatrix`.
    """

    format = "sq"
    token_bits = 16
    chains = False

    def __init__(self, config, codes, scales, row_scale, *, permutation=None, input_scale=None,
                 output_scale=None):
        if getattr(config, "side", "weight") == "weight":
            raise ArgumentError("an SQActivationMatrix takes an SQ with side='activation' or "
                                f"'activation-dynamic', got {config!r:.80}")
        self.weights = BitSerialMatrix(BitSerial(bits=config.bits, group_size=config.bank), codes,
                                       scales, row_scale)
        super().__init__(config, self.weights.shape, permutation, input_scale, output_scale)
        self.codes, self.scales = self.weights.codes, self.weights.scales
        self.row_scale = self.weights.row_scale
        self._check_magnitude(2.0 * 65535 * (2**config.bits - 1) * float(self.row_scale.max()))

    @classmethod
    def quantize(cls, W, config, *, calibration, seed, output_scale, progress):
        method = config.method or ("rtn" if calibration is None else "gptq")
        if calibration is None and config.side == "activation":
            raise ArgumentError("side='activation' needs calibration, floats of shape [tokens, K]: "
                                "which channels are high follows from it")
        if calibration is None and method == "gptq":
            raise ArgumentError('method="gptq" needs calibration, floats of shape [tokens, K]; '
                                'method="rtn" does without')
        permutation = input_scale = None
        if config.side == "activation":
            permutation = reordered(W, config, calibration)
            W, calibration = W[:, permutation], calibration[:, permutation]
            input_scale = fitted(config, calibration)
            W, calibration = W / input_scale, calibration * input_scale
        weights = BitSerialMatrix.quantize(
            W, BitSerial(bits=config.bits, group_size=config.bank, method=method),
            calibration=calibration, seed=seed, output_scale=None, progress=progress)
        return cls(dataclasses.replace(config, method=method), weights.codes, weights.scales,
                   weights.row_scale, permutation=permutation, input_scale=input_scale,
                   output_scale=output_scale)

    @classmethod
    def from_codes(cls, config, *, codes, scales, permutation, input_scale, output_scale):
        """Import codes; arguments as of :meth:`host.formats.sq.SQMatrix.from_codes`."""
        weights = BitSerialMatrix.from_codes(
            codes=codes, scales=scales, bits=config.bits, group_size=config.bank)
        return cls(config, weights.codes, weights.scales, weights.row_scale,
                   output_scale=output_scale, **column_arguments(permutation, input_scale))

    def integer_weights(self, rows=slice(None)):
        return self.weights.integer_weights(rows)

    def needs(self, bits):
        return {"bank": self.config.bank, **TOKEN_SIDE}

    @property
    def planes(self):
        """int: bit planes of a weight."""
        return self.config.bits

    def activation_bound(self, bits):
        return BANK_VALUE_MAX

    def token_units(self, xq, scale):
        return (np.asarray(scale, np.float32) * np.float32(BANK_UNIT)).astype(np.float32)

    def values(self, xq):
        """What the device makes of tokens: int64 [M, K], in units of ``BANK_UNIT`` int16 steps.

        Parameters
        ----------
        xq : integers [M, K]
            int16 activations, in the stored column order.
        """
        return _values(self.config, xq)

    @property
    def code_bits_per_weight(self):
        """float: bits of a code."""
        return float(self.config.bits)

    def _arrays(self):
        return self.weights._arrays()

    def _stored_bits(self):
        return self.weights._stored_bits()

    @classmethod
    def _file_layout(cls, config, shape):
        return BitSerialMatrix._file_layout(
            BitSerial(bits=config.bits, group_size=config.bank), shape)

    def _to_file(self):
        return self.weights._to_file()

    @classmethod
    def _from_file(cls, config, shape, tensors, **common):
        weights = BitSerialMatrix._from_file(
            BitSerial(bits=config.bits, group_size=config.bank), shape, tensors)
        return cls(config, weights.codes, weights.scales, weights.row_scale, **common)


def _values(config, xq):
    """See :meth:`SQActivationMatrix.values`."""
    M, K = xq.shape
    banks = -(-K // config.bank)
    x = np.zeros((M, banks * config.bank), np.int64)
    x[:, :K] = xq
    x = x.reshape(M, banks, config.bank)
    size = np.minimum(np.abs(x), 32767)
    high = np.zeros(x.shape, bool)
    if config.side == "activation":
        high[..., :config.high_count] = True
    else:
        order = np.argsort(-size, axis=2, kind="stable")[..., :config.high_count]
        np.put_along_axis(high, order, True, axis=2)
    largest = np.where(high, 0, size).max(axis=2, keepdims=True)
    exponent = np.zeros_like(largest)
    for e in range(exponent_max(config.low)):
        # 1.25 times what the levels reach, in quarters.
        exponent += 4 * largest >= 5 << config.low - 1 + UNIT_BITS + e
    power = np.where(high, HIGH_EXPONENT, exponent)
    most = np.where(high, HIGH_MAX, config.low_max)
    level = (x + (BANK_UNIT << power >> 1)) >> UNIT_BITS + power
    return (np.clip(level, -most, most) << power).reshape(M, banks * config.bank)[:, :K]


def fitted(config, calibration):
    """Factors of the columns with which the low ones of each bank fit a step: float32 [K].

    Steps are powers of two of the token's, so that a bank's may be 1.4 times what would be best;
    scaled up or down by that it fits.

    Parameters
    ----------
    config : host.formats.sq.SQ
    calibration : ndarray of a floating dtype, [tokens, K]
        Columns in the stored order.
    """
    count = len(calibration)
    x = calibration[np.linspace(0, count - 1, min(count, _SAMPLE)).astype(int)].astype(np.float64)
    steps = np.abs(x).max(axis=1, keepdims=True, initial=0) / 32767
    x, steps = x[steps[:, 0] > 0], steps[steps > 0][:, None]
    K = calibration.shape[1]
    starts = np.arange(0, K, config.bank)
    low = np.arange(K) % config.bank >= config.high_count
    errors = np.empty((len(_FACTORS), len(starts)))
    for row, factor in zip(errors, _FACTORS):
        scaled = np.where(low, x * factor, x)
        values = _values(config, np.rint((scaled / steps).clip(-32767, 32767)).astype(np.int64))
        wrong = np.where(low, np.square(values * BANK_UNIT * steps - scaled), 0) / factor**2
        row[:] = np.add.reduceat(wrong.sum(axis=0), starts)
    plain = errors[len(_FACTORS) // 2]      # of the factor 1
    best = np.where(errors.min(axis=0) < _GAIN * plain, _FACTORS[errors.argmin(axis=0)], 1)
    return np.where(low, np.repeat(best, config.bank)[:K], 1).astype(np.float32)


def reordered(W, config, calibration):
    """Order of the columns in which the high channels are the first of their banks: int64 [K].

    High are those with the largest importance of all.  The others lie in the order of their root
    mean square, so that those of a bank fit one step.  The paper chooses within banks of
    neighbours; where columns are reordered anyway, neighbours are what one makes of them.
    """
    K = W.shape[1]
    bank, count = config.bank, config.high_count
    mean, square, norm, total = np.zeros((4, K))
    for rows in row_blocks(len(calibration)):
        x = calibration[rows].astype(np.float64)
        mean += x.sum(axis=0) / len(calibration)
        square += np.square(x).sum(axis=0) / len(calibration)
    for rows in row_blocks(len(W)):
        w = W[rows].astype(np.float64)
        norm += np.square(w).sum(axis=0)
        total += w.sum(axis=0)
    importance = np.abs(mean * total) if config.importance == "paper" else np.sqrt(square * norm)
    sizes = [min(bank, K - start) for start in range(0, K, bank)]
    wanted = [min(count, size) for size in sizes]
    order = np.argsort(-importance, kind="stable")
    high, low = order[:sum(wanted)], order[sum(wanted):]
    low = low[np.argsort(square[low], kind="stable")]
    # The most important of each bank in turn.
    places = sorted((turn, number) for number, n in enumerate(wanted) for turn in range(n))
    banks = [[] for _ in sizes]
    for channel, (_, number) in zip(high, places):
        banks[number].append(channel)
    start = 0
    for found, size in zip(banks, sizes):
        more = size - len(found)
        found.extend(low[start:start + more])
        start += more
    return np.concatenate([np.array(found, np.int64) for found in banks])
