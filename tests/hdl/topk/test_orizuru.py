"""Outlier detection against sorting, in cocotb: `tests/hdl/topk/suite.py`."""

import pytest

from hdl.topk import Orizuru
from tests.hdl.cocotb_core.simulator import run


@pytest.mark.timeout(280)
@pytest.mark.parametrize("depth, streams", [(32, 800), (256, 200), (4096, 5)])
def test_orizuru(depth, streams, tmp_path):
    run(Orizuru(depth), "orizuru", "tests.hdl.topk.suite", tmp_path,
        LUTRA_DEPTH=str(depth), LUTRA_STREAMS=str(streams))

