"""Measurements of the kmeans format: utilisation, what outliers cost, output errors, cores."""

from typing import Any

import numpy as np

from hdl.config import BLOCK, EngineConfig
from hdl.errors import LutraError
from sim.measure import identity, measure, routed

__all__ = ["arrays_rows", "chain_rows", "classifier_rows", "core_rows", "error_rows",
           "random_kmeans", "token_rows", "topk_rows", "utilization_rows"]

_LIMIT = 1.05       # cycles with outliers over cycles without


def engine(family="ecp5", *, lanes, builders, v=2, b=8, **fields: Any):
    """An engine whose tables are in block RAM, for tokens of up to 4096 elements."""
    return EngineConfig(**{
        **dict(format="kmeans", family=family, v=v, b=b, lanes=lanes, builders=builders,
               scale_points=1, zero_points=False, epilogue=False, n_tile=4096,
               activation_bytes=8192, address_bits=20, block_ram_blocks=lanes * v // BLOCK),
        **fields})


def random_kmeans(rng, N, K, *, bits=4, outliers=0.005):
    """A kmeans matrix of random codes."""
    import host

    return host.from_codes(
        "kmeans", codes=rng.integers(0, 2**bits, (N, K)), scales=rng.random(N),
        centroids=np.linspace(-2, 2, 2**bits),
        activation_centroids=np.linspace(-3, 3, 16), outliers=outliers)


def utilization_rows(progress):
    """Useful MACs over peak MACs from ideal memory, and cycles with outliers over those without."""
    rows: list[dict[str, Any]] = []
    cases: list[tuple[int, int, int, int, float, str, Any]] = [
        (1, 4096, 4096, 4, 0.0, "", None), (1, 4096, 4096, 4, 0.005, "", 0.95),
        (1, 4096, 4096, 4, 0.01, "", None), (4, 4096, 4096, 4, 0.005, "", None),
        (1, 4096, 4096, 2, 0.005, "", None),
        (1, 4096, 4096, 4, 0.005, "format=kmeans&lanes=128&builders=16", None),
        (1, 1024, 1024, 4, 0.005, "", None)]
    for M, N, K, bits, outliers, options, limit in cases:
        q = random_kmeans(np.random.default_rng(0), N, K, bits=bits, outliers=outliers)
        stats = measure(f"sim:?{options}" if options else "sim:", q, M, progress)
        same = [r for r in rows if (r["M"], r["N"], r["K"], r["weights"]) == (M, N, K, f"W{bits}A4")
                and r["outliers"] == 0 and r["digest"] == stats["identity"]["digest"]]
        cost = round(stats["cycles"] / same[0]["cycles"], 4) if same else None
        goal = limit is not None
        rows.append({
            "weights": f"W{bits}A4", "M": M, "N": N, "K": K,
            "engine": options.removeprefix("format=kmeans&") or "default",
            "outliers": 2 * q.outlier_count, "cycles": stats["cycles"],
            "utilization": round(stats["utilization"], 4), "limit": limit,
            "times": cost, "times_limit": _LIMIT if goal else None,
            "met": None if cost is None or limit is None
            else stats["utilization"] >= limit and cost <= _LIMIT,
            **stats["identity"]})
    return rows


def uniform(a, bits=4, group=None):
    """Round to nearest on 2**bits - 1 levels, a step for each row or group of each row."""
    groups = a.reshape(len(a), -1, group or a.shape[1]).astype(np.float64)
    largest = 2**(bits - 1) - 1
    step = np.abs(groups).max(axis=2, keepdims=True) / largest
    return (np.rint(groups / np.where(step > 0, step, 1)) * step).reshape(a.shape)


def _loud_tokens(rng, tokens, K, loud):
    """Student's t of four degrees of freedom, some channels twenty times as large."""
    x = rng.standard_t(4, (tokens, K))
    x[:, loud] *= 20
    return x.astype(np.float32)


def error_rows(progress, M=64, N=512, K=4096, channels=8):
    """Output error of W4A4 on heavy-tailed tokens, relative to the outputs (Frobenius norms)."""
    import host
    import sim.golden

    rng = np.random.default_rng(0)
    loud = rng.choice(K, channels, replace=False)
    W = rng.standard_normal((N, K)).astype(np.float32)
    calibration, x = (_loud_tokens(rng, tokens, K, loud) for tokens in (64, M))
    exact = x.astype(np.float64) @ W.T

    def error(y):
        return float(np.linalg.norm(y - exact) / np.linalg.norm(exact))

    def kmeans(name, **fields):
        progress(name)
        return name, error(sim.golden.matmul(host.quantize(W, "kmeans", **fields), x))

    found = dict([
        kmeans("kmeans", calibration=calibration),
        kmeans("kmeans, W4A3", calibration=calibration, activation_bits=3),
        kmeans("kmeans, not calibrated"),
        kmeans("kmeans, no outliers kept", calibration=calibration, outliers=0.0)])
    k = host.KMeans().outlier_count(K)
    kept = np.zeros(x.shape, bool)
    order = np.argsort(x, axis=1)
    np.put_along_axis(kept, np.concatenate([order[:, :k], order[:, -k:]], axis=1), True, axis=1)
    inliers = np.where(kept, 0, x)
    weights = uniform(W)
    found |= {"uniform": error(uniform(x) @ weights.T),
              "uniform, the same outliers kept":
                  error((uniform(inliers) + np.where(kept, x, 0)) @ weights.T),
              "uniform, g 128": error(uniform(x, group=128) @ uniform(W, group=128).T)}
    goals = {"uniform": 0.30, "uniform, the same outliers kept": 0.70}
    return [{"quantiser": name, "M": M, "N": N, "K": K, "error": round(value, 4),
             "kmeans_share": round(found["kmeans"] / value, 3), "limit": goals.get(name),
             "met": found["kmeans"] <= goals[name] * value if name in goals else None}
            for name, value in found.items()]


def token_rows(progress, M=64, N=512):
    """The device's token scale against each token's best of 21, by output error.

    The best is the one with the least error of the activations.
    """
    import host
    import sim.golden
    from host.activations import quantize_tokens
    from host.formats.kmeans import KMeansMatrix

    rows = []
    for K in (1024, 4096):
        for huge in (False, True):
            progress(f"K={K}, " + ("one huge element" if huge else "no huge element"))
            rng = np.random.default_rng(0)
            W = rng.standard_normal((N, K)).astype(np.float32)
            x = rng.standard_t(4, (M, K)).astype(np.float32)
            if huge:
                x[np.arange(M), rng.integers(K, size=M)] = 1000 * np.abs(x).mean()
            q = host.quantize(W, "kmeans", calibration=rng.standard_t(4, (128, K)))
            levels, scale = quantize_tokens(x, 16)
            V = q.dequantize().astype(np.float64)

            def errors(factor, tokens=slice(None), q=q, levels=levels, scale=scale, V=V, x=x):
                scaled = KMeansMatrix(
                    q.config, q.shape, q.codes, q.centroids, q.row_scale, q.activation_centroids,
                    q.activation_step * factor)
                values = np.array([sim.golden.token_values(scaled, token)[0]
                                   for token in levels[tokens]])
                units = scaled.token_units(levels[tokens], scale[tokens])[:, None].astype(float)
                error = values * units - x[tokens]
                return np.linalg.norm(error, axis=1), np.linalg.norm(error @ V.T, axis=1)

            candidates = np.array([errors(f) for f in np.geomspace(0.6, 1.6, 21)])
            best = candidates[candidates[:, 0].argmin(axis=0), 1, np.arange(M)]
            inliers = ~q.outliers(levels)
            magnitudes = np.abs(levels.astype(np.int64))
            of_all = magnitudes.mean(axis=1) / magnitudes.mean(axis=1, where=inliers)
            simple = [errors(f, slice(i, i + 1))[1] for i, f in enumerate(of_all)]
            ratio, ratio_all = (float(np.linalg.norm(found) / np.linalg.norm(best))
                                for found in (errors(1)[1], simple))
            rows.append({"K": K, "huge_element": 1000 if huge else None,
                         "error_over_best": round(ratio, 4), "limit": 1.03, "met": ratio <= 1.03,
                         "mean_of_all": round(ratio_all, 4)})
    return rows


def classifier_rows(progress, seeds=5, hidden=None, epochs=None):
    """Accuracy of the demo's classifier, trained from five seeds, in points below float."""
    import tempfile
    from pathlib import Path

    import host
    from sim import digits, golden

    def kmeans(network, bits):
        x = network.test
        for i, (W, bias, inputs) in enumerate(zip(network.weights, network.biases,
                                                  network.run(network.train))):
            q = host.quantize(W, "kmeans", activation_bits=bits, calibration=inputs)
            x = golden.matmul(q, x, bias)
            x = np.maximum(x, 0) if i < len(network.weights) - 1 else x
        return x

    def nearest(network, bits):
        x = network.test
        for i, (W, bias) in enumerate(zip(network.weights, network.biases)):
            x = uniform(x, bits) @ uniform(W).T + bias
            x = np.maximum(x, 0) if i < len(network.weights) - 1 else x
        return x

    cases = {"kmeans W4A4": (kmeans, 4, 0.5), "kmeans W4A3": (kmeans, 3, 1.0),
             "uniform W4A4": (nearest, 4, None), "uniform W4A3": (nearest, 3, None)}
    points: dict[str, list[float]] = {"float": [], **{name: [] for name in cases}}
    options = {name: value for name, value in (("hidden", hidden), ("epochs", epochs)) if value}
    for seed in range(seeds):
        progress(f"training, seed {seed}")
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "digits.safetensors"
            digits.train(path, seed=seed, **options)
            network = digits.load(path)

        def accuracy(logits, network=network):
            return float(100 * (logits.argmax(axis=1) == network.test_labels).mean())

        points["float"].append(accuracy(network.run(network.test)[-1]))
        for name, (run, bits, _) in cases.items():
            progress(f"{name}, seed {seed}")
            points[name].append(accuracy(run(network, bits)))
    reference = np.mean(points["float"])
    rows = []
    for name, found in points.items():
        below = float(reference - np.mean(found))
        limit = cases[name][2] if name in cases else None
        rows.append({"network": name, "seeds": seeds, "accuracy": round(float(np.mean(found)), 2),
                     "worst": round(min(found), 2), "below_float": round(below, 2), "limit": limit,
                     "met": None if limit is None else below <= limit})
    return rows


def chain_rows(progress, K=512, N=1024, tokens=16):
    """A gated block, gate and up, SiLU, product, down: as a chain against its layers apart."""
    import host
    import sim.golden
    from host.functions import apply

    rng = np.random.default_rng(0)
    W = [rng.standard_normal(shape) / shape[1]**0.5 for shape in ((N, K), (N, K), (K, N))]

    def normalised(x):
        return x / np.sqrt((x**2).mean(axis=1, keepdims=True))

    def hidden(x, norm):
        found = apply("silu", x @ W[0].T) * (x @ W[1].T)
        return normalised(found) if norm else found

    calibration, x = (normalised(rng.standard_t(4, (count, K))) for count in (256, tokens))
    x = x.astype(np.float32)
    rows = []
    with host.open("sim:?format=kmeans", progress=progress) as device:
        for norm, bits in ((False, 4), (False, 3), (True, 4)):
            progress("quantising")
            inputs = calibration, calibration, hidden(calibration, norm)
            q = [host.quantize(w, "kmeans", activation_bits=bits, calibration=c)
                 for w, c in zip(W, inputs)]
            exact = hidden(x.astype(np.float64), norm) @ W[2].T

            def error(y, exact=exact):
                return round(float(np.linalg.norm(y - exact) / np.linalg.norm(exact)), 4)

            progress("apart")
            gate, up, down = (device.load(m) for m in q)
            product = apply("silu", gate(x).astype(np.float64)) * up(x)
            y = down((normalised(product) if norm else product).astype(np.float32))
            apart = [layer.stats for layer in (gate, up, down)]
            name = "gate, up, SiLU, product, " + ("RMSNorm, " if norm else "") + "down"
            common = {"block": name, "weights": f"W4A{bits}", "M": tokens, "K": K, "N": N}
            rows.append({**common, "how": "layers apart, SiLU and product in float on the host",
                         "error": error(y), "cycles": sum(s["cycles"] for s in apart),
                         "link_bytes": tokens * (2 * (K + K + N) + 8 * (N + N + K))})
            progress("chain")
            chain = device.chain([
                (device.load(q[0], activation="silu", out="index"),
                 device.load(q[1], out="index")), *([host.RMSNorm()] if norm else []), down])
            y = chain(x)
            if not np.array_equal(y, sim.golden.chain(chain, x)):
                raise LutraError("a chain does not equal the golden model")
            rows.append({**common, "how": "chain", "error": error(y),
                         "cycles": chain.stats["cycles"],
                         "link_bytes": tokens * (2 * (K + K) + 8 * K),
                         **identity(device.transport.config)})
    return rows


def topk_rows(progress, K=4096):
    """Finding k outliers on each side of 4096 elements: trees against sorted lists."""
    from hdl.topk import Orizuru, SortedLists
    from host.performance import topk_cycles

    rows = []
    trees = routed(Orizuru(K, family="ecp5"), "Orizuru", progress, mhz=100)
    for k in (4, 10, 21):
        rows.append({"unit": "Orizuru", "k": k, **trees, "cycles": topk_cycles(K, k)})
        found = routed(SortedLists(K, k, family="ecp5"), f"lists of {k}", progress, mhz=60)
        rows.append({"unit": "sorted lists", "k": k, **found, "cycles": K + 2 * k + 8})
    return rows


def arrays_rows(progress):
    """Bare arrays of 64 W4A4 products per cycle on an LFE5U-85F: indexes against numbers."""
    from sim.baselines import MacArray
    from sim.codebook_baselines import PsumbookArray
    from sim.index_macs import (
        BucketArray,
        CentroidMacArray,
        Compensation,
        HistogramCounter,
        ProductArray,
    )

    macs, family = 64, "ecp5"
    arrays: dict[str, tuple[Any, bool | None, float, int]] = {
        # name: (array, whether outliers cost nothing, MACs per cycle, clock to aim at)
        "row, true values": (PsumbookArray(32, 2, 8, builders=4, format="kmeans", family=family),
                             True, macs, 100),
        "row, centroids": (PsumbookArray(32, 2, 8, builders=4, family=family), False, macs, 100),
        "product": (ProductArray(macs, family=family), False, macs, 100),
        "bucket": (BucketArray(macs, family=family), True, _bucket_macs(macs), 80),
        "centroid to DSP": (CentroidMacArray(macs, family=family), True, macs, 100),
        "compensation, 2 of a tile": (Compensation(macs, 2, family=family), None, macs, 100),
        "compensation, 8 of a tile": (Compensation(macs, 8, family=family), None, macs, 100),
        "histogram": (HistogramCounter(16, family=family), False, 16, 80),
        "plain MAC, uniform W4A4": (MacArray(macs, 4, activation_bits=4, family=family), False,
                                    macs, 100)}
    found = {name: routed(array, name, progress, mhz=mhz)
             for name, (array, _, _, mhz) in arrays.items()}
    base = found["plain MAC, uniform W4A4"]["comb"] / macs
    return [{"array": name, "outliers_free": free, "macs": round(rate, 1), **found[name],
             **{f"{key}_per_mac": round(found[name][key] / rate, 2)
                for key in ("comb", "ff", "ebr", "dsp")},
             "times_plain": round(found[name]["comb"] / rate / base, 2)}
            for name, (_, free, rate, _) in arrays.items()]


def _bucket_macs(columns, K=4096):
    """Products per cycle of a token of K elements, the buckets' drain and sixteen sums included."""
    return columns * K / (K + 16 * (columns + 2))


def core_rows(progress):
    """Area and clock of kmeans cores on an LFE5U-85F of speed 6: median of three seeds."""
    from hdl.core import Core

    rows = []
    for name, config in (
            ("W4", engine(lanes=64, builders=8)), ("W2", engine(lanes=64, builders=8, v=4)),
            ("W4, chains", engine(lanes=64, builders=8, epilogue=True))):
        found = routed(Core(config), f"core {name}, {config.lanes} lanes", progress, mhz=80)
        macs = config.peak_macs()
        rows.append({
            "core": name, "lanes": config.lanes, "rows": config.rows, "builders": config.builders,
            "macs": macs, **found, "comb_per_mac": round(found["comb"] / macs, 2),
            "comb_limit": None, "mhz_limit": None, "met": None, **identity(config)})
    return rows
