"""Measurements of the sq format: utilisation, cores, errors, selectors, a sweep of the design."""

import itertools
from typing import Any

import numpy as np

from hdl.config import SENTINEL_BEATS, EngineConfig
from sim import pictures
from sim.measure import SEEDS, identity, mark_front, measure, routed

__all__ = ["activation_rows", "core_rows", "dense_rows", "error_rows", "large_core_rows", "plot",
           "relation_rows", "selector_rows", "sweep", "utilization_rows"]

_INTEGERS = (4, 5, 6, 7, 8)
_GROUPS = (32, 64, 128)


def engine(family="ecp5", **fields: Any):
    """An engine for sq, by default of 64 lanes for ``64-(8/4)-0.875``."""
    return EngineConfig(**{
        **dict(format="sq", family=family, lanes=64, bank=64, high_lanes=2, turns=4,
               activation_bits=8), **fields})


def random_sq(rng, N, K, **fields):
    """An sq matrix of random weights."""
    import host
    from host.formats.sq import SQ
    from host.formats.sq_activations import SQActivationMatrix
    from sim.measure import random_layer

    config = SQ(**fields)
    if config.side != "weight":
        plain = random_layer(rng, N, K, config.bits, config.bank)
        return SQActivationMatrix(config, plain.codes, plain.scales, plain.row_scale)
    banks, count = config.banks(K), config.high_count
    mask = np.argsort(rng.random((N, banks, config.bank), np.float32), axis=2) < count
    most = config.low_max
    return host.from_codes(
        "sq", low=rng.integers(-most, most + 1, (N, banks * config.bank)),
        mask=mask.reshape(N, -1), high=rng.integers(-127, 128, (N, banks, count)),
        scales=rng.random((N, banks)) + 0.1, exponents=rng.integers(-4, 4, (N, banks)),
        bank=config.bank, sparsity=config.sparsity, low_bits=config.low, K=K)


def utilization_rows(progress):
    """Low MACs of the matrix over cycles times those of the dense part, ideal memory."""
    rows = []
    for fields, M, N, K, options, limit in (
            (dict(), 1, 4096, 4096, "", 0.95),
            (dict(sparsity=0.75), 1, 4096, 4096, "", 0.95),
            (dict(sparsity=0.75), 1, 4096, 4096, "format=sq&high_lanes=2", None),
            (dict(low=2, sparsity=0.75), 1, 4096, 4096, "", None),
            (dict(low=3), 1, 4096, 4096, "", None),
            (dict(bank=32), 1, 4096, 4096, "", None),
            (dict(bank=128, sparsity=0.9375), 1, 4096, 4096, "", None),
            (dict(), 4, 4096, 4096, "rows=4", None),
            (dict(), 1, 4096, 4096, "format=sq&sentinels=1", 0.95),
            (dict(), 4, 4096, 4096, "format=sq&rows=4&memory=ddr3", None),
            (dict(), 4, 4096, 4096, "format=sq&rows=4&memory=ddr3&sentinels=1", None),
            (dict(side="activation"), 1, 4096, 4096, "", None),
            (dict(side="activation-dynamic"), 1, 4096, 4096, "", None),
            (dict(), 1, 1024, 1024, "", None)):
        q = random_sq(np.random.default_rng(0), N, K, **fields)
        stats = measure(f"sim:?{options}" if options else "sim:", q, M, progress)
        rows.append({
            "side": q.config.side, "parameters_of": q.config.name, "M": M, "N": N, "K": K,
            "engine": options or "default",
            "cycles": stats["cycles"], "macs_per_cycle": stats["peak_macs_per_cycle"],
            "utilization": round(stats["utilization"], 4), "limit": limit,
            "met": None if limit is None else stats["utilization"] >= limit,
            **stats["identity"]})
    return rows


_AREA_LIMIT = 0.7       # of the engine with all weights at eight bits


_W4, _W8 = (f"W{bits}, groups of 64" for bits in (4, 8))


def _beside_integers(found, rows):
    """Rows of a table: cores with 64 MACs per cycle and row, and their share of those of integers.

    Of 5 / 4 and 6 / 4 times the lanes of W4's, which are no engines: as far between W4's and W8's
    as their bits.
    """
    four, eight = found[_W4], found[_W8]
    between = {}
    for bits in (5, 6):
        between[bits] = area = {
            key: round((four[key] * (8 - bits) + eight[key] * (bits - 4)) / 4)
            for key in ("comb", "ff", "max", "ebr", "dsp")}
        found[f"W{bits}, groups of 64, interpolated"] = area | {
            "mhz": None, "mhz_seeds": None, "lanes": 16 * bits, "parameters": None,
            "digest": None}
    share = lambda name, area, other: round(area["comb"] / other["comb"], 3) if \
        name.startswith("64-") else None
    return [{
        "core": name, "rows": rows, "macs": 64 * rows, **area,
        "of_w8": round(area["comb"] / eight["comb"], 3),
        **{f"of_w{bits}": share(name, area, other) for bits, other in between.items()},
        "limit": None, "met": None} for name, area in found.items()]


def _core(name, config, progress, **options):
    """Area, clock and parameters of a core."""
    from hdl.core import Core

    return routed(Core(config), f"core {name}", progress, **options) | {
        "lanes": config.lanes} | identity(config)


def _serial(lanes, rows=1):
    """The engine of integers that is compared with."""
    return EngineConfig(family="ecp5", lanes=lanes, rows=rows, scale_points=lanes // 16,
                        activation_bits=8, zero_points=False)


def core_rows(progress):
    """Area and clock of sq cores and of bit-serial ones with as many MACs per cycle, ECP5."""
    goal = "64-(8/4)-0.875"
    rows = _beside_integers({
        name: _core(name, config, progress, mhz=110) for name, config in (
            (goal, engine()), ("64-(8/4)-0.75", engine(high_lanes=4)),
            (f"{goal}, sentinels", engine(sentinels=True)),
            (_W4, _serial(64)), (_W8, _serial(128)))}, rows=1)
    for row in rows:
        if row["core"] == goal:
            row |= {"limit": _AREA_LIMIT, "met": row["of_w8"] <= _AREA_LIMIT}
    encodes = EngineConfig(format="sq", family="ecp5", lanes=64, bank=64, activation_bits=16,
                           zero_points=False)
    name = "W4, two precisions of activations"
    rows.append({"core": name, "rows": 1, "macs": 64, **_core(name, encodes, progress, mhz=110),
                 "of_w8": None, "of_w5": None, "of_w6": None, "limit": None, "met": None})
    return rows


def large_core_rows(progress):
    """The same of cores with four rows; placed once, for each takes minutes."""
    options = dict(mhz=90, seeds=SEEDS[:1])
    return _beside_integers({
        name: _core(f"{name}, 4 rows", config, progress, **options) for name, config in (
            ("64-(8/4)-0.875", engine(rows=4)),
            ("64-(8/4)-0.875, sentinels", engine(rows=4, sentinels=True)),
            (_W4, _serial(64, 4)), (_W8, _serial(128, 4)))}, rows=4)


def dense_rows(progress):
    """Bare arrays for the dense part, 64 W4A8 MACs per cycle: tables and plain MACs, 7-series.

    By Yosys, neither packed nor placed; for ECP5 see the section ``arrays``.
    """
    from hdl.synthesis import Bench, estimate_xilinx7
    from sim.baselines import MacArray, TableArray

    rows = []
    for name, array in (
            ("64 tables", TableArray(64, 4, family="xilinx7")),
            ("64 tables, 2 builders", TableArray(64, 4, build=True, family="xilinx7")),
            ("64 plain MACs", MacArray(64, 4, family="xilinx7"))):
        progress(name)
        area = estimate_xilinx7(Bench(array))
        rows.append({"array": name, **area, "lut_per_mac": round(area["lut"] / 64, 1)})
    for row in rows:
        row["times_smaller"] = round(rows[-1]["lut"] / row["lut"], 2)
    return rows


def selector_rows(progress):
    """Finding and fetching the activations of an eighth of a bank, in four cycles, ECP5."""
    from hdl.sentinels import Sentinels
    from sim.selectors import MultiplexedActivations, RAMActivations

    units = (
        ("places from sentinels", 64, 4, Sentinels(engine(sentinels=True)), 4 + 8 * 9 / 64),
        ("places from sentinels", 32, 8, Sentinels(engine(bank=32, high_lanes=1, sentinels=True)),
         4 + 4 * 9 / 32),
        ("places in the stream", 64, 4, None, 4 + 8 * (8 + 6) / 64),
        ("places in the stream", 32, 8, None, 4 + 4 * (8 + 5) / 32),
        ("activations from RAM", 64, 1, RAMActivations(64, 2, "ecp5"), None),
        ("activations by multiplexers", 64, 1, MultiplexedActivations(64, 2, "ecp5"), None))
    rows = []
    for name, bank, banks, unit, bits in units:
        area: dict[str, Any] = routed(unit, name, progress, mhz=150) if unit is not None else {
            key: 0 for key in ("comb", "ff", "max", "ebr", "dsp")} | {"mhz": None,
                                                                     "mhz_seeds": None}
        # Of a weight, with four low bits at every place, scales not counted.
        rows.append({"unit": name, "bank": bank, "banks": banks, **area,
                     "comb_64_lanes": area["comb"] * 256 // (bank * banks), "stream_bits": bits})
    return rows


def _relative(W, approximate):
    """Root of the mean squared error over that of the weights."""
    return float(np.sqrt(np.square(approximate - W).mean() / np.square(W).mean()))


def _layers(size=1024):
    """Weights and inputs: (name, W, calibration, test); of drawn ones no inputs."""
    from sim import digits

    rng = np.random.default_rng(0)
    yield "Gaussian", rng.standard_normal((size, size)).astype(np.float32), None, None
    yield "Student's t, 4", rng.standard_t(4, (size, size)).astype(np.float32), None, None
    model = digits.load()
    yield ("digits, 1024 x 1024", model.weights[1], model.run(model.train)[1],
           model.run(model.test)[1])
    K, tokens = 2048, 4096
    mix = rng.standard_normal((256, K)) * rng.lognormal(sigma=0.7, size=K)
    x = rng.standard_normal((tokens + 512, 256)) @ mix / 16
    x = (x + 0.3 * rng.standard_normal(x.shape)).astype(np.float32)
    W = (rng.standard_t(5, (size, K)) / np.sqrt(K)).astype(np.float32)
    yield "t, 5, correlated inputs, 1024 x 2048", W, x[:tokens], x[tokens:]


_POINTS: tuple[dict[str, Any], ...] = (
    dict(low=2, sparsity=0.875), dict(low=2, sparsity=0.75), dict(low=3, sparsity=0.9375),
    dict(low=3), dict(low=3, sparsity=0.75), dict(bank=128, sparsity=0.9375),
    dict(sparsity=0.9375), dict(bank=32), dict(), dict(bank=128), dict(bank=32, sparsity=0.75),
    dict(sparsity=0.75), dict(bank=128, sparsity=0.75), dict(low=2, sparsity=0.5),
    dict(low=3, sparsity=0.5), dict(sparsity=0.5))


def error_rows(progress):
    """Error of weights, and of outputs where there are inputs, against stored bits."""
    import host
    from host.formats.sq import SQ
    from sim.quantizer_bench import output_error

    rows = []
    for layer, W, calibration, test in _layers():
        cases = [("sq", SQ(**fields).name, fields) for fields in _POINTS]
        cases += [("bitserial", f"INT{bits}, groups of {group}",
                   dict(bits=bits, group_size=group))
                  for bits in _INTEGERS for group in _GROUPS]
        found = []
        for format, name, fields in cases:
            progress(f"{layer}: {name}")
            q = host.quantize(W, format, **fields)
            row = {"layer": layer, "format": format, "weights": name,
                   "paper_bits": q.config.paper_bits if format == "sq" else None,
                   "bits": round(q.bits_per_weight, 3),
                   "error": float(f"{_relative(W, q.dequantize()):.3g}"),
                   "calibrated_bits": None, "output_error": None}
            if calibration is not None:
                q = host.quantize(W, format, calibration=calibration, **fields)
                row["calibrated_bits"] = round(q.bits_per_weight, 3)    # with factors of columns
                row["output_error"] = float(
                    f"{np.sqrt(output_error(W, q.dequantize(), test)):.3g}")
            found.append(row)
        for row in found:
            row["over_integers"] = {
                key: _over_integers(row, found, bits, key)
                for bits, key in (("bits", "error"), ("calibrated_bits", "output_error"))
            } if row["format"] == "sq" else None
        rows += found
    return rows


def _over_integers(row, found, bits_key, key):
    """An error over that of integers in as many bits.

    Between points of their Pareto front the logarithm of the error is linear in the bits.
    """
    if row[key] is None:
        return None
    points = sorted((r[bits_key], r[key]) for r in found if r["format"] == "bitserial")
    front = [p for p in points if not any(o[0] <= p[0] and o[1] < p[1] for o in points)]
    if not front[0][0] <= row[bits_key] <= front[-1][0]:
        return None
    bits, errors = zip(*front)
    return round(row[key] / float(np.exp(np.interp(row[bits_key], bits, np.log(errors)))), 3)


def relation_rows(progress):
    """Errors with a power of two between the steps of a bank, with any, and with a fixed one."""
    from host.formats.sq import SQ
    from host.formats.sq_training import Banks

    rows = []
    for layer, W, _, _ in itertools.islice(_layers(), 3):
        for fields in (dict(), dict(sparsity=0.75), dict(bank=32), dict(low=3), dict(low=2)):
            config = SQ(**fields)
            errors = {}
            for relation in ("power", "free", "fixed"):
                progress(f"{layer}: {config.name}, {relation}")
                banks = Banks(config, W.shape[1], np.ones(W.shape[1]), np.ones(W.shape[1]),
                              relation)
                w = W.T.astype(np.float64, order="C")
                errors[relation] = _relative(w, banks.values(w))
            rows.append({
                "layer": layer, "weights": config.name,
                **{name: float(f"{error:.3g}") for name, error in errors.items()},
                "power_over_free": round(errors["power"] / errors["free"], 4),
                "fixed_over_free": round(errors["fixed"] / errors["free"], 2)})
    return rows


def _tokens(kind, rng, K):
    """A function that draws tokens [count, K] of a kind, all with the same channels."""
    loud = np.where(rng.permutation(K) < K // 100, 20.0, 1.0)
    means = rng.normal(0, 6, K) * (rng.permutation(K) < K // 10)
    uneven = rng.lognormal(0, 0.7, K)
    return {
        "Student's t, 4, 1 % of channels 20 times larger":
            lambda count: rng.standard_t(4, (count, K)) * loud,
        "Gaussian, 10 % of channels with means of 6 sigma":
            lambda count: rng.standard_normal((count, K)) + means,
        "Gaussian, channels lognormal(0.7)": lambda count: rng.standard_normal((count, K)) * uneven,
        "Gaussian": lambda count: rng.standard_normal((count, K))}[kind]


_TOKENS = {
    # kind: at most, over the error of W4A8
    "Student's t, 4, 1 % of channels 20 times larger": 1.12,
    "Gaussian, 10 % of channels with means of 6 sigma": 1.12,
    "Gaussian, channels lognormal(0.7)": None, "Gaussian": None}


def activation_rows(progress, M=256, N=512, K=2048, calibration=1024):
    """Output error with two precisions of activations, over that of W4A8 with the same weights.

    Weights are Gaussian, rounded to nearest on 16 levels with a scale for each bank.  *W4A4* rounds
    all activations to 4 bits with a step for each token and bank.
    """
    import host
    from host.activations import quantize_tokens
    from host.formats.sq import SQ
    from host.formats.sq_activations import SQActivationMatrix, reordered
    from sim import golden

    rows = []
    for kind, limit in _TOKENS.items():
        rng = np.random.default_rng(0)
        W = (rng.standard_normal((N, K)) / np.sqrt(K)).astype(np.float32)
        draw = _tokens(kind, rng, K)
        X, x = (draw(count).astype(np.float32) for count in (calibration, M))
        exact = x.astype(np.float64) @ W.T

        def error(found, exact=exact):
            return float(np.sqrt(np.square(found - exact).sum() / np.square(exact).sum()))

        plain = host.quantize(W, bits=4, group_size=64)
        xq, scale = quantize_tokens(x)
        base = error((xq * scale[:, None].astype(np.float64)) @ plain.dequantize().T)
        banks = x.reshape(M, -1, 64).astype(np.float64)
        step = np.abs(banks).max(axis=2, keepdims=True) / 7
        coarse = (np.rint(banks / step) * step).reshape(M, K)
        found = {"W4A8": base, "W4A4, a step for each bank": error(coarse @ plain.dequantize().T)}
        for name, fields in (
                ("static, energy", dict(side="activation")),
                ("static, the paper's importance", dict(side="activation", importance="paper")),
                ("static, energy, 64-(8/4)-0.75", dict(side="activation", sparsity=0.75)),
                ("dynamic", dict(side="activation-dynamic"))):
            progress(f"{kind}: {name}")
            q = host.quantize(W, "sq", method="rtn", calibration=X, **fields)
            found[name] = error(golden.matmul(q, x))
        # What the quantiser's factors of low columns bring.
        progress(f"{kind}: columns as they are")
        config = SQ(side="activation")
        order = reordered(W, config, X)
        plain = host.quantize(W[:, order], bits=4, group_size=64)
        bare = SQActivationMatrix(config, plain.codes, plain.scales, plain.row_scale,
                                  permutation=order)
        found["static, energy, columns as they are"] = error(golden.matmul(bare, x))
        for name, value in found.items():
            goal = limit if name == "static, energy" else None
            rows.append({"activations": kind, "quantiser": name, "error": round(value, 4),
                         "over_w4a8": round(value / base, 3), "limit": goal,
                         "met": None if goal is None else value / base <= goal})
    return rows


def sweep(progress, size=4096, sample=512):
    """Trade-offs of the sq format: error, stored bits, cycles and area over (b, s, low, storage).

    Integers stand beside them, as storage ``"integers"`` with their group as b.  The error is that
    of a Student-t matrix of `sample` rows and columns; bits and cycles are of a `size` x `size`
    matrix and one token from ideal memory, cycles and area by the models of
    :mod:`host.performance` and :mod:`hdl.estimate` for 64 lanes on an ECP5, with high lanes for
    the full rate of the low planes; where it may, also for an engine that finds places from
    sentinels.
    """
    import host
    from hdl.config import DeviceConfig
    from hdl.estimate import estimate
    from host.formats.sq import SQ
    from host.pack import column_beats
    from host.performance import one_pass

    W = np.random.default_rng(0).standard_t(4, (sample, sample)).astype(np.float32)
    rows = []

    def costs(machine, q, planes):
        area = estimate(DeviceConfig(engine=machine, memory="onchip", memory_beats=1024))
        work = one_pass(machine, (size, size), group_size=q.config.group_size, planes=planes,
                        zeros=machine.zero_points)
        return {"error": float(f"{_relative(W, q.dequantize()):.3g}"), "cycles": work.cycles,
                "macs_per_cycle": round(size**2 / work.cycles), "high_lanes": machine.high_lanes,
                "image_bits": round(work.beats * (machine.code_bits + machine.side_bits)
                                    / size**2, 3),
                "comb": area["comb"], "ebr": area["bram"], "dsp": area["dsp"]}

    for bits, group in itertools.product(_INTEGERS, _GROUPS):
        progress(f"INT{bits}, groups of {group}")
        machine = _serial(64).replace(scale_points=256 // group, address_bits=16)
        rows.append({
            "b": group, "s": None, "low": bits, "storage": "integers",
            "bits": round(bits + 16 / group + 32 / size, 3), "paper_bits": None,
            **costs(machine, host.quantize(W, bits=bits, group_size=group), bits),
            "sentinels_image_bits": None, "sentinels_cycles": None, "sentinels_comb": None})
    for bank, high, low in itertools.product((32, 64, 128), (1, 2, 4, 8, 16, 32, 64),
                                             (2, 3, 4)):
        if high > bank // 2:
            continue
        config = SQ(bank=bank, sparsity=1 - high / bank, low=low)
        progress(config.name)
        q = host.quantize(W, config)
        lanes, turns = (q.needs(8)[name][0] for name in ("high_lanes", "turns"))
        machine = engine(bank=bank, high_lanes=lanes, turns=turns, address_bits=16)
        shared = costs(machine, q, column_beats(q, machine))
        if lanes <= 2 and high <= SENTINEL_BEATS * lanes:
            found = machine.replace(sentinels=True)
            of_found = costs(found, q, column_beats(q, found))
        else:
            of_found = {}
        shared |= {f"sentinels_{name}": of_found.get(name)
                   for name in ("image_bits", "cycles", "comb")}
        for storage in ("sentinel", "mask"):
            code = low + 8 * high / bank if storage == "sentinel" else \
                1 + low * config.sparsity + 8 * high / bank
            rows.append({"b": bank, "s": config.sparsity, "low": low, "storage": storage,
                         "bits": round(code + 19 / bank + 32 / size, 3),
                         "paper_bits": config.paper_bits, **shared})
    mark_front(rows, "bits", "error", "cycles")
    return sorted(rows, key=lambda row: row["bits"])


def plot(rows, path):
    """Error over bits, cycles and area of a sweep: a marker per bank, a colour per low width.

    Of the two storages the smaller.  Integers are lines, one per group size.
    """
    drawn = pictures.figure(14, 5.5)
    panels = drawn.subplots(1, 3, sharey=True)
    smaller = {(r["b"], r["s"], r["low"]): r for r in sorted(rows, key=lambda r: -r["bits"])}
    integers = [r for r in rows if r["storage"] == "integers"]
    for axes, key, unit, label in zip(panels, ("bits", "cycles", "comb"), (1, 1000, 1000), (
            "stored bits per weight", "thousand cycles for 4096 x 4096, 64 lanes",
            "thousand COMB of the device, estimated")):
        for group, line in zip(_GROUPS, (":", "--", "-")):
            points = [r for r in integers if r["b"] == group]
            axes.semilogy([r[key] / unit for r in points], [r["error"] for r in points], line + "x",
                          color="0.5", markersize=4, label=f"INT, groups of {group}")
        for (bank, marker), (i, low) in itertools.product(
                zip(_GROUPS, "os^"), enumerate((2, 3, 4))):
            for front in (True, False):
                chosen = [r for r in smaller.values() if r["b"] == bank and r["low"] == low
                          and r["s"] is not None and r["pareto"] is front]
                axes.semilogy(
                    [r[key] / unit for r in chosen], [r["error"] for r in chosen], marker,
                    color=f"C{i}", fillstyle="full" if front else "none",
                    label=None if front else f"b = {bank}, 8/{low}")
        axes.set_xlabel(label)
        axes.grid(which="both", alpha=0.2)
    for r in smaller.values():
        if (r["b"], r["low"]) == (64, 4) and r["s"] in (0.5, 0.75, 0.875, 0.9375):
            panels[0].annotate(f"{r['s']:g}", (r["bits"], r["error"]), fontsize=7, color="C2",
                               xytext=(-8, -9), textcoords="offset points", ha="right")
    panels[0].set_ylabel("error of weights, relative")
    ticks = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    panels[0].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    panels[0].set_yticks([], minor=True)
    handles, labels = panels[0].get_legend_handles_labels()
    drawn.suptitle("sq and integers, Student-t weights.  Filled: on the Pareto front of bits, "
                   "error and cycles.  Numbers: s, of 8/4.")
    drawn.legend(handles, labels, ncols=6, fontsize="small", loc="lower center")
    drawn.tight_layout(rect=(0, 0.1, 1, 1))
    pictures.save(drawn, path)
