"""Counters that can be loaded, at one LUT per bit: the choice sits in front of the carry chain."""

from amaranth.hdl import Module, Signal, signed

from hdl.parts.adder import add_select

__all__ = ["count_down", "count_up"]


def count_up(m: Module, register, *, load, value, step, family):
    """Make `register` take `value` on `load`, else add 1 on `step`."""
    following = add_select(m, 0, register, value, load, cin=~load, width=len(register),
                           family=family)
    with m.If(load | step):
        m.d.sync += register.eq(following)


def count_down(m: Module, width, *, load, value, step, family, name):
    """A counter of `value` + 1 steps; returns a signal that marks the last one.

    Load takes precedence over step.  The mark is the sign of the register: it costs nothing.
    """
    register = Signal(signed(width + 1), init=-1, name=name)
    following = add_select(m, -1, register, value, load, width=width + 1, family=family)
    with m.If(load | step):
        m.d.sync += register.eq(following)
    return register[-1]
