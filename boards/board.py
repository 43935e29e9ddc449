"""What a board is, and the design that goes on it: clock, pins and a whole device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from amaranth.hdl import Elaboratable, Module
from amaranth.lib import io

from boards.clock import Limits, solve
from hdl.config import BLOCK, DeviceConfig, EngineConfig
from hdl.top import Top

__all__ = ["Board", "Design", "Size", "kmeans_engine", "psumbook_engine", "sq_engine"]

_CONSTRAINTS = Path(__file__).parents[1] / "constraints"


@dataclass(frozen=True, kw_only=True)
class Size:
    """An engine and the memory beside it.

    Attributes
    ----------
    engine : EngineConfig
        Its `address_bits` follow from the memory.
    memory_bytes : int
        Block RAM for programs, weights, activations and results, sidebands not counted.
    clock_hz : int, optional
        Core clock, if not the board's.
    """

    engine: EngineConfig
    memory_bytes: int
    clock_hz: int | None = None


def psumbook_engine(*, v, lanes, b=8, **fields):
    """An engine for codebooks: tables in block RAM, groups of 128 at full rate."""
    return EngineConfig(**{
        **dict(format="psumbook", v=v, b=b, lanes=lanes, activation_bits=8, zero_points=False,
               scale_points=max(1, v * lanes // 128), block_ram_blocks=v * lanes // BLOCK,
               n_tile=4096, activation_bytes=8192), **fields})


def kmeans_engine(*, v, lanes, b=8, **fields):
    """An engine for K-means indexes: tables in block RAM, tokens of up to 4096 elements."""
    return EngineConfig(**{
        **dict(format="kmeans", v=v, b=b, lanes=lanes, zero_points=False,
               scale_points=1, block_ram_blocks=v * lanes // BLOCK, n_tile=4096,
               activation_bytes=8192), **fields})


def sq_engine(*, lanes, **fields):
    """An engine for sparse high beside dense low weights: an eighth of them, or fewer, at full
    rate beside four low bits."""
    return EngineConfig(**{
        **dict(format="sq", lanes=lanes, bank=64, high_lanes=2, turns=4, activation_bits=8),
        **fields})


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board: its FPGA, its clock and what fits.

    Attributes
    ----------
    name, title : str
    device : str
        The FPGA as its vendor orders it: with package and speed grade.
    platform : callable
        Makes an Amaranth platform; a platform is good for one build.
    family : str
        Family of the FPGA, as in :class:`~hdl.config.EngineConfig`.
    oscillator_hz, clock_hz : int
        Input of the PLL, and the core clock unless a size or a build asks for another.
    pll : Limits
    add_clock : callable
        ``add_clock(m, oscillator, settings)`` adds the domain `sync`.
    constraints : str
        File in ``constraints/`` with what the platform does not carry.
    available : mapping of str to int
        Resources of the FPGA: look-up tables (``comb`` or ``lut``), ``ff``, ``bram``, ``dsp``.
    sizes : mapping of str to mapping of str to Size
        For every format ``tiny``, ``default`` and ``max``.
    """

    name: str
    title: str
    device: str
    platform: Callable
    family: str
    oscillator_hz: int
    clock_hz: int
    pll: Limits
    add_clock: Callable
    constraints: str
    available: Mapping[str, int]
    sizes: Mapping[str, Mapping[str, Size]]

    @property
    def constraints_text(self):
        """Content of the constraint file."""
        return (_CONSTRAINTS / self.constraints).read_text()

    def config(self, size="default", *, format="bitserial", clock_hz=None, memory_bytes=None,
               **changes):
        """The device of a size, with some of the engine's fields changed.

        Parameters
        ----------
        size, format : str
        clock_hz, memory_bytes : int, optional
        **changes
            Fields of :class:`~hdl.config.EngineConfig`.

        Returns
        -------
        DeviceConfig
        """
        chosen = self.sizes[format][size]
        engine = chosen.engine.replace(**changes)
        if memory_bytes is None:
            memory_bytes = chosen.memory_bytes
        if clock_hz is None:
            clock_hz = chosen.clock_hz or self.clock_hz
        beats = memory_bytes // engine.beat_bytes
        engine = engine.replace(address_bits=max(8, (beats - 1).bit_length()))
        return DeviceConfig(engine=engine, memory="onchip", memory_beats=beats, link="uart",
                            clock_hz=clock_hz)

    def clock(self, clock_hz):
        """Settings of the PLL for a core clock."""
        return solve(self.pll, self.oscillator_hz, clock_hz)


class Design(Elaboratable):
    """A device on a board: its UART on the board's, an LED that is on while a program runs."""

    def __init__(self, board, config):
        self.board = board
        self.config = config

    def elaborate(self, platform):
        m = Module()

        def pin(name, direction, port):
            m.submodules[name] = buffer = io.Buffer(direction, port)
            return buffer

        oscillator = pin("oscillator", "i", platform.request(platform.default_clk, dir="-"))
        self.board.add_clock(m, oscillator.i, self.board.clock(self.config.clock_hz))
        uart = platform.request("uart", dir="-")
        led = platform.request("led", dir="-")
        m.submodules.device = device = Top(self.config)
        m.d.comb += [
            device.rx.eq(pin("rx", "i", uart.rx).i), pin("tx", "o", uart.tx).o.eq(device.tx),
            pin("led", "o", led).o.eq(device.running)]
        return m
