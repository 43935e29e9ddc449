"""The quantised formats, by name.

A new format is added to :data:`FORMATS`; quantiser, loader and command line find it there.
"""

from typing import NamedTuple

from host.formats.bitserial import BitSerial, BitSerialMatrix
from host.formats.kmeans import KMeans, KMeansMatrix
from host.formats.psumbook import Psumbook, PsumbookMatrix
from host.formats.sq import SQ, SQMatrix
from host.matrix import QuantizedMatrix

__all__ = ["FORMATS", "SQ", "BitSerial", "BitSerialMatrix", "Format", "KMeans", "KMeansMatrix",
           "Psumbook", "PsumbookMatrix", "SQMatrix"]


class Format(NamedTuple):
    """A format: its frozen configuration dataclass and its matrix class."""

    config: type
    matrix: type[QuantizedMatrix]


FORMATS = {
    "bitserial": Format(BitSerial, BitSerialMatrix),
    "psumbook": Format(Psumbook, PsumbookMatrix),
    "kmeans": Format(KMeans, KMeansMatrix),
    "sq": Format(SQ, SQMatrix),
}
