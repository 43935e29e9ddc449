"""The Verilated model of a device, in its shared library, as Python sees it."""

import ctypes
from ctypes import c_char_p, c_double, c_int, c_uint, c_uint64, c_void_p
from pathlib import Path

import numpy as np

from hdl.config import DeviceConfig

__all__ = ["Model"]

_SIGNATURES = {
    "lutra_open": (c_void_p, c_uint64, c_char_p),
    "lutra_close": (None, c_void_p),
    "lutra_data": (c_void_p, c_void_p),
    "lutra_side": (c_void_p, c_void_p),
    "lutra_cycle": (c_uint64, c_void_p),
    "lutra_reads": (c_uint64, c_void_p),
    "lutra_writes": (c_uint64, c_void_p),
    "lutra_memory": (None, c_void_p, *[c_double] * 5, c_uint),
    "lutra_stalls": (None, c_void_p, c_uint64, c_uint, c_uint),
    "lutra_bit_cycles": (None, c_void_p, c_double),
    "lutra_step": (None, c_void_p, c_uint64),
    "lutra_run": (c_int, c_void_p, c_uint64),
    "lutra_send": (None, c_void_p, c_char_p, c_uint64),
    "lutra_receive": (c_uint64, c_void_p, c_char_p, c_uint64, c_uint64),
    "lutra_flush": (None, c_void_p),
}


class Model:
    """One running simulated device.

    Parameters
    ----------
    path : Path
        The shared library that :func:`sim.verilate.build` made for `config`.
    config : DeviceConfig
    trace : path or None
        Where to write waveforms (VCD); the library must have been built for it.

    Attributes
    ----------
    data : uint8 [beats, beat_bytes], side : uint32 [beats, words]
        The simulated memory itself (``memory="port"``).
    """

    def __init__(self, path: Path, config: DeviceConfig, trace=None):
        self.config = config
        self._lib = ctypes.CDLL(str(path))
        for name, (result, *arguments) in _SIGNATURES.items():
            function = getattr(self._lib, name)
            function.restype = result
            function.argtypes = arguments
        beats = config.memory_beats if config.memory == "port" else 0
        self._handle = self._lib.lutra_open(beats, str(trace).encode() if trace else None)
        self.data = self._view("lutra_data", (beats, config.engine.beat_bytes), np.uint8)
        self.side = self._view("lutra_side", (beats, config.engine.side_words), np.uint32)

    def _view(self, name, shape, dtype):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if not size:
            return np.zeros(shape, dtype)
        pointer = getattr(self._lib, name)(self._handle)
        return np.frombuffer((ctypes.c_char * size).from_address(pointer), dtype).reshape(shape)

    def __getattr__(self, name):
        """``model.step(10)`` calls ``lutra_step`` on this device."""
        if self._handle is None:
            raise ValueError("the simulated device is closed")
        function = getattr(self._lib, f"lutra_{name}")
        return lambda *arguments: function(self._handle, *arguments)

    def receive_bytes(self, most, limit):
        """Bytes from the device: at most `most`, stepping at most `limit` cycles for the first."""
        buffer = ctypes.create_string_buffer(most)
        count = self.receive(buffer, most, limit)
        return buffer.raw[:count]

    def close(self):
        """End the simulation; writes the rest of the waveforms."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            self.data = self.side = None
            self._lib.lutra_close(handle)
