"""What a device will take, before it is built."""

from math import ceil

from hdl.config import BLOCK, PARAMETER_BITS, TOKEN_BEAT
from hdl.parts.ram import block_rams as blocks

__all__ = ["estimate"]


def estimate(config):
    """Resources of a device before it is built, within a third.

    Parts by their structure, the rest as it was in built devices.

    Returns
    -------
    dict of str to int
        ``comb`` (look-up tables), ``ff``, ``bram`` (blocks of 18 kbit, of 36 on 7-series), ``dsp``.
    """
    e = config.engine
    centroids = not e.signed_sums
    kmeans = e.format == "kmeans"
    lut_lanes = BLOCK // e.v * (e.blocks - e.block_ram_blocks)
    block_v = e.v if centroids else 8
    block_lanes = BLOCK // block_v * e.block_ram_blocks
    leaves = lut_lanes + block_lanes
    # A LUT RAM of 16 words of four bits takes four cells and blocks two; a tree has an adder a
    # few bits wider than an entry per leaf.
    groups = [len(rows) for rows in e.row_groups]
    index = e.index_bits(e.v) + 1
    tables = lut_lanes * sum(
        (6 * 2**max(0, index - 4) + (2**max(0, index - 4) - 1) * 4)
        * ceil(rows * e.entry_bits(e.v) / 4) for rows in groups)
    adders = e.entry_bits(e.v) + 3
    # The format's builders: v products added, or a sum of activations.
    builder = (e.v - 1) * e.entry_bits(e.v) if centroids else 21
    queue = 6 * ceil((e.code_bits + e.side_bits) / 4)
    scaler_dsps = 0 if not e.scaled else 1 if e.group_bits <= 18 else e.scaler_dsps
    narrow = 130 * (e.scaler_dsps == 1)
    sums = (adders * leaves + ((45 if centroids else 18) + narrow) * e.scale_points
            + 36 * (e.scale_points - 1)
            + e.column_bits + e.accumulator_bits)
    points = e.scale_points
    if e.sparse:    # the sparse part, then what banks take turns at
        scalers = points // e.turns
        scaler_dsps = (e.high_lanes * points + 2 * scalers) / points
        sums += points * (75 + 18 * (e.high_lanes - 1)) + scalers * (130 + 40 * e.turns)
    # A cell for each code, and to go through the bytes of a bank.
    finders = e.sentinels * e.columns * (
        e.tile_k + points * e.high_lanes * (33 + 3 * e.bank // 2))
    side = [min(32, e.side_bits - i) for i in range(0, e.side_bits, 32)]
    brams = (4 + e.code_bits // 32 * blocks(32, config.memory_beats)
             + sum(blocks(width, config.memory_beats) for width in side)
             + e.cells * blocks(e.accumulator_bits, e.n_tile)
             + e.columns * block_lanes * sum(
                 blocks(rows * e.entry_bits(block_v), 2 * 2**e.index_bits(block_v))
                 for rows in groups)
             + centroids * e.v * max(1, 2**e.codebook_word_bits // 512)
             + e.rows * e.buffers * max(1, e.activation_depth // 512)
             + e.epilogue * e.columns * blocks(PARAMETER_BITS, 64))
    brams += e.cells * points * e.high_lanes
    if kmeans:      # leaves, words and nodes of the outliers' trees, and flags
        beats = e.token_values // TOKEN_BEAT
        brams += (blocks(16 * TOKEN_BEAT, beats) + blocks(30, beats)
                  + 4 * blocks(16 + beats.bit_length(), beats) + blocks(TOKEN_BEAT, beats * e.rows))
        brams += 3 * e.takes_indexes
    encoder = e.encodes and not kmeans      # of banks: a small tree, two shifters
    brams += 5 * encoder
    return {
        "comb": (1900 + 2900 * kmeans + 2000 * encoder + 800 * e.epilogue + queue + finders
                 + e.columns * tables + e.cells * (sums + 100) + e.rows * e.builders * builder),
        "ff": 3400 + 3100 * kmeans + 1500 * encoder + 5 * e.sentinels * e.columns * e.tile_k
        + e.cells * ((3 * e.entry_bits(e.v) if kmeans else 33 if centroids else 25) * leaves + 350)
        + 2 * e.code_bits * (len(groups) - 1),
        "bram": ceil(brams / 2) if e.family == "xilinx7" else brams,
        "dsp": round(e.cells * points * scaler_dsps) + e.epilogue
        + centroids * e.rows * e.builders * e.v + 2 * kmeans}
