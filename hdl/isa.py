"""The instruction set, defined once: decoder, assembler, disassembler, compiler and docs read it.

An instruction is 128 bits in the low bits of one memory beat.  Bits that no field names must be
zero.  Counts are stored minus one.  Three stages execute in parallel and in program order within
each: *prepare* (TOPK, LOAD, BUILD), *gather* (LMMA) and *store* (STORE).

Four tokens couple them.  BUILD waits for a free table bank (two at the start) and hands over a
ready one per K tile; LMMA waits for a ready bank before each K tile and frees it after.  STORE
announces that it can take a tile of results; an LMMA whose last K tile finishes the accumulators
waits for that, and its results complete the STORE.  A program that ends with a bank that no LMMA
has used stops with an error, as one in which no stage can move.
"""

from dataclasses import dataclass
from enum import IntEnum

from hdl.errors import ArgumentError, ArgumentTypeError

__all__ = ["FIELDS", "INSTRUCTION_BITS", "STAGES", "Buffer", "Field", "Instruction", "Opcode",
           "Target", "assemble", "disassemble"]

INSTRUCTION_BITS = 128


class Opcode(IntEnum):
    """Operation codes.  0 is illegal, so that zeroed memory is not a program."""

    HALT = 1
    FENCE = 2
    LOAD = 3
    BUILD = 4
    LMMA = 5
    STORE = 6
    TOPK = 7


class Buffer(IntEnum):
    """What LOAD fills."""

    ACTIVATIONS = 0
    CENTROIDS = 1
    ACTIVATION_CODEBOOK = 2
    VALUE_TABLE = 3
    BYTE_TABLE = 4


class Target(IntEnum):
    """What STORE writes."""

    ACCUMULATORS = 0
    INT8 = 1


@dataclass(frozen=True)
class Field:
    """Bits ``offset .. offset + width - 1`` of an instruction; `bias` is subtracted when stored."""

    offset: int
    width: int
    doc: str
    bias: int = 0


_ADDRESS = Field(64, 40, "memory address, in beats")
STAGES = {
    Opcode.LOAD: "prepare", Opcode.BUILD: "prepare", Opcode.LMMA: "gather", Opcode.STORE: "store",
    Opcode.TOPK: "prepare",
}
FIELDS = {
    Opcode.HALT: {},
    Opcode.FENCE: {},
    Opcode.LOAD: {
        "buffer": Field(4, 3, "0: activations; 1: centroids, for the codebook buffer; of kmeans "
                              "2: the activation codebook; 3: what indexes of the layer before "
                              "mean; 4: what STORE makes of int8 results"),
        "indexes": Field(8, 1, "activations of kmeans: 0: int16, to be encoded; 1: indexes of the "
                               "layer before"),
        "pairs": Field(9, 1, "an index is the low halves of an element's bytes: low byte first"),
        "norm": Field(10, 1, "with indexes: what they mean is divided by its root mean square, "
                             "which TOPK has found"),
        "length": Field(16, 14, "with indexes: elements of a token", 1),
        "count": Field(32, 16, "beats to read", 1),
        "local": Field(48, 16, "first slot of the activation buffers to write, or word of four "
                               "centroids of the codebook buffer, or entry of the activation "
                               "codebook (16: the gain) or of a table"),
        "address": _ADDRESS,
    },
    Opcode.BUILD: {
        "unsigned": Field(4, 1, "activations are the unsigned low bytes of int16"),
        "codebooks": Field(8, 2, "codebooks: each K tile is built with one after the other", 1),
        "tiles": Field(32, 16, "K tiles to build tables for, one after the other", 1),
        "local": Field(48, 16, "first slot of the activation buffers to read, a multiple of a K "
                               "tile's slots"),
    },
    Opcode.LMMA: {
        "first": Field(4, 1, "the first K tile overwrites the accumulators"),
        "last": Field(5, 1, "the last K tile sends the accumulators to the store stage"),
        "zero": Field(6, 1, "each K tile starts with two beats that sum the activations "
                            "for the zero points; 1 for high and low weights of sq"),
        "high": Field(7, 1, "activations are the high bytes of int16: sums count 256 times"),
        "requant": Field(8, 1, "in the last K tile each column starts with a beat of "
                               "re-quantisation parameters"),
        "planes": Field(12, 3, "bit planes of a weight; of sq beats of a column, two and "
                             "`turns` at least, at most four if places are found from "
                             "sentinels", 1),
        "tiles": Field(16, 16, "K tiles", 1),
        "columns": Field(32, 16, "column steps of the N tile; where places are found from "
                                 "sentinels each K tile has one more", 1),
        "address": _ADDRESS,
    },
    Opcode.STORE: {
        "target": Field(4, 1, "0: 64-bit accumulators; 1: int8, laid out as LOAD reads it; in "
                              "kmeans what the table makes of it"),
        "relu": Field(6, 1, "negative int8 results become 0"),
        "high": Field(7, 1, "bytes of kmeans are the high ones of their elements, else the low"),
        "address": _ADDRESS,
    },
    Opcode.TOPK: {
        "static": Field(4, 1, "a unit of the codebook is four steps of int16 in every token; of "
                              "sq: the first k elements of a bank are high"),
        "norm": Field(5, 1, "a token of indexes: find the root mean square of what they mean; not "
                            "with static"),
        "pairs": Field(6, 1, "with norm: as of LOAD"),
        "low": Field(8, 2, "of sq: bits of low elements, 2..4", 1),
        "k": Field(16, 14, "outliers of a token on each side; of sq: high elements of a bank"),
        "length": Field(32, 14, "elements of a token; of sq it is a bank that is shown", 1),
        "beat": Field(46, 14, "of sq: where in the token the bank starts, in beats"),
        "address": _ADDRESS,
    },
}


@dataclass(frozen=True)
class Instruction:
    """One decoded instruction: an opcode and the values of its fields.

    Examples
    --------
    >>> str(Instruction.make("BUILD", tiles=4, local=8))
    'BUILD tiles=4 local=8'
    """

    opcode: Opcode
    values: tuple

    @classmethod
    def make(cls, opcode, **values):
        """Build an instruction by name; absent fields take their smallest value."""
        opcode = Opcode[opcode] if isinstance(opcode, str) else Opcode(opcode)
        fields = FIELDS[opcode]
        unknown = sorted(set(values) - set(fields))
        if unknown:
            raise ArgumentTypeError(f"{opcode.name} has no field {', '.join(unknown)}; "
                                    f"its fields are {', '.join(fields) or 'none'}")
        full = {}
        for name, field in fields.items():
            value = int(values.get(name, field.bias))
            low, high = field.bias, field.bias + 2**field.width - 1
            if not low <= value <= high:
                raise ArgumentError(f"{opcode.name} {name} must be in {low}..{high}, not {value}")
            full[name] = value
        return cls(opcode, tuple(full.items()))

    def __getattr__(self, name):
        for key, value in object.__getattribute__(self, "values"):
            if key == name:
                return value
        raise AttributeError(name)

    def encode(self):
        """The instruction as an integer of 128 bits."""
        word = int(self.opcode)
        for name, value in self.values:
            field = FIELDS[self.opcode][name]
            word |= (value - field.bias) << field.offset
        return word

    @classmethod
    def decode(cls, word):
        """The inverse of :meth:`encode`; a malformed word is an ArgumentError."""
        try:
            opcode = Opcode(word & 15)
        except ValueError:
            legal = ", ".join(f"{o} ({o.name})" for o in Opcode)
            raise ArgumentError(f"opcode must be one of {legal}, not {word & 15}") from None
        values = {name: (word >> f.offset & (2**f.width - 1)) + f.bias
                  for name, f in FIELDS[opcode].items()}
        instruction = cls.make(opcode, **values)
        if instruction.encode() != word:
            raise ArgumentError(f"unused bits of {opcode.name} must be zero, not "
                                f"{word ^ instruction.encode():#x}")
        return instruction

    def __str__(self):
        fields = FIELDS[self.opcode]
        shown = [f"{n}={v}" for n, v in self.values if v != 0 or fields[n].bias]
        return " ".join([self.opcode.name, *shown])


def assemble(program, beat_bytes):
    """Instructions as bytes: one per beat of `beat_bytes`, little-endian."""
    return b"".join(i.encode().to_bytes(beat_bytes, "little") for i in program)


def disassemble(data, beat_bytes):
    """The inverse of :func:`assemble`."""
    return [Instruction.decode(int.from_bytes(data[i:i + beat_bytes], "little"))
            for i in range(0, len(data), beat_bytes)]
