"""Checks of what callers pass to devices, layers and chains."""

import numpy as np

from host.errors import ArgumentError, ArgumentTypeError
from host.formats.common import array_of, as_array

__all__ = ["as_array", "choice", "positive"]


def choice(name, value, legal):
    """`value`, which must be one of `legal`: strings or None."""
    listed = ", ".join(map(repr, legal))
    if not isinstance(value, str | None):
        raise ArgumentTypeError(f"{name} must be one of {listed}, not {value!r}")
    if value not in legal:
        raise ArgumentError(f"{name} must be one of {listed}, not {value!r}")
    return value


def positive(name, value):
    """`value` rounded to float32, in which it must be positive and finite; None stays None."""
    if value is None:
        return None
    number = array_of(name, value, "iuf")
    if number.ndim:
        raise ArgumentTypeError(f"{name} must be one number, not of shape {list(number.shape)}")
    with np.errstate(over="ignore"):
        number = float(number.astype(np.float32))
    if not 0 < number < np.inf:
        raise ArgumentError(f"{name} must be positive and finite in float32, not {value!r}")
    return number
