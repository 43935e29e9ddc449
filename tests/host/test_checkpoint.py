"""Checkpoints in the layouts of AQLM, CodeGEMM and SqueezeLLM, made here byte for byte."""

import json

import numpy as np
import pytest
import safetensors.numpy

import host
import sim.golden
from host.checkpoint import layers

LAYER = "model.layers.0.mlp.up_proj"


def write(directory, config, tensors, name="model.safetensors"):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file({f"{LAYER}.{k}": np.ascontiguousarray(v)
                                 for k, v in tensors.items()}, directory / name)
    return directory


def aqlm(N=24, K=128, m=2, bits=8, v=8, seed=0, **change):
    """(config, tensors, the matrix that they mean) of an AQLM layer."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**bits, (N, K // v, m))
    books = rng.standard_normal((m, 2**bits, 1, v)).astype(np.float16)
    scales = (rng.random((N, 1, 1, 1)) + 0.5).astype(np.float16)
    W = sum(books[c, codes[:, :, c], 0].astype(np.float64) for c in range(m))
    wrapped = np.where(codes >= 2**(bits - 1), codes - 2**bits, codes).astype(
        np.int8 if bits <= 8 else np.int16)
    config = {"quantization_config": {
        "quant_method": "aqlm", "nbits_per_codebook": bits, "num_codebooks": m,
        "out_group_size": 1, "in_group_size": v, "linear_weights_not_to_quantize": []} | change}
    return (config, {"codes": wrapped, "codebooks": books, "scales": scales},
            W.reshape(N, K) * scales.reshape(N, 1))


def codegemm(N=24, K=256, m=2, v=8, group=128, seed=0, **change):
    """(config, tensors, the matrix that they mean) of a CodeGEMM layer."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (m, N, K // v))
    books = rng.standard_normal((m, 256, v)).astype(np.float16)
    size = K if group == -1 else group
    scales = (rng.random((K // size, N)) + 0.5).astype(np.float16)
    W = sum(books[c, codes[c]].astype(np.float64) for c in range(m)).reshape(N, K)
    # Four codes of neighbouring chunks to a word, the first in the low byte; rows contiguous.
    bytes_ = codes.transpose(0, 2, 1).reshape(m, K // v // 4, 4, N).transpose(0, 1, 3, 2)
    words = np.ascontiguousarray(bytes_.astype(np.uint8)).view("<i4")[..., 0]
    config = {"codegemm": {"group_size": group, "vec_len": v, "num_codebooks": m,
                           "nbits_per_codebook": 8, "arch_config": {}} | change}
    return (config, {"codes": words, "codebooks": books, "scales": scales},
            W * np.repeat(scales.T.astype(np.float64), size, axis=1))


def squeezellm(N=24, K=64, bits=4, sparse=True, dense=2, seed=0, **change):
    """(config, tensors, the matrix that they mean) of a SqueezeLLM layer."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**bits, (N, K))
    table = np.sort(rng.standard_normal((N, 2**bits)), axis=1).astype(np.float32)
    W = np.take_along_axis(table.astype(np.float64), codes, axis=1)
    # 32 indexes in as many words as they have bits, whatever words they straddle.
    words = np.zeros((K // 32 * bits, N), np.uint64)
    for n, k in np.ndindex(N, K):
        first, low = divmod(bits * k, 32)
        value = int(codes[n, k]) << low
        words[first, n] |= np.uint64(value & 0xFFFFFFFF)
        if value >> 32:
            words[first + 1, n] |= np.uint64(value >> 32)
    tensors = {"qweight": words.astype(np.uint32).view(np.int32), "lookup_table": table}
    if sparse:
        places = [np.sort(rng.choice(K, rng.integers(0, 3), replace=False)) for _ in range(N)]
        vals = rng.standard_normal(sum(map(len, places))).astype(np.float32) * 5
        rows = np.cumsum([0, *map(len, places)]).astype(np.int32)
        tensors |= {"rows": rows, "cols": np.concatenate(places).astype(np.int32), "vals": vals}
        for n, cols in enumerate(places):
            W[n, cols] += vals[rows[n]:rows[n + 1]]
    if dense:
        tensors |= {"full_rows": rng.standard_normal((dense, N)).astype(np.float32),
                    "full_row_indices": rng.choice(K, dense, replace=False).astype(np.int32)}
        W[:, tensors["full_row_indices"]] += tensors["full_rows"].T
    config = {"quantization_config": {"quant_method": "squeezellm", "wbits": bits} | change}
    return config, tensors, W


CASES = [aqlm(), aqlm(m=1, bits=6, v=4), aqlm(m=4, bits=4, v=2), codegemm(), codegemm(m=1, v=4),
         codegemm(group=-1), codegemm(group=32, m=1)]


@pytest.mark.parametrize("config, tensors, W", CASES)
def test_means_what_the_layout_says(tmp_path, config, tensors, W):
    q = host.from_checkpoint(write(tmp_path / "c", config, tensors))
    m = q.codebooks
    # Half a unit of int8 from each codebook, times the scale.
    unit = np.abs(tensors["codebooks"]).max().astype(float) / 127
    scale = tensors["scales"].astype(float).max()
    assert np.abs(q.dequantize() - W).max() < (m / 2 + 0.1) * unit * scale
    assert np.linalg.norm(q.dequantize() - W) < 0.02 * np.linalg.norm(W)
    assert layers(tmp_path / "c") == [LAYER]


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("sparse, dense", [(False, 0), (True, 0), (True, 3)])
def test_squeezellm_is_quantised_again(tmp_path, bits, sparse, dense):
    config, tensors, W = squeezellm(bits=bits, sparse=sparse, dense=dense)
    path = write(tmp_path / "c", config, tensors)
    q = host.from_checkpoint(path)
    assert q.config == host.KMeans(bits=bits) and layers(path) == [LAYER]
    assert q.digest == host.quantize(W, host.KMeans(bits=bits)).digest
    X = np.random.default_rng(0).standard_normal((8, 64))
    calibrated = host.from_checkpoint(path, calibration=X)
    assert calibrated.digest == host.quantize(W, host.KMeans(bits=bits), calibration=X).digest


@pytest.mark.parametrize("case", [aqlm(N=30, K=512), codegemm(N=30, K=512)],
                         ids=["aqlm", "codegemm"])
def test_runs_on_the_device(tmp_path, case):
    config, tensors, W = case
    q = host.from_checkpoint(write(tmp_path / "c", config, tensors), LAYER)
    x = np.random.default_rng(1).standard_normal((3, 512)).astype(np.float32)
    with host.open("sim:") as device:
        y = device.load(q)(x)
    assert np.array_equal(y, sim.golden.matmul(q, x))
    # The product of what the checkpoint means, within int8 activations and centroids.
    assert np.linalg.norm(y - x @ W.T) < 0.03 * np.linalg.norm(x @ W.T)


def test_command_lines(tmp_path, capsys):
    from host.cli import offload, quantize

    config, tensors, _ = aqlm(N=16, K=64)
    checkpoint, out = write(tmp_path / "c", config, tensors), tmp_path / "q.safetensors"
    assert quantize.main([str(checkpoint), "--tensor", LAYER, "--out", str(out), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["format"] == "psumbook" and summary["relative_error"] is None
    assert host.load(out).digest == host.from_checkpoint(checkpoint).digest == summary["digest"]
    assert offload.main([str(checkpoint), "--random", "2", "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shape"] == [16, 64]
    assert quantize.main([str(checkpoint), "--bits", "4"]) == 2
    assert "quantised already" in capsys.readouterr().err
    inputs = tmp_path / "x.npy"
    np.save(inputs, np.random.default_rng(0).standard_normal((8, 64)))
    again = [str(write(tmp_path / "s", *squeezellm()[:2])), "--calibration", str(inputs), "--json"]
    assert quantize.main(again) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["format"] == "kmeans" and summary["digest"] == host.from_checkpoint(
        tmp_path / "s", calibration=np.load(inputs)).digest
    assert quantize.main([str(checkpoint), "--calibration", str(inputs)]) == 1
    assert "calibration is for SqueezeLLM" in capsys.readouterr().err


class TestRefused:
    def check(self, tmp_path, case, message, kind=host.FileError, layer=None):
        with pytest.raises(kind, match=message):
            host.from_checkpoint(write(tmp_path / "c", *case[:2]), layer)

    def test_sixteen_bits(self, tmp_path):
        self.check(tmp_path, aqlm(m=1, bits=16), "1x16", host.ConfigError)

    def test_several_output_rows(self, tmp_path):
        self.check(tmp_path, aqlm(out_group_size=8), "out_group_size 8", host.ConfigError)

    def test_other_methods(self, tmp_path):
        self.check(tmp_path, aqlm(quant_method="gptq"), "quant_method 'gptq'")

    @pytest.mark.parametrize("part", ["codes", "codebooks", "scales"])
    @pytest.mark.parametrize("make", [aqlm, codegemm])
    def test_missing_tensor(self, tmp_path, part, make):
        config, tensors, _ = make()
        del tensors[part]
        self.check(tmp_path, (config, tensors),
                   "no quantised layer" if part == "codes" else f"{part}' is missing",
                   host.ArgumentError, LAYER)

    def test_extra_tensor(self, tmp_path):
        config, tensors, _ = aqlm()
        self.check(tmp_path, (config, tensors | {"zeros": np.zeros(3)}), "zeros' is not part")

    @pytest.mark.parametrize("make, part, value, message", [
        (aqlm, "codes", np.zeros((24, 16, 3), np.int8), r"\[N, K/8, 2\]"),
        (aqlm, "codes", np.zeros((24, 16, 2), np.float16), "integers"),
        (aqlm, "codes", np.full((24, 16, 2), 300, np.int16), r"-128\.\.255, got 0\.\.300"),
        (aqlm, "codebooks", np.zeros((2, 255, 1, 8), np.float16), r"\(2, 256, 1, 8\)"),
        (aqlm, "codebooks", np.full((2, 256, 1, 8), np.nan, np.float16), "finite"),
        (aqlm, "scales", np.ones((25, 1, 1, 1), np.float16), r"\(24, 1, 1, 1\)"),
        (aqlm, "scales", np.full((24, 1, 1, 1), np.inf, np.float16), "finite"),
        (aqlm, "scales", np.full((24, 1, 1, 1), -1, np.float16), "not be negative"),
        (codegemm, "codes", np.zeros((2, 8, 24), np.int64), "int32"),
        (codegemm, "scales", np.ones((3, 24), np.float16), r"\(2, 24\)"),
        (codegemm, "codebooks", np.zeros((1, 256, 8), np.float16), r"\(2, 256, 8\)"),
    ])
    def test_contradictions(self, tmp_path, make, part, value, message):
        config, tensors, _ = make()
        self.check(tmp_path, (config, tensors | {part: value}), message)

    @pytest.mark.parametrize("part, value, message", [
        ("qweight", np.zeros((9, 24), np.int32), r"int32 \[K/32 \* 4, N\], got int32 \(9, 24\)"),
        ("qweight", np.zeros((8, 24), np.int64), "int32"),
        ("lookup_table", np.zeros((24, 8), np.float32), r"\(24, 16\), got \(24, 8\)"),
        ("lookup_table", np.full((24, 16), np.nan, np.float32), "finite"),
        ("vals", np.zeros(3, np.int32), "vals must be finite real numbers"),
        ("rows", np.zeros(25, np.float32), "25 integer offsets"),
        ("full_row_indices", np.array([0, -1], np.int32), r"columns 0\.\.63, got -1\.\.0"),
        ("rows", np.zeros(24, np.int32), "25 integer offsets"),
        ("rows", np.arange(25)[::-1].astype(np.int32), "25 integer offsets"),
        ("cols", np.zeros(1, np.int32), "25 integer offsets"),
        ("full_row_indices", np.array([0, 64], np.int32), r"columns 0\.\.63"),
        ("full_rows", np.zeros((3, 24), np.float32), r"\(2, 24\)"),
    ])
    def test_contradictions_of_squeezellm(self, tmp_path, part, value, message):
        config, tensors, _ = squeezellm()
        self.check(tmp_path, (config, tensors | {part: value}), message)

    def test_more_of_squeezellm(self, tmp_path):
        config, tensors, _ = squeezellm()
        self.check(tmp_path, squeezellm(wbits=5), "2, 3 or 4 bits, got wbits 5", host.ConfigError)
        del tensors["vals"]
        self.check(tmp_path, (config, tensors), "must have rows, cols and vals")
        with pytest.raises(host.ArgumentError, match="calibration is for SqueezeLLM"):
            host.from_checkpoint(write(tmp_path / "d", *aqlm()[:2]), calibration=np.ones((1, 128)))

    def test_group_sizes_that_engines_do_not_have(self, tmp_path):
        self.check(tmp_path, codegemm(group=64 * 4, K=512), "32, 64, 128", host.ConfigError)

    def test_configuration(self, tmp_path):
        self.check(tmp_path, aqlm(in_group_size="8"), "in_group_size as an integer")
        (tmp_path / "c" / "config.json").write_text("[")
        with pytest.raises(host.FileError, match="JSON"):
            host.from_checkpoint(tmp_path / "c")

    def test_what_is_not_a_checkpoint(self, tmp_path):
        with pytest.raises(host.FileError, match="directory"):
            host.from_checkpoint(tmp_path / "nothing")
        with pytest.raises(host.ArgumentError, match="directory"):
            host.from_checkpoint(None)

    def test_a_layer_must_be_named(self, tmp_path):
        config, tensors, _ = aqlm()
        write(tmp_path / "c", config, tensors)
        more = {f"other.{k}": v for k, v in tensors.items()}
        safetensors.numpy.save_file(more, tmp_path / "c" / "b.safetensors")
        with pytest.raises(host.ArgumentError, match="2 quantised layers: name one of model"):
            host.from_checkpoint(tmp_path / "c")
        assert host.from_checkpoint(tmp_path / "c", "other").shape == (24, 128)
