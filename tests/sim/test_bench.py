"""``python -m sim.bench``: its rows, its command line, its sweep."""

import json

import pytest

from hdl.config import EngineConfig
from sim import bench, psumbook_bench, sq_bench
from sim.measure import identity


def test_rows_say_what_they_are_of():
    row = identity(EngineConfig(lanes=32, epilogue=False))
    assert "lanes=32" in row["parameters"] and "epilogue=0" in row["parameters"]
    assert row["digest"] == EngineConfig(lanes=32, epilogue=False).digest


@pytest.mark.parametrize("comb, mhz, reasons", [
    (20.0, [210, 205, 201], None),
    (22.0, [210, 205, 201], "LUT RAM is 864 of 2816 COMB"),
    (20.0, [206, 194, 193], "6 MHz short, seeds scatter over 193..206"),
])
def test_a_missed_goal_has_a_reason(comb, mhz, reasons):
    config = EngineConfig(lanes=64, block_ram_blocks=2)
    area = {"comb": round(comb * 128), "mhz": sorted(mhz)[1], "mhz_seeds": mhz}
    assert bench._core_why_not(config, area, comb, 21.0, 200) == reasons


@pytest.fixture
def small(monkeypatch):
    """The sweep on a matrix so small that it takes seconds."""
    sweep = psumbook_bench.sweep
    monkeypatch.setattr(psumbook_bench, "sweep", lambda progress: sweep(progress, sample=32))
    return sweep


def test_sweep(small, tmp_path, capsys):
    picture, saved = tmp_path / "sweep.svg", tmp_path / "sweep.json"
    assert bench.main(["--sweep", "psumbook", "--plot", str(picture), "--save", str(saved),
                       "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["psumbook-sweep"]
    assert json.loads(saved.read_text())["psumbook-sweep"] == rows and "<svg" in picture.read_text()
    assert {(r["m"], r["v"], r["b"], r["g"]) for r in rows} >= {(2, 8, 8, 128), (1, 4, 8, "row")}
    cost = lambda r: (r["bits"], r["error"], r["cycles"])
    front = [r for r in rows if r["pareto"]]
    assert front and len(front) < len(rows)
    for row in rows:
        beaten = any(all(a <= b for a, b in zip(cost(f), cost(row))) and cost(f) != cost(row)
                     for f in front)
        assert beaten != row["pareto"]
    # 4096 x 4096 at m2v8b8: two codes of eight bits for eight weights, and the rest.
    [row] = [r for r in rows if (r["m"], r["v"], r["b"], r["g"]) == (2, 8, 8, 128)]
    assert row["bits"] == round(2 + 16 / 128 + 32 / 4096 + 8 * 2 * 256 * 8 / 4096**2, 3)
    assert row["cycles"] == 4096 * 16 and row["macs_per_cycle"] == 256


def test_sweep_of_banks(tmp_path, capsys, monkeypatch):
    sweep = sq_bench.sweep
    monkeypatch.setattr(sq_bench, "sweep", lambda progress: sweep(progress, sample=64))
    picture = tmp_path / "sweep.svg"
    assert bench.main(["--sweep", "sq", "--plot", str(picture), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["sq-sweep"]
    assert "<svg" in picture.read_text()
    by_key = {(r["b"], r["s"], r["low"], r["storage"]): r for r in rows}
    assert len(by_key) == len(rows) == 2 * 3 * (5 + 6 + 7) + 5 * 3
    integers = by_key[64, None, 5, "integers"]
    assert integers["bits"] == round(5 + 16 / 64 + 32 / 4096, 3)
    assert integers["cycles"] == 4 * 16 * 5 * 1024
    row = by_key[64, 0.875, 4, "sentinel"]
    # 4096 x 4096, 64 lanes, 4 N tiles of 16 K tiles: two sums, and four planes for every column.
    assert row["bits"] == round(5 + 19 / 64 + 32 / 4096, 3) and row["paper_bits"] == 4.5
    assert row["cycles"] == 4 * 16 * (4 * 1024 + 2) and row["high_lanes"] == 2
    assert row["image_bits"] == pytest.approx((256 + 4 * (5 + 2 * 14)) / 64, rel=1e-3)
    assert by_key[64, 0.875, 4, "mask"]["bits"] > row["bits"]
    assert by_key[64, 0.5, 4, "mask"]["bits"] < by_key[64, 0.5, 4, "sentinel"]["bits"]
    cost = lambda r: (r["bits"], r["error"], r["cycles"])
    front = [r for r in rows if r["pareto"]]
    for row in rows:
        beaten = any(all(a <= b for a, b in zip(cost(f), cost(row))) and cost(f) != cost(row)
                     for f in front)
        assert beaten != row["pareto"]


@pytest.mark.parametrize("args, message", [
    (("--nonsense",), "unrecognized arguments"), (("--only", "areas"), "invalid choice: 'areas'"),
    (("--plot", "a.svg"), "give --sweep psumbook or sq"),
    (("--sweep", "psumbook", "--plot", "a.txt"), r".png, .svg, .pdf file, not a.txt"),
])
def test_usage(args, message, capsys):
    assert bench.main(list(args)) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_unwritable_file_is_refused_before_the_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(psumbook_bench, "sweep", lambda progress: pytest.fail("worked"))
    assert bench.main(["--sweep", "psumbook", "--save", str(tmp_path / "no" / "x.json")]) == 1
    assert "its directory does not exist" in capsys.readouterr().err
