"""Writes the generated pages of docs/ and the README's table of boards; ``--check`` only compares.

The instruction set and the registers come from their definitions, the boards from the reports of
``python -m hdl.build`` in docs/reports.
"""

import json
import sys
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
                                              for s in registers.Space) + ".", "",
             "| offset | name | access | meaning |", "|---|---|---|---|"]
    lines += [f"| {r.offset:#04x} | {r.name}{f' x {r.count}' if r.count > 1 else ''} | {r.access} "
              f"| {r.doc} |" for r in registers.REGISTERS.values()]
    lines += ["", "## Errors", "", "| code | name |", "|---|---|",
              *(f"| {int(e)} | {e.name} |" for e in registers.Error), "",
              "## Cycle counters", "", ", ".join(f"`{c}`" for c in registers.COUNTERS), ""]
    return "\n".join(lines)


def boards_table():
    """Markdown of what was built for boards: a row per report."""
    def row(report):
        engine, memory = report["engine"], report["memory"]
        area = ", ".join(
            f"{report[name]:,.0f} {name.upper()} ({report[name] / most:.0%})"
            for name, most in report["available"].items())
        reached = report["fmax_mhz"]
        clock = f"{report['clock_hz'] / 1e6:.0f} ({f'{reached:.0f}' if reached else 'unknown'})"
        return [report["board"], f"{engine['lanes']} x {engine['rows']}", clock,
                f"{report['peak_macs']['W2']:,.0f}", f"{report['gops_w2']:,.0f}",
                f"{memory['bytes'] // 1024} KiB, {memory['bytes_per_second'] / 1e9:.1f} GB/s",
                f"{report['link']['baud'] / 1e6:g} Mbaud", area]

    reports = [json.loads(p.read_text()) for p in sorted((HERE / "reports").glob("*.json"))]
    reports.sort(key=lambda r: (r["board"], r["peak_macs"]["W2"]))
    lines = [["board", "lanes x rows", "clock (reached), MHz", "W2A8 MACs per cycle", "GOPS at W2",
              "on-chip memory", "UART", "area"], ["---"] * 8, *map(row, reports)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def readme_page():
    """The README with its table of boards."""
    text = (HERE.parent / "README.md").read_text()
    head, rest = text.split("<!-- boards: docs/generate.py -->\n")
    _, tail = rest.split("<!-- end of boards -->")
    return (f"{head}<!-- boards: docs/generate.py -->\n{boards_table()}\n"
            f"<!-- end of boards -->{tail}")


PAGES = {"isa.md": isa_page, "registers.md": registers_page, "../README.md": readme_page}


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
