"""Measurements: every figure that the documentation quotes comes from here.

``python -m sim.bench`` prints the tables; ``--json`` the same as data; ``--only`` one section.
"""

import argparse
import json
import statistics
import sys
import time
from typing import Any

import numpy as np

from hdl.config import EngineConfig
from hdl.errors import LutraError

__all__ = ["main"]

SECTIONS = ("core", "memory", "arrays", "utilization", "bandwidth", "simulator")
_SEEDS = (1, 2, 3)
_CORE: dict[str, Any] = dict(family="ecp5", activation_bits=8, n_tile=1024, activation_bytes=8192,
             address_bits=20, builders=2)


def _area(design, name, progress):
    """Area of a design between chains of registers, and its clock: the median of the seeds."""
    from hdl.synthesis import Bench, place_and_route

    results = []
    for seed in _SEEDS:
        progress(f"{name}, seed {seed}")
        results.append(place_and_route(Bench(design), seed=seed))
    first = results[0]    # packing does not depend on the seed
    return {"comb": first.comb, "ff": first.ff, "max": max(first.comb, first.ff), "ebr": first.ebr,
            "dsp": first.dsp, "mhz": statistics.median(r.mhz for r in results),
            "mhz_seeds": [r.mhz for r in results]}


def core_rows(progress):
    """Area and clock of engine cores on an LFE5U-85F of speed 6: median of three seeds."""
    from hdl.core import Core

    cases: list[tuple[str, dict[str, Any], Any, Any]] = [
        ("g >= 128", dict(lanes=64, scale_points=2, block_ram_blocks=2), 21.0, 200),
        ("any g >= 32", dict(lanes=64, scale_points=8, block_ram_blocks=2), 23.5, 190),
        ("g >= 128, 256 MACs", dict(lanes=128, scale_points=4, block_ram_blocks=4), 18.5, 180),
        ("LUT RAM", dict(lanes=64, scale_points=2), None, None),
        ("LUT RAM, 256 MACs", dict(lanes=128, scale_points=4), None, None),
        ("half block RAM", dict(lanes=128, scale_points=4, block_ram_blocks=8), None, None),
        ("block RAM", dict(lanes=128, scale_points=4, block_ram_blocks=16), 10.0, None),
    ]
    rows = []
    for name, fields, comb_limit, clock_limit in cases:
        config = EngineConfig(**{**_CORE, **fields})
        area = _area(Core(config), f"core {name}", progress)
        macs = config.peak_macs(2)
        comb = area["comb"] / macs
        mhz = area["mhz"]
        rows.append({
            "core": name, "lanes": config.lanes, "rows": config.rows,
            "scale_points": config.scale_points, "builders": config.builders,
            "store": f"{config.block_ram_blocks} of {config.blocks} in block RAM",
            "w2a8_macs": macs, **area, "comb_per_mac": round(comb, 2),
            "comb_limit": comb_limit, "mhz_limit": clock_limit,
            "met": (comb_limit is None or comb <= comb_limit)
            and (clock_limit is None or mhz >= clock_limit),
        })
    return rows


def memory_rows(progress):
    """The AXI4 master of an engine of 64 lanes, out of context: median of three seeds."""
    from hdl.config import DeviceConfig
    from hdl.memory.axi import AXIMemory

    engine = EngineConfig(**{**_CORE, "lanes": 64})
    config = DeviceConfig(engine=engine, memory="axi", memory_beats=2**20, axi_bits=128)
    return [{"memory": "AXI4 master", "lanes": engine.lanes, "axi_bits": config.axi_bits,
             **_area(AXIMemory(config), "AXI4 master", progress)}]


_ARRAY_LIMIT = 1.4


def _why_not(area, lanes, bits, narrow=False, build=False, block_ram_blocks=0):
    """Why a table array misses the limit."""
    lut_ram = 6 * (lanes - 8 * block_ram_blocks) * (2 if narrow else 3)
    reasons = [f"LUT RAM is {lut_ram} of {area['comb']} COMB"]
    if bits > 1:
        reasons.append("MACs have half as many leaves (radix-4 digits)")
    if build:
        reasons.append("baselines need no builders")
    return "; ".join(reasons)


def arrays_rows(progress):
    """Bare arrays, registered inputs to accumulator, no DSP: tables against adders and MACs."""
    from sim.baselines import AdderArray, MacArray, TableArray

    lanes, planes = 64, 4     # one bit-serial array runs weights of 1 to 4 bits
    positions = 4 * lanes     # one-bit MACs per cycle, of all arrays
    tables: dict[str, dict[str, Any]] = {
        "tables, 2 of 8 blocks in block RAM": {"block_ram_blocks": 2},
        "tables": {}, "tables, 8 of 10 bits": {"narrow": True},
        "tables, 2 of 8 blocks in block RAM, 2 builders": {"block_ram_blocks": 2, "build": True},
        "tables, 2 builders": {"build": True},
        "tables, 8 of 10 bits, 2 builders": {"narrow": True, "build": True},
    }
    serial = {name: _area(TableArray(lanes, planes, family="ecp5", **options), name, progress)
              for name, options in tables.items()}
    serial["bit-serial adders"] = _area(AdderArray(positions, planes, family="ecp5"),
                                        "bit-serial adders", progress)
    rows = []
    for bits in (1, 2, 4):
        macs = positions // bits
        areas = {**serial, "plain MACs": _area(MacArray(macs, bits, family="ecp5"),
                                               f"plain W{bits} MACs", progress)}
        best = {key: min(areas[name][key] for name in ("bit-serial adders", "plain MACs"))
                for key in ("comb", "max")}
        for name, area in areas.items():
            times = best["comb"] / area["comb"]
            met = times >= _ARRAY_LIMIT if name in tables else None
            rows.append({
                "weights": f"W{bits}A8", "array": name,
                "places": lanes if name in tables else macs if name == "plain MACs" else positions,
                "macs": macs, **area, "comb_per_mac": round(area["comb"] / macs, 2),
                "times_smaller": round(times, 3),
                "times_smaller_max": round(best["max"] / area["max"], 3),
                "limit": _ARRAY_LIMIT if name in tables else None, "met": met,
                "why_not": _why_not(area, lanes, bits, **tables[name]) if met is False else None})
    return rows


def _random_layer(rng, N, K, bits, group_size):
    import host

    groups = -(-K // group_size)
    return host.from_codes(
        "bitserial", codes=rng.integers(0, 2**bits, (N, K)).astype(np.uint8),
        scales=rng.random((N, groups)) + 0.1, bits=bits, group_size=group_size)


def _measure(url, M, N, K, bits, progress):
    """Statistics of one call with random data, checked against the golden model."""
    import host
    import sim.golden

    rng = np.random.default_rng(0)
    q = _random_layer(rng, N, K, bits, 128)
    x = rng.integers(-127, 128, (M, K))
    progress(f"W{bits}A8 {M} x {N} x {K} on {url}")
    with host.open(url, progress=progress) as device:
        layer = device.load(q)
        start = time.perf_counter()
        y = layer.integers(x)
        seconds = time.perf_counter() - start
        if not np.array_equal(y, sim.golden.integers(q, x)):
            raise LutraError(f"{url} does not equal the golden model for {M} x {N} x {K}")
        return {**layer.stats, "seconds": seconds, "clock_hz": device.clock_hz,
                "memory_bytes_per_second": getattr(device.transport, "bytes_per_second", None)}


def _largest():
    """Rows and URL options of the largest engine of a board: the max size of the ULX3S."""
    from boards import ULX3S
    from sim.device import DEFAULT_ENGINE

    engine = ULX3S.sizes["max"].engine.as_dict()
    default = EngineConfig(**DEFAULT_ENGINE).as_dict()
    return engine["rows"], "&".join(
        f"{name}={int(value)}" for name, value in engine.items()
        if value != default[name] and name not in ("family", "format"))


def utilization_rows(progress):
    """Useful MACs over peak MACs from ideal memory, W2A8, g = 128."""
    rows_of_largest, largest = _largest()
    cases = [(1, 4096, 4096, "", 0.98), (1, 1024, 1024, "", 0.95), (8, 512, 512, "", 0.95),
             (8, 512, 512, "rows=8&builders=8", 0.85),
             (rows_of_largest, 4096, 4096, "max", None), (rows_of_largest, 1024, 1024, "max", None)]
    rows = []
    for M, N, K, engine, limit in cases:
        options = largest if engine == "max" else engine
        stats = _measure(f"sim:?{options}" if options else "sim:", M, N, K, 2, progress)
        rows.append({"M": M, "N": N, "K": K, "engine": engine or "default",
                     "cycles": stats["cycles"], "utilization": round(stats["utilization"], 4),
                     "limit": limit, "met": None if limit is None
                     else stats["utilization"] >= limit})
    return rows


def bandwidth_rows(progress):
    """Share of the memory model's sustained bandwidth that is used when memory is the limit."""
    rows = []
    for bits in (2, 4):
        stats = _measure("sim:?memory=ddr3", 1, 4096, 4096, bits, progress)
        rate = (stats["bytes_read"] + stats["bytes_written"]) / stats["cycles"] * stats["clock_hz"]
        share = rate / stats["memory_bytes_per_second"]
        gops = 2 * 4096 * 4096 / stats["cycles"] * stats["clock_hz"] / 1e9
        rows.append({"weights": f"W{bits}A8", "memory": "ddr3", "cycles": stats["cycles"],
                     "gops": round(gops, 2), "share": round(share, 4), "limit": 0.95,
                     "met": share >= 0.95})
    return rows


def simulator_rows(progress):
    """Cycles per second of the Verilated device and of Amaranth's own simulator."""
    from amaranth.sim import Simulator

    from hdl.core import Core
    from sim.device import DEFAULT_ENGINE

    stats = _measure("sim:", 1, 4096, 4096, 2, progress)
    verilated = stats["cycles"] / stats["seconds"]
    progress("Amaranth's simulator")
    core: Any = Core(EngineConfig(**DEFAULT_ENGINE))
    cycles = 300

    async def clock(ctx):
        ctx.set(core.i_response.valid, 1)
        for i in range(cycles):
            ctx.set(core.i_response.p.data, (0x9E3779B97F4A7C15 * (i + 1)) % 2**256)
            await ctx.tick()

    simulator = Simulator(core)
    simulator.add_clock(1e-6)
    simulator.add_testbench(clock)
    start = time.perf_counter()
    simulator.run()
    python = cycles / (time.perf_counter() - start)
    return [{"verilated_cycles_per_s": round(verilated), "amaranth_cycles_per_s": round(python, 1),
             "ratio": round(verilated / python), "limit": 100, "met": verilated / python >= 100}]


def _table(title, rows):
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(("yes" if v else "[red]no[/red]") if isinstance(v, bool) else
                        "" if v is None else str(v) for v in row.values()))
    Console().print(table)


def main(argv=None):
    """Run the measurements; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m sim.bench", description="Measure engines: area, clock, utilisation, "
        "bandwidth, simulation speed.",
        epilog="examples:\n  python -m sim.bench --only utilization\n"
               "  python -m sim.bench --json > bench.json",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SECTIONS, action="append", help="measure this section")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    measure = {"core": core_rows, "memory": memory_rows, "arrays": arrays_rows,
               "utilization": utilization_rows, "bandwidth": bandwidth_rows,
               "simulator": simulator_rows}
    from rich.console import Console

    found = {}
    try:
        with Console(stderr=True).status("measuring") as status:
            for name in arguments.only or SECTIONS:
                found[name] = measure[name](lambda text: status.update(text))
    except LutraError as error:
        print(f"sim.bench: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        for name, rows in found.items():
            _table((measure[name].__doc__ or name).splitlines()[0], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
