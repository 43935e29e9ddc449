"""Pipeline registers for signals that travel beside the data."""

from amaranth.hdl import Module, Signal

__all__ = ["delay"]


def delay(m: Module, value, cycles: int, *, name="delayed", resettable=False):
    """`value` as it was `cycles` cycles ago.

    Data needs no reset; strobes do (`resettable`), or a soft reset would let a stale one through.
    """
    for i in range(cycles):
        register = Signal.like(value, name=f"{name}_{i + 1}", reset_less=not resettable)
        m.d.sync += register.eq(value)
        value = register
    return value
