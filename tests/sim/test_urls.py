"""URLs of simulated devices: what is wrong is refused in the words of the URL, before a build."""

import pytest

import host
import sim.device


@pytest.fixture
def opened(monkeypatch):
    """Arguments with which a URL makes a transport."""
    def opened(url):
        with monkeypatch.context() as patch:
            patch.setattr(sim.device, "SimTransport", lambda config, **options: (config, options))
            return sim.device.open_sim(url)

    return opened


@pytest.mark.parametrize("option, message", [
    ("clock=nan", "clock must be a number in 1000000..1000000000 Hz, not 'nan'"),
    ("clock=inf", "clock must be .* Hz, not 'inf'"),
    ("clock=0", "clock must be .* Hz, not '0'"),
    ("clock=-1", "clock must be .* Hz, not '-1'"),
    ("clock=x", "clock must be .* Hz, not 'x'"),
    ("clock=", "clock must be .* Hz, not ''"),
    ("latency=-5", "latency must be a number in 0..1000000 cycles, not '-5'"),
    ("latency=nan", "latency must be .* cycles, not 'nan'"),
    ("latency=1e9", "latency must be .* cycles, not '1e9'"),
    ("memory_mib=0", "memory_mib must be a number in 1..512 MiB .*, not '0'"),
    ("memory_mib=-1", "memory_mib must be .* MiB .*, not '-1'"),
    ("memory_mib=x", "memory_mib must be .* MiB .*, not 'x'"),
    ("memory_mib=513", "memory_mib must be .* MiB .*, not '513'"),
    ("family=ecp5", "family must be portable, .* not 'ecp5'"),
    ("trace=", "trace must be a file that can be written"),
    ("trace=/", "trace must be a file that can be written: .*directory"),
    ("trace=/does/not/exist.vcd", "trace must be .* '/does/not/exist.vcd'"),
    ("trace=%00", "trace must be a file that can be written"),
])
def test_bad_options(opened, option, message):
    with pytest.raises(host.ArgumentError, match=rf"^sim:\?{option}: {message}"):
        opened(f"sim:?{option}")


@pytest.mark.parametrize("option", ["clock=nan", "clock=0", "family=ecp5", "trace=/"])
def test_bad_options_of_a_board(opened, option):
    with pytest.raises(host.ArgumentError, match=rf"{option}: {option.partition('=')[0]} must be"):
        opened(f"sim:ulx3s?{option}")


def test_good_options(opened, tmp_path):
    config, options = opened(f"sim:?clock=1.5e8&latency=0&memory_mib=2&family=portable"
                             f"&trace={tmp_path}/waves.vcd")
    assert config.clock_hz == 150_000_000 and options["latency"] == 0
    assert config.memory_beats * config.engine.beat_bytes == 2 << 20
    assert options["trace"] == f"{tmp_path}/waves.vcd"
    config, _ = opened("sim:ulx3s?family=portable&clock=40e6")
    assert config.engine.family == "portable" and config.clock_hz == 40_000_000


def test_memory_is_what_few_address_bits_reach(opened):
    config, _ = opened("sim:?address_bits=12")
    assert config.memory_beats == 2**12


def test_progress_must_be_callable():
    with pytest.raises(host.ArgumentTypeError, match="progress must be callable or None, got 3"):
        host.open("sim:", progress=3)
