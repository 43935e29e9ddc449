"""What an engine is: the parameters fixed when gateware is generated, and what follows from them.

Light by design (no Amaranth, no NumPy): the host reads a device's configuration with it.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from hdl.bank_units import BANK_VALUE_MAX
from hdl.errors import ConfigError
from hdl.token_units import VALUE_MAX

__all__ = ["BLOCK", "FAMILIES", "FORMATS", "DeviceConfig", "EngineConfig", "bits_for",
           "engine_of"]

BLOCK = 32
"""Weights in a block: no chunk and no scale group crosses a multiple of it."""

FAMILIES = ("portable", "ecp5", "xilinx7")
FORMATS = ("bitserial", "psumbook", "kmeans", "sq")
MAX_DIM = 16384
MAX_PLANES = 8
MAX_CODEBOOKS = 4
ACTIVATION_MAX = CENTROID_MAX = 127
MIN_COLUMNS = 8
"""Columns of the shortest pass: the accumulators' read-modify-write depth, in the worst case of one
plane a column.  The compiler pads N up to it and the decoder refuses less."""
CHAINED_CELLS = 4
"""Cells that take their codes and control from one register; the next ones a cycle later."""
_BUFFER_WORDS = 512
"""Words of an activation buffer that fills a block RAM."""
TOKEN_BEAT = 8
"""Activations of a beat of a ``kmeans`` token, int16."""
SCALE_BITS = 16
LOW_MAX = 8
"""Largest magnitude of a low weight of ``sq``, that of four bits."""
HIGH_MAX, HIGH_BITS = 127, 8
"""Largest magnitude of a high weight of ``sq``, an int8, and its bits."""
EXPONENT_BITS, LOW_SHIFT = 3, 4
"""A high step of ``sq`` is ``2**(exponent - LOW_SHIFT)`` low steps."""
TOKEN_SIDE = {"activation_bits": 16, "zero_points": False, "high_lanes": 0, "sentinels": False,
              "turns": 1}
"""What an engine of ``sq`` has for two precisions of activations instead of weights."""
SENTINEL_BEATS = 4
"""Beats that a column has at most where places are found from sentinels."""
PARAMETER_BITS = 72
"""Re-quantisation parameters of an output column."""
ISA_VERSION = 1
REGISTERS_VERSION = 1


def bits_for(bound):
    """Width in bits of a two's-complement number that holds every integer in [-bound, bound]."""
    return int(bound).bit_length() + 1


def _power_of_two(n):
    return n >= 1 and n & (n - 1) == 0


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Parameters of one engine; validates on construction and derives every width.

    Parameters
    ----------
    format : str
        Weight format: ``"bitserial"``, ``"psumbook"``, ``"kmeans"`` or ``"sq"``.
    family : str
        Form of the parts: ``"portable"`` (simulation), ``"ecp5"``, ``"xilinx7"``.
    v, b : int
        Weights in a chunk and bits of its code.  ``psumbook``: 2, 4 or 8 weights, codebooks of
        2**b centroids, b = 4..8.  ``bitserial``, ``sq``: 4 and 4, for chunks are of one-bit
        weights.
        ``kmeans``: 2 indexes of 4 or 3 bits, or 4 of 2: b is 8 or 6.
    lanes : int
        Chunks gathered per cell and cycle, so that a beat covers ``v * lanes`` weights along K:
        16, 32, 64, 128 or 256.
    rows : int
        Tokens that share the codes (the M of M2N64K4): 1, 2, 4, 8 or 16.
    columns : int
        Output columns gathered per cycle; replicates tables, trees and accumulators: 1, 2 or 4.
    scale_points : int
        Group sums per cell and cycle.  A scale group of ``4 * lanes / scale_points`` weights or
        more runs at full rate; smaller ones at a reduced rate.  ``sq``: one for each `bank`,
        whatever is given.
    builders : int
        Table builders per row; each fills one lane at a time: 2, 4 or 8, for ``psumbook`` and
        ``kmeans`` (`v` multipliers each) also 16; for ``kmeans`` at least 4, for ``sq`` at most.
    block_ram_blocks : int
        How many of the ``v * lanes / 32`` blocks of 32 weights keep their tables in block RAM;
        ``bitserial`` and ``sq`` make them chunks of v = 8 there.
    activation_bits : int
        8, or 16 for engines that also take int16 activations as two byte passes (``bitserial``)
        or take nothing else (``kmeans``; ``sq`` with two precisions of activations).
    zero_points : bool
        Whether asymmetric weights are supported (``bitserial``); those of ``sq`` are.
    bank : int
        ``sq``: weights or activations along K of which a fixed number are high: 32, 64 or 128;
        else 0.
    high_lanes : int
        ``sq``: high weights of a bank that are multiplied per cell and cycle: 1, 2, 4, 8, 16 or
        32; else, and with int16 activations, 0.
    sentinels : bool
        ``sq``: whether the places of high weights are found from the sentinels among the low
        ones, for one or two `high_lanes`; else each comes with its place, a longer stream.
    turns : int
        ``sq``: banks that take turns at a scaler, 1, 2 or 4: a column takes at least as many
        beats.  At most the banks of a beat, whatever is given; else 1.
    scaler_dsps : int
        DSPs that multiply a group sum of more than 18 bits by its scale: 2, or 1 where adders
        take the high bits (groups of up to 25 bits).
    n_tile : int
        Output columns that the accumulators of one cell hold (a power of two).
    activation_bytes : int
        Activation buffer per row, in bytes (a power of two); ``kmeans`` keeps two for each, and
        a whole token.
    address_bits : int
        Width of a beat address.
    epilogue : bool
        Whether the engine can re-quantise to int8 (chains of layers on the device); ``kmeans``:
        and from there to indexes.
    counters : bool
        Whether the stages' cycle counters are built.
    """

    format: str = "bitserial"
    family: str = "portable"
    v: int = 4
    b: int = 4
    lanes: int = 64
    rows: int = 1
    columns: int = 1
    scale_points: int = 2
    builders: int = 4
    block_ram_blocks: int = 0
    activation_bits: int = 16
    zero_points: bool = True
    bank: int = 0
    high_lanes: int = 0
    sentinels: bool = False
    turns: int = 1
    scaler_dsps: int = 2
    n_tile: int = 1024
    activation_bytes: int = 16384
    address_bits: int = 24
    epilogue: bool = True
    counters: bool = True

    def __post_init__(self):
        def legal(name, values, why=""):
            value = getattr(self, name)
            if type(value) is not type(values[0]) or value not in values:
                listed = ", ".join(map(repr, values))
                raise ConfigError(f"{name} must be one of {listed}, not {value!r}{why}")

        legal("format", FORMATS)
        legal("family", FAMILIES)
        of_format = {
            "bitserial": dict(v=(4,), b=(4,), builders=(2, 4, 8), activation_bits=(8, 16),
                              zero_points=(False, True)),
            "psumbook": dict(v=(2, 4, 8), b=(4, 5, 6, 7, 8), builders=(2, 4, 8, 16),
                             activation_bits=(8,), zero_points=(False,)),
            "kmeans": dict(v=(2, 4), b=(6, 8), builders=(4, 8, 16), activation_bits=(16,),
                           zero_points=(False,)),
            "sq": dict(v=(4,), b=(4,), activation_bits=(8, 16), bank=(32, 64, 128)) | (
                dict(builders=(2, 4, 8), zero_points=(False,)) if self.activation_bits == 16 else
                dict(builders=(2, 4), zero_points=(True,), high_lanes=(1, 2, 4, 8, 16, 32),
                     sentinels=(False, True), turns=(1, 2, 4)))}[self.format]
        for name in ("v", "b"):
            legal(name, of_format[name])
        legal("lanes", (16, 32, 64, 128, 256))
        legal("rows", (1, 2, 4, 8, 16))
        legal("columns", (1, 2, 4))
        for name, none in (("bank", 0), ("high_lanes", 0), ("sentinels", False), ("turns", 1)):
            legal(name, of_format.get(name, (none,)),
                  "" if self.format == "sq" else ": it is for format='sq'")
        if self.sentinels and self.high_lanes > 2:
            raise ConfigError("high_lanes must be 1 or 2 where places are found from sentinels, "
                              f"not {self.high_lanes}; use sentinels=False")
        if self.bank:
            if self.bank > self.tile_k:
                raise ConfigError(f"bank must be at most {self.tile_k}, the weights of "
                                  f"{self.lanes} lanes, not {self.bank}")
            object.__setattr__(self, "scale_points", self.tile_k // self.bank)
            object.__setattr__(self, "turns", min(self.turns, self.scale_points))
        legal("scale_points", (1,) if not self.scaled else tuple(
            2**i for i in range(self.blocks.bit_length())))
        for name in ("builders", "activation_bits", "zero_points"):
            legal(name, of_format[name])
        legal("block_ram_blocks", tuple(range(self.blocks + 1)))
        legal("n_tile", tuple(2**i for i in range(4, 15)))
        legal("activation_bytes", tuple(2**i for i in range(9, 17)))
        legal("epilogue", (False, True))
        legal("counters", (False, True))
        if (self.format, self.v, self.b) == ("kmeans", 4, 6):
            raise ConfigError("b must be v times an index of 2, 3 or 4 bits, so 8 for v=4, not 6")
        legal("scaler_dsps", (1, 2))
        if self.scaler_dsps == 1 and not 18 < self.group_bits <= 25:
            raise ConfigError("scaler_dsps=1 is for group sums of 19 to 25 bits, not of "
                              f"{self.group_bits}; use scaler_dsps=2 or other scale_points")
        if not isinstance(self.address_bits, int) or not 8 <= self.address_bits <= 32:
            raise ConfigError("address_bits must be an integer in 8..32, not "
                              f"{self.address_bits!r}")
        if self.code_bits < 128:
            raise ConfigError(
                "a beat must hold an instruction of 128 bits: 4 * lanes * columns must be at "
                f"least 128, not {self.code_bits}; use lanes=32 or columns=2")
        if self.epilogue and self.column_code_bits < PARAMETER_BITS:
            raise ConfigError(f"an epilogue needs {PARAMETER_BITS} bits of codes per column for "
                              f"its parameters: {self.b} * lanes must be at least as much, not "
                              f"{self.column_code_bits}; use more lanes or epilogue=False")
        if self.encodes and self.bank and self.block_ram_blocks:
            raise ConfigError("block_ram_blocks must be 0 where tokens are encoded in banks, which "
                              f"lie in the order of K, not {self.block_ram_blocks}")
        if self.signed_sums and self.builders == 8 and self.block_ram_blocks % 2:
            raise ConfigError("block_ram_blocks must be even with 8 builders (a block has 4 lanes "
                              f"of v = 8), not {self.block_ram_blocks}")
        most = min(self.tile_k // 4, self.lanes)
        if self.builders > most:
            raise ConfigError(f"builders must be at most {most} for {self.lanes} lanes, not "
                              f"{self.builders}")

    # Shape of the array

    @property
    def blocks(self):
        """Blocks of 32 weights per cell and cycle."""
        return self.tile_k // BLOCK

    @property
    def chunks(self):
        """Chunk length of every block, in K order: block-RAM blocks come last."""
        distributed = self.blocks - self.block_ram_blocks
        in_block_ram = 8 if self.signed_sums else self.v
        return (self.v,) * distributed + (in_block_ram,) * self.block_ram_blocks

    @property
    def signed_sums(self):
        """bool: whether tables hold signed sums of activations; else products with centroids."""
        return self.format in ("bitserial", "sq")

    @property
    def tile_k(self):
        """Weights along K that one beat covers: the K tile."""
        return self.v * self.lanes

    @property
    def group_width(self):
        """Weights per scale point: the smallest group that runs at full rate."""
        return self.tile_k // self.scale_points

    @property
    def cells(self):
        """Copies of tables, tree and accumulator: rows * columns."""
        return self.rows * self.columns

    @property
    def row_groups(self):
        """Rows that share registers, as ranges: CHAINED_CELLS cells, or one row of more columns."""
        most = max(1, CHAINED_CELLS // self.columns)
        return [range(self.rows)[r:r + most] for r in range(0, self.rows, most)]

    # Beats

    @property
    def code_bits(self):
        """Bits of a beat without its sideband; also the data width of the memory port.

        A power of two: codes, those of a column first, and padding.  A beat of centroids holds
        four.
        """
        codes = self.column_code_bits * self.columns
        return 1 << (max(codes, self.centroid_bits) - 1).bit_length()

    @property
    def centroid_bits(self):
        """Bits of a word of the codebook buffer: four centroids, byte t of each before t + 1."""
        return 0 if self.signed_sums else 4 * 8 * self.v

    @property
    def codebooks_max(self):
        """Most codebooks of a matrix, which the codebook buffer holds."""
        return {"psumbook": MAX_CODEBOOKS, "kmeans": 1}.get(self.format, 0)

    @property
    def codebook_word_bits(self):
        """Width of the address of a word in the codebook buffer."""
        return (self.codebooks_max * 2**self.b // 4 - 1).bit_length() if self.centroid_bits else 0

    @property
    def column_code_bits(self):
        """Bits of codes in a beat for one output column."""
        return self.b * self.lanes

    @property
    def beat_bytes(self):
        """Bytes of data in a beat."""
        return self.code_bits // 8

    @property
    def encodes(self):
        """bool: whether tokens are encoded on their way into the buffers: outliers found and the
        others clustered, or of every bank what is high found and the rest coarsened."""
        return self.format == "kmeans" or (self.format == "sq" and self.activation_bits == 16)

    @property
    def sparse(self):
        """bool: whether banks have a sparse part of high weights beside the dense one."""
        return self.format == "sq" and not self.encodes

    @property
    def scaled(self):
        """bool: whether group sums are multiplied by scales; else scales are the host's, of rows.
        """
        return self.format != "kmeans"

    @property
    def takes_indexes(self):
        """bool: whether indexes of the layer before can be loaded, and stored for the next."""
        return self.format == "kmeans" and self.epilogue

    @property
    def coarse_base(self):
        """Bits that the epilogue drops of every accumulator: those that scales add, about."""
        return 10 if self.scaled else 0

    @property
    def side_bits(self):
        """Sideband of a beat: per column and scale point a 16-bit scale and a zero-point sign.

        ``sq``: part of the bank's scale and exponent, and `high_lanes` weights, with their places
        if not from `sentinels`.
        """
        if not self.scaled:
            return 0
        point = self.bank_bits if self.sparse else SCALE_BITS + 1
        return self.columns * self.scale_points * point

    @property
    def column_beats(self):
        """``sq``: beats that every column has at least; its last ones bring scale and exponent."""
        return max(self.turns, 2)

    @property
    def part_bits(self):
        """``sq``: bits of a bank's scale and exponent in a beat."""
        return -(-(SCALE_BITS + EXPONENT_BITS) // self.column_beats)

    @property
    def place_bits(self):
        """``sq``: bits that say where in its bank a high weight lies."""
        return (self.bank - 1).bit_length()

    @property
    def bank_bits(self):
        """``sq``: bits of a bank in a beat's sideband."""
        place = 0 if self.sentinels else self.place_bits
        return self.part_bits + self.high_lanes * (self.high_bits + place)

    @property
    def high_bits(self):
        """``sq``: bits of a high weight in a beat.  Without its place it comes less what its
        sentinel counts for among the low ones, which takes one more."""
        return HIGH_BITS + self.sentinels

    @property
    def high_weight_max(self):
        """``sq``: largest magnitude of a high weight in a beat."""
        return HIGH_MAX + (LOW_MAX << LOW_SHIFT if self.sentinels else 0)

    @property
    def column_beats_max(self):
        """``sq``: beats that a column has at most."""
        return SENTINEL_BEATS if self.sentinels else MAX_PLANES

    @property
    def late_steps(self):
        """``sq``: column steps that all that belongs to high weights comes after the codes."""
        return int(self.sentinels)

    @property
    def side_words(self):
        """32-bit words of a beat's sideband."""
        return -(-self.side_bits // 32)

    @property
    def side_stride(self):
        """Bytes between the sidebands of consecutive beats in the link's address space."""
        return 4 << (self.side_words - 1).bit_length() if self.side_words else 0

    # Widths, each from the largest magnitude that can occur

    @property
    def operand_max(self):
        """Largest magnitude that a weight adds to a table entry.

        ``bitserial``: an activation, 127, or 255 where low bytes are unsigned; ``psumbook``: its
        product with an element of a centroid; ``kmeans``: that of an outlier.
        """
        if not self.signed_sums:
            return self.activation_max * CENTROID_MAX
        if self.encodes:
            return self.activation_max
        return 255 if self.activation_bits == 16 else ACTIVATION_MAX

    def entry_bits(self, v):
        """Width of a table entry for chunks of `v`."""
        return bits_for(v * self.operand_max)

    def index_bits(self, v):
        """Bits that address the table of a chunk of `v`: half tables leave the sign to adders."""
        return v - 1 if self.signed_sums else self.b

    @property
    def planes_max(self):
        """Most beats of codes per column and K tile: bit planes; codebooks are K tiles."""
        return MAX_PLANES if self.signed_sums else 1

    @property
    def plane_max(self):
        """Largest sum of a plane of a group, the zero-point leaf included."""
        return self.group_width * self.operand_max * (2 if self.zero_points else 1)

    @property
    def high_max(self):
        """``sq``: largest sum of products of a bank's high weights, before its exponent."""
        return (min(self.bank, self.high_lanes * self.column_beats_max) * self.high_weight_max
                * ACTIVATION_MAX)

    @property
    def group_max(self):
        """Largest group sum as it is scaled: of a plane; ``sq``: of both parts of a bank, in steps
        of the finest exponent."""
        if not self.sparse:
            return self.plane_max
        return ((self.bank * self.operand_max * LOW_MAX << LOW_SHIFT)
                + (self.high_max << 2**EXPONENT_BITS - 1))

    @property
    def group_bits(self):
        """Width of a group sum as the multiplier takes it."""
        return bits_for(self.group_max)

    @property
    def scaled_max(self):
        """Largest sum of scaled group sums of one beat."""
        if not self.scaled:
            return self.group_max
        return self.scale_points * self.group_max * (2**SCALE_BITS - 1)

    @property
    def column_bits(self):
        """Width of a column's sum over all planes, and of a bias beside it."""
        if self.takes_indexes:
            return self.accumulator_bits
        planes = 1 if self.sparse else self.planes_max      # those are summed before
        return bits_for(self.scaled_max * (2**planes - 1))

    @property
    def byte_passes(self):
        """bool: whether int16 activations are two passes of bytes."""
        return self.format == "bitserial" and self.activation_bits == 16

    @property
    def accumulator_bits(self):
        """Width of an accumulator: 48, or 56 with int16 activations or for ``sq``; 39 without
        scales."""
        if not self.scaled:
            return bits_for(MAX_DIM * self.operand_max)
        return 56 if self.byte_passes or self.sparse else 48

    # Buffers

    @property
    def activation_max(self):
        """Largest magnitude of an activation in the buffers."""
        if self.encodes:
            return BANK_VALUE_MAX if self.bank else VALUE_MAX
        return ACTIVATION_MAX

    @property
    def value_bits(self):
        """Width of an activation in the buffers: a byte; 9 bits of banks, or 18 where outliers lie
        there."""
        return bits_for(self.activation_max)

    @property
    def value_bytes(self):
        """Bytes of an activation in memory."""
        return 2 if self.encodes else 1

    @property
    def word_values(self):
        """Activations of a word of a buffer: as many as 36 bits hold."""
        return 36 // (18 if self.value_bits > 9 else 9)

    @property
    def buffers(self):
        """Activation buffers of a row, each of which serves as many builders as the next.

        Signed sums: one for each builder.  The others, whose builders take an activation once in
        ``2**b`` cycles: as few as hold `activation_bytes`, a block RAM each, and can be read in
        half of that time; ``kmeans``: a word of each holds a beat or more.
        """
        if self.signed_sums:
            return self.builders
        least = max(TOKEN_BEAT // 2 if self.encodes else 2,
                    self.activation_bytes // (4 * _BUFFER_WORDS),
                    2 * self.v * self.builders // 2**self.b)
        return min(self.builders, least)

    @property
    def slot_values(self):
        """Activations of a slot: a word of every buffer of a row."""
        return self.word_values * self.buffers

    @property
    def load_values(self):
        """Activations of a beat that LOAD takes: a slot, or as many as the beat holds."""
        if self.encodes:
            return TOKEN_BEAT
        return min(self.beat_bytes, self.slot_values)

    @property
    def slot_beats(self):
        """Beats that fill one slot of one row."""
        return self.slot_values // self.load_values

    @property
    def activation_depth(self):
        """Slots of a row's activation buffer."""
        return self.activation_bytes // (self.value_bytes * self.slot_values)

    @property
    def token_values(self):
        """Activations that a row's buffer holds."""
        return self.activation_depth * self.slot_values

    @property
    def tile_slots(self):
        """Slots of a K tile."""
        return self.tile_k // self.slot_values

    @property
    def tile_beats(self):
        """Beats that LOAD reads for a K tile of all rows."""
        return self.tile_k // self.load_values * self.rows

    @property
    def results_per_beat(self):
        """64-bit results in a beat."""
        return self.code_bits // 64

    @property
    def write_bits(self):
        """Data width of the engine's writes: the results of a column step, at most a beat."""
        return 64 * min(self.cells, self.results_per_beat)

    @property
    def lane_groups(self):
        """Chunk length of every group of ``builders`` lanes that are built together."""
        lanes = [v for v in self.chunks for _ in range(BLOCK // v)]
        return lanes[::self.builders]

    @property
    def store_beats(self):
        """Write beats that the results of one column step take."""
        return max(1, self.cells // self.results_per_beat)

    # Identity

    def replace(self, **changes):
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def as_dict(self):
        """The fields as a plain dictionary."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields):
        """The inverse of :meth:`as_dict`; unknown fields are a :exc:`~hdl.errors.ConfigError`."""
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise ConfigError(f"unknown engine parameters {', '.join(unknown)}; "
                              f"legal are {', '.join(sorted(known))}")
        return cls(**fields)

    @property
    def digest(self):
        """16 hexadecimal digits that name this configuration."""
        text = json.dumps(self.as_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def peak_macs(self, planes=1):
        """Useful multiply-accumulates per cycle for weights of `planes` bits or codebooks."""
        return self.tile_k * self.cells / planes


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """An engine with what surrounds it: memory, link and clock.

    Parameters
    ----------
    engine : EngineConfig
    memory : str
        ``"port"`` (the internal port leaves the top: simulated memory), ``"onchip"`` (block RAM)
        or ``"axi"`` (AXI4 master).
    memory_beats : int
        Size of the memory, in beats of ``engine.beat_bytes``.
    link : str
        ``"stream"`` (bytes in and out of the top) or ``"uart"``.
    clock_hz : int
        Core clock.
    axi_bits : int
        Data width of the AXI4 master: 32, 64, 128, 256 or 512, at most a beat.
    axi_address_bits : int
        32 or 64.
    axi_base : int
        Byte address of the memory, a multiple of 4096.
    axi_burst : int
        Most transfers of a read burst, a power of two up to 256: 16 for AXI3.
    """

    engine: EngineConfig = EngineConfig()
    memory: str = "port"
    memory_beats: int = 2**21
    link: str = "stream"
    clock_hz: int = 200_000_000
    axi_bits: int = 128
    axi_address_bits: int = 32
    axi_base: int = 0
    axi_burst: int = 64

    def __post_init__(self):
        if not isinstance(self.engine, EngineConfig):
            raise ConfigError(f"engine must be an EngineConfig, not {self.engine!r}")
        for name, values in (("memory", ("port", "onchip", "axi")), ("link", ("stream", "uart"))):
            if getattr(self, name) not in values:
                raise ConfigError(f"{name} must be one of {', '.join(values)}, "
                                  f"not {getattr(self, name)!r}")
        most = 2**self.engine.address_bits
        if not isinstance(self.memory_beats, int) or not 16 <= self.memory_beats <= most:
            raise ConfigError(f"memory_beats must be in 16..{most} for {self.engine.address_bits} "
                              f"address bits, not {self.memory_beats!r}")
        if not isinstance(self.clock_hz, int) or not 1_000_000 <= self.clock_hz <= 1_000_000_000:
            raise ConfigError("clock_hz must be an integer in 1000000..1000000000, not "
                              f"{self.clock_hz!r}")
        if self.memory == "axi":
            self._check_axi()

    def _check_axi(self):
        from hdl.layout import stored_bytes  # which imports this module

        code_bits = self.engine.code_bits
        widths = [b for b in (32, 64, 128, 256, 512) if b <= code_bits]
        if self.axi_bits not in widths:
            raise ConfigError(f"axi_bits must be one of {', '.join(map(str, widths))} for beats of "
                              f"{code_bits} bits, not {self.axi_bits!r}")
        if self.axi_address_bits not in (32, 64):
            raise ConfigError(f"axi_address_bits must be 32 or 64, not {self.axi_address_bits!r}")
        bursts = [n for n in (2**i for i in range(9)) if n * self.axi_bits >= code_bits]
        if self.axi_burst not in bursts:
            raise ConfigError(f"axi_burst must be one of {', '.join(map(str, bursts))} (a burst "
                              f"holds a beat or more), not {self.axi_burst!r}")
        most = 2**self.axi_address_bits - stored_bytes(self.engine, self.memory_beats)
        if not isinstance(self.axi_base, int) or self.axi_base % 4096 \
                or not 0 <= self.axi_base <= most:
            raise ConfigError(f"axi_base must be a multiple of 4096 in 0..{most:#x}, so that the "
                              f"memory ends within {self.axi_address_bits} address bits, not "
                              f"{self.axi_base!r}")

    def replace(self, **changes):
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def digest(self):
        """16 hexadecimal digits that name this device."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def identity(self):
        """Values of the self-description registers, by name."""
        e = self.engine
        return {
            "MAGIC": 0x4C555452,
            "VERSIONS": ISA_VERSION | REGISTERS_VERSION << 8,
            "DIGEST": int(self.digest[:8], 16),
            "FORMAT": FORMATS.index(e.format) | FAMILIES.index(e.family) << 4
            | (e.activation_bits == 16) << 8 | e.zero_points << 9 | e.epilogue << 10
            | e.counters << 11 | e.v << 12 | e.b << 16 | e.high_lanes << 20
            | (e.turns if e.sparse else 0) << 26 | e.sentinels << 29,
            "ARRAY": e.lanes | e.rows << 9 | e.columns << 14 | e.scale_points << 17
            | e.builders << 24,
            "BUFFERS": (e.n_tile.bit_length() - 1) | (e.activation_bytes.bit_length() - 1) << 5
            | e.block_ram_blocks << 10 | e.address_bits << 17,
            "MEMORY": self.memory_beats,
            "CLOCK": self.clock_hz,
        }


def engine_of(identity):
    """The engine that a device describes in its registers, as far as hosts need it.

    All but `scaler_dsps`, which no register has.
    """
    form, array, buffers = identity["FORMAT"], identity["ARRAY"], identity["BUFFERS"]
    return EngineConfig(
        format=FORMATS[form & 15], family=FAMILIES[form >> 4 & 15], v=form >> 12 & 15,
        b=form >> 16 & 15, high_lanes=form >> 20 & 63,
        turns=max(1, form >> 26 & 7), sentinels=bool(form >> 29 & 1),
        bank=(array & 511) * 4 // (array >> 17 & 127) if FORMATS[form & 15] == "sq" else 0,
        activation_bits=16 if form >> 8 & 1 else 8, zero_points=bool(form >> 9 & 1),
        epilogue=bool(form >> 10 & 1), counters=bool(form >> 11 & 1),
        lanes=array & 511, rows=array >> 9 & 31, columns=array >> 14 & 7,
        scale_points=array >> 17 & 127, builders=array >> 24 & 31,
        n_tile=1 << (buffers & 31), activation_bytes=1 << (buffers >> 5 & 31),
        block_ram_blocks=buffers >> 10 & 127, address_bits=buffers >> 17 & 63)
