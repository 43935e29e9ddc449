"""Writes docs/isa.md and docs/registers.md from their definitions; ``--check`` only compares."""

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


PAGES = {"isa.md": isa_page, "registers.md": registers_page}


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
