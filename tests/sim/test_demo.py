"""``python -m sim.demo``, on a small engine."""

import contextlib
import io
import json
import re

import numpy as np
import pytest

import host
from hdl.config import EngineConfig
from host.performance import one_pass
from sim import demo, digits, golden

TINY = demo.Plan(engines=demo.QUICK.engines, psumbook=demo.QUICK.psumbook,
                 kmeans=demo.QUICK.kmeans, sq=demo.QUICK.sq, sq_tokens=demo.QUICK.sq_tokens,
                 images=1, size=32, tokens=(1, 2))


@pytest.fixture(scope="module")
def quick():
    """The figures of ``--quick --json``."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert demo.main(["--quick", "--json"]) == 0
    return json.loads(out.getvalue())


@pytest.fixture(scope="module")
def matrices():
    return demo.quantize_classifier(digits.load())


@pytest.fixture
def tiny(monkeypatch, matrices):
    """``--quick`` on one image and a tiny layer, without quantising again."""
    monkeypatch.setattr(demo, "QUICK", TINY)
    monkeypatch.setattr(demo, "quantize_classifier", lambda network: matrices)


class TestQuick:
    def test_everything_is_exact(self, quick):
        assert quick["exact"] is True
        for figure in quick["classifier"]["widths"] + quick["large"]["runs"]:
            assert figure["golden"] == figure["outputs"] > 0

    def test_every_layer_of_every_image_is_offloaded(self, quick):
        classifier = quick["classifier"]
        assert classifier["layers"] == [[1024, 64], [1024, 1024], [10, 1024]]
        assert [w["bits"] for w in classifier["widths"]] == [8, 4, 2]
        assert all(w["outputs"] == 8 * (1024 + 1024 + 10) for w in classifier["widths"])

    def test_accuracy_is_of_the_images(self, quick):
        for figure in [quick["classifier"]["float"], *quick["classifier"]["widths"]]:
            assert figure["accuracy"] == figure["right"] / 8 >= 7 / 8

    def test_fewer_bits_cost_accuracy_and_save_cycles(self, quick):
        w8, w4, w2 = quick["classifier"]["widths"]
        assert 0 < w8["logit_error"] < w4["logit_error"] < w2["logit_error"] < 0.2
        assert w8["cycles"] > 1.8 * w4["cycles"] > 3.2 * w2["cycles"]
        # Codes, a 16-bit scale per 128 weights, 32 bits per row.
        assert 2 + 16 / 128 + 32 / 1024 <= w2["bits_per_weight"] < 2.25

    def test_chained_indexes_are_exact_and_cost_little(self, quick):
        found, apart = quick["classifier"]["chained"], quick["classifier"]["indexes"]
        assert found["outputs"] == found["golden"] == 10 * quick["classifier"]["images"]
        assert abs(found["right"] - apart["right"]) <= 2

    def test_banks_are_exact_and_cost_nothing(self, quick):
        found, w4 = quick["classifier"]["banks"][0], quick["classifier"]["widths"][1]
        assert found["golden"] == found["outputs"] == 8 * (1024 + 1024 + 10)
        assert found["accuracy"] >= 7 / 8 and found["logit_error"] < 0.02
        # Four low planes, and two beats per K tile more than W4 takes.
        assert found["cycles"] < 1.03 * w4["cycles"]
        # Sentinels: 5 bits, a scale and an exponent per bank, 32 bits per row; smoothing.
        assert 5 + 19 / 64 + 32 / 1024 <= found["bits_per_weight"] < 5.5

    def test_two_precisions_of_activations_are_exact(self, quick):
        weights, *found = quick["classifier"]["banks"]
        assert [f["side"] for f in found] == ["activation", "activation-dynamic"]
        for f in found:
            assert f["golden"] == f["outputs"] == weights["outputs"]
            assert f["accuracy"] >= 7 / 8 and f["logit_error"] < 0.1
            assert 4 + 16 / 64 + 32 / 1024 <= f["bits_per_weight"] < 4.5

    def test_four_formats_side_by_side(self, quick):
        found = {f["format"]: f for f in quick["classifier"]["formats"]}
        assert list(found) == ["bitserial", "psumbook", "kmeans", "sq"]
        for f in found.values():
            assert f["engine"]["format"] == f["format"] and f["golden"] == f["outputs"]
            assert min(f["comb"], f["bram"], f["dsp"]) > 0
        assert found["bitserial"]["cycles"] == quick["classifier"]["widths"][1]["cycles"]
        assert found["sq"]["dsp"] > found["bitserial"]["dsp"]

    def test_indexes_are_exact_and_cost_little(self, quick):
        found = quick["classifier"]["indexes"]
        assert found["golden"] == found["outputs"] == 8 * (1024 + 1024 + 10)
        assert found["accuracy"] >= 7 / 8 and found["logit_error"] < 0.1
        assert 4 + 32 / 1024 < found["bits_per_weight"] < 4.2

    def test_gops_follow_from_cycles(self, quick):
        macs = 8 * (64 * 1024 + 1024 * 1024 + 1024 * 10)
        for w in quick["classifier"]["widths"]:
            assert w["gops"] == pytest.approx(2 * macs / (w["cycles"] / 200e6) / 1e9)
            assert w["utilization"] == pytest.approx(macs * w["bits"] / 128 / w["cycles"])

    def test_large_layer_covers_memories_widths_and_batches(self, quick):
        runs = quick["large"]["runs"]
        assert {(r["memory"], r["bits"], r["tokens"]) for r in runs} == {
            (memory, bits, M) for memory in ("ideal", "ddr3") for bits in (2, 4) for M in (1, 8)}

    def test_limits_hold(self, quick):
        for r in quick["large"]["runs"]:
            assert r["gops"] == pytest.approx(r["peak_gops"] * r["utilization"])
            # One row: the weights are read again for every token.
            assert 0.75 * r["memory_gops"] / r["tokens"] < r["gops"] < r["memory_gops"]

    def test_memory_limit_by_hand(self, quick):
        [run] = [r for r in quick["large"]["runs"]
                 if (r["memory"], r["bits"], r["tokens"]) == ("ddr3", 2, 1)]
        image = 256 * 256 * 2 / 8 * (128 + 34) / 128    # 128 bits of codes, 2 scales of 17 bits
        rate = 1.6e9 * (1 - 0.84 / 7.8)
        assert run["memory_gops"] == pytest.approx(2 * 256**2 * rate / (image + 256) / 1e9)

    def test_cycles_are_near_those_that_the_estimates_assume(self, quick):
        engine = EngineConfig.from_dict(quick["classifier"]["engine"])
        for r in quick["large"]["runs"]:
            if (r["memory"], r["tokens"]) == ("ideal", 8):
                work = one_pass(engine, (256, 256), planes=r["bits"], group_size=128)
                assert work.cycles == work.beats
                assert 1 < r["cycles"] / (8 * work.cycles) < 1.1


def test_tables(tiny, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(demo.read_reports, "__defaults__", (tmp_path,))
    monkeypatch.setenv("COLUMNS", "80")
    assert demo.main(["--quick"]) == 0
    out = capsys.readouterr().out
    assert "MLP 64-1024-1024-10, 1 test images" in out and "One layer of 32 x 32" in out
    assert out.count("equal the golden model's") == 2 and "DIFFER" not in out
    # 80 columns are enough: no cell is folded.
    assert re.search(r"W8 +100\.00% +0\.0\d{3} +8\.19 +1 +[\d,]+ +[\d.]+% +[\d.]+ +[\d.]+ ms", out)
    assert re.search(r"1 +ddr3 +W4 +2 +[\d,]+ +[\d.]+% +[\d.]+ +[\d.]+ +12\.8", out)
    assert "Boards: no estimate" in out


def test_board_table(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "ulx3s-max.json").write_text(json.dumps(REPORT))
    monkeypatch.setattr(demo.read_reports, "__defaults__", (tmp_path,))
    layers = {bits: [demo.Layer((1024, 1024), bits, 128, 359, 10**7)] for bits in (8, 2)}
    estimates = demo.run_boards(layers, EngineConfig())
    demo.Console().print(demo._boards_table(estimates))
    out = capsys.readouterr().out
    assert "estimated, not run" in out
    assert re.search(r"ulx3s-max +64 x 1 +40\.0 +W8 +[\d.]+ +memory +1024 of 98 +10\.5", out)
    assert [(e["board"], e["bits"]) for e in estimates] == [("ulx3s-max", 8), ("ulx3s-max", 2)]


@pytest.mark.parametrize("where", ["classifier", "large"])
def test_a_wrong_result_fails(tiny, monkeypatch, capsys, where):
    exact, features = golden.matmul, {"classifier": 10, "large": 32}[where]

    def wrong(q, x, bias=None):
        y = exact(q, x, bias)
        if q.shape[0] == features:
            y[0, 3] = np.nextafter(y[0, 3], np.float32(np.inf))     # the last bit of one output
        return y

    monkeypatch.setattr(golden, "matmul", wrong)
    assert demo.main(["--quick"]) == 1
    out, err = capsys.readouterr()
    assert "DIFFER from the golden model" in out
    assert err.splitlines()[-1].startswith("python -m sim.demo: error: the device's results")


def test_quantised_accuracy_on_the_whole_test_set(matrices):
    """On the golden model, which the device equals: within a percent of float, W2 included."""
    network = digits.load()
    right = lambda y: np.mean(y.argmax(axis=1) == network.test_labels)
    for layers in matrices.values():
        x = network.test
        for i, (q, bias) in enumerate(zip(layers, network.biases)):
            x = golden.matmul(q, x, bias)
            x = np.maximum(x, 0) if i < 2 else x
        assert right(x) >= right(network.run(network.test)[-1]) - 0.01


REPORT = {"board": "ulx3s", "engine": EngineConfig(lanes=64, epilogue=False).as_dict(),
          "clock_hz": 50_000_000, "fmax_mhz": 40.0, "link": {"baud": 1_000_000},
          "memory": {"kind": "onchip", "bytes": 100_000, "bytes_per_second": 32 * 40e6}}


class TestEstimate:
    layer = demo.Layer(shape=(1024, 1024), planes=2, group_size=128, tokens=16, cycles=140_000)
    engine = EngineConfig(lanes=64, epilogue=False)

    def test_same_engine_takes_the_simulated_cycles_at_the_slower_clock(self):
        found = demo.estimate(REPORT, [self.layer, self.layer], self.engine)
        assert found["cycles"] == 280_000 and found["clock_hz"] == 40e6
        assert found["seconds"] == pytest.approx(280_000 / 40e6) and found["limit"] == "engine"

    def test_clock_is_the_one_built_where_more_is_reached(self):
        found = demo.estimate(REPORT | {"fmax_mhz": 70.0}, [self.layer], self.engine)
        assert found["clock_hz"] == 50e6

    def test_cycles_scale_with_lanes_and_rows(self):
        report = REPORT | {"engine": self.engine.replace(lanes=32).as_dict()}
        assert demo.estimate(report, [self.layer], self.engine)["cycles"] == 280_000
        # Of 8 rows 2 groups are left, and two planes hide the two beats of results.
        report = REPORT | {"engine": self.engine.replace(rows=8).as_dict()}
        assert demo.estimate(report, [self.layer], self.engine)["cycles"] == 140_000 / 8

    def test_slow_memory_decides(self):
        report = REPORT | {"memory": {"kind": "axi", "bytes": 2**28, "bytes_per_second": 1e8}}
        found = demo.estimate(report, [self.layer], self.engine)
        # 4 K tiles of 2 planes: 8192 beats of 256 bits and 2 sidebands of 17, for each token.
        assert found["seconds"] == pytest.approx(16 * 8192 * (256 + 34) / 8 / 1e8)
        assert found["limit"] == "memory" and found["fits"]

    def test_memory_of_unknown_rate_does_not_limit(self):
        report = REPORT | {"memory": {"kind": "onchip", "bytes": 1, "bytes_per_second": None}}
        assert demo.estimate(report, [self.layer], self.engine)["limit"] == "engine"

    def test_weights_that_do_not_fit_are_sent(self):
        found = demo.estimate(REPORT, [self.layer], self.engine)
        assert found["image_bytes"] == 8192 * 32 and not found["fits"]
        assert found["link_seconds"] == pytest.approx(8192 * 32 * 10 / 1e6)
        assert demo.estimate(REPORT | {"link": None}, [self.layer],
                             self.engine)["link_seconds"] is None


class TestReports:
    def test_a_board_that_was_not_routed_is_marked(self, tmp_path, monkeypatch, capsys):
        (tmp_path / "b.json").write_text(json.dumps(REPORT))
        (tmp_path / "a.json").write_text(json.dumps(REPORT | {"fmax_mhz": None}))   # no Vivado
        (tmp_path / "c.json").write_text("[1]")
        assert [r["name"] for r in demo.read_reports(tmp_path)] == ["a", "b"]
        monkeypatch.setattr(demo.read_reports, "__defaults__", (tmp_path,))
        monkeypatch.setenv("COLUMNS", "80")
        estimates = demo.run_boards({2: [TestEstimate.layer]}, TestEstimate.engine)
        assert [(e["clock_hz"], e["routed"]) for e in estimates] == [(50e6, False), (40e6, True)]
        demo.Console().print(demo._boards_table(estimates))
        out = capsys.readouterr().out
        assert re.search(r"a +64 x 1 +50\.0\* +W2", out) and re.search(r"b +64 x 1 +40\.0 +W2", out)

    def test_damaged_one_is_named(self, tmp_path):
        (tmp_path / "x.json").write_text("{")
        with pytest.raises(host.FileError, match=r"x\.json: must be JSON"):
            demo.read_reports(tmp_path)


class TestPrepare:
    def check(self, monkeypatch, capsys, steps):
        opened = []

        def fake(url, progress):
            opened.append(url)
            for step in steps:
                progress(step)
            return io.StringIO()        # has close()

        monkeypatch.setattr(host, "open", fake)
        assert demo.main(["--prepare"]) == 0
        assert opened == [*demo.FULL.engines.values(), demo.FULL.psumbook, demo.FULL.kmeans,
                          demo.FULL.sq, demo.FULL.sq_tokens]
        out, err = capsys.readouterr()
        assert out == ""
        return err

    def test_says_what_it_builds(self, monkeypatch, capsys):
        err = self.check(monkeypatch, capsys, ["generating Verilog", "compiling"])
        assert "engine of 1 row: compiling ..." in err
        assert "engine of 8 rows: built in 0 s" in err

    def test_is_silent_about_what_is_there(self, monkeypatch, capsys):
        assert self.check(monkeypatch, capsys, []) == ""

    def test_failure_is_one_line(self, monkeypatch, capsys):
        def fail(url, progress):
            raise host.BuildError("needs\nVerilator")

        monkeypatch.setattr(host, "open", fail)
        assert demo.main(["--prepare"]) == 1
        assert capsys.readouterr().err == "python -m sim.demo: error: needs Verilator\n"


class TestJobs:
    def test_a_failing_job_fails_the_demo(self):
        def fail(device):
            raise host.DeviceError("broken")

        url = demo.QUICK.engines[1]
        with pytest.raises(host.DeviceError, match="broken"):
            demo.run_jobs("x", [demo.Job(url, 1, fail), demo.Job(url, 2, lambda device: 3)])

    def test_results_are_in_order(self):
        url = demo.QUICK.engines[1]
        jobs = [demo.Job(url, cycles, lambda device, c=cycles: c) for cycles in (1, 3, 2)]
        assert demo.run_jobs("x", jobs) == [1, 3, 2]

    def test_progress_is_shown_on_a_terminal(self, capsys, monkeypatch):
        monkeypatch.setenv("FORCE_COLOR", "1")      # rich then takes stderr for a terminal
        run = lambda device: device.transport.model.step(300_000)
        demo.run_jobs("working", [demo.Job(demo.QUICK.engines[1], 300_000, run)])
        err = capsys.readouterr().err
        assert "working" in err and "%" in err


def test_usage(capsys):
    assert demo.main(["--nonsense"]) == 2
    assert demo.main(["--help"]) == 0
    assert "python -m sim.demo --prepare" in capsys.readouterr().out
