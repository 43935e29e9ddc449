"""The performance model: cycles of a matmul from the engine's parameters and the shapes.

It is what docs/performance.md explains, and what the demo estimates boards with.  The memory is
ideal but for a cost per beat; the stages overlap as the program lets them.
"""

from dataclasses import dataclass

from hdl.config import MIN_COLUMNS, TOKEN_BEAT, EngineConfig
from hdl.token_units import ENCODE_CYCLES, GAIN_WORD
from host.pack import SUM_BEATS, column_beats, spread

__all__ = ["Pass", "build_cycles", "matmul_cycles", "one_pass"]

_START = 2          # cycles between two tables' walks
_PIPELINE = 90      # from the start of a program to its end, beside everything counted below
_SHOWN, _DIVIDE, _NEAR, _MATCH, _POP = 20, 60, 8, 4, 18     # of TOPK
_SHOWN_BANK = 31        # of its start and end for a bank


@dataclass(frozen=True)
class Pass:
    """Gathering for one group of ``rows`` tokens.

    Attributes
    ----------
    cycles : int
        Of the gather stage, if it never waits.
    beats : int
        Read for codes, parameters not counted.
    tiles : list of int
        Cycles of each N tile's K tiles but the last, per K tile and codebook.
    k_tiles : int
        K tiles times codebooks.
    """

    cycles: int
    beats: int
    tiles: list
    k_tiles: int


def build_cycles(engine: EngineConfig):
    """Cycles that the tables of a K tile take, with one codebook.

    Signed sums: ``v + 2**(v-1) - 1`` per group of ``builders`` lanes, the Gray code of a half
    table; others: ``2**b``, an entry per cycle.
    """
    if not engine.signed_sums:
        return len(engine.lane_groups) * 2**engine.b + _START
    return sum(v + 2**(v - 1) - 1 for v in engine.lane_groups) + _START


def one_pass(engine: EngineConfig, shape, *, group_size, planes=1, codebooks=1, zeros=False):
    """What gathering a matrix takes: a :class:`Pass`.

    Parameters
    ----------
    engine : EngineConfig
    shape : tuple of int
        ``(N, K)``.
    group_size : int or None
        Weights along K that share a scale.
    planes, codebooks : int
        Bit planes of a code, additive codebooks.
    zeros : bool
        Whether there are zero points.
    """
    N, K = shape
    k_tiles = spread(K, group_size, engine)[1] // engine.tile_k * codebooks
    sums = SUM_BEATS if zeros else 0
    width = engine.n_tile * engine.columns
    tiles, cycles, beats = [], 0, 0
    for start in range(0, N, width):
        steps = max(-(-min(width, N - start) // engine.columns), MIN_COLUMNS)
        steps += engine.late_steps
        tile = steps * planes + sums
        # In the last K tile columns are as far apart as the store stage writes them.
        last = steps * max(planes, engine.store_beats) + sums
        tiles.append(tile)
        cycles += (k_tiles - 1) * tile + last
        beats += k_tiles * tile
    return Pass(cycles, beats, tiles, k_tiles)


def matmul_cycles(engine: EngineConfig, q, tokens, *, beat_cost=1.0):
    """Cycles of a matmul, from the first instruction to the last result.

    Parameters
    ----------
    engine : EngineConfig
    q : host.matrix.QuantizedMatrix
    tokens : int
        int8, one byte pass.
    beat_cost : float
        Cycles of the memory per beat: 1 for an ideal one.

    Returns
    -------
    float
    """
    work = one_pass(engine, q.shape, group_size=q.config.group_size, planes=column_beats(q, engine),
                    codebooks=q.codebooks,
                    zeros=q.zeros is not None or engine.sparse)
    build = build_cycles(engine)
    if engine.encodes:
        return _token_cycles(engine, q, tokens, work, build, beat_cost)
    groups = -(-tokens // engine.rows)
    load = engine.tile_beats * beat_cost
    codebooks = 2**engine.b / 4 * q.codebooks * beat_cost if engine.format == "psumbook" else 0
    # Codes wait for the beats that LOAD reads, in every K tile but the first.
    loads = load * (work.k_tiles // q.codebooks)
    gathers = sum(work.k_tiles * max(tile * max(1.0, beat_cost) + 1, build)
                  for tile in work.tiles)
    spaced = work.cycles - sum(work.k_tiles * tile for tile in work.tiles)
    # Nothing is built while the very last K tile is gathered from.
    unbuilt = max(0, build - work.tiles[-1] - 1)
    return _PIPELINE + codebooks + build + groups * (loads + gathers + spaced) - unbuilt


def bank_cycles(config):
    """Cycles that TOPK takes for a bank of a row: all high elements are popped and one more."""
    pops = 1 if config.side == "activation" else config.high_count + 1
    beats = config.bank // TOKEN_BEAT
    return _SHOWN_BANK + 2 * beats + min(beats, _NEAR) * _MATCH + pops * (
        _POP + beats.bit_length() - 1)


def topk_cycles(length, k):
    """Cycles that TOPK takes for a row: its trees are finished, then `k` popped from each."""
    levels = (-(-length // TOKEN_BEAT) - 1).bit_length()
    return (_SHOWN + 2 * 2**levels + min(2**levels, _NEAR) * _MATCH + 2 * k * (_POP + levels)
            + _DIVIDE)


def _token_cycles(engine, q, tokens, work, build, beat_cost):
    """Cycles of a matmul whose tokens the device encodes: by what waits for what."""
    tile_load = engine.tile_beats * max(ENCODE_CYCLES, beat_cost)
    codebooks = 0 if engine.bank else (2**engine.b / 4 + GAIN_WORD + 1) * beat_cost
    # Of TOPK, for a token, and for a K tile.
    whole = 0 if engine.bank else engine.rows * topk_cycles(q.shape[1], q.outlier_count)
    per_tile = engine.rows * engine.scale_points * bank_cycles(q.config) if engine.bank else 0
    prepared = gathered = float(_PIPELINE + codebooks)      # when each stage is free
    free = [0.0, 0.0]                               # when each table bank is
    for _ in range(-(-tokens // engine.rows)):
        prepared += whole
        for number, tile in enumerate(work.tiles):
            for k in range(work.k_tiles):
                if number == 0:
                    prepared += (tile_load + per_tile) * (
                        1 if k == 0 else work.k_tiles - 1 if k == 1 else 0)
                prepared = max(prepared, free[0]) + build
                last = engine.store_beats if k == work.k_tiles - 1 else 1
                gathered = max(prepared, gathered) + tile * max(last, beat_cost) + 1
                free = [free[1], gathered]
    return gathered
