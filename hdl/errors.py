"""The exception tree of the project.

It lives beside the shared definitions because gateware and host raise from the same tree and the
gateware never imports the host.  :mod:`host` re-exports every name.
"""

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "BuildError",
    "CapacityError",
    "ConfigError",
    "DeviceError",
    "FileError",
    "LinkError",
    "LinkTimeout",
    "LutraError",
    "ProgramError",
]


class LutraError(Exception):
    """Base of every exception that Lutra raises on purpose."""


class ArgumentError(LutraError, ValueError):
    """A value is outside what is legal; the message names the rule, the value and the legal set."""


class ArgumentTypeError(LutraError, TypeError):
    """An argument has the wrong kind or an unknown name."""


class ConfigError(ArgumentError):
    """An engine or format configuration breaks a rule."""


class FileError(ArgumentError):
    """A file is not what it should be: truncated, of another kind or of another version."""


class CapacityError(ArgumentError):
    """The device's memory, buffers or accumulators are too small for the request."""


class BuildError(LutraError, RuntimeError):
    """Elaboration, simulation build, synthesis or place-and-route failed."""


class DeviceError(LutraError, RuntimeError):
    """The device refused, failed, or is not what the caller needs."""


class ProgramError(DeviceError):
    """The device stopped a program with an error code (see ``hdl.registers.Error``)."""


class LinkError(DeviceError):
    """The link to the device broke."""


class LinkTimeout(LinkError, TimeoutError):
    """The device did not answer within the stated time."""
