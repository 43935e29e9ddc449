"""The client against the whole Verilated device, on a line full of faults."""

import random

import numpy as np
import pytest

import host
import sim.golden
from host.link import Client
from sim.device import SimStream
from tests.conftest import random_matrix
from tests.hdl.test_core import SMALL

from .noise import NoisyStream


@pytest.mark.timeout(300)
def test_ten_thousand_faults(capsys):
    """Every write reaches the memory once and unchanged, every read is true; then it multiplies."""
    rng = random.Random(1)
    with host.open(SMALL) as device:
        transport = device.transport
        model = transport.model
        line = NoisyStream(SimStream(model, "sim:"), rate=0.3, seed=2)
        client = Client(line, retries=100, timeout=2e-5)
        expected = {}
        writes, before = 0, model.writes()
        while line.faults.total() < 10_000:
            # Few addresses, so that a write that is applied late is seen.
            address = 4 * rng.randrange(60)
            count = rng.choice((1, 1, 1, 2, 5, 40))
            span = [address + 4 * i for i in range(count)]
            if rng.random() < 0.6:
                values = [rng.randrange(1 << 32) for _ in span]
                client.write(address, np.array(values, "<u4").tobytes())
                expected.update(zip(span, values))
                writes += count
            else:
                found = np.frombuffer(client.read(address, 4 * count), "<u4")
                assert found.tolist() == [expected.get(a, 0) for a in span]
        s = client.statistics
        with capsys.disabled():
            print(f"\n{line.faults.total()} faults, {model.cycle()} cycles, {s}")
        memory = model.data.reshape(-1).view("<u4")
        assert {4 * i: v for i, v in enumerate(memory[:100].tolist()) if v or 4 * i in expected} \
            == expected
        assert model.writes() - before == writes
        assert s.sessions == 1
        assert s.timeouts and s.naks and s.damaged and s.stale
        assert set(line.faults) == {(d, k) for d in ("to device", "to host") for k in line.KINDS}

        # Programs, registers and results through the same line.
        transport._client, transport.direct = client, False
        generator = np.random.default_rng(1)
        q = random_matrix(generator, 20, 150, 2, 64, "asymmetric")
        x = generator.integers(-127, 128, (3, 150))
        faults = line.faults.total()
        layer = device.load(q)
        assert np.array_equal(layer.integers(x), sim.golden.integers(q, x))
        assert line.faults.total() > faults + 20
