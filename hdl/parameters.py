"""Queue of re-quantisation parameters between their beat and their column's results."""

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.config import PARAMETER_BITS
from hdl.layout import PARAMETER_FIELDS
from hdl.parts import BlockRAM, delay

__all__ = ["ParameterQueue"]

_DEPTH = 64     # more column steps than the array can have under way


class ParameterQueue(wiring.Component):
    """First-in first-out memory for the parameters of column steps.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    restart : In(1)
        Forget everything; a new tile of results begins.
    write : In(1), data : In(PARAMETER_BITS per column)
    read : In(1)
        The next column step's first plane; without it the biases are zero.
    bias : Out(signed(column_bits) per column)
        :attr:`LATENCY` cycles after `read`, for one cycle.
    capture : In(1)
        The column's last plane is where its biases were added.
    multiplier, shift : Out(per column)
        Two cycles after `capture`.
    """

    LATENCY = BlockRAM.LATENCY + 1

    def __init__(self, config):
        self.config = config
        columns = config.columns
        super().__init__({
            "restart": In(1), "write": In(1),
            "data": In(data.ArrayLayout(PARAMETER_BITS, columns)),
            "read": In(1), "bias": Out(data.ArrayLayout(signed(config.column_bits), columns)),
            "capture": In(1),
            "multiplier": Out(data.ArrayLayout(PARAMETER_FIELDS["multiplier"][1], columns)),
            "shift": Out(data.ArrayLayout(PARAMETER_FIELDS["shift"][1], columns)),
        })

    def elaborate(self, platform):
        m = Module()
        tail = Signal(range(_DEPTH))
        head = Signal(range(_DEPTH))
        with m.If(self.restart):
            m.d.sync += [tail.eq(0), head.eq(0)]
        with m.Else():
            m.d.sync += [tail.eq(tail + self.write), head.eq(head + self.read)]
        m.submodules.ram = ram = BlockRAM(PARAMETER_BITS * self.config.columns, _DEPTH,
                                          family=self.config.family)
        m.d.comb += [ram.write_address.eq(tail), ram.write_data.eq(self.data),
                     ram.write_enable.eq(self.write), ram.read_address.eq(head)]
        arrived = delay(m, self.read, BlockRAM.LATENCY, name="arrived", resettable=True)
        for c in range(self.config.columns):
            word = ram.read_data[c * PARAMETER_BITS:(c + 1) * PARAMETER_BITS]

            def field(name, word=word):
                offset, width = PARAMETER_FIELDS[name]
                return word[offset:offset + width]

            with m.If(arrived):
                m.d.sync += self.bias[c].eq(field("bias"))
            with m.Else():
                m.d.sync += self.bias[c].eq(0)
            for name in ("multiplier", "shift"):
                # Held from the column's first plane to its last, then two cycles to its result.
                first = Signal(PARAMETER_FIELDS[name][1], name=f"{name}_{c}", reset_less=True)
                last = Signal.like(first, reset_less=True)
                with m.If(arrived):
                    m.d.sync += first.eq(field(name))
                with m.If(self.capture):
                    m.d.sync += last.eq(first)
                m.d.comb += getattr(self, name)[c].eq(delay(m, last, 1, name=name))
        return m
