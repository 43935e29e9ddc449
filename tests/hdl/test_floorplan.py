"""Fixed places of block RAMs: each its own site, and the same netlist otherwise."""

import itertools
import json
import re

import pytest

import boards
from hdl.errors import BuildError
from hdl.floorplan import fix_block_rams, is_full, places

ENGINE = boards.find("ulx3s").config("max", format="psumbook").engine
KMEANS = boards.find("ulx3s").config("max", format="kmeans").engine


def netlist(engine, path):
    """A netlist with the block RAMs of tables and memory, and one more."""
    names = [f"device.core.rows_0.tables_0.table_{i}.ram.U$0" for i in range(engine.lanes)]
    names += [f"device.memory.data_{j}.U$1" for j in range(engine.code_bits // 32)]
    names += [f"device.memory.side_{j}.U$0" for j in range(-(-engine.side_bits // 32))]
    cells = {name: {"type": "DP16KD", "attributes": {}} for name in [*names, "device.uart.ram"]}
    cells["device.core.table_0.ram.lut"] = {"type": "LUT4", "attributes": {}}
    path.write_text(json.dumps({"modules": {"top": {"cells": cells}}}))
    return names


@pytest.mark.parametrize("engine", [ENGINE, KMEANS], ids=["psumbook", "kmeans"])
def test_every_block_ram_has_a_site_of_its_own(engine, tmp_path):
    path = tmp_path / "top.json"
    names = netlist(engine, path)
    fix_block_rams(path, engine)
    cells = json.loads(path.read_text())["modules"]["top"]["cells"]
    sites = {name: cell["attributes"]["BEL"] for name, cell in cells.items() if cell["attributes"]}
    assert sorted(sites) == sorted(names)
    assert len(set(sites.values())) == len(names)
    assert all(re.fullmatch(r"X\d+/Y(22|46|70|82)/EBR[0-3]", site) for site in sites.values())
    # Sites that nextpnr names in this device.
    assert {"X19/Y22/EBR3", "X69/Y70/EBR0"} <= set(sites.values())


def test_tables_of_neighbouring_lanes_are_neighbours():
    sites = {pattern: re.fullmatch(r"X(\d+)/Y(\d+)/EBR\d", site).groups()
             for pattern, site in places(ENGINE).items()}
    lanes = [sites[rf"\.table_{i}\.ram\."] for i in range(ENGINE.lanes)]
    breaks = 0
    for (x, y), (next_x, next_y) in itertools.pairwise(lanes):
        breaks += y != next_y
        assert y != next_y or 0 < int(next_x) - int(x) <= 5
    assert breaks == 2      # three rows
    memory = {y for pattern, (_, y) in sites.items() if "memory" in pattern}
    assert len(memory) == 1 and memory.isdisjoint(y for _, y in lanes)


def test_only_engines_that_fill_the_chip_are_fixed():
    full = {(name, format, size) for name, board in boards.BOARDS.items()
            for format in ("bitserial", "psumbook", "kmeans") for size in ("tiny", "default", "max")
            if board.family == "ecp5" and is_full(board.config(size, format=format).engine)}
    assert full == {("ulx3s", "psumbook", "max"), ("ulx3s", "kmeans", "max")}


def test_a_netlist_without_the_block_rams_is_refused(tmp_path):
    path = tmp_path / "top.json"
    netlist(ENGINE.replace(lanes=64, scale_points=4, block_ram_blocks=16, scaler_dsps=2), path)
    with pytest.raises(BuildError, match="0 block RAMs are named"):
        fix_block_rams(path, ENGINE)
