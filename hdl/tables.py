"""The tables of one output column: a RAM per lane that holds the chunk's entries of some rows.

Rows share the codes, and so address and write enable of their tables: one RAM as wide as all rows'
entries serves them, without the bits that four-bit RAM cells would waste in each.
"""

from amaranth.hdl import Cat, Module, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.config import BLOCK
from hdl.layout import code_slice, lane_positions
from hdl.parts import BlockRAM, TableRAM, delay

__all__ = ["Tables"]


class Tables(wiring.Component):
    """A table per lane, both banks in one RAM; one read and one write per cycle.

    Entries leave :attr:`latency` cycles after their codes: one, or two where tables are in block
    RAM.  No back-pressure.

    Parameters
    ----------
    config : EngineConfig
    rows : int
        Of this part of the array.

    Members
    -------
    codes : In(column_code_bits), bank : In(1)
        The stream register, and the bank to read.
    entries : In(per row one entry per builder), group : In(lane groups), entry, write_bank : In
        What to write (see :func:`hdl.walk.walk`).
    values : Out(per row one entry per lane)
    signs : Out(lanes)
        Set where the entry counts negative: the other half of a half table.
    """

    def __init__(self, config, rows):
        self.config = config
        self.rows = rows
        self.positions = lane_positions(config)
        self.latency = BlockRAM.LATENCY if config.block_ram_blocks else 1
        entry = signed(config.entry_bits(max(config.chunks)))
        lanes = len(self.positions)
        super().__init__({
            "codes": In(config.column_code_bits), "bank": In(1),
            "entries": In(data.ArrayLayout(data.ArrayLayout(entry, config.builders), rows)),
            "group": In(len(config.lane_groups)),
            "entry": In(config.index_bits(max(config.chunks))), "write_bank": In(1),
            "values": Out(data.ArrayLayout(data.ArrayLayout(entry, lanes), rows)),
            "signs": Out(lanes),
        })

    def elaborate(self, platform):
        m = Module()
        config, rows = self.config, range(self.rows)
        half = config.format == "bitserial"     # code bit 0 is the sign
        distributed = sum(BLOCK // v for v in config.chunks[:config.blocks
                                                             - config.block_ram_blocks])
        for i, positions in enumerate(self.positions):
            v = len(positions)
            width, index = config.entry_bits(v), config.index_bits(v)
            table = TableRAM(width * self.rows, 2 * 2**index, family=config.family,
                             store="distributed" if i < distributed else "block")
            m.submodules[f"table_{i}"] = table
            group, builder = divmod(i, config.builders)
            wait = self.latency - table.latency
            code = delay(m, self.codes[code_slice(config, i)], wait, name=f"code_{i}")
            bank = delay(m, self.bank, wait, name=f"bank_{i}")
            m.d.comb += [
                table.write_address.eq(Cat(self.entry[:index], self.write_bank)),
                table.write_data.eq(Cat(self.entries[r][builder][:width] for r in rows)),
                table.write_enable.eq(self.group[group]),
                table.read_address.eq(Cat(code[half:], bank)),
                *(self.values[r][i].eq(table.read_data[r * width:(r + 1) * width].as_signed())
                  for r in rows),
            ]
            if half:
                m.d.comb += self.signs[i].eq(delay(m, code[0], table.latency, name=f"sign_{i}"))
        return m
