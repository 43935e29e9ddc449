"""Whole cores in cocotb: builds them with Verilator and runs `tests/hdl/cocotb_core/suite.py`.

``LUTRA_SEED`` repeats a run, ``LUTRA_WAVES=1`` writes ``dump.vcd`` into pytest's temporary
directory (see ``--basetemp``), and ``COCOTB_TEST_FILTER`` chooses tests by a regular expression.
"""

import json

import pytest

from hdl.config import EngineConfig
from hdl.core import Core
from tests.hdl.cocotb_core.simulator import run

ENGINES = {"rows1": (1, 1), "rows2columns2": (2, 2)}


@pytest.mark.timeout(280)
@pytest.mark.parametrize("engine", ENGINES)
def test_core(engine, tmp_path):
    rows, columns = ENGINES[engine]
    config = EngineConfig(lanes=32, n_tile=16, activation_bytes=512, address_bits=12, rows=rows,
                          columns=columns, activation_bits=16)
    run(Core(config), "core", "tests.hdl.cocotb_core.suite", tmp_path,
        LUTRA_ENGINE=json.dumps(config.as_dict()))
