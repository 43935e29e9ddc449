"""Weight images: a quantised matrix as the beats that an engine gathers.

An image is ``[N tile][K tile][column step][plane, most significant first]``, one beat each.  Where
the matrix has zero points, each K tile starts with two beats whose codes are all plus and all
minus: they make the array sum its activations.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np

from hdl.config import MAX_DIM, MIN_COLUMNS, EngineConfig
from hdl.layout import PARAMETER_BITS, PARAMETER_FIELDS, lane_positions, side_fields
from host.errors import CapacityError

__all__ = ["Image", "pack", "packed", "spread"]

SUM_BEATS = 2


@dataclass(frozen=True)
class Image:
    """Beats of a matrix for one engine, and how to walk them.

    Attributes
    ----------
    data : uint8 [beats, beat_bytes]
    side : uint32 [beats, words]
        Sidebands.
    tiles : list of (first beat, column steps)
        The N tiles.
    k_tiles : int
    planes : int
    zero, requant : bool
        Whether K tiles start with sum beats; whether columns of the last start with parameters.
    positions : int [K]
        Where each stored column lies in the padded K.
    padding : float
        Part of the codes that is padding.
    """

    data: np.ndarray
    side: np.ndarray
    tiles: list
    k_tiles: int
    planes: int
    zero: bool
    requant: bool
    positions: np.ndarray
    padding: float

    @property
    def padded_k(self):
        """K as the engine walks it."""
        return self.k_tiles * (self.data.shape[1] * 8 // self._columns)

    @cached_property
    def digest(self):
        """bytes: the first 16 of a SHA-256 over the beats and their sidebands."""
        sha = hashlib.sha256(f"{self.data.shape} {self.side.shape}".encode())
        sha.update(self.data.tobytes())
        sha.update(self.side.tobytes())
        return sha.digest()[:16]

    _columns: int = 1


_packed: WeakKeyDictionary = WeakKeyDictionary()


def packed(q, config: EngineConfig):
    """The image of a matrix for an engine; kept as long as the matrix is.

    Parameters
    ----------
    q : host.matrix.QuantizedMatrix
    config : EngineConfig

    Returns
    -------
    Image
    """
    images = _packed.setdefault(q, {})
    if config not in images:
        images[config] = pack(q.codes, q.config.bits, q.scales, q.zeros, q.config.group_size,
                              config)
    return images[config]


def spread(K, group_size, config: EngineConfig):
    """Position of each column in the padded K, and that padded K.

    A group narrower than a scale point's reach gets the whole reach for itself: its codes are
    followed by padding, and the engine runs at ``group_size / group_width`` of its full rate.
    """
    width = config.group_width
    if group_size is None or group_size >= width:
        positions = np.arange(K)
    else:
        group, rest = np.divmod(np.arange(K), group_size)
        positions = group * width + rest
    last = int(positions[-1]) + 1
    return positions, -(-last // config.tile_k) * config.tile_k


def _code_beats(codes, bits, padded, positions, config):
    """Gather codes as bits: uint8 [N, tiles, planes, tile_k] of 0 and 1."""
    N = codes.shape[0]
    tile = config.tile_k
    q = np.zeros((N, padded), np.uint8)
    q[:, positions] = codes
    planes = np.stack([q >> p & 1 for p in range(bits - 1, -1, -1)])      # [planes, N, padded]
    planes = planes.reshape(bits, N, -1, tile).transpose(1, 2, 0, 3)
    # Bit 0 of a chunk says whether its first weight is minus; the others whether theirs differs
    # from it: the index into a half table and the sign of the entry.
    heads = np.repeat([lane[0] for lane in lane_positions(config)],
                      [len(lane) for lane in lane_positions(config)])
    first = planes[..., heads]
    return np.where(np.arange(tile) == heads, 1 - first, planes ^ first)


def _minus_bits(config):
    """The code of one column that negates every chunk's all-plus entry."""
    bits = np.zeros(config.tile_k, np.uint8)
    bits[[lane[0] for lane in lane_positions(config)]] = 1
    return bits


def pack(codes, bits, scales, zeros, group_size, config: EngineConfig, parameters=None):
    """Lay a bit-serial matrix out for an engine.

    Parameters
    ----------
    codes : uint8 [N, K]
        Unsigned codes of `bits` bits.
    scales : uint16 [N, G]
    zeros : uint8 [N, G] or None
    group_size : int or None
    config : EngineConfig
    parameters : dict of int arrays [N], or None
        ``bias``, ``multiplier``, ``shift`` of the re-quantisation.

    Returns
    -------
    Image
    """
    N, K = codes.shape
    if N > MAX_DIM or K > MAX_DIM:
        raise CapacityError(f"N and K must be at most {MAX_DIM}, not {N} and {K}")
    C, T, tile = config.columns, config.scale_points, config.tile_k
    positions, padded = spread(K, group_size, config)
    k_tiles = padded // tile

    # Group of every scale point of every tile.
    reach = config.group_width
    points = padded // reach
    if group_size is None:
        group = np.zeros(points, np.int64)
    elif group_size >= reach:
        group = np.arange(points) * reach // group_size
    else:
        group = np.arange(points)
    G = scales.shape[1]
    real = group < G                        # beyond K there is only padding
    group = np.minimum(group, G - 1)
    point_scales = np.where(real, scales[:, group], 0).reshape(N, k_tiles, T)
    point_zeros = None
    if zeros is not None:
        point_zeros = np.where(real, zeros[:, group], 0).reshape(N, k_tiles, T)

    fields = side_fields(config)
    side_words = -(-config.side_bits // 32)
    data_parts, side_parts, tiles = [], [], []
    beats = 0
    width = config.n_tile * C
    for start in range(0, N, width):
        n = min(width, N - start)
        steps = max(-(-n // C), MIN_COLUMNS)
        rows = slice(start, start + n)
        code = np.zeros((steps * C, k_tiles, bits, tile), np.uint8)
        code[:n] = _code_beats(codes[rows], bits, padded, positions, config)
        code = code.reshape(steps, C, k_tiles, bits, tile).transpose(2, 0, 3, 1, 4)
        side = np.zeros((k_tiles, steps, bits, config.side_bits), np.uint8)
        for (c, t), (scale_at, zero_at) in fields.items():
            s = np.zeros((steps, k_tiles), np.uint16)
            mine = np.arange(c, n, C)
            s[:len(mine)] = point_scales[start + mine, :, t]
            unpacked = (s.T[..., None] >> np.arange(16) & 1).astype(np.uint8)
            side[..., scale_at:scale_at + 16] = unpacked[:, :, None, :]
            if point_zeros is not None:
                z = np.zeros((steps, k_tiles), np.uint8)
                z[:len(mine)] = point_zeros[start + mine, :, t]
                side[..., zero_at] = z.T[..., None] >> np.arange(bits - 1, -1, -1) & 1
        first = beats
        for k in range(k_tiles):
            tile_data = code[k].reshape(steps, bits, C * tile)
            tile_side = side[k]
            if parameters is not None and k == k_tiles - 1:
                extra = _parameter_beats(parameters, start, n, steps, config)
                tile_data = np.concatenate([extra[:, None], tile_data], axis=1)
                blank = np.zeros((steps, 1, config.side_bits), np.uint8)
                tile_side = np.concatenate([blank, tile_side], axis=1)
            tile_data = np.packbits(tile_data.reshape(-1, C * tile), axis=1, bitorder="little")
            tile_side = tile_side.reshape(-1, config.side_bits)
            if zeros is not None:
                sums = np.zeros((SUM_BEATS, C * tile), np.uint8)
                sums[1] = np.tile(_minus_bits(config), C)
                sums = np.packbits(sums, axis=1, bitorder="little")
                tile_data = np.concatenate([sums, tile_data])
                tile_side = np.concatenate(
                    [np.zeros((SUM_BEATS, config.side_bits), np.uint8), tile_side])
            data_parts.append(tile_data)
            side_parts.append(tile_side)
            beats += len(tile_data)
        tiles.append((first, steps))
    data = np.concatenate(data_parts)
    bits_side = np.concatenate(side_parts)
    padded_side = np.zeros((beats, 32 * side_words), np.uint8)
    padded_side[:, :config.side_bits] = bits_side
    side = np.packbits(padded_side, axis=1, bitorder="little").view("<u4")
    total_steps = sum(steps for _, steps in tiles)
    return Image(data=data, side=side, tiles=tiles, k_tiles=k_tiles, planes=bits,
                 zero=zeros is not None, requant=parameters is not None, positions=positions,
                 padding=1 - N * K / (total_steps * C * padded), _columns=C)


def _parameter_beats(parameters, start, n, steps, config):
    """Beats that hold the re-quantisation parameters of each column step: uint8 bits."""
    C = config.columns
    beats = np.zeros((steps * C, config.tile_k), np.uint8)
    for name, (offset, width) in PARAMETER_FIELDS.items():
        value = np.asarray(parameters[name], np.int64)[start:start + n]
        beats[:n, offset:offset + width] = value[:, None] >> np.arange(width) & 1
    assert PARAMETER_BITS <= config.tile_k
    return beats.reshape(steps, C * config.tile_k)
