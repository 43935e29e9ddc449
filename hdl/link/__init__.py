"""The device's end of the link: framing, request/response endpoint, UART."""

from hdl.link.cobs import Decoder, Encoder, FrameElement
from hdl.link.endpoint import BusRequest, BusResponse, Endpoint
from hdl.link.uart import UART

__all__ = [
    "UART", "BusRequest", "BusResponse", "Decoder", "Encoder", "Endpoint", "FrameElement",
]
