"""Whole engines against the golden model, through the link and the instruction set."""

import numpy as np
import pytest

import sim.golden
from tests.conftest import random_matrix

SMALL = "sim:?lanes=32&n_tile=64&activation_bytes=1024&memory_mib=4"
ENGINES = {
    "rows1": "",
    "rows2": "&rows=2",
    "rows4": "&rows=4&builders=8&activation_bits=8",
    "columns2": "&columns=2&zero_points=0",
    "rows2columns2": "&rows=2&columns=2&scale_points=4&builders=2",
    "block": "&block_ram_blocks=2&rows=2",
    "rows16": "&rows=16&builders=2&block_ram_blocks=1&activation_bits=8",
    "rows4columns2": "&rows=4&columns=2",
}


def stalls(device, seed, reads, room):
    device.transport.model.stalls(seed, reads, room)


@pytest.mark.parametrize("engine", ENGINES)
def test_random_layers_equal_the_golden_model(devices, engine):
    url = SMALL + ENGINES[engine]
    if "scale_points" not in url:
        url += "&scale_points=2"    # given, it stays where a matrix has narrower groups
    device = devices(url)
    config = device.engine
    narrow = 0
    for seed in range(24):
        rng = np.random.default_rng(seed)
        bits = seed % 8 + 1
        schemes = ["symmetric"] + ["asymmetric"] * config.zero_points
        scheme = schemes[rng.integers(len(schemes))]
        group = [32, 64, 128, None][rng.integers(4)]
        M, N, K = (int(rng.integers(1, high)) for high in (7 + config.rows, 300, 700))
        narrow += group is not None and group < min(config.group_width, K)
        q = random_matrix(rng, N, K, bits, group, scheme)
        layer = device.load(q)
        stalls(device, seed, int(rng.integers(200)), int(rng.integers(200)))
        x = rng.integers(-127, 128, (M, K))
        assert np.array_equal(layer.integers(x), sim.golden.integers(q, x)), f"seed {seed}"
        if config.activation_bits == 16:
            x = rng.integers(-32768, 32768, (M, K))
            assert np.array_equal(layer.integers(x), sim.golden.integers(q, x)), f"seed {seed}"
        layer.free()
    stalls(device, 0, 0, 0)
    assert device.engine == config and (narrow or config.group_width == 32)
