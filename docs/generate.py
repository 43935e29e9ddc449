"""Writes the generated pages of docs/ and the tables of figures; ``--check`` only compares.

The instruction set and the registers come from their definitions, boards from the reports of
``python -m hdl.build`` in docs/reports, figures from docs/bench.json, what ``python -m sim.bench
--json`` printed.
"""

import json
import re
import sys
from functools import partial
from pathlib import Path

from hdl import isa, registers

HERE = Path(__file__).parent


def isa_page():
    """Markdown of the instruction set."""
    lines = ["# Instruction set", "", *isa.__doc__.strip().splitlines()[0:1], "",
             *isa.__doc__.strip().splitlines()[2:], "", "Generated from `hdl/isa.py`.", ""]
    for opcode, fields in isa.FIELDS.items():
        stage = isa.STAGES.get(opcode, "control")
        lines += [f"## {opcode.name} ({int(opcode)}, {stage})", ""]
        if fields:
            lines += ["| bits | field | meaning |", "|---|---|---|"]
            lines += [f"| {f.offset + f.width - 1}:{f.offset} | `{name}` | {f.doc}"
                      + (" (minus one)" if f.bias else "") + " |" for name, f in fields.items()]
        else:
            lines.append("No fields.")
        lines.append("")
    return "\n".join(lines)


def registers_page():
    """Markdown of the register map."""
    lines = ["# Registers", "", "Generated from `hdl/registers.py`. Bits 63..62 of a byte address "
             "choose the space: " + ", ".join(f"{int(s)} {s.name.lower()}"
                                              for s in registers.Space) + ". Sidebands lie "
             "a power of two of bytes apart; what is between them takes writes and reads as zero.",
             "", "| offset | name | access | meaning |", "|---|---|---|---|"]
    lines += [f"| {r.offset:#04x} | {r.name}{f' x {r.count}' if r.count > 1 else ''} | {r.access} "
              f"| {r.doc} |" for r in registers.REGISTERS.values()]
    lines += ["", "## Errors", "", "| code | name |", "|---|---|",
              *(f"| {int(e)} | {e.name} |" for e in registers.Error), "",
              "## Cycle counters", "", ", ".join(f"`{c}`" for c in registers.COUNTERS), ""]
    return "\n".join(lines)


def boards_table():
    """Markdown of what was built for boards: a row per report."""
    def row(item):
        name, report = item
        engine, memory = report["engine"], report["memory"]
        area = ", ".join(
            f"{report[name]:,.0f} {name.upper()} ({report[name] / most:.0%})"
            for name, most in report["available"].items())
        reached = report["fmax_mhz"]
        bits = f" (W{engine['b'] // engine['v']})" if engine["format"] == "kmeans" else \
            f" ({list(report['peak_macs'])[-1]})" if engine.get("high_lanes") else ""
        clock = f"{report['clock_hz'] / 1e6:.0f} ({f'{reached:.0f}' if reached else 'unknown'})"
        return [name, f"{engine['lanes']} x {engine['rows']}", clock,
                f"{report['macs_w2']:,.0f}{bits}", f"{report['gops_w2']:,.0f}",
                f"{memory['bytes'] // 1024} KiB, {memory['bytes_per_second'] / 1e9:.1f} GB/s",
                f"{report['link']['baud'] / 1e6:g} Mbaud", area]

    reports = [(p.stem, json.loads(p.read_text())) for p in (HERE / "reports").glob("*.json")]
    reports.sort(key=lambda item: (item[1]["board"], item[1]["engine"]["format"],
                                   item[1]["macs_w2"]))
    return _table(["board, size", "lanes x rows", "clock (reached), MHz", "MACs per cycle, 2 bits",
                   "GOPS, 2 bits", "on-chip memory", "UART", "area"], map(row, reports))


def _table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _bench(section):
    return json.loads((HERE / "bench.json").read_text())[section]


def _verdict(row):
    return {True: ": met", False: ": **not met**", None: ""}[row["met"]]


def _mhz(row):
    return " / ".join(f"{mhz:.0f}" for mhz in row["mhz_seeds"])


def core_table():
    """Markdown of the engine cores."""
    def row(r):
        goal = "" if r["comb_limit"] is None else f"{r['comb_limit']:g}" + (
            "" if r["mhz_limit"] is None else f" at {r['mhz_limit']} MHz") + _verdict(r)
        return [r["core"], r["lanes"], r["scale_points"], r["store"].removesuffix(" in block RAM"),
                f"{r['w2a8_macs']:g}", r["comb"], f"{r['comb_per_mac']:.1f}", r["ff"], r["ebr"],
                r["dsp"], _mhz(r), goal]
    return _table(["core", "lanes", "scale points", "blocks in block RAM", "MACs per cycle", "COMB",
                   "COMB per MAC", "FF", "EBR", "DSP", "MHz, three seeds", "goal (median)"],
                  map(row, _bench("core")))


def arrays_table():
    """Markdown of the bare arrays: a line per array, its weights side by side."""
    arrays: dict = {}
    for r in _bench("arrays"):
        name = f"{r['weights'][:2]} {r['array']}" if r["array"] == "plain MACs" else r["array"]
        arrays.setdefault(f"{r['places']} {name}", []).append(r)
    join = lambda rows, key: " / ".join(f"{r[key]:.3g}" for r in rows)
    rows = []
    for name, found in arrays.items():
        tables = found[0]["limit"] is not None
        rows.append([name, *(found[0][key] for key in ("comb", "ff", "ebr")), _mhz(found[0]),
                     join(found, "comb_per_mac"), join(found, "times_smaller") if tables else "",
                     join(found, "times_smaller_max") if tables else "",
                     " / ".join("yes" if r["met"] else "**no**" for r in found) if tables else ""])
    return _table(["array", "COMB", "FF", "EBR", "MHz", "COMB per MAC, W1 / W2 / W4",
                   "times smaller", "by max(COMB, FF)", "1.4"], rows)


def memory_table():
    """Markdown of the AXI4 master."""
    return _table(["memory", "lanes", "AXI bits", "COMB", "FF", "EBR", "MHz"],
                  [[r["memory"], r["lanes"], r["axi_bits"], r["comb"], r["ff"], r["ebr"], _mhz(r)]
                   for r in _bench("memory")])


def utilization_table():
    """Markdown of the utilisation from ideal memory."""
    return _table(["M x N x K", "engine", "cycles", "utilisation", "at least"],
                  [[f"{r['M']} x {r['N']} x {r['K']}", r["engine"], f"{r['cycles']:,}",
                    f"{r['utilization']:.3f}", "" if r["limit"] is None else
                    f"{r['limit']}{_verdict(r)}"] for r in _bench("utilization")])


def psumbook_utilization_table():
    """Markdown of the psumbook engine's utilisation."""
    return _table(["codebooks", "M x N x K", "cycles", "utilisation", "at least"],
                  [[r["format"], f"{r['M']} x {r['N']} x {r['K']}", f"{r['cycles']:,}",
                    f"{r['utilization']:.3f}", "" if r["limit"] is None else
                    f"{r['limit']}{_verdict(r)}"] for r in _bench("psumbook-utilization")])


def cores_table(section):
    """Markdown of cores with multipliers in their builders: of a section."""
    def row(r):
        goal = "" if r["comb_limit"] is None else \
            f"{r['comb_limit']:g} at {r['mhz_limit']} MHz{_verdict(r)}"
        return [r["core"], f"{r['lanes']} x {r['rows']}", r["builders"], f"{r['macs']:g}",
                r["comb"], f"{r['comb_per_mac']:.1f}", r["ff"], r["ebr"], r["dsp"], _mhz(r), goal]
    return _table(["core", "lanes x rows", "builders", "MACs per cycle", "COMB", "COMB per MAC",
                   "FF", "EBR", "DSP", "MHz, three seeds", "goal (median)"],
                  map(row, _bench(section)))


def psumbook_arrays_table():
    """Markdown of the bare arrays for codebooks."""
    return _table(["array", "COMB", "FF", "EBR", "DSP", "MHz", "COMB per MAC", "EBR per MAC",
                   "DSP per MAC", "its DSPs", "builds hidden from N"],
                  [[r["array"], r["comb"], r["ff"], r["ebr"], r["dsp"], _mhz(r), r["comb_per_mac"],
                    r["ebr_per_mac"], r["dsp_per_mac"], "" if r["dsp_share"] is None else
                    f"{r['dsp_share']:.3f} of the baseline's"
                    + (f", at most {r['limit']}{_verdict(r)}" if r["limit"] else ""),
                    r["hides_from_n"] or ""] for r in _bench("psumbook-arrays")])


def kmeans_utilization_table():
    """Markdown of the kmeans engine's utilisation."""
    return _table(["weights", "M x N x K", "engine", "outliers per token", "cycles",
                   "utilisation", "cycles over those without", "at least, at most"],
                  [[r["weights"], f"{r['M']} x {r['N']} x {r['K']}", r["engine"], r["outliers"],
                    f"{r['cycles']:,}", f"{r['utilization']:.3f}",
                    "" if r["times"] is None else f"{r['times']:.3f}",
                    "" if r["limit"] is None else
                    f"{r['limit']}, {r['times_limit']}{_verdict(r)}"]
                   for r in _bench("kmeans-utilization")])


def kmeans_error_table():
    """Markdown of the output errors with heavy-tailed tokens."""
    return _table(["quantiser", "output error", "that of kmeans over it", "at most"],
                  [[r["quantiser"], f"{r['error']:.4f}", f"{r['kmeans_share']:.3f}",
                    "" if r["limit"] is None else f"{r['limit']:.2f}{_verdict(r)}"]
                   for r in _bench("kmeans-error")])


def kmeans_token_table():
    """Markdown of the token scale against an oracle."""
    return _table(["K", "largest element", "output error over the best scale's", "at most",
                   "with the mean of all"],
                  [[r["K"], f"{r['huge_element']} times the mean" if r["huge_element"] else
                    "as it comes", f"{r['error_over_best']:.4f}", f"{r['limit']}{_verdict(r)}",
                    f"{r['mean_of_all']:.4f}"] for r in _bench("kmeans-token")])


def kmeans_chain_table():
    """Markdown of a gated block as a chain and apart."""
    return _table(["block", "weights", "how", "output error", "cycles", "activations and results, "
                   "bytes on the link"],
                  [[r["block"], r["weights"], r["how"], f"{r['error']:.4f}", f"{r['cycles']:,}",
                    f"{r['link_bytes']:,}"] for r in _bench("kmeans-chain")])


def kmeans_arrays_table():
    """Markdown of the ways to a product of indexes."""
    def outliers(r):
        return {True: "cost nothing", False: "another path", None: "are its purpose"}[
            r["outliers_free"]]

    return _table(["array", "outliers", "MACs per cycle", "COMB", "FF", "EBR", "DSP", "MHz",
                   "COMB per MAC", "over plain MACs"],
                  [[r["array"], outliers(r), r["macs"], f"{r['comb']:,}", f"{r['ff']:,}", r["ebr"],
                    r["dsp"], _mhz(r), f"{r['comb_per_mac']:.1f}", f"{r['times_plain']:.2f}"]
                   for r in _bench("kmeans-arrays")])


def kmeans_topk_table():
    """Markdown of the outlier detectors."""
    return _table(["unit", "outliers on each side", "COMB", "FF", "EBR", "MHz", "cycles"],
                  [[r["unit"], r["k"], r["comb"], r["ff"], r["ebr"], _mhz(r), f"{r['cycles']:,}"]
                   for r in _bench("kmeans-topk")])


def kmeans_classifier_table():
    """Markdown of the classifier's accuracy."""
    return _table(["network", "accuracy, mean", "worst", "points below float", "at most"],
                  [[r["network"], f"{r['accuracy']:.2f} %", f"{r['worst']:.2f} %",
                    f"{r['below_float']:.2f}", "" if r["limit"] is None else
                    f"{r['limit']}{_verdict(r)}"] for r in _bench("kmeans-classifier")])


def _sq_engine(parameters):
    """Rows and lanes of an sq engine, from its parameters."""
    given = dict(item.split("=") for item in parameters.split(", "))
    size = f"{given['lanes']} lanes x {given['rows']}"
    if given["high_lanes"] != "0":
        size += f", {given['high_lanes']} high, {given['turns']} turns"
    return size + ", sentinels" * (given.get("sentinels") == "1")


def sq_utilization_table():
    """Markdown of the sq engine's utilisation."""
    return _table(["side", "parameters", "M x N x K", "engine", "cycles", "utilisation",
                   "at least"],
                  [[r["side"], r["parameters_of"], f"{r['M']} x {r['N']} x {r['K']}",
                    _sq_engine(r["parameters"]) + ", DDR3" * ("ddr3" in r["engine"]),
                    f"{r['cycles']:,}", f"{r['utilization']:.3f}",
                    "" if r["limit"] is None else f"{r['limit']}{_verdict(r)}"]
                   for r in _bench("sq-utilization")])


def sq_core_table(section="sq-core"):
    """Markdown of sq cores beside bit-serial ones."""
    return _table(["core", "lanes x rows", "MACs per cycle", "COMB", "FF", "EBR", "DSP", "MHz",
                   "of W8's COMB", "of W6's", "of W5's", "at most"],
                  [[r["core"], f"{r['lanes']} x {r['rows']}", r["macs"], f"{r['comb']:,}",
                    f"{r['ff']:,}", r["ebr"], r["dsp"],
                    "" if r["mhz_seeds"] is None else _mhz(r), r["of_w8"] or "", r["of_w6"] or "",
                    r["of_w5"] or "",
                    "" if r["limit"] is None else f"{r['limit']}{_verdict(r)}"]
                   for r in _bench(section)])


def sq_error_table():
    """Markdown of errors against stored bits: sq points and integers, by bits."""
    def cells(r):
        over = r["over_integers"] or {}
        both = [r["error"], over.get("error"), r["calibrated_bits"], r["output_error"],
                over.get("output_error")]
        return [r["layer"], r["weights"], f"{r['bits']:.3f}",
                "" if r["paper_bits"] is None else r["paper_bits"],
                *("" if value is None else value for value in both)]

    rows = _bench("sq-error")
    layers = list(dict.fromkeys(r["layer"] for r in rows))
    ordered = sorted(rows, key=lambda r: (layers.index(r["layer"]), r["bits"]))
    return _table(["layer", "weights", "stored bits", "the paper's", "error of weights",
                   "over integers'", "stored bits, calibrated", "error of outputs",
                   "over integers'"],
                  map(cells, ordered))


def sq_relation_table():
    """Markdown of the relation of the two scales."""
    return _table(["layer", "weights", "power of two", "any", "fixed, 1/16",
                   "power of two over any"],
                  [[r["layer"], r["weights"], r["power"], r["free"], r["fixed"],
                    f"{r['power_over_free']:.4f}"] for r in _bench("sq-relation")])


def sq_activations_table():
    """Markdown of the output errors with two precisions of activations."""
    return _table(["activations", "quantiser", "output error", "over W4A8's", "at most"],
                  [[r["activations"], r["quantiser"], f"{r['error']:.4f}",
                    f"{r['over_w4a8']:.3f}", "" if r["limit"] is None else
                    f"{r['limit']}{_verdict(r)}"] for r in _bench("sq-activations")])


def sq_selectors_table():
    """Markdown of the ways to select activations."""
    return _table(["unit", "bank", "COMB", "FF", "EBR", "MHz", "COMB for 64 lanes",
                   "bits of the stream per weight"],
                  [[r["unit"], r["bank"], f"{r['comb']:,}", r["ff"], r["ebr"],
                    "" if r["mhz_seeds"] is None else _mhz(r), f"{r['comb_64_lanes']:,}",
                    "" if r["stream_bits"] is None else r["stream_bits"]]
                   for r in _bench("sq-selectors")])


def sq_dense_table():
    """Markdown of arrays for the dense part on 7-series."""
    return _table(["array", "LUT", "FF", "LUT per MAC", "times smaller"],
                  [[r["array"], f"{r['lut']:,}", f"{r['ff']:,}", r["lut_per_mac"],
                    r["times_smaller"]] for r in _bench("sq-dense")])


def sq_sweep_table():
    """Markdown of the Pareto front of the sq sweep."""
    return _table(["b", "s", "low", "storage", "stored bits", "the paper's", "error", "cycles",
                   "MACs per cycle", "high lanes", "bits of the image", "COMB", "EBR", "DSP",
                   "image with sentinels", "COMB with them"],
                  [[r["b"], "" if r["s"] is None else r["s"], r["low"], r["storage"],
                    f"{r['bits']:.3f}", r["paper_bits"] or "", r["error"], f"{r['cycles']:,}",
                    r["macs_per_cycle"], r["high_lanes"],
                    f"{r['image_bits']:.2f}", f"{r['comb']:,}", r["ebr"], r["dsp"],
                    *(["", ""] if r["sentinels_comb"] is None else [
                        f"{r['sentinels_image_bits']:.2f}", f"{r['sentinels_comb']:,}"])]
                   for r in _bench("sq-sweep") if r["pareto"]])


def sweep_table():
    """Markdown of the Pareto front of the psumbook sweep."""
    return _table(["m", "v", "b", "g", "bits in all", "error / variance", "cycles",
                   "MACs per cycle", "COMB", "EBR", "DSP"],
                  [[r["m"], r["v"], r["b"], r["g"], f"{r['bits']:.3f}", f"{r['error']:.4f}",
                    f"{r['cycles']:,}", r["macs_per_cycle"], f"{r['comb']:,}", r["ebr"], r["dsp"]]
                   for r in _bench("psumbook-sweep") if r["pareto"]])


def error_table():
    """Markdown of the quantisers' error on a Gaussian matrix."""
    return _table(["format", "bits of codes", "bits in all", "error / variance", "time",
                   "at most"],
                  [[f"{r['format']} {r['weights']}", r["code_bits"], f"{r['bits']:.3f}",
                    f"{r['error']:.4f}", f"{r['seconds']:.0f} s", "" if r["met"] is None else
                    (f"{r['limit']:.3f} in " if r["limit"] else "")
                    + f"{r['seconds_limit']} s{_verdict(r)}"]
                   for r in _bench("quantizer-error")])


def outputs_table():
    """Markdown of the output errors with calibration."""
    return _table(["layer", "N x K", "format", "bits in all", "output error", "time",
                   "less than GPTQ, 2 bits"],
                  [[r["layer"], f"{r['N']} x {r['K']}", f"{r['format']} {r['weights']}",
                    f"{r['bits']:.3f}", f"{r['error']:.3g}", f"{r['seconds']:.0f} s",
                    "" if r["gptq_error"] is None else f"{r['gptq_error']:.3g}{_verdict(r)}"]
                   for r in _bench("quantizer-outputs")])


def bandwidth_table():
    """Markdown of what a slow memory allows."""
    return _table(["weights", "memory", "cycles", "GOPS", "share of its bandwidth", "at least"],
                  [[r["weights"], r["memory"], f"{r['cycles']:,}", r["gops"], f"{r['share']:.3f}",
                    f"{r['limit']}{_verdict(r)}"] for r in _bench("bandwidth")])


def simulator_table():
    """Markdown of the speed of simulation."""
    return _table(["Verilated, cycles/s", "Amaranth, cycles/s", "ratio", "at least"],
                  [[f"{r['verilated_cycles_per_s']:,}", f"{r['amaranth_cycles_per_s']:,}",
                    r["ratio"], f"{r['limit']}{_verdict(r)}"] for r in _bench("simulator")])


TABLES = {"boards": boards_table, "core": core_table, "arrays": arrays_table,
          "memory": memory_table, "utilization": utilization_table, "bandwidth": bandwidth_table,
          "psumbook-utilization": psumbook_utilization_table,
          "psumbook-core": partial(cores_table, "psumbook-core"),
          "psumbook-arrays": psumbook_arrays_table,
          "kmeans-core": partial(cores_table, "kmeans-core"),
          "kmeans-utilization": kmeans_utilization_table,
          "kmeans-chain": kmeans_chain_table, "kmeans-arrays": kmeans_arrays_table,
          "kmeans-classifier": kmeans_classifier_table, "kmeans-topk": kmeans_topk_table,
          "kmeans-error": kmeans_error_table, "kmeans-token": kmeans_token_table,
          "psumbook-sweep": sweep_table,
          "sq-utilization": sq_utilization_table, "sq-core": sq_core_table,
          "sq-core-rows": partial(sq_core_table, "sq-core-rows"),
          "sq-error": sq_error_table, "sq-relation": sq_relation_table,
          "sq-activations": sq_activations_table, "sq-selectors": sq_selectors_table,
          "sq-sweep": sq_sweep_table, "sq-dense": sq_dense_table,
          "quantizer-error": error_table, "quantizer-outputs": outputs_table,
          "simulator": simulator_table}


def with_tables(path):
    """A page whose tables, between comments that name them, are generated."""
    def page():
        text = (HERE / path).read_text()
        for name, table in TABLES.items():
            text = re.sub(f"(<!-- {name}: docs/generate.py -->\n).*?(<!-- end of {name} -->)",
                          lambda found, table=table: f"{found[1]}{table()}\n{found[2]}",
                          text, flags=re.S)
        return text
    return page


PAGES = {"isa.md": isa_page, "registers.md": registers_page,
         **{path: with_tables(path) for path in ("../README.md", "measurements.md")}}


def main(argv):
    """Write the pages, or with ``--check`` return 1 if one is out of date."""
    stale = [name for name, page in PAGES.items()
             if not (HERE / name).exists() or (HERE / name).read_text() != page()]
    if "--check" in argv:
        print(f"out of date: {', '.join(stale)}; run python docs/generate.py" if stale else "ok")
        return bool(stale)
    for name in stale:
        (HERE / name).write_text(PAGES[name]())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
