"""What the formats share: checks of arguments, and group scales as they are stored."""

import operator

import numpy as np

from host.errors import ArgumentError, ArgumentTypeError, ConfigError
from host.matrix import check_array

__all__ = ["SCALE_MAX", "array_of", "as_array", "check_group_size", "check_scales",
           "column_arguments", "imported_scales", "integer", "relative_scales", "string"]

GROUP_SIZES = (32, 64, 128, None)
SCALE_MAX = 65535


def integer(name, value):
    """`value` as an int; anything but an integer, bool too, is an ArgumentTypeError."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        found = operator.index(value)
    except TypeError:
        raise ArgumentTypeError(f"{name} must be an integer, got {value!r:.80}") from None
    if found.bit_length() > 64:     # Python would not even print some
        raise ArgumentError(f"{name} must be an integer of at most 64 bits, got one of "
                            f"{found.bit_length()}")
    return found


def string(name, value):
    """`value`, which must be a str or None."""
    if not isinstance(value, str | None):
        raise ArgumentTypeError(f"{name} must be a string, got {value!r:.80}")
    return value


def check_group_size(value):
    """A legal group size: weights along K that share a scale, None for the whole row."""
    size = None if value is None else integer("group_size", value)
    if size not in GROUP_SIZES:
        raise ConfigError(f"group_size must be 32, 64, 128 or None (the whole row), got {size}")
    return size


def as_array(name, values):
    """`values` as an array of whatever dtype."""
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:     # ragged; a tensor elsewhere
        raise ArgumentTypeError(f"{name} must be an array of numbers: {error}") from None


def array_of(name, values, kinds):
    """`values` as an array whose dtype is of one of `kinds` (bfloat16 counts as "f")."""
    values = as_array(name, values)
    kind = "f" if values.dtype.name == "bfloat16" else values.dtype.kind
    if kind not in kinds:
        raise ArgumentTypeError(f"{name} must be {'real numbers' if 'f' in kinds else 'integers'}"
                                f", got dtype {values.dtype}")
    return values


def check_scales(scales, row_scale, shape):
    """Check and freeze what :func:`relative_scales` makes, for `shape` = (N, groups)."""
    scales = check_array("scales", scales, np.uint16, shape, "[N, groups]")
    if not np.isin(scales.max(axis=1), (0, SCALE_MAX)).all():
        raise ArgumentError(f"the largest of a row's scales must be {SCALE_MAX}, or 0 for "
                            f"an all-zero row, got {scales.max(axis=1).min()}")
    row_scale = check_array("row_scale", row_scale, np.float32, shape[:1], "[N]")
    if not (row_scale > 0).all():
        raise ArgumentError(f"row_scale must be positive, got {row_scale.min()}")
    return scales, row_scale


def imported_scales(scales, shape, meaning):
    """Real scales of somebody else's quantiser as float64 of `shape`; not negative."""
    scales = array_of("scales", scales, "fiu").astype(np.float64)
    scales = check_array("scales", scales, np.float64, shape, meaning)
    if scales.min() < 0:
        raise ArgumentError(f"scales must not be negative, got {scales.min()}")
    return scales


def column_arguments(permutation, input_scale):
    """Both as a matrix's constructor takes them, which checks their shapes and values."""
    if permutation is not None:
        permutation = array_of("permutation", permutation, "iu").astype(np.int64)
    if input_scale is not None:
        with np.errstate(over="ignore"):    # the constructor refuses infinity
            input_scale = array_of("input_scale", input_scale, "fiu").astype(np.float32)
    return {"permutation": permutation, "input_scale": input_scale}


def relative_scales(steps, unit):
    """Split real scales [N, groups] into what is stored.

    Rows whose largest scale is below 1e-40 cannot be expressed and become zero.

    Parameters
    ----------
    steps : ndarray of float64, [N, groups]
        Not negative.
    unit : int
        Steps are ``unit * scales * row_scale``.

    Returns
    -------
    scales : ndarray of uint16, [N, groups]
    row_scale : ndarray of float32, [N]
    """
    largest = steps.max(axis=1)
    row_scale = np.minimum(largest / (unit * SCALE_MAX), np.finfo(np.float32).max)
    row_scale = row_scale.astype(np.float32)
    zero = row_scale == 0
    row_scale[zero] = largest[zero] = 1
    return np.rint(steps / largest[:, None] * SCALE_MAX).astype(np.uint16), row_scale
