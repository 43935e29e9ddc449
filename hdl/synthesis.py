"""Synthesis and place-and-route with open tools: Yosys and nextpnr, native or YoWASP.

Results are cached by a digest of the input, the options and the tool versions, because a run takes
minutes and always gives the same.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from amaranth.back import rtlil
from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.errors import BuildError

__all__ = ["Bench", "Result", "estimate_xilinx7", "free_carries", "ignore_input",
           "place_and_route", "tool", "tool_version", "xilinx7_area"]

SPEED = 6
DEVICE = "85k"
PACKAGE = "CABGA756"
_FLOW = "6"    # changes when the steps below do
PLACE = ("--placer-heap-timingweight", "40", "--tmg-ripup")
"""Options of nextpnr: timing counts four times as much as by default.  On a core of 64 lanes the
median of three seeds rose from 186 to 195 MHz; the target frequency makes no difference."""


def cache_root():
    """Directory of everything that can be built again; ``$LUTRA_CACHE`` or the user's cache."""
    root = os.environ.get("LUTRA_CACHE")
    if root:
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lutra"


@cache
def tool(name):
    """Path of a tool: native if on PATH, else its YoWASP form; BuildError if neither is there."""
    beside = Path(sys.executable).with_name(f"yowasp-{name}")
    found = shutil.which(name) or (str(beside) if beside.exists() else None) or \
        shutil.which(f"yowasp-{name}")
    if found is None:
        raise BuildError(f"{name} is needed and neither {name} nor yowasp-{name} is installed: "
                         "pip install 'lutra[synth]'")
    return found


@cache
def tool_version(name):
    """A tool's version: the last line it prints (YoWASP's first call prints more)."""
    done = subprocess.run([tool(name), "-V" if name == "yosys" else "--version"],
                          capture_output=True, text=True)
    return (done.stdout + done.stderr).strip().splitlines()[-1]


class Bench(wiring.Component):
    """A design whose inputs come from a shift register and whose outputs leave through registers.

    So it needs one input pin and has no I/O paths.  Costs no LUT up to 128 output bits; of what is
    beyond, a bit leaves as the exclusive or of several, a third of a LUT per bit.
    """

    PINS = 128

    def __init__(self, design):
        self.design = design
        super().__init__({"i": In(1), "o": Out(self.PINS)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.design = design = self.design
        inputs, outputs = [], []
        for _, member, value in design.signature.flatten(design):
            (inputs if member.flow is In else outputs).append(Value.cast(value))
        chain = Signal(sum(len(v) for v in inputs) + 1)
        m.d.sync += chain.eq(Cat(self.i, chain))
        m.d.comb += Cat(*inputs).eq(chain)
        level = list(Cat(*outputs))
        # A register at the design and one at the pin, wherever that is.
        for _ in range(2):
            registers = Signal(len(level))
            m.d.sync += registers.eq(Cat(*level))
            # Neighbours are of one bus; those far apart are not copies of each other.
            fold = -(-len(registers) // self.PINS)
            stride = -(-len(registers) // fold)
            level = [Cat(registers[i::stride]).xor() for i in range(stride)]
        m.d.comb += self.o.eq(registers)
        return m


@dataclass(frozen=True)
class Result:
    """What place-and-route found.

    Attributes
    ----------
    comb, ff, ebr, dsp : int
        TRELLIS_COMB (look-up tables, carry and RAM cells included), flip-flops, block RAMs,
        18 x 18 multipliers.
    mhz : float
        Highest clock frequency.
    seed : int
    """

    comb: int
    ff: int
    ebr: int
    dsp: int
    mhz: float
    seed: int


def run(command, work, *, log=None):
    """Run a tool in a directory; BuildError with the end of its output if it fails."""
    environment = dict(os.environ, PYTHONHASHSEED="0")
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, env=environment)
    if log:
        (Path(work) / log).write_text(done.stdout + done.stderr)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise BuildError(f"{Path(command[0]).name} failed:\n{tail}")
    return done.stdout + done.stderr


def synthesize(design, *, name="top", options=""):
    """Netlist of a component for ECP5, from the cache or from Yosys.

    Returns
    -------
    Path
        Directory with ``top.json`` and ``yosys.log``.
    """
    text = rtlil.convert(design, name=name, emit_src=False)
    identity = "\0".join((text, options, tool_version("yosys"), _FLOW))
    key = hashlib.sha256(identity.encode()).hexdigest()
    home = cache_root() / "synth" / key[:20]
    if not (home / "top.json").exists():
        work = home.with_name(f"{home.name}.{os.getpid()}")
        work.mkdir(parents=True, exist_ok=True)
        (work / "top.il").write_text(text)
        # A read that collides with a write may return anything: ping-pong banks never collide.
        script = (f"read_rtlil top.il; hierarchy -top {name}; proc; flatten; memory_collect; "
                  f"synth_ecp5 {options} -top {name} -json top.json; stat")
        run([tool("yosys"), "-q", "-l", "yosys.log", "-p", script], work)
        free_carries(work / "top.json")
        home.parent.mkdir(parents=True, exist_ok=True)
        try:
            work.rename(home)
        except OSError:
            shutil.rmtree(work, ignore_errors=True)
    return home


def ignore_input(init, pin):
    """INIT of a LUT4 that does not look at input `pin` (0 is A) and takes it for 0."""
    return sum((init >> (i & ~(1 << pin)) & 1) << i for i in range(16))


def free_carries(path):
    """Free the carry chains in a netlist of what nextpnr would spend cells and wires on.

    Yosys ties every CCU2C input that is not connected to 0 and leaves a net at every COUT;
    nextpnr then spends cells to feed the constant in and the dangling carry out.  A chain of
    :mod:`hdl.parts.adder` makes its first carry itself (A = C, B = D = 0 at position 0), so that
    its CIN does not matter; a COUT that nothing reads never does.

    A LUT input of a CCU2C that is 0 gets that 0 through the fabric, from one cell for the whole
    chip; one that is 1 needs no wire.  So inputs that are 0 become 1, and their LUT ignores them.
    """
    netlist = json.loads(path.read_text())
    for module in netlist["modules"].values():
        readers = Counter(
            bit for cell in module["cells"].values()
            for port, bits in cell["connections"].items()
            if cell["port_directions"].get(port) == "input" for bit in bits)
        readers.update(bit for port in module["ports"].values() if port["direction"] == "output"
                       for bit in port["bits"])
        for cell in module["cells"].values():
            if cell["type"] != "CCU2C":
                continue
            pins = cell["connections"]
            guarded = pins["A0"] == pins["C0"] and pins["B0"] == pins["D0"] == ["0"]
            if guarded and pins.get("CIN") in (["0"], ["x"]):
                pins["CIN"] = ["x"]
            if not any(readers[bit] for bit in pins.get("COUT", ())):
                pins["COUT"] = ["x"]
            for half in "01":
                init = int(cell["parameters"][f"INIT{half}"], 2)
                for pin, name in enumerate("ABCD"):
                    if pins[name + half] == ["0"]:
                        pins[name + half] = ["1"]
                        init = ignore_input(init, pin)
                cell["parameters"][f"INIT{half}"] = f"{init:016b}"
    path.write_text(json.dumps(netlist))


def xilinx7_area(cells):
    """Look-up tables, flip-flops, block RAMs of 36 kbit and DSPs of counted 7-series cells: a dict.
    """
    count = lambda pattern: sum(n for cell, n in cells.items() if re.fullmatch(pattern, cell))
    return {
        "lut": (count(r"LUT[1-6](_2)?|SRL\w+|RAM(32|64)X1S") + 2 * count(r"RAM(32|64)X1D")
                + 4 * count(r"RAM(32|64)M|RAM128X1D")),
        "ff": count(r"FD\w+"), "bram": count("RAMB36E1") + count("RAMB18E1") / 2,
        "dsp": count("DSP48E1")}


def estimate_xilinx7(design):
    """Area of a component on a 7-series device as Yosys sees it, neither packed nor placed.

    Parameters
    ----------
    design : Component
        Usually a :class:`Bench`.

    Returns
    -------
    dict
        As of :func:`xilinx7_area`.
    """
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "top.il").write_text(rtlil.convert(design, name="top", emit_src=False))
        # Nets are split as in hdl/build.py.
        run([tool("yosys"), "-q", "-p", "read_rtlil top.il; synth_xilinx -flatten -family xc7 "
             "-top top -run begin:map_luts; splitnets; synth_xilinx -flatten -family xc7 -top top "
             "-run map_luts:; tee -q -o cells.json stat -json -tech xilinx"], work)
        found = json.loads((Path(work) / "cells.json").read_text())
    return xilinx7_area(found["design"]["num_cells_by_type"])


def place_and_route(design, *, seed=1, mhz=200, options=""):
    """Place and route a component out of context on an LFE5U-85F of speed 6.

    Parameters
    ----------
    design : Component
        Usually a :class:`Bench`.
    seed : int
    mhz : float
        Clock that the tool aims for.

    Returns
    -------
    Result
    """
    home = synthesize(design, options=options)
    mark = home / f"pnr_{seed}_{mhz}.json"
    if not mark.exists():
        report = f"report_{seed}_{mhz}.json"
        run([tool("nextpnr-ecp5"), "--85k", "--package", PACKAGE, "--speed", str(SPEED),
             "--json", "top.json", "--freq", str(mhz), "--seed", str(seed), *PLACE,
             "--timing-allow-fail", "--report", report], home, log=f"pnr_{seed}_{mhz}.log")
        found = json.loads((home / report).read_text())
        log = (home / f"pnr_{seed}_{mhz}.log").read_text()
        used = {cell: int(n) for cell, n in re.findall(r"(\w+):\s+(\d+)/\s*\d+\s+\d+%", log)}
        clock = max(f["achieved"] for f in found["fmax"].values())
        result = Result(comb=used["TRELLIS_COMB"], ff=used["TRELLIS_FF"],
                        ebr=used.get("DP16KD", 0), dsp=used.get("MULT18X18D", 0),
                        mhz=round(clock, 1), seed=seed)
        mark.write_text(json.dumps(asdict(result)))
    return Result(**json.loads(mark.read_text()))
