"""A UART for the link: 8 data bits, no parity, one stop bit, and a fallback between baud rates."""

from amaranth.hdl import Array, Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

from hdl.errors import ConfigError
from hdl.parts import BlockRAM
from hdl.protocol import BAUDS, FALLBACK_EVENTS

__all__ = ["UART"]

FRACTION_BITS = 16
SUBBITS = 8         # steps of a bit time; 3 Mbaud at 25 MHz leaves one clock for each
TOLERANCE = 0.01    # of our baud rate


class UART(wiring.Component):
    """Receiver with FIFO, transmitter, and the choice of the baud rate.

    Bit times come from a phase accumulator, so that the mean rate is exact to 0.3 % at any clock
    of 25 to 250 MHz and any rate from 115200 to 3 Mbaud.  A received bit is the majority of three
    samples, an eighth of a bit apart, the last of them in its middle: a later one would leave no
    time to meet the next start bit of a fast sender.  Every start bit begins the phase anew, so
    that a sender's rate may be off by 3 %, at 8 clocks per bit too.

    Fallback: the line starts at ``bauds[0]``.  After `fallback_events` framing errors or bad
    frames it goes to the next rate, after the last to the first again; the first good frame pins
    the rate until reset.  A host provokes the step with zero bytes at the rate it wants: at
    another rate they are framing errors, at the same rate empty frames.

    Latency and back-pressure: a byte is at `o` 6 cycles after the middle of its stop bit.  The
    FIFO holds ``rx_depth - 1`` bytes and a byte that finds it full is lost.  The protocol bounds
    what can arrive while nobody takes from `o`: repeats of one frame, a timeout apart; so keep
    `rx_depth` above `hdl.protocol.encoded_bytes` of the longest request.  `i` takes a byte per
    ten bit times and two cycles.

    Parameters
    ----------
    clock_hz : float
        Frequency of the sync domain.
    bauds : tuple of int
        Rates in the order in which they are tried; each at most an eighth of the clock.
    rx_depth : int
        Size of the FIFO, a power of two; 2048 bytes are one block RAM.
    fallback_events : int
        Framing errors and bad frames after which an unpinned line tries the next rate.
    family : str
        Form of the block RAM, see `hdl.parts.BlockRAM`.

    Members
    -------
    rx, tx : In(1), Out(1)
        The pins; idle high.  `rx` may be asynchronous.
    i : In(stream.Signature(8))
        Bytes to send.
    o : Out(stream.Signature(8))
        Bytes received.
    frame_good, frame_bad : In(1)
        The endpoint's verdict on a frame (strobes).
    rate : Out
        Index in `bauds` of the rate in use.
    """

    def __init__(self, clock_hz, bauds=BAUDS, *, rx_depth=2048, fallback_events=FALLBACK_EVENTS,
                 family="portable"):
        self.clock_hz = clock_hz
        self.bauds = tuple(bauds)
        self.rx_depth = rx_depth
        self.fallback_events = fallback_events
        self.family = family
        if not self.bauds:
            raise ConfigError("bauds must name at least one rate")
        if rx_depth < 2 or rx_depth & (rx_depth - 1):
            raise ConfigError(f"rx_depth must be a power of two, at least 2, not {rx_depth!r}")
        if fallback_events < 1:
            raise ConfigError(f"fallback_events must be at least 1, not {fallback_events!r}")
        for baud, actual in zip(self.bauds, self.actual_bauds):
            if baud * SUBBITS > clock_hz:
                raise ConfigError(f"{baud} baud needs a clock of at least {baud * SUBBITS} Hz, "
                                  f"not {clock_hz}")
            if abs(actual - baud) > TOLERANCE * baud:
                raise ConfigError(f"{baud} baud is too slow for a clock of {clock_hz} Hz: "
                                  f"the nearest rate is {actual:.0f}")
        super().__init__({
            "rx": In(1, init=1), "tx": Out(1, init=1),
            "i": In(stream.Signature(8)), "o": Out(stream.Signature(8)),
            "frame_good": In(1), "frame_bad": In(1),
            "rate": Out(range(max(2, len(self.bauds)))),
        })

    @property
    def _increments(self):
        """Steps of a bit per clock, for each rate, as fractions of ``2**FRACTION_BITS``."""
        return [round(baud * (SUBBITS << FRACTION_BITS) / self.clock_hz) for baud in self.bauds]

    @property
    def actual_bauds(self):
        """The mean rates that the accumulators give."""
        return tuple(i * self.clock_hz / (SUBBITS << FRACTION_BITS) for i in self._increments)

    def elaborate(self, platform):
        m = Module()
        increment = Signal(FRACTION_BITS + 1)
        m.d.comb += increment.eq(Array(self._increments)[self.rate])
        framing_error = self._receive(m, increment)
        self._transmit(m, increment)
        if len(self.bauds) > 1:
            self._fall_back(m, framing_error)
        return m

    def _receive(self, m, increment):
        """Build the receiver and return its strobe of framing errors."""
        level = Signal(init=1)
        m.submodules.synchronizer = FFSynchronizer(self.rx, level, init=1)

        phase = Signal(FRACTION_BITS + 3)       # of the bit; the upper bits count its eighths
        eighth = phase[FRACTION_BITS:]
        previous = Signal()
        samples = Signal(2)
        decide = Signal()                       # now `bit` is the value of the bit
        bit = Signal()
        m.d.sync += [phase.eq(phase + increment), previous.eq(eighth[0])]
        m.d.comb += bit.eq((samples[0] & samples[1]) | (level & samples.any()))
        with m.If(eighth[0] != previous):
            m.d.sync += samples.eq(Cat(level, samples))
            m.d.comb += decide.eq(eighth == SUBBITS // 2)

        byte = Signal(8)
        count = Signal(range(10))               # bits done: start, data, stop
        received = Signal()
        framing_error = Signal()
        with m.FSM(name="receiver"):
            with m.State("IDLE"):
                # Two clocks pass, on average, from the edge until an eighth is seen.
                m.d.sync += [phase.eq(increment << 1), count.eq(0)]
                with m.If(~level):
                    m.next = "RECEIVE"
            with m.State("RECEIVE"):
                with m.If(decide):
                    m.d.sync += count.eq(count + 1)
                    with m.If(count == 9):
                        m.d.comb += [received.eq(bit), framing_error.eq(~bit)]
                        m.next = "IDLE"
                        with m.If(~bit):
                            m.next = "RECOVER"
                    with m.Else():
                        m.d.sync += byte.eq(Cat(byte[1:], bit))
                    with m.If((count == 0) & bit):      # a glitch, no start bit
                        m.next = "IDLE"
            with m.State("RECOVER"):
                # The line may be low after a framing error: no start bit before it was high.
                with m.If(level):
                    m.next = "IDLE"
        self._queue(m, byte, received)
        return framing_error

    def _queue(self, m, byte, received):
        """Build the FIFO between the receiver and `o`."""
        m.submodules.ram = ram = BlockRAM(8, self.rx_depth, family=self.family)
        produce = Signal(range(self.rx_depth))
        consume = Signal(range(self.rx_depth))
        following = Signal.like(produce)
        full = Signal()                         # a cycle late: bytes are many cycles apart
        age = Signal(ram.LATENCY + 1)           # cycles since `consume` points at a byte
        m.d.comb += [
            following.eq(produce + 1),
            ram.write_address.eq(produce), ram.write_data.eq(byte),
            ram.write_enable.eq(received & ~full),
            ram.read_address.eq(consume), self.o.valid.eq(age[-1]),
        ]
        m.d.sync += [full.eq(following == consume), age.eq(Cat(produce != consume, age)),
                     self.o.payload.eq(ram.read_data)]
        with m.If(ram.write_enable):
            m.d.sync += produce.eq(following)
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += [consume.eq(consume + 1), age.eq(0)]

    def _transmit(self, m, increment):
        bits = Signal(9, init=-1)               # the next bit first; stop bits shift in
        left = Signal(range(11))
        phase = Signal(FRACTION_BITS + 3)
        total = Signal(FRACTION_BITS + 4)
        m.d.comb += [
            self.tx.eq(bits[0]),
            self.i.ready.eq(left == 0),
            total.eq(phase + increment),
        ]
        with m.If(self.i.ready):
            m.d.sync += phase.eq(0)
            with m.If(self.i.valid):
                m.d.sync += [bits.eq(Cat(0, self.i.payload)), left.eq(10)]
        with m.Else():
            m.d.sync += phase.eq(total)
            with m.If(total[-1]):
                m.d.sync += [bits.eq(Cat(bits[1:], 1)), left.eq(left - 1)]

    def _fall_back(self, m, framing_error):
        events = Signal(range(self.fallback_events))
        pinned = Signal()
        with m.If(self.frame_good):
            m.d.sync += pinned.eq(1)
        with m.Elif((framing_error | self.frame_bad) & ~pinned):
            m.d.sync += events.eq(events + 1)
            with m.If(events == self.fallback_events - 1):
                m.d.sync += [events.eq(0), self.rate.eq(self.rate + 1)]
                with m.If(self.rate == len(self.bauds) - 1):
                    m.d.sync += self.rate.eq(0)
