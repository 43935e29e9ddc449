"""Whole cores in cocotb: builds them with Verilator and runs `tests/hdl/cocotb_core/suite.py`.

``LUTRA_SEED`` repeats a run, ``LUTRA_WAVES=1`` writes ``dump.vcd`` into pytest's temporary
directory (see ``--basetemp``), and ``COCOTB_TEST_FILTER`` chooses tests by a regular expression.
"""

import json
import os

import pytest

from hdl.config import EngineConfig
from hdl.core import Core
from tests.hdl.cocotb_core.simulator import run

RESULTS = ("random_layers", "every_number_of_columns", "tails_of_k", "extreme_values",
           "int8_results")
SQ = ("random_layers", "every_number_of_columns", "tails_of_k", "int8_results", "back_to_back",
      "patience", "reset_in_mid_program")
ENGINES = {
    # name: (parameters, tests to run or all)
    "rows1": ({}, ()),
    "rows2columns2": ({"rows": 2, "columns": 2}, ()),
    # Three blocks of eight chunks of 4 weights, and one of four chunks of 8 in block RAM.
    "mixed": ({"block_ram_blocks": 1}, RESULTS),
    "sq_sentinels": ({"format": "sq", "bank": 32, "high_lanes": 2, "turns": 2, "sentinels": True,
                      "activation_bits": 8}, SQ),
}


@pytest.mark.timeout(280)
@pytest.mark.parametrize("engine", ENGINES)
def test_core(engine, tmp_path):
    fields, tests = ENGINES[engine]
    config = EngineConfig(**dict(lanes=32, n_tile=16, activation_bytes=512, address_bits=12,
                                 activation_bits=16) | fields)
    chosen = os.environ.get("COCOTB_TEST_FILTER", "|".join(f"{name}$" for name in tests))
    ran = run(Core(config), "core", "tests.hdl.cocotb_core.suite", tmp_path,
              LUTRA_ENGINE=json.dumps(config.as_dict()), COCOTB_TEST_FILTER=chosen)
    assert "COCOTB_TEST_FILTER" in os.environ or ran >= set(tests)
