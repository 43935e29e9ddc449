"""Table builders of the psumbook and kmeans formats: products of centroids and activations.

The table of a chunk x[0..v-1] holds ``<C[i], x>`` for every centroid i of one codebook (CodeGEMM,
section 3, Psumbook construction).  One centroid per cycle goes to all builders of all rows; each
multiplies it by the chunk that it holds.  So the codebook has one read port, however many lanes
and rows there are, and every entry is computed once.

Indexes of ``kmeans`` weights are codes of the same kind: those of a chunk name one of all tuples of
the matrix's centroids, so that a table holds the sums of products for every tuple (KLLM's products
of one activation, for `v` of them).
"""

from amaranth.hdl import Cat, Module, Signal, signed
from amaranth.lib import data, wiring

from hdl.config import bits_for
from hdl.parts import Multiplier, WordRAM, add, delay
from hdl.walk import builder_members, walk_members

__all__ = ["CentroidBuilder", "CentroidWalk"]


class CentroidWalk(wiring.Component):
    """Walks through the centroids for all lane groups of a K tile: see :mod:`hdl.walk`.

    ``2**b`` cycles per lane group; the activations of a group are read while the entries of the
    one before it are computed, for the builders of a buffer one after another.  Holds the
    codebooks, four of them.
    """

    def __init__(self, config):
        self.config = config
        super().__init__(walk_members(config))

    def elaborate(self, platform):
        m = Module()
        config = self.config
        v, b = config.v, config.b
        groups = len(config.lane_groups)
        served = config.builders // config.buffers      # builders of a buffer
        reading = v * served                            # activations of a lane group in each
        byte_bits = (reading * groups - 1).bit_length()

        # Where in the walk: the entry of the lane group.
        running = self.running
        count = Signal(b)
        byte = Signal(byte_bits)        # first of the group
        group_end = Signal()
        ends = running & (count == 2**b - 2)
        m.d.sync += [group_end.eq(ends), self.tile_end.eq(ends & (byte == reading * (groups - 1)))]
        with m.If(running):
            m.d.sync += count.eq(count + 1)
        with m.If(group_end):
            m.d.sync += byte.eq(byte + reading)
        with m.If(self.tile_end):
            m.d.sync += running.eq(0)
        with m.If(self.start):
            m.d.sync += [running.eq(1), count.eq(0), byte.eq(0)]

        # Its first cycles read the group's activations, those of one builder after another.
        place = Signal(byte_bits)
        reads = Signal(served)
        within = (reading - 1).bit_length()
        m.d.sync += [place.eq(byte | count[:within]),
                     *(reads[s].eq(running & (count[v.bit_length() - 1:] == s))
                       for s in range(served))]
        m.d.comb += [
            self.walk.read_address.eq(Cat(place, self.tile)),
            self.walk.step.shift.eq(delay(m, reads, WordRAM.LATENCY, name="shift",
                                          resettable=True))]

        # When the last byte is there the sweep over the centroids begins.
        # Registers before and behind the codebook: the multipliers may be far away.
        ways = 1, 2
        to_builders = ways[0] + WordRAM.LATENCY + ways[1]
        until = reading + 1 + to_builders + CentroidBuilder.latency(config)
        started = Signal(until)     # so many cycles ago, plus one
        m.d.sync += started.eq(Cat(self.start, started))
        sweeps, writes = started[reading], started[-1]
        centroid, codebook = Signal(b), Signal(2)
        m.d.sync += centroid.eq(centroid + 1)
        with m.If(sweeps):
            m.d.sync += [centroid.eq(0), codebook.eq(self.codebook)]
        m.d.comb += self.walk.step.capture.eq(
            delay(m, centroid == 0, to_builders, name="capture"))
        address = delay(m, Cat(centroid, codebook), ways[0], name="address")
        for t in range(v):
            m.submodules[f"codebook_{t}"] = ram = WordRAM(2**config.codebook_word_bits,
                                                          config.family)
            m.d.comb += [
                ram.write_address.eq(self.word), ram.write_enable.eq(self.load),
                ram.write_data.eq(self.centroids[32 * t:32 * t + 32]),
                ram.read_address.eq(address),
                self.walk.step.centroid[8 * t:8 * t + 8].eq(
                    delay(m, ram.read_data, ways[1], name=f"centroid_{t}"))]

        # The entries come out and go to one lane group after another.
        entry, group, bank = self.walk.entry, self.walk.group, self.walk.bank
        entry_end, writing = Signal(), Signal()
        m.d.sync += [entry.eq(entry + 1), entry_end.eq((entry == 2**b - 2) & ~writes)]
        with m.If(entry_end):
            m.d.sync += group.eq(group << 1)
        with m.If(self.table_ready):
            m.d.sync += writing.eq(0)
        with m.If(writes):
            m.d.sync += [entry.eq(0), group.eq(1), writing.eq(1)]
        # `bank` changes after the last write of a tile; the next tile's first comes later.
        m.d.comb += self.table_ready.eq(entry_end & group[-1])
        with m.If(self.table_ready):
            m.d.sync += bank.eq(~bank)
        m.d.sync += self.active.eq(running | started.any() | writing)
        return m


class CentroidBuilder(wiring.Component):
    """The multipliers that make table entries for one row, `v` per builder.

    An entry comes :meth:`latency` cycles after its centroid.  Members: see
    :func:`hdl.walk.builder_members`.
    """

    def __init__(self, config):
        self.config = config
        super().__init__(builder_members(config))

    @staticmethod
    def latency(config):
        """Cycles from a centroid to its entry: a product, the way from there, its adder tree."""
        return Multiplier.LATENCY + 1 + config.v.bit_length() - 1

    def elaborate(self, platform):
        m = Module()
        v, family, width = self.config.v, self.config.family, self.config.value_bits
        words = data.View(data.ArrayLayout(width, self.config.buffers), self.word)
        for b in range(self.config.builders):
            chunk = Signal(data.ArrayLayout(signed(width), v), name=f"chunk_{b}", reset_less=True)
            turn, buffer = divmod(b, self.config.buffers)
            with m.If(self.step.shift[turn]):
                m.d.sync += chunk.eq(Cat(chunk.as_value()[width:], words[buffer]))
            sums, bound = [], self.config.operand_max
            for t in range(v):
                m.submodules[f"multiplier_{b}_{t}"] = multiplier = Multiplier(
                    width, 8, family, hold=True)
                m.d.comb += [multiplier.a.eq(chunk[t]), multiplier.hold.eq(~self.step.capture),
                             multiplier.b.eq(self.step.centroid[8 * t:8 * t + 8])]
                product = delay(m, multiplier.o[:bits_for(bound)], 1, name=f"product_{b}_{t}")
                sums.append(product.as_signed())
            while len(sums) > 1:
                bound *= 2
                bits = bits_for(bound)
                merged = []
                for i in range(0, len(sums), 2):
                    total = Signal(signed(bits), name=f"sum_{b}_{len(sums)}_{i}", reset_less=True)
                    m.d.sync += total.eq(add(m, sums[i], sums[i + 1], width=bits, family=family))
                    merged.append(total)
                sums = merged
            m.d.comb += self.entries[b].eq(sums[0])
        return m
