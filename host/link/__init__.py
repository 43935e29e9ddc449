"""How the host reaches a device: transports, and the serial link with its protocol."""

from host.link.client import Client, Statistics
from host.link.serial import SerialStream, open_serial, open_uart
from host.link.transport import ByteStream, Transport

__all__ = [
    "ByteStream", "Client", "SerialStream", "Statistics", "Transport", "open_serial", "open_uart",
]
