"""``python -m host.quantize``: a weight matrix in, a quantised matrix and a summary out."""

import time
from pathlib import Path

import numpy as np

from hdl import commandline
from host.checkpoint import from_checkpoint
from host.cli import matrix
from host.quantizer import quantize

__all__ = ["main"]

_EXAMPLES = """\
examples:
  python -m host.quantize layer.npy --bits 4 --out layer.safetensors
  python -m host.quantize model.safetensors --tensor model.layers.0.mlp.up_proj.weight \\
      --bits 2 --group-size 128 --calibration inputs.npy --out up_proj.w2.safetensors
  python -m host.quantize layer.npy --scheme ternary --group-size row --json
  python -m host.quantize layer.npy --format psumbook --v 8 --codebooks 2 --out layer.safetensors
  python -m host.quantize layer.npy --format kmeans --calibration inputs.npy --out layer.safetensors
  python -m host.quantize layer.npy --format sq --bank 64 --sparsity 0.875 --low 4 --json
  python -m host.quantize layer.npy --format sq --side activation --calibration inputs.npy \\
      --out layer.safetensors
  python -m host.quantize Llama-2-7b-AQLM-2Bit-2x8 --tensor model.layers.0.mlp.up_proj \\
      --out up_proj.psumbook.safetensors
  python -m host.quantize sq-llama-7b-w4-s0 --tensor model.layers.0.mlp.up_proj \
      --calibration inputs.npy --out up_proj.kmeans.safetensors

exit status: 0 done, 1 failed, 2 bad usage
"""


def _parser():
    parser = commandline.Parser("python -m host.quantize", examples=_EXAMPLES,
                                description="Quantise a weight matrix "
                                            "[out_features, in_features].")
    parser.add_argument("input", type=Path, metavar="FILE",
                        help="the matrix: .npy, .safetensors (float32, float16, bfloat16), or the "
                             "directory of an AQLM, CodeGEMM or SqueezeLLM checkpoint, which is "
                             "converted (SqueezeLLM: quantised again, with --calibration too)")
    parser.add_argument("--tensor", metavar="NAME",
                        help="which tensor of a .safetensors file, or layer of a checkpoint "
                             "(default: the only one)")
    matrix.add_options(parser)
    parser.add_argument("--seed", type=int, default=0,
                        help="of formats that draw random numbers (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.safetensors",
                        help="where to write the quantised matrix (default: nowhere)")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    return parser


def main(argv=None):
    """Run the command line; returns the exit status (see :func:`hdl.commandline.run`)."""
    parser = _parser()

    def work(args):
        config = matrix.configuration(parser, args, args.input)
        options = [name for name in matrix.given(args) if name != "calibration"]
        if args.input.is_dir() and options:
            parser.error(f"--{options[0].replace('_', '-')} is for float matrices; {args.input} is "
                         "a checkpoint, quantised already")
        summary = _run(args, config)
        commandline.print_summary(summary, _rows(summary), as_json=args.json)

    return commandline.run(parser, work, argv)


def _run(args, config):
    """Quantise and write; returns the summary as a dict."""
    matrix.check_out(args.out)
    if args.input.is_dir():
        return _convert(args)
    W = matrix.read_array(args.input, args.tensor)
    arrays = matrix.arrays(args)
    calibration = arrays.get("calibration")
    start = time.monotonic()
    with commandline.progress_bar("quantising") as progress:
        q = quantize(W, config, seed=args.seed, progress=progress, **arrays)
    seconds = time.monotonic() - start
    if args.out is not None:
        q.save(args.out)
    W = W.astype(np.float64)
    error = W - q.dequantize()
    output_error = None
    if calibration is not None:
        x = calibration.astype(np.float64)
        output_error = _relative(x @ error.T, x @ W.T)
    return {"input": str(args.input), "tensor": args.tensor, **matrix.describe(q),
            "relative_error": _relative(error, W), "output_error": output_error,
            "seconds": round(seconds, 3), "digest": q.digest,
            "out": None if args.out is None else str(args.out)}


def _convert(args):
    """Write a layer of a checkpoint; returns the summary as a dict."""
    start = time.monotonic()
    with commandline.progress_bar("converting") as progress:
        q = from_checkpoint(args.input, args.tensor, progress=progress, **matrix.arrays(args))
    if args.out is not None:
        q.save(args.out)
    return {"input": str(args.input), "tensor": args.tensor, **matrix.describe(q),
            "relative_error": None, "output_error": None,
            "seconds": round(time.monotonic() - start, 3), "digest": q.digest,
            "out": None if args.out is None else str(args.out)}


def _relative(error, reference):
    norm = np.linalg.norm(reference)
    return float(np.linalg.norm(error) / norm) if norm else float(np.any(error))


def _rows(summary):
    """What the table says: a list of (name, value)."""
    rows = [*matrix.rows(summary["input"], summary["tensor"], summary),
            ("code bits/weight", f"{summary['code_bits_per_weight']:.3f}")]
    if summary["relative_error"] is not None:
        rows.append(("relative weight error", f"{summary['relative_error']:.4f}"))
    if summary["output_error"] is not None:
        rows.append(("relative output error", f"{summary['output_error']:.4f} on the calibration"))
    return rows + [("time", f"{summary['seconds']:.1f} s"), ("digest", summary["digest"]),
                   ("written to", summary["out"] or "nowhere (--out names a file)")]
