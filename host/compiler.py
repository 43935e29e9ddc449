"""Compiler: quantised matrices and token groups to programs."""

from dataclasses import dataclass, field

from hdl.config import TOKEN_BEAT, EngineConfig
from hdl.isa import Instruction, Opcode, Target
from host.errors import CapacityError

__all__ = ["LayerCode", "matmul_program"]


@dataclass(frozen=True, kw_only=True)
class LayerCode:
    """Where a layer lies on the device and how to walk it; the compiler's input.

    Attributes
    ----------
    tiles : list of (beat address, column steps)
    k_tiles, planes, codebooks : int
    books : list of (Buffer, beat address, beats)
        Codebooks to load first.
    zero, requant : bool
    token : dict or None
        Of tokens that the device encodes: fields of TOPK.
    """

    tiles: list
    k_tiles: int
    planes: int
    zero: bool
    codebooks: int = 1
    books: list = field(default_factory=list)
    requant: bool = False
    token: dict | None = None

    @classmethod
    def at(cls, address, image):
        """The code of a :class:`host.pack.Image` that lies at a beat address."""
        books, at = [], address
        for buffer, count in image.books:
            books.append((buffer, at, count))
            at += count
        return cls(tiles=[(address + beat, steps) for beat, steps in image.tiles],
                   k_tiles=image.k_tiles, planes=image.planes, zero=image.zero,
                   codebooks=image.codebooks, books=books, requant=image.requant,
                   token=image.token)


def _prepare(config, address, local, tiles, *, unsigned, codebooks, load, first, topk, indexes):
    """LOAD and BUILD of `tiles` K tiles; the first tile by itself where nothing hides it.

    Before them TOPK, for a token that the device encodes.
    """
    shown = topk if config.bank and topk is not None else None     # bank by bank
    per_bank = config.bank // TOKEN_BEAT
    if topk is not None and shown is None:
        yield Instruction.make("TOPK", **topk, address=address)
    beats, words = config.tile_beats, config.tile_slots
    done = 0
    for part in ([1, tiles - 1] if first and tiles > 1 else [tiles]):
        if load:
            for i in range(part * config.scale_points) if shown else ():
                beat = (local + done * words) * config.slot_beats + i * per_bank
                yield Instruction.make(
                    "TOPK", **(shown or {}), beat=beat,
                    address=address + done * beats + i * per_bank * config.rows)
            yield Instruction.make("LOAD", count=part * beats, local=local + done * words,
                                   address=address + done * beats, **indexes)
        yield Instruction.make("BUILD", tiles=part, local=local + done * words, unsigned=unsigned,
                               codebooks=codebooks)
        done += part


def _chunks(config, layer, passes):
    """How a K walk is cut to fit the activation buffer: (resident, list of (first, tiles))."""
    words = config.tile_slots
    if passes * layer.k_tiles * words <= config.activation_depth \
            and layer.k_tiles * layer.codebooks <= 2**10:
        return True, [(0, layer.k_tiles)]
    if layer.token is not None:
        own = f"{layer.token['length']}, " if "length" in layer.token else ""
        raise CapacityError(
            f"the activation buffers must hold a whole token: they have room for "
            f"{config.token_values} elements, and it has {own}"
            f"{layer.k_tiles * config.tile_k} with padding; use a larger activation_bytes")
    most = min(config.activation_depth // words, 2**10 // layer.codebooks)
    return False, [(k, min(most, layer.k_tiles - k)) for k in range(0, layer.k_tiles, most)]


def matmul_program(config: EngineConfig, layer: LayerCode, groups, *, passes=1,
                   target=Target.ACCUMULATORS, relu=False, high=False, static=False, indexes=0,
                   norm=False):
    """Instructions that multiply groups of tokens by one layer, without HALT.

    Parameters
    ----------
    config : EngineConfig
    layer : LayerCode
    groups : list of (activations, results)
        Beat addresses of each group of ``rows`` tokens: of its activations (`passes` byte planes,
        one after the other) and of its results.
    passes : int
        2 for int16 activations: high bytes, then low bytes.
    target : Target
        Where the results go.
    relu : bool
        Clip int8 results at zero.
    high : bool
        Where bytes of two layers meet: these are the high ones.
    static : bool
        Tokens that the device encodes have the same unit.
    indexes : int
        Activations are not encoded but indexes, 1, or pairs of them, 2.
    norm : bool
        What indexes mean is divided by its root mean square.

    Returns
    -------
    list of Instruction
    """
    beats, words = config.tile_beats, config.tile_slots
    resident, chunks = _chunks(config, layer, passes)
    k_beats = 2 * layer.zero        # of a K tile
    program = []
    for buffer, address, count in layer.books:
        program.append(Instruction.make("LOAD", buffer=buffer, count=count, address=address))
    topk, meanings = None, {}
    if layer.token is not None:
        topk = layer.token
        if indexes:
            length = topk["length"]
            meanings = {"indexes": 1, "pairs": indexes == 2, "length": length, "norm": norm}
            topk = {"length": length, "norm": 1, "pairs": indexes == 2} if norm else None
        elif static:
            topk = topk | {"static": 1}
    first = True
    for activations, results in groups:
        for number, (address, steps) in enumerate(layer.tiles):
            walks = [(p, *chunk) for p in range(passes) for chunk in chunks]
            for index, (p, k, tiles) in enumerate(walks):
                last = index == len(walks) - 1
                prepare = list(_prepare(
                    config, activations + (p * layer.k_tiles + k) * beats,
                    p * layer.k_tiles * words if resident else 0, tiles,
                    unsigned=p == 1, codebooks=layer.codebooks,
                    load=not (resident and number), first=first,
                    topk=None if number or index else topk, indexes=meanings))
                gather = Instruction.make(
                    "LMMA", first=index == 0, last=last, zero=layer.zero,
                    high=passes == 2 and p == 0, requant=layer.requant, planes=layer.planes,
                    tiles=tiles * layer.codebooks, columns=steps,
                    address=address + k * layer.codebooks * (
                        k_beats + (steps + config.late_steps) * layer.planes))
                # The queues hold one instruction each: what starts first comes first.
                split = 1 + [i.opcode for i in prepare].index(Opcode.BUILD)
                program += prepare[:split]
                program.append(gather)
                if last:
                    program.append(Instruction.make(
                        "STORE", target=target, relu=relu, high=high, address=results))
                program += prepare[split:]
                first = False
            if target == Target.ACCUMULATORS:
                results += -(-steps * config.cells * 8 // config.beat_bytes)
            else:
                results += -(-steps * config.columns // config.load_values) * config.rows
    return program
