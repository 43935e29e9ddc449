"""Outlier detection against sorting, in cocotb: `tests/hdl/topk/suite.py`."""

import pytest

from hdl.topk import Orizuru, SortedLists
from tests.hdl.cocotb_core.simulator import run


def check(dut, tmp_path, *, depth, streams, most, pace):
    run(dut, "topk", "tests.hdl.topk.suite", tmp_path, LUTRA_DEPTH=str(depth),
        LUTRA_STREAMS=str(streams), LUTRA_MOST=str(most), LUTRA_PACE=str(pace))


@pytest.mark.timeout(280)
@pytest.mark.parametrize("depth, streams", [(32, 800), (256, 200), (4096, 5)])
def test_orizuru(depth, streams, tmp_path):
    check(Orizuru(depth), tmp_path, depth=depth, streams=streams, most=depth // 2, pace=1)


@pytest.mark.timeout(280)
@pytest.mark.parametrize("depth", [32, 64])
def test_orizuru_of_one_side(depth, tmp_path):
    check(Orizuru(depth, one_sided=True), tmp_path, depth=depth, streams=400, most=depth, pace=1)


@pytest.mark.timeout(280)
@pytest.mark.parametrize("depth, most, streams", [(32, 5, 800), (256, 21, 100), (1024, 1, 20)])
def test_sorted_lists(depth, most, streams, tmp_path):
    check(SortedLists(depth, most), tmp_path, depth=depth, streams=streams, most=most,
          pace=SortedLists.PACE)
