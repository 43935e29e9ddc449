"""Matrices on a command line: reading them, how to quantise them, what became of them."""

import argparse
import dataclasses
import os
from pathlib import Path

import numpy as np
import safetensors

from hdl import commandline
from host.errors import ArgumentError, FileError, LutraError
from host.formats import FORMATS
from host.quantizer import configure

__all__ = ["add_options", "arrays", "check_out", "configuration", "describe", "given",
           "read_array", "rows"]

_FIELDS = ("bits", "group_size", "scheme", "method", "v", "codebooks", "code_bits",
           "activation_bits", "outliers", "bank", "sparsity", "high", "low", "side", "storage",
           "importance", "smoothing")
_OPTIONS = ("format", *_FIELDS, "calibration", "sensitivity")
_DTYPES = ("F16", "BF16", "F32", "F64")     # of safetensors; NumPy does not know all there are

_group_size = commandline.kind("group size (a number or 'row')",
                               lambda text: None if text == "row" else int(text))


def add_options(parser):
    """Add the options that say how to quantise; `args` has only those that are given.

    Parameters
    ----------
    parser : argparse.ArgumentParser or group
    """
    field = lambda *args, **options: parser.add_argument(
        *args, default=argparse.SUPPRESS, **options)
    field("--format", choices=list(FORMATS), help="quantised format (default: bitserial)")
    field("--bits", type=int,
          help="bits of a code: bitserial 1..8, kmeans 2..4, sq with activations in two "
               "precisions 1..8 (default: 4)")
    field("--group-size", type=_group_size, metavar="SIZE",
          help="weights that share a scale: 32, 64, 128, or 'row' (default: 128)")
    field("--scheme", choices=["symmetric", "asymmetric", "ternary", "binary"],
          help="bitserial (default: symmetric)")
    field("--method", choices=["rtn", "gptq"],
          help="bitserial, sq (default: gptq with --calibration, else rtn)")
    field("--v", type=int, help="psumbook: weights in a chunk, 2, 4 or 8 (default: 8)")
    field("--codebooks", type=int, help="psumbook: additive codebooks, 1..4 (default: 2)")
    field("--code-bits", type=int, help="psumbook: bits of a code, 4..8 (default: 8)")
    field("--activation-bits", type=int, help="kmeans: bits of an index, 2..4 (default: 4)")
    field("--outliers", type=float, metavar="PART",
          help="kmeans: part of a token kept as outliers on each side (default: 0.005)")
    field("--bank", type=int, help="sq: weights of a bank, 32, 64 or 128 (default: 64)")
    field("--sparsity", type=float, metavar="PART",
          help="sq: part of a bank that is low, 0.5 and more (default: 0.875)")
    field("--high", type=int, help="sq: bits of what is high, 8")
    field("--low", type=int, help="sq: bits of what is low, 2, 3 or 4 (default: 4)")
    field("--side", choices=["weight", "activation", "activation-dynamic"],
          help="sq: the operand in two precisions; of activations always the same channels are "
               "high, or the largest of every token (default: weight)")
    field("--storage", choices=["sentinel", "mask"],
          help="sq: how a file says what is high (default: the smaller)")
    field("--importance", choices=["gptq", "energy", "paper"],
          help="sq: by what high weights are chosen, gptq or paper, or channels, energy or paper "
               "(default: the first)")
    field("--smoothing", type=float, metavar="STRENGTH",
          help="sq: SmoothQuant's migration strength, 0..1 (default: the best on --calibration)")
    field("--calibration", type=Path, metavar="FILE.npy",
          help="inputs of the layer, [tokens, in_features]")
    field("--sensitivity", type=Path, metavar="FILE.npy",
          help="kmeans: what the square of an error of each weight counts, e.g. squared gradients, "
               "[out_features, in_features] or [in_features]")


def arrays(args):
    """Arrays that the options name, as :func:`host.quantize` takes them."""
    return {name: read_array(getattr(args, name)) for name in ("calibration", "sensitivity")
            if hasattr(args, name)}


def given(args):
    """Names of the options of :func:`add_options` that were given: a list."""
    return [name for name in _OPTIONS if hasattr(args, name)]


def configuration(parser, args, path):
    """The configuration that the options ask for; what they must not say is bad usage.

    Parameters
    ----------
    parser : hdl.commandline.Parser
    args : argparse.Namespace
        With `tensor` and `seed`.
    path : Path
        Of the matrix.

    Returns
    -------
    frozen dataclass
        Of the format.
    """
    fields = {name: getattr(args, name) for name in _FIELDS if hasattr(args, name)}
    try:
        config = configure(getattr(args, "format", "bitserial"), **fields)
    except LutraError as error:
        parser.error(str(error))
    if hasattr(args, "sensitivity") and getattr(args, "format", "bitserial") != "kmeans":
        parser.error("--sensitivity needs --format kmeans")
    if fields.get("method") == "gptq" and not hasattr(args, "calibration"):
        parser.error("--method gptq needs --calibration")
    if args.seed < 0:
        parser.error(f"--seed must not be negative, got {args.seed}")
    if args.tensor is not None and path.suffix != ".safetensors" and not path.is_dir():
        parser.error(f"--tensor needs a .safetensors file or a checkpoint, got {path}")
    return config


def check_out(path):
    """Refuse a file that cannot be written: before the work, which may take minutes."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise FileError(f"{path}: its directory does not exist")
    if path.is_dir():
        raise FileError(f"{path}: cannot be written: it is a directory")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise FileError(f"{path}: cannot be written: no permission")


def read_array(path, tensor=None):
    """Read a .npy file or one tensor of a .safetensors file.

    Parameters
    ----------
    path : Path
    tensor : str, optional
        Needed if a .safetensors file holds several.

    Returns
    -------
    ndarray
        The dtype is that of the file.
    """
    if path.suffix not in (".npy", ".safetensors"):
        raise FileError(f"{path}: must be a .npy or .safetensors file")
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
            if not isinstance(array, np.ndarray):
                array.close()
                raise FileError(f"{path}: must be an array, got an NPZ archive of arrays")
            return array
        with safetensors.safe_open(path, "np") as file:
            names = sorted(file.keys())
            if tensor is None and len(names) == 1:
                tensor = names[0]
            if tensor not in names:
                listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
                raise ArgumentError(f"{path}: --tensor must name one of its {len(names)} tensors "
                                    f"({listed}), got {tensor}")
            if (dtype := file.get_slice(tensor).get_dtype()) not in _DTYPES:
                raise FileError(f"{path}: tensor {tensor} must be {', '.join(_DTYPES[:-1])} or "
                                f"{_DTYPES[-1]}, got {dtype}")
            return file.get_tensor(tensor)
    except LutraError:
        raise
    except Exception as error:      # NumPy evaluates headers as Python: nearly anything
        raise FileError(f"{path}: cannot be read: {error}") from error


def describe(q):
    """What a summary says of a quantised matrix: a dict for JSON."""
    name = {"name": q.config.name} if q.format == "sq" else {}
    return {"shape": list(q.shape), "format": q.format, **name,
            "config": dataclasses.asdict(q.config), "bits_per_weight": q.bits_per_weight,
            "code_bits_per_weight": q.code_bits_per_weight}


def rows(path, tensor, summary):
    """The same for a table: a list of (name, value).

    Parameters
    ----------
    path : str
    tensor : str or None
    summary : dict
        With what :func:`describe` gave.
    """
    config = summary["config"]
    row = {"group_size": "row"}     # what None means
    fields = ", ".join(f"{name} {row.get(name) if value is None else value}"
                       for name, value in config.items() if value is not None or name in row)
    return [("matrix", path + (f" [{tensor}]" if tensor else "")),
            ("shape [N, K]", "{} x {}".format(*summary["shape"])),
            ("format", f"{summary['format']}{' ' * ('name' in summary)}"
                       f"{summary.get('name', '')}: {fields}"),
            ("stored bits/weight", f"{summary['bits_per_weight']:.3f}")]
