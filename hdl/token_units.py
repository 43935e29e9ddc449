"""The units of a token: what its elements are multiplied by to become units of a codebook.

Shared by gateware, host and packer.  A token's normaliser is ``gain / 256 / sum(|x|)``, with the
sum over all elements but outliers, as a factor of 17 bits and one of four shifts:
``x * factor / 2**unit_shift(shift)``.  It is at most 4, so that no int16 leaves 18 bits.
"""

__all__ = ["AS_IT_IS", "BOUNDARY_BITS", "CENTROID_BITS", "ENCODE_CYCLES", "FACTOR_BITS",
           "GAIN_BITS", "GAIN_WORD", "INDEX_BITS", "MEANING_BITS", "NEVER", "RMS", "ROOT_BITS",
           "ROOT_FRACTION", "ROOT_SUM_BITS", "SHIFTS", "SHIFT_BASE", "SHIFT_STEP", "STATIC",
           "STATIC_STEPS", "VALUE_MAX", "normaliser", "root_gain", "unit_shift"]

FACTOR_BITS = 17
GAIN_BITS = 28
SHIFT_BASE, SHIFT_STEP, SHIFTS = 15, 5, 4
VALUE_MAX = 2**17 - 1
"""Largest magnitude of an outlier, in units of the codebook."""

ENCODE_CYCLES = 4
"""Cycles in which a beat of eight elements is encoded: a tile is there long before it is needed."""
INDEX_BITS = 4
CENTROID_BITS = 8
BOUNDARY_BITS = 10
"""Of sums of two int8 centroids, with room for one that no element reaches."""
NEVER = 2**(BOUNDARY_BITS - 1) - 1
"""A boundary above every element: these saturate below it."""
STATIC_STEPS = 4
"""Steps of int16 in a unit where it is the same for all tokens: elements are exact to half of the
half units that boundaries have, and outliers reach 64 times the largest centroid."""
STATIC = {"factor": 2**SHIFT_BASE // STATIC_STEPS, "shift": 0}
"""That unit, as a normaliser."""
MEANING_BITS = 14
"""Of what indexes mean, without sign: K = 16384 of them times int8 stay far below an accumulator's
39 bits."""
ROOT_FRACTION, ROOT_SUM_BITS = 6, 42
"""Of the root of a sum of squares: bits behind the point; of the sum for K = 16384."""
ROOT_BITS = ROOT_SUM_BITS // 2 + ROOT_FRACTION
RMS = 2**6
"""What RMSNorm makes of the root mean square of a token."""
AS_IT_IS = {"factor": 2**SHIFT_BASE, "shift": 0}
"""Of a value that is in the codebook's units already, as a normaliser."""
GAIN_WORD = 2**INDEX_BITS
"""Where LOAD puts the gain: behind the codebook's entries, a centroid and above it the boundary
between it and the next."""


def root_gain(length):
    """The gain with which :data:`RMS` is made of the root of a sum of so many squares."""
    return round(RMS * 2**(8 + ROOT_FRACTION) * length**0.5)


def unit_shift(shift):
    """Bits behind the point of a factor with this shift."""
    return SHIFT_BASE + SHIFT_STEP * shift


def normaliser(sums, gain):
    """Factors and shifts of tokens.

    Parameters
    ----------
    sums : integer array
        Of magnitudes.
    gain : int

    Returns
    -------
    factors, shifts : arrays like `sums`
        The finest shift with which the quotient fits; all ones and shift 0 where none does, or
        the sum is 0.  At least 1.
    """
    quotient = (gain << unit_shift(SHIFTS - 1) - 8) // (sums + (sums == 0))
    shifts, factors = 0 * sums, 0 * sums + 2**FACTOR_BITS - 1
    for shift in range(SHIFTS):
        candidate = quotient >> SHIFT_STEP * (SHIFTS - 1 - shift)
        candidate = candidate + (candidate == 0) * (shift == SHIFTS - 1)
        fits = (candidate < 2**FACTOR_BITS) & (sums != 0)
        shifts = shifts * (1 - fits) + shift * fits
        factors = factors * (1 - fits) + candidate * fits
    return factors, shifts
