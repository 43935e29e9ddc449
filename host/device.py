"""Devices and layers: what a user holds to multiply by quantised matrices on an FPGA."""

import threading
import time
import weakref
from collections import deque
from functools import wraps
from types import MappingProxyType
from typing import Any

import numpy as np

from hdl.config import ISA_VERSION, REGISTERS_VERSION, engine_of
from hdl.isa import Instruction, assemble
from hdl.registers import COUNTERS, MAGIC, REGISTERS, Error, Space, Status, base_of
from host import activations
from host.arguments import choice, positive
from host.compiler import LayerCode, matmul_program
from host.directory import Images
from host.errors import (
    ArgumentError,
    ArgumentTypeError,
    CapacityError,
    DeviceError,
    LinkTimeout,
    ProgramError,
)
from host.formats.common import array_of, integer
from host.functions import FUNCTIONS
from host.matrix import QuantizedMatrix, shared_needs, unmet
from host.pack import packed
from host.progress import Meter
from host.results import collect, figures, real, result_beats
from host.telemetry import counts

__all__ = ["Device", "Layer"]

EXACT_BITS = 53
"""float64 holds every integer of that many bits; the host scales accumulators in float64."""

_REASONS = {
    Error.BAD_OPCODE: "an instruction has an unknown opcode",
    Error.BAD_FIELD: "an instruction has a field that this engine does not have or allow",
    Error.BAD_ADDRESS: "the program addressed memory that the device does not have",
    Error.DEADLOCK: "no stage of the program can move, or it ends with tables that no LMMA has "
                    "used: its tokens do not match",
}


def exclusive(method):
    """Have threads take turns: for methods of a device, or of what has one as its `device`."""
    @wraps(method)
    def turn(self, *arguments, **options):
        device = getattr(self, "device", self)
        with device._lock:
            device._give_back()
            return method(self, *arguments, **options)
    return turn


class Bound:
    """What is of no use outside its process."""

    def __reduce__(self):
        raise ArgumentTypeError(f"a {type(self).__name__} cannot be copied or pickled, for it is "
                                "bound to an open device; copy the matrices and open another")


class Device(Bound):
    """A device behind a transport.

    Threads may share it and its layers and chains: they take turns, a whole call each, and one
    that closes it waits for the call under way.

    Parameters
    ----------
    transport : host.link.Transport
        Also sets :attr:`url` as its name.

    Attributes
    ----------
    engine : EngineConfig
        What the device says it is.
    memory_beats, clock_hz : int
    images : host.directory.Images
        What lies in the memory, and who has which part of it.
    generation : int
        Counts reconfigurations; what was uploaded before is gone.
    """

    def __init__(self, transport):
        self.transport = transport
        self.generation = 0
        self._closed = False
        self._lock = threading.RLock()
        self._gone = deque()    # (images, resident) of layers that are; finalisers append to it
        try:
            self._identify()
        except BaseException:
            self.close()
            raise

    @property
    def url(self):
        """The name under which the device was opened."""
        return self.transport.name

    def __repr__(self):
        e = self.engine
        return (f"<{self.url}: {e.format}, {e.lanes} lanes x {e.rows} rows x {e.columns} columns, "
                f"{self.memory_beats * e.beat_bytes / 2**20:.1f} MiB>")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    @exclusive
    def close(self):
        """Release the device; its layers cannot be called any more."""
        if not self._closed:
            self._closed = True
            self.transport.close()

    def _check_open(self):
        if self._closed:
            raise DeviceError(f"{self.url} is closed")

    def _read(self, address, nbytes):
        self._check_open()
        return self.transport.read(address, nbytes)

    def _write(self, address, data):
        self._check_open()
        self.transport.write(address, data)

    def _give_back(self):
        """Release what layers left that are gone: a finaliser runs on any thread, amid anything."""
        while self._gone:
            images, resident = self._gone.popleft()
            images.release(resident)

    # Registers

    @exclusive
    def read_register(self, name):
        """Value of a register, or a list where it is a row of them."""
        register = REGISTERS[choice("register", name, tuple(REGISTERS))]
        data = self._read(base_of(Space.REGISTERS) + register.offset, 4 * register.count)
        values = np.frombuffer(data, "<u4").tolist()
        return values if register.count > 1 else values[0]

    @exclusive
    def write_register(self, name, value):
        """Write a register."""
        register = REGISTERS[choice("register", name, tuple(REGISTERS))]
        value = integer(name, value)
        if not 0 <= value < 2**32:
            raise ArgumentError(f"{name} must be in 0..{2**32 - 1}, not {value}")
        self._write(base_of(Space.REGISTERS) + register.offset, value.to_bytes(4, "little"))

    def _identify(self):
        magic = self.read_register("MAGIC")
        if magic != MAGIC:
            raise DeviceError(f"{self.url} does not answer as a Lutra device: register MAGIC must "
                              f"be {MAGIC:#x}, not {magic:#x}")
        versions = self.read_register("VERSIONS")
        if versions != ISA_VERSION | REGISTERS_VERSION << 8:
            raise DeviceError(
                f"{self.url} has instruction set {versions & 255} and register map "
                f"{versions >> 8 & 255}; this host speaks {ISA_VERSION} and {REGISTERS_VERSION}: "
                "rebuild the bitstream or install the matching host")
        self.engine = engine_of({n: self.read_register(n) for n in ("FORMAT", "ARRAY", "BUFFERS")})
        self.memory_beats = self.read_register("MEMORY")
        self.clock_hz = self.read_register("CLOCK")
        self.digest = self.read_register("DIGEST")
        if self.read_register("STATUS") == Status.RUNNING:
            self.reset()
        self.images = Images(self)

    @exclusive
    def reset(self):
        """Stop whatever runs and bring the engine to its initial state; memory is kept."""
        self.write_register("CONTROL", 2)

    # Memory

    @property
    @exclusive
    def memory(self):
        """host.memory.Allocator: who has which part of the memory."""
        return self.images.memory

    @property
    def link_bytes(self):
        """Bytes that a beat with its sideband takes on the link."""
        return self.engine.beat_bytes + self.engine.side_stride

    @exclusive
    def write_beats(self, address, data, side=None, meter=None):
        """Write beats and, where given, their sidebands.

        Parameters
        ----------
        address : int
            First beat.
        data : uint8 [beats, beat_bytes]
        side : uint32 [beats, words] or None
        meter : host.progress.Meter or None
            Told what is done.
        """
        parts = [(base_of(Space.MEMORY) + address * self.engine.beat_bytes, data)]
        if side is not None and self.engine.scaled:
            stride = self.engine.side_stride
            spread = np.zeros((len(side), stride // 4), np.uint32)
            spread[:, :side.shape[1]] = side
            parts.append((base_of(Space.SIDEBAND) + address * stride, spread))
        for start, array in parts:
            content = array.tobytes()
            for piece in (meter or Meter()).pieces(len(content)):
                self._write(start + piece.start, content[piece])

    @exclusive
    def read_beats(self, address, count, meter=None):
        """`count` beats from `address`: uint8 [count, beat_bytes]."""
        size = self.engine.beat_bytes
        start = base_of(Space.MEMORY) + address * size
        data = b"".join(self._read(start + piece.start, piece.stop - piece.start)
                        for piece in (meter or Meter()).pieces(count * size))
        return np.frombuffer(data, np.uint8).reshape(count, size)

    @exclusive
    def forget(self):
        """Drop the weights that the device keeps although no layer uses them any more.

        To be called where something else wrote to the memory of a device that keeps it.
        """
        self.images.forget()

    # Programs

    @exclusive
    def run(self, program, *, timeout=None):
        """Run a program to its end.

        Parameters
        ----------
        program : list of Instruction
            Without the final HALT.
        timeout : float or None
            Seconds, on a simulated device of simulated time.  None is 30 s, or 60 s simulated.

        Returns
        -------
        dict
            The cycle counters, by name (empty for an engine without).

        Raises
        ------
        ProgramError
            The device stopped with an error code.
        LinkTimeout
            It did not stop in time; it was reset.
        """
        self._check_open()
        if not isinstance(program, list | tuple) \
                or not all(isinstance(i, Instruction) for i in program):
            raise ArgumentTypeError("program must be a list of Instruction, not "
                                    f"{type(program).__name__} {program!r:.80}")
        timeout = positive("timeout", timeout)
        program = [*program, Instruction.make("HALT")]
        code = np.frombuffer(assemble(program, self.engine.beat_bytes), np.uint8)
        with self.memory.hold(len(program)) as address:
            self.write_beats(address, code.reshape(len(program), -1))
            self.write_register("PROGRAM", address)
            self.write_register("CONTROL", 1)
            try:
                self._wait(timeout)
            except (LinkTimeout, KeyboardInterrupt):
                self.reset()
                raise
        status = self.read_register("STATUS")
        if status != Status.DONE:
            error = Error(self.read_register("ERROR"))
            self.reset()
            raise ProgramError(f"{self.url} stopped with {error.name}: "
                               f"{_REASONS.get(error, 'no reason given')}")
        if not self.engine.counters:
            return {}
        return dict(zip(COUNTERS, counts(self.read_register("COUNTERS"))))

    def _wait(self, timeout):
        wait = getattr(self.transport, "wait", None)
        if wait is not None:
            wait(timeout)
            return
        deadline = time.monotonic() + (30 if timeout is None else timeout)
        while self.read_register("STATUS") == Status.RUNNING:
            if time.monotonic() > deadline:
                raise LinkTimeout(f"{self.url} still runs its program after "
                                  f"{30 if timeout is None else timeout} s")
            time.sleep(1e-4)

    # Layers

    @exclusive
    def load(self, q, bias=None, activation=None, out="float", out_scale=None, progress=None):
        """Compile a quantised matrix for this device and upload it, unless it is there already.

        Parameters
        ----------
        q : host.matrix.QuantizedMatrix
        bias : float [N] or None
        activation : None, "relu", "silu", "gelu" or "exp"
            Applied to the output; for int8 of other formats than kmeans only relu.
        out : str
            ``"float"``, or for chains ``"int8"``, or of format kmeans ``"index"``: the nearest of
            as many centroids as the next layer's activations have.
        out_scale : float or None
            Step of int8 results, before an activation function of kmeans; None takes
            ``q.output_scale``.
        progress : callable, optional
            Called as ``progress(done, total)`` with bytes during the upload.  That of a layer
            with another output than ``"float"`` is part of its chain's first call.

        Returns
        -------
        Layer
        """
        self._check_open()
        return Layer(self, q, bias=bias, activation=activation, out=out, out_scale=out_scale,
                     progress=progress)

    @exclusive
    def chain(self, layers, in_scale=None):
        """Layers applied one after the other without leaving the device.

        Parameters
        ----------
        layers : list of Layer, pairs of them, or RMSNorm
            All but the last loaded with ``out="int8"`` or ``"index"``.  A pair, both with
            ``"index"``, stands for the elementwise product of its layers' outputs;
            ``host.RMSNorm()`` normalises what the next layer takes.
        in_scale : float or None
            Scale of the input; None takes it from the first call.  See
            :class:`host.chain.Chain`.

        Returns
        -------
        host.chain.Chain
        """
        from host.chain import Chain

        self._check_open()
        return Chain(self, layers, in_scale)

    def _adapt(self, q, bits, needs=None):
        """Make sure that the engine can run `q`; a simulated device becomes one that can.

        `needs`: of :func:`host.matrix.shared_needs`, where other matrices are to run beside it.
        """
        self._check_open()
        together = needs is not None
        needs = needs or shared_needs([q.needs(bits)])
        adapt = getattr(self.transport, "adapt", None)
        if adapt is not None and adapt(self.engine, q, needs):
            self.generation += 1
            self._identify()
            return
        engine = self.engine
        remedy = "build the board so" if adapt is None else "open sim: with other options"
        if engine.format != q.format:
            if adapt is None:
                remedy = f"build the board with --format {q.format}"
            raise DeviceError(f"{self.url} is built for {engine.format}, the matrix is {q.format}: "
                              f"{remedy}")
        if wrong := unmet(engine, needs):
            built, needed = wrong
            what = f"this matrix of side={q.config.side!r}" if q.format == "sq" else "this matrix"
            what = "the layers of this chain" if together else f"{what} and its activations"
            raise DeviceError(f"{self.url} is built with {built}; {what} need {needed}: {remedy}, "
                              "or quantise otherwise")
        if why := q.refusal(engine):
            raise DeviceError(f"{self.url}: {why}")


class Layer(Bound):
    """A quantised matrix on a device.

    Call it with float tokens; :meth:`integers` takes integers.  Frees its memory when nothing
    refers to it any more.
    """

    def __init__(self, device, q, *, bias, activation, out, out_scale, progress=None):
        meter = Meter(progress)
        if not isinstance(q, QuantizedMatrix):
            raise ArgumentTypeError("q must be a QuantizedMatrix, as host.quantize and host.load "
                                    f"return it, not {type(q).__name__}")
        if choice("out", out, ("float", "int8", "index")) == "index" and q.format != "kmeans":
            raise ArgumentError(f"a layer of format {q.format} has out='float' or 'int8', not "
                                "'index': its activations are not indexes")
        if out != "float" and not q.chains:
            raise ArgumentError("activations in two precisions are made of int16, which no layer "
                                f"before gives: a layer has out='float', not {out!r}")
        if out != "float" and out_scale is None:
            out_scale = q.output_scale
            if out_scale is None:
                raise ArgumentError(f"out={out!r} needs an out_scale, for the matrix has no "
                                    "output_scale from calibration")
        self.device = device
        self.q = q
        self.out = out
        self.out_scale = positive("out_scale", out_scale)
        self.activation = choice("activation", activation, (None, *FUNCTIONS))
        if out == "int8" and q.token_bits == 8 and activation not in (None, "relu"):
            raise ArgumentError(f"with out='int8' a layer of format {q.format} has activation "
                                f"None or 'relu', not {activation!r}: only kmeans has tables")
        N, _ = q.shape
        if bias is not None:
            bias = array_of("bias", bias, "iuf")
            if bias.shape != (N,):
                raise ArgumentError(f"bias must have shape [{N}], not {list(bias.shape)}")
            bias = bias.astype(np.float64)
            if not np.isfinite(bias).all():
                raise ArgumentError(f"bias must be finite, not {bias[~np.isfinite(bias)][0]}")
        self.bias = bias
        self._stats: dict[str, Any] = {}
        self._image: Any = None
        self._code: Any = None
        self._images = None
        self._freed = False
        self._release = None
        if out == "float":      # the others live in a chain, with its scales
            self._place(q.token_bits, meter)

    def _place(self, bits, meter):
        """Have the matrix on the device, for activations of `bits` bits."""
        if self._freed:
            raise DeviceError("this layer was freed")
        device = self.device
        device._check_open()
        self._prove(bits)
        device._adapt(self.q, bits)
        if self._images is device.images:
            return
        image = packed(self.q, device.engine)
        meter.expect(device.images.missing(image))
        resident = device.images.place(image, meter)
        self._release = weakref.finalize(self, device._gone.append, (device.images, resident))
        self._image, self._code = image, LayerCode.at(resident.address, image)
        self._images = device.images

    def _prove(self, bits):
        """Refuse a matrix whose accumulators could overflow."""
        limit = min(EXACT_BITS, self.device.engine.accumulator_bits - 1)
        bound = self.q.row_bound * self.q.activation_bound(bits)
        if bound >= 2**EXACT_BITS or (bits == 8 and bound >= 2**limit):
            raise CapacityError(
                f"accumulators must stay below {limit} bits for {bits}-bit activations; this "
                f"matrix can reach {bound.bit_length()} bits: split it along K or use fewer bits")

    @exclusive
    def free(self):
        """Give the layer's memory back.

        A device that keeps its memory keeps the weights there until the space is needed.
        """
        if not self._freed:
            self._freed = True
            if self._release is not None:
                self._release()
                self.device._give_back()

    @property
    def stats(self):
        """Mapping of figures of the last call, whichever thread made it.

        ``cycles`` (first instruction to last result), ``gather_cycles``, the other counters of
        :data:`hdl.registers.COUNTERS`, ``peak_macs_per_cycle``, ``utilization``, ``bytes_read``,
        ``bytes_written``, ``tokens``, ``padding`` (part of the codes that is padding).
        """
        return MappingProxyType(self._stats)

    @exclusive
    def __call__(self, x, progress=None):
        """``x @ W.T + bias``; float outputs only.

        Parameters
        ----------
        x : float32 or float16 [..., K]
        progress : callable, optional
            Called as ``progress(done, total)`` with the bytes of activations and results.

        Returns
        -------
        float32 [..., N]
        """
        if self.out != "float":
            raise ArgumentError(f"a layer with out={self.out!r} works in device.chain; load it "
                                "with out='float' to call it")
        N, K = self.q.shape
        flat, lead = activations.check(x, K)
        xq, scale = activations.quantize_tokens(activations.stored(flat, self.q),
                                                self.q.token_bits)
        acc = self._accumulate(xq, self.q.token_bits, Meter(progress))
        units = self.q.token_units(xq, scale)
        return real(acc, self, units.astype(np.float64)[:, None]).reshape(*lead, N)

    @exclusive
    def integers(self, xq, progress=None):
        """Accumulators for integer activations.

        Parameters
        ----------
        xq : integers [..., K]
            In the stored column order; in [-127, 127] for one pass, else int16 in two.
        progress : callable, optional
            As of a call.

        Returns
        -------
        int64 [..., N]
        """
        N, K = self.q.shape
        xq = array_of("activations", xq, "iu")
        if xq.ndim < 1 or xq.shape[-1] != K:
            raise ArgumentError(f"activations must have shape [..., {K}], not {list(xq.shape)}")
        low, high = xq.min(initial=0), xq.max(initial=0)
        if low < -32768 or high > 32767:
            raise ArgumentError("activations must fit int16, -32768..32767, not "
                                f"{low if low < -32768 else high}")
        flat = xq.reshape(-1, K).astype(np.int64)
        bits = 8 if -127 <= low and high <= 127 and self.q.token_bits == 8 else 16
        return self._accumulate(flat, bits, Meter(progress)).reshape(*xq.shape[:-1], N)

    def _accumulate(self, xq, bits, meter):
        """int64 [M, N] accumulators of integer tokens [M, K]."""
        self._place(bits, meter)
        device, engine, image = self.device, self.device.engine, self._image
        passes = bits // self.q.token_bits      # int16 where tokens are int8: two byte planes
        N, K = self.q.shape
        M = len(xq)
        out = np.zeros((M, N), np.int64)
        planes = [xq] if passes == 1 else [xq >> 8, xq & 255]
        group_in = passes * image.k_tiles * engine.tile_beats
        group_out = sum(result_beats(steps, engine) for _, steps in image.tiles)
        groups = -(-M // engine.rows)
        shown = image.padded_k // engine.bank if engine.encodes and engine.bank else 0
        per_group = group_in + group_out + 8 * len(image.tiles) * passes * 4 + shown
        # Weights that may be wanted again go for one group, not for a larger batch.
        room = max(0, device.memory.room(per_group + 64) - 64)
        batch = min(groups, room // per_group)
        if groups and not batch:
            raise CapacityError(
                f"one group of {engine.rows} tokens needs {per_group} beats of "
                f"{engine.beat_bytes} bytes for activations and results; {room} are free")
        meter.expect(groups * (group_in + group_out) * engine.beat_bytes)
        total = dict.fromkeys(COUNTERS, 0)
        for first in range(0, groups, max(batch, 1)):
            count = min(batch, groups - first)
            with device.memory.hold(count * (group_in + group_out)) as base:
                results = base + count * group_in
                tokens = [slice((first + g) * engine.rows, (first + g + 1) * engine.rows)
                          for g in range(count)]
                data = np.concatenate([
                    activations.arrange(p[t], image.positions, image.padded_k, engine)
                    for t in tokens for p in planes])
                device.write_beats(base, data, meter=meter)
                addresses = [(base + g * group_in, results + g * group_out)
                             for g in range(count)]
                counters = device.run(
                    matmul_program(engine, self._code, addresses, passes=passes))
                for name, value in counters.items():
                    total[name] += value
                beats = device.read_beats(results, count * group_out, meter)
                for g, t in enumerate(tokens):
                    out[t] = collect(beats[g * group_out:(g + 1) * group_out], image.tiles,
                                     engine, N)[:len(out[t])]
        self._stats = figures(total, engine, M, N * K,
                              engine.peak_macs(self.q.planes * self.q.codebooks * passes),
                              image.padding)
        return out
