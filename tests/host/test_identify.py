"""What a host demands of a device's registers before it believes them."""

import pytest

import host
from hdl.config import ISA_VERSION, REGISTERS_VERSION, DeviceConfig, EngineConfig
from hdl.registers import MAGIC, REGISTERS, Space, Status, base_of
from host.link import Transport

CONFIG = DeviceConfig(engine=EngineConfig(lanes=32, rows=2, scale_points=4, block_ram_blocks=1),
                      memory_beats=4321, clock_hz=12_345_678)
VERSIONS = ISA_VERSION | REGISTERS_VERSION << 8


class Registers(Transport):
    """A device of nothing but registers, that of CONFIG where `changes` do not say otherwise."""

    name = "fake:board"
    fresh = True

    def __init__(self, **changes):
        values = {**CONFIG.identity(), "STATUS": Status.IDLE, **changes}
        self.words = {REGISTERS[name].offset: value for name, value in values.items()}
        self.written = []
        self.closed = False

    def read(self, address, nbytes):
        return self.words[address - base_of(Space.REGISTERS)].to_bytes(nbytes, "little")

    def write(self, address, data):
        self.written.append((address - base_of(Space.REGISTERS), bytes(data)))

    def close(self):
        self.closed = True


def refused(**changes):
    """Message with which a device is refused."""
    transport = Registers(**changes)
    with pytest.raises(host.DeviceError) as error:
        host.Device(transport)
    assert not transport.written, "what is no device of ours must be left alone"
    message = str(error.value)
    assert message.startswith("fake:board ")
    return message


def test_takes_a_device_for_what_it_says():
    with host.Device(transport := Registers()) as device:
        assert device.engine == CONFIG.engine
        assert (device.memory_beats, device.clock_hz) == (4321, 12_345_678)
    assert transport.closed and not transport.written


@pytest.mark.parametrize("magic", [0, 0xFFFFFFFF, MAGIC ^ 1, int.from_bytes(b"LUTR", "little")])
def test_another_magic(magic):
    assert f"MAGIC must be {MAGIC:#x}, not {magic:#x}" in refused(MAGIC=magic)


@pytest.mark.parametrize("isa, registers", [
    (ISA_VERSION + 1, REGISTERS_VERSION), (ISA_VERSION, REGISTERS_VERSION + 1), (0, 0), (255, 255)])
def test_another_version(isa, registers):
    message = refused(VERSIONS=isa | registers << 8)
    assert f"instruction set {isa} and register map {registers};" in message
    assert f"this host speaks {ISA_VERSION} and {REGISTERS_VERSION}:" in message


@pytest.mark.parametrize("bit", [16, 31])
def test_versions_of_the_future(bit):
    """The other bits mean nothing yet, so that they must be 0."""
    refused(VERSIONS=VERSIONS | 1 << bit)


def test_versions_are_what_is_looked_at_first():
    """A device of another version may have anything in its other registers."""
    refused(VERSIONS=VERSIONS + 1, FORMAT=0xFFFFFFFF, ARRAY=0, BUFFERS=0, MEMORY=0)
    refused(MAGIC=0, VERSIONS=0, FORMAT=0xFFFFFFFF)


def test_what_still_runs_is_stopped():
    with host.Device(transport := Registers(STATUS=Status.RUNNING)):
        assert transport.written == [(REGISTERS["CONTROL"].offset, b"\2\0\0\0")]
