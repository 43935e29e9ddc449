"""What the sections of ``python -m sim.bench`` measure with."""

import dataclasses
import statistics
import time

import numpy as np

from hdl.errors import LutraError

__all__ = ["SEEDS", "identity", "largest", "mark_front", "measure", "random_layer", "routed"]

SEEDS = (1, 2, 3)


def identity(config):
    """What says which engine or device a row is of: its parameters and digest."""
    fields = dataclasses.asdict(config)
    fields |= fields.pop("engine", {})
    return {"parameters": ", ".join(f"{name}={int(value)}" if isinstance(value, bool) else
                                    f"{name}={value}" for name, value in fields.items()),
            "digest": config.digest}


def routed(design, name, progress, *, mhz=200, seeds=SEEDS):
    """Area of a design between chains of registers, and its clock: the median of the seeds.

    Paths slower than `mhz` are routed again as long as that helps.
    """
    from hdl.synthesis import Bench, place_and_route

    results = []
    for seed in seeds:
        progress(f"{name}, seed {seed}")
        results.append(place_and_route(Bench(design), seed=seed, mhz=mhz))
    first = results[0]    # packing does not depend on the seed
    return {"comb": first.comb, "ff": first.ff, "max": max(first.comb, first.ff), "ebr": first.ebr,
            "dsp": first.dsp, "mhz": statistics.median(r.mhz for r in results),
            "mhz_seeds": [r.mhz for r in results]}


def random_layer(rng, N, K, bits, group_size):
    """A bit-serial matrix of random codes."""
    import host

    groups = -(-K // group_size)
    return host.from_codes(
        "bitserial", codes=rng.integers(0, 2**bits, (N, K)).astype(np.uint8),
        scales=rng.random((N, groups)) + 0.1, bits=bits, group_size=group_size)


def largest(format):
    """Rows and URL options of the largest engine of a board: the max size of the ULX3S."""
    from boards import ULX3S
    from hdl.config import EngineConfig
    from sim.device import default_engine

    engine = ULX3S.sizes[format]["max"].engine.as_dict()
    default = EngineConfig(**default_engine(format)).as_dict() | {"family": "ecp5"}
    return engine["rows"], "&".join([f"format={format}"] + [
        f"{name}={int(value)}" for name, value in engine.items() if value != default[name]])


def mark_front(rows, *costs):
    """Say of rows, as ``pareto``, whether no other is as good in all `costs` and better in one."""
    points = [tuple(row[cost] for cost in costs) for row in rows]
    for row, point in zip(rows, points):
        row["pareto"] = not any(other != point and all(a <= b for a, b in zip(other, point))
                                for other in points)


def measure(url, q, M, progress):
    """Statistics of one call with random tokens, checked against the golden model."""
    import host
    import sim.golden

    N, K = q.shape
    x = np.random.default_rng(0).integers(-127, 128, (M, K))
    progress(f"{M} x {N} x {K} on {url}")
    with host.open(url, progress=progress) as device:
        layer = device.load(q)
        start = time.perf_counter()
        y = layer.integers(x)
        seconds = time.perf_counter() - start
        if not np.array_equal(y, sim.golden.integers(q, x)):
            raise LutraError(f"{url} does not equal the golden model for {M} x {N} x {K}")
        return {**layer.stats, "seconds": seconds, "clock_hz": device.clock_hz,
                "identity": identity(device.transport.config),
                "memory_bytes_per_second": getattr(device.transport, "bytes_per_second", None)}


