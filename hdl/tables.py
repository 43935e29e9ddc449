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

__all__ = ["Tables", "complemented", "sections", "table_latency"]

_SECTION = 16   # tables that are written from one register


def table_latency(config):
    """Cycles from codes to entries: one, two with tables in block RAM, four with all of them.

    Many block RAMs cannot all be near the tree: two registers take their entries there.
    """
    if not config.block_ram_blocks:
        return 1
    return BlockRAM.LATENCY + 2 * (config.block_ram_blocks == config.blocks)


def sections(config):
    """Parts of the tables that are written one after another, each a cycle later than the last.

    One, or one for each 16 tables where all are in block RAM: those are all over the chip, and one
    register cannot reach them in time.
    """
    tables = sum(BLOCK // v for v in config.chunks)
    return max(1, tables // _SECTION) if config.block_ram_blocks == config.blocks else 1


def complemented(section):
    """Whether the banks of a section of tables are the other way round: for its bank register."""
    return section >= 3


class Tables(wiring.Component):
    """A table per lane, both banks in one RAM; one read and one write per cycle.

    Entries leave :func:`table_latency` cycles after their codes.  No back-pressure.

    Parameters
    ----------
    config : EngineConfig
    rows : int
        Of this part of the array.

    Members
    -------
    codes : In(column_code_bits), banks : In(sections)
        The stream register, and the bank to read, for each section of tables, or its complement
        (see :func:`complemented`).
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
        entry = signed(config.entry_bits(max(config.chunks)))
        lanes = len(self.positions)
        super().__init__({
            "codes": In(config.column_code_bits), "banks": In(sections(config)),
            "entries": In(data.ArrayLayout(data.ArrayLayout(entry, config.builders), rows)),
            "group": In(len(config.lane_groups)),
            "entry": In(config.index_bits(max(config.chunks))), "write_bank": In(1),
            "values": Out(data.ArrayLayout(data.ArrayLayout(entry, lanes), rows)),
            "signs": Out(lanes),
        })

    def elaborate(self, platform):
        m = Module()
        config, rows = self.config, range(self.rows)
        latency = table_latency(config)
        half = config.signed_sums     # code bit 0 is the sign
        distributed = sum(BLOCK // v for v in config.chunks[:config.blocks
                                                             - config.block_ram_blocks])
        # What to write, for one section of tables after another.
        writes = [{name: getattr(self, name)
                   for name in ("group", "entry", "write_bank", "entries")}]
        for s in range(1, sections(config)):
            last = dict(writes[-1])
            if complemented(s) != complemented(s - 1):      # before the register: no LUT behind it
                last["write_bank"] = ~last["write_bank"]
            writes.append({name: delay(m, value, 1, name=f"{name}_{s}", resettable=name == "group")
                           for name, value in last.items()})
        for i, positions in enumerate(self.positions):
            section = i * len(writes) // len(self.positions)
            write = writes[section]
            v = len(positions)
            width, index = config.entry_bits(v), config.index_bits(v)
            store = "distributed" if i < distributed else "block"
            table = TableRAM(width * self.rows, 2 * 2**index, family=config.family, store=store)
            m.submodules[f"table_{i}"] = table
            group, builder = divmod(i, config.builders)
            # What comes early waits in front of LUT RAM, where it is short, and behind block RAM.
            wait = latency - table.latency
            before, after = (wait, 0) if store == "distributed" else (0, wait)
            code = delay(m, self.codes[code_slice(config, i)], before, name=f"code_{i}")
            bank = delay(m, self.banks[section], before, name=f"bank_{i}")
            entries = delay(m, table.read_data, after, name=f"entries_{i}")
            m.d.comb += [
                table.write_address.eq(Cat(write["entry"][:index], write["write_bank"])),
                table.write_data.eq(Cat(write["entries"][r][builder][:width] for r in rows)),
                table.write_enable.eq(write["group"][group]),
                table.read_address.eq(Cat(code[half:], bank)),
                *(self.values[r][i].eq(entries[r * width:(r + 1) * width].as_signed())
                  for r in rows),
            ]
            if half:
                m.d.comb += self.signs[i].eq(delay(m, code[0], latency - before,
                                                   name=f"sign_{i}"))
        return m
