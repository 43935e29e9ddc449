"""The exception tree as the host sees it; see :mod:`hdl.errors`."""

from hdl.errors import *  # noqa: F403
from hdl.errors import __all__ as __all__
