"""The device behind ``sim:``: a Verilated top in this process."""

import math
from itertools import product
from typing import Any
from urllib.parse import parse_qsl

from hdl.config import TOKEN_SIDE, DeviceConfig, EngineConfig
from hdl.errors import ArgumentError, ConfigError, FileError, LinkTimeout
from hdl.protocol import BAUDS
from hdl.registers import Space
from host.link import ByteStream, Client, Transport
from sim.model import Model
from sim.verilate import build

__all__ = ["MEMORIES", "SimTransport", "default_engine", "open_sim"]

MEMORIES = {
    # name: (latency in s, bytes per s or None for one beat per cycle, refresh period and length)
    "ideal": (40e-9, None, 0, 0),
    "ddr3": (200e-9, 1.6e9, 7.8e-6, 0.84e-6),
}
"""Memory models.  ``ddr3`` is a 16-bit DDR3-800: 1.6 GB/s at the pins; what refresh and turning
round cost is gathered in one pause, so that it sustains the 1.43 GB/s that a controller reaches."""

CLOCK_HZ = 1_000_000, 1_000_000_000
"""Clocks that a device can have; see :class:`~hdl.config.DeviceConfig`."""
LATENCY_MAX = 1_000_000
"""Cycles: more would only look like a memory that never answers."""


def default_engine(format="bitserial", **fields: Any) -> dict[str, Any]:
    """Parameters of the engine that ``sim:`` is, for a format and some given parameters."""
    engine: dict[str, Any] = dict(format=format, lanes=64, n_tile=4096, activation_bytes=32768)
    if format == "psumbook":
        v, b = fields.get("v", 8), fields.get("b", 8)
        lanes = fields.get("lanes", engine["lanes"])
        engine |= dict(v=v, b=b, builders=min(8, lanes * v // 4),
                       scale_points=max(1, lanes * v // 128),
                       block_ram_blocks=lanes * v // 32 if b > 5 else 0, zero_points=False,
                       activation_bits=8)
    if format == "kmeans":
        v, b = fields.get("v", 2), fields.get("b", 8)
        lanes = fields.get("lanes", engine["lanes"])
        engine |= dict(v=v, b=b, builders=8, scale_points=1, zero_points=False,
                       block_ram_blocks=lanes * v // 32 if b > 5 else 0)
    if format == "sq":
        engine |= {"bank": 64} | (TOKEN_SIDE if fields.get("activation_bits") == 16 else
                                  dict(activation_bits=8, high_lanes=2, turns=4))
    return engine | fields


class SimStream(ByteStream):
    """The bytes of the simulated device's link; waiting steps the simulation."""

    def __init__(self, model, name, baud=None):
        self._model = model
        self.name = name
        self.baud = baud

    def send(self, data):
        data = bytes(data)
        self._model.send(data, len(data))

    def receive(self, max_bytes, timeout):
        cycles = max(1000, int(timeout * self._model.config.clock_hz))
        return self._model.receive_bytes(max_bytes, cycles)

    def time(self):
        return self._model.cycle() / self._model.config.clock_hz

    def flush_input(self):
        self._model.flush()

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
        self.memory = memory
        self.fixed = set(fixed)
        self.trace = trace
        self.direct = direct and config.memory == "port"
        self.latency = latency
        self.progress = progress
        self.model: Any = None
        self._start(config)

    def _start(self, config):
        """Become the device of a configuration; what was before stays until that is built."""
        path = build(config, trace=self.trace is not None, progress=self.progress)
        before = self.model
        if before is not None and self.trace is not None:
            before.close()      # two cannot write one file
        model = Model(path, config, self.trace)
        if config.memory == "port":
            latency, rate, every, pause = MEMORIES[self.memory]
            hz = config.clock_hz
            beat = (config.engine.code_bits + config.engine.side_bits) / 8
            cost = 0 if rate is None else beat * hz / rate
            write = 0 if rate is None else config.engine.beat_bytes * hz / rate
            cycles = math.ceil(latency * hz) if self.latency is None else self.latency
            model.memory(cycles, cost, write, every * hz, pause * hz, 256)
        baud = None
        if config.link == "uart":
            baud = BAUDS[0]
            model.bit_cycles(config.clock_hz / baud)
        client = Client(SimStream(model, self.name, baud))
        self.config, self.model, self._client = config, model, client
        if before is not None:
            before.close()

    @property
    def bytes_per_second(self):
        """Bandwidth that the memory model sustains; None where it has no limit."""
        _, rate, every, pause = MEMORIES[self.memory]
        return None if rate is None else rate * (1 - pause / every)

    def adapt(self, engine, q, needs):
        """Become an engine that runs `q` at its full rate; whether anything changed.

        `needs` are engine parameters that the matrix must have, see
        :func:`host.matrix.shared_needs`.
        """
        if engine.format != q.format and "format" in self.fixed:
            return False
        if any(getattr(engine, name) not in values for name, values in needs.items()
               if name in self.fixed):
            return False
        needs = {name: values for name, values in needs.items() if name not in self.fixed}
        if not all(needs.values()):
            return False
        # What is fixed may rule out what would be the best.
        for chosen in map(dict, product(*([(name, value) for value in values]
                                          for name, values in needs.items()))):
            try:
                wanted = self._with(engine, q.format, chosen)
            except ConfigError as error:
                refused = error
            else:
                break
        else:
            raise refused
        group = q.config.group_size
        if group is not None and group < wanted.group_width and q.shape[1] > group \
                and "scale_points" not in self.fixed:
            wanted = wanted.replace(scale_points=wanted.tile_k // group)
        if wanted == engine:
            return False
        self._start(self.config.replace(
            engine=wanted,
            memory_beats=self.config.memory_beats * engine.beat_bytes // wanted.beat_bytes))
        return True

    def _with(self, engine, format, needs):
        """An engine for a format that has what is needed, the rest as it is or by default."""
        if engine.format == format and all(getattr(engine, name) == needs.get(name)
                                           for name in ("v", "b") if name in needs):
            return engine.replace(**needs)
        # Other chunks are another array.
        kept = {name: getattr(engine, name) for name in self.fixed - {"format"}}
        return EngineConfig(**default_engine(format, **{**needs, **kept}))

    def _window(self, address, nbytes):
        """View of the memory model for an address, or None for what needs the link."""
        space, offset = address >> 62, address & (1 << 62) - 1
        if not self.direct or space == Space.REGISTERS:
            return None
        model = self.model
        if space == Space.MEMORY:
            flat = model.data.reshape(-1)
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

        stride = self.config.engine.side_stride
        first, rest = divmod(offset, stride)
        rows = np.frombuffer(data, np.uint32).reshape(-1, stride // 4)
        side = self.model.side
        if rest or first + len(rows) > len(side):
            raise ArgumentError(f"sidebands of beats {first}..{first + len(rows)} are not in the "
                                f"memory of {len(side)} beats")
        side[first:first + len(rows)] = rows[:, :side.shape[1]]

    def wait(self, timeout):
        """Step until the program ends; `timeout` is in seconds of simulated time."""
        limit = int((60 if timeout is None else timeout) * self.config.clock_hz)
        if self.model.run(limit):
            raise LinkTimeout(f"{self.name} still runs its program after {limit} cycles")

    def close(self):
        self._client.close()
        self.model.close()


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

    def number(name, low=-math.inf, high=math.inf, unit="", kind: Any = int):
        try:
            value = kind(options[name])
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            legal = f" in {low}..{high} {unit}" if unit else ""
            raise ArgumentError(f"{url}: {name} must be a number{legal}, not {options[name]!r}")
        return value

    def choice(name, legal):
        value = options.get(name, legal[0])
        if value not in legal:
            raise ArgumentError(f"{url}: {name} must be one of {', '.join(legal)}, not {value!r}")
        return value

    family = options.pop("family", "portable")
    if family != "portable":
        raise ArgumentError(f"{url}: family must be portable, for no other can be simulated, not "
                            f"{family!r}")
    engine: dict[str, Any] = {}
    for name in set(options) & set(fields):
        kind: Any = fields[name].type
        if kind is bool:
            options.setdefault(name, "1")
            engine[name] = choice(name, ("1", "0", "true", "false")) in ("1", "true")
        else:
            engine[name] = number(name) if kind is int else options[name]
    link = choice("link", ("stream", "uart"))
    clock = int(number("clock", *CLOCK_HZ, "Hz", float)) if "clock" in options else None
    rest: dict[str, Any]
    try:
        if body:
            from boards import find

            board = find(body)
            size = choice("size", tuple(board.sizes["bitserial"]))
            # The board's design with the portable forms of its parts.
            device = board.config(size, clock_hz=clock, family="portable", **engine).replace(
                link=link)
            rest = dict(fixed=fields)
        else:
            config = EngineConfig(**default_engine(**engine))
            most = 2**config.address_bits * config.beat_bytes
            mib = number("memory_mib", 1, most >> 20, f"MiB (address_bits={config.address_bits})"
                         ) if "memory_mib" in options else 64
            device = DeviceConfig(engine=config, link=link,
                                  memory_beats=min(mib * 2**20, most) // config.beat_bytes,
                                  clock_hz=clock or 200_000_000)
            rest = dict(
                fixed=engine, memory=choice("memory", tuple(MEMORIES)), direct=link == "stream",
                latency=number("latency", 0, LATENCY_MAX, "cycles") if "latency" in options
                else None)
    except ConfigError as error:
        raise ConfigError(f"{url}: {error}") from None
    trace = options.get("trace")
    if trace is not None:
        try:
            with open(trace, "ab"):
                pass
        except (OSError, ValueError) as error:
            raise FileError(f"{url}: trace must be a file that can be written: {error}") from None
    return SimTransport(device, name=url, trace=trace, progress=progress, **rest)
