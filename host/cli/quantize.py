"""``python -m host.quantize``: a weight matrix in, a quantised matrix and a summary out."""

import argparse
import dataclasses
import json
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import safetensors
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from host.errors import ArgumentError, FileError, LutraError
from host.formats import FORMATS
from host.quantizer import configure, quantize

__all__ = ["main", "progress_bar", "read_array"]

_EXAMPLES = """\
examples:
  python -m host.quantize layer.npy --bits 4 --out layer.safetensors
  python -m host.quantize model.safetensors --tensor model.layers.0.mlp.up_proj.weight \\
      --bits 2 --group-size 128 --calibration inputs.npy --out up_proj.w2.safetensors
  python -m host.quantize layer.npy --scheme ternary --group-size row --json

exit status: 0 done, 1 failed, 2 bad usage
"""
_FIELDS = ("bits", "group_size", "scheme", "method")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")    # one line, without the usage


def _group_size(text):
    return None if text == "row" else int(text)


_group_size.__name__ = "group size (a number or 'row')"     # argparse names the type in errors


def _parser():
    parser = _Parser(prog="python -m host.quantize", epilog=_EXAMPLES,
                     formatter_class=argparse.RawDescriptionHelpFormatter,
                     description="Quantise a weight matrix [out_features, in_features].")
    parser.add_argument("input", type=Path, metavar="FILE",
                        help="the matrix: .npy, or .safetensors (float32, float16, bfloat16)")
    parser.add_argument("--tensor", metavar="NAME",
                        help="which tensor of a .safetensors file (default: the only one)")
    parser.add_argument("--format", default="bitserial", choices=list(FORMATS),
                        help="quantised format (default: %(default)s)")
    field = lambda *args, **options: parser.add_argument(
        *args, default=argparse.SUPPRESS, **options)
    field("--bits", type=int, help="bits of a code, 1..8 (default: 4)")
    field("--group-size", type=_group_size, metavar="SIZE",
          help="weights that share a scale: 32, 64, 128, or 'row' (default: 128)")
    field("--scheme", choices=["symmetric", "asymmetric", "ternary", "binary"],
          help="(default: symmetric)")
    field("--method", choices=["rtn", "gptq"], help="(default: gptq with --calibration, else rtn)")
    parser.add_argument("--calibration", type=Path, metavar="FILE.npy",
                        help="inputs of the layer, [tokens, in_features]")
    parser.add_argument("--seed", type=int, default=0,
                        help="of formats that draw random numbers (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.safetensors",
                        help="where to write the quantised matrix (default: nowhere)")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
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
    parser = _parser()
    try:
        args = parser.parse_args(argv)
        fields = {name: getattr(args, name) for name in _FIELDS if hasattr(args, name)}
        try:
            config = configure(args.format, **fields)
        except LutraError as error:
            parser.error(str(error))
        if fields.get("method") == "gptq" and args.calibration is None:
            parser.error("--method gptq needs --calibration")
        if args.tensor is not None and args.input.suffix != ".safetensors":
            parser.error(f"--tensor needs a .safetensors file, got {args.input}")
    except SystemExit as stop:
        return stop.code
    try:
        summary = _run(args, config)
    except (LutraError, MemoryError, KeyboardInterrupt) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"{parser.prog}: error: {message}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(summary))
    else:
        _print_table(summary)
    return 0


def _run(args, config):
    """Quantise and write; returns the summary as a dict."""
    # Known before the work, which may take minutes.
    if args.out is not None and not args.out.parent.is_dir():
        raise FileError(f"{args.out}: its directory does not exist")
    W = read_array(args.input, args.tensor)
    calibration = None if args.calibration is None else read_array(args.calibration)
    start = time.monotonic()
    with progress_bar("quantising") as progress:
        q = quantize(W, config, calibration=calibration, seed=args.seed, progress=progress)
    seconds = time.monotonic() - start
    if args.out is not None:
        q.save(args.out)
    W = W.astype(np.float64)
    error = W - q.dequantize()
    output_error = None
    if calibration is not None:
        x = calibration.astype(np.float64)
        output_error = _relative(x @ error.T, x @ W.T)
    return {"input": str(args.input), "tensor": args.tensor, "shape": list(q.shape),
            "format": q.format, "config": dataclasses.asdict(q.config),
            "bits_per_weight": q.bits_per_weight, "code_bits_per_weight": q.code_bits_per_weight,
            "relative_error": _relative(error, W), "output_error": output_error,
            "seconds": round(seconds, 3), "digest": q.digest,
            "out": None if args.out is None else str(args.out)}


def _relative(error, reference):
    norm = np.linalg.norm(reference)
    return float(np.linalg.norm(error) / norm) if norm else float(np.any(error))


def _print_table(summary):
    table = Table(show_header=False)
    source = summary["input"] + (f" [{summary['tensor']}]" if summary["tensor"] else "")
    fields = ", ".join(f"{name} {value}" for name, value in summary["config"].items())
    rows = [("matrix", source), ("shape [N, K]", "{} x {}".format(*summary["shape"])),
            ("format", f"{summary['format']}: {fields}"),
            ("stored bits/weight", f"{summary['bits_per_weight']:.3f}"),
            ("code bits/weight", f"{summary['code_bits_per_weight']:.3f}"),
            ("relative weight error", f"{summary['relative_error']:.4f}")]
    if summary["output_error"] is not None:
        rows.append(("relative output error", f"{summary['output_error']:.4f} on the calibration"))
    rows += [("time", f"{summary['seconds']:.1f} s"), ("digest", summary["digest"]),
             ("written to", summary["out"] or "nowhere (--out names a file)")]
    for row in rows:
        table.add_row(*row)
    # Markup off: tensor names are in brackets.
    Console(markup=False, highlight=False).print(table)


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
            return np.load(path, allow_pickle=False)
        with safetensors.safe_open(path, "np") as file:
            names = sorted(file.keys())
            if tensor is None and len(names) == 1:
                tensor = names[0]
            if tensor not in names:
                listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
                raise ArgumentError(f"{path}: --tensor must name one of its {len(names)} tensors "
                                    f"({listed}), got {tensor}")
            return file.get_tensor(tensor)
    except (OSError, EOFError, ValueError, safetensors.SafetensorError) as error:
        if isinstance(error, LutraError):
            raise
        raise FileError(f"{path}: cannot be read: {error}") from error


@contextmanager
def progress_bar(description):
    """Show a bar with the time left on standard error, if that is a terminal.

    Yields
    ------
    callable
        ``progress(done, total)``.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
               TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True,
                  disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
