"""What a program leaves: accumulators in beats, and the device's counters."""

import numpy as np

from host import functions

__all__ = ["collect", "figures", "real", "result_beats"]


def result_beats(steps, engine):
    """Beats of 64-bit results of so many column steps."""
    return -(-steps * engine.cells * 8 // engine.beat_bytes)


def collect(beats, tiles, engine, N):
    """Results of one group of tokens as int64 [rows, N] from the beats that STORE wrote."""
    parts = []
    at = 0
    for _, steps in tiles:
        count = result_beats(steps, engine)
        values = beats[at:at + count].reshape(-1).view("<i8")[:steps * engine.cells]
        width = engine.n_tile * engine.columns
        parts.append(values.reshape(steps * engine.columns, engine.rows)[:width])
        at += count
    full = len(parts) - 1
    width = engine.n_tile * engine.columns
    parts[-1] = parts[-1][:N - full * width]
    return np.concatenate(parts).T


def real(acc, layer, scale):
    """Outputs of a layer from its accumulators, in float64 and rounded once.

    Parameters
    ----------
    acc : int64 [M, N]
    layer : Layer
        Of which row scales, bias and activation apply.
    scale : float or float [M, 1]
        Of the tokens.

    Returns
    -------
    float32 [M, N]
    """
    y = acc.astype(np.float64) * layer.q.row_scale.astype(np.float64)
    y *= scale
    if layer.bias is not None:
        y += layer.bias
    with np.errstate(over="ignore"):        # as of any float32: the caller sees infinity
        return functions.apply(layer.activation, y).astype(np.float32)


def figures(counters, engine, tokens, macs, peak, padding):
    """The mapping that ``stats`` shows.

    Parameters
    ----------
    counters : dict
        Of all programs of a call.
    engine : EngineConfig
    tokens : int
    macs : int
        Of one token, padding not counted.
    padding : float
        Part of the codes that is padding.
    peak : float
        Most multiply-accumulates per cycle.
    """
    cycles = counters["cycles"]
    return {
        **counters, "gather_cycles": counters["gather_busy"], "peak_macs_per_cycle": peak,
        "utilization": tokens * macs / (cycles * peak) if cycles else 0.0,
        "bytes_read": counters["beats_read"] * (engine.code_bits + engine.side_bits) // 8,
        "bytes_written": counters["beats_written"] * engine.beat_bytes, "tokens": tokens,
        "padding": padding}
