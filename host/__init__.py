"""The host runtime of Lutra: quantise, pack, compile, open a device, offload a matmul."""

from host.chain import RMSNorm
from host.checkpoint import from_checkpoint
from host.device import Device, Layer
from host.errors import *  # noqa: F403
from host.errors import __all__ as _errors
from host.formats import SQ, BitSerial, KMeans, Psumbook
from host.matrix import QuantizedMatrix, load
from host.open import open
from host.quantizer import from_codes, quantize

__all__ = ["SQ", "BitSerial", "Device", "KMeans", "Layer", "Psumbook", "QuantizedMatrix", "RMSNorm",
           "from_checkpoint", "from_codes", "load", "open", "quantize", *_errors]
