"""Bare arrays that multiply weight indexes by activations: the ways to a K-means product.

As in :mod:`sim.baselines`, each sums products of registered codes into accumulators, without
control.  All but the histogram are exact for the sums of centroids times centroids.

================ ================================ ====================== =========== ===============
array            a weight index meets             weight image           outliers    its own EBR
================ ================================ ====================== =========== ===============
PsumbookArray    a table built of the values of   [n][tile][pair of      cost        1 per 2 MACs
kmeans           two activations (the engine)     indexes]               nothing
PsumbookArray    the same of their centroids      the same               other path  1 per 2 MACs
psumbook
ProductArray     the static table of all products [n][tile][index]       other path  1 per MAC
BucketArray      its bucket of a column, to which [tile][k][n]           cost        none
                 the activation is added                                 nothing
CentroidMacArray its centroid, for a multiplier   [n][tile][index]       cost        none
                                                                         nothing
HistogramCounter the counter of its pair          [n][tile][index]       other path  none
================ ================================ ====================== =========== ===============

:class:`Compensation` is that other path: KLLM's look-ahead, beside an array of centroids alone.
"""

# mypy: disable-error-code="attr-defined"
# Amaranth makes members of a component at run time.

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hdl.config import CENTROID_MAX, MAX_DIM, bits_for
from hdl.parts import BlockRAM, Multiplier, add, delay
from hdl.token_units import CENTROID_BITS, INDEX_BITS, VALUE_MAX
from hdl.tree import Tree, tree_levels
from sim.baselines import WORD, BareArray

__all__ = ["BucketArray", "CentroidMacArray", "Compensation", "HistogramCounter", "ProductArray"]

_CENTROIDS = 2**INDEX_BITS
_VALUE_BITS = VALUE_MAX.bit_length() + 1
_ACCUMULATOR_BITS = 40


def _centroid(m, array, index, place):
    """The centroid of an index, a cycle later, out of a LUT RAM that `array` has a port to fill."""
    m.submodules[f"codebook_{place}"] = memory = Memory(shape=signed(CENTROID_BITS),
                                                        depth=_CENTROIDS, init=[])
    write, read = memory.write_port(), memory.read_port(domain="comb")
    m.d.comb += [write.addr.eq(array.centroid_address), write.data.eq(array.centroid),
                 write.en.eq(array.centroid_write), read.addr.eq(index)]
    return delay(m, read.data, 1, name=f"centroid_{place}")


class ProductArray(BareArray):
    """A static table of products in block RAM for each lane, and a tree.

    ``result`` changes ``latency`` cycles after a beat.

    Parameters
    ----------
    lanes : int
        Reads per cycle.
    pairs : int
        Index pairs of a read: 1 of four bits, or 2 of two, whose products are added in the table.
    family : str

    Members
    -------
    codes : In(lanes * 4)
        Weight indexes.
    load : In(1), word : In(4 lanes * 4)
        The next activation indexes, in K order.
    table : In(16), table_address : In(8), table_write : In(1)
        An entry: weight indexes in the low half of its address.
    """

    def __init__(self, lanes, *, pairs=1, family="portable"):
        self.lanes = lanes
        self.bound = pairs * CENTROID_MAX**2
        self.latency = BlockRAM.LATENCY + 1 + tree_levels(lanes) + 1
        super().__init__(INDEX_BITS * lanes, {
            "load": In(1), "word": In(INDEX_BITS * WORD), "table": In(16),
            "table_address": In(2 * INDEX_BITS), "table_write": In(1)}, family,
            accumulator_bits=_ACCUMULATOR_BITS)

    def elaborate(self, platform):
        m = Module()
        activations = self.activations(m, self.lanes, unsigned(INDEX_BITS))
        m.submodules.tree = tree = Tree([self.bound] * self.lanes, self.family)
        for i, activation in enumerate(activations):
            index = self.codes.word_select(i, INDEX_BITS)
            m.submodules[f"table_{i}"] = ram = BlockRAM(tree.entry_bits, 2**(2 * INDEX_BITS),
                                                        family=self.family)
            m.d.comb += [
                ram.write_address.eq(self.table_address), ram.write_data.eq(self.table),
                ram.write_enable.eq(self.table_write), ram.read_address.eq(Cat(index, activation)),
                tree.entries[i].eq(delay(m, ram.read_data, 1, name=f"product_{i}"))]
        self.accumulate(m, tree.total, 0, self.valid, self.latency - 1)
        return m


class CentroidMacArray(BareArray):
    """A centroid out of LUT RAM and a hardware multiplier for each weight, and a tree.

    ``result`` changes ``latency`` cycles after a beat.

    Parameters
    ----------
    positions : int
        Weights per beat, a multiple of 4.
    family : str

    Members
    -------
    codes : In(positions * 4)
    load : In(1), word : In(4 values)
        The next activations, in K order: centroids, or outliers as they are.
    centroid : In(8), centroid_address : In(4), centroid_write : In(1)
        An entry of the weights' codebook.
    """

    def __init__(self, positions, *, family="portable"):
        self.positions = positions
        self.latency = 1 + Multiplier.LATENCY + 1 + tree_levels(positions) + 1
        super().__init__(INDEX_BITS * positions, {
            "load": In(1), "word": In(_VALUE_BITS * WORD), "centroid": In(CENTROID_BITS),
            "centroid_address": In(INDEX_BITS), "centroid_write": In(1)}, family,
            accumulator_bits=_ACCUMULATOR_BITS)

    def elaborate(self, platform):
        m = Module()
        activations = self.activations(m, self.positions, signed(_VALUE_BITS))
        m.submodules.tree = tree = Tree([VALUE_MAX * CENTROID_MAX] * self.positions, self.family)
        for i, activation in enumerate(activations):
            weight = _centroid(m, self, self.codes.word_select(i, INDEX_BITS), i)
            m.submodules[f"multiplier_{i}"] = multiplier = Multiplier(
                _VALUE_BITS, CENTROID_BITS, self.family)
            m.d.comb += [
                multiplier.a.eq(delay(m, activation, 1, name=f"activation_{i}")),
                multiplier.b.eq(weight),
                tree.entries[i].eq(delay(m, multiplier.o, 1, name=f"product_{i}"))]
        self.accumulate(m, tree.total, 0, self.valid, self.latency - 1)
        return m


class BucketArray(wiring.Component):
    """An output column per lane: the activation is added to the bucket of the column's index.

    A beat per cycle.  After K of them ``drain`` puts bucket after bucket of all columns into a
    chain, which ``shift`` moves to the one multiplier; so ``16 * (columns + 1)`` cycles for 16
    multiplies a column.

    Parameters
    ----------
    columns : int
    value_bits : int
        18, or 8 for centroids alone.
    family : str

    Members
    -------
    codes : In(columns * 4)
        Weight indexes of one k.
    value : In(signed(value_bits)), valid : In(1)
        The activation of this k: a centroid, or an outlier as it is.
    drain : In(1), bucket : In(4)
        Take this bucket of all columns into the chain, and clear it.  Not with a beat.
    shift : In(1)
    centroid : In(signed(8))
        Of the bucket in the chain.
    first : In(1)
        Of the sixteen buckets: sums start.
    result : Out(signed(40))
        Sum of the column that left the chain ``LATENCY`` cycles ago; after the last bucket, of
        all products.
    """

    LATENCY = Multiplier.LATENCY + 2

    def __init__(self, columns, *, value_bits=_VALUE_BITS, family="portable"):
        self.columns = columns
        self.bucket_bits = value_bits + (MAX_DIM - 1).bit_length()
        self.family = family
        super().__init__({
            "codes": In(columns * INDEX_BITS), "value": In(signed(value_bits)), "valid": In(1),
            "drain": In(1), "bucket": In(INDEX_BITS), "shift": In(1),
            "centroid": In(signed(CENTROID_BITS)), "first": In(1),
            "result": Out(signed(_ACCUMULATOR_BITS))})

    def elaborate(self, platform):
        m = Module()
        width, family = self.bucket_bits, self.family
        chain = Signal(data.ArrayLayout(signed(width), self.columns), reset_less=True)
        with m.If(self.shift):
            m.d.sync += chain.eq(Cat(list(chain)[1:]))
        valid = delay(m, self.valid, 1, name="valid", resettable=True)
        draining = delay(m, self.drain, 1, name="draining", resettable=True)
        value = delay(m, self.value, 1, name="value")
        for n in range(self.columns):
            m.submodules[f"buckets_{n}"] = memory = Memory(shape=signed(width), depth=_CENTROIDS,
                                                           init=[])
            write, read = memory.write_port(), memory.read_port(domain="comb")
            index = Signal(INDEX_BITS, name=f"index_{n}", reset_less=True)
            m.d.sync += index.eq(Mux(self.drain, self.bucket,
                                     self.codes.word_select(n, INDEX_BITS)))
            # Read, add and write in one cycle: the next beat may be of the same bucket.
            m.d.comb += [
                read.addr.eq(index), write.addr.eq(index), write.en.eq(valid | draining),
                write.data.eq(Mux(draining, 0, add(m, read.data, value, width=width,
                                                   family=family)))]
            with m.If(draining):
                m.d.sync += chain[n].eq(read.data)

        # One multiplier for all columns, and their sums in a RAM.  A bucket is two operands.
        low = chain[0][:17]
        m.submodules.low = low_product = Multiplier(18, CENTROID_BITS, family)
        m.submodules.high = high_product = Multiplier(width - 17, CENTROID_BITS, family)
        m.d.comb += [low_product.a.eq(low), low_product.b.eq(self.centroid),
                     high_product.a.eq(chain[0][17:].as_signed()),
                     high_product.b.eq(self.centroid)]
        total = Signal(signed(_ACCUMULATOR_BITS), reset_less=True)
        m.d.sync += total.eq(add(m, low_product.o, high_product.o << 17, width=_ACCUMULATOR_BITS,
                                 family=family))
        m.submodules.sums = sums = BlockRAM(_ACCUMULATOR_BITS, self.columns, family=family)
        column = Signal(range(self.columns))
        with m.If(draining):
            m.d.sync += column.eq(0)
        with m.Elif(self.shift):
            m.d.sync += column.eq(column + 1)
        read_column = delay(m, column, Multiplier.LATENCY + 1 - BlockRAM.LATENCY, name="column")
        shifted = delay(m, self.shift, Multiplier.LATENCY + 1, name="shifted", resettable=True)
        first = delay(m, self.first, Multiplier.LATENCY + 1, name="first")
        m.d.comb += sums.read_address.eq(read_column)
        written = delay(m, read_column, BlockRAM.LATENCY + 1, name="written")
        m.d.sync += self.result.eq(add(m, total, Mux(first, 0, sums.read_data.as_signed()),
                                       width=_ACCUMULATOR_BITS, family=family))
        m.d.comb += [sums.write_address.eq(written), sums.write_data.eq(self.result),
                     sums.write_enable.eq(delay(m, shifted, 1, name="writes", resettable=True))]
        return m


class HistogramCounter(wiring.Component):
    """Counts how often each pair of a weight's and an activation's index comes (KLLM).

    A beat per cycle; ``count`` of a pair is right four cycles after the last.  The products are
    somebody else's: a count times an entry of the product table, for all 256 pairs of a column.

    Parameters
    ----------
    inputs : int
        Pairs per beat, a power of two.
    family : str

    Members
    -------
    pairs : In(inputs * 8), valid : In(1)
    clear : In(1)
    select : In(8), count : Out(15)
        How often this pair came, two cycles later.
    """

    COUNT_BITS = 15

    def __init__(self, inputs, *, family="portable"):
        self.inputs = inputs
        self.family = family
        super().__init__({"pairs": In(8 * inputs), "valid": In(1), "clear": In(1),
                          "select": In(8), "count": Out(self.COUNT_BITS)})

    def elaborate(self, platform):
        m = Module()
        counts = []
        # A pair's number as two one-hot halves, shared by all counters.
        halves = []
        for i in range(self.inputs):
            for half in range(2):
                hot = Signal(_CENTROIDS, name=f"hot_{i}_{half}", reset_less=True)
                m.d.sync += hot.eq((1 << self.pairs.word_select(2 * i + half, INDEX_BITS))
                                   & self.valid.replicate(_CENTROIDS))
                halves.append(hot)
        for pair in range(256):
            low, high = pair % _CENTROIDS, pair // _CENTROIDS
            hits = [a[low] & b[high] for a, b in zip(halves[::2], halves[1::2])]
            found = Signal(range(self.inputs + 1), name=f"found_{pair}", reset_less=True)
            m.d.sync += found.eq(sum(hits))
            count = Signal(self.COUNT_BITS, name=f"count_{pair}", reset_less=True)
            m.d.sync += count.eq(Mux(self.clear, 0, add(
                m, count, found, width=self.COUNT_BITS, family=self.family)))
            counts.append(count)
        chosen = Signal(data.ArrayLayout(self.COUNT_BITS, _CENTROIDS), reset_less=True)
        for row in range(_CENTROIDS):
            with m.Switch(self.select[:INDEX_BITS]):
                for i in range(_CENTROIDS):
                    with m.Case(i):
                        m.d.sync += chosen[row].eq(counts[_CENTROIDS * row + i])
        m.d.sync += self.count.eq(chosen[delay(m, self.select[INDEX_BITS:], 1, name="select")])
        return m


class Compensation(wiring.Component):
    """What outliers add to the sum of centroids: ``error * W[n, k]`` for each, tapped from codes.

    The sum leaves ``latency`` cycles after its beat.  A tile may have `outliers` of them; one of
    more has to pass once more for every further `outliers`, whose beats are read again.

    Parameters
    ----------
    positions : int
        Weights per beat.
    outliers : int
        Selectors, each with a multiplier.
    family : str

    Members
    -------
    codes : In(positions * 4)
    shift : In(1), position : In, error : In(signed(18))
        The next outlier of the tile to come: where it is, and its distance from its centroid, 0
        for one that there is not.  They move on by one for each.
    swap : In(1)
        From the next cycle on, beats are of that tile.
    centroid : In(8), centroid_address : In(4), centroid_write : In(1)
        An entry of the weights' codebook.
    o : Out(signed)
    """

    def __init__(self, positions, outliers, *, family="portable"):
        self.positions, self.outliers, self.family = positions, outliers, family
        self.bound = 2 * VALUE_MAX * CENTROID_MAX
        # Codes are chosen in two steps: one of eight, then one of those.
        self.latency = 3 + Multiplier.LATENCY + 1 + tree_levels(outliers)
        super().__init__({
            "codes": In(positions * INDEX_BITS), "shift": In(1),
            "position": In(range(positions)), "error": In(signed(_VALUE_BITS)), "swap": In(1),
            "centroid": In(CENTROID_BITS), "centroid_address": In(INDEX_BITS),
            "centroid_write": In(1), "o": Out(signed(bits_for(self.bound * outliers)))})

    def elaborate(self, platform):
        m = Module()
        outlier = data.StructLayout({"position": range(self.positions),
                                     "error": signed(_VALUE_BITS)})
        coming = Signal(data.ArrayLayout(outlier, self.outliers), reset_less=True)
        used = Signal.like(coming, reset_less=True)
        with m.If(self.shift):
            m.d.sync += coming.eq(Cat(*list(coming)[1:], self.position, self.error))
        with m.If(self.swap):
            m.d.sync += used.eq(coming)
        m.submodules.tree = tree = Tree([self.bound] * self.outliers, self.family)
        codes = [self.codes.word_select(i, INDEX_BITS) for i in range(self.positions)]
        for j in range(self.outliers):
            position = used[j].position
            near = Signal(data.ArrayLayout(INDEX_BITS, len(codes) // 8), name=f"near_{j}",
                          reset_less=True)
            for i, group in enumerate(near):
                m.d.sync += group.eq(Array(codes[8 * i:8 * i + 8])[position[:3]])
            index = Signal(INDEX_BITS, name=f"index_{j}", reset_less=True)
            m.d.sync += index.eq(near[delay(m, position[3:], 1, name=f"far_{j}")])
            weight = _centroid(m, self, index, j)
            m.submodules[f"multiplier_{j}"] = multiplier = Multiplier(
                _VALUE_BITS, CENTROID_BITS, self.family)
            m.d.comb += [
                multiplier.a.eq(delay(m, used[j].error, 3, name=f"error_{j}")),
                multiplier.b.eq(weight),
                tree.entries[j].eq(delay(m, multiplier.o, 1, name=f"product_{j}"))]
        m.d.comb += self.o.eq(tree.total)
        return m
