"""Boards: their clocks, pins and sizes, and that a device answers on a board's UART."""

import re
import struct
import subprocess
import sys
import zlib

import pytest
from amaranth.back import rtlil
from amaranth.sim import Simulator
from cobs import cobs

import boards
from boards.clock import ECP5, XILINX7, solve
from hdl.build import elaborate, estimate
from hdl.config import FORMATS, DeviceConfig
from hdl.errors import ArgumentError, ConfigError
from hdl.registers import MAGIC, REGISTERS, Space, base_of
from hdl.top import Top

EVERY = [(board, format, size) for board in boards.BOARDS
         for format, sizes in boards.BOARDS[board].sizes.items() for size in sizes]


def test_unknown_board_is_refused_with_the_known_ones():
    with pytest.raises(ArgumentError, match=r"one of arty, arty-100t, ulx3s, not 'vu9p'"):
        boards.find("vu9p")


def test_gateware_does_not_import_boards():
    done = subprocess.run([sys.executable, "-c", "import hdl.build, hdl.top, sys; "
                           "sys.exit('boards' in sys.modules or 'amaranth_boards' in sys.modules)"])
    assert done.returncode == 0


# Clocks: the arithmetic is that of the data sheets, written down again.

@pytest.mark.parametrize("mhz", [25, 37.5, 50, 60, 66.667, 75, 80, 100, 125, 140, 150, 187.5, 200])
def test_ecp5_pll_settings_are_legal(mhz):
    s = solve(ECP5, 25e6, mhz * 1e6)
    detector = 25 / s.input_divider
    output = detector * s.multiplier
    assert abs(output - mhz) < 50e-6 * mhz
    assert detector >= 3.125
    assert 400 <= output * s.output_divider <= 800


@pytest.mark.parametrize("mhz", [25, 50, 66.667, 80, 100, 112.5, 125, 140, 150, 162.5, 200])
def test_xilinx7_pll_settings_are_legal(mhz):
    s = solve(XILINX7, 100e6, mhz * 1e6)
    detector = 100 / s.input_divider
    assert abs(detector * s.multiplier / s.output_divider - mhz) < 50e-6 * mhz
    assert 19 <= detector <= 450
    assert 800 <= detector * s.multiplier <= 1600


@pytest.mark.parametrize("limits, source", [(ECP5, 25e6), (XILINX7, 100e6)])
def test_pll_error_names_frequencies_that_work(limits, source):
    with pytest.raises(ArgumentError, match="cannot make 137 MHz") as caught:
        solve(limits, source, 137e6)
    near = [float(f) for f in re.findall(r"([\d.]+) MHz", str(caught.value))[2:]]
    assert near[0] < 137 < near[1]
    for mhz in near:
        solve(limits, source, mhz * 1e6)


def test_pll_error_names_the_range():
    with pytest.raises(ArgumentError, match=r"it reaches 3\.125 to 400 MHz"):
        solve(ECP5, 25e6, 1e9)


# Sizes

@pytest.mark.parametrize("name, format, size", EVERY)
def test_sizes_are_legal_and_plausible(name, format, size):
    board = boards.find(name)
    config = board.config(size, format=format)
    assert config.engine.format == format
    assert config.engine.family == board.family
    chosen = board.sizes[format][size]
    clock = chosen.clock_hz or board.clock_hz
    assert (config.link, config.memory, config.clock_hz) == ("uart", "onchip", clock)
    assert config.memory_beats * config.engine.beat_bytes == chosen.memory_bytes
    board.clock(clock)
    guess = estimate(config)
    assert all(guess[{"lut": "comb"}.get(n, n)] <= most for n, most in board.available.items())


@pytest.mark.parametrize("name, format, size", EVERY)
def test_sizes_can_be_elaborated(name, format, size):
    config = boards.find(name).config(size, format=format)
    assert "module" in rtlil.convert(Top(config), emit_src=False)


@pytest.mark.parametrize("name", boards.BOARDS)
@pytest.mark.parametrize("format", FORMATS)
def test_larger_sizes_do_more(name, format):
    board = boards.find(name)
    tiny, default, most = (board.config(s, format=format).engine.peak_macs()
                           for s in ("tiny", "default", "max"))
    assert tiny < default < most


def test_engine_fields_can_be_changed():
    config = boards.find("ulx3s").config("tiny", lanes=64, rows=2, clock_hz=25_000_000,
                                         memory_bytes=32768)
    assert (config.engine.lanes, config.engine.rows, config.clock_hz) == (64, 2, 25_000_000)
    assert config.memory_beats == 1024 and config.engine.address_bits == 10
    with pytest.raises(ConfigError, match="lanes must be one of"):
        boards.find("ulx3s").config("tiny", lanes=48)
    with pytest.raises(ConfigError, match="group sums of 19 to 25 bits, not of 15"):
        boards.find("ulx3s").config("tiny", scaler_dsps=1)


# What reaches the tools

@pytest.fixture(scope="module")
def files():
    """Files of the tiny devices, by board."""
    return {name: elaborate(board, board.config("tiny")) for name, board in boards.BOARDS.items()}


def cells(text, kind):
    """Parameters of the cells of a kind in RTLIL, a dictionary each."""
    bodies = re.findall(rf"^  cell \\{kind} .*?\n(.*?)^  end", text, re.M | re.S)
    return [dict(re.findall(r"parameter \\(\w+) (\S+)", body)) for body in bodies]


def test_ulx3s_pins_and_clock(files):
    lpf, rtlil = files["ulx3s"]["top.lpf"], files["ulx3s"]["top.il"]
    # From the board's schematic: oscillator, FTDI's TXD and RXD, LED D0.
    for port, site in [("clk25_0__io", "G2"), ("uart_0__rx__io", "M1"), ("uart_0__tx__io", "L4"),
                       ("led_0__io", "B2")]:
        assert f'LOCATE COMP "{port}" SITE "{site}";' in lpf
    assert 'FREQUENCY PORT "clk25_0__io" 25000000.0 HZ;' in lpf
    assert "MASTER_SPI_PORT=ENABLE" in lpf
    [pll] = cells(rtlil, "EHXPLLL")
    clock = 25_000_000 * int(pll["CLKFB_DIV"]) / int(pll["CLKI_DIV"])
    assert clock == boards.find("ulx3s").clock_hz
    assert len(cells(rtlil, "DCCA")) == 1


@pytest.mark.parametrize("name, part", [("arty", "xc7a35ticsg324-1L"),
                                        ("arty-100t", "xc7a100ticsg324-1L")])
def test_arty_pins_and_clock(files, name, part):
    found = files[name]
    assert boards.find(name).device == part and f"-part {part}" in found["top.tcl"]
    for port, site in [("clk100_0__io", "E3"), ("uart_0__rx__io", "A9"), ("uart_0__tx__io", "D10"),
                       ("led_0__io", "H5")]:
        assert f'set_property LOC {site} [get_ports "{port}"]' in found["top.xdc"]
    assert 'create_clock -name clk100_0__io -period 10.0' in found["top.xdc"]
    pll = re.search(r"PLLE2_BASE #\((.*?)\) ", found["top.v"], re.S)[1]
    value = lambda name: int(re.search(rf"\.{name}\(32'd(\d+)\)", pll)[1])
    clock = 100e6 * value("CLKFBOUT_MULT") / value("DIVCLK_DIVIDE") / value("CLKOUT0_DIVIDE")
    assert clock == boards.find(name).clock_hz


# The device on the line

CLOCK = 8_000_000       # eight clocks a bit: the fewest that the UART takes


def frame(seq, op, count, address):
    body = struct.pack("<BBHQ", seq, op, count, address)
    return cobs.encode(body + struct.pack("<I", zlib.crc32(body))) + b"\0"


def test_device_answers_on_its_uart():
    board = boards.find("ulx3s")
    config = board.config("tiny", family="portable")
    config = DeviceConfig(engine=config.engine, memory="onchip", memory_beats=256, link="uart",
                          clock_hz=CLOCK)
    device = Top(config)
    bit = CLOCK // 1_000_000
    received = bytearray()

    async def host(ctx):
        ctx.set(device.rx, 1)
        await ctx.tick().repeat(4 * bit)
        for request in (frame(1, 0, 0, 0),
                        frame(2, 1, 1, base_of(Space.REGISTERS) + REGISTERS["MAGIC"].offset)):
            for byte in request:
                for level in (0, *(byte >> i & 1 for i in range(8)), 1):
                    ctx.set(device.rx, level)
                    await ctx.tick().repeat(bit)
            before = received.count(0)
            for _ in range(400):
                await ctx.tick().repeat(bit)
                if received.count(0) > before:
                    break

    async def line(ctx):
        while True:
            await ctx.negedge(device.tx)
            await ctx.tick().repeat(bit // 2)
            byte = 0
            for i in range(8):
                await ctx.tick().repeat(bit)
                byte |= ctx.get(device.tx) << i
            await ctx.tick().repeat(bit)
            assert ctx.get(device.tx) == 1
            received.append(byte)

    simulator = Simulator(device)
    simulator.add_clock(1 / CLOCK)
    simulator.add_testbench(host)
    simulator.add_testbench(line, background=True)
    simulator.run()
    answers = [cobs.decode(bytes(part)) for part in received.split(b"\0")[:-1]]
    assert all(zlib.crc32(a[:-4]) == struct.unpack("<I", a[-4:])[0] for a in answers)
    hello, magic = answers
    assert hello[:2] == bytes([1, 0]) and magic[:2] == bytes([2, 0])
    assert struct.unpack("<I", magic[4:8])[0] == MAGIC
