"""Where things lie in beats and buffers: shared by packer, compiler and gateware.

Light by design: plain Python integers and lists.
"""

from hdl.config import BLOCK, SCALE_BITS

__all__ = [
    "COARSE_STEP",
    "FINE_SHIFT",
    "FRAME",
    "KEPT_BITS",
    "MULTIPLIER_MIN",
    "PARAMETER_FIELDS",
    "activation_order",
    "bank_fields",
    "bank_places",
    "beat_offset",
    "code_slice",
    "frame_beats",
    "frame_sides",
    "lane_positions",
    "side_fields",
    "side_offset",
    "side_slots",
    "stored_bytes",
]

PARAMETER_FIELDS = {"bias": (0, 48), "multiplier": (48, 17), "shift": (65, 2)}
"""(offset, width) of the re-quantisation parameters of one output column, in PARAMETER_BITS."""
COARSE_STEP, FINE_SHIFT = 6, 21
KEPT_BITS = 18
"""``y = clip(rint((acc >> (coarse_base + COARSE_STEP * shift)) * multiplier / 2**FINE_SHIFT))``;
the shifted accumulator saturates at KEPT_BITS.  The bias is added to a column's first plane, so it
counts 2**(planes - 1) times; of ``sq``, whose planes are summed before, once."""
MULTIPLIER_MIN = 1 << PARAMETER_FIELDS["multiplier"][1] - COARSE_STEP
"""The next coarse shift serves smaller multipliers; where there is one, they would saturate too
early."""


def lane_positions(config):
    """K positions within a tile that each lane covers, in lane order: a list of sequences.

    Tokens of ``kmeans`` lie in their buffers in the order of K, so that a lane's are those of its
    buffer: a word of every slot that its chunk takes.
    """
    if config.format == "kmeans":
        word, words = config.word_values, config.v // config.word_values
        return [[slot * config.slot_values + word * buffer + t
                 for slot in range(turn * words, (turn + 1) * words) for t in range(word)]
                for turn in range(config.lanes // config.buffers)
                for buffer in range(config.buffers)]
    lanes = []
    for block, v in enumerate(config.chunks):
        lanes += [range(k, k + v) for k in range(block * BLOCK, (block + 1) * BLOCK, v)]
    return lanes


def code_slice(config, lane):
    """Bits of a column's codes that are the code of a lane."""
    positions = lane_positions(config)[lane]
    if config.signed_sums:
        return slice(positions.start, positions.stop)
    return slice(config.b * lane, config.b * (lane + 1))


def activation_order(config):
    """K position of every byte of a tile in the activation buffer, slot after slot.

    A slot holds a word of activations for each of ``buffers`` lanes: half a chunk, one or two.
    """
    word = config.word_values
    lanes = lane_positions(config)
    streams = [[k for lane in lanes[b::config.buffers] for k in lane]
               for b in range(config.buffers)]
    return [k for i in range(0, len(streams[0]), word) for s in streams for k in s[i:i + word]]


def bank_places(config):
    """``sq``: where in its bank's RAM every K position of a tile lies, in K order.

    A word of that RAM has an activation of each builder.
    """
    word, buffers = config.word_values, config.buffers
    places = [0] * config.tile_k
    for i, k in enumerate(activation_order(config)):
        slot, within = divmod(i, config.slot_values)
        buffer, position = divmod(within, word)
        places[k] = (buffer + buffers * (position + word * slot)) % config.bank
    return places


def bank_fields(config):
    """``sq``: bit offsets of each bank in a beat's sideband, and of what is in it.

    Returns
    -------
    banks : dict
        Offset of each ``(column, point)``; a bank starts with part of its scale and exponent.
    lanes : list of (int, int)
        Offsets, from there, of each high lane's weight and place, if it has one.
    """
    banks = {(c, t): (c * config.scale_points + t) * config.bank_bits
             for c in range(config.columns) for t in range(config.scale_points)}
    lane = (config.bank_bits - config.part_bits) // config.high_lanes
    starts = [config.part_bits + i * lane for i in range(config.high_lanes)]
    return banks, [(start, start + config.high_bits) for start in starts]


def side_fields(config):
    """Bit offsets in a beat's sideband: ``{(column, point): (scale offset, zero-sign offset)}``.

    Of formats whose groups have just those two.
    """
    if not config.scaled or config.sparse:
        return {}
    width = SCALE_BITS + 1
    return {(c, t): ((c * config.scale_points + t) * width,
                     (c * config.scale_points + t) * width + SCALE_BITS)
            for c in range(config.columns) for t in range(config.scale_points)}


# External memory has no sideband of its own: it is packed into beats, a frame at a time.  A frame
# is FRAME consecutive beats and before them their sidebands: first word 0 of each, then word 1 of
# each, and so on, the last word in as many bytes as it needs.  So one 32-bit word of a sideband is
# whole bytes of one AXI transfer, and beats in order are bytes in order, sidebands included.

FRAME = 32
"""Beats of a frame."""


def side_slots(config):
    """Bytes of each 32-bit word of a sideband in a frame: 4, and 1, 2 or 4 for the last."""
    words, rest = divmod(config.side_bits, 32)
    return [4] * words + ([1 if rest <= 8 else 2 if rest <= 16 else 4] if rest else [])


def frame_sides(config):
    """Beats that the sidebands of a frame fill."""
    return -(-FRAME * sum(side_slots(config)) // config.beat_bytes)


def frame_beats(config):
    """Beats of a frame, sidebands included."""
    return FRAME + frame_sides(config)


def beat_offset(config, beat):
    """Byte offset of a beat in external memory."""
    frame, place = divmod(beat, FRAME)
    return (frame * frame_beats(config) + frame_sides(config) + place) * config.beat_bytes


def side_offset(config, beat, word):
    """Byte offset of a 32-bit word of a beat's sideband; it has ``side_slots(config)[word]``."""
    frame, place = divmod(beat, FRAME)
    slots = side_slots(config)
    return (frame * frame_beats(config) * config.beat_bytes + FRAME * sum(slots[:word])
            + place * slots[word])


def stored_bytes(config, beats):
    """Bytes of external memory that so many beats take: whole frames."""
    return -(-beats // FRAME) * frame_beats(config) * config.beat_bytes
