"""Opening devices by URL."""

import os

from host.device import Device
from host.errors import ArgumentError, ArgumentTypeError
from host.progress import check_progress

__all__ = ["open"]

DEFAULT_URL = "sim:"


def open(url=None, *, progress=None):
    """Open a device.

    Parameters
    ----------
    url : str or None
        ``sim:`` (simulated; ``sim:?memory=ddr3&rows=8``) or ``uart:PORT?baud=N``.  None takes
        ``$LUTRA_DEVICE``, else ``sim:``.
    progress : callable or None
        Called with a line of text when something slow starts.

    Returns
    -------
    Device
        A context manager.

    Raises
    ------
    ArgumentError
        The URL names no device that there is.
    DeviceError
        The device does not answer or is of another version.
    """
    if url is None:
        url = os.environ.get("LUTRA_DEVICE") or DEFAULT_URL
    if not isinstance(url, str):
        raise ArgumentTypeError(f"a device URL must be a string, not {url!r}")
    check_progress(progress)
    scheme, colon, _ = url.partition(":")
    if scheme == "sim" and colon:
        from sim.device import open_sim
        return Device(open_sim(url, progress=progress))
    if scheme == "uart" and colon:
        from host.link.serial import open_uart
        return Device(open_uart(url))
    raise ArgumentError("a device URL must start with sim: or uart:, not "
                        f"{url!r}; for example 'sim:?memory=ddr3' or 'uart:/dev/ttyUSB0'")
