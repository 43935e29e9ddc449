"""Layers of checkpoints that are quantised with codebooks: AQLM, CodeGEMM and SqueezeLLM.

A checkpoint is a directory with ``config.json`` and one or more ``.safetensors`` files.  Which of
the layouts it has, and its numbers, are in ``config.json``.  Additive codebooks:

========== ========================================== ==========================================
           AQLM (``quantization_config``)             CodeGEMM (``codegemm``)
========== ========================================== ==========================================
codes      int8 or int16 [N/og, K/v, m], signed wrap  int32 [m, K/(4v), N], four codes to a word
codebooks  float16 [m, 2**b, og, v]                   float16 [m, 2**b, v]
scales     float16 [N/og, 1, 1, 1], of rows           float16 [K/g, N], of groups
========== ========================================== ==========================================

SqueezeLLM (``quantization_config``) has a codebook for every row, ``lookup_table`` float
[N, 2**bits], and ``qweight`` int32 [K/32 * bits, N], a row's indexes as one stream of bits, the
lowest first.  What is added to that: ``rows``, ``cols``, ``vals``, a sparse matrix (CSR) of
outlying weights, and ``full_rows`` [columns, N] at ``full_row_indices``, dense columns.
"""

import json
import os
from pathlib import Path

import numpy as np
import safetensors

from host.errors import ArgumentError, ConfigError, FileError
from host.formats.kmeans import KMeans
from host.formats.psumbook import PsumbookMatrix
from host.quantizer import quantize

__all__ = ["from_checkpoint", "layers"]

_PARTS = {  # of a layer, by kind: what it must have, and what it may
    "aqlm": (("codes", "codebooks", "scales"), ()),
    "codegemm": (("codes", "codebooks", "scales"), ()),
    "squeezellm": (("qweight", "lookup_table"),
                   ("rows", "cols", "vals", "full_rows", "full_row_indices"))}


def layers(path):
    """Names of the quantised layers of a checkpoint: a sorted list of str.

    Parameters
    ----------
    path : str or os.PathLike
        The directory.
    """
    found = [name.rpartition(".") for name in _tensors(_directory(path))]
    return sorted(layer for layer, _, part in found if layer and part in ("codes", "qweight"))


def from_checkpoint(path, layer=None, *, calibration=None, progress=None):
    """A layer of a checkpoint: psumbook of AQLM and CodeGEMM, kmeans of SqueezeLLM.

    Psumbook: centroids are rounded to int8 relative to the layer's largest, scales to 16 bits
    relative to the largest of their row.

    SqueezeLLM loses more: its rows have a codebook each and keep outlying weights, a kmeans matrix
    has one codebook and a scale for every row.  So the weights are quantised again, with as many
    bits, and activations of four.

    Parameters
    ----------
    path : str or os.PathLike
        The directory with ``config.json``.
    layer : str, optional
        Name of the layer, e.g. ``"model.layers.0.mlp.up_proj"``; needed if there are several.
    calibration : array of a floating dtype, [tokens, K], optional
        Inputs of a SqueezeLLM layer, as of :func:`host.quantize`.
    progress : callable, optional
        Called as ``progress(done, total)`` while it is quantised again.

    Returns
    -------
    host.formats.psumbook.PsumbookMatrix or host.formats.kmeans.KMeansMatrix

    Raises
    ------
    FileError
        The checkpoint is of another kind, or its tensors contradict its configuration.
    ConfigError
        It has a shape that no psumbook engine runs, 1x16 for example.
    """
    directory = _directory(path)
    config = _json(directory / "config.json")
    files, names = _tensors(directory), layers(directory)
    if layer is None:
        if len(names) != 1:
            raise ArgumentError(f"{directory} has {len(names)} quantised layers: name one of "
                                f"{_few(names)}")
        (layer,) = names
    if layer not in names:
        raise ArgumentError(f"{directory} has no quantised layer {layer!r}; it has {_few(names)}")
    prefix = f"{layer}."
    kind = _kind(directory, config)
    needed, optional = _PARTS[kind]
    present = {name.removeprefix(prefix) for name in files if name.startswith(prefix)}
    if missing := sorted(set(needed) - present):
        raise FileError(f"{directory}: tensor {prefix + missing[0]!r} is missing")
    if extra := sorted(present - {*needed, *optional, "bias"}):
        raise FileError(f"{directory}: tensor {prefix + extra[0]!r} is not part of the format; "
                        f"legal are {', '.join((*needed, *optional, 'bias'))}")
    tensors = {part: _read(files[prefix + part], prefix + part)
               for part in (*needed, *optional) if part in present}
    where = f"{directory}: {layer}"
    if kind != "squeezellm" and calibration is not None:
        raise ArgumentError(f"{where}: calibration is for SqueezeLLM layers, which are quantised "
                            f"again; those of {kind} keep their codes")
    if kind == "squeezellm":
        W, bits = _squeezellm(config, where, **tensors)
        return quantize(W, KMeans(bits=bits), calibration=calibration, progress=progress)
    try:
        return _LAYOUTS[kind](config, where, **tensors)
    except (ConfigError, FileError):
        raise
    except ArgumentError as error:
        raise FileError(f"{directory}: {layer}: {error}") from error


def _few(names):
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") \
        if names else "none"


def _directory(path):
    try:
        directory = Path(os.fspath(path))
    except TypeError:
        raise ArgumentError(f"a checkpoint is named by its directory, not {path!r}") from None
    if not directory.is_dir():
        raise FileError(f"{directory}: must be a directory with config.json and .safetensors files")
    return directory


def _json(path):
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{path}: must be readable JSON: {error}") from error
    if not isinstance(config, dict):
        raise FileError(f"{path}: must be a JSON object, got {type(config).__name__}")
    return config


def _tensors(directory):
    """File of every tensor, by its name."""
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safetensors.safe_open(str(path), "np") as file:
                found |= dict.fromkeys(file.keys(), path)
        except (OSError, safetensors.SafetensorError) as error:
            raise FileError(f"{path}: not a readable safetensors file: {error}") from error
    return found


def _read(path, name):
    with safetensors.safe_open(str(path), "np") as file:
        dtype = file.get_slice(name).get_dtype()
        if dtype not in ("I8", "I16", "I32", "I64", "U8", "F16", "BF16", "F32", "F64"):
            raise FileError(f"{path}: tensor {name!r} must be of integers or of float16, bfloat16, "
                            f"float32 or float64, got {dtype}")
        return file.get_tensor(name)


def _kind(directory, config):
    if isinstance(config.get("codegemm"), dict):
        return "codegemm"
    method = config.get("quantization_config")
    method = method.get("quant_method") if isinstance(method, dict) else None
    if method not in ("aqlm", "squeezellm"):
        raise FileError(f"{directory}: config.json must have 'codegemm', or 'quantization_config' "
                        "with quant_method 'aqlm' or 'squeezellm', got quant_method "
                        f"{method!r:.80}")
    return method


def _numbers(config, where, names):
    """Integers of a configuration, by name."""
    values = []
    for name in names:
        value = config.get(name)
        if type(value) is not int:
            raise FileError(f"{where}: config.json must give {name} as an integer, got {value!r}")
        values.append(value)
    return values


def _check(where, bits, v):
    """Refuse what no engine runs, and say what to do."""
    if bits > 8:
        raise ConfigError(
            f"{where}: codebooks of {bits} bits need tables of {2**bits} entries per chunk, which "
            "do not fit on chip; psumbook engines take code_bits 4..8. Quantise the model with "
            "more codebooks of 8 bits (2x8 stores as many bits as 1x16)")
    if v not in (2, 4, 8):
        raise ConfigError(f"{where}: chunks must be of 2, 4 or 8 weights, got {v}")


def _shape(where, name, array, wanted):
    if array.shape != wanted:
        raise FileError(f"{where}: {name} must have shape {wanted}, got {array.shape}")


def _aqlm(config, where, codes, codebooks, scales):
    bits, m, rows, v = _numbers(
        config["quantization_config"], where,
        ("nbits_per_codebook", "num_codebooks", "out_group_size", "in_group_size"))
    _check(where, bits, v)
    if rows != 1:
        raise ConfigError(f"{where}: centroids must be of one output row, got out_group_size "
                          f"{rows}")
    if codes.dtype.kind != "i" or codes.ndim != 3 or codes.shape[2] != m:
        raise FileError(f"{where}: codes must be integers [N, K/{v}, {m}], got {codes.dtype} "
                        f"{codes.shape}")
    _shape(where, "codebooks", codebooks, (m, 2**bits, 1, v))
    N = codes.shape[0]
    _shape(where, "scales", scales, (N, 1, 1, 1))
    # Codes of b bits are stored with their sign: the upper half wraps.
    low, high = int(codes.min(initial=0)), int(codes.max(initial=0))
    if low < -2**(bits - 1) or high >= 2**bits:
        raise FileError(f"{where}: codes of {bits} bits must be {-2**(bits - 1)}..{2**bits - 1}, "
                        f"got {low}..{high}")
    return PsumbookMatrix.from_codes(
        codes=(codes.astype(np.int64) % 2**bits).transpose(2, 0, 1), codebooks=codebooks[:, :, 0],
        scales=scales.reshape(N, 1), group_size=None)


def _codegemm(config, where, codes, codebooks, scales):
    group, v, m, bits = _numbers(config["codegemm"], where,
                                 ("group_size", "vec_len", "num_codebooks", "nbits_per_codebook"))
    _check(where, bits, v)
    if codes.dtype != np.int32 or codes.ndim != 3 or len(codes) != m:
        raise FileError(f"{where}: codes must be int32 [{m}, K/{4 * v}, N], got {codes.dtype} "
                        f"{codes.shape}")
    _shape(where, "codebooks", codebooks, (m, 2**bits, v))
    words, N = codes.shape[1:]
    K = 4 * words * v
    size = K if group == -1 else group
    if size < 1 or K % size:
        raise FileError(f"{where}: group_size must divide K = {K} or be -1 (the row), got {group}")
    _shape(where, "scales", scales, (K // size, N))
    single = np.stack([codes >> 8 * i & 255 for i in range(4)], axis=2)     # [m, words, 4, N]
    return PsumbookMatrix.from_codes(
        codes=single.reshape(m, 4 * words, N).transpose(0, 2, 1), codebooks=codebooks,
        scales=scales.T, group_size=None if size == K else size)


def _squeezellm(config, where, qweight, lookup_table, *, rows=None, cols=None, vals=None,
                full_rows=None, full_row_indices=None):
    """Weights float64 [N, K] of a SqueezeLLM layer, and the bits of its indexes."""
    (bits,) = _numbers(config["quantization_config"], where, ("wbits",))
    if bits not in (2, 3, 4):
        raise ConfigError(f"{where}: indexes must have 2, 3 or 4 bits, got wbits {bits}")
    if qweight.dtype != np.int32 or qweight.ndim != 2 or len(qweight) % bits or not qweight.size:
        raise FileError(f"{where}: qweight must be int32 [K/32 * {bits}, N], got {qweight.dtype} "
                        f"{qweight.shape}")
    N = qweight.shape[1]
    K = len(qweight) // bits * 32
    _shape(where, "lookup_table", lookup_table, (N, 2**bits))
    for name, part in (("lookup_table", lookup_table), ("vals", vals), ("full_rows", full_rows)):
        _reals(where, name, part)
    stream = np.unpackbits(np.ascontiguousarray(qweight.T).view(np.uint8), axis=1,
                           bitorder="little").reshape(N, K, bits)
    codes = (stream << np.arange(bits, dtype=np.uint8)).sum(axis=2)
    W = np.take_along_axis(lookup_table.astype(np.float64), codes, axis=1)
    sparse = rows, cols, vals
    if any(part is not None for part in sparse):
        if any(part is None or part.ndim != 1 for part in sparse):
            raise FileError(f"{where}: a sparse matrix must have rows, cols and vals, a list each")
        counts = np.diff(rows.astype(np.int64)) if rows.dtype.kind in "iu" else np.array([-1])
        if rows.shape != (N + 1,) or rows[0] != 0 or (counts < 0).any() \
                or not rows[-1] == len(vals) == len(cols):
            raise FileError(f"{where}: rows must be {N + 1} integer offsets from 0 to the number "
                            f"of vals and cols, got {len(rows)} of {rows.dtype}, {len(vals)} vals "
                            f"and {len(cols)} cols")
        _columns(where, "cols", cols, K)
        np.add.at(W, (np.repeat(np.arange(N), counts), cols), vals.astype(np.float64))
    if full_rows is not None or full_row_indices is not None:
        if full_rows is None or full_row_indices is None or full_row_indices.ndim != 1:
            raise FileError(f"{where}: dense columns must have full_rows and full_row_indices")
        _shape(where, "full_rows", full_rows, (len(full_row_indices), N))
        _columns(where, "full_row_indices", full_row_indices, K)
        np.add.at(W.T, full_row_indices, full_rows.astype(np.float64))
    return W, bits


def _columns(where, name, indexes, K):
    """Refuse indexes of columns that there are not."""
    if indexes.dtype.kind not in "iu" or (indexes.size and not 0 <= indexes.min()
                                          <= indexes.max() < K):
        raise FileError(f"{where}: {name} must be columns 0..{K - 1}, got "
                        f"{indexes.min()}..{indexes.max()} of {indexes.dtype}")


def _reals(where, name, array):
    """Refuse what is not finite numbers, far enough from the end of float32 to be added."""
    if array is not None and (array.dtype.name not in ("float16", "bfloat16", "float32", "float64")
                              or not (np.abs(array.astype(np.float64)) <= 2.0**120).all()):
        raise FileError(f"{where}: {name} must be finite real numbers of at most 2**120, got "
                        f"{array.dtype}, the largest {np.abs(array.astype(np.float64)).max():g}")


_LAYOUTS = {"aqlm": _aqlm, "codegemm": _codegemm}
