"""The client against a model of the device, over clean, noisy and dead lines."""

import random
import zlib
from collections import Counter

import pytest
from cobs import cobs

from hdl import protocol
from host.errors import (
    ArgumentError,
    ArgumentTypeError,
    DeviceError,
    LinkError,
    LinkTimeout,
    LutraError,
)
from host.link import Client, Transport

from .model import DeviceModel
from .noise import NoisyStream

pytestmark = pytest.mark.timeout(60)


def encode(content):
    return cobs.encode(content + zlib.crc32(content).to_bytes(4, "little")) + b"\0"


def words(*values):
    return b"".join(v.to_bytes(4, "little") for v in values)


def test_round_trip():
    device = DeviceModel()
    with Client(device) as client:
        assert isinstance(client, Transport)
        client.write(0x1000, words(1, 2, 0xFFFFFFFF))
        assert client.read(0x1004, 8) == words(2, 0xFFFFFFFF)
        assert client.max_words == 256
        assert client.name == "model:"
    assert device.closed
    assert device.memory == {0x1000: 1, 0x1004: 2, 0x1008: 0xFFFFFFFF}
    assert device.now == 0
    s = client.statistics
    assert (s.frames, s.sessions) == (3, 1)
    assert not s.retries and not s.naks and not s.timeouts and not s.damaged and not s.stale


@pytest.mark.parametrize("max_words", [2, 3, 256])
def test_chunks(max_words):
    device = DeviceModel(max_words=max_words)
    client = Client(device)
    data = random.Random(max_words).randbytes(4 * 1000)
    client.write(1 << 63, data)
    frames = -(-1000 // max_words)
    assert client.statistics.frames == 1 + frames
    assert client.read(1 << 63, 4000) == data
    assert client.statistics.frames == 1 + 2 * frames


def test_buffers_and_empty_transfers():
    device = DeviceModel()
    client = Client(device)
    assert client.read(0, 0) == b""
    client.write(8, b"")
    assert not device.frames
    client.write(0, bytearray(words(5)))
    client.write(4, memoryview(b"12345678"))
    assert client.read(0, 12) == words(5) + b"12345678"


def test_top_of_the_address_space():
    client = Client(DeviceModel())
    top = (1 << 64) - 4
    client.write(top, words(9))
    assert client.read(top, 4) == words(9)


@pytest.mark.parametrize("address, nbytes, kind, message", [
    (2, 4, ArgumentError, "address must be a multiple of 4"),
    (-4, 4, ArgumentError, "address must be a multiple of 4"),
    (0, 3, ArgumentError, "nbytes must be a multiple of 4"),
    ((1 << 64) - 4, 8, ArgumentError, "pass the end"),
    (1.0, 4, ArgumentTypeError, "must be integers"),
    (0, "4", ArgumentTypeError, "must be integers"),
])
def test_argument_errors(address, nbytes, kind, message):
    device = DeviceModel()
    client = Client(device)
    with pytest.raises(kind, match=message):
        client.read(address, nbytes)
    if isinstance(nbytes, int):
        with pytest.raises(kind, match=message):
            client.write(address, bytes(nbytes))
    assert not device.frames


def test_write_wants_bytes():
    with pytest.raises(ArgumentTypeError, match="data must be bytes"):
        Client(DeviceModel()).write(0, "text")


@pytest.mark.parametrize("options, message", [
    ({"retries": -1}, "retries"), ({"timeout": 0}, "timeout")])
def test_bad_options(options, message):
    with pytest.raises(ArgumentError, match=message):
        Client(DeviceModel(), **options)


def test_refused_address():
    device = DeviceModel(limit=0x100)
    client = Client(device, name="uart:/dev/ttyUSB1")
    with pytest.raises(ArgumentError, match=r"uart:/dev/ttyUSB1 .* READ of 8 bytes at 0xfc"):
        client.read(0xFC, 8)
    with pytest.raises(ArgumentError, match="no such address: WRITE"):
        client.write(0xFC, words(1, 2))
    assert device.memory == {0xFC: 1}       # up to the first word that was refused
    client.write(0, words(3))               # the session goes on
    assert client.statistics.sessions == 1


class Refusing(DeviceModel):
    """Answers READ and WRITE with a status of choice."""

    def __init__(self, status):
        super().__init__()
        self.status = status

    def answer(self, encoded):
        response = super().answer(encoded)
        op = self.frames[-1][1]
        return response[:1] + bytes([self.status, 0, 0]) if op else response


@pytest.mark.parametrize("status, message", [
    (protocol.Status.BUS_ERROR, "bus failed in READ of 4 bytes at 0x10"),
    (protocol.Status.BAD_OP, "BAD_OP"),
    (protocol.Status.BAD_COUNT, "BAD_COUNT"),
    (0x77, "unknown status 0x77"),
])
def test_device_errors(status, message):
    client = Client(Refusing(status))
    with pytest.raises(DeviceError, match=message) as info:
        client.read(0x10, 4)
    assert not isinstance(info.value, LinkError)
    assert isinstance(info.value, LutraError)


def test_other_version():
    with pytest.raises(DeviceError, match="version 2 of the link protocol"):
        Client(DeviceModel(version=2)).connect()


def test_seq_of_the_last_write_is_not_reused():
    """Otherwise the device takes the second write for a repeat of the first."""
    for reads in range(252, 258):
        device = DeviceModel()
        client = Client(device)
        client.write(0, words(1))
        for _ in range(reads):
            client.read(0, 4)
        client.write(0, words(2))
        assert device.memory[0] == 2


class Scripted(DeviceModel):
    """Damages responses: each entry of `script` is what becomes of one."""

    def __init__(self, *script, **options):
        super().__init__(**options)
        self.script = list(script)

    def send(self, data):
        if len(self.frames) < 1:        # the HELLO passes
            return super().send(data)
        before = len(self._out)
        super().send(data)
        response = bytes(self._out[before:])
        if response and self.script:
            self._out[before:] = self.script.pop(0)(response)


def lose(response):
    return b""


def break_crc(response):
    return bytes([response[0]]) + bytes([response[1] ^ 4]) + response[2:]


def test_repeats_write_once():
    device = Scripted(lose, break_crc, lambda r: r[:-4], lambda r: r)
    client = Client(device)
    client.write(0x20, words(7))
    assert device.applied == {0x20: 1}
    s = client.statistics
    assert s.frames == s.retries + 2
    assert s.timeouts >= 1 and s.damaged >= 1


def test_stale_responses_are_ignored():
    device = Scripted(lambda r: r, lambda r: device.kept + r)
    client = Client(device)
    client.write(0, words(1))
    device.kept = encode(bytes([client._seq, 0, 0, 0]))
    assert client.read(0, 4) == words(1)
    assert client.statistics.stale == 1
    assert client.statistics.retries == 0


def test_nak_is_repeated_at_once():
    device = Scripted(lambda r: encode(b"\xff\x01\0\0"))
    client = Client(device)
    assert client.read(0, 4) == words(0)
    assert client.statistics.naks == 1 and client.statistics.retries == 1
    assert device.now == 0


@pytest.mark.parametrize("baud, limit", [(None, 2.0), (1_000_000, 2.01), (115_200, 2.1)])
def test_dead_line_times_out_in_time(baud, limit):
    device = DeviceModel(baud=baud)
    device.dead = True
    client = Client(device)
    with pytest.raises(LinkTimeout, match="no answer to HELLO in 8 tries"):
        client.read(0, 4)
    assert device.now == pytest.approx(client.time_limit())
    assert 2.0 <= device.now <= limit
    assert client.statistics.timeouts == 8


def test_line_that_dies_in_a_session():
    device = DeviceModel(baud=115_200)
    client = Client(device, retries=3, timeout=0.1)
    client.write(0, bytes(1024))
    device.dead = True
    with pytest.raises(LinkTimeout):
        client.write(0, bytes(4096))
    assert 0.4 < device.now <= client.time_limit(256) + 1e-9


def test_babbling_line_times_out_in_time():
    """Garbage without delimiters must not extend a try."""
    class Babbling(DeviceModel):
        def receive(self, max_bytes, timeout):
            self.now += min(timeout, 0.01)
            return b"\x55" * 10

    device = Babbling()
    client = Client(device)
    with pytest.raises(LinkError):
        client.connect()
    assert device.now == pytest.approx(client.time_limit(), abs=0.1)


def test_line_of_garbage_is_given_up():
    device = Scripted(*[break_crc] * 100)
    client = Client(device)
    client.connect()
    with pytest.raises(LinkError, match="too noisy") as info:
        client.read(0, 4)
    assert not isinstance(info.value, LinkTimeout)
    assert client.statistics.retries == 7


def test_recovery_after_errors():
    device = DeviceModel()
    client = Client(device, retries=0)      # so the first HELLO must be heard
    client.write(0, words(1))
    for _ in range(3):
        device.dead = True
        device._out += b"\x07the beginning of a frame"
        with pytest.raises(LinkTimeout):
            client.write(0, words(2))
        device.dead = False
        device.send(b"\x05half a frame")                # the device is out of step,
        device._out += b"\x05\x01\x02 and so is the host"
        client.write(4, words(3))
        assert client.read(0, 8) == words(1, 3)
    assert client.statistics.sessions == 4
    assert device.applied == {0: 1, 4: 3}


def test_interrupted_request():
    """Whatever breaks out of a request, the next one starts a new session."""
    class Interrupted(DeviceModel):
        interrupt = False

        def receive(self, max_bytes, timeout):
            if self.interrupt:
                self.interrupt = False
                raise KeyboardInterrupt
            return super().receive(max_bytes, timeout)

    device = Interrupted()
    client = Client(device)
    client.write(0, words(1))
    device.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        client.read(0, 4)
    assert client.read(0, 4) == words(1)
    assert client.statistics.sessions == 2


def test_ten_thousand_faults(capsys):
    """Every write arrives once and unchanged, every read is true, on a line full of faults."""
    rng = random.Random(1)
    device = DeviceModel(max_words=64)
    line = NoisyStream(device, rate=0.25, seed=2)
    client = Client(line, retries=60, timeout=0.25)
    expected, writes = {}, Counter()
    while line.faults.total() < 10_000:
        # Few addresses, so that a write that is applied twice or late is seen.
        address = 4 * rng.randrange(100)
        count = rng.choice((1, 1, 1, 2, 5, 70))
        span = [address + 4 * i for i in range(count)]
        if rng.random() < 0.6:
            values = [rng.randrange(1 << rng.choice((1, 8, 32))) for _ in span]
            client.write(address, words(*values))
            expected.update(zip(span, values))
            writes.update(span)
        else:
            assert client.read(address, 4 * count) == words(*(expected.get(a, 0) for a in span))
    s = client.statistics
    with capsys.disabled():
        print(f"\n{line.faults.total()} faults "
              f"({', '.join(f'{n} {d} {k}' for (d, k), n in sorted(line.faults.items()))})\n{s}")
    assert device.memory == expected
    assert device.applied == writes
    assert s.sessions == 1
    assert s.timeouts and s.naks and s.damaged and s.stale
    assert set(line.faults) == {(d, k) for d in ("to device", "to host") for k in line.KINDS}
