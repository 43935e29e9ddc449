"""Building tables: what a format brings, its walk and its builders.

Walks are the control (:mod:`hdl.walk`), builders the data path, per row: activations from the
buffers in, one entry per builder and cycle out.  :class:`hdl.prepare.Prepare` starts the walk,
:class:`hdl.rows.Rows` holds the builders, and neither knows the format.
"""

from hdl.centroids import CentroidBuilder, CentroidWalk
from hdl.signed_sums import SignedSumBuilder, SignedSumWalk

__all__ = ["builder", "walker"]


def walker(config):
    """The walk of the engine's format."""
    return (SignedSumWalk if config.signed_sums else CentroidWalk)(config)


def builder(config):
    """The builders of the engine's format, for one row."""
    return (SignedSumBuilder if config.signed_sums else CentroidBuilder)(config)
