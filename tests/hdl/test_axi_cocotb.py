"""A whole device with its memory behind AXI4, in cocotb: `tests/hdl/cocotb_axi/suite.py`.

The memory is the AxiRam of cocotbext-axi; environment variables as for `test_core_cocotb.py`.
"""

import json

import pytest

from hdl.config import DeviceConfig, EngineConfig
from hdl.top import Top
from tests.hdl.cocotb_core.simulator import run

CONFIG = DeviceConfig(
    engine=EngineConfig(lanes=32, n_tile=16, activation_bytes=512, address_bits=12),
    memory="axi", memory_beats=4000, axi_bits=64, axi_base=0x8000_0000, axi_burst=16)


@pytest.mark.timeout(280)
def test_device(tmp_path):
    options = {n: getattr(CONFIG, n)
               for n in ("memory", "memory_beats", "axi_bits", "axi_base", "axi_burst")}
    run(Top(CONFIG), "top", "tests.hdl.cocotb_axi.suite", tmp_path,
        LUTRA_ENGINE=json.dumps(CONFIG.engine.as_dict()), LUTRA_DEVICE_OPTIONS=json.dumps(options))
