"""Adders whose look-up tables do a second job on the way.

A carry cell has a LUT of four inputs in front of its carry; a plain adder uses two of them.  These
forms use the rest: conditional inversion of both operands, or a choice between two operands.  Both
take a carry in, which costs one bit position and saves the cells that place-and-route would
otherwise spend to feed a carry chain from the fabric.
"""

from amaranth.hdl import Cat, Const, Instance, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Adder", "SelectAdder", "add", "add_select", "ccu2c_chain"]

_CCU2C_XOR = 0x6996  # A ^ B ^ C ^ D; LUT2 (C = D = 0) is A ^ B, the first operand


def _lut4(function):
    """INIT of a LUT4 from a function of its four inputs, A the least significant index bit."""
    return sum(function(*(i >> b & 1 for b in range(4))) << i for i in range(16))


_CCU2C_SELECT = _lut4(lambda a, b, c, d: a ^ (d if b else c))


def ccu2c_chain(m, bits, init):
    """Sum bits of an ECP5 carry chain, one ``CCU2C`` per two positions.

    `bits` holds (A, B, C, D) for each position.  CIN of the first and COUT of the last cell stay
    unconnected: position 0 must generate its carry by itself (A = C, B = D = 0).
    """
    if len(bits) % 2:
        bits = [*bits, (0, 0, 0, 0)]
    sums = []
    carry = None
    for i in range(0, len(bits), 2):
        total = Signal(2)
        ports = {}
        for half in (0, 1):
            for pin, bit in zip("ABCD", bits[i + half]):
                ports[f"i_{pin}{half}"] = bit if isinstance(bit, Value) else Const(bit, 1)
        if carry is not None:
            ports["i_CIN"] = carry
        if i + 2 < len(bits):
            carry = Signal()
            ports["o_COUT"] = carry
        m.submodules += Instance(
            "CCU2C", p_INIT0=Const(init, 16), p_INIT1=Const(init, 16),
            p_INJECT1_0="NO", p_INJECT1_1="NO",
            o_S0=total[0], o_S1=total[1], **ports)
        sums += [total[0], total[1]]
    return sums


def carry4_chain(m, select, data, carry_in):
    """Sum bits of a 7-series carry chain from the S and DI inputs of each position."""
    width = len(select)
    sums = []
    carry = None
    for i in range(0, width, 4):
        n = min(4, width - i)
        out = Signal(4)
        carries = Signal(4)
        first = {"i_CYINIT": carry_in, "i_CI": Const(0, 1)} if carry is None else \
                {"i_CYINIT": Const(0, 1), "i_CI": carry}
        m.submodules += Instance(
            "CARRY4", **first,
            i_S=Cat(*select[i:i + n], Const(0, 4 - n)), i_DI=Cat(*data[i:i + n], Const(0, 4 - n)),
            o_O=out, o_CO=carries)
        carry = carries[3]
        sums += [out[j] for j in range(n)]
    return sums


def _lut6_2(m, o6, inputs):
    """One 7-series LUT with two outputs; `o6` and O5 are functions of up to five inputs.

    O5 is always the first input xor the second: what a carry takes when it does not propagate.
    """
    low = sum((i & 1 ^ i >> 1 & 1) << i for i in range(32))
    high = sum(o6(*(i >> b & 1 for b in range(5))) << i for i in range(32))
    outputs = Signal(2)
    pins = {f"i_I{b}": (inputs[b] if b < len(inputs) else Const(0, 1)) for b in range(5)}
    m.submodules += Instance("LUT6_2", p_INIT=Const(high << 32 | low, 64), i_I5=Const(1, 1),
                             o_O6=outputs[1], o_O5=outputs[0], **pins)
    return outputs[1], outputs[0]


class Adder(wiring.Component):
    """``o = (a ^ na) + (b ^ nb) + cin``: a sum of two numbers, each inverted on request.

    Combinational.  Inversion is one's complement: the carry in, here or in a later adder, makes
    up for one of the two missing units.

    Parameters
    ----------
    width : int
        Width of both operands and of the sum; the caller extends the operands.
    family : str
        ``"portable"``, ``"ecp5"`` (CCU2C) or ``"xilinx7"`` (LUT6_2 and CARRY4).

    Members
    -------
    a, b : In(signed(width))
    na, nb, cin : In(1)
    o : Out(signed(width))
    """

    def __init__(self, width, family="portable"):
        self.width = width
        self.family = family
        super().__init__({
            "a": In(signed(width)), "b": In(signed(width)),
            "na": In(1), "nb": In(1), "cin": In(1), "o": Out(signed(width))})

    def elaborate(self, platform):
        m = Module()
        if self.family == "ecp5":
            bits = [(self.cin, 0, self.cin, 0)]
            bits += [(self.a[i], self.na, self.b[i], self.nb) for i in range(self.width)]
            sums = ccu2c_chain(m, bits, _CCU2C_XOR)[1:self.width + 1]
            m.d.comb += self.o.eq(Cat(*sums).as_signed())
        elif self.family == "xilinx7":
            luts = [_lut6_2(m, lambda a, na, b, nb, _: a ^ na ^ b ^ nb,
                            (self.a[i], self.na, self.b[i], self.nb)) for i in range(self.width)]
            sums = carry4_chain(m, [s for s, _ in luts], [d for _, d in luts], self.cin)
            m.d.comb += self.o.eq(Cat(*sums).as_signed())
        else:
            a = Signal(signed(self.width))
            b = Signal(signed(self.width))
            m.d.comb += [
                a.eq(Mux(self.na, ~self.a, self.a)),
                b.eq(Mux(self.nb, ~self.b, self.b)),
                self.o.eq(a + b + self.cin),
            ]
        return m


class SelectAdder(wiring.Component):
    """``o = a + (y if sel else x) + cin``: the choice of the second operand costs no LUT.

    Combinational.  Parameters as for :class:`Adder`.

    Members
    -------
    a, x, y : In(signed(width))
    sel, cin : In(1)
    o : Out(signed(width))
    """

    def __init__(self, width, family="portable"):
        self.width = width
        self.family = family
        super().__init__({
            "a": In(signed(width)), "x": In(signed(width)), "y": In(signed(width)),
            "sel": In(1), "cin": In(1), "o": Out(signed(width))})

    def elaborate(self, platform):
        m = Module()
        if self.family == "ecp5":
            # A = a, B = sel, C = x, D = y: with C = D = 0 the LUT gives A, as the carry needs.
            bits = [(self.cin, 0, self.cin, 0)]
            bits += [(self.a[i], self.sel, self.x[i], self.y[i]) for i in range(self.width)]
            sums = ccu2c_chain(m, bits, _CCU2C_SELECT)[1:self.width + 1]
            m.d.comb += self.o.eq(Cat(*sums).as_signed())
        elif self.family == "xilinx7":
            luts = [_lut6_2(m, lambda a, zero, sel, x, y: a ^ (y if sel else x),
                            (self.a[i], Const(0, 1), self.sel, self.x[i], self.y[i]))
                    for i in range(self.width)]
            sums = carry4_chain(m, [s for s, _ in luts], [d for _, d in luts], self.cin)
            m.d.comb += self.o.eq(Cat(*sums).as_signed())
        else:
            m.d.comb += self.o.eq(self.a + Mux(self.sel, self.y, self.x) + self.cin)
        return m


def add(m, a, b, *, width, family, na=0, nb=0, cin=0):
    """Instantiate an :class:`Adder` and return its sum."""
    m.submodules += (adder := Adder(width, family))
    m.d.comb += [adder.a.eq(a), adder.b.eq(b), adder.na.eq(na), adder.nb.eq(nb), adder.cin.eq(cin)]
    return adder.o


def add_select(m, a, x, y, sel, *, width, family, cin=0):
    """Instantiate a :class:`SelectAdder` and return its sum."""
    m.submodules += (adder := SelectAdder(width, family))
    m.d.comb += [adder.a.eq(a), adder.x.eq(x), adder.y.eq(y), adder.sel.eq(sel), adder.cin.eq(cin)]
    return adder.o
