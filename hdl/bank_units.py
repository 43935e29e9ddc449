"""The units of activations in two precisions: what becomes of int16 elements in their bank.

Shared by gateware and host.  High elements are ``floor((x + 128) / 256)``, low ones
``floor((x + 2**(6 + e)) / 2**(7 + e))`` with an exponent e for each bank, so that the largest low
magnitude m is below ``1.25 * 2**(low - 1)`` steps; both saturate.  A value is twice the first, or
``2**e`` times the second: in units of 128 steps of int16.
"""

__all__ = ["BANK_UNIT", "BANK_VALUE_MAX", "HIGH_EXPONENT", "UNIT_BITS", "exponent_max"]

UNIT_BITS = 7
BANK_UNIT = 2**UNIT_BITS
"""Steps of int16 in the unit of a value."""
HIGH_EXPONENT = 1
"""A high element is as a low one of this exponent that saturates at 127."""
BANK_VALUE_MAX = 2 * 127


def exponent_max(low):
    """The largest exponent for low elements of so many bits: no value leaves nine bits."""
    return 9 - low
