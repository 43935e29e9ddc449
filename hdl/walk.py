"""What passes between the control of building tables and the array: a walk and its steps.

A walk, one for the array, goes through all entries of a K tile's tables, reads the activations and
says where entries go.
"""

from amaranth.hdl import signed
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

__all__ = ["builder_members", "step", "walk", "walk_members"]


def step(config):
    """What the builders do in a cycle.

    Signed sums: with the byte of each activation buffer, see :class:`hdl.signed_sums.Step`; it is
    the low byte of an int16 if ``unsigned``.  Others: ``shift``, take the activation as the
    next of the next chunk (a bit for each builder of a buffer); ``capture``, from now on multiply
    by the chunk that was taken; ``centroid``, by this, an int8 for each weight.
    """
    if not config.signed_sums:
        return data.StructLayout({"shift": config.builders // config.buffers, "capture": 1,
                                  "centroid": 8 * config.v})
    return data.StructLayout({"restart": 1, "double": 1, "negate": 1, "unsigned": 1})


def walk(config):
    """A step of building tables, each field at its own time.

    ``read_address`` of the buffers, lowest bits a part of a word; :data:`WordRAM.LATENCY` later
    ``step``, what the builders do with what comes; when it comes out of them, where the entry goes:
    ``entry`` of ``bank`` in the lanes of ``group`` (one-hot; zero: nowhere).  In engines of ``sq``
    activations go to the sparse part too, :attr:`~hdl.signed_sums.SignedSumBuilder.LATENCY` after
    they come: ``keep``, to the word ``kept`` of the K tile.
    """
    keeps = {"keep": 1, "kept": (config.tile_k // config.builders - 1).bit_length()}
    return data.StructLayout({
        "read_address": (config.token_values // config.buffers - 1).bit_length(),
        "step": step(config),
        "group": len(config.lane_groups), "entry": config.index_bits(max(config.chunks)),
        "bank": 1, **(keeps if config.sparse else {})})


def walk_members(config):
    """Members of a walk.

    start : In(1)
        A K tile begins (strobe); not while `running`.
    tile : In
        Which, of the activation buffers; held while `running`.
    unsigned, codebook : In
        What BUILD says of the tile; held while `running`.
    centroids : In
        Four centroids for the codebook buffer, where `load` is set, at word `word`.
    running : Out(1)
        From the cycle after `start` to `tile_end`.
    tile_end : Out(1)
        Last cycle of the walk.
    walk : Out(walk)
    table_ready : Out(1)
        The bank is complete (strobe).
    active : Out(1)
        Entries are under way.
    """
    tile_bits = ((config.activation_depth - 1) // config.tile_slots).bit_length()
    return {
        "start": In(1), "tile": In(tile_bits), "unsigned": In(1), "codebook": In(2),
        "load": In(1), "word": In(config.codebook_word_bits), "centroids": In(config.centroid_bits),
        "running": Out(1), "tile_end": Out(1), "walk": Out(walk(config)), "table_ready": Out(1),
        "active": Out(1)}


def builder_members(config):
    """Members of the builders of one row.

    Builder `b` of B serves the lanes congruent to b modulo B; all work in lock step, one entry per
    builder and cycle, without back-pressure.

    word : In(value_bits * buffers)
        One activation per buffer; buffer `i` of B' serves the builders congruent to i modulo B'.
    step : In(step)
        What to do in this cycle.
    entries : Out(array of signed(entry_bits), one per builder)
        As late as the format says.
    """
    width = config.entry_bits(max(config.chunks))
    return {"word": In(config.value_bits * config.buffers), "step": In(step(config)),
            "entries": Out(data.ArrayLayout(signed(width), config.builders))}
