"""The simulated device: links, waves, reconfiguration, URLs."""

import copy
import pickle
import re
import threading

import numpy as np
import pytest

import host
import sim.device
import sim.golden
from hdl.registers import Status
from tests.conftest import random_matrix
from tests.hdl.test_core import SMALL

UART = "sim:ulx3s?size=tiny&link=uart"


def check(device, rng, N, K, bits, group_size, scheme="symmetric"):
    q = random_matrix(rng, N, K, bits, group_size, scheme)
    x = rng.integers(-127, 128, (2, K))
    layer = device.load(q)
    assert np.array_equal(layer.integers(x), sim.golden.integers(q, x))
    layer.free()


@pytest.mark.timeout(240)
def test_a_board_through_its_uart_pins():
    with host.open(UART) as device:
        assert device.engine.lanes == 32
        check(device, np.random.default_rng(0), 20, 140, 2, 128)
        statistics = device.transport._client.statistics
        assert statistics.frames > 10
        # What the board cannot do is refused with what it would need.
        q = random_matrix(np.random.default_rng(0), 8, 128, 2, 128, "asymmetric")
        with pytest.raises(host.DeviceError, match=r"zero_points=False; .* need zero_points=True"):
            device.load(q)
        with pytest.raises(host.DeviceError, match=r"activation_bits=8; .* activation_bits=16"):
            device.load(random_matrix(np.random.default_rng(0), 8, 128, 2, 128, "symmetric")
                        ).integers(np.full((1, 128), 1000))
        with pytest.raises(host.CapacityError, match="beats"):
            device.load(random_matrix(np.random.default_rng(0), 600, 1200, 8, 128, "symmetric"))
        check(device, np.random.default_rng(1), 9, 5, 3, None)


def test_becomes_the_engine_that_a_matrix_needs():
    with host.open("sim:?lanes=32&n_tile=64&activation_bytes=1024&memory_mib=4") as device:
        rng = np.random.default_rng(0)
        first = random_matrix(rng, 20, 200, 2, 64, "symmetric")
        layer = device.load(first)
        generation = device.generation
        check(device, rng, 20, 200, 2, 32)
        assert device.generation == generation + 1 and device.engine.scale_points == 4
        x = rng.integers(-127, 128, (1, 200))
        assert np.array_equal(layer.integers(x), sim.golden.integers(first, x))


@pytest.mark.parametrize("error", [host.BuildError("no compiler"), KeyboardInterrupt()])
def test_a_failed_build_changes_nothing(monkeypatch, error):
    def build(*args, **options):
        raise error

    rng = np.random.default_rng(0)
    q = random_matrix(rng, 20, 200, 2, 64, "symmetric")
    x = rng.integers(-127, 128, (2, 200))
    with host.open(SMALL) as device:
        layer = device.load(q)
        before = device.engine, device.generation, device.transport.config
        with monkeypatch.context() as patch:
            patch.setattr(sim.device, "build", build)
            with pytest.raises(type(error)):
                device.load(random_matrix(rng, 20, 200, 2, 32, "symmetric"))
        assert before == (device.engine, device.generation, device.transport.config)
        assert np.array_equal(layer.integers(x), sim.golden.integers(q, x))
        check(device, rng, 20, 200, 2, 32)
        assert device.engine.scale_points == 4


def test_what_is_no_device_is_closed(monkeypatch):
    closed = []

    class Other(host.link.Transport):
        def read(self, address, nbytes):
            return bytes(nbytes)

        def write(self, address, data):
            pass

        def close(self):
            closed.append(self)

    with pytest.raises(host.DeviceError, match="register MAGIC must be"):
        host.Device(Other())
    assert len(closed) == 1


def test_threads_take_turns(devices):
    device = devices(SMALL)
    rng = np.random.default_rng(0)
    shared = random_matrix(rng, 30, 300, 2, 128, "symmetric")
    layer = device.load(shared)
    own = [random_matrix(rng, 20, 200, 3, 128, "symmetric") for _ in range(4)]
    failed = []

    def work(seed):
        rng = np.random.default_rng(seed)
        try:
            for _ in range(6):
                x = rng.integers(-127, 128, (3, 300))
                assert np.array_equal(layer.integers(x), sim.golden.integers(shared, x))
                y = rng.integers(-127, 128, (2, 200))
                mine = device.load(own[seed])      # dropped while others are at work
                assert np.array_equal(mine.integers(y), sim.golden.integers(own[seed], y))
                assert device.read_register("MAGIC") == 0x4C555452
        except BaseException as error:
            failed.append(error)

    before = device.memory.largest()
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert device.memory.largest() == before


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_devices_are_not_copied(devices, duplicate):
    device = devices(SMALL)
    layer = device.load(random_matrix(np.random.default_rng(0), 8, 128, 2, 128, "symmetric"))
    for thing in (device, layer, device.chain([layer])):
        with pytest.raises(host.ArgumentTypeError, match="cannot be copied or pickled"):
            duplicate(thing)


def test_memory_is_given_back(devices):
    device = devices(SMALL)
    rng = np.random.default_rng(0)
    before = device.memory.largest()
    q = random_matrix(rng, 64, 512, 8, 128, "symmetric")
    a, b = device.load(q), device.load(q)
    used = before - device.memory.largest()
    assert used > 0
    a.free()
    assert before - device.memory.largest() == used, "a second layer shares the image"
    del b
    assert device.memory.largest() == before
    with pytest.raises(host.DeviceError, match="freed"):
        a.integers(np.zeros((1, 512), np.int8))


@pytest.mark.parametrize("url, message", [
    ("sim:nowhere", "board must be one of"),
    ("sim:?lines=8", "unknown option lines"),
    ("sim:?rows=three", "rows must be a number"),
    ("sim:?rows=3", "rows must be one of"),
    ("sim:?memory=tape", "memory must be one of ideal, ddr3"),
    ("usb:1", "must start with sim: or uart:"),
    ("uart:/dev/does-not-exist", "/dev/does-not-exist"),
])
def test_bad_urls(url, message):
    with pytest.raises(host.LutraError, match=message):
        host.open(url)


@pytest.mark.parametrize("x, message", [
    (np.zeros((1, 127), np.float32), r"shape \[..., 128\]"),
    (np.full((1, 128), np.nan, np.float32), "NaN or infinity"),
    (np.zeros((1, 128)), "float32 or float16"),
])
def test_bad_activations(devices, x, message):
    device = devices(SMALL)
    layer = device.load(random_matrix(np.random.default_rng(0), 8, 128, 2, 128, "symmetric"))
    with pytest.raises(host.LutraError, match=message):
        layer(x)
    check(device, np.random.default_rng(0), 8, 128, 2, 128)


def test_zero_tokens_and_empty_batches(devices):
    device = devices(SMALL)
    q = random_matrix(np.random.default_rng(0), 8, 128, 2, 128, "symmetric")
    bias = np.arange(8.0)
    layer = device.load(q, bias=bias)
    assert np.array_equal(layer(np.zeros((2, 128), np.float32)), np.tile(bias, (2, 1)))
    assert layer(np.zeros((0, 128), np.float32)).shape == (0, 8)


def test_soft_reset_in_mid_program(devices):
    """The engine is usable after a reset at any point, with beats under way or not."""
    device = devices(SMALL + "&latency=40")
    rng = np.random.default_rng(0)
    q = random_matrix(rng, 40, 600, 4, 64, "asymmetric")
    layer = device.load(q)
    x = rng.integers(-127, 128, (3, 600))
    transport = device.transport
    wait = transport.wait
    for cycles in (1, 7, 30, 60, 100, 300, 700, 1500):
        transport.wait = lambda timeout, cycles=cycles: transport.model.step(cycles)
        try:
            layer.integers(x)
        except host.ProgramError:
            pass        # it was still running; `run` has reset it
        finally:
            transport.wait = wait
        device.reset()
        assert np.array_equal(layer.integers(x), sim.golden.integers(q, x)), cycles


def test_an_interrupted_program_is_stopped(devices, monkeypatch):
    def interrupt(timeout):
        raise KeyboardInterrupt

    device = devices(SMALL)
    q = random_matrix(np.random.default_rng(0), 40, 600, 4, 64, "asymmetric")
    layer = device.load(q)
    x = np.ones((3, 600), int)
    with monkeypatch.context() as patch:
        patch.setattr(device.transport, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            layer.integers(x)
    assert device.read_register("STATUS") != Status.RUNNING
    assert np.array_equal(layer.integers(x), sim.golden.integers(q, x))


def test_malformed_programs_leave_a_working_device(devices):
    from hdl.isa import Instruction

    device = devices(SMALL)
    cases = [
        ([Instruction.make("LMMA", columns=8, last=1)], "DEADLOCK"),
        ([Instruction.make("STORE")], "DEADLOCK"),
        ([Instruction.make("LMMA", columns=5)], "BAD_FIELD"),
        ([Instruction.make("LOAD", address=2**20)], "BAD_ADDRESS"),
    ]
    for program, name in cases:
        with pytest.raises(host.ProgramError, match=name):
            device.run(program)
        check(device, np.random.default_rng(0), 20, 200, 3, 128)


@pytest.mark.timeout(280)
def test_waves(tmp_path):
    """They name what is inside, and show every cycle."""
    path = tmp_path / "waves.vcd"
    small = ("lanes=32&n_tile=16&activation_bytes=512&activation_bits=8&zero_points=0&epilogue=0"
             "&counters=0&memory_mib=1")
    with host.open(f"sim:?{small}&trace={path}") as device:
        check(device, np.random.default_rng(0), 8, 30, 1, None)
        cycles = device.transport.model.cycle()
    header, end, changes = path.read_text().partition("$enddefinitions $end")
    assert end and cycles > 1000
    assert {"top", "bridge", "core", "control"} <= set(re.findall(r"\$scope module (\S+)", header))
    codes = {name: code
             for code, name in re.findall(r"\$var wire +1 (\S+) (\S+) \$end", header)}
    changes = changes.splitlines()
    assert changes.count("1" + codes["clk"]) == changes.count("0" + codes["clk"]) == cycles
    assert changes.count("1" + codes["memory__request__valid"]) > 1
    assert changes.count("1" + codes["memory__write__valid"]) > 1
