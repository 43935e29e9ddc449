"""``python -m host.quantize``."""

import json
import struct
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from ml_dtypes import bfloat16

from host.cli.quantize import main
from host.errors import FileError
from host.matrix import load
from host.quantizer import quantize


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A directory with weights w.npy, two tensors m.safetensors, and calibration x.npy."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    W = rng.standard_normal((12, 70), np.float32)
    np.save("w.npy", W)
    np.save("x.npy", rng.standard_normal((20, 70), np.float32))
    safetensors.numpy.save_file({"up": W.astype(bfloat16), "half": W.astype(np.float16),
                                 "ids": np.arange(4)}, "m.safetensors")
    safetensors.numpy.save_file({"only": W}, "one.safetensors")
    return W


def run(*args):
    return main([str(arg) for arg in args])


class TestDone:
    def test_writes_what_quantize_returns(self, files):
        assert run("w.npy", "--bits", 2, "--group-size", 32, "--out", "q.safetensors") == 0
        assert load("q.safetensors").digest == quantize(files, bits=2, group_size=32).digest

    def test_every_option(self, files, capsys):
        assert run("w.npy", "--format", "bitserial", "--bits", 3, "--group-size", "row",
                   "--scheme", "asymmetric", "--method", "gptq", "--calibration", "x.npy",
                   "--seed", 1, "--out", "q.safetensors", "--json") == 0
        x = np.load("x.npy")
        q = quantize(files, bits=3, group_size=None, scheme="asymmetric", calibration=x)
        assert load("q.safetensors").digest == q.digest
        summary = json.loads(capsys.readouterr().out)
        error = files.astype(float) - q.dequantize()
        assert summary.pop("seconds") >= 0
        assert summary == {
            "input": "w.npy", "tensor": None, "shape": [12, 70], "format": "bitserial",
            "config": {"bits": 3, "group_size": None, "scheme": "asymmetric", "method": "gptq"},
            "bits_per_weight": q.bits_per_weight, "code_bits_per_weight": 3.0,
            "relative_error": pytest.approx(np.linalg.norm(error) / np.linalg.norm(files)),
            "output_error": pytest.approx(np.linalg.norm(x @ error.T)
                                          / np.linalg.norm(x @ files.T), rel=1e-4),
            "digest": q.digest, "out": "q.safetensors"}

    def test_sensitivity(self, files):
        S = np.random.default_rng(1).random((12, 70))
        np.save("s.npy", S)
        assert run("w.npy", "--format", "kmeans", "--sensitivity", "s.npy",
                   "--out", "q.safetensors") == 0
        assert load("q.safetensors").digest == quantize(
            files, format="kmeans", sensitivity=S).digest
        assert run("w.npy", "--sensitivity", "s.npy") == 2

    def test_defaults(self, files, capsys):
        assert run("w.npy", "--json") == 0
        summary = json.loads(capsys.readouterr().out)
        assert summary["config"] == {"bits": 4, "group_size": 128, "scheme": "symmetric",
                                     "method": "rtn"}
        assert summary["out"] is None and summary["output_error"] is None

    @pytest.mark.parametrize("tensor, dtype", [("up", bfloat16), ("half", np.float16)])
    def test_safetensors(self, files, tensor, dtype):
        assert run("m.safetensors", "--tensor", tensor, "--out", "q.safetensors") == 0
        assert load("q.safetensors").digest == quantize(files.astype(dtype)).digest

    def test_only_tensor_needs_no_name(self, files):
        assert run("one.safetensors", "--out", "q.safetensors") == 0
        assert load("q.safetensors").digest == quantize(files).digest

    def test_table(self, files, capsys):
        assert run("m.safetensors", "--tensor", "up", "--calibration", "x.npy") == 0
        out, err = capsys.readouterr()
        for text in ("m.safetensors [up]", "12 x 70", "bits 4", "method gptq", "4.686", "4.000",
                     "relative weight error", "relative output error", "nowhere"):
            assert text in out
        assert err == ""

    def test_zero_matrix(self, files, capsys):
        np.save("zero.npy", np.zeros((2, 3)))
        assert run("zero.npy", "--json") == 0
        assert json.loads(capsys.readouterr().out)["relative_error"] == 0

    def test_help(self, capsys):
        assert run("--help") == 0
        out = capsys.readouterr().out
        assert "examples:" in out and "python -m host.quantize layer.npy" in out

    def test_as_a_module(self, files):
        done = subprocess.run([sys.executable, "-m", "host.quantize", "--help"],
                              capture_output=True, text=True, cwd=_root())
        assert done.returncode == 0 and "examples:" in done.stdout and done.stderr == ""
        done = subprocess.run([sys.executable, "-m", "host.quantize"],
                              capture_output=True, text=True, cwd=_root())
        assert done.returncode == 2


def _root():
    import host
    return host.__path__[0] + "/.."


class TestRefused:
    def check(self, capsys, status, message, *args):
        assert run(*args) == status
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.endswith("\n")
        assert err.startswith("python -m host.quantize: error: ") and message in err

    @pytest.mark.parametrize("args, message", [
        ((), "the following arguments are required: FILE"),
        (("w.npy", "--nonsense"), "unrecognized arguments: --nonsense"),
        (("w.npy", "--bits", "9"), "bits must be 1..8, got 9"),
        (("w.npy", "--bits", "two"), "invalid int value: 'two'"),
        (("w.npy", "--group-size", "33"), "group_size must be 32, 64, 128 or None"),
        (("w.npy", "--group-size", "column"), "a number or 'row'"),
        (("w.npy", "--scheme", "ternary", "--bits", "4"), "ternary weights have bits=2"),
        (("w.npy", "--scheme", "fp4"), "invalid choice: 'fp4'"),
        (("w.npy", "--format", "fp4"), "invalid choice: 'fp4'"),
        (("w.npy", "--method", "gptq"), "--method gptq needs --calibration"),
        (("w.npy", "--tensor", "up"),
         "--tensor needs a .safetensors file or a checkpoint, got w.npy"),
        (("w.npy", "--seed", "-1"), "--seed must not be negative, got -1"),
    ])
    def test_usage(self, files, capsys, args, message):
        self.check(capsys, 2, message, *args)

    @pytest.mark.parametrize("args, message", [
        (("nowhere.npy",), "nowhere.npy: cannot be read: "),
        (("nowhere.safetensors",), "nowhere.safetensors: cannot be read: "),
        (("w.txt",), "w.txt: must be a .npy or .safetensors file"),
        (("m.safetensors",), "--tensor must name one of its 3 tensors (half, ids, up), got None"),
        (("m.safetensors", "--tensor", "down"), "one of its 3 tensors (half, ids, up), got down"),
        (("m.safetensors", "--tensor", "ids"), "ids must be F16, BF16, F32 or F64, got I64"),
        (("w.npy", "--calibration", "nowhere.npy"), "nowhere.npy: cannot be read: "),
        (("w.npy", "--calibration", "w.npy", "--out", "nowhere/q"), "directory does not exist"),
        (("w.npy", "--out", "."), ".: cannot be written: "),
    ])
    def test_files(self, files, capsys, args, message):
        self.check(capsys, 1, message, *args)

    @pytest.mark.parametrize("dtype, bits", [("F8_E4M3", 8), ("F8_E5M2", 8), ("F8_E8M0", 8),
                                             ("F4", 4), ("U8", 8)])
    def test_tensors_that_numpy_lacks(self, files, capsys, tmp_path, dtype, bits):
        size = 2 * 4 * bits // 8
        head = json.dumps({"w": {"dtype": dtype, "shape": [2, 4], "data_offsets": [0, size]}})
        (tmp_path / "f8.safetensors").write_bytes(
            struct.pack("<Q", len(head)) + head.encode() + bytes(size))
        self.check(capsys, 1, "f8.safetensors: tensor w must be F16, BF16, F32 or F64, got "
                   + dtype, "f8.safetensors")
        with pytest.raises(FileError, match="not a Lutra matrix"):
            load("f8.safetensors")

    def test_damaged_headers(self, files, capsys, tmp_path):
        """Of NumPy's file, each byte and pair replaced by what Python's parser stumbles over."""
        data = (tmp_path / "w.npy").read_bytes()
        head = data[:128]
        for i in range(10, 80):
            for text in (b"(", b"\\", b"'", b"9", b"99999999999999999999", b"\0"):
                (tmp_path / "bad.npy").write_bytes(head[:i] + text + head[i + len(text):]
                                                   + data[128:])
                status = run("bad.npy")
                err = capsys.readouterr().err
                assert status == 0 or (status == 1 and err.count("\n") == 1), (i, text, err)

    def test_archives(self, files, capsys, tmp_path):
        with (tmp_path / "bad.npy").open("wb") as file:
            np.savez(file, w=np.zeros((2, 3)))
        self.check(capsys, 1, "bad.npy: must be an array, got an NPZ archive", "bad.npy")

    @pytest.mark.parametrize("name", ["bad.npy", "bad.safetensors"])
    @pytest.mark.parametrize("data", [b"", b"nonsense", b"\x93NUMPY\x01\x00"])
    def test_damaged_files(self, files, capsys, tmp_path, name, data):
        (tmp_path / name).write_bytes(data)
        self.check(capsys, 1, f"{name}: cannot be read: ", name)

    def test_pickles_are_not_loaded(self, files, capsys):
        np.save("objects.npy", np.array([[print]], object))
        self.check(capsys, 1, "objects.npy: cannot be read: ", "objects.npy")

    def test_calibration_of_another_size(self, files, capsys):
        np.save("x.npy", np.ones((20, 69)))
        self.check(capsys, 1, "calibration must have the K = 70 columns", "w.npy",
                   "--calibration", "x.npy")

    def test_nothing_is_written_on_failure(self, files, capsys, tmp_path):
        np.save("w.npy", np.full((2, 3), np.nan))
        self.check(capsys, 1, "W must be finite", "w.npy", "--out", "q.safetensors")
        assert not (tmp_path / "q.safetensors").exists()
