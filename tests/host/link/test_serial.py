"""The serial stream on a pseudo-terminal, behind which a model of the device answers."""

import os
import select
import termios
import threading
import time
import tty

import pytest

from hdl.protocol import FALLBACK_EVENTS
from host.errors import ArgumentError, LinkError, LinkTimeout
from host.link import SerialStream, open_serial, open_uart

from .model import DeviceModel

pytestmark = pytest.mark.timeout(30)

SPEEDS = {termios.B1000000: 1_000_000, termios.B115200: 115_200}


class Port:
    """A pseudo-terminal with a device that hears one baud rate only."""

    def __init__(self, baud=1_000_000):
        self.device = DeviceModel()
        self.baud = baud
        self.heard = {}             # bytes by baud rate
        self._master, slave = os.openpty()
        tty.setraw(slave)
        self.name = os.ttyname(slave)
        self._slave = slave         # open: the master fails when nobody has the slave
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        while not self._stop.is_set():
            if select.select([self._master], [], [], 0.01)[0]:
                data = os.read(self._master, 4096)
                rate = SPEEDS[termios.tcgetattr(self._slave)[5]]
                self.heard[rate] = self.heard.get(rate, b"") + data
                if rate == self.baud:
                    self.device.send(data)
                    os.write(self._master, self.device.receive(1 << 20, 0))

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._stop.set()
        self._thread.join()
        os.close(self._master)
        os.close(self._slave)


def test_transfer():
    with Port() as port, open_serial(port.name) as client:
        assert client.name == f"uart:{port.name}"
        data = os.urandom(4000)
        client.write(0x1000, data)
        assert client.read(0x1000, 4000) == data
        assert client.statistics.retries == 0
        assert set(port.heard) == {1_000_000}


def test_fallback_to_the_slower_rate():
    with Port(baud=115_200) as port, open_serial(port.name, timeout=0.02) as client:
        client.write(0, b"1234")
        assert port.device.memory == {0: 0x34333231}
        # Enough zeros for the device to change its rate.
        assert port.heard[115_200].startswith(bytes(2 * FALLBACK_EVENTS))


def test_nothing_answers():
    with Port(baud=0) as port:
        start = time.monotonic()
        with pytest.raises(LinkTimeout, match=rf"{port.name} at 1000000 and 115200 baud"):
            open_serial(port.name)
        assert 1.9 < time.monotonic() - start < 3
        with pytest.raises(LinkTimeout, match="at 115200 baud"):
            open_serial(port.name, 115_200, timeout=0.02)


def test_no_such_port():
    with pytest.raises(LinkError, match="cannot open the serial port /dev/there-is-none"):
        open_serial("/dev/there-is-none")


@pytest.mark.parametrize("baud", [0, -1, "fast", 9600.0])
def test_bad_baud(baud):
    with pytest.raises(ArgumentError, match="baud must be a positive integer"):
        open_serial("/dev/there-is-none", baud)


def test_port_that_only_echoes():
    """A response that is our request must not pass for one."""
    with pytest.raises(LinkError, match="1000000 and 115200"):
        open_serial("loop://", timeout=0.02)


def test_port_that_goes_away():
    port = Port()
    stream = SerialStream(port.name, 1_000_000)
    port.__exit__()
    with pytest.raises(LinkError, match=f"uart:{port.name}"):
        stream.receive(10, 0.1)
    stream.close()
    stream.close()


def test_url():
    with Port(baud=115_200) as port:
        with open_uart(f"uart:{port.name}?baud=115200") as client:
            assert client.name == f"uart:{port.name}"
        assert set(port.heard) == {115_200}


@pytest.mark.parametrize("url", ["uart:", "uart:?baud=9600", "uart:x?baud=fast", "uart:x?baud=",
                                 "uart:x?speed=9600"])
def test_bad_url(url):
    with pytest.raises(ArgumentError, match=r"uart:PORT\?baud=N, not"):
        open_uart(url)
