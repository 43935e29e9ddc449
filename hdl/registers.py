"""The register map and the address spaces of a device, declared once for gateware, host and docs.

Every address is a byte address of 64 bits; a word has 32 bits.  Bits 63..62 choose the space.
"""

from dataclasses import dataclass
from enum import IntEnum

__all__ = ["COUNTERS", "COUNTER_BITS", "COUNTER_TAPS", "REGISTERS", "Error", "Register", "Space",
           "Status", "base_of"]

MAGIC = 0x4C555452  # "LUTR"


class Space(IntEnum):
    """Bits 63..62 of an address."""

    MEMORY = 0
    SIDEBAND = 1
    REGISTERS = 2


def base_of(space):
    """Byte address at which a space starts."""
    return int(space) << 62


class Error(IntEnum):
    """Code in the ERROR register: why a program stopped."""

    NONE = 0
    BAD_OPCODE = 1
    BAD_FIELD = 2
    BAD_ADDRESS = 3
    DEADLOCK = 4


class Status(IntEnum):
    """Value of the STATUS register."""

    IDLE = 0
    RUNNING = 1
    DONE = 2
    FAILED = 3


@dataclass(frozen=True)
class Register:
    """One 32-bit register (or `count` of them in a row)."""

    name: str
    offset: int
    access: str
    doc: str
    count: int = 1


COUNTERS = (
    "cycles", "prepare_busy", "prepare_wait_memory", "prepare_wait_table",
    "gather_busy", "gather_wait_table", "gather_wait_store", "gather_wait_memory",
    "store_busy", "beats_read", "beats_written", "instructions",
)
"""Names of the cycle counters, in register order."""

COUNTER_BITS = 36
COUNTER_TAPS = (0, 11)
"""A counter register holds 36 consecutive terms of s[n+36] = s[n+11] + s[n] over GF(2), lowest
first; it starts as 1 and moves by one term per event.  x**36 + x**11 + 1 is primitive: a counter
wraps after 2**36 - 1 events.  Two registers show one counter, low word first."""

REGISTERS = {r.name: r for r in (
    Register("MAGIC", 0x00, "r", "0x4C555452, the letters LUTR"),
    Register("VERSIONS", 0x04, "r", "[7:0] instruction set version, [15:8] register map version"),
    Register("DIGEST", 0x08, "r", "first 32 bits of the build digest"),
    Register("FORMAT", 0x0C, "r", "[3:0] format (0 bitserial, 1 psumbook, 2 kmeans, 3 sq), [7:4] "
                                  "family (0 portable, 1 ecp5, 2 xilinx7), [8] int16 activations, "
                                  "[9] zero points, [10] epilogue, [11] counters, [15:12] v, "
                                  "[19:16] b; sq: [25:20] high lanes, [28:26] turns, "
                                  "[29] sentinels"),
    Register("ARRAY", 0x10, "r", "[8:0] lanes, [13:9] rows, [16:14] columns, [23:17] scale points, "
                                 "[28:24] builders"),
    Register("BUFFERS", 0x14, "r", "[4:0] log2 of the accumulators' columns, [9:5] log2 of the "
                                   "activation buffer's bytes, [16:10] block-RAM blocks, "
                                   "[22:17] address bits"),
    Register("MEMORY", 0x18, "r", "size of the memory, in beats"),
    Register("CLOCK", 0x1C, "r", "core clock in Hz"),
    Register("CONTROL", 0x20, "w", "[0] start the program at PROGRAM, [1] soft reset"),
    Register("STATUS", 0x24, "r", "0 idle, 1 running, 2 done, 3 failed"),
    Register("ERROR", 0x28, "r", "why the last program failed (see Error)"),
    Register("PROGRAM", 0x2C, "rw", "address of the first instruction, in beats"),
    Register("COUNTERS", 0x40, "r", "cycle counters of the last program, in the order "
                                   "of COUNTERS, two words each: states of a shift register "
                                   "(see COUNTER_TAPS); 0 while a program runs",
             2 * len(COUNTERS)),
)}
