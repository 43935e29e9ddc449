"""``python -m sim.demo``: a classifier and an LLM-shaped layer on the simulated device.

The classifier's layers are quantised and every matmul of its test set is offloaded through the
interface that a board has; so is one large layer, on engines of 1 and 8 rows with ideal and
DDR3-like memory.  Every output is compared with the golden model, bit for bit.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

import host
from hdl import commandline
from hdl.commandline import progress_bar
from hdl.config import DeviceConfig, EngineConfig
from hdl.estimate import estimate as resources
from host.cli.matrix import check_out
from host.performance import matmul_cycles, one_pass
from sim import digits, golden, pictures
from sim.device import MEMORIES

__all__ = ["Layer", "Plan", "estimate", "main", "plot", "read_reports"]

REPORTS = Path(__file__).parents[1] / "docs" / "reports"

_EXAMPLES = """\
examples:
  python -m sim.demo                 minutes: it builds six engines once, then simulates
  python -m sim.demo --prepare       build the engines and stop
  python -m sim.demo --quick         a small engine, a few images, a small layer
  python -m sim.demo --plot formats.svg
  python -m sim.demo --json > demo.json

exit status: 0 done, 1 failed (results that differ from the golden model, for one), 2 bad usage
"""


@dataclass(frozen=True)
class Plan:
    """What a run of the demo does.

    Attributes
    ----------
    engines : dict of int to str
        Device URL by rows.
    psumbook, kmeans, sq, sq_tokens : str
        URLs of the engines for the classifier's codebooks, indexes, and two precisions: of
        weights, and of activations.
    images : int or None
        How many images of the test set; None is all of them.
    size : int
        Rows and columns of the large layer.
    tokens : tuple of int
        Its batches.
    """

    engines: dict
    psumbook: str
    kmeans: str
    sq: str
    sq_tokens: str
    images: int | None
    size: int
    tokens: tuple = (1, 8)


_CODEBOOKS = ("sim:?format=psumbook&v=4&b=8&builders=8&activation_bits=8&zero_points=0"
              "&lanes={lanes}&rows={rows}&scale_points={points}&block_ram_blocks={blocks}")
_INDEXES = "sim:?format=kmeans&v=2&b=8&builders=16"
_BANKS = "sim:?format=sq&rows={rows}&lanes={lanes}"
_TOKENS = _BANKS + "&activation_bits=16"
_SMALL = "&n_tile=64&memory_mib=4&activation_bytes="
FULL = Plan(engines={1: "sim:", 8: "sim:?rows=8&builders=8"}, images=None, size=4096,
            psumbook=_CODEBOOKS.format(lanes=64, rows=2, points=2, blocks=8), kmeans=_INDEXES,
            sq=_BANKS.format(rows=4, lanes=64), sq_tokens=_TOKENS.format(rows=1, lanes=64))
QUICK = Plan(engines={1: "sim:?lanes=32&n_tile=64&activation_bytes=1024&memory_mib=4"},
             images=8, size=256, psumbook=_CODEBOOKS.format(lanes=32, rows=1, points=1, blocks=4)
             + _SMALL + "1024", kmeans=_INDEXES + "&lanes=32" + _SMALL + "2048",
             sq=_BANKS.format(rows=1, lanes=32) + _SMALL + "1024",
             sq_tokens=_TOKENS.format(rows=1, lanes=32) + _SMALL + "2048")
CLASSIFIER_BITS = (8, 4, 2)
LARGE_BITS = (2, 4)
GROUP = 128
_MOST_WORKERS = 4       # a simulated device takes 80 MiB
_BUILD_STEPS = 3        # of sim.verilate.build
_AREA_MEMORY = 64 * 1024


@dataclass(frozen=True)
class Layer:
    """A matmul that was simulated, as :func:`estimate` needs it."""

    shape: tuple
    planes: int
    group_size: int
    tokens: int
    cycles: int

    def on(self, engine):
        """What gathering it takes on an engine."""
        return one_pass(engine, self.shape, planes=self.planes, group_size=self.group_size)


# Boards, from what placing and routing them reported

def read_reports(directory=REPORTS):
    """Reports of ``python -m hdl.build``.

    Returns
    -------
    list of dict
        With the file's stem as ``name``, without "-default".
    """
    found = []
    for path in sorted(directory.glob("*.json")):
        try:
            report = json.loads(path.read_text())
        except ValueError as error:
            raise host.FileError(f"{path}: must be JSON: {error}") from error
        if isinstance(report, dict) and report.keys() >= {"board", "engine", "clock_hz", "memory"}:
            found.append(report | {"name": path.stem.removesuffix("-default")})
    return found


def estimate(report, layers, simulated):
    """What layers would take on a board.

    Per layer the larger of computing and reading: cycles of the simulated engine, scaled to the
    board's by how many each gathers, at the clock that the board has and reaches; and the weights,
    read once per group of rows, from its memory.

    Parameters
    ----------
    report : dict
        Of ``python -m hdl.build``.
    layers : list of Layer
    simulated : EngineConfig
        The engine of which `layers` have the cycles.

    Returns
    -------
    dict
        ``cycles``, ``clock_hz``, ``seconds``; ``image_bytes`` of the weights of all layers,
        ``memory_bytes`` and ``fits``; ``limit``, what decided most of the time; and
        ``link_seconds``, what sending the weights once would add, where the link is known.
    """
    engine = EngineConfig.from_dict(report["engine"])
    reached = report.get("fmax_mhz")
    clock = min(report["clock_hz"], reached * 1e6) if reached else report["clock_hz"]
    memory = report["memory"]
    bandwidth = memory.get("bytes_per_second")
    # Block RAM has the sidebands beside the data; a memory chip carries both.
    beat = engine.beat_bytes
    if memory["kind"] != "onchip":
        beat = (engine.code_bits + engine.side_bits) / 8
    cycles = image = compute = read = seconds = 0
    for layer in layers:
        here, there = layer.on(engine), layer.on(simulated)
        groups, groups_there = (-(-layer.tokens // e.rows) for e in (engine, simulated))
        scaled = layer.cycles * here.cycles * groups / (there.cycles * groups_there)
        computing = scaled / clock
        reading = groups * here.beats * beat / bandwidth if bandwidth else 0
        cycles += scaled
        image += here.beats * beat
        compute, read = compute + computing, read + reading
        seconds += max(computing, reading)
    link = report.get("link") or {}
    return {
        "cycles": round(cycles), "clock_hz": clock, "routed": bool(reached), "seconds": seconds,
        "limit": "memory" if read > compute else "engine",
        "image_bytes": round(image), "memory_bytes": memory["bytes"],
        "fits": image <= memory["bytes"],
        # A byte is ten bits on a UART.
        "link_seconds": 10 * image / link["baud"] if "baud" in link else None}


# Running devices, with progress

@dataclass(frozen=True)
class Job:
    """Work on a device of its own.

    Attributes
    ----------
    url : str
    cycles : float
        About how many it takes, for the progress bar.
    run : callable
        ``run(device)`` gives the result.
    """

    url: str
    cycles: float
    run: Callable


def run_jobs(title, jobs):
    """Results of jobs, in order; they run side by side, the longest first."""
    lock = threading.Lock()
    running = {}
    simulated = lambda device: device.transport.model.cycle()

    def work(job):
        with host.open(job.url) as device:
            with lock:
                running[device] = job
            try:
                return job.run(device)
            finally:
                with lock:      # its model is asked for cycles only before it is closed
                    del running[device]
                    finished.append(job)

    finished = []
    total = sum(job.cycles for job in jobs)
    workers = min(_MOST_WORKERS, os.cpu_count() or 1, len(jobs))
    with ThreadPoolExecutor(workers) as pool, progress_bar(title) as progress:
        futures = {job: pool.submit(work, job)
                   for job in sorted(jobs, key=lambda job: -job.cycles)}
        try:
            while not all(future.done() for future in futures.values()):
                with lock:
                    done = sum(job.cycles for job in finished)
                    done += sum(min(job.cycles, simulated(device))
                                for device, job in running.items())
                progress(done, total)
                time.sleep(0.1)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [futures[job].result() for job in jobs]


def prepare(plan):
    """Build the engines of a plan; a line for every step."""
    console = Console(stderr=True, highlight=False)
    engines = {f"engine of {rows} row{'s' * (rows > 1)}": url
               for rows, url in plan.engines.items()}
    for name, url in [*engines.items(), ("engine for codebooks", plan.psumbook),
                      ("engine for indexes", plan.kmeans),
                      ("engine for two precisions of weights", plan.sq),
                      ("engine for two precisions of activations", plan.sq_tokens)]:
        begun = []
        start = time.monotonic()
        with commandline.live(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(),
                              TimeElapsedColumn()) as bar:
            task = bar.add_task(name, total=_BUILD_STEPS)

            def say(text, bar=bar, task=task, name=name, begun=begun):
                bar.update(task, description=f"{name}: {text}", completed=len(begun))
                begun.append(text)
                if not console.is_terminal:
                    console.print(f"{name}: {text} ...")

            host.open(url, progress=say).close()
        if begun:
            console.print(f"{name}: built in {time.monotonic() - start:.0f} s")


def agreeing(y, expected):
    """How many outputs have the very bits of the golden model's."""
    return int(np.count_nonzero(y.view(np.uint32) == expected.view(np.uint32)))


# The classifier

def quantize_classifier(network):
    """Matrices of the classifier's layers by bits, calibrated on its training images."""
    inputs = network.run(network.train)
    matrices = {}
    for bits in CLASSIFIER_BITS:
        with progress_bar(f"quantising to W{bits} with GPTQ") as progress:
            matrices[bits] = []
            for i, (W, x) in enumerate(zip(network.weights, inputs)):
                progress(i, len(inputs))
                matrices[bits].append(host.quantize(W, bits=bits, group_size=GROUP, calibration=x))
    return matrices


def quantize_codebooks(network, matrices):
    """The classifier's matrices with its large layer in codebooks, calibrated as well.

    One of 256 centroids for every four weights: two bits per weight too.  The codebook of a
    smaller layer would weigh as much as its codes.
    """
    inputs = network.run(network.train)
    large = max(range(len(matrices)), key=lambda i: network.weights[i].size)
    mixed = list(matrices)
    with progress_bar("quantising the large layer with a codebook") as progress:
        mixed[large] = host.quantize(
            network.weights[large], format="psumbook", v=4, codebooks=1, group_size=GROUP,
            calibration=inputs[large], progress=progress)
    return mixed


def quantize_all(network, title, format, **fields):
    """The classifier's matrices in a format, as it is by default but for `fields`, calibrated."""
    matrices = []
    with progress_bar(f"quantising to {title}") as progress:
        for i, (W, x) in enumerate(zip(network.weights, network.run(network.train))):
            progress(i, len(network.weights))
            matrices.append(host.quantize(W, format=format, calibration=x, **fields))
    return matrices


def area(engine):
    """About what an engine takes of an ECP5, with 64 KiB of memory beside it."""
    config = DeviceConfig(engine=engine.replace(family="ecp5", address_bits=16), memory="onchip",
                          memory_beats=_AREA_MEMORY // engine.beat_bytes)
    found = resources(config)
    return {"engine": engine.as_dict(), **{name: found[name] for name in ("comb", "bram", "dsp")}}


def classify(devices, matrices, biases, x):
    """Offload a network: its logits, statistics per layer, and how many outputs are golden.

    `devices` has one for each format of a matrix.
    """
    stats, equal, outputs = [], 0, 0
    for i, (q, bias) in enumerate(zip(matrices, biases)):
        hidden = i < len(matrices) - 1
        layer = devices[q.format].load(q, bias=bias, activation="relu" if hidden else None)
        y = layer(x)
        expected = golden.matmul(q, x, bias)
        equal += agreeing(y, np.maximum(expected, 0) if hidden else expected)
        outputs += y.size
        stats.append(dict(layer.stats))
        x = y
    return x, stats, equal, outputs


def classify_chained(device, matrices, biases, inputs, x):
    """As :func:`classify`, with nothing but indexes between the layers of one program."""
    layers = []
    for i, (q, bias, outputs) in enumerate(zip(matrices, biases, inputs[1:])):
        hidden = i < len(matrices) - 1
        layers.append(device.load(
            q, bias=bias, activation="relu" if hidden else None, out="index" if hidden else "float",
            out_scale=outputs.max() / 127 if hidden else None))
    chain = device.chain(layers)
    y = chain(x)
    return y, [dict(chain.stats)], agreeing(y, golden.chain(chain, x)), y.size


def run_classifier(plan):
    """Accuracy, agreement and cost of the classifier: a dict for JSON, and what boards need."""
    network = digits.load()
    x, labels = network.test[:plan.images], network.test_labels[:plan.images]
    matrices = quantize_classifier(network)
    url = list(plan.engines.values())[-1]
    with host.open(url) as device:
        engine, clock = device.engine, device.clock_hz
    jobs = [Job(url, sum(matmul_cycles(engine, q, len(x)) for q in qs),
                lambda device, qs=qs: classify({"bitserial": device}, qs, network.biases, x))
            for bits, qs in matrices.items()]
    mixed = quantize_codebooks(network, matrices[min(matrices)])

    def with_codebooks(device):
        with host.open(plan.psumbook) as other:
            return classify({"bitserial": device, "psumbook": other}, mixed, network.biases, x)

    jobs.append(Job(url, jobs[-1].cycles, with_codebooks))
    indexed = quantize_all(network, "W4A4 with k-means", "kmeans")
    with host.open(plan.kmeans) as device:
        jobs.append(Job(
            plan.kmeans, sum(matmul_cycles(device.engine, q, len(x)) for q in indexed),
            lambda device: classify({"kmeans": device}, indexed, network.biases, x)))
    jobs.append(Job(plan.kmeans, jobs[-1].cycles, lambda device: classify_chained(
        device, indexed, network.biases, network.run(network.train), x)))
    banks = {}
    for side, title, sq_url in (
            ("weight", "64-(8/4)-0.875", plan.sq),
            ("activation", "W4, 64-(8/4)-0.875 of channels", plan.sq_tokens),
            ("activation-dynamic", "W4, 64-(8/4)-0.875 of tokens", plan.sq_tokens)):
        qs = banks[side] = quantize_all(network, title, "sq", side=side)
        jobs.append(Job(
            sq_url, sum(matmul_cycles(device_engine(sq_url), q, len(x)) for q in qs),
            lambda device, qs=qs: classify({"sq": device}, qs, network.biases, x)))
    *results, codebooks, indexes, chained, two, static, dynamic = run_jobs("classifying", jobs)
    reference = network.run(x)[-1]
    right = lambda logits: int(np.count_nonzero(logits.argmax(axis=1) == labels))
    widths, layers = [], {}

    def figures(qs, found):
        logits, stats, equal, outputs = found
        sizes = [N * K for N, K in (q.shape for q in qs)]
        cycles = sum(s["cycles"] for s in stats)
        possible = sum(s["cycles"] * s["peak_macs_per_cycle"] for s in stats)
        return {
            "right": right(logits), "accuracy": right(logits) / len(x),
            "logit_error": float(np.linalg.norm(logits - reference) / np.linalg.norm(reference)),
            "bits_per_weight": sum(q.bits_per_weight * n for q, n in zip(qs, sizes)) / sum(sizes),
            "outputs": outputs, "golden": equal, "cycles": cycles,
            "utilization": len(x) * sum(sizes) / possible,
            "gops": 2 * len(x) * sum(sizes) * clock / cycles / 1e9,
            "seconds": cycles / clock}

    for (bits, qs), found in zip(matrices.items(), results):
        layers[bits] = [Layer(q.shape, bits, GROUP, len(x), s["cycles"])
                        for q, s in zip(qs, found[1])]
        widths.append({"bits": bits, **figures(qs, found)})
    side_by_side = [
        {"format": format, "name": name, **figures(qs, found), **area(device_engine(format_url))}
        for format, name, qs, found, format_url in (
            ("bitserial", "W4", matrices[4], results[list(matrices).index(4)], url),
            ("psumbook", "W2", mixed, codebooks, plan.psumbook),
            ("kmeans", "W4A4", indexed, indexes, plan.kmeans),
            ("sq", "W(8/4)", banks["weight"], two, plan.sq))]
    return {
        "layers": [list(W.shape) for W in network.weights], "images": len(x), "device": url,
        "engine": engine.as_dict(), "clock_hz": clock, "float": {
            "right": right(reference), "accuracy": right(reference) / len(x)},
        "widths": widths, "codebooks": figures(mixed, codebooks),
        "indexes": figures(indexed, indexes), "chained": figures(indexed, chained),
        "banks": [{"side": side} | figures(qs, found)
                  for (side, qs), found in zip(banks.items(), (two, static, dynamic))],
        "token_rows": device_engine(plan.sq_tokens).rows, "formats": side_by_side,
    }, layers, engine


def device_engine(url):
    """The engine that a URL names."""
    with host.open(url) as device:
        return device.engine


def run_boards(layers, engine):
    """Estimates for every board with a report of such an engine and every width."""
    return [{"board": report["name"], "rows": report["engine"]["rows"],
             "lanes": report["engine"]["lanes"], "memory": report["memory"]["kind"], "bits": bits}
            | estimate(report, layers[bits], engine)
            for report in read_reports() if report["engine"].get("format") == engine.format
            for bits in layers]


# The large layer

def multiply(device, q, batches, expected):
    """Multiply every batch and check it: a list of (statistics, golden outputs, outputs)."""
    layer = device.load(q)
    return [(dict(layer.stats), agreeing(y, correct), y.size)
            for y, correct in ((layer(x), correct) for x, correct in zip(batches, expected))]


def memory_rate(memory, engine, clock):
    """Sustained bytes per second of a simulated memory."""
    _, rate, period, pause = MEMORIES[memory]
    if rate is None:
        return (engine.code_bits + engine.side_bits) / 8 * clock
    return rate * (1 - pause / period)


def run_large(plan):
    """Figures of the large layer on every engine and memory: a list of dicts for JSON."""
    size = plan.size
    rng = np.random.default_rng(0)
    W = rng.standard_normal((size, size), np.float32) / np.float32(np.sqrt(size))
    batches = [rng.standard_normal((M, size), np.float32) for M in plan.tokens]
    ends = np.cumsum(plan.tokens)[:-1]
    matrices, expected = {}, {}
    for bits in LARGE_BITS:
        with progress_bar(f"quantising the large layer to W{bits}") as progress:
            q = host.quantize(W, bits=bits, group_size=GROUP, progress=progress)
            expected[bits] = np.split(golden.matmul(q, np.concatenate(batches)), ends)
            matrices[bits] = q
    jobs, cases = [], []
    for rows, url in plan.engines.items():
        with host.open(url) as device:
            engine, clock = device.engine, device.clock_hz
        for memory in MEMORIES:
            rate = memory_rate(memory, engine, clock)
            beat = (engine.code_bits + engine.side_bits) / 8
            for bits, q in matrices.items():
                beats = one_pass(engine, q.shape, planes=bits, group_size=GROUP).beats
                cost = beat * clock / rate
                join = "&" if "?" in url else "?"
                jobs.append(Job(f"{url}{join}memory={memory}",
                                sum(matmul_cycles(engine, q, M, beat_cost=cost)
                                    for M in plan.tokens),
                                lambda device, q=q, bits=bits: multiply(
                                    device, q, batches, expected[bits])))
                cases.append((rows, memory, bits, rate, beats * beat, clock))
    figures = []
    for case, results in zip(cases, run_jobs("multiplying", jobs)):
        rows, memory, bits, rate, image, clock = case
        for M, (stats, equal, outputs) in zip(plan.tokens, results):
            operations = 2 * M * size * size
            figures.append({
                "rows": rows, "memory": memory, "bits": bits, "tokens": M,
                "cycles": stats["cycles"], "utilization": stats["utilization"],
                "gops": operations * clock / stats["cycles"] / 1e9,
                "memory_gops": operations * rate / (image + M * size) / 1e9,
                "peak_gops": 2 * stats["peak_macs_per_cycle"] * clock / 1e9,
                "bytes_read": stats["bytes_read"], "outputs": outputs, "golden": equal})
    return {"shape": [size, size], "group_size": GROUP, "clock_hz": clock, "runs": figures}


# What is printed

def _agreement(figures):
    """One line that says whether every output is the golden model's."""
    outputs = sum(f["outputs"] for f in figures)
    wrong = outputs - sum(f["golden"] for f in figures)
    if wrong:
        return f"{wrong:,} of {outputs:,} outputs DIFFER from the golden model."
    return f"All {outputs:,} outputs equal the golden model's, bit for bit."


def _table(title, columns, rows, caption):
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left",
                  box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _classifier_table(result):
    engine = result["engine"]
    sizes = "-".join(str(n) for n in [result["layers"][0][1], *(N for N, _ in result["layers"])])
    share = lambda f: f"{f['accuracy']:.2%}"
    rows = [("float", share(result["float"]), "", "32", "", "", "", "", "")]
    depth = {f["format"]: f["engine"]["rows"] for f in result["formats"]}
    measured = [*result["widths"], result["codebooks"], result["indexes"], result["chained"],
                *result["banks"]]
    names = [*(f"W{w['bits']}" for w in result["widths"]), "W2, codebook", "W4A4, k-means",
             "same, chained", "W(8/4)A8", "W4A(8/4), static", "W4A(8/4), dynamic"]
    engines = [*[str(depth["bitserial"])] * len(result["widths"]),
               f"{depth['bitserial']}, {depth['psumbook']}", *[str(depth["kmeans"])] * 2,
               str(depth["sq"]), *[str(result["token_rows"])] * 2]
    rows += [(name, share(w), f"{w['logit_error']:.4f}", f"{w['bits_per_weight']:.2f}", depth,
              f"{w['cycles']:,}", f"{w['utilization']:.1%}", f"{w['gops']:.1f}",
              f"{1e3 * w['seconds']:.2f} ms") for name, depth, w in zip(names, engines, measured)]
    return _table(
        f"Digits: MLP {sizes}, {result['images']} test images, quantised with GPTQ",
        ("weights", "accuracy", "logit\nerror", "stored bits\nper weight", "engine's\nrows",
         "cycles", "utili-\nsation", "GOPS", "time"), rows,
        f"{_agreement(measured)} The codebook is psumbook's (v 4, 8 bits) in the layer of "
        "1024 x 1024; the other layers, too small to carry one, are bit-serial. K-means has "
        "activations of 4 bits with 0.5 % outliers on each side; the others have 8. Chained, its "
        "layers are one program with 16 indexes between them. (8/4) is sq's 64-(8/4)-0.875: an "
        "eighth in 8 bits, of the weights; or of the activations, by channel (static) or by "
        "magnitude in each token (dynamic). An engine takes as many images at a time as it has "
        f"rows. Cycles are simulated: {engine['lanes']} lanes, ideal memory; GOPS and time follow "
        f"at {result['clock_hz'] / 1e6:g} MHz, transfers from and to the host excluded. "
        f"Utilisation counts the padding of K = {result['layers'][0][1]} to the "
        f"{4 * engine['lanes']} inputs that the engine takes per cycle. Logit error: "
        "relative, against the float network.")


def _formats_table(result):
    rows = [(f"{f['format']} {f['name']}", f"{f['accuracy']:.2%}", f"{f['logit_error']:.4f}",
             f"{f['bits_per_weight']:.2f}", f"{f['cycles']:,}",
             f"{f['engine']['lanes']} x {f['engine']['rows']}", f"{f['utilization']:.1%}",
             f"{f['comb']:,}", str(f["bram"]), str(f["dsp"])) for f in result["formats"]]
    return _table(
        "The four formats side by side, on the same network",
        ("format", "accuracy", "logit\nerror", "stored\nbits", "cycles",
         "lanes\nx rows", "utili-\nsation", "COMB", "BRAM", "DSP"), rows,
        f"Float: {result['float']['accuracy']:.2%}. COMB, block RAMs and DSPs are an estimate for "
        f"an ECP5 with {_AREA_MEMORY // 1024} KiB of memory beside the engine, as "
        "python -m hdl.build --board ulx3s --dry-run gives it; an ULX3S has 83,640, 208 and 156. "
        "Engines of more rows take more and need fewer cycles. --plot FILE draws this table.")


def plot(result, path):
    """Draw the four formats side by side: error, bits, cycles, and what their engines take."""
    formats = result["formats"]
    names = [f"{f['format']}\n{f['name']}\n{f['engine']['rows']} row"
             f"{'s' * (f['engine']['rows'] > 1)}" for f in formats]
    panels = (
        ("test images wrong", [result["images"] - f["right"] for f in formats], "{}"),
        ("error of the logits, relative", [f["logit_error"] for f in formats], "{:.4f}"),
        ("stored bits per weight", [f["bits_per_weight"] for f in formats], "{:.2f}"),
        ("cycles per image", [f["cycles"] / result["images"] for f in formats], "{:,.0f}"),
        ("utilisation, %", [100 * f["utilization"] for f in formats], "{:.1f}"),
        ("COMB, estimated", [f["comb"] for f in formats], "{:,}"),
        ("block RAMs, estimated", [f["bram"] for f in formats], "{}"),
        ("DSPs, estimated", [f["dsp"] for f in formats], "{}"))
    drawn = pictures.figure(14, 7)
    for axes, (title, values, text) in zip(drawn.subplots(2, 4).flat, panels):
        bars = axes.bar(names, values, color=[f"C{i}" for i in range(len(names))])
        axes.bar_label(bars, [text.format(value) for value in values], fontsize="small")
        axes.set_title(title, fontsize="medium")
        axes.tick_params(axis="x", labelsize=7)
        axes.margins(y=0.15)
    wrong = result["images"] - result["float"]["right"]
    drawn.axes[0].axhline(wrong, color="k", linestyle=":", label=f"float: {wrong}", zorder=0)
    drawn.axes[0].legend(fontsize="small", loc="lower right")
    drawn.suptitle(f"Four formats, one classifier of digits: {result['images']} test images, "
                   f"simulated engines of {result['engine']['lanes']} lanes")
    drawn.tight_layout()
    pictures.save(drawn, path)


def _boards_table(estimates):
    rows = [(e["board"], f"{e['lanes']} x {e['rows']}",
             f"{e['clock_hz'] / 1e6:.1f}{'' if e['routed'] else '*'}",
             f"W{e['bits']}", f"{1e3 * e['seconds']:.2f}", e["limit"],
             f"{e['image_bytes'] / 1024:.0f} of {e['memory_bytes'] / 1024:.0f}",
             "" if e["fits"] or e["link_seconds"] is None else f"{e['link_seconds']:.1f}")
            for e in estimates]
    return _table(
        "The same test set on boards: estimated, not run",
        ("board", "lanes\nx rows", "MHz", "weights", "time\nms", "limit", "weights in\nmemory, KiB",
         "sending\nthem, s"), rows,
        "The clock is the one built for, which placement and routing reached; where it has a star, "
        "it is only aimed at: Vivado would place and route that board. Time is the larger of "
        "computing (the simulated cycles, scaled to the board's engine) and reading the weights at "
        "its memory's rate. Weights that do not fit a board's memory cannot be loaded there as "
        "they are: the caller has to cut them along N, and sending them comes on top.")


def _large_table(result):
    N, K = result["shape"]
    rows = [(str(r["rows"]), r["memory"], f"W{r['bits']}", str(r["tokens"]), f"{r['cycles']:,}",
             f"{r['utilization']:.1%}", f"{r['gops']:.1f}", f"{r['memory_gops']:.1f}",
             f"{r['peak_gops']:.1f}") for r in result["runs"]]
    return _table(
        f"One layer of {N} x {K}, groups of {result['group_size']}, M tokens",
        ("engine\nrows", "memory", "weights", "M", "cycles", "utili-\nsation", "achieved\nGOPS",
         "memory-\nlimited", "engine's\npeak"), rows,
        f"{_agreement(result['runs'])} Cycles are simulated, GOPS follow at "
        f"{result['clock_hz'] / 1e6:g} MHz. Memory-limited: reading weights and activations once "
        "at the memory's sustained rate. An engine reads the weights once for every group of as "
        "many tokens as it has rows.")


def _parser():
    parser = commandline.Parser(
        "python -m sim.demo", examples=_EXAMPLES,
        description="Classify digits and multiply by a large layer on the simulated accelerator.")
    parser.add_argument("--prepare", action="store_true", help="build the engines and stop")
    parser.add_argument("--quick", action="store_true",
                        help="a small engine, a few images and a small layer, in seconds")
    parser.add_argument("--plot", type=Path, metavar="FILE",
                        help="draw the four formats side by side (.png, .svg, .pdf)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser


def main(argv=None):
    """Run the command line; returns the exit status (see :func:`hdl.commandline.run`)."""
    parser = _parser()

    def work(args):
        if args.plot and args.plot.suffix not in pictures.PICTURES:
            parser.error(f"--plot must name a {', '.join(pictures.PICTURES)} file, "
                         f"not {args.plot}")
        check_out(args.plot)
        _run(args)

    return commandline.run(parser, work, argv)


def _run(args):
    plan = QUICK if args.quick else FULL
    out = commandline.output()
    show = (lambda *_: None) if args.json else (lambda *parts: out.print(*parts, sep="\n"))
    prepare(plan)
    if args.prepare:
        return
    start = time.monotonic()
    classifier, layers, engine = run_classifier(plan)
    show(_classifier_table(classifier), "")
    show(_formats_table(classifier), "")
    if args.plot:
        plot(classifier, args.plot)
    boards = run_boards(layers, engine)
    show(_boards_table(boards) if boards else
         "Boards: no estimate, because docs/reports has no report of a placed-and-routed board "
         "(python -m hdl.build makes them).", "")
    large = run_large(plan)
    show(_large_table(large))
    seconds = time.monotonic() - start
    exact = all(f["golden"] == f["outputs"] for f in [
        *classifier["widths"], classifier["codebooks"], classifier["indexes"],
        classifier["chained"], *classifier["banks"], *large["runs"]])
    if args.json:
        print(json.dumps({"classifier": classifier, "boards": boards, "large": large,
                          "exact": exact, "seconds": round(seconds, 1)}))
    else:
        show(f"Done in {seconds:.0f} s.")
    if not exact:
        raise host.DeviceError("the device's results differ from the golden model")


if __name__ == "__main__":
    sys.exit(main())
