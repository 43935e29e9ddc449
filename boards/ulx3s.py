"""Radiona ULX3S with an LFE5U-85F: open tools all the way to the bitstream."""

from functools import partial

from amaranth_boards.ulx3s import ULX3S_85F_Platform

from boards.board import Board, Size, kmeans_engine, psumbook_engine, sq_engine
from boards.clock import ECP5, add_ecp5_clock
from hdl.config import EngineConfig

__all__ = ["ULX3S"]

psumbook = partial(psumbook_engine, family="ecp5")
kmeans = partial(kmeans_engine, family="ecp5")
sq = partial(sq_engine, family="ecp5")

ULX3S = Board(
    name="ulx3s", title="Radiona ULX3S (85F)", device="LFE5U-85F-6BG381C",
    platform=ULX3S_85F_Platform, family="ecp5",
    oscillator_hz=25_000_000, clock_hz=50_000_000, pll=ECP5, add_clock=add_ecp5_clock,
    constraints="ulx3s.lpf",
    available={"comb": 83640, "ff": 83640, "bram": 208, "dsp": 156},
    sizes={"bitserial": {
        "tiny": Size(
            engine=EngineConfig(family="ecp5", lanes=32, scale_points=1, builders=2,
                                activation_bits=8, zero_points=False, epilogue=False,
                                n_tile=64, activation_bytes=1024),
            memory_bytes=16 * 1024),
        "default": Size(engine=EngineConfig(family="ecp5", lanes=64, rows=2),
                        memory_bytes=128 * 1024, clock_hz=125_000_000),
        "max": Size(
            engine=EngineConfig(family="ecp5", lanes=128, rows=8, scale_points=4,
                                block_ram_blocks=2, activation_bits=8, n_tile=512,
                                activation_bytes=8192),
            memory_bytes=128 * 1024, clock_hz=80_000_000),
    }, "psumbook": {
        "tiny": Size(
            engine=psumbook(v=4, lanes=32, b=4, builders=2, block_ram_blocks=0, scale_points=1,
                            epilogue=False, n_tile=64, activation_bytes=1024),
            memory_bytes=16 * 1024),
        "default": Size(engine=psumbook(v=8, lanes=64, builders=4), memory_bytes=64 * 1024,
                        clock_hz=100_000_000),
        "max": Size(engine=psumbook(v=8, lanes=128, rows=2, builders=8, scaler_dsps=1,
                                    activation_bytes=4096),
                    memory_bytes=64 * 1024, clock_hz=80_000_000),
    }, "kmeans": {
        "tiny": Size(
            engine=kmeans(v=2, lanes=16, builders=4, epilogue=False, n_tile=64,
                          activation_bytes=2048),
            memory_bytes=16 * 1024),
        "default": Size(engine=kmeans(v=2, lanes=64, builders=8), memory_bytes=64 * 1024,
                        clock_hz=100_000_000),
        "max": Size(engine=kmeans(v=2, lanes=128, builders=16), memory_bytes=64 * 1024,
                    clock_hz=80_000_000),
    }, "sq": {
        "tiny": Size(
            engine=sq(lanes=32, high_lanes=1, builders=2, epilogue=False, n_tile=64,
                      activation_bytes=1024),
            memory_bytes=16 * 1024),
        "default": Size(engine=sq(lanes=64, rows=2), memory_bytes=64 * 1024,
                        clock_hz=100_000_000),
        "max": Size(engine=sq(lanes=128, rows=4, n_tile=512, activation_bytes=8192),
                    memory_bytes=64 * 1024, clock_hz=80_000_000),
    }})
