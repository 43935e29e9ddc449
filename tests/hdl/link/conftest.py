"""Drivers of byte and element streams for the simulator."""

import random

import pytest
from amaranth.sim import Simulator

# Probabilities of a pause before an element at the sources, and at the sinks.
STALLS = [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.3, 0.3)]


@pytest.fixture(params=STALLS, ids=lambda p: f"idle={p[0]},stall={p[1]}")
def stalls(request):
    return request.param


@pytest.fixture
def simulate():
    return _simulate


@pytest.fixture(name="put")
def _put():
    return put


# Testbenches await single triggers: `until` and `repeat` warn when they are dropped unfinished, and
# waiting for an edge is faster than looking at every tick.

async def put(ctx, stream, element):
    """Send one element."""
    ctx.set(stream.payload, element)
    ctx.set(stream.valid, 1)
    ready = 0
    while not ready:
        if not ctx.get(stream.ready):
            await ctx.posedge(stream.ready)
        _, _, ready = await ctx.tick().sample(stream.ready)
    ctx.set(stream.valid, 0)


def _simulate(dut, sources, sinks, *, stalls=(0.0, 0.0), processes=(), until=None,
              cycles=200_000, period=1e-6, seed=0):
    """Run `dut` until every sink has its elements and `until` returns; return the elements.

    Parameters
    ----------
    sources : list of (stream, elements)
    sinks : list of (stream, number, counts)
        Wait for `number` elements for which ``counts(element)`` is true.
    stalls : (float, float)
        Probability of a pause before an element, of sources and sinks.
    processes : list of coroutine functions
        Further testbenches, in the background.
    until : coroutine function or None
        A testbench in the foreground.
    cycles : int
        After that many the test fails.

    Returns
    -------
    list of lists
        The elements at each sink, as integers or constants of the payload's shape.
    """
    idle, stall = stalls

    def source(stream, elements, rng):
        async def drive(ctx):
            for element in elements:
                while rng.random() < idle:
                    await ctx.tick()
                await put(ctx, stream, element)
        return drive

    def sink(stream, number, counts, received, rng):
        async def drain(ctx):
            missing = number
            offered = None
            ready = stall == 0
            ctx.set(stream.ready, ready)
            while missing:
                if not ctx.get(stream.valid) and offered is None:
                    await ctx.posedge(stream.valid)
                _, _, valid, payload = await ctx.tick().sample(stream.valid, stream.payload)
                if offered is not None:     # the stream contract
                    assert valid, "valid fell before ready"
                    assert payload == offered, "the payload changed before ready"
                offered = None
                if valid and ready:
                    received.append(payload)
                    missing -= bool(counts(payload))
                elif valid:
                    offered = payload
                ready = rng.random() >= stall
                ctx.set(stream.ready, ready)
        return drain

    async def give_up(ctx):
        await ctx.delay(cycles * period)
        raise AssertionError(f"after {cycles} cycles there are only {results}")

    sim = Simulator(dut)
    sim.add_clock(period)
    results = []
    for i, (stream, elements) in enumerate(sources):
        sim.add_testbench(source(stream, elements, random.Random(f"source {i} {seed}")),
                          background=True)
    for i, (stream, number, counts) in enumerate(sinks):
        results.append([])
        sim.add_testbench(sink(stream, number, counts, results[-1],
                               random.Random(f"sink {i} {seed}")))
    if until is not None:
        sim.add_testbench(until)
    for process in [give_up, *processes]:
        sim.add_testbench(process, background=True)
    sim.run()
    return results
