"""Where things lie in beats and buffers: shared by packer, compiler and gateware.

Light by design: plain Python integers and lists.
"""

from hdl.config import BLOCK, SCALE_BITS

__all__ = ["PARAMETER_FIELDS", "activation_order", "activation_slot", "lane_positions",
           "side_fields"]

PARAMETER_FIELDS = {"bias": (0, 56), "multiplier": (56, 16), "shift": (72, 6)}
"""(offset, width) of the re-quantisation parameters of one output column, 80 bits a column."""
PARAMETER_BITS = 80


def lane_positions(config):
    """K positions within a tile that each lane covers, in lane order: a list of ranges."""
    lanes = []
    for block, v in enumerate(config.chunks):
        lanes += [range(k, k + v) for k in range(block * BLOCK, (block + 1) * BLOCK, v)]
    return lanes


def activation_order(config):
    """K position of every byte of a tile in the activation buffer, word after word.

    A word holds one byte per builder: position `k` of the chunks of as many lanes.  The words of a
    lane group follow each other, so that a builder meets its chunk's activations one per word.
    """
    order = []
    lanes = lane_positions(config)
    i = 0
    while i < len(lanes):
        group = lanes[i:i + config.builders]
        for k in range(len(group[0])):
            order += [lane[k] for lane in group]
        i += config.builders
    return order


def activation_slot(config, k):
    """(word, byte) of K position `k` in the activation buffer."""
    tile, position = divmod(k, config.tile_k)
    index = activation_order(config).index(position)
    word, byte = divmod(index, config.builders)
    return tile * (config.tile_k // config.builders) + word, byte


def side_fields(config):
    """Bit offsets in a beat's sideband: ``{(column, point): (scale offset, zero-sign offset)}``."""
    width = SCALE_BITS + 1
    return {(c, t): ((c * config.scale_points + t) * width,
                     (c * config.scale_points + t) * width + SCALE_BITS)
            for c in range(config.columns) for t in range(config.scale_points)}
