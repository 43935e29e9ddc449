"""Re-quantisation of accumulators for the next layer: the integers that the epilogue takes."""

from dataclasses import dataclass

import numpy as np

from hdl.layout import COARSE_STEP, FINE_SHIFT, KEPT_BITS, MULTIPLIER_MIN, PARAMETER_FIELDS
from host.errors import CapacityError

__all__ = ["Requantization", "requantization"]

MULTIPLIER_BITS = PARAMETER_FIELDS["multiplier"][1]
SHIFTS = 2 ** PARAMETER_FIELDS["shift"][1]
_SATURATED = 128.0      # steps of the result


@dataclass(frozen=True)
class Requantization:
    """Integers with which a device turns a layer's accumulators into int8.

    ``y = clip(rint(((acc + bias) >> (base + 6 * shift)) * multiplier / 2**21), -127, 127)``

    Attributes
    ----------
    bias, multiplier, shift : int64 [N]
    base : int
        Of the engine: 10, or 0 where accumulators have no scales.
    """

    bias: np.ndarray
    multiplier: np.ndarray
    shift: np.ndarray
    base: int


def requantization(factor, bias, unit, base, *, bound, room):
    """Integers for real factors.

    Parameters
    ----------
    factor : float [N]
        Steps of the result per accumulator unit.
    bias : float [N]
        In accumulator units.
    unit : int
        The bias becomes a multiple of it.
    base : int
        See :class:`Requantization`.
    bound : int
        Largest magnitude of an accumulator before the bias.
    room : int or int [N]
        The largest bias that an engine can add to the sums of a K tile.

    Raises
    ------
    CapacityError
        A factor or bias is outside what the device's integers hold.
    """
    factor = np.asarray(factor, np.float64)
    # Beyond this a bias saturates the result whatever the accumulator is.
    with np.errstate(divide="ignore"):
        enough = bound + _SATURATED / np.abs(factor)
    bias = np.rint(np.clip(np.asarray(bias, np.float64), -enough, enough) / unit) * unit
    # The smallest shift that leaves the multiplier enough bits.  With the last one it may have
    # fewer where no accumulator saturates: then what it lacks is a small part of a step.
    exponent = np.frexp(factor)[1]          # factor in [2**(e-1), 2**e)
    spare = FINE_SHIFT + base - MULTIPLIER_MIN.bit_length() + exponent
    shift = np.clip(-(spare // COARSE_STEP), 0, SHIFTS - 1)
    shift[factor == 0] = SHIFTS - 1
    last = base + COARSE_STEP * (SHIFTS - 1)
    multiplier = np.rint(np.ldexp(factor, FINE_SHIFT + base + COARSE_STEP * shift))
    small = (multiplier < MULTIPLIER_MIN) & (np.abs(bias) + bound >= 2.0 ** (last + KEPT_BITS - 1))
    bad = (factor < 0) | (multiplier > 2**MULTIPLIER_BITS) | small
    if bad.any():
        least = FINE_SHIFT + last + 1 - MULTIPLIER_MIN.bit_length()
        most = FINE_SHIFT + base - MULTIPLIER_BITS
        raise CapacityError(f"a re-quantisation factor must be in 2**-{least}..2**-{most}, not "
                            f"{factor[bad][0]:g}: choose another out_scale")
    multiplier = np.minimum(multiplier, 2**MULTIPLIER_BITS - 1)
    over = np.abs(bias) > room
    if over.any():
        row = int(over.argmax())
        raise CapacityError(
            f"the bias of output {row} must be at most {np.broadcast_to(room, bias.shape)[row]:g} "
            f"accumulator units on this engine, not {abs(bias[row]):g}: choose a smaller bias or "
            "a larger out_scale")
    return Requantization(bias.astype(np.int64), multiplier.astype(np.int64),
                          shift.astype(np.int64), base)
