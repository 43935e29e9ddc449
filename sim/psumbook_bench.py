"""Measurements of the psumbook format: cores, utilisation, a dequantising baseline, a sweep."""

import itertools
from typing import Any

import numpy as np

from hdl.config import BLOCK, EngineConfig
from sim import pictures
from sim.measure import identity, largest, mark_front, measure, routed

__all__ = ["baseline_rows", "core_rows", "plot", "random_psumbook", "sweep", "utilization_rows"]

def engine(family="ecp5", *, v, lanes, group=128, **fields: Any):
    """An engine for codebooks of 256 centroids, its tables in block RAM."""
    return EngineConfig(**{
        **dict(format="psumbook", family=family, v=v, b=8, lanes=lanes, activation_bits=8,
               zero_points=False, scale_points=lanes * v // group, n_tile=4096,
               activation_bytes=8192, address_bits=20, block_ram_blocks=lanes * v // BLOCK),
        **fields})


def core_rows(progress):
    """Area and clock of psumbook cores on an LFE5U-85F of speed 6: median of three seeds."""
    from hdl.core import Core

    cases = [("m2v8", engine(v=8, lanes=64, builders=4), 2, 10.0, 180),
             ("m2v8", engine(v=8, lanes=128, builders=8), 2, 10.0, 180),
             ("m2v8, two rows", engine(v=8, lanes=64, rows=2, builders=4), 2, 10.0, 180),
             ("m1v4", engine(v=4, lanes=64, builders=8), 1, None, None)]
    rows = []
    for name, config, codebooks, comb_limit, clock_limit in cases:
        from_routing = routed(Core(config), f"core {name}", progress, mhz=180)
        macs = config.peak_macs(codebooks)
        comb = from_routing["comb"] / macs
        rows.append({
            "core": name, "lanes": config.lanes, "rows": config.rows, "builders": config.builders,
            "scale_points": config.scale_points, "macs": macs, **from_routing,
            "comb_per_mac": round(comb, 2), "comb_limit": comb_limit, "mhz_limit": clock_limit,
            "met": None if comb_limit is None else
            comb <= comb_limit and from_routing["mhz"] >= clock_limit, **identity(config)})
    return rows


def random_psumbook(rng, N, K, *, v, codebooks, code_bits=8, group_size=128):
    """A psumbook matrix of random codes and centroids."""
    import host

    return host.from_codes(
        "psumbook", codes=rng.integers(0, 2**code_bits, (codebooks, N, -(-K // v))),
        codebooks=rng.integers(-127, 128, (codebooks, 2**code_bits, v)),
        scales=rng.random((N, -(-K // (group_size or K)))) + 0.1, group_size=group_size, K=K)


def utilization_rows(progress):
    """Useful gathers over cycles times gather ports, ideal memory, g = 128."""
    rows_of_max, max_options = largest("psumbook")
    rows = []
    for name, v, codebooks, N, K, M, options, limit in (
            ("m2v8", 8, 2, 4096, 4096, 1, "", 0.95),
            ("m2v8, 4 builders", 8, 2, 4096, 4096, 1, "format=psumbook&builders=4", None),
            ("m1v4", 4, 1, 4096, 4096, 1, "", 0.95),
            ("m1v4", 4, 1, 2048, 4096, 1, "", 0.90),
            ("m2v8", 8, 2, 4096, 4096, 4, "", None),
            ("m2v8, the ULX3S's max", 8, 2, 4096, 4096, 1, max_options, None),
            ("m2v8, the ULX3S's max", 8, 2, 4096, 4096, rows_of_max, max_options, None)):
        q = random_psumbook(np.random.default_rng(0), N, K, v=v, codebooks=codebooks)
        stats = measure(f"sim:?{options}" if options else "sim:", q, M, progress)
        rows.append({"format": name, "M": M, "N": N, "K": K, "cycles": stats["cycles"],
                     "utilization": round(stats["utilization"], 4), "limit": limit,
                     "met": None if limit is None else stats["utilization"] >= limit,
                     **stats["identity"]})
    return rows


def baseline_rows(progress):
    """Bare arrays at m2v8, 128 multiply-accumulates per cycle: Psumbook against dequantising."""
    from sim.codebook_baselines import DequantArray, PsumbookArray

    arrays = {
        "psumbook, 2 builders": PsumbookArray(32, 8, 8, builders=2, family="ecp5"),
        "psumbook, 4 builders": PsumbookArray(32, 8, 8, builders=4, family="ecp5"),
        "dequantise, then multiply": DequantArray(16, 8, 8, 2, family="ecp5")}
    # The baseline's aim is lower: one that it cannot reach is tried for hours.
    areas = {name: routed(array, name, progress, mhz=120 if "multiply" in name else 180)
             for name, array in arrays.items()}
    base = areas["dequantise, then multiply"]
    macs = 128
    rows = []
    for name, found in areas.items():
        table = found is not base
        config = getattr(arrays[name], "config", None)
        hides_from = 32 // config.builders * 256 if config else None
        goal = bool(hides_from and hides_from >= 4096)
        rows.append({
            "array": name, "macs": macs, **found,
            **{f"{key}_per_mac": round(found[key] / macs, 3) for key in ("comb", "ebr", "dsp")},
            "hides_from_n": hides_from,
            "dsp_share": round(found["dsp"] / base["dsp"], 3) if table else None,
            "limit": 0.2 if goal else None,
            "met": found["comb"] < base["comb"] and found["dsp"] <= 0.2 * base["dsp"]
            if goal else None,
            **(identity(config) if config else {"parameters": None, "digest": None})})
    return rows


def sweep(progress, size=4096, sample=512):
    """Trade-offs of the psumbook format: bits, error, cycles and area over (m, v, b, g).

    The error is that of a Gaussian matrix of `sample` rows and columns, relative to its variance;
    bits and cycles are of a `size` x `size` matrix and one token from ideal memory, cycles and area
    by the models of :mod:`host.performance` and :mod:`hdl.estimate` for 64 lanes on an ECP5.
    """
    import host
    from hdl.config import DeviceConfig
    from hdl.estimate import estimate
    from host.performance import one_pass

    W = np.random.default_rng(0).standard_normal((sample, sample)).astype(np.float32)
    rows = []
    for v, b, m in itertools.product((2, 4, 8), (4, 6, 8), (1, 2, 3, 4)):
        if not 1 <= m * b / v <= 4:
            continue
        # 64 multipliers per row where so many builders exist.
        config = engine(v=v, lanes=64, b=b, builders=min(16, 64 // v), address_bits=16,
                        block_ram_blocks=64 * v // BLOCK if b > 5 else 0)
        area = estimate(DeviceConfig(engine=config, memory="onchip", memory_beats=1024))
        for g in (32, 128, None):
            progress(f"m{m}v{v}b{b}, groups of {g or 'a row'}")
            q = host.quantize(W, format="psumbook", v=v, codebooks=m, code_bits=b, group_size=g)
            error = float(((q.dequantize() - W)**2).mean() / W.var())
            bits = (m * b / v + 16 / (g or size) + 32 / size
                    + 8 * m * 2**b * v / size**2)
            work = one_pass(config, (size, size), group_size=g, codebooks=m)
            rows.append({"m": m, "v": v, "b": b, "g": g or "row", "bits": round(bits, 3),
                         "error": round(error, 5), "cycles": work.cycles,
                         "macs_per_cycle": round(size**2 / work.cycles), "comb": area["comb"],
                         "ebr": area["bram"], "dsp": area["dsp"]})
    mark_front(rows, "bits", "error", "cycles")
    return sorted(rows, key=lambda row: row["bits"])


def plot(rows, path):
    """Error over bits of a sweep, a marker per chunk length, the Pareto front filled."""
    drawn = pictures.figure(7, 4.5)
    axes = drawn.subplots()
    bits = np.linspace(min(r["bits"] for r in rows), max(r["bits"] for r in rows))
    axes.semilogy(bits, 2.0**(-2 * bits), "k:", label="rate-distortion bound")
    for v, marker in ((2, "o"), (4, "s"), (8, "^")):
        for front in (True, False):
            chosen = [r for r in rows if r["v"] == v and r["pareto"] is front]
            axes.semilogy([r["bits"] for r in chosen], [r["error"] for r in chosen], marker,
                          color=f"C{v // 3}", fillstyle="full" if front else "none",
                          label=f"v = {v}" if front else None)
    axes.set(xlabel="bits per weight", ylabel="squared error over variance",
             title="psumbook: Gaussian weights; filled: Pareto front of bits, error and cycles")
    axes.legend()
    pictures.save(drawn, path)
