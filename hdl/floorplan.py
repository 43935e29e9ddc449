"""Where block RAMs go on a chip that tables fill.

A placer with hardly a free site left scatters block RAMs over the chip, and their wires are then
too long to route.  So their places are fixed here: tables in the order of their lanes, so that
those of a scale point, whose entries meet in a tree, are neighbours; the memory in a row of its
own, each block near the tables whose codes it holds.  Wires are densest at the row of the memory,
so that is not the one in the middle of the chip, which control and store cross.
"""

import json
import re

from hdl.config import BLOCK
from hdl.errors import BuildError

__all__ = ["fix_block_rams", "is_full", "places"]

# The block RAMs of an LFE5U-85F: four rows of 52, four in nine columns, and two columns of clock
# logic after the seventh four.
_SITES = [f"X{4 + 9 * (i // 4) + 2 * (i % 4) + 2 * (i >= 28)}/{{row}}/EBR{i % 4}"
          for i in range(52)]
_TABLE_ROWS = ("Y22", "Y46", "Y82")
_MEMORY_ROW = "Y70"
_IN_ROW = 44    # tables: some sites of each row stay free for what works on them


def is_full(engine):
    """Whether the tables of an engine take so many block RAMs that their places are fixed."""
    tables = engine.blocks * BLOCK // engine.v
    return (engine.format != "bitserial" and engine.block_ram_blocks == engine.blocks
            and engine.cells <= 2 and engine.columns == 1
            and 2 * _IN_ROW < tables <= len(_TABLE_ROWS) * _IN_ROW)


def places(engine):
    """Sites of the block RAMs of tables and memory.

    Parameters
    ----------
    engine : EngineConfig
        One for which :func:`is_full` holds.

    Returns
    -------
    dict
        Regular expression of a cell's name -> site, as nextpnr names it.
    """
    tables = engine.blocks * BLOCK // engine.v
    found, along = {}, []
    for i in range(tables):
        row, k = divmod(i, _IN_ROW)
        along.append(k + (len(_SITES) - min(_IN_ROW, tables - row * _IN_ROW)) // 2)
        found[rf"\.table_{i}\.ram\."] = _SITES[along[i]].format(row=_TABLE_ROWS[row])

    def middle(word):       # of the tables whose codes begin in a word of the memory
        lanes = range(-(-32 * word // engine.b), min(tables, -(-32 * (word + 1) // engine.b)))
        return sum(along[lane] for lane in lanes) / max(1, len(lanes))

    words = sorted(range(engine.code_bits // 32), key=middle)
    half = len(words) // 2
    memory = ([f"data_{w}" for w in words[:half]]
              + [f"side_{i}" for i in range(engine.side_words)]
              + [f"data_{w}" for w in words[half:]])
    for i, name in enumerate(memory):
        site = 2 + round(i * (_IN_ROW - 1) / (len(memory) - 1))
        found[rf"^device\.memory\.{name}\."] = _SITES[site].format(row=_MEMORY_ROW)
    return found


def fix_block_rams(path, engine):
    """Fix the block RAMs in the netlist of a device with on-chip memory: see :func:`places`.

    Raises
    ------
    BuildError
        A block RAM is not there, or is not one.
    """
    netlist = json.loads(path.read_text())
    cells = {name: cell for name, cell in netlist["modules"]["top"]["cells"].items()
             if cell["type"] == "DP16KD"}
    for pattern, site in places(engine).items():
        named = [name for name in cells if re.search(pattern, name)]
        if len(named) != 1:
            raise BuildError(f"{len(named)} block RAMs are named {pattern} where the floorplan "
                             "wants one: at most 512 beats of memory fit beside these tables")
        cells[named[0]]["attributes"]["BEL"] = site
    path.write_text(json.dumps(netlist))
