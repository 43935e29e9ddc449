"""``python -m hdl.build``: bitstream, project files, report, exit status."""

import json
import os
import re
import stat
import subprocess
import sys

import pytest

import boards
import hdl.build
from hdl.build import build, elaborate, main
from hdl.errors import BuildError
from hdl.protocol import BAUDS
from hdl.synthesis import tool, tool_version

ULX3S = boards.find("ulx3s")
ARTY = boards.find("arty")


@pytest.fixture(scope="module")
def ulx3s(tmp_path_factory):
    """Directory and printed report of the tiny ULX3S build, from the cache where it is there."""
    out = tmp_path_factory.mktemp("ulx3s")
    done = subprocess.run([sys.executable, "-m", "hdl.build", "--board", "ulx3s", "--size", "tiny",
                           "--json", "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


@pytest.fixture(scope="module")
def arty(tmp_path_factory):
    """Directory and report of the tiny Arty build, without Vivado."""
    out = tmp_path_factory.mktemp("arty")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hdl.build.shutil, "which", lambda name: None)
        return out, build(ARTY, ARTY.config("tiny"), out=out)


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path / "cache"))


def fake_flow(**result):
    """A flow that takes no time; the report says `result`."""
    def flow(commands, work, steps, config):
        (work / "top.bit").write_bytes(b"bits")
        return {"fmax_mhz": 40.0, "timing_met": True, "critical_path": None, "comb": 1, "ff": 1,
                "bram": 1, "dsp": 1, "bitstream": "top.bit"} | result
    return flow


# ULX3S

@pytest.mark.timeout(900)
def test_bitstream_is_for_the_board(ulx3s):
    out, report = ulx3s
    bits = (out / report["bitstream"]).read_bytes()
    assert b"Part: LFE5U-85F-6CABGA381" in bits[:200]
    assert b"\xff\xff\xbd\xb3" in bits[:400]        # the preamble of an ECP5
    assert len(bits) > 100_000


@pytest.mark.timeout(900)
def test_report_is_consistent(ulx3s):
    out, report = ulx3s
    assert report == json.loads((out / "report.json").read_text())
    config = ULX3S.config("tiny")
    assert (report["board"], report["device"]) == ("ulx3s", "LFE5U-85F-6BG381C")
    assert report["engine"] == config.engine.as_dict()
    assert report["device_digest"] == config.digest
    assert report["peak_macs"] == {"W1": 128, "W2": 64, "W4": 32, "W8": 16}
    assert report["gops_w2"] == pytest.approx(2 * 64 * report["clock_hz"] / 1e9)
    assert report["clock_hz"] == ULX3S.clock_hz
    assert report["timing_met"] and report["fmax_mhz"] * 1e6 >= report["clock_hz"]
    # The path takes a clock period: the report is of the clock that it says.
    assert report["critical_path"]["ns"] == pytest.approx(1e3 / report["fmax_mhz"], abs=0.02)
    assert report["memory"] == {"kind": "onchip", "bytes": 16384,
                                "bytes_per_second": 16 * report["clock_hz"]}
    assert report["link"] == {"baud": BAUDS[0]}
    assert set(report["tools"]) == {"amaranth", "yosys", "nextpnr-ecp5", "ecppack"}
    assert report["tools"]["yosys"].startswith("Yosys 0.")
    assert 0 < report["seconds"] < 900
    # Counted again, in the log of place and route and in the netlist's statistics.
    log = (out / "top.tim").read_text()
    for key, cell in [("comb", "TRELLIS_COMB"), ("ff", "TRELLIS_FF"), ("bram", "DP16KD"),
                      ("dsp", "MULT18X18D")]:
        assert int(re.search(rf"{cell}:\s+(\d+)/", log)[1]) == report[key]
    assert report["dsp"] == config.engine.scale_points
    assert report["bram"] >= report["memory"]["bytes"] // 2048


@pytest.mark.timeout(900)
def test_register_map_lies_beside_the_bitstream(ulx3s):
    out, report = ulx3s
    found = json.loads((out / "registers.json").read_text())
    assert found["registers"][0]["name"] == "MAGIC" and found["registers"][0]["offset"] == 0
    assert found["identity"]["DIGEST"] == int(report["device_digest"][:8], 16)
    assert found["identity"]["CLOCK"] == report["clock_hz"]


@pytest.mark.timeout(900)
def test_second_build_comes_from_the_cache_and_is_equal(ulx3s, tmp_path, monkeypatch):
    out, report = ulx3s
    monkeypatch.setattr(hdl.build, "_FLOWS", {})
    assert build(ULX3S, ULX3S.config("tiny"), out=tmp_path) == report
    assert (tmp_path / "top.bit").read_bytes() == (out / "top.bit").read_bytes()


def test_elaboration_depends_on_nothing_but_its_arguments(tmp_path, monkeypatch):
    config = ULX3S.config("tiny")
    first = elaborate(ULX3S, config)
    monkeypatch.setenv("PYTHONHASHSEED", "77")
    monkeypatch.setenv("AMARANTH_nextpnr_opts", "--seed 9")
    monkeypatch.chdir(tmp_path)
    assert elaborate(ULX3S, config) == first
    other = elaborate(ULX3S, config, seed=2)
    assert [name for name in first if first[name] != other[name]] == ["build_top.json"]
    assert not re.search(r"/(work|tmp|home|usr)/", "".join(first.values()))


def test_digest_tells_builds_apart(empty_cache, monkeypatch):
    monkeypatch.setitem(hdl.build._FLOWS, "ecp5", fake_flow())
    tiny = ULX3S.config("tiny")
    digests = [build(ULX3S, config, seed=seed)["digest"] for config, seed in [
        (tiny, 1), (tiny, 1), (tiny, 2), (ULX3S.config("tiny", clock_hz=25_000_000), 1),
        (ULX3S.config("tiny", builders=4), 1)]]
    assert digests[0] == digests[1] and len(set(digests)) == 4


# Failures

def test_missed_timing_fails_and_leaves_no_bitstream(empty_cache, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(hdl.build._FLOWS, "ecp5", fake_flow(timing_met=False))
    arguments = ["--board", "ulx3s", "--size", "tiny", "--out", str(tmp_path)]
    assert main([*arguments, "--allow-timing-fail"]) == 0
    assert (tmp_path / "top.bit").exists()
    capsys.readouterr()
    assert main(arguments) == 1
    assert not (tmp_path / "top.bit").exists()
    assert json.loads((tmp_path / "report.json").read_text())["timing_met"] is False
    error = capsys.readouterr().err
    assert re.fullmatch(r"python -m hdl.build: error: timing not met: 40.0 MHz of \d+; .*\n", error)


def test_device_that_does_not_fit_fails(empty_cache, monkeypatch):
    monkeypatch.setitem(hdl.build._FLOWS, "xilinx7", fake_flow(lut=20801))
    with pytest.raises(BuildError, match="does not fit: it takes 20801 LUT of 20800"):
        build(ARTY, ARTY.config("tiny"))


def test_failing_tool_is_one_line_and_keeps_its_log(empty_cache, monkeypatch, tmp_path, capsys):
    fail = "import sys; print('noise'); print('ERROR: no such cell.'); sys.exit(1)"
    monkeypatch.setattr(hdl.build, "tool", lambda name: sys.executable)
    monkeypatch.setattr(hdl.build, "run", lambda command, work, **options: real_run(
        [command[0], "-c", fail], work, **options))
    real_run = hdl.synthesis.run
    out = tmp_path / "out"
    assert main(["--board", "ulx3s", "--size", "tiny", "--out", str(out)]) == 1
    assert capsys.readouterr().err == "python -m hdl.build: error: yosys: ERROR: no such cell.\n"
    assert "noise" in (out / "yosys.log").read_text()
    assert not (out / "report.json").exists()
    assert not list((tmp_path / "cache" / "build").iterdir())


def test_failing_elaboration_is_one_line(empty_cache, monkeypatch, capsys):
    monkeypatch.setenv("AMARANTH_USE_YOSYS", "nonsense")
    assert main(["--board", "arty", "--size", "tiny"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "elaboration failed" in error and "nonsense" in error


@pytest.mark.parametrize("arguments, message", [
    ([], "required: --board"),
    (["--board", "vu9p"], "'vu9p' (choose from"),
    (["--board", "ulx3s", "--size", "huge"], "'huge' (choose from"),
    (["--board", "ulx3s", "--format", "fp8"], "'fp8' (choose from"),
    (["--board", "ulx3s", "--lanes", "48"], "lanes must be one of 16, 32, 64, 128, 256, not 48"),
    (["--board", "ulx3s", "--rows", "3"], "rows must be one of"),
    (["--board", "ulx3s", "--clock", "137"], "the nearest it can are"),
    (["--board", "ulx3s", "--clock", "0.5"], "clock_hz must be"),
    (["--board", "ulx3s", "--memory", "0"], "memory_beats must be"),
    (["--board", "ulx3s", "--memory", "many"], "invalid number of KiB value: 'many'"),
    (["--board", "ulx3s", "--clock", "nan"], "number of MHz"),
    (["--board", "ulx3s", "--clock", "inf"], "number of MHz"),
    (["--board", "ulx3s", "--clock", "1e305"], "number of MHz"),
    (["--board", "ulx3s", "--clock=-5"], "clock_hz must be"),
    (["--board", "ulx3s", "--seed", "x"], "invalid int value"),
])
def test_bad_usage(arguments, message, capsys):
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and not output.out


def test_help_has_examples(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "examples:" in text and "exit status:" in text


def test_dry_run_builds_nothing(empty_cache, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--board", "ulx3s", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["engine"] == ULX3S.config().engine.as_dict()
    assert set(plan["estimate"]) == {"comb", "ff", "bram", "dsp"}
    assert main(["--board", "arty", "--dry-run"]) == 0
    assert "about" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_sides_of_sq(capsys):
    engines = {}
    for side in ("weight", "activation"):
        assert main(["--board", "ulx3s", "--format", "sq", "--side", side, "--dry-run",
                     "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        engines[side] = plan["engine"]
        assert ("W2" in plan["peak_macs"]) == (side == "activation")
    assert engines["weight"]["high_lanes"] == 2 and engines["activation"]["high_lanes"] == 0
    assert engines["activation"]["activation_bits"] == 16
    assert main(["--board", "ulx3s", "--side", "activation", "--dry-run"]) == 2
    assert "--side is for --format sq" in capsys.readouterr().err


def test_places_of_sq_from_sentinels(capsys):
    sq = ["--board", "ulx3s", "--format", "sq", "--dry-run"]
    plans = []
    for options in ([], ["--sentinels"]):
        assert main([*sq, "--json", *options]) == 0
        plans.append(json.loads(capsys.readouterr().out))
    assert [plan["engine"]["sentinels"] for plan in plans] == [False, True]
    assert plans[0]["estimate"]["comb"] < plans[1]["estimate"]["comb"]
    assert main([*sq, "--sentinels"]) == 0
    assert "places from sentinels" in capsys.readouterr().out
    assert main([*sq, "--sentinels", "--high-lanes", "4"]) == 2
    assert "high_lanes must be 1 or 2" in capsys.readouterr().err
    for wrong in (["--board", "ulx3s", "--dry-run", "--sentinels"],
                  [*sq, "--side", "activation", "--sentinels"]):
        assert main(wrong) == 2
        assert "--sentinels is for --format sq with --side weight" in capsys.readouterr().err


@pytest.mark.timeout(900)
def test_estimate_is_within_a_third(ulx3s):
    guess = hdl.build.estimate(ULX3S.config("tiny"))
    for name, n in guess.items():
        assert ulx3s[1][name] / 1.5 <= n <= ulx3s[1][name] * 1.5, name


# Arty

@pytest.mark.timeout(600)
def test_vivado_script_names_every_file_and_every_file_is_there(arty):
    out, report = arty
    script = (out / "top.tcl").read_text()
    named = set(re.findall(r'(?:add_files|read_xdc) "?([\w.]+)"?', script))
    assert named == {"top.v", "top.xdc", "arty.xdc"}
    assert all((out / name).stat().st_size for name in named)
    for step in ("create_project", "synth_design", "place_design", "route_design",
                 "report_timing_summary", "report_utilization", "write_bitstream"):
        assert step in script
    assert "top.tcl" in (out / "build_top.sh").read_text()
    assert report["bitstream"] is None and not (out / "top.bit").exists()


@pytest.mark.timeout(600)
def test_constraints_reference_ports_that_exist(arty):
    out, _ = arty
    verilog = (out / "top.v").read_text()
    header = re.search(r"^module top\((.*?)\);", verilog, re.S | re.M)[1]
    ports = {port.strip() for port in header.split(",")}
    text = (out / "top.xdc").read_text() + (out / "arty.xdc").read_text()
    groups = re.findall(r'get_(?:ports|nets) (?:"([^"]*)"|\{([^}]*)\}|([\w.]+))', text)
    named = {name for group in groups for name in " ".join(group).split()}
    assert named == ports == {"clk100_0__io", "uart_0__rx__io", "uart_0__tx__io", "led_0__io"}


@pytest.mark.timeout(600)
def test_arty_report(arty):
    out, report = arty
    assert report["fmax_mhz"] is None and report["timing_met"] is None
    assert "vivado" not in report["tools"] and report["clock_hz"] == ARTY.clock_hz
    text = (out / "utilisation.rpt").read_text()
    cells = {cell: int(n) for n, cell in re.findall(r"^\s+(\d+)\s+([A-Z]\w+)$", text, re.M)}
    assert report["ff"] == sum(n for cell, n in cells.items() if cell.startswith("FD"))
    assert report["bram"] == cells.get("RAMB36E1", 0) + cells.get("RAMB18E1", 0) / 2
    assert report["dsp"] == cells["DSP48E1"] >= 1
    luts = sum(n for cell, n in cells.items() if cell.startswith("LUT"))
    # Four look-up tables make each RAM32M or RAM64M, one each SRL16E.
    rams = 4 * (cells["RAM32M"] + cells["RAM64M"])
    assert luts + rams <= report["lut"] <= luts + rams + cells["SRL16E"]
    assert report["memory"]["bytes"] / 4096 <= report["bram"] < report["available"]["bram"]


TIMING_REPORT = """\
------------------------------------------------------------------------------------------------
| Design Timing Summary
| ---------------------
------------------------------------------------------------------------------------------------

    WNS(ns)      TNS(ns)  TNS Failing Endpoints  TNS Total Endpoints      WHS(ns)      THS(ns)
    -------      -------  ---------------------  -------------------      -------      -------
     {slack}        0.000                      0                12064        0.035        0.000
"""
AREA_REPORT = """\
+-------------------------+------+-------+-----------+-------+
|        Site Type        | Used | Fixed | Available | Util% |
+-------------------------+------+-------+-----------+-------+
| Slice LUTs              | 3210 |     0 |     20800 | 15.43 |
| Slice Registers         | 2345 |     0 |     41600 |  5.64 |
| Block RAM Tile          |  8.5 |     0 |        50 | 17.00 |
| DSPs                    |    3 |     0 |        90 |  3.33 |
+-------------------------+------+-------+-----------+-------+
"""


@pytest.mark.parametrize("slack, fmax", [("0.417", 104.35), ("-2.500", 80.0)])
def test_vivado_runs_where_it_is_installed(empty_cache, monkeypatch, tmp_path, request, slack,
                                           fmax):
    """Stand-ins that write reports as the tools do; the real Vivado was not at hand."""
    bin = tmp_path / "bin"
    bin.mkdir()
    (bin / "timing").write_text(TIMING_REPORT.format(slack=slack))
    (bin / "area").write_text(AREA_REPORT)
    for name, text in {
        "yosys": """
            test "$1" = -V && echo "Yosys 0.0" && exit
            echo '{"design": {"num_cells_by_type": {"LUT6": 5}}}' > utilisation.json""",
        "vivado": f"""
            test "$1" = -version && echo "Vivado v2024.1 (64-bit)" && exit
            test -e top.v && test -e top.xdc && test -e arty.xdc && test "$6" = top.tcl || exit 1
            cp {bin}/timing top_timing.rpt
            cp {bin}/area top_utilization_place.rpt
            echo bits > top.bit""",
    }.items():
        (bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{bin}{os.pathsep}{os.environ['PATH']}")
    for function in (tool, tool_version):
        function.cache_clear()
        request.addfinalizer(function.cache_clear)
    out = tmp_path / "out"
    report = build(ARTY, ARTY.config("tiny"), out=out, allow_timing_fail=True)
    assert report["tools"]["vivado"] == "Vivado v2024.1 (64-bit)"
    assert report["fmax_mhz"] == fmax and report["timing_met"] == (fmax >= 100)
    assert [report[n] for n in ("lut", "ff", "bram", "dsp")] == [3210, 2345, 8.5, 3]
    assert (out / "top.bit").read_text() == "bits\n"
