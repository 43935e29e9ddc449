"""The front end of the quantisers: checks arguments and calls the format."""

import dataclasses
import inspect

import numpy as np
from ml_dtypes import bfloat16

from host.errors import ArgumentError, ArgumentTypeError
from host.formats import FORMATS
from host.formats.common import as_array, integer
from host.matrix import row_blocks
from host.progress import check_progress

__all__ = ["configure", "from_codes", "quantize"]

_DTYPES = (np.float16, np.float32, np.float64, bfloat16)
_LARGEST = 2.0**126     # a factor of 4 below float32's limit: room for rounding


def quantize(W, format="bitserial", *, calibration=None, sensitivity=None, seed=0, progress=None,
             **fields):
    """Quantise a weight matrix.

    Parameters
    ----------
    W : array of float16, bfloat16, float32 or float64, [N, K]
        Output features by input features, as in ``torch.nn.Linear``; at most 2**126 in magnitude.
    format : str or configuration
        Name of a format, or its frozen configuration (then without `fields`).
    calibration : array of a floating dtype, [tokens, K], optional
        Inputs of the layer, columns in the order of `W`.  With it the quantiser minimises the
        error of the outputs instead of that of the weights, and `output_scale` is set so that
        the outputs on this data, before any bias, fill int8.
    sensitivity : array of a floating dtype, [N, K] or [K], optional
        Of format kmeans: how much the loss grows with the square of the error of a weight, or of
        every weight of a column: squared gradients, or the diagonal of a Hessian.  Not negative.
        None takes the mean squares of the calibration data.
    seed : int
        Of what the format's quantiser draws; the bit-serial ones draw nothing.
    progress : callable, optional
        Called as ``progress(done, total)`` during the work.
    **fields
        Fields of the format's configuration, e.g. ``bits=2``.

    Returns
    -------
    QuantizedMatrix
    """
    config = configure(format, **fields)
    W = _floats("W", W, "[N, K]")
    output_scale = None
    if calibration is not None:
        calibration = _floats("calibration", calibration, "[tokens, K]")
        if calibration.shape[1] != W.shape[1]:
            raise ArgumentError(f"calibration must have the K = {W.shape[1]} columns of W, "
                                f"got shape {calibration.shape}")
        output_scale = _output_scale(W, calibration)
    seed = integer("seed", seed)
    if seed < 0:
        raise ArgumentError(f"seed must not be negative, got {seed}")
    progress = check_progress(progress)
    matrix = next(f.matrix for f in FORMATS.values() if f.config is type(config))
    weighting = {}
    if sensitivity is not None:
        if matrix.format != "kmeans":
            raise ArgumentTypeError(f"sensitivity is for format kmeans, not {matrix.format}")
        weighting["sensitivity"] = _sensitivity(sensitivity, W.shape)
    return matrix.quantize(W, config, calibration=calibration, seed=seed,
                           output_scale=output_scale, progress=progress, **weighting)


def from_codes(format, **arrays):
    """Make a quantised matrix of codes from somebody else's quantiser.

    Parameters
    ----------
    format : str
        Name of a format.
    **arrays
        Keywords of that format's ``from_codes``, e.g. of
        :meth:`host.formats.bitserial.BitSerialMatrix.from_codes`.

    Returns
    -------
    QuantizedMatrix
    """
    import_codes = _format(format).matrix.from_codes
    try:
        inspect.signature(import_codes).bind(**arrays)
    except TypeError as error:
        legal = ", ".join(inspect.signature(import_codes).parameters)
        raise ArgumentTypeError(f"from_codes({format!r}): {error}; legal are {legal}") from None
    return import_codes(**arrays)


def configure(format, **fields):
    """The configuration that :func:`quantize` uses for `format` and `fields`."""
    if any(type(format) is known.config for known in FORMATS.values()):
        if fields:
            raise ArgumentTypeError(f"fields belong into the configuration {format}, "
                                    f"got {', '.join(fields)} beside it")
        return format
    config = _format(format).config
    legal = [field.name for field in dataclasses.fields(config)]
    if unknown := [name for name in fields if name not in legal]:
        raise ArgumentTypeError(f"{format} has no field {unknown[0]!r}; legal are "
                                f"{', '.join(legal)}")
    return config(**fields)


def _format(name):
    if not isinstance(name, str):
        raise ArgumentTypeError("format must be a name or a configuration, "
                                f"got {type(name).__name__}")
    if name not in FORMATS:
        raise ArgumentError(f"format must be one of {', '.join(FORMATS)}, got {name!r}")
    return FORMATS[name]


def _sensitivity(array, shape):
    """Checked, and as a matrix that may be one row for all: float64 [N or 1, K]."""
    array = as_array("sensitivity", array)
    array = _floats("sensitivity", array[None] if array.ndim == 1 else array, "[N, K] or [K]")
    if array.shape not in (shape, (1, shape[1])):
        raise ArgumentError(f"sensitivity must have shape {shape} or ({shape[1]},), as W, got "
                            f"{array.shape}")
    if array.min() < 0:
        raise ArgumentError(f"sensitivity must not be negative, got {array.min()}")
    return array.astype(np.float64)


def _floats(name, array, meaning):
    array = as_array(name, array)
    if array.dtype not in _DTYPES:
        raise ArgumentTypeError(f"{name} must be float16, bfloat16, float32 or float64, "
                                f"got dtype {array.dtype}")
    if array.ndim != 2 or 0 in array.shape:
        raise ArgumentError(f"{name} must have shape {meaning} with nothing empty, "
                            f"got {array.shape}")
    if not np.isfinite(array).all():
        row, column = np.argwhere(~np.isfinite(array))[0]
        raise ArgumentError(f"{name} must be finite, got {array[row, column]} in row {row}, "
                            f"column {column}")
    if (largest := float(np.abs(array).max())) > _LARGEST:
        raise ArgumentError(f"{name} must be at most 2**126 = {_LARGEST:.3g} in magnitude, "
                            f"got {largest:.3g}")
    return array


def _output_scale(W, calibration):
    """Step of int8 outputs on the calibration data; None if float32 cannot hold it."""
    W = W.astype(np.float64)
    largest = max(float(np.abs(calibration[rows].astype(np.float64) @ W.T).max())
                  for rows in row_blocks(len(calibration)))
    scale = largest / 127 or 1.0
    return scale if scale <= _LARGEST else None
