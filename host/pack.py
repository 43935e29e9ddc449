"""Weight images: a quantised matrix as the beats that an engine gathers.

An image is ``[N tile][K tile][codebook][column step][plane, most significant first]``, one beat
each.  Where the matrix has zero points, each K tile starts with two beats whose codes are all plus
and all minus: they make the array sum its activations.  Where it has codebooks, the image starts
with them, and with the activations' codebook of a kmeans matrix.  Where an engine finds the places
of high weights from sentinels, all but the codes is a column step behind them, and there is a step
more.
"""

import hashlib
import itertools
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np

from hdl.config import LOW_SHIFT, MAX_DIM, MIN_COLUMNS, SCALE_BITS, EngineConfig
from hdl.isa import Buffer
from hdl.layout import PARAMETER_FIELDS, bank_fields, bank_places, lane_positions, side_fields
from hdl.token_units import BOUNDARY_BITS, CENTROID_BITS, GAIN_WORD, NEVER
from host.errors import CapacityError, ConfigError
from host.matrix import shared_needs, unmet

__all__ = ["Image", "column_beats", "pack", "packed", "spread"]

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
    planes, codebooks : int
        Beats of codes per column step and K tile: of each codebook, one per plane.
    books : list of (Buffer, beats)
        What lies before the first tile, and where LOAD brings it.
    zero, requant : bool
        Whether K tiles start with sum beats; whether columns of the last start with parameters.
    positions : int [K]
        Where each stored column lies in the padded K.
    padded_k : int
        K as the engine walks it.
    token : dict or None
        Of tokens that the device encodes: fields of TOPK.
    padding : float
        Part of the codes that is padding.
    """

    data: np.ndarray
    side: np.ndarray
    tiles: list
    k_tiles: int
    planes: int
    codebooks: int
    books: list
    zero: bool
    requant: bool
    positions: np.ndarray
    padded_k: int
    padding: float
    token: dict | None = None

    @cached_property
    def digest(self):
        """bytes: the first 16 of a SHA-256 over the beats and their sidebands."""
        sha = hashlib.sha256(f"{self.data.shape} {self.side.shape}".encode())
        sha.update(self.data.tobytes())
        sha.update(self.side.tobytes())
        return sha.digest()[:16]


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
        images[config] = pack(q, config)
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


def column_beats(q, config):
    """Beats of codes per column step, K tile and codebook."""
    if not config.sparse:
        return q.planes
    # As many as bring the high weights and let the banks take turns; low weights are extended by
    # their signs.
    beats = max(q.planes, -(-q.config.high_count // config.high_lanes), config.column_beats)
    if not config.sentinels:
        return beats
    # What a sentinel counts for must be a whole number of every high step.
    finest = int(q.exponents.max()) - LOW_SHIFT + 1
    return max(beats, finest)


def _low_codes(q, rows, padded, positions, config):
    """Low weights of an sq matrix, where one is high none or a sentinel: as :func:`_plane_codes`.
    """
    count = column_beats(q, config)
    low = np.where(q.mask[rows], -2**(count - 1) if config.sentinels else 0, q.low[rows])
    codes = np.full((len(rows), padded), 2**(count - 1), np.uint8)
    codes[:, :low.shape[1]] = low.astype(np.int16) + 2**(count - 1)
    return _as_planes(codes, count, config)


def _plane_codes(q, rows, padded, positions, config):
    """Codes of a bit-serial matrix as bits: uint8 [rows, tiles, 1, planes, column_code_bits]."""
    codes = np.zeros((len(rows), padded), np.uint8)
    codes[:, positions] = q.codes[rows]
    return _as_planes(codes, q.planes, config)


def _as_planes(codes, count, config):
    """Codes [rows, padded K] as the bits that address half tables."""
    tile = config.tile_k
    planes = np.stack([codes >> p & 1 for p in range(count - 1, -1, -1)])
    planes = planes.reshape(count, len(codes), -1, 1, tile).transpose(1, 2, 3, 0, 4)
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


def _centroid_codes(q, rows, padded, positions, config):
    """Codes of a psumbook matrix as bits: uint8 [rows, tiles, codebooks, 1, column_code_bits]."""
    v, b = config.v, config.b
    codes = np.zeros((len(rows), padded // v, q.codebooks), np.uint8)
    codes[:, positions[::v] // v] = q.codes[:, rows].transpose(1, 2, 0)
    codes = codes.reshape(len(rows), -1, config.lanes, q.codebooks).transpose(0, 1, 3, 2)
    return (codes[..., None] >> np.arange(b) & 1).reshape(*codes.shape[:3], 1, -1)


def _index_codes(q, rows, padded, positions, config):
    """Codes of a kmeans matrix as bits: uint8 [rows, tiles, 1, 1, column_code_bits]."""
    codes = np.zeros((len(rows), padded), np.uint8)
    codes[:, positions] = q.codes[rows]
    lanes = codes.reshape(len(rows), -1, config.tile_k)[:, :, lane_positions(config)]
    bits = lanes[..., None] >> np.arange(config.b // config.v) & 1
    return bits.reshape(*lanes.shape[:2], 1, 1, -1)


def _bank_sides(q, rows, k_tiles, planes, config):
    """What beats of an sq matrix have beside codes: uint8 bits [tiles, rows, planes, points, bits].

    Of every bank parts of scale and exponent and of its high weights, with their places if the
    engine does not find them.
    """
    size, points, lanes = config.bank, config.scale_points, config.high_lanes
    banks, count = q.high.shape[1:]

    def tiled(values, fill=0):
        whole = np.full((len(rows), k_tiles * points, *values.shape[2:]), fill, np.int64)
        whole[:, :banks] = values
        whole = whole.reshape(len(rows), k_tiles, points, *values.shape[2:])
        return np.moveaxis(whole, 0, 1)

    bits = np.zeros((k_tiles, len(rows), planes, points, config.bank_bits), np.uint8)

    def put(at, width, value, plane=slice(None)):
        bits[:, :, plane, :, at:at + width] = value[..., None] >> np.arange(width) & 1

    scales = np.where((rows >= 0)[:, None], q.scales[rows], 0)
    scale = tiled(scales) | tiled(q.exponents[rows]) << SCALE_BITS
    for i in range(config.column_beats):
        put(0, config.part_bits, scale >> i * config.part_bits & 2**config.part_bits - 1,
            planes - config.column_beats + i)
    offsets = np.nonzero(q.mask[rows].reshape(-1, size))[1].reshape(len(rows), banks, count)
    # Of each bank of a tile: blocks in block RAM have another order.
    within = np.array(bank_places(config)).reshape(points, size)
    places = within[(np.arange(banks) % points)[None, :, None], offsets]
    weights = q.high[rows].astype(np.int64)
    order = [divmod(i, lanes) for i in range(count)]
    if config.sentinels:
        # As they are found, and less what the sentinels count for.
        by_place = np.argsort(places, axis=-1)
        weights = np.take_along_axis(weights, by_place, -1)
        weights += 2**(planes - 1 + LOW_SHIFT) >> q.exponents[rows].astype(np.int64)[..., None]
        half = -(-count // lanes)
        order = [(i, 0) if i < half else (count - 1 - i, 1) for i in range(count)]
    places, weights = tiled(places), tiled(weights)
    for i, (plane, lane) in enumerate(order):
        weight_at, place_at = bank_fields(config)[1][lane]
        put(weight_at, config.high_bits, weights[..., i], plane)
        if not config.sentinels:
            put(place_at, config.place_bits, places[..., i], plane)
    return bits


_CODES = {"bitserial": _plane_codes, "psumbook": _centroid_codes, "kmeans": _index_codes,
          "sq": _low_codes}


def _beats(words, config):
    """Words as the low bytes of beats: uint8 [beats, beat_bytes]."""
    words = np.ascontiguousarray(words).view(np.uint8)
    beats = np.zeros((len(words), config.beat_bytes), np.uint8)
    beats[:, :words.shape[1]] = words
    return beats


def _codebooks(q, config, tables):
    """What an image starts with: a list of (Buffer, uint8 [beats, beat_bytes]).

    `tables` are those of a chain; where they say what indexes mean no codebook of activations is
    needed.
    """
    if config.signed_sums:
        return []
    if q.format == "psumbook":
        tuples = q.centroids.reshape(-1, config.v)
    else:       # of a chunk's indexes, the first in the lowest bits
        tuples = np.array(list(itertools.product(q.centroids, repeat=config.v)))[:, ::-1]
    words = tuples.reshape(-1, 4, config.v).transpose(0, 2, 1).reshape(-1, 4 * config.v)
    books = [(Buffer.CENTROIDS, _beats(words, config))]
    books += [(buffer, _beats(np.asarray(values, "<i4")[:, None], config))
              for buffer, values in tables.items()]
    if q.format == "kmeans" and Buffer.VALUE_TABLE not in tables:
        entries = np.zeros(GAIN_WORD + 1, "<u4")
        entries[:GAIN_WORD] = NEVER << CENTROID_BITS
        centroids = q.activation_centroids.astype(np.int64)
        entries[:len(centroids)] = entries[:len(centroids)] | centroids & 2**CENTROID_BITS - 1
        boundaries = (centroids[1:] + centroids[:-1]) & 2**BOUNDARY_BITS - 1
        entries[:len(boundaries)] = (entries[:len(boundaries)] & 2**CENTROID_BITS - 1
                                     | boundaries << CENTROID_BITS)
        entries[GAIN_WORD] = q.gain
        books.append((Buffer.ACTIVATION_CODEBOOK, _beats(entries[:, None], config)))
    return books


def _bytes(bits, size):
    """Beats of bits, [..., beats, bits or fewer], as bytes: uint8 [beats, size]."""
    packed = np.packbits(bits.reshape(-1, bits.shape[-1]), axis=1, bitorder="little")
    beats = np.zeros((len(packed), size), np.uint8)
    beats[:, :packed.shape[1]] = packed
    return beats


def pack(q, config: EngineConfig, parameters=None, order=None, tables=None):
    """Lay a matrix out for an engine.

    Parameters
    ----------
    q : host.matrix.QuantizedMatrix
    config : EngineConfig
        Of the matrix's format.
    parameters : dict of int arrays [N], or None
        ``bias``, ``multiplier``, ``shift`` of the re-quantisation, per output of the image.
    order : int array, or None
        The matrix row of every output of the image; -1: an output that nothing needs.
    tables : dict, or None
        Of :class:`~hdl.isa.Buffer` and int [256]: those of a chain of kmeans layers.

    Returns
    -------
    Image
    """
    if wrong := unmet(config, shared_needs([q.needs(q.token_bits)])):
        raise ConfigError(f"an engine for this matrix must have {wrong[1]}, not {wrong[0]}")
    if why := q.refusal(config):
        raise ConfigError(why)
    N, K = q.shape
    if N > MAX_DIM or K > MAX_DIM:
        raise CapacityError(f"N and K must be at most {MAX_DIM}, not {N} and {K}")
    order = np.arange(N) if order is None else np.asarray(order)
    outputs = len(order)
    scales = np.where(order[:, None] >= 0, q.scales[order], 0) if config.scaled else np.zeros(
        (outputs, 1), np.uint16)
    zeros = None if q.zeros is None else q.zeros[order]
    group_size = q.config.group_size
    planes, codebooks = column_beats(q, config), q.codebooks
    zero = zeros is not None or config.sparse       # there everywhere the same
    C, T, width = config.columns, config.scale_points, config.column_code_bits
    positions, padded = spread(K, group_size, config)
    k_tiles = padded // config.tile_k

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
    point_scales = np.where(real, scales[:, group], 0).reshape(outputs, k_tiles, T)
    point_zeros = None
    if zeros is not None:
        point_zeros = np.where(real, zeros[:, group], 0).reshape(outputs, k_tiles, T)

    fields = side_fields(config)
    books = _codebooks(q, config, tables or {})
    beats = sum(len(book) for _, book in books)
    data_parts = [book for _, book in books]
    side_parts = [np.zeros((beats, config.side_bits), np.uint8)]
    tiles = []
    tile_width = config.n_tile * C
    for start in range(0, outputs, tile_width):
        n = min(tile_width, outputs - start)
        steps = max(-(-n // C), MIN_COLUMNS)
        code = np.zeros((steps * C, k_tiles, codebooks, planes, width), np.uint8)
        code[:n] = (_plane_codes if config.encodes and config.bank else _CODES[q.format])(
            q, order[start:start + n], padded, positions, config)
        code = code.reshape(steps, C, k_tiles, codebooks, planes, width)
        code = code.transpose(2, 3, 0, 4, 1, 5).reshape(k_tiles, codebooks, steps, planes, -1)
        side = np.zeros((k_tiles, steps, planes, config.side_bits), np.uint8)
        for (c, t), (scale_at, zero_at) in fields.items():
            s = np.zeros((steps, k_tiles), np.uint16)
            mine = np.arange(c, n, C)
            s[:len(mine)] = point_scales[start + mine, :, t]
            unpacked = (s.T[..., None] >> np.arange(16) & 1).astype(np.uint8)
            side[..., scale_at:scale_at + 16] = unpacked[:, :, None, :]
            if point_zeros is not None:
                z = np.zeros((steps, k_tiles), np.uint8)
                z[:len(mine)] = point_zeros[start + mine, :, t]
                side[..., zero_at] = z.T[..., None] >> np.arange(planes - 1, -1, -1) & 1
        if config.sparse:
            banks = np.zeros((k_tiles, steps * C, planes, T, config.bank_bits), np.uint8)
            banks[:, :n] = _bank_sides(q, order[start:start + n], k_tiles, planes, config)
            side = banks.reshape(k_tiles, steps, C, planes, -1).transpose(0, 1, 3, 2, 4).reshape(
                side.shape)
        if late := config.late_steps:
            code = np.pad(code, ((0, 0), (0, 0), (0, late), (0, 0), (0, 0)))
            side = np.pad(side, ((0, 0), (late, 0), (0, 0), (0, 0)))
        tiles.append((beats, steps))
        for k, c in np.ndindex(k_tiles, codebooks):
            tile_data, tile_side = code[k, c], side[k]
            if parameters is not None and (k, c) == (k_tiles - 1, codebooks - 1):
                extra = _parameter_beats(parameters, start, n, steps, config)
                extra = np.pad(extra, ((late, 0), (0, 0)))
                tile_data = np.concatenate([extra[:, None], tile_data], axis=1)
                blank = np.zeros((steps + late, 1, config.side_bits), np.uint8)
                tile_side = np.concatenate([blank, tile_side], axis=1)
            tile_data = _bytes(tile_data, config.beat_bytes)
            tile_side = tile_side.reshape(len(tile_data), config.side_bits)
            if zero:
                sums = np.zeros((SUM_BEATS, C * width), np.uint8)
                sums[1] = np.tile(_minus_bits(config), C)
                tile_data = np.concatenate([_bytes(sums, config.beat_bytes), tile_data])
                tile_side = np.concatenate(
                    [np.zeros((SUM_BEATS, config.side_bits), np.uint8), tile_side])
            data_parts.append(tile_data)
            side_parts.append(tile_side)
            beats += len(tile_data)
    padded_side = np.zeros((beats, 32 * config.side_words), np.uint8)
    padded_side[:, :config.side_bits] = np.concatenate(side_parts)
    side = np.packbits(padded_side, axis=1, bitorder="little").view("<u4")
    total_steps = sum(steps + config.late_steps for _, steps in tiles)
    return Image(data=np.concatenate(data_parts), side=side, tiles=tiles, k_tiles=k_tiles,
                 planes=planes, codebooks=codebooks,
                 books=[(buffer, len(book)) for buffer, book in books],
                 zero=zero, requant=parameters is not None, positions=positions,
                 padded_k=padded, padding=1 - N * K / (total_steps * C * padded),
                 token=_token(q))


def _token(q):
    """Fields of TOPK for a matrix whose tokens the device encodes."""
    if q.format == "kmeans":
        return {"length": q.shape[1], "k": q.outlier_count}
    if q.format == "sq" and q.config.side != "weight":
        return {"low": q.config.low, "k": q.config.high_count,
                "static": q.config.side == "activation"}
    return None


def _parameter_beats(parameters, start, n, steps, config):
    """Beats that hold the re-quantisation parameters of each column step: uint8 bits."""
    C = config.columns
    beats = np.zeros((steps * C, config.column_code_bits), np.uint8)
    for name, (offset, width) in PARAMETER_FIELDS.items():
        value = np.asarray(parameters[name], np.int64)[start:start + n]
        beats[:n, offset:offset + width] = value[:, None] >> np.arange(width) & 1
    return beats.reshape(steps, -1)
