"""The few parts worth a vendor primitive, each behind one interface with a form per family."""

from hdl.parts.adder import add, add_select
from hdl.parts.counter import count_down, count_up
from hdl.parts.delay import delay
from hdl.parts.multiplier import Multiplier, NarrowMultiplier, WideMultiplier
from hdl.parts.ram import BlockRAM
from hdl.parts.table import TableRAM
from hdl.parts.wordram import WordRAM

__all__ = ["BlockRAM", "Multiplier", "NarrowMultiplier", "TableRAM", "WideMultiplier", "WordRAM",
           "add", "add_select", "count_down", "count_up", "delay"]
