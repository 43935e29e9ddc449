"""Digilent Arty A7 with an XC7A35T or an XC7A100T: Vivado makes the bitstream."""

from functools import partial

from amaranth_boards.arty_a7 import ArtyA7_35Platform, ArtyA7_100Platform

from boards.board import Board, Size, kmeans_engine, psumbook_engine, sq_engine
from boards.clock import XILINX7, add_xilinx7_clock
from hdl.config import EngineConfig

__all__ = ["ARTY_A7_35", "ARTY_A7_100"]

_TINY = Size(
    engine=EngineConfig(family="xilinx7", lanes=32, scale_points=1, builders=2, activation_bits=8,
                        zero_points=False, epilogue=False, n_tile=64, activation_bytes=1024),
    memory_bytes=16 * 1024)
_psumbook = partial(psumbook_engine, family="xilinx7")
_TINY_PSUMBOOK = Size(
    engine=_psumbook(v=4, lanes=32, b=4, builders=2, block_ram_blocks=0, scale_points=1,
                     epilogue=False, n_tile=64, activation_bytes=1024),
    memory_bytes=16 * 1024)
_kmeans = partial(kmeans_engine, family="xilinx7")
_TINY_KMEANS = Size(
    engine=_kmeans(v=2, lanes=16, builders=4, epilogue=False, n_tile=64, activation_bytes=2048),
    memory_bytes=16 * 1024)
_sq = partial(sq_engine, family="xilinx7")
_TINY_SQ = Size(
    engine=_sq(lanes=32, high_lanes=1, builders=2, epilogue=False, n_tile=64,
               activation_bytes=1024),
    memory_bytes=16 * 1024)


def _board(**fields):
    return Board(family="xilinx7", oscillator_hz=100_000_000, clock_hz=100_000_000, pll=XILINX7,
                 add_clock=add_xilinx7_clock, constraints="arty.xdc", **fields)


ARTY_A7_35 = _board(
    name="arty", title="Digilent Arty A7-35T", device="xc7a35ticsg324-1L",
    platform=ArtyA7_35Platform,
    available={"lut": 20800, "ff": 41600, "bram": 50, "dsp": 90},
    sizes={"bitserial": {
        "tiny": _TINY,
        "default": Size(engine=EngineConfig(family="xilinx7", lanes=64),
                        memory_bytes=64 * 1024),
        "max": Size(engine=EngineConfig(family="xilinx7", lanes=128, rows=2),
                    memory_bytes=64 * 1024),
    }, "psumbook": {
        "tiny": _TINY_PSUMBOOK,
        "default": Size(engine=_psumbook(v=8, lanes=32, builders=4, n_tile=2048),
                        memory_bytes=32 * 1024),
        "max": Size(engine=_psumbook(v=8, lanes=32, rows=2, builders=4, n_tile=2048),
                    memory_bytes=32 * 1024),
    }, "kmeans": {
        "tiny": _TINY_KMEANS,
        "default": Size(engine=_kmeans(v=2, lanes=32, builders=8, n_tile=2048,
                                       activation_bytes=4096), memory_bytes=32 * 1024),
        "max": Size(engine=_kmeans(v=4, lanes=32, builders=8, n_tile=2048,
                                   activation_bytes=4096), memory_bytes=32 * 1024),
    }, "sq": {
        "tiny": _TINY_SQ,
        "default": Size(engine=_sq(lanes=64), memory_bytes=32 * 1024),
        "max": Size(engine=_sq(lanes=64, rows=2), memory_bytes=32 * 1024),
    }})

ARTY_A7_100 = _board(
    name="arty-100t", title="Digilent Arty A7-100T", device="xc7a100ticsg324-1L",
    platform=ArtyA7_100Platform,
    available={"lut": 63400, "ff": 126800, "bram": 135, "dsp": 240},
    sizes={"bitserial": {
        "tiny": _TINY,
        "default": Size(engine=EngineConfig(family="xilinx7", lanes=64, rows=2),
                        memory_bytes=128 * 1024),
        "max": Size(engine=EngineConfig(family="xilinx7", lanes=256, rows=4),
                    memory_bytes=128 * 1024),
    }, "psumbook": {
        "tiny": _TINY_PSUMBOOK,
        "default": Size(engine=_psumbook(v=8, lanes=64, builders=4), memory_bytes=64 * 1024),
        "max": Size(engine=_psumbook(v=8, lanes=128, rows=2, builders=8), memory_bytes=64 * 1024),
    }, "kmeans": {
        "tiny": _TINY_KMEANS,
        "default": Size(engine=_kmeans(v=2, lanes=64, builders=8), memory_bytes=64 * 1024),
        "max": Size(engine=_kmeans(v=2, lanes=128, builders=16), memory_bytes=64 * 1024),
    }, "sq": {
        "tiny": _TINY_SQ,
        "default": Size(engine=_sq(lanes=64, rows=2), memory_bytes=64 * 1024),
        "max": Size(engine=_sq(lanes=128, rows=4, n_tile=512), memory_bytes=64 * 1024),
    }})
