"""The device behind ``sim:``: a Verilated top in this process."""

import math
from typing import Any
from urllib.parse import parse_qsl

from hdl.config import DeviceConfig, EngineConfig
from hdl.errors import ArgumentError, ConfigError, LinkTimeout
from hdl.protocol import BAUDS
from hdl.registers import Space
from host.link import ByteStream, Client, Transport
from sim.library import Library
from sim.verilate import build

__all__ = ["DEFAULT_ENGINE", "MEMORIES", "SimTransport", "open_sim"]

MEMORIES = {
    # name: (latency in s, bytes per s or None for one beat per cycle, refresh period and length)
    "ideal": (40e-9, None, 0, 0),
    "ddr3": (200e-9, 1.6e9, 7.8e-6, 0.84e-6),
}
"""Memory models.  ``ddr3`` is a 16-bit DDR3-800: 1.6 GB/s at the pins; what refresh and turning
round cost is gathered in one pause, so that it sustains the 1.43 GB/s that a controller reaches."""

DEFAULT_ENGINE: dict[str, Any] = dict(lanes=64, n_tile=4096, activation_bytes=32768)


class SimStream(ByteStream):
    """The bytes of the simulated device's link; waiting steps the simulation."""

    def __init__(self, library, name, baud=None):
        self._library = library
        self.name = name
        self.baud = baud

    def send(self, data):
        data = bytes(data)
        self._library.send(data, len(data))

    def receive(self, max_bytes, timeout):
        cycles = max(1000, int(timeout * self._library.config.clock_hz))
        return self._library.receive_bytes(max_bytes, cycles)

    def time(self):
        return self._library.cycle() / self._library.config.clock_hz

    def flush_input(self):
        self._library.flush()

    def close(self):
        pass


class SimTransport(Transport):
    """Access to a simulated device.

    Registers go through the link's protocol.  Bulk memory goes straight into the memory model, as
    DMA would, unless the memory is inside the device or `direct` is off.

    Parameters
    ----------
    config : DeviceConfig
    memory : str
        Name of a model in :data:`MEMORIES`.
    fixed : set of str
        Engine parameters that :meth:`adapt` must not change.
    trace : path or None
        Where to write waveforms.
    progress : callable or None
        Told about builds.
    """

    fresh = True

    def __init__(self, config, *, name="sim:", memory="ideal", fixed=(), trace=None, direct=True,
                 latency=None, progress=None):
        self.name = name
        self.config = config
        self.memory = memory
        self.fixed = set(fixed)
        self.trace = trace
        self.direct = direct and config.memory == "port"
        self.latency = latency
        self.progress = progress
        self._start()

    def _start(self):
        config = self.config
        path = build(config, trace=self.trace is not None, progress=self.progress)
        self.library = Library(path, config, self.trace)
        if config.memory == "port":
            latency, rate, every, pause = MEMORIES[self.memory]
            hz = config.clock_hz
            beat = (config.engine.code_bits + config.engine.side_bits) / 8
            cost = 0 if rate is None else beat * hz / rate
            write = 0 if rate is None else config.engine.beat_bytes * hz / rate
            cycles = math.ceil(latency * hz) if self.latency is None else self.latency
            self.library.memory(cycles, cost, write, every * hz, pause * hz, 256)
        baud = None
        if config.link == "uart":
            baud = BAUDS[0]
            self.library.bit_cycles(config.clock_hz / baud)
        self._client = Client(SimStream(self.library, self.name, baud))

    @property
    def bytes_per_second(self):
        """Bandwidth that the memory model sustains; None where it has no limit."""
        _, rate, every, pause = MEMORIES[self.memory]
        return None if rate is None else rate * (1 - pause / every)

    def adapt(self, engine, q, bits):
        """Become an engine that runs `q` at its full rate; whether anything changed."""
        changes = {}
        if engine.format != q.format:
            changes["format"] = q.format
        if bits > engine.activation_bits:
            changes["activation_bits"] = 16
        if q.zeros is not None and not engine.zero_points:
            changes["zero_points"] = True
        group = q.config.group_size
        if group is not None and group < engine.group_width and q.shape[1] > group:
            changes["scale_points"] = engine.tile_k // group
        changes = {k: v for k, v in changes.items() if k not in self.fixed}
        if not changes:
            return False
        self.library.close()
        self.config = self.config.replace(engine=engine.replace(**changes))
        self._start()
        return True

    def _window(self, address, nbytes):
        """View of the memory model for an address, or None for what needs the link."""
        space, offset = address >> 62, address & (1 << 62) - 1
        if not self.direct or space == Space.REGISTERS:
            return None
        library = self.library
        if space == Space.MEMORY:
            flat = library.data.reshape(-1)
            if offset + nbytes <= flat.size:
                return flat[offset:offset + nbytes]
        return None

    def read(self, address, nbytes):
        address, nbytes = self.check_span(address, nbytes)
        window = self._window(address, nbytes)
        return self._client.read(address, nbytes) if window is None else window.tobytes()

    def write(self, address, data):
        address, _ = self.check_span(address, len(data))
        window = self._window(address, len(data))
        if window is not None:
            window[:] = memoryview(data)
        elif self.direct and address >> 62 == Space.SIDEBAND:
            self._write_side(address & (1 << 62) - 1, data)
        else:
            self._client.write(address, data)

    def _write_side(self, offset, data):
        import numpy as np

        stride = self.config.side_stride
        first, rest = divmod(offset, stride)
        rows = np.frombuffer(data, np.uint32).reshape(-1, stride // 4)
        side = self.library.side
        if rest or first + len(rows) > len(side):
            raise ArgumentError(f"sidebands of beats {first}..{first + len(rows)} are not in the "
                                f"memory of {len(side)} beats")
        side[first:first + len(rows)] = rows[:, :side.shape[1]]

    def wait(self, timeout):
        """Step until the program ends; `timeout` is in seconds of simulated time."""
        limit = int((60 if timeout is None else timeout) * self.config.clock_hz)
        if self.library.run(limit):
            raise LinkTimeout(f"{self.name} still runs its program after {limit} cycles")

    def close(self):
        self._client.close()
        self.library.close()


def open_sim(url, *, progress=None):
    """Transport of a ``sim:`` URL (see :func:`host.open`)."""
    body, _, query = url.removeprefix("sim:").partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    fields = EngineConfig.__dataclass_fields__
    own = {"trace", "clock", "link"} | ({"size"} if body else {"memory", "memory_mib", "latency"})
    unknown = sorted(set(options) - own - set(fields))
    if unknown:
        raise ArgumentError(f"{url}: unknown option {', '.join(unknown)}; legal are "
                            f"{', '.join(sorted(own | set(fields)))}")

    def number(name, kind: Any = int):
        try:
            return kind(options[name])
        except ValueError:
            raise ArgumentError(f"{url}: {name} must be a number, not "
                                f"{options[name]!r}") from None

    def choice(name, legal):
        value = options.get(name, legal[0])
        if value not in legal:
            raise ArgumentError(f"{url}: {name} must be one of {', '.join(legal)}, not {value!r}")
        return value

    engine: dict[str, Any] = {}
    for name in set(options) & set(fields):
        kind: Any = fields[name].type
        if kind is bool:
            options.setdefault(name, "1")
            engine[name] = choice(name, ("1", "0", "true", "false")) in ("1", "true")
        else:
            engine[name] = number(name) if kind is int else options[name]
    link = choice("link", ("stream", "uart"))
    clock = int(number("clock", float)) if "clock" in options else None
    try:
        if body:
            from boards import find

            board = find(body)
            size = choice("size", tuple(board.sizes))
            # The board's design with the portable forms of its parts.
            device = board.config(size, clock_hz=clock, family="portable", **engine).replace(
                link=link)
            return SimTransport(device, name=url, fixed=fields, trace=options.get("trace"),
                                progress=progress)
        config = EngineConfig(**{**DEFAULT_ENGINE, **engine})
        mib = number("memory_mib") if "memory_mib" in options else 64
        device = DeviceConfig(engine=config, link=link,
                              memory_beats=mib * 2**20 // config.beat_bytes,
                              clock_hz=clock or 200_000_000)
    except ConfigError as error:
        raise ConfigError(f"{url}: {error}") from None
    return SimTransport(
        device, name=url, memory=choice("memory", tuple(MEMORIES)), fixed=engine,
        trace=options.get("trace"), direct=link == "stream",
        latency=number("latency") if "latency" in options else None, progress=progress)
