"""Building tables: what a format brings, its walk and its builders.

Walks are the control (:mod:`hdl.walk`), builders the data path, per row: bytes of the activation
buffers in, one entry per builder and cycle out.  :class:`hdl.prepare.Prepare` starts the walk,
:class:`hdl.rows.Rows` holds the builders, and neither knows the format.
"""

from hdl.centroids import CentroidBuilder, CentroidWalk
from hdl.signed_sums import SignedSumBuilder, SignedSumWalk

__all__ = ["builder", "walker"]


def walker(config):
    """The walk of the engine's format."""
    return {"bitserial": SignedSumWalk, "psumbook": CentroidWalk}[config.format](config)


def builder(config):
    """The builders of the engine's format, for one row."""
    return {"bitserial": SignedSumBuilder, "psumbook": CentroidBuilder}[config.format](config)
