"""Frames of external memory in gateware: where a beat lies, and its sideband out of packed ones."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hdl.layout import FRAME, frame_beats, frame_sides, side_slots

__all__ = ["FRAME_BITS", "Sidebands", "burst", "byte_address", "differences", "place_bits",
           "place_in_memory"]

FRAME_BITS = FRAME.bit_length() - 1


def burst(config):
    """Payload of an address channel: byte address, and transfers minus one."""
    return data.StructLayout({"address": config.axi_address_bits, "length": 8})


def place_bits(config):
    """Width of a beat's place in external memory, counted in beats."""
    frames = -(-config.memory_beats // FRAME)
    return (frames * frame_beats(config.engine) - 1).bit_length()


def place_in_memory(m, config, frame, position, *, move=1, name):
    """``frame * frame_beats + position`` two cycles later; all stands still without `move`."""
    frames, beats = place_bits(config), frame_beats(config.engine)
    base = Signal(frames, name=f"{name}_base", reset_less=True)
    rest = Signal.like(position, name=f"{name}_rest", reset_less=True)
    place = Signal(frames, name=name, reset_less=True)
    with m.If(move):        # a product with a constant would become a multiplier
        m.d.sync += [base.eq(sum((frame << i for i in range(beats.bit_length()) if beats >> i & 1),
                                 start=0)),
                     rest.eq(position), place.eq(base + rest)]
    return place


def byte_address(config, place):
    """AXI address of a place."""
    return (place << config.engine.beat_bytes.bit_length() - 1) + config.axi_base


def differences(a, b):
    """Four bits, all 0 if `a` equals `b`: half of a comparison, for the register in its middle."""
    return Cat((a ^ b)[i::4].any() for i in range(4))


class Sidebands(wiring.Component):
    """The sidebands of one frame, as they were read and as the array takes them.

    Word i of every sideband has a RAM as wide as a transfer, from which a multiplexer takes one.

    Parameters
    ----------
    config : DeviceConfig

    Members
    -------
    write : In(1), data : In(axi_bits)
        The next transfer of packed sidebands; the first of a frame follows the last.
    index : In(range(FRAME)), side : Out(side_bits)
        Sideband of a beat of the frame, two cycles later.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({"write": In(1), "data": In(config.axi_bits),
                          "index": In(FRAME_BITS), "side": Out(config.engine.side_bits)})

    def elaborate(self, platform):
        m = Module()
        engine, width = self.config.engine, self.config.axi_bits
        transfers = frame_sides(engine) * engine.code_bits // width
        count = Signal(range(transfers))
        with m.If(self.write):
            m.d.sync += count.eq(Mux(count == transfers - 1, 0, count + 1))
        chosen = Signal.like(self.index, reset_less=True)
        first, parts = 0, []
        for i, slot in enumerate(side_slots(engine)):
            bits = min(32, engine.side_bits - 32 * i)
            held = min(FRAME, width // (8 * slot))      # of a transfer
            rows, low = FRAME // held, held.bit_length() - 1
            row_bits = rows.bit_length() - 1
            m.submodules[f"words_{i}"] = ram = Memory(shape=held * bits, depth=rows, init=[])
            write, read = ram.write_port(), ram.read_port(domain="comb")
            m.d.comb += [
                write.addr.eq(count[:row_bits]),
                write.en.eq(self.write & (count[row_bits:] == first // rows)),
                write.data.eq(Cat(self.data[8 * slot * j:][:bits] for j in range(held))),
                read.addr.eq(self.index[low:]),
            ]
            row = Signal(len(read.data), name=f"row_{i}", reset_less=True)
            m.d.sync += row.eq(read.data)
            parts.append(row.word_select(chosen[:low], bits) if low else row)
            first += rows
        m.d.sync += [chosen.eq(self.index), self.side.eq(Cat(*parts))]
        return m
