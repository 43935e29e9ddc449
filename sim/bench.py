"""Measurements: every figure that the documentation quotes comes from here.

``python -m sim.bench`` prints the tables; ``--json`` the same as data; ``--only`` one section.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from hdl import commandline
from hdl.config import EngineConfig
from hdl.errors import LutraError
from host.cli.matrix import check_out
from sim import kmeans_bench, psumbook_bench, quantizer_bench, sq_bench
from sim.measure import identity, largest, measure, random_layer, routed
from sim.pictures import PICTURES

__all__ = ["main"]

_CORE: dict[str, Any] = dict(family="ecp5", activation_bits=8, n_tile=1024, activation_bytes=8192,
             address_bits=20, builders=2)


def _core_why_not(config, area, comb, comb_limit, clock_limit):
    """Why a core misses its goal; None if it does not."""
    reasons = []
    if comb_limit is not None and comb > comb_limit:
        tables = 18 * (config.lanes - 8 * config.block_ram_blocks)
        reasons.append(f"LUT RAM is {tables} of {area['comb']} COMB")
    if clock_limit is not None and area["mhz"] < clock_limit:
        seeds = f"{min(area['mhz_seeds']):.0f}..{max(area['mhz_seeds']):.0f}"
        reasons.append(f"{clock_limit - area['mhz']:.0f} MHz short, seeds scatter over {seeds}")
    return "; ".join(reasons) or None


def core_rows(progress):
    """Area and clock of engine cores on an LFE5U-85F of speed 6: median of three seeds."""
    from hdl.core import Core

    cases: list[tuple[str, dict[str, Any], Any, Any]] = [
        ("g >= 128", dict(lanes=64, scale_points=2, block_ram_blocks=2), 21.0, 200),
        ("any g >= 32", dict(lanes=64, scale_points=8, block_ram_blocks=2), 23.5, 190),
        ("g >= 128, 256 MACs", dict(lanes=128, scale_points=4, block_ram_blocks=4), 18.5, 180),
        ("LUT RAM", dict(lanes=64, scale_points=2), 21.0, 200),
        ("LUT RAM, 256 MACs", dict(lanes=128, scale_points=4), 18.5, 180),
        ("half block RAM", dict(lanes=128, scale_points=4, block_ram_blocks=8), None, None),
        ("block RAM", dict(lanes=128, scale_points=4, block_ram_blocks=16), 10.0, None),
    ]
    rows = []
    for name, fields, comb_limit, clock_limit in cases:
        config = EngineConfig(**{**_CORE, **fields})
        area = routed(Core(config), f"core {name}", progress)
        macs = config.peak_macs(2)
        comb = area["comb"] / macs
        mhz = area["mhz"]
        rows.append({
            "core": name, "lanes": config.lanes, "rows": config.rows,
            "scale_points": config.scale_points, "builders": config.builders,
            "store": f"{config.block_ram_blocks} of {config.blocks} in block RAM",
            "w2a8_macs": macs, **area, "comb_per_mac": round(comb, 2),
            "comb_limit": comb_limit, "mhz_limit": clock_limit,
            "met": None if comb_limit is None else
            comb <= comb_limit and (clock_limit is None or mhz >= clock_limit),
            "why_not": _core_why_not(config, area, comb, comb_limit, clock_limit),
            **identity(config)})
    return rows


def memory_rows(progress):
    """The AXI4 master of an engine of 64 lanes, out of context: median of three seeds."""
    from hdl.config import DeviceConfig
    from hdl.memory.axi import AXIMemory

    engine = EngineConfig(**{**_CORE, "lanes": 64})
    config = DeviceConfig(engine=engine, memory="axi", memory_beats=2**20, axi_bits=128)
    return [{"memory": "AXI4 master", "lanes": engine.lanes, "axi_bits": config.axi_bits,
             **routed(AXIMemory(config), "AXI4 master", progress), **identity(config)}]


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
    serial, engines = {}, {}
    for name, options in tables.items():
        array = TableArray(lanes, planes, family="ecp5", **options)
        serial[name], engines[name] = routed(array, name, progress), identity(array.config)
    serial["bit-serial adders"] = routed(AdderArray(positions, planes, family="ecp5"),
                                        "bit-serial adders", progress)
    rows = []
    for bits in (1, 2, 4):
        macs = positions // bits
        areas = {**serial, "plain MACs": routed(MacArray(macs, bits, family="ecp5"),
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
                "why_not": _why_not(area, lanes, bits, **tables[name]) if met is False else None,
                **engines.get(name, {"parameters": None, "digest": None})})
    return rows


def utilization_rows(progress):
    """Useful MACs over peak MACs from ideal memory, W2A8, g = 128."""
    rows_of_largest, options_of_largest = largest("bitserial")
    cases = [(1, 4096, 4096, "", 0.98), (1, 1024, 1024, "", 0.95), (8, 512, 512, "", 0.95),
             (8, 512, 512, "rows=8&builders=8", 0.85),
             (1, 4096, 4096, "max", None), (1, 1024, 1024, "max", None), (8, 512, 512, "max", None),
             (rows_of_largest, 4096, 4096, "max", None), (rows_of_largest, 1024, 1024, "max", None)]
    rows = []
    for M, N, K, engine, limit in cases:
        options = options_of_largest if engine == "max" else engine
        stats = measure(f"sim:?{options}" if options else "sim:",
                        random_layer(np.random.default_rng(0), N, K, 2, 128), M, progress)
        rows.append({"M": M, "N": N, "K": K, "engine": engine or "default",
                     "cycles": stats["cycles"], "utilization": round(stats["utilization"], 4),
                     "limit": limit, "met": None if limit is None
                     else stats["utilization"] >= limit, **stats["identity"]})
    return rows


def bandwidth_rows(progress):
    """Share of the memory model's sustained bandwidth that is used when memory is the limit."""
    rows = []
    for bits in (2, 4):
        stats = measure("sim:?memory=ddr3",
                        random_layer(np.random.default_rng(0), 4096, 4096, bits, 128), 1, progress)
        rate = (stats["bytes_read"] + stats["bytes_written"]) / stats["cycles"] * stats["clock_hz"]
        share = rate / stats["memory_bytes_per_second"]
        gops = 2 * 4096 * 4096 / stats["cycles"] * stats["clock_hz"] / 1e9
        rows.append({"weights": f"W{bits}A8", "memory": "ddr3", "cycles": stats["cycles"],
                     "gops": round(gops, 2), "share": round(share, 4), "limit": 0.95,
                     "met": share >= 0.95, **stats["identity"]})
    return rows


def simulator_rows(progress):
    """Cycles per second of the Verilated device and of Amaranth's own simulator, same program."""
    from hdl.config import DeviceConfig
    from host.device import Device
    from host.link.client import Client
    from sim.amaranth import AmaranthStream
    from sim.device import SimTransport, default_engine

    # On-chip memory and a byte stream, so that nothing but the link is outside of the design.
    config = DeviceConfig(engine=EngineConfig(**default_engine(n_tile=64, activation_bytes=1024)),
                          memory="onchip", memory_beats=512)
    rng = np.random.default_rng(0)
    q = random_layer(rng, 32, 256, 2, 128)
    x = rng.integers(-127, 128, (1, 256))

    def rate(transport, cycle):
        with Device(transport) as device:
            start, first = time.perf_counter(), cycle()
            y = device.load(q).integers(x)
            seconds, cycles = time.perf_counter() - start, cycle() - first
        if not np.array_equal(y, sim.golden.integers(q, x)):
            raise LutraError(f"{transport.name} does not equal the golden model")
        return cycles / seconds

    import sim.golden

    transport = SimTransport(config, progress=progress)
    verilated = rate(transport, transport.model.cycle)
    progress("Amaranth's simulator")
    line = AmaranthStream(config)
    python = rate(Client(line), lambda: line.cycle)
    return [{"verilated_cycles_per_s": round(verilated), "amaranth_cycles_per_s": round(python, 1),
             "ratio": round(verilated / python), "limit": 100, "met": verilated / python >= 100,
             **identity(config)}]


def _table(title, rows):
    names = [name for name in rows[0] if name != "parameters"]
    table = Table(title=title)
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(("yes" if v else "[red]no[/red]") if isinstance(v, bool) else
                        "" if v is None else str(v) for v in (row[name] for name in names)))
    console = commandline.output()
    console.print(table)
    for digest, parameters in {row.get("digest"): row.get("parameters") for row in rows}.items():
        if digest:
            console.print(f"{digest}: {parameters}")


_MEASURE = {"core": core_rows, "memory": memory_rows, "arrays": arrays_rows,
            "utilization": utilization_rows, "bandwidth": bandwidth_rows,
            "simulator": simulator_rows, "psumbook-core": psumbook_bench.core_rows,
            "psumbook-arrays": psumbook_bench.baseline_rows,
            "psumbook-utilization": psumbook_bench.utilization_rows,
            "kmeans-arrays": kmeans_bench.arrays_rows,
            "kmeans-core": kmeans_bench.core_rows, "kmeans-topk": kmeans_bench.topk_rows,
            "kmeans-utilization": kmeans_bench.utilization_rows,
            "kmeans-error": kmeans_bench.error_rows, "kmeans-token": kmeans_bench.token_rows,
            "kmeans-chain": kmeans_bench.chain_rows,
            "kmeans-classifier": kmeans_bench.classifier_rows,
            "sq-core": sq_bench.core_rows, "sq-core-rows": sq_bench.large_core_rows,
            "sq-utilization": sq_bench.utilization_rows,
            "sq-error": sq_bench.error_rows, "sq-relation": sq_bench.relation_rows,
            "sq-activations": sq_bench.activation_rows,
            "sq-dense": sq_bench.dense_rows, "sq-selectors": sq_bench.selector_rows,
            "quantizer-error": quantizer_bench.error_rows,
            "quantizer-outputs": quantizer_bench.calibration_rows}
SECTIONS = tuple(_MEASURE)
_SWEEPS = {"psumbook": psumbook_bench, "sq": sq_bench}
_EXAMPLES = """examples:
  python -m sim.bench --only utilization
  python -m sim.bench --only core --json
  python -m sim.bench --sweep psumbook --plot psumbook.svg
  python -m sim.bench --sweep sq --plot sq.svg
  python -m sim.bench --save docs/bench.json && python docs/generate.py"""


def main(argv=None):
    """Run the measurements; returns the exit status (see :func:`hdl.commandline.run`)."""
    parser = commandline.Parser(
        "python -m sim.bench", examples=_EXAMPLES,
        description="Measure engines: area, clock, utilisation, bandwidth, simulation speed.  "
                    "Placing and routing all of core and arrays takes most of an hour.")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="measure this section")
    parser.add_argument("--sweep", choices=list(_SWEEPS),
                        help="instead: bits, error, cycles and area over a format's parameters")
    parser.add_argument("--plot", type=Path, metavar="FILE",
                        help="draw the sweep (.png, .svg, .pdf)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--save", type=Path, metavar="FILE",
                        help="put the measured sections into a JSON file, as docs/bench.json")

    def work(args):
        if args.plot and not args.sweep:
            parser.error(f"--plot draws a sweep: give --sweep {' or '.join(_SWEEPS)}")
        if args.plot and args.plot.suffix not in PICTURES:
            parser.error(f"--plot must name a {', '.join(PICTURES)} file, not {args.plot}")
        check_out(args.plot)
        check_out(args.save)
        found = {}
        swept = f"{args.sweep}-sweep"
        names = [swept] if args.sweep else args.only or SECTIONS
        measures = {**_MEASURE, **{f"{name}-sweep": f.sweep for name, f in _SWEEPS.items()}}
        columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(),
                   TimeElapsedColumn())
        with commandline.live(*columns) as bar:
            task = bar.add_task("", total=len(names))
            for i, name in enumerate(names):
                found[name] = measures[name](
                    lambda text, name=name: bar.update(task, description=f"{name}: {text}"))
                bar.update(task, completed=i + 1)
        if args.save:
            saved = json.loads(args.save.read_text()) if args.save.exists() else {}
            args.save.write_text(json.dumps(saved | found, indent=1) + "\n")
        if args.plot:
            _SWEEPS[args.sweep].plot(found[swept], args.plot)
        if args.json:
            print(json.dumps(found, indent=2))
            return
        for name, rows in found.items():
            _table((measures[name].__doc__ or name).splitlines()[0], rows)

    return commandline.run(parser, work, argv)


if __name__ == "__main__":
    sys.exit(main())
