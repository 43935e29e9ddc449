"""The steps of the table builders."""

import pytest
from amaranth.sim import Simulator

from hdl.signed_sums import StepCounter, step_program


@pytest.mark.parametrize("chunks", [(4,), (8,), (4, 8)])
def test_counted_steps_are_those_of_the_program(chunks):
    """Tables back to back and with pauses; `last` marks the step before the next table's first."""
    dut = StepCounter(chunks)
    found, marks, expected, ends = [], [], [], []
    tables = [v for v in chunks for _ in range(3)]

    async def walk(ctx):
        for i, v in enumerate(tables):
            ctx.set(dut.wide, v == 8)
            program = step_program(v)
            for n, step in enumerate(program):
                ctx.set(dut.run, 1)
                marks.append(ctx.get(dut.last))
                await ctx.tick()
                got = ctx.get(dut.step)
                found.append((got.position, got.restart, got.double, got.negate, got.entry))
                expected.append(tuple(int(x) for x in step))
                ends.append(n == len(program) - 1)
            ctx.set(dut.run, 0)
            await ctx.tick().repeat(i + 1)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(walk)
    simulator.run()
    assert found == expected
    assert marks == ends
