"""``python -m host.offload``, on a small simulated device."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import host
import sim.golden
from host.cli import offload

DEVICE = "sim:?lanes=32&n_tile=64&activation_bytes=1024&memory_mib=4"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A directory with weights w.npy, two tensors m.safetensors, q.safetensors and x.npy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUTRA_DEVICE", DEVICE)
    rng = np.random.default_rng(0)
    W = rng.standard_normal((24, 200), np.float32)
    np.save("w.npy", W)
    np.save("x.npy", rng.standard_normal((2, 3, 200), np.float32))
    np.save("calibration.npy", rng.standard_normal((50, 200), np.float32))
    safetensors.numpy.save_file({"up": W, "down": W.T.copy()}, "m.safetensors")
    host.quantize(W, bits=3, group_size=64).save("q.safetensors")
    return W


def run(*args):
    return offload.main([str(arg) for arg in args])


def summary(capsys, *args):
    assert run(*args, "--json") == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


class TestDone:
    def test_float_matrix_is_quantised_and_multiplied(self, files, capsys):
        found = summary(capsys, "w.npy", "--bits", 2, "--group-size", 64, "--scheme", "asymmetric",
                        "--input", "x.npy", "--check", "--out", "y.npy")
        x, y = np.load("x.npy"), np.load("y.npy")
        q = host.quantize(files, bits=2, group_size=64, scheme="asymmetric")
        assert y.dtype == np.float32 and y.shape == (2, 3, 24)
        assert np.array_equal(y, sim.golden.matmul(q, x))
        exact = x.astype(float) @ files.T.astype(float)
        assert found["relative_error"] == pytest.approx(
            np.linalg.norm(y - exact) / np.linalg.norm(exact))
        assert found["shape"] == [24, 200] and found["tokens"] == 6
        assert found["config"]["bits"] == 2 and found["config"]["scheme"] == "asymmetric"
        assert found["bits_per_weight"] == q.bits_per_weight
        assert found["checked"] is True and found["out"] == "y.npy"
        assert found["device"] == DEVICE and found["engine"]["lanes"] == 32

    def test_figures_follow_from_each_other(self, files, capsys):
        found = summary(capsys, "w.npy", "--bits", 2, "--random", 5)
        macs, seconds = 5 * 24 * 200, found["cycles"] / 200e6
        # 128 one-bit weights are gathered per cycle; at least two planes of two K tiles.
        assert found["peak_macs_per_cycle"] == 64
        assert found["cycles"] > found["gather_cycles"] >= 5 * 24 * 2 * 2
        assert found["utilization"] == pytest.approx(macs / 64 / found["cycles"])
        assert found["device_seconds"] == pytest.approx(seconds)
        assert found["gops"] == pytest.approx(2 * macs / seconds / 1e9)
        assert found["peak_gops"] == pytest.approx(2 * 64 * 0.2)
        assert found["read_bytes_per_second"] == pytest.approx(found["bytes_read"] / seconds)
        assert found["bytes_read"] > 5 * 24 * 200 * 2 / 8

    def test_slow_memory_costs_cycles(self, files, capsys):
        fast, slow = (summary(capsys, "w.npy", "--device", f"{DEVICE}&memory={memory}")
                      for memory in ("ideal", "ddr3"))
        assert slow["cycles"] > 1.5 * fast["cycles"]
        assert slow["read_bytes_per_second"] < 1.6e9 < fast["read_bytes_per_second"]

    def test_random_tokens_follow_the_seed(self, files):
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            assert run("w.npy", "--random", 2, "--seed", seed, "--out", name) == 0
        a, b, c = map(np.load, "abc")
        assert a.shape == (2, 24) and np.array_equal(a, b) and not np.array_equal(a, c)

    def test_quantised_file(self, files, capsys):
        found = summary(capsys, "q.safetensors", "--input", "x.npy", "--check", "--out", "y.npy")
        assert found["config"]["bits"] == 3
        assert found["reference"] == "dequantised matrix" and found["relative_error"] < 0.02
        assert np.array_equal(np.load("y.npy"),
                              sim.golden.matmul(host.load("q.safetensors"), np.load("x.npy")))

    def test_tensor_of_a_file_with_calibration(self, files, capsys):
        found = summary(capsys, "m.safetensors", "--tensor", "up", "--bits", 2, "--calibration",
                        "calibration.npy", "--input", "x.npy", "--out", "y.npy")
        q = host.quantize(files, bits=2, calibration=np.load("calibration.npy"))
        assert found["config"]["method"] == "gptq" and found["tensor"] == "up"
        assert np.array_equal(np.load("y.npy"), sim.golden.matmul(q, np.load("x.npy")))

    @pytest.mark.parametrize("dtype", [np.float16, np.float64])
    def test_other_floats(self, files, dtype):
        x = np.load("x.npy").astype(dtype)
        np.save("x.npy", x)
        assert run("q.safetensors", "--input", "x.npy", "--check", "--out", "y.npy") == 0
        q = host.load("q.safetensors")
        assert np.array_equal(np.load("y.npy"), sim.golden.matmul(q, x.astype(np.float32)))

    def test_table(self, files, capsys):
        assert run("m.safetensors", "--tensor", "up", "--bits", 2, "--check") == 0
        out, err = capsys.readouterr()
        assert err == ""
        for text in ("m.safetensors [up]", "24 x 200", "bits 2", "memory read", "GB/s",
                     "32 lanes, rows 1, columns 1 at 200 MHz", "every output equal", "nowhere",
                     "against the float matrix"):
            assert text in out
        assert re.search(r"utilisation +│ +\d+\.\d% of 64 MACs per cycle", out)

    def test_table_says_what_was_not_compared(self, files, capsys):
        assert run("q.safetensors") == 0
        out = capsys.readouterr().out
        assert "not compared" in out and "against the dequantised matrix" in out

    def test_help(self, capsys):
        assert run("--help") == 0
        out = capsys.readouterr().out
        assert "examples:" in out and "python -m host.offload layer.npy --device" in out

    def test_as_a_module(self, files):
        command = [sys.executable, "-m", "host.offload"]
        done = subprocess.run([*command, "q.safetensors", "--check", "--json"],
                              capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == "" and json.loads(done.stdout)["checked"]
        assert subprocess.run(command, capture_output=True).returncode == 2


class TestCalls:
    """Long matmuls are cut into several calls, for the progress bar."""

    def test_cut_or_not_is_the_same(self, files, devices, monkeypatch):
        layer = devices(DEVICE).load(host.load("q.safetensors"))
        x = np.random.default_rng(0).standard_normal((7, 200), np.float32)
        seen = []
        whole, once = offload.multiply(layer, x)
        monkeypatch.setattr(offload, "_CALL_MACS", 3 * 24 * 200)
        parts, several = offload.multiply(layer, x, lambda *at: seen.append(at))
        # Of every call: activations sent, results received.
        assert [total for _, total in seen] == 6 * [7] and sorted(seen) == seen
        assert [done for done, _ in seen[1::2]] == [3, 6, 7]
        assert np.array_equal(parts, whole)
        assert several["gather_cycles"] == once["gather_cycles"]
        assert several["cycles"] > once["cycles"] and several["tokens"] == once["tokens"] == 7
        assert several["peak_macs_per_cycle"] == once["peak_macs_per_cycle"]
        for stats in (once, several):
            assert stats["utilization"] == pytest.approx(
                7 * 24 * 200 / stats["peak_macs_per_cycle"] / stats["cycles"])


class TestRefused:
    def check(self, capsys, status, message, *args):
        assert run(*args) == status
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.endswith("\n")
        assert err.startswith("python -m host.offload: error: ") and message in err

    @pytest.mark.parametrize("args, message", [
        ((), "the following arguments are required: FILE"),
        (("w.npy", "--nonsense"), "unrecognized arguments: --nonsense"),
        (("w.npy", "--bits", "9"), "bits must be 1..8, got 9"),
        (("w.npy", "--format", "fp4"), "invalid choice: 'fp4'"),
        (("w.npy", "--method", "gptq"), "--method gptq needs --calibration"),
        (("w.npy", "--tensor", "up"), "or a checkpoint, got w.npy"),
        (("w.npy", "--random", "0"), "--random must be at least 1, got 0"),
        (("w.npy", "--seed", "-1"), "--seed must not be negative, got -1"),
        (("w.npy", "--random", "2", "--input", "x.npy"), "not allowed with argument --random"),
        (("q.safetensors", "--bits", "2"), "--bits is for float matrices; q.safetensors is "),
        (("q.safetensors", "--group-size", "row"), "--group-size is for float matrices"),
        (("q.safetensors", "--tensor", "codes"), "--tensor is for float matrices"),
        (("w.npy", "--device", "fpga"), "a device URL must start with sim: or uart:"),
        (("w.npy", "--device", "sim:?rowz=3"), "unknown option rowz"),
        (("w.npy", "--device", "sim:?rows=3"), "rows must be one of"),
    ])
    def test_usage(self, files, capsys, args, message):
        self.check(capsys, 2, message, *args)

    @pytest.mark.parametrize("args, message", [
        (("nowhere.npy",), "nowhere.npy: cannot be read: "),
        (("nowhere.safetensors",), "nowhere.safetensors: cannot be read: "),
        (("w.txt",), "w.txt: must be a .npy or .safetensors file"),
        (("m.safetensors",), "--tensor must name one of its 2 tensors (down, up), got None"),
        (("w.npy", "--input", "nowhere.npy"), "nowhere.npy: cannot be read: "),
        (("w.npy", "--input", "w.npy", "--out", "nowhere/y.npy"), "directory does not exist"),
        (("w.npy", "--out", "."), ".: cannot be written: "),
        (("w.npy", "--calibration", "nowhere.npy"), "nowhere.npy: cannot be read: "),
        (("x.npy",), "W must have shape [N, K]"),
        (("m.safetensors", "--tensor", "down", "--input", "x.npy"),
         "x.npy: activations must have shape [..., 24] with nothing empty, got (2, 3, 200)"),
    ])
    def test_files(self, files, capsys, args, message):
        self.check(capsys, 1, message, *args)

    @pytest.mark.parametrize("x, message", [
        (np.zeros((0, 200), np.float32), "nothing empty, got (0, 200)"),
        (np.float32(1), "nothing empty, got ()"),
        (np.full((1, 200), np.inf, np.float32), "activations must be finite"),
        (np.ones((1, 200), np.int8), "activations must be float32 or float16, not int8"),
    ])
    def test_activations(self, files, capsys, x, message):
        np.save("x.npy", x)
        self.check(capsys, 1, message, "q.safetensors", "--input", "x.npy")

    @pytest.mark.parametrize("out, message", [
        (".", ".: cannot be written: it is a directory"),
        ("nowhere/y.npy", "nowhere/y.npy: its directory does not exist"),
        ("/proc/version", "/proc/version: cannot be written: no permission"),
    ])
    def test_outputs_are_refused_before_the_work(self, files, capsys, monkeypatch, out, message):
        monkeypatch.setattr(offload, "quantize", lambda *args, **options: pytest.fail("too late"))
        monkeypatch.setattr(offload.matrix.os, "access",
                            lambda path, mode: str(path) != "/proc/version")
        self.check(capsys, 1, message, "w.npy", "--out", out)

    @pytest.mark.parametrize("options", [(), ("--json",)])
    def test_outputs_that_overflow(self, files, capsys, tmp_path, options):
        np.save("w.npy", np.full((4, 8), 1e30))
        np.save("x.npy", np.full((1, 8), 1e30))
        self.check(capsys, 1, "4 of 4 outputs overflow float32", "w.npy", "--input", "x.npy",
                   "--out", "y.npy", *options)
        assert not (tmp_path / "y.npy").exists()

    def test_activations_beyond_float32(self, files, capsys):
        np.save("x.npy", np.full((1, 200), 1e300))
        self.check(capsys, 1, "activations must be finite", "q.safetensors", "--input", "x.npy")

    def test_damaged_quantised_file(self, files, capsys):
        path = Path("q.safetensors")
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        self.check(capsys, 1, "its content is damaged", "q.safetensors")

    def test_wrong_results_are_counted_and_not_written(self, files, capsys, tmp_path, monkeypatch):
        exact = sim.golden.matmul

        def wrong(q, x):
            y = exact(q, x)
            y[0, 5:7] = np.nextafter(y[0, 5:7], np.float32(np.inf))
            return y

        monkeypatch.setattr(sim.golden, "matmul", wrong)
        self.check(capsys, 1, "2 of 24 outputs differ from the golden model", "w.npy", "--check",
                   "--out", "y.npy")
        assert not (tmp_path / "y.npy").exists()

    def test_device_failure(self, files, capsys, monkeypatch):
        def fail(url):
            raise host.DeviceError("does not\nanswer")

        monkeypatch.setattr(offload, "open_device", fail)
        self.check(capsys, 1, "error: does not answer\n", "w.npy")


def test_engine_without_counters(files, capsys, monkeypatch):
    """Cycles of 0 give no rates, and the table says why."""
    multiply = offload.multiply
    zero = {"cycles": 0, "gather_cycles": 0, "bytes_read": 0, "bytes_written": 0,
            "utilization": 0.0}
    monkeypatch.setattr(offload, "multiply", lambda *args: (
        (result := multiply(*args))[0], result[1] | zero))
    found = summary(capsys, "q.safetensors")
    assert found["gops"] is None and found["read_bytes_per_second"] is None
    assert run("q.safetensors") == 0
    assert "this engine has no counters" in capsys.readouterr().out


def test_terminal_shows_what_goes_on(files, capsys, monkeypatch):
    def slow(url, progress):
        progress("compiling")
        return host.open(url)

    monkeypatch.setattr(offload, "open_device", slow)
    monkeypatch.setenv("FORCE_COLOR", "1")      # rich then takes stderr for a terminal
    assert run("w.npy", "--check", "--json") == 0
    err = capsys.readouterr().err
    for text in ("quantising", "building it: compiling", "uploading", "multiplying", "checking"):
        assert text in err
    assert re.search(r"uploading[^\n]*100%", err)
