"""From a board's oscillator to the core clock: the settings of a PLL, and the PLL itself."""

from dataclasses import dataclass
from math import ceil, floor

from amaranth.hdl import ClockDomain, ClockSignal, Const, Instance, Signal
from amaranth.lib.cdc import FFSynchronizer

from hdl.errors import ArgumentError

__all__ = ["ECP5", "XILINX7", "Limits", "Settings", "add_ecp5_clock", "add_xilinx7_clock", "solve"]

TOLERANCE = 50e-6       # of the frequency asked for; a UART takes 3 %


@dataclass(frozen=True)
class Limits:
    """What a PLL can do.  Ranges are inclusive, frequencies in Hz.

    Attributes
    ----------
    detector, oscillator, output : (float, float)
        Phase detector, voltage-controlled oscillator, output clock.
    input_divider, multiplier, output_divider : (int, int)
    output_fed_back : bool
        Whether the output, not the oscillator, is compared with the input.
    """

    detector: tuple
    oscillator: tuple
    output: tuple
    input_divider: tuple
    multiplier: tuple
    output_divider: tuple
    output_fed_back: bool


# EHXPLLL: ECP5 family data sheet, sysCLOCK PLL timing.
ECP5 = Limits((3.125e6, 400e6), (400e6, 800e6), (3.125e6, 400e6), (1, 128), (1, 128), (1, 128),
              output_fed_back=True)
# PLLE2 of speed grade -1: Artix-7 data sheet (DS181); the output is a global buffer's.
XILINX7 = Limits((19e6, 450e6), (800e6, 1600e6), (6.25e6, 464e6), (1, 56), (2, 64), (1, 128),
                 output_fed_back=False)


@dataclass(frozen=True)
class Settings:
    """Dividers that make an output clock of an input clock, in Hz."""

    input_hz: float
    output_hz: float
    oscillator_hz: float
    input_divider: int
    multiplier: int
    output_divider: int


def _candidates(limits, input_hz, output_hz):
    """Settings near a frequency, from above and below, for every pair of dividers."""
    for d in range(limits.input_divider[0], limits.input_divider[1] + 1):
        detector = input_hz / d
        if not limits.detector[0] <= detector <= limits.detector[1]:
            continue
        for o in range(limits.output_divider[0], limits.output_divider[1] + 1):
            scale = 1 if limits.output_fed_back else o
            wanted = output_hz * scale / detector
            for n in {floor(wanted), ceil(wanted)}:
                actual = detector * n / scale
                if (limits.multiplier[0] <= n <= limits.multiplier[1]
                        and limits.oscillator[0] <= actual * o <= limits.oscillator[1]
                        and limits.output[0] <= actual <= limits.output[1]):
                    yield Settings(input_hz, actual, actual * o, d, n, o)


def solve(limits, input_hz, output_hz):
    """Settings of a PLL for a frequency, with the least jitter.

    The phase detector runs as fast as it can, then the oscillator.

    Raises
    ------
    ArgumentError
        No setting comes within 50 ppm; the message names the nearest frequencies that some do.
    """
    found = list(_candidates(limits, input_hz, output_hz))
    exact = [s for s in found if abs(s.output_hz - output_hz) <= TOLERANCE * output_hz]
    if exact:
        return min(exact, key=lambda s: (s.input_divider, -s.oscillator_hz))
    below = max((s.output_hz for s in found if s.output_hz < output_hz), default=None)
    above = min((s.output_hz for s in found if s.output_hz > output_hz), default=None)
    near = " and ".join(f"{f / 1e6:.6g} MHz" for f in (below, above) if f)
    low, high = (f / 1e6 for f in limits.output)
    raise ArgumentError(
        f"the PLL cannot make {output_hz / 1e6:.6g} MHz from {input_hz / 1e6:g} MHz: "
        + (f"the nearest it can are {near}" if near else f"it reaches {low:g} to {high:g} MHz"))


def _add_domains(m):
    """Add domain `pll`, always running, and `sync`, which has no reset.

    The clock of `sync` starts when the PLL has locked: until then every register keeps the value
    that the bitstream gave it, so that no reset needs routing.
    """
    m.domains.pll = ClockDomain(reset_less=True)
    m.domains.sync = ClockDomain(reset_less=True)


def add_ecp5_clock(m, oscillator, settings):
    """Make `sync` from an oscillator with an EHXPLLL and a gated global buffer."""
    _add_domains(m)
    locked, run = Signal(), Signal()
    m.submodules.pll = Instance(
        "EHXPLLL", a_ICP_CURRENT="12", a_LPF_RESISTOR="8", a_MFG_ENABLE_FILTEROPAMP="1",
        a_MFG_GMCREF_SEL="2", a_FREQUENCY_PIN_CLKI=f"{settings.input_hz / 1e6:g}",
        a_FREQUENCY_PIN_CLKOP=f"{settings.output_hz / 1e6:.6g}",
        p_PLLRST_ENA="DISABLED", p_INTFB_WAKE="DISABLED", p_STDBY_ENABLE="DISABLED",
        p_DPHASE_SOURCE="DISABLED", p_OUTDIVIDER_MUXA="DIVA", p_OUTDIVIDER_MUXB="DIVB",
        p_OUTDIVIDER_MUXC="DIVC", p_OUTDIVIDER_MUXD="DIVD", p_FEEDBK_PATH="CLKOP",
        p_CLKI_DIV=settings.input_divider, p_CLKFB_DIV=settings.multiplier,
        p_CLKOP_ENABLE="ENABLED", p_CLKOP_DIV=settings.output_divider,
        p_CLKOP_CPHASE=settings.output_divider - 1, p_CLKOP_FPHASE=0,
        i_RST=Const(0), i_STDBY=Const(0), i_PLLWAKESYNC=Const(0), i_ENCLKOP=Const(0),
        i_PHASESEL0=Const(0), i_PHASESEL1=Const(0), i_PHASEDIR=Const(1), i_PHASESTEP=Const(1),
        i_PHASELOADREG=Const(1), i_CLKI=oscillator, i_CLKFB=ClockSignal("pll"),
        o_CLKOP=ClockSignal("pll"), o_LOCK=locked)
    m.submodules.locked = FFSynchronizer(locked, run, o_domain="pll")
    m.submodules.gate = Instance("DCCA", i_CLKI=ClockSignal("pll"), i_CE=run,
                                 o_CLKO=ClockSignal("sync"))


def add_xilinx7_clock(m, oscillator, settings):
    """Make `sync` from an oscillator with a PLLE2 and a gated global buffer."""
    _add_domains(m)
    feedback, output, locked, run = Signal(), Signal(), Signal(), Signal()
    m.submodules.pll = Instance(
        "PLLE2_BASE", p_CLKIN1_PERIOD=1e9 / settings.input_hz, p_STARTUP_WAIT="FALSE",
        p_DIVCLK_DIVIDE=settings.input_divider, p_CLKFBOUT_MULT=settings.multiplier,
        p_CLKOUT0_DIVIDE=settings.output_divider,
        i_CLKIN1=oscillator, i_CLKFBIN=feedback, i_RST=Const(0), i_PWRDWN=Const(0),
        o_CLKFBOUT=feedback, o_CLKOUT0=output, o_LOCKED=locked)
    m.submodules.always = Instance("BUFG", i_I=output, o_O=ClockSignal("pll"))
    m.submodules.locked = FFSynchronizer(locked, run, o_domain="pll", stages=3)
    # A BUFGCE, written so that Vivado's simulation and synthesis agree in every version.
    m.submodules.gate = Instance(
        "BUFGCTRL", p_SIM_DEVICE="7SERIES",
        i_I0=output, i_S0=Const(1), i_CE0=run, i_IGNORE0=Const(0),
        i_I1=Const(1), i_S1=Const(0), i_CE1=Const(0), i_IGNORE1=Const(1),
        o_O=ClockSignal("sync"))
