"""The quantiser of sq weights: smoothing, masks, steps and error feedback (SQ-format, algorithm 1).

It works on transposed float64 blocks [K, rows], so that a column of the matrix is contiguous.
"""

import dataclasses

import numpy as np

from hdl.config import EXPONENT_BITS, HIGH_MAX, LOW_SHIFT
from host.activations import quantize_tokens
from host.errors import ArgumentError
from host.formats.common import relative_scales
from host.formats.hessian import damped_hessian, descend, feed_back, inverse_factor
from host.formats.sq import SQMatrix
from host.matrix import row_blocks

__all__ = ["Banks", "train"]

_BLOCK = 128            # columns between two updates of all later ones; a multiple of banks
_SWEEPS = 2             # of coordinate descent: the third gains nothing
_RATIOS = np.geomspace(0.15, 1, 24)     # of the step that clips nothing
_STRENGTHS = (0.25, 0.5, 0.75)
_SAMPLE = 256           # rows and tokens on which strengths are compared
_FINEST, _COARSEST = -LOW_SHIFT, 2**EXPONENT_BITS - 1 - LOW_SHIFT


def train(W, config, calibration, output_scale, progress):
    """Quantise a matrix; arguments as of :meth:`host.formats.sq.SQMatrix.quantize`."""
    method = config.method or ("rtn" if calibration is None else "gptq")
    if method == "gptq" and calibration is None:
        raise ArgumentError('method="gptq" needs calibration, floats of shape [tokens, K]; '
                            'method="rtn" does without')
    if config.smoothing and calibration is None:
        raise ArgumentError("smoothing needs calibration, floats of shape [tokens, K]")
    config = dataclasses.replace(config, method=method)
    blocks = row_blocks(len(W))
    ticks = len(range(0, W.shape[1], _BLOCK)) * (1 + _SWEEPS) if method == "gptq" else 1
    total = len(blocks) * ticks + (0 if calibration is None else
                                   len(row_blocks(len(calibration))) + 1)
    done = 0

    def tick():
        nonlocal done
        done += 1
        progress(done, total)

    input_scale = hessian = inverse = None
    weight = np.ones(W.shape[1])
    if calibration is not None:
        strength, input_scale = _smoothing(W, config, calibration)
        config = dataclasses.replace(config, smoothing=strength)
        if input_scale is not None:
            calibration = calibration * input_scale
        hessian = damped_hessian(calibration, tick)
        inverse = inverse_factor(hessian)
        weight = hessian.diagonal()
        tick()
    bank = Banks(config, W.shape[1], weight, _saliency(inverse, config, W.shape[1]))
    parts = []
    for rows in blocks:
        w = _smoothed(W[rows], input_scale).T.copy()
        if method == "rtn":
            parts.append(bank.round_to_nearest(w))
            tick()
        else:
            parts.append(bank.with_feedback(w, hessian, inverse, tick))
    low, high, scales, exponents, row_scale = (np.concatenate(a) for a in zip(*parts))
    return SQMatrix(config, W.shape, low, high, scales, exponents, row_scale,
                    input_scale=input_scale, output_scale=output_scale)


def _smoothed(W, input_scale):
    """float64 weights for activations that are multiplied by `input_scale`."""
    W = W.astype(np.float64)
    return W if input_scale is None else W / input_scale


def _saliency(inverse, config, K):
    """Factor of the square of each column's weights by which high ones are chosen: [K]."""
    if inverse is None:
        return np.ones(K)
    diagonal = np.square(inverse).sum(axis=0)       # of the inverse Hessian
    return diagonal**-(2.0 if config.importance == "paper" else 1.0)


def _smoothing(W, config, calibration):
    """The best strength a and SmoothQuant's ``max|W|**(1 - a) / max|X|**a``, None for none."""
    x = np.concatenate([np.abs(calibration[rows].astype(np.float64)).max(axis=0)[None]
                        for rows in row_blocks(len(calibration))]).max(axis=0)
    w = np.concatenate([np.abs(W[rows].astype(np.float64)).max(axis=0)[None]
                        for rows in row_blocks(len(W))]).max(axis=0)
    used = (x > 0) & (w > 0)

    def scale(strength):
        if not strength or not used.any():
            return None
        s = np.where(used, w, 1)**(1 - strength) / np.where(used, x, 1)**strength
        s = np.where(used, s / np.exp(np.log(s[used]).mean()), 1)
        return np.clip(s, 1e-4, 1e4).astype(np.float32)

    if config.smoothing is not None:
        return config.smoothing, scale(config.smoothing)
    pick = lambda a: a[np.linspace(0, len(a) - 1, min(len(a), _SAMPLE)).astype(int)]
    tokens, rows = pick(calibration).astype(np.float64), pick(W)
    wanted = tokens @ rows.astype(np.float64).T
    # Rounded to nearest: how strengths compare is the same with feedback.
    banks = Banks(config, W.shape[1], np.square(tokens).mean(axis=0) + 1e-30, np.ones(W.shape[1]))
    best, least = (0.0, None), np.inf
    for strength in (0, *_STRENGTHS):
        s = scale(strength)
        xq, unit = quantize_tokens((tokens if s is None else tokens * s).astype(np.float32))
        found = (xq * unit[:, None].astype(np.float64)) @ banks.values(_smoothed(rows, s).T.copy())
        error = np.square(found - wanted).sum()
        if error < least:
            best, least = (float(strength), s), error
    return best


class Banks:
    """Masks, steps and rounding of banks.

    Parameters
    ----------
    config : SQ
    K : int
    weight : ndarray of float64, [K]
        What the square of an error in each column counts.
    saliency : ndarray of float64, [K]
        Factor of a weight's square when high ones are chosen.
    relation : str
        Of high steps to low ones: ``"power"`` of two, as matrices have it; for comparison
        ``"free"``, any, or ``"fixed"``, 1/16.
    """

    def __init__(self, config, K, weight, saliency, relation="power"):
        self.relation = relation
        self.config = config
        self.K = K
        self.weight = weight
        self.saliency = saliency
        self.banks = [slice(i, min(i + config.bank, K)) for i in range(0, K, config.bank)]
        self.blocks = [slice(i, min(i + _BLOCK, K)) for i in range(0, K, _BLOCK)]

    def _masks(self, w, bank):
        """Which weights of a bank are high: bool [bank, rows]; `w` has its real columns."""
        rank = w**2 * self.saliency[bank, None]
        # What fills up the last bank comes after all real weights.
        short = self.config.bank - len(w)
        rank = np.concatenate([rank, np.full((short, w.shape[1]), -1.0)])
        order = np.argsort(-rank, axis=0, kind="stable")[:self.config.high_count]
        mask = np.zeros(rank.shape, bool)
        np.put_along_axis(mask, order, True, axis=0)
        return mask

    def _steps(self, w, mask, weight):
        """Low steps and exponents of a bank with the least weighted squared error: [rows] each.

        Every low step is tried with the finest exponent that does not clip the high weights and
        with the next finer one.
        """
        low_max = self.config.low_max
        most = lambda part: np.abs(np.where(part, w, 0)).max(axis=0)
        high = most(mask)
        full = np.maximum(most(~mask) / low_max, high / (HIGH_MAX * 2.0**_COARSEST))
        best, exponents = full.copy(), np.zeros(w.shape[1])
        least = np.full(w.shape[1], np.inf)

        def attempt(step):
            used = np.where(step > 0, step, np.inf)
            rounded = np.clip(np.rint(w / used), -low_max, low_max)
            low_error = weight @ np.where(mask, 0, rounded * step - w)**2
            for exponent in self._exponents(high, used):
                unit = step * 2.0**exponent
                fine = np.clip(np.rint(w / np.where(step > 0, unit, np.inf)), -HIGH_MAX, HIGH_MAX)
                error = low_error + weight @ np.where(mask, fine * unit - w, 0)**2
                better = error < least
                least[better], best[better] = error[better], step[better]
                exponents[better] = exponent[better]
            return rounded

        for ratio in _RATIOS:
            attempt(ratio * full)
        for _ in range(2):      # the step that fits the levels best
            rounded = np.where(mask, 0, attempt(best.copy()))
            square = weight @ rounded**2
            attempt(np.where(square > 0, weight @ (w * rounded)
                             / np.where(square > 0, square, 1), best))
        return best, exponents

    def _exponents(self, high, step):
        """Exponents to try for high weights of up to `high` in magnitude: [rows] each."""
        with np.errstate(divide="ignore"):
            fits = np.log2(high / (step * HIGH_MAX))
        if self.relation == "fixed":
            return [np.full(len(high), _FINEST)]
        if self.relation == "free":
            return [np.maximum(fits, -64.0)]
        return [np.clip(np.ceil(fits) - finer, _FINEST, _COARSEST) for finer in (0, 1)]

    def _round(self, w, mask, step, exponent):
        """Nearest levels of weights, each of its own kind."""
        unit = np.where(mask, step * 2.0**exponent, step)
        most = np.where(mask, HIGH_MAX, self.config.low_max)
        return np.clip(np.rint(w / np.where(unit > 0, unit, np.inf)), -most, most), unit

    def _prepare(self, w, bank):
        """Mask, with the filling, steps and exponents of a bank of `w`."""
        mask = self._masks(w[bank], bank)
        return mask, *self._steps(w[bank], mask[:bank.stop - bank.start], self.weight[bank])

    def values(self, w):
        """Weights [K, rows] rounded to nearest, as real numbers."""
        found = np.empty_like(w)
        for bank in self.banks:
            mask, step, exponent = self._prepare(w, bank)
            levels, unit = self._round(w[bank], mask[:bank.stop - bank.start], step, exponent)
            found[bank] = levels * unit
        return found

    def round_to_nearest(self, w):
        """Arrays of a matrix, see :meth:`_arrays`."""
        masks, steps, exponents = zip(*(self._prepare(w, bank) for bank in self.banks))
        scales, row_scale, steps = _device_steps(np.array(steps))
        levels = np.concatenate([
            self._round(w[bank], mask[:bank.stop - bank.start], step, exponent)[0]
            for bank, mask, step, exponent in zip(self.banks, masks, steps, exponents)])
        return self._arrays(levels, masks, scales, exponents, row_scale)

    def with_feedback(self, w, hessian, inverse, tick):
        """The same, each column's error made up for by later ones, then by all."""
        found, levels = {}, np.empty_like(w)
        size = self.config.bank

        def first(i, now):
            bank = i // size
            if i % size == 0:
                found[bank] = self._prepare(now, self.banks[bank])
            mask, step, exponent = found[bank]
            levels[i], unit = self._round(now[i], mask[i % size], step, exponent)
            return levels[i] * unit

        feed_back(w, inverse, self.blocks, first, tick)
        masks, steps, exponents = zip(*found.values())
        scales, row_scale, steps = _device_steps(np.array(steps))

        def again(i, wanted):
            bank = i // size
            levels[i], unit = self._round(wanted, masks[bank][i % size], steps[bank],
                                          exponents[bank])
            return levels[i] * unit

        units = np.concatenate([
            np.where(mask[:bank.stop - bank.start], step * 2.0**exponent, step)
            for bank, mask, step, exponent in zip(self.banks, masks, steps, exponents)])
        descend(w, hessian, self.blocks, units * levels, again, _SWEEPS, tick)
        return self._arrays(levels, masks, scales, exponents, row_scale)

    def _arrays(self, levels, masks, scales, exponents, row_scale):
        """Low and high weights, scales, exponents and row_scale as :class:`SQMatrix` has them."""
        config, rows = self.config, levels.shape[1]
        mask = np.concatenate(masks)
        levels = np.concatenate([levels, np.zeros((len(mask) - self.K, rows))])
        low = np.where(mask, config.sentinel, levels).astype(np.int8).T
        high = levels.T[mask.T].astype(np.int8).reshape(rows, -1, config.high_count)
        exponents = (np.array(exponents).T + LOW_SHIFT).astype(np.uint8)
        return np.ascontiguousarray(low), high, scales, exponents, row_scale


def _device_steps(steps):
    """uint16 scales [rows, banks], row_scale [rows], and the steps [banks, rows] that they are."""
    unit = 1 << LOW_SHIFT
    scales, row_scale = relative_scales(steps.T, unit)
    return scales, row_scale, (scales * (float(unit) * row_scale[:, None])).T
