"""``python -m host.offload``: a matrix and activations in, a quantised matmul on a device out."""

import time
from pathlib import Path

import numpy as np
import safetensors
from rich.console import Console

from hdl import commandline
from hdl.commandline import progress_bar
from host.checkpoint import from_checkpoint
from host.cli import matrix
from host.errors import ArgumentError, DeviceError, FileError
from host.matrix import load, row_blocks
from host.open import open as open_device
from host.quantizer import quantize

__all__ = ["main", "multiply"]

_EXAMPLES = """\
examples:
  python -m host.offload layer.npy --bits 2 --random 8 --check
  python -m host.offload up_proj.w2.safetensors --input x.npy --out y.npy
  python -m host.offload model.safetensors --tensor model.layers.0.mlp.up_proj.weight \\
      --bits 4 --calibration inputs.npy --input x.npy --json
  python -m host.offload layer.npy --device 'sim:?rows=8&memory=ddr3' --random 32
  python -m host.offload layer.npy --device uart:/dev/ttyUSB1 --input x.npy --check

exit status: 0 done, 1 failed (results that differ from the golden model, for one), 2 bad usage
"""
_CALL_MACS = 2**27      # of one call: a second or so on a simulated device


def _parser():
    parser = commandline.Parser(
        "python -m host.offload", examples=_EXAMPLES,
        description="Multiply activations by a quantised matrix on a device.")
    parser.add_argument("matrix", type=Path, metavar="FILE",
                        help="the matrix [out_features, in_features]: float (.npy, .safetensors), "
                             "quantised on the fly, or a file of python -m host.quantize")
    parser.add_argument("--tensor", metavar="NAME",
                        help="which tensor of a float .safetensors file (default: the only one)")
    tokens = parser.add_mutually_exclusive_group()
    tokens.add_argument("--input", type=Path, metavar="X.npy",
                        help="activations [..., in_features], floating point")
    tokens.add_argument("--random", type=int, default=1, metavar="M",
                        help="that many tokens of Gaussian activations (default: %(default)s)")
    parser.add_argument("--device", metavar="URL",
                        help="sim:?rows=8&memory=ddr3, uart:PORT, ... (default: $LUTRA_DEVICE, "
                             "else sim:)")
    parser.add_argument("--check", action="store_true",
                        help="compare every output with the golden model, bit for bit")
    parser.add_argument("--out", type=Path, metavar="Y.npy",
                        help="where to write the outputs, float32 [..., out_features]")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--seed", type=int, default=0,
                        help="of random activations and of formats that draw random numbers "
                             "(default: %(default)s)")
    matrix.add_options(parser.add_argument_group("quantising on the fly (of a float matrix)"))
    return parser


def main(argv=None):
    """Run the command line; returns the exit status (see :func:`hdl.commandline.run`)."""
    parser = _parser()

    def work(args):
        config = matrix.configuration(parser, args, args.matrix)
        if args.random < 1:
            parser.error(f"--random must be at least 1, got {args.random}")
        quantized = _is_quantized(args.matrix)
        file = args.tensor is not None and not args.matrix.is_dir()
        options = matrix.given(args) + ["tensor"] * file
        if quantized and options:
            parser.error(f"--{options[0].replace('_', '-')} is for float matrices; {args.matrix} "
                         "is quantised already")
        summary = _run(args, None if quantized else config, parser)
        commandline.print_summary(summary, _rows(summary), as_json=args.json)

    return commandline.run(parser, work, argv)


def _is_quantized(path):
    """Whether a file is one of ours, or a checkpoint; reading it reports what else is wrong."""
    if path.is_dir():
        return True
    if path.suffix != ".safetensors":
        return False
    try:
        with safetensors.safe_open(path, "np") as file:
            return "lutra" in (file.metadata() or {})
    except (OSError, ValueError, safetensors.SafetensorError):
        return False


def _run(args, config, parser):
    """Quantise where `config` is given, multiply, check and write; returns the summary."""
    matrix.check_out(args.out)
    if config is None:
        q = from_checkpoint(args.matrix, args.tensor) if args.matrix.is_dir() else load(args.matrix)
        W = None
    else:
        W = matrix.read_array(args.matrix, args.tensor)
        arrays = matrix.arrays(args)
        with progress_bar("quantising") as progress:
            q = quantize(W, config, seed=args.seed, progress=progress, **arrays)
    N, K = q.shape
    if args.input is None:
        x = np.random.default_rng(args.seed).standard_normal((args.random, K), np.float32)
    else:
        x = _activations(args.input, K)
    try:
        device = _open(args.device)
    except ArgumentError as error:
        parser.error(str(error))
    with device:
        with progress_bar("uploading") as progress:
            layer = device.load(q, progress=progress)
        start = time.monotonic()
        with progress_bar("multiplying") as progress, np.errstate(over="ignore"):
            y, stats = multiply(layer, x, progress)
        seconds = time.monotonic() - start
        if wrong := np.count_nonzero(~np.isfinite(y)):
            raise ArgumentError(f"{wrong} of {y.size} outputs overflow float32, whose largest is "
                                "3.4e38: use smaller activations or weights")
        if args.check:
            _check(q, x, y)
        if args.out is not None:
            _write(args.out, y)
        engine, clock = device.engine, device.clock_hz
        summary = {
            "matrix": str(args.matrix), "tensor": args.tensor, **matrix.describe(q),
            "tokens": stats["tokens"], "device": device.url, "engine": engine.as_dict(),
            "clock_hz": clock}
    summary |= {name: stats[name] for name in (
        "cycles", "gather_cycles", "peak_macs_per_cycle", "utilization", "bytes_read",
        "bytes_written")}
    device_seconds = stats["cycles"] / clock
    operations = 2 * stats["tokens"] * N * K
    reference = q.dequantize() if W is None else W
    return summary | {
        "device_seconds": device_seconds,
        "gops": operations / device_seconds / 1e9 if device_seconds else None,
        "peak_gops": 2 * stats["peak_macs_per_cycle"] * clock / 1e9,
        "read_bytes_per_second":
            stats["bytes_read"] / device_seconds if device_seconds else None,
        "relative_error": _relative_error(x.reshape(-1, K), y.reshape(-1, N), reference),
        "reference": "float matrix" if W is not None else "dequantised matrix",
        "checked": args.check, "out": None if args.out is None else str(args.out),
        "seconds": round(seconds, 3)}


def _activations(path, K):
    x = matrix.read_array(path)
    if x.dtype.kind == "f" and x.dtype != np.float16:
        with np.errstate(over="ignore"):    # the layer refuses infinity
            x = x.astype(np.float32)
    if x.ndim < 1 or x.shape[-1] != K or x.size == 0:
        raise FileError(f"{path}: activations must have shape [..., {K}] with nothing empty, "
                        f"got {x.shape}")
    return x


def _open(url):
    """Open a device; where it is built first, a terminal shows the step under way."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return open_device(url)
    with console.status("opening the device") as status:
        return open_device(url, progress=lambda text: status.update(f"building it: {text}"))


def multiply(layer, x, progress=None):
    """``layer(x)`` in calls of about a second on a simulated device, to have progress.

    Parameters
    ----------
    layer : Layer
    x : float32 or float16 [..., K]
        At least one token.
    progress : callable, optional
        Called as ``progress(done, total)`` with tokens, parts of them while bytes are transferred.

    Returns
    -------
    y : float32 [..., N]
    stats : dict
        As ``layer.stats``, of all calls.
    """
    N, K = layer.q.shape
    tokens = x.reshape(-1, K)
    rows = layer.device.engine.rows
    step = max(1, _CALL_MACS // (N * K) // rows) * rows
    parts, stats = [], []
    for first in range(0, len(tokens), step):
        part = tokens[first:first + step]

        def report(done, total, first=first, part=part):
            progress(first + len(part) * done / total, len(tokens))

        parts.append(layer(part, progress and report))
        stats.append(dict(layer.stats))
    total = {name: sum(part[name] for part in stats) for name in stats[0]}
    peak = total["peak_macs_per_cycle"] = stats[0]["peak_macs_per_cycle"]
    cycles = total["cycles"]
    total["utilization"] = len(tokens) * N * K / (cycles * peak) if cycles else 0.0
    return np.concatenate(parts).reshape(*x.shape[:-1], N), total


def _check(q, x, y):
    """Refuse outputs that are not those of the golden model, bit for bit."""
    from sim import golden  # as for devices behind sim:, only where it is asked for

    with progress_bar("checking"):
        wrong = np.count_nonzero(golden.matmul(q, x).view(np.uint32) != y.view(np.uint32))
    if wrong:
        raise DeviceError(f"{wrong} of {y.size} outputs differ from the golden model")


def _write(path, y):
    try:
        with path.open("wb") as file:
            np.save(file, y)
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error}") from error


def _relative_error(x, y, W):
    """``|y - x W^T| / |x W^T|``, in float64."""
    x = x.astype(np.float64)
    error = reference = 0.0
    for rows in row_blocks(len(W)):
        exact = x @ W[rows].astype(np.float64).T
        error += np.sum((y[:, rows] - exact)**2)
        reference += np.sum(exact**2)
    return float(np.sqrt(error / reference)) if reference else float(error > 0)


def _rows(summary):
    """What the table says: a list of (name, value)."""
    engine = summary["engine"]
    rows = [
        *matrix.rows(summary["matrix"], summary["tensor"], summary),
        ("tokens", f"{summary['tokens']}"), ("device", summary["device"]),
        ("engine", f"{engine['lanes']} lanes, rows {engine['rows']}, columns {engine['columns']} "
                   f"at {summary['clock_hz'] / 1e6:g} MHz")]
    if summary["cycles"]:
        rows += [
            ("cycles", f"{summary['cycles']:,} ({1e3 * summary['device_seconds']:.3f} ms)"),
            ("utilisation", f"{summary['utilization']:.1%} of "
                            f"{summary['peak_macs_per_cycle']:g} MACs per cycle"),
            ("GOPS", f"{summary['gops']:.2f} of {summary['peak_gops']:.2f}"),
            ("memory read", f"{summary['bytes_read'] / 2**20:.2f} MiB, "
                            f"{summary['read_bytes_per_second'] / 1e9:.2f} GB/s")]
    else:
        rows.append(("cycles", "this engine has no counters"))
    return rows + [
        ("relative error", f"{summary['relative_error']:.5f} against the {summary['reference']}"),
        ("golden model", "every output equal" if summary["checked"] else
         "not compared (--check does)"),
        ("time", f"{summary['seconds']:.1f} s"),
        ("written to", summary["out"] or "nowhere (--out names a file)")]
