"""``python -m hdl.build``: a board's device, from parameters to bitstream and report."""

import dataclasses
import hashlib
import importlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from importlib.metadata import version
from inspect import getsource
from pathlib import Path

from hdl import commandline, floorplan
from hdl.config import FORMATS, TOKEN_SIDE, DeviceConfig, EngineConfig
from hdl.errors import ArgumentError, BuildError
from hdl.estimate import estimate
from hdl.protocol import BAUDS
from hdl.registers import REGISTERS
from hdl.synthesis import (
    cache_root,
    free_carries,
    ignore_input,
    run,
    tool,
    tool_version,
    xilinx7_area,
)

__all__ = ["build", "elaborate", "main"]

_EXAMPLES = """\
examples:
  python -m hdl.build --board ulx3s                     the default engine, to a bitstream
  python -m hdl.build --board ulx3s --size tiny --out build/tiny
  python -m hdl.build --board ulx3s --lanes 128 --rows 4 --clock 60 --seed 3
  python -m hdl.build --board ulx3s --format sq --bank 32 --high-lanes 1
  python -m hdl.build --board arty --json               Verilog, constraints, Vivado script
  python -m hdl.build --board arty-100t --size max --dry-run

exit status: 0 done, 1 failed (timing not met, for one), 2 bad usage
"""
_SIZES = ("tiny", "default", "max")
_ENGINE = ("format", "lanes", "rows", "columns", "bank", "high_lanes", "sentinels")

_SIDES: dict[str, dict] = {"weight": {}, "activation": TOKEN_SIDE}
"""Of sq: what an engine is for that operand in two precisions; activations static or dynamic."""

# What a board builds from and what comes out; the rest of a run is not kept.
_INTERMEDIATE = ("*.config", "top.json", "top_route.dcp", ".Xil")

# Reads of block RAM that collide with a write may return anything: the stages keep the two apart
# (tokens, fences), and old data, which the RTLIL asks for, would cost look-up tables per block.
_ANY_DATA = "proc; setparam -set COLLISION_X_MASK 1'1 t:$memrd_v2 r:CLK_ENABLE=1 %i"

_FEW_TABLES = 128   # with more, nextpnr must keep wires short before it looks at timing

# Vivado's own cells have a parameter that Yosys' models of them lack.  Nets are split before abc9,
# here and below, because it mistakes a wire named x[3] for a bit of x (yosys#4349).
_XILINX7_YS = """\
read_verilog top.v
setparam -unset SIM_DEVICE t:BUFGCTRL
synth_xilinx -flatten -family xc7 -top top -run begin:map_luts
splitnets
synth_xilinx -flatten -family xc7 -top top -run map_luts:
tee -q -o utilisation.json stat -json -tech xilinx
tee -q -o utilisation.rpt stat -tech xilinx
"""


# Elaboration

def elaborate(board, config, *, seed=1):
    """Files that the tools take, from a process of its own.

    Its hash seed is fixed and overrides in the environment are left out, so that the files depend
    on nothing but the arguments.

    Parameters
    ----------
    board : Board
        From :data:`boards.BOARDS`.
    config : DeviceConfig
    seed : int
        Of placement.

    Returns
    -------
    dict of str to str
        File contents by name.
    """
    request = {"board": board.name, "config": dataclasses.asdict(config), "seed": seed}
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith("AMARANTH_") or name == "AMARANTH_USE_YOSYS"}
    done = subprocess.run(
        [sys.executable, "-c", "from hdl.build import _elaborate_here; _elaborate_here()"],
        input=json.dumps(request), capture_output=True, text=True,
        env=environment | {"PYTHONHASHSEED": "0"})
    if done.returncode:
        raise BuildError(f"elaboration failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def _elaborate_here():
    """Read the request of :func:`elaborate` from standard input and print the files as JSON."""
    request = json.load(sys.stdin)
    board = importlib.import_module("boards").find(request["board"])
    design = importlib.import_module("boards.board").Design
    fields = request["config"]
    config = DeviceConfig(**fields | {"engine": EngineConfig.from_dict(fields["engine"])})
    platform = board.platform()
    options = {}
    if board.family == "ecp5":
        # Timing weighs more than by default, but on a full chip wires must stay short.
        weight = 40 if config.engine.lanes * config.engine.cells <= _FEW_TABLES else 10
        options = {
            "script_after_read": _ANY_DATA, "synth_opts": "-run begin:map_luts",
            "script_after_synth": "splitnets\nsynth_ecp5 -top top -run map_luts:",
            "add_preferences": board.constraints_text,
            "nextpnr_opts": f"--seed {request['seed']} --freq {config.clock_hz / 1e6:g} "
                            f"--placer-heap-timingweight {weight} --router router1 "
                            "--timing-allow-fail --report timing.json"}
    else:
        platform.add_file(board.constraints, board.constraints_text)
    files = platform.prepare(design(board, config), "top", emit_src=False, **options).files
    del files["top.debug.v"]
    if board.family == "xilinx7":
        files["utilisation.ys"] = _XILINX7_YS
    else:       # Amaranth's scripts would leave out what happens between the tools
        del files["build_top.sh"], files["build_top.bat"]
    files["registers.json"] = json.dumps({
        "registers": [dataclasses.asdict(r) for r in REGISTERS.values()],
        "identity": config.identity()}, indent=1)
    json.dump(files, sys.stdout)


# Tools

def _tools(board):
    """Versions of the tools that a build of the board runs, by name."""
    names = {"ecp5": ("yosys", "nextpnr-ecp5", "ecppack"), "xilinx7": ("yosys",)}[board.family]
    versions = {"amaranth": version("amaranth")} | {name: tool_version(name) for name in names}
    if board.family == "xilinx7" and shutil.which("vivado"):
        versions["vivado"] = run([tool("vivado"), "-version"], ".").splitlines()[0]
    return versions


def _run(command, work):
    """Run a tool; what it said goes to a log, why it failed into one line."""
    name = command[0]
    try:
        run([tool(name), *command[1:]], work, log=f"{name}.log")
    except BuildError as error:
        lines = str(error).splitlines()
        raise BuildError(f"{name}: {next((x for x in lines if 'ERROR' in x), lines[-1])}") from None


def _ecp5(commands, work, steps, config):
    """Synthesise, place, route and pack; returns what the report says of it."""
    for title, command in zip(("synthesise", "place and route", "pack"), commands):
        with steps(title):
            _run(command, work)
            if title == "synthesise":
                free_carries(work / "top.json")
                if floorplan.is_full(config.engine):
                    floorplan.fix_block_rams(work / "top.json", config.engine)
    found = json.loads((work / "timing.json").read_text())
    used = {cell: n["used"] for cell, n in found["utilization"].items()}
    # `clk` is the core's; the PLL's own, which clocks two registers, is never the slower.
    path = next(p["path"] for p in found["critical_paths"]
                if p["from"] == p["to"] == "posedge clk")
    register = lambda cell: re.split(r"_(?:TRELLIS|LUT4|CCU2C|PFUMX|L6MUX21)_", cell)[0]
    return {
        "fmax_mhz": round(found["fmax"]["clk"]["achieved"], 2),
        "timing_met": all(f["achieved"] >= f["constraint"] for f in found["fmax"].values()),
        "critical_path": {"from": register(path[0]["from"]["cell"]),
                          "to": register(path[-1]["to"]["cell"]),
                          "ns": round(sum(step["delay"] for step in path), 2)},
        "comb": used["TRELLIS_COMB"], "ff": used["TRELLIS_FF"], "bram": used.get("DP16KD", 0),
        "dsp": used.get("MULT18X18D", 0), "bitstream": "top.bit"}


def _xilinx7(commands, work, steps, config):
    """Estimate the utilisation with Yosys and, where Vivado is installed, run it."""
    with steps("synthesise"):
        _run(["yosys", "-q", "-l", "yosys.rpt", "utilisation.ys"], work)
    found = json.loads((work / "utilisation.json").read_text())["design"]["num_cells_by_type"]
    result = {
        "fmax_mhz": None, "timing_met": None, "critical_path": None,
        **xilinx7_area(found), "bitstream": None}
    if shutil.which("vivado"):
        with steps("Vivado"):
            _run(commands[0], work)
        result |= _vivado_reports(work, config.clock_hz) | {"bitstream": "top.bit"}
    return result


def _vivado_reports(work, clock_hz):
    """Clock and area as Vivado reports them."""
    def number(report, pattern):
        found = re.search(pattern, (work / report).read_text(), re.M)
        if found is None:
            raise BuildError(f"Vivado's {report} is not as expected: no {pattern}")
        return float(found[1])

    slack = number("top_timing.rpt", r"WNS\(ns\).*\n.*\n\s*(-?\d+\.\d+)")
    used = lambda row: number("top_utilization_place.rpt", rf"^\|\s*{row}\s*\|\s*([\d.]+)")
    return {"fmax_mhz": round(1e3 / (1e9 / clock_hz - slack), 2), "timing_met": slack >= 0,
            "lut": int(used("Slice LUTs")), "ff": int(used("Slice Registers")),
            "bram": used("Block RAM Tile"), "dsp": int(used("DSPs"))}


_FLOWS = {"ecp5": _ecp5, "xilinx7": _xilinx7}


# Builds

def describe(board, config):
    """What is known of a build before it: board, engine, peak rates, memory, link.

    ``macs_w2`` are multiply-accumulates per cycle at two code bits per weight, of ``kmeans`` at
    those of the engine, of ``sq`` with low weights of four bits; ``gops_w2`` counts a
    multiplication and an addition as two operations.  Peaks of ``sq`` are named by the matrices
    with the most high weights that have them.
    """
    engine = config.engine
    if engine.signed_sums and not engine.sparse:
        peak = {f"W{bits}": engine.peak_macs(bits) for bits in (1, 2, 4, 8)}
        per_weight = 2
    elif engine.sparse:
        peak = {}
        for low in (2, 3, 4):
            beats = max(low, engine.column_beats)
            high = min(beats * engine.high_lanes, engine.bank // 2)
            name = f"{engine.bank}-(8/{low})-{1 - high / engine.bank:.10g}"
            peak[name] = engine.peak_macs(beats)
        per_weight = 4
    elif engine.encodes:
        peak = {f"W{engine.b // engine.v}": engine.peak_macs()}
        per_weight = 1
    else:
        peak = {f"m{codebooks}": engine.peak_macs(codebooks) for codebooks in (1, 2, 3, 4)}
        per_weight = 2 * engine.v / engine.b    # codebooks of two code bits per weight
    macs = engine.peak_macs(per_weight)
    return {
        "board": board.name, "device": board.device, "device_digest": config.digest,
        "engine": engine.as_dict(), "clock_hz": config.clock_hz, "peak_macs": peak,
        "macs_w2": macs, "gops_w2": round(2 * macs * config.clock_hz / 1e9, 3),
        "memory": {"kind": config.memory, "bytes": config.memory_beats * engine.beat_bytes,
                   "bytes_per_second": engine.beat_bytes * config.clock_hz},
        "link": {"baud": BAUDS[0]}, "available": dict(board.available)}


def build(board, config, *, seed=1, out=None, allow_timing_fail=False, steps=None):
    """Build a device for a board; from the cache if it was built before.

    Parameters
    ----------
    board : Board
        From :data:`boards.BOARDS`.
    config : DeviceConfig
        Usually from the board's `config`.
    seed : int
        Of placement.
    out : path, optional
        Directory for the results; those of an earlier build there are replaced.
    allow_timing_fail : bool
        Keep a bitstream that is slower than its clock.
    steps : callable, optional
        ``steps(title)`` gives a context manager around each step.

    Returns
    -------
    dict
        The report, see ``report.json``.

    Raises
    ------
    BuildError
        A tool failed, the device does not fit, or the clock is not reached; what there is of
        logs and reports is in `out` nevertheless.
    """
    steps = steps or (lambda title: nullcontext())
    board.clock(config.clock_hz)    # a clock that the PLL cannot make is known now
    start = time.monotonic()
    with steps("elaborate"):
        files = elaborate(board, config, seed=seed)
    tools = _tools(board)
    digest = _digest(files, tools)
    # Another version of what follows may build or report otherwise.
    flow = (describe, ignore_input, free_carries, floorplan, _ecp5, _xilinx7, _vivado_reports)
    home = cache_root() / "build" / f"{board.name}-{_digest(digest, *map(getsource, flow))}"
    if not (home / "report.json").exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent, ignore_cleanup_errors=True) as work:
            work = Path(work) / "work"
            work.mkdir()
            for name, content in files.items():
                (work / name).write_text(content)
            try:
                commands = json.loads(files["build_top.json"])["commands"]
                report = describe(board, config) | {"digest": digest, "seed": seed}
                report |= _FLOWS[board.family](commands, work, steps, config)
            except BuildError:
                _deliver(work, out)
                raise
            report |= {"tools": tools, "seconds": round(time.monotonic() - start, 1)}
            (work / "report.json").write_text(json.dumps(report, indent=1) + "\n")
            for pattern in _INTERMEDIATE:
                for path in work.glob(pattern):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            try:
                work.rename(home)
            except OSError:         # somebody else built the same
                pass
    report = json.loads((home / "report.json").read_text())
    slow = report["timing_met"] is False and not allow_timing_fail
    _deliver(home, out, but=("top.bit", "top.svf", "top.bin") if slow else ())
    for name, n in board.available.items():
        if report[name] > n:
            raise BuildError(f"the device does not fit: it takes {report[name]} {name.upper()} "
                             f"of {n}; use fewer lanes or rows")
    if slow:
        raise BuildError(f"timing not met: {report['fmax_mhz']:.1f} MHz of "
                         f"{config.clock_hz / 1e6:g}; use a lower --clock or another --seed")
    return report


def _digest(*content):
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _deliver(source, out, but=()):
    """Copy results to a directory in which nothing of an earlier build's stays."""
    if out is None:
        return
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for stale in ("report.json", "top.bit", "top.svf", "top.bin"):
        (out / stale).unlink(missing_ok=True)
    for path in Path(source).iterdir():
        if path.is_file() and path.name not in but:
            shutil.copy2(path, out / path.name)


# Command line

def _hertz(text):
    hertz = float(text) * 1e6
    if not math.isfinite(hertz):        # round would raise what argparse does not catch
        raise ValueError
    return round(hertz)


_megahertz = commandline.kind("number of MHz", _hertz)
_kibibytes = commandline.kind("number of KiB", lambda text: int(text) * 1024)


def _parser(boards):
    parser = commandline.Parser(
        "python -m hdl.build", examples=_EXAMPLES,
        description="Build an accelerator for a board: to a bitstream where open tools can, to a "
                    "Vivado project elsewhere.")
    parser.add_argument("--board", required=True, choices=list(boards.BOARDS), help="what for")
    parser.add_argument("--size", default="default", choices=_SIZES,
                        help="tiny builds in a minute; max, the largest that was routed and "
                             "meets timing, in most of an hour (default: %(default)s)")
    parser.add_argument("--format", choices=FORMATS, help="weight format (default: bitserial)")
    parser.add_argument("--lanes", type=int, help="instead of the size's: 16, 32, 64, 128, 256")
    parser.add_argument("--rows", type=int, help="tokens that share the codes: 1, 2, 4, 8, 16")
    parser.add_argument("--columns", type=int, help="output columns per cycle: 1, 2, 4")
    parser.add_argument("--bank", type=int, help="sq: weights of a bank: 32, 64, 128")
    parser.add_argument("--high-lanes", type=int,
                        help="sq: high weights of a bank that are multiplied per cycle: 1, 2, 4, "
                             "8, 16, 32")
    parser.add_argument("--sentinels", action="store_const", const=True,
                        help="sq: find where high weights lie from sentinels in the stream, which "
                             "is a tenth shorter; takes 1 or 2 high lanes")
    parser.add_argument("--side", choices=list(_SIDES),
                        help="sq: the operand in two precisions; activation serves the "
                             "static and the dynamic split (default: weight)")
    parser.add_argument("--memory", type=_kibibytes, metavar="KIB",
                        help="block RAM beside the engine; a power of two is the cheapest")
    parser.add_argument("--clock", type=_megahertz, metavar="MHZ",
                        help="core clock instead of the board's")
    parser.add_argument("--seed", type=int, default=1, help="of placement (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help="where the results go (default: "
                             "build/BOARD[-FORMAT][-activation|-sentinels]-SIZE)")
    parser.add_argument("--allow-timing-fail", action="store_true",
                        help="take a bitstream that is slower than its clock")
    parser.add_argument("--dry-run", action="store_true",
                        help="print the plan and an estimate of the resources")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def main(argv=None):
    """Run the command line.

    Parameters
    ----------
    argv : list of str, optional
        Arguments; those of the process by default.

    Returns
    -------
    int
        Exit status: 0 done, 1 failed, 2 bad usage.
    """
    boards = importlib.import_module("boards")
    parser = _parser(boards)

    def work(args):
        board = boards.find(args.board)
        changes = {name: getattr(args, name) for name in _ENGINE if getattr(args, name) is not None}
        if args.side and args.format != "sq":
            parser.error("--side is for --format sq")
        if args.bank is not None and args.format != "sq":
            parser.error("--bank is for --format sq")
        for name, given in (("--high-lanes", args.high_lanes), ("--sentinels", args.sentinels)):
            if given is not None and (args.format != "sq" or args.side == "activation"):
                parser.error(f"{name} is for --format sq with --side weight")
        changes |= _SIDES.get(args.side, {})
        try:
            config = board.config(
                args.size, clock_hz=args.clock, memory_bytes=args.memory, **changes)
            board.clock(config.clock_hz)
        except ArgumentError as error:
            parser.error(str(error))
        kind = "" if config.engine.format == "bitserial" else f"-{config.engine.format}"
        kind += "-activation" * (args.side == "activation") + "-sentinels" * bool(args.sentinels)
        out = args.out or Path("build") / f"{args.board}{kind}-{args.size}"
        if args.dry_run:
            report = describe(board, config) | {"estimate": estimate(config), "out": str(out)}
        else:
            with commandline.progress_steps() as steps:
                report = build(board, config, seed=args.seed, out=out, steps=steps,
                               allow_timing_fail=args.allow_timing_fail)
        commandline.print_summary(report, _rows(report, out), as_json=args.json)

    return commandline.run(parser, work, argv)


def _rows(report, out):
    """What the table of a report says: a list of (name, value)."""
    engine, memory = report["engine"], report["memory"]
    clock = f"{report['clock_hz'] / 1e6:g} MHz"
    sparse = engine["format"] == "sq" and engine["high_lanes"]
    bits = "8/4" if sparse else {"kmeans": engine["b"] // engine["v"]}.get(engine["format"], 2)
    size = ", ".join(f"{engine[name]} {name if engine[name] > 1 else name[:-1]}"
                     for name in ("lanes", "rows", "columns"))
    if engine["bank"]:
        size += f", banks of {engine['bank']}, " + (
            f"{engine['high_lanes']} high lane{'s' * (engine['high_lanes'] > 1)} each"
            + ", places from sentinels" * engine["sentinels"] if sparse
            else "activations in two precisions")
    rows = [
        ("board", f"{report['board']}: {report['device']}"),
        ("engine", f"{engine['format']}, {size}"),
        ("MACs per cycle", ", ".join(f"{name}: {round(n, 1):g}"
                                     for name, n in report["peak_macs"].items())),
        (f"GOPS at {bits} bits", f"{report['gops_w2']:g}"),
        ("memory", f"{memory['kind']}, {memory['bytes'] // 1024} KiB, "
                   f"{memory['bytes_per_second'] / 1e9:.2f} GB/s"),
        ("link", f"UART, {report['link']['baud']} baud")]
    used = report.get("estimate", report)
    about = "about " if "estimate" in report else ""
    for name, n in report["available"].items():
        taken = used["comb" if "estimate" in report and name == "lut" else name]
        rows.append((name.upper(), f"{about}{taken:g} of {n} ({100 * taken / n:.0f} %)"))
    if "estimate" in report:
        rows += [("clock", clock), ("would go to", str(out))]
    else:
        reached = report["fmax_mhz"]
        rows += [
            ("clock", clock + (f", {reached:g} MHz reached" if reached else
                               ", not checked: Vivado is not on PATH")),
            ("bitstream", str(out / report["bitstream"]) if report["bitstream"] else
             f"none; run build_top.sh in {out} where Vivado is"),
            ("digest", report["digest"]), ("time", f"{report['seconds']:g} s when it was built"),
            ("results", str(out))]
    return rows


if __name__ == "__main__":
    sys.exit(main())
