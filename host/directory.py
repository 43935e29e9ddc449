"""Weight images in a device's memory, and the directory there by which the next host finds them.

The directory is a block in the last beats of the memory; little-endian:

=======  =======================================================================================
header   "LUTD", version u16, number of entries u16, register DIGEST u32, its own first beat u64
entries  first 16 bytes of the image's SHA-256, first beat u64, beats u64; the last used is last
...      zeros
end      CRC-32 (that of zlib) of everything before it, u32
=======  =======================================================================================

It takes a 64th of the memory, at most 1 KiB: one frame of the link, so that an interrupted host
leaves the old one or the new one.  It lists an image from the moment that all of it was written
until its space may be written to; what is between, nobody finds.
"""

import zlib
from dataclasses import dataclass
from itertools import pairwise
from struct import Struct

import numpy as np

from host.errors import CapacityError
from host.memory import Allocator

__all__ = ["Images", "Resident", "decode", "encode"]

MAGIC = b"LUTD"
VERSION = 1
HEADER = Struct("<4sHHIQ")
ENTRY = Struct("<16sQQ")
CRC = Struct("<I")

_SHARE = 64             # of the memory is the directory
_MOST_BYTES = 1024
_ALIGN_BYTES = 64       # of images
_SAMPLES = 8            # beats of an image that are read back before it is trusted


def encode(entries, device_digest, start, size):
    """The directory as `size` bytes.

    Parameters
    ----------
    entries : list of (digest, first beat, beats)
    device_digest : int
        The register DIGEST.
    start : int
        The directory's first beat; images end there at the latest.
    size : int
    """
    body = HEADER.pack(MAGIC, VERSION, len(entries), device_digest, start)
    body = (body + b"".join(ENTRY.pack(*entry) for entry in entries)).ljust(size - CRC.size, b"\0")
    return body + CRC.pack(zlib.crc32(body))


def decode(block, device_digest, start):
    """Entries of a directory; the inverse of :func:`encode`.

    Returns
    -------
    list of (digest, first beat, beats)
        Empty where `block` is damaged, of another device or version, or no directory at all.
    """
    body, crc = block[:-CRC.size], block[-CRC.size:]
    if CRC.unpack(crc)[0] != zlib.crc32(body):
        return []
    magic, version, count, *identity = HEADER.unpack_from(body)
    if (magic, version, identity) != (MAGIC, VERSION, [device_digest, start]):
        return []
    # A right CRC does not make another program's entries sane.
    if count > (len(body) - HEADER.size) // ENTRY.size:
        return []
    entries = [ENTRY.unpack_from(body, HEADER.size + i * ENTRY.size) for i in range(count)]
    spans = sorted((first, first + beats) for _, first, beats in entries)
    spans = [(0, 0), *spans, (start, start)]
    return entries if all(a[1] <= b[0] for a, b in pairwise(spans)) else []


@dataclass(eq=False)
class Resident:
    """An image in the device's memory.

    Attributes
    ----------
    digest : bytes
    address, beats : int
    users : int
        How many layers and chains use it.
    trusted : bool
        False while all that is known of it is a directory that another host wrote.
    """

    digest: bytes
    address: int
    beats: int
    users: int = 0
    trusted: bool = True


class Images:
    """The weight images in a device's memory.

    Equal images are there once.  On a device that keeps its memory an image stays when nothing
    uses it any more, until its space is needed; the least recently used goes first.

    Parameters
    ----------
    device : Device
        Identified; its memory may hold a directory unless ``transport.fresh``.

    Attributes
    ----------
    memory : Allocator
        Of everything but the directory.
    """

    def __init__(self, device):
        beat = device.engine.beat_bytes
        self._device = device
        self._images: dict[bytes, Resident] = {}        # the least recently used first
        size = min(_MOST_BYTES, device.memory_beats * beat // _SHARE)
        self._entries = 0 if device.transport.fresh else max(
            0, (size - HEADER.size - CRC.size) // ENTRY.size)
        self._beats = -(-size // beat) if self._entries else 0
        self._first = device.memory_beats - self._beats
        self.memory = Allocator(self._first, max(1, _ALIGN_BYTES // beat), self._evict)
        if self._entries:
            block = device.read_beats(self._first, self._beats).tobytes()
            for digest, first, beats in decode(block, device.digest, self._first):
                self.memory.claim(first, beats)
                self._images[digest] = Resident(digest, first, beats, trusted=False)

    def missing(self, image):
        """Bytes that :meth:`place` will send for an image: 0 where it is there."""
        return 0 if self._find(image) else len(image.data) * self._device.link_bytes

    def place(self, image, meter):
        """Have an image in the memory, until :meth:`release`.

        Parameters
        ----------
        image : host.pack.Image
        meter : host.progress.Meter

        Returns
        -------
        Resident

        Raises
        ------
        CapacityError
            The memory is too small, or too full of images in use.
        """
        resident = self._find(image) or self._send(image, meter)
        resident.users += 1
        self._touch(resident)
        return resident

    def release(self, resident):
        """Undo one :meth:`place`; sends nothing, so that finalisers may call it."""
        resident.users -= 1
        if self._entries:
            self._touch(resident)
        elif not resident.users:
            self._drop(resident)

    def forget(self):
        """Drop every image that nothing uses."""
        while self._evict():
            pass

    def _touch(self, resident):
        self._images[resident.digest] = self._images.pop(resident.digest)

    def _find(self, image):
        """The resident of an image or None."""
        resident = self._images.get(image.digest)
        if resident is not None and not resident.trusted:
            # Whoever overwrote it without knowing of directories did not overwrite just a little.
            resident.trusted = resident.beats == len(image.data) and all(
                np.array_equal(self._device.read_beats(resident.address + i, 1)[0], image.data[i])
                for i in np.linspace(0, resident.beats - 1, _SAMPLES).astype(int).tolist())
            if not resident.trusted:
                self._drop(resident)
                return None
        return resident

    def _send(self, image, meter):
        device, beats = self._device, len(image.data)
        size = device.engine.beat_bytes
        address = self.memory.take(beats)
        if address is None:
            raise CapacityError(
                f"the weights take {beats} beats of {size} bytes ({beats * size / 2**20:.2f} MiB) "
                f"of device memory; the largest free part has {self.memory.largest()} of "
                f"{self.memory.beats}: free a layer or use fewer bits")
        try:
            device.write_beats(address, image.data, image.side, meter)
        except BaseException:
            self.memory.give(address)
            raise
        # Known before it is listed: should the listing fail, its space must not be taken for free.
        resident = self._images[image.digest] = Resident(image.digest, address, beats)
        self._publish(self._images.values())
        return resident

    def _evict(self):
        """Drop the least recently used image that nothing uses; whether there was one."""
        for resident in list(self._images.values()):
            if not resident.users:
                self._drop(resident)
                return True
        return False

    def _drop(self, resident):
        # Out of the directory first, then free to be overwritten.
        self._publish(r for r in list(self._images.values()) if r is not resident)
        del self._images[resident.digest]
        self.memory.give(resident.address)

    def _publish(self, residents):
        """Write the directory; the last used images are in it if there are too many."""
        if not self._entries:
            return
        entries = [(r.digest, r.address, r.beats) for r in residents]
        device, size = self._device, self._device.engine.beat_bytes
        block = encode(entries[-self._entries:], device.digest, self._first, self._beats * size)
        device.write_beats(self._first, np.frombuffer(block, np.uint8).reshape(-1, size))
