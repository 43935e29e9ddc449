"""Measurements of the quantisers: error of the weights, and of the outputs with calibration."""

import time
from typing import Any

import numpy as np

__all__ = ["calibration_rows", "error_rows", "output_error"]

_CALIBRATED = (
    ("bitserial", dict(bits=2, group_size=None)), ("bitserial", dict(bits=2)),
    ("bitserial", dict(bits=2, scheme="asymmetric")), ("bitserial", dict(bits=2, group_size=64)),
    ("bitserial", dict(bits=3, group_size=None)),
    ("psumbook", dict(v=8, codebooks=2, group_size=None)), ("psumbook", dict(v=8, codebooks=2)),
    ("psumbook", dict(v=4, codebooks=1, group_size=None)), ("psumbook", dict(v=4, codebooks=1)),
    ("psumbook", dict(v=8, codebooks=3, group_size=None)))


def _name(format, fields):
    """What a quantised matrix is, in a few words."""
    group = fields.get("group_size", 128) or "row"
    if format == "bitserial":
        return f"{fields['bits']}-bit {fields.get('scheme', 'symmetric')}, g {group}"
    return f"m{fields['codebooks']}v{fields['v']}, g {group}"


def error_rows(progress, size=4096):
    """Squared error of an i.i.d. Gaussian matrix, a scale per row, over its variance.

    Calibration is with i.i.d. Gaussian tokens, twice as many as columns: for the time it takes, and
    to see that what they seem to say about the columns is not believed.
    """
    import host

    rng = np.random.default_rng(0)
    W = rng.standard_normal((size, size)).astype(np.float32)
    tokens = rng.standard_normal((2 * size, size)).astype(np.float32)
    rows = []
    cases: list[tuple[str, dict[str, Any], Any, Any]] = [
        ("psumbook", dict(v=8, codebooks=2, code_bits=8, group_size=None), 0.094, 120),
        ("psumbook", dict(v=4, codebooks=1, code_bits=8, group_size=None), 0.100, 120),
        ("bitserial", dict(bits=2, group_size=None), None, None),
        ("psumbook", dict(v=8, codebooks=2, code_bits=8, group_size=None, calibration=tokens),
         0.094, 900),
        ("psumbook", dict(v=4, codebooks=1, code_bits=8, group_size=None, calibration=tokens),
         0.100, 900)]
    for format, fields, limit, seconds_limit in cases:
        name = _name(format, fields) + (", calibrated" if "calibration" in fields else "")
        progress(f"{format} {name}")
        start = time.perf_counter()
        q = host.quantize(W, format, **fields)
        seconds = time.perf_counter() - start
        error = float(((q.dequantize() - W)**2).mean() / W.var())
        rows.append({
            "format": format, "weights": name, "N": size, "K": size,
            "code_bits": round(q.code_bits_per_weight, 4),
            "bits": round(q.bits_per_weight, 4), "error": round(error, 5), "limit": limit,
            "seconds": round(seconds, 1), "seconds_limit": seconds_limit,
            "met": None if seconds_limit is None else
            (limit is None or error <= limit) and seconds <= seconds_limit})
    return rows


def output_error(W, approximate, x):
    """Squared error of ``x W^T`` over its squared size."""
    exact = x.astype(np.float64) @ W.T
    return float(((x @ (approximate - W).T.astype(np.float64))**2).sum() / (exact**2).sum())


def _layers():
    """Layers with inputs to calibrate on and others to judge by: (name, W, calibration, test)."""
    from sim import digits

    model = digits.load()
    yield ("digits, hidden layer", model.weights[1], model.run(model.train)[1],
           model.run(model.test)[1])
    rng = np.random.default_rng(0)
    N, K, tokens = 1024, 2048, 4096
    # Inputs of which 256 directions carry most, with some loud channels, as a language model's.
    mix = rng.standard_normal((256, K)) * rng.lognormal(sigma=0.7, size=K)
    x = rng.standard_normal((tokens + 512, 256)) @ mix / 16
    x = (x + 0.3 * rng.standard_normal(x.shape)).astype(np.float32)
    W = (rng.standard_t(5, (N, K)) / np.sqrt(K)).astype(np.float32)
    yield "Student's t, correlated inputs", W, x[:tokens], x[tokens:]


def calibration_rows(progress):
    """Output error on inputs that the quantiser has not seen, by format and stored bits."""
    import host

    rows = []
    for layer, W, calibration, test in _layers():
        found = []
        for format, fields in _CALIBRATED:
            progress(f"{layer}: {format} {_name(format, fields)}")
            start = time.perf_counter()
            q = host.quantize(W, format, calibration=calibration, **fields)
            found.append({
                "layer": layer, "N": W.shape[0], "K": W.shape[1], "format": format,
                "weights": _name(format, fields), "bits": round(q.bits_per_weight, 3),
                "error": float(f"{output_error(W, q.dequantize(), test):.3g}"),
                "seconds": round(time.perf_counter() - start, 1)})
        gptq = [row for row in found if row["weights"].startswith("2-bit")]
        for row in found:
            # The best two-bit GPTQ in as many bits; the smallest that is larger counts as well.
            enough = min((r["bits"] for r in gptq if r["bits"] >= row["bits"]), default=0)
            rivals = [r["error"] for r in gptq if r["bits"] <= enough]
            compared = rivals and row["format"] == "psumbook"
            row |= {"gptq_error": min(rivals) if compared else None,
                    "met": row["error"] < min(rivals) if compared else None}
        rows += found
    return rows
