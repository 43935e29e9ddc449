"""Progress of long work, told to a callable: ``progress(done, total)``."""

from host.errors import ArgumentTypeError

__all__ = ["Meter", "check_progress"]

_PIECE = 1 << 12        # bytes between reports: 0.04 s on a UART at 1 Mbaud, 0.4 s at 115200


def check_progress(progress):
    """`progress`, or a callable that does nothing for None.

    Raises
    ------
    ArgumentTypeError
        It is neither callable nor None.
    """
    if progress is not None and not callable(progress):
        raise ArgumentTypeError(f"progress must be callable or None, got {progress!r}")
    return progress or (lambda done, total: None)


class Meter:
    """Several transfers as one progress, in bytes.

    Parameters
    ----------
    progress : callable or None
        Called as ``progress(done, total)``; `total` grows when more turns out to be needed.
    """

    def __init__(self, progress=None):
        self._report = check_progress(progress)
        self._whole = progress is None
        self._done = self._total = 0

    def expect(self, nbytes):
        """Count `nbytes` bytes that will be transferred."""
        self._total += nbytes

    def pieces(self, nbytes):
        """Slices of a transfer of `nbytes` bytes; asking for the next reports the last as done."""
        step = max(1, nbytes) if self._whole else _PIECE
        for start in range(0, nbytes, step):
            stop = min(start + step, nbytes)
            yield slice(start, stop)
            self._done += stop - start
            self._report(self._done, max(self._done, self._total))
