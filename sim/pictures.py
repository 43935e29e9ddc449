"""Pictures that the measurements and the demo draw."""

from hdl.errors import BuildError, FileError

__all__ = ["PICTURES", "figure", "save"]

PICTURES = (".png", ".svg", ".pdf")
"""Kinds of files, by their names' ends."""


def figure(width, height):
    """An empty figure of so many inches; BuildError where there is no matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise BuildError("--plot draws with matplotlib: pip install 'lutra[dev]'") from None
    return Figure(figsize=(width, height))


def save(drawn, path):
    """Write a figure; FileError if it cannot be written."""
    try:
        drawn.savefig(path, bbox_inches="tight")
    except (OSError, ValueError) as error:      # the latter: no such kind of picture
        raise FileError(f"{path}: cannot be drawn: {error}") from error
