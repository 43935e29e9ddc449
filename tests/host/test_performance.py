"""The performance model against simulated devices."""

import numpy as np
import pytest

import host
from host.performance import build_cycles, matmul_cycles
from sim.measure import random_layer


@pytest.mark.parametrize("url, cases", [
    ("sim:", [(1, 1024, 1024, 2), (8, 512, 512, 2), (1, 64, 4096, 4), (3, 300, 700, 3),
              (2, 5000, 300, 1)]),
    ("sim:?rows=8&builders=8", [(8, 512, 512, 2), (16, 512, 512, 4)])])
def test_cycles_of_bitserial(url, cases):
    rng = np.random.default_rng(0)
    with host.open(url) as device:
        for M, N, K, bits in cases:
            q = random_layer(rng, N, K, bits, 128)
            layer = device.load(q)
            layer.integers(rng.integers(-127, 128, (M, K)))
            assert matmul_cycles(device.engine, q, M) == pytest.approx(layer.stats["cycles"],
                                                                       rel=0.02)
        # 11 cycles per lane of four weights, two between tiles.
        assert build_cycles(device.engine) == 11 * 64 // device.engine.builders + 2
