"""Activations: checking, quantising per token, and laying them out for the activation buffers."""

import numpy as np

from hdl.config import EngineConfig
from hdl.layout import activation_order
from host.arguments import as_array
from host.errors import ArgumentError, ArgumentTypeError

__all__ = ["arrange", "check", "quantize_tokens", "stored"]

LARGEST = {8: 127, 16: 32767}


def check(x, K):
    """`x` as a float32 array [M, K] and the shape of its leading dimensions.

    Raises
    ------
    ArgumentTypeError
        `x` is not float32 or float16.
    ArgumentError
        The last dimension is not `K`, or there is NaN or infinity.
    """
    x = as_array("activations", x)
    if x.dtype not in (np.float32, np.float16):
        raise ArgumentTypeError(f"activations must be float32 or float16, not {x.dtype}")
    if x.ndim < 1 or x.shape[-1] != K:
        raise ArgumentError(f"activations must have shape [..., {K}], not {list(x.shape)}")
    if not np.isfinite(x).all():
        raise ArgumentError("activations must be finite; there is NaN or infinity among them")
    return x.reshape(-1, K).astype(np.float32), x.shape[:-1]


def stored(x, q):
    """float32 activations [M, K] in the order and on the scale of a matrix's stored columns.

    Raises
    ------
    ArgumentError
        The scale takes one of them out of float32.
    """
    if q.permutation is not None:
        x = x[:, q.permutation]
    if q.input_scale is None:
        return x
    with np.errstate(over="ignore"):
        scaled = x * q.input_scale
    if not np.isfinite(scaled).all():
        raise ArgumentError("activations must stay within float32 when they are multiplied by the "
                            f"matrix's input_scale, not {x[~np.isfinite(scaled)][0]:g}")
    return scaled


def quantize_tokens(x, bits=8):
    """Integers and scales of each token: ``rint(x / s)`` with ``s = float32(max|x|) / largest``.

    Parameters
    ----------
    x : float32 [M, K]
    bits : int
        8 (largest 127) or 16 (largest 32767).

    Returns
    -------
    xq : int16 [M, K]
    scale : float32 [M]
        1 for an all-zero token.
    """
    largest = np.float32(LARGEST[bits])
    scale = np.abs(x).max(axis=1, initial=0) / largest
    # A token of subnormal numbers may have a scale of zero; it counts as zero.
    scale = np.where(scale == 0, np.float32(1), scale).astype(np.float32)
    xq = np.clip(np.rint(x / scale[:, None]), -largest, largest)
    return xq.astype(np.int16), scale


def arrange(xq, positions, padded, config: EngineConfig):
    """Bytes of a group of tokens as LOAD expects them.

    Parameters
    ----------
    xq : integers [rows or fewer, K], each fitting a byte (signed or unsigned), or ``value_bytes``
    positions : int [K]
        Where each column lies in the padded K of the weight image.
    padded : int
        That padded K, a multiple of ``config.tile_k``.

    Returns
    -------
    uint8 [beats, beat_bytes]
        ``load_values`` of each beat are used; the rows follow each other beat by beat.  Of
        activations of two bytes the low ones come before the high ones.
    """
    rows = np.zeros((config.rows, padded), f"<u{config.value_bytes}")
    rows[:len(xq), positions] = xq.astype(np.int64).astype(rows.dtype)
    tiles = rows.reshape(config.rows, -1, config.tile_k)[..., activation_order(config)]
    parts = tiles.reshape(config.rows, -1, config.load_values).transpose(1, 0, 2)
    parts = np.ascontiguousarray(parts)[..., None].view(np.uint8)   # the bytes of each
    parts = parts.swapaxes(-1, -2).reshape(*parts.shape[:2], -1)
    beats = np.zeros((*parts.shape[:2], config.beat_bytes), np.uint8)
    beats[..., :parts.shape[2]] = parts
    return beats.reshape(-1, config.beat_bytes)
