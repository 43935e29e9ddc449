"""Changes to netlists between synthesis and placement keep what the netlist computes."""

import json
import os
import random

import pytest

from hdl.synthesis import free_carries

SEED = int(os.environ.get("LUTRA_SEED", "1"))
PINS = [pin + half for half in "01" for pin in "ABCD"]
INPUTS = range(2, 10)       # numbers of nets


def netlist(rng, cells):
    """A chain of CCU2C of random functions, their inputs constants and nets."""
    chain, net = {}, INPUTS.stop
    carry = ["0"]
    outputs = []
    for i in range(cells):
        pins = {pin: [rng.choice(["0", "0", "1", *INPUTS])] for pin in PINS}
        pins |= {"CIN": carry, "COUT": [net], "S0": [net + 1], "S1": [net + 2]}
        outputs += [net + 1, net + 2]
        carry = [net]
        net += 3
        chain[f"cell_{i}"] = {
            "type": "CCU2C", "connections": pins,
            "parameters": {f"INIT{half}": f"{rng.randrange(2**16):016b}" for half in "01"},
            "port_directions": {pin: "output" if pin in ("COUT", "S0", "S1") else "input"
                                for pin in pins}}
    # The first position makes its carry itself, whatever comes in.
    first = chain["cell_0"]
    first["connections"] |= {"A0": [2], "C0": [2], "B0": ["0"], "D0": ["0"]}
    first["parameters"]["INIT0"] = f"{0x6996:016b}"
    return {"modules": {"top": {"ports": {"o": {"direction": "output", "bits": outputs}},
                                "cells": chain}}}


def evaluate(netlist, inputs):
    """Sums of the chain; the carry as the vendor defines it: LUT2 is the LUT4 at C = D = 0."""
    top = netlist["modules"]["top"]
    nets = dict(inputs) | {"0": 0, "1": 1}
    for cell in top["cells"].values():
        pins = cell["connections"]
        # Not connected: the first carry may be anything.
        carry = nets.get(pins["CIN"][0], inputs["x"])
        for half in "01":
            init = int(cell["parameters"][f"INIT{half}"], 2)
            a, b, c, d = (nets[pins[pin + half][0]] for pin in "ABCD")
            lut4, lut2 = init >> (a | b << 1 | c << 2 | d << 3) & 1, init >> (a | b << 1) & 1
            nets[pins["S" + half][0]] = lut4 ^ carry
            carry = carry if lut4 else lut2
        nets[pins["COUT"][0]] = carry
    # S of the first position is of the carry that is not connected, and read by nobody.
    return [nets[bit] for bit in top["ports"]["o"]["bits"]][1:]


@pytest.mark.parametrize("seed", range(SEED, SEED + 50))
def test_carry_chains_compute_the_same(tmp_path, seed):
    rng = random.Random(seed)
    before = netlist(rng, 4)
    path = tmp_path / "top.json"
    path.write_text(json.dumps(before))
    free_carries(path)
    after = json.loads(path.read_text())
    cells = after["modules"]["top"]["cells"].values()
    assert not any(cell["connections"][pin] == ["0"] for cell in cells for pin in PINS)
    assert after["modules"]["top"]["cells"]["cell_0"]["connections"]["CIN"] == ["x"]
    assert after["modules"]["top"]["cells"]["cell_3"]["connections"]["COUT"] == ["x"]
    for _ in range(50):
        inputs = {net: rng.randrange(2) for net in INPUTS}
        assert evaluate(before, inputs | {"x": 0}) \
            == evaluate(after, inputs | {"x": rng.randrange(2)})
