"""The serial line, on pyserial."""

from contextlib import contextmanager
from urllib.parse import parse_qsl

from hdl.protocol import BAUDS, FALLBACK_EVENTS
from host.errors import ArgumentError, LinkError, LinkTimeout
from host.link.client import Client
from host.link.transport import ByteStream

__all__ = ["SerialStream", "open_serial", "open_uart"]

WRITE_SECONDS = 5.0     # for what the operating system buffers; a line that runs is faster
PROBE_RETRIES = 3


class SerialStream(ByteStream):
    """A serial port.

    Parameters
    ----------
    port : str
        Device file, COM port, or URL of pyserial (``"socket://host:port"``).
    baud : int

    Raises
    ------
    LinkError
        The port cannot be opened.
    """

    def __init__(self, port, baud):
        import serial
        self.name = f"uart:{port}"
        self.baud = baud
        try:
            self._port = serial.serial_for_url(port, baudrate=baud, timeout=0, exclusive=True,
                                               write_timeout=WRITE_SECONDS)
        except (OSError, ValueError) as error:
            raise LinkError(f"cannot open the serial port {port}: {error}") from error

    def send(self, data):
        with self._failures():
            self._port.write(data)

    def receive(self, max_bytes, timeout):
        with self._failures():
            self._port.timeout = timeout
            data = self._port.read(1)
            waiting = min(self._port.in_waiting, max_bytes - len(data))
            return data + self._port.read(waiting) if data and waiting else data

    def close(self):
        self._port.close()

    def set_baud(self, baud):
        with self._failures():
            self._port.baudrate = baud
        super().set_baud(baud)

    @contextmanager
    def _failures(self):
        try:
            yield
        except OSError as error:    # pyserial's exceptions among them
            raise LinkError(f"{self.name}: {error}") from error


def open_serial(port, baud=None, **options):
    """Connect to the device on a serial port.

    A device starts at the first of `hdl.protocol.BAUDS` and goes to the next after enough
    framing errors, unless a good frame came before.  So each rate is tried after a run of zero
    bytes: at another rate they are framing errors, at the same rate they mean nothing.

    Parameters
    ----------
    port : str
        See `SerialStream`.
    baud : int or None
        The only rate to try; None: those of `hdl.protocol.BAUDS`, a second
        each with the default `timeout`.
    **options
        Of `Client`.

    Returns
    -------
    Client
        With a session.

    Raises
    ------
    LinkTimeout, LinkError
        The port cannot be opened, or nothing answers at these rates.
    """
    bauds = BAUDS if baud is None else (baud,)
    if not all(isinstance(b, int) and b > 0 for b in bauds):
        raise ArgumentError(f"baud must be a positive integer, not {baud!r}")
    stream = SerialStream(port, bauds[0])
    try:
        client = Client(stream, **options)
        failures = []
        for rate in bauds:
            stream.set_baud(rate)
            # For the time of twice as many of the slowest bytes: a device hears at least one
            # framing error in each of its own byte times.
            stream.send(bytes(2 * FALLBACK_EVENTS * max(1, rate // min(BAUDS) + 1)))
            try:
                client.connect(retries=PROBE_RETRIES)
                return client
            except LinkError as error:
                failures.append(error)
    except BaseException:
        stream.close()
        raise
    stream.close()
    tried = " and ".join(str(rate) for rate in bauds)
    kind = LinkTimeout if all(isinstance(f, LinkTimeout) for f in failures) else LinkError
    raise kind(f"no device answers on {port} at {tried} baud ({failures[-1]})") from failures[-1]


def open_uart(url, **options):
    """Connect to the device of a URL ``uart:PORT`` or ``uart:PORT?baud=N``.

    Parameters
    ----------
    url : str
    **options
        Of `Client`.

    Returns
    -------
    Client
        See :func:`open_serial`, also for what it raises.
    """
    port, _, query = url.removeprefix("uart:").partition("?")
    fields = dict(parse_qsl(query, keep_blank_values=True))
    baud = fields.pop("baud", None)
    if fields or not port or not (baud is None or baud.isdecimal()):
        raise ArgumentError("the URL of a serial device is uart:PORT or uart:PORT?baud=N, not "
                            f"{url!r}")
    return open_serial(port, None if baud is None else int(baud), **options)
