"""Instruction fetch, decoding and dispatch to the three stages; errors and the end of a program."""

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hdl.beat import Client, read_request
from hdl.config import MIN_COLUMNS, TOKEN_BEAT
from hdl.isa import FIELDS, INSTRUCTION_BITS, STAGES, Buffer, Opcode
from hdl.parts import count_down, count_up, delay
from hdl.registers import Error

__all__ = ["Control", "fields_of", "opcodes"]

QUIET_CYCLES = 64
"""Cycles without a movement after which stages that wait for each other never will move."""


def opcodes(config):
    """The operations that an engine has."""
    return [op for op in Opcode if op is not Opcode.TOPK or config.encodes]


def _width(config, opcode, name, field):
    """Bits of a field that this engine needs; the others must be zero."""
    if name == "address":
        return min(field.width, config.address_bits)
    if name == "columns":
        return min(field.width, config.n_tile.bit_length() - 1)
    if name == "local":
        slots = (config.activation_depth - 1).bit_length()
        if opcode is Opcode.LOAD:
            # Of the activation codebook, or of a table.
            entries = 8 if config.takes_indexes else 5 * (config.codebooks_max == 1)
            return max(slots, config.codebook_word_bits, entries)
        return slots
    if name == "tiles":
        return min(field.width, 10)
    if name == "count":
        return min(field.width, 14)
    if name == "k" and config.bank:
        return config.place_bits
    if name == "beat":
        return (config.token_values // TOKEN_BEAT - 1).bit_length()
    if name in ("k", "length"):
        return min(field.width, config.token_values.bit_length() - 1)
    return field.width


def fields_of(opcode, config):
    """Layout of an instruction's fields as a stage takes them."""
    return data.StructLayout({name: _width(config, opcode, name, f)
                              for name, f in FIELDS[opcode].items()})


class Control(wiring.Component):
    """Reads a program and hands its instructions to the stages, in order.

    Each stage has a queue of one: an instruction waits beside the one that executes.  FENCE waits
    until every stage is idle, HALT too and then ends the program.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    start : In(1), program : In(address_bits)
        Start the program at this beat address (ignored while running).  `program` must stay until
        `running` rises, two cycles later.
    o_request : Out(stream.Signature(read_request))
    i_beat : In(stream.Signature(128))
        The instruction asked for.
    o_load, o_build, o_lmma, o_store, o_topk : Out(stream.Signature(fields))
        The last one of engines that have the instruction.
    stages_busy : In(1)
        A stage has work or results under way.
    progress : In(1)
        Something moved in this cycle, or the memory owes an answer.
    unmatched : In(1)
        A table was built that no LMMA has used: HALT is an error.
    memory_fault : In(1)
        A stage addressed a beat outside the memory (strobe).
    running, done, failed : Out(1)
    error : Out(Error)
    starts : Out(1)
        The program starts (strobe).
    issued : Out(1)
        An instruction was dispatched (strobe).
    """

    def __init__(self, config):
        self.config = config
        self.opcodes = opcodes(config)
        self.streams = {op: f"o_{op.name.lower()}" for op in self.opcodes if FIELDS[op]}
        super().__init__({
            "start": In(1), "program": In(config.address_bits),
            "o_request": Out(stream.Signature(read_request(config))),
            "i_beat": In(stream.Signature(INSTRUCTION_BITS)),
            **{name: Out(stream.Signature(fields_of(op, config)))
               for op, name in self.streams.items()},
            "stages_busy": In(1), "progress": In(1), "unmatched": In(1), "memory_fault": In(1),
            "running": Out(1), "done": Out(1), "failed": Out(1), "error": Out(Error),
            "starts": Out(1), "issued": Out(1),
        })

    def _unused(self, opcode):
        """Bits that must be zero: of no field, or of what this engine does not have."""
        config, fields = self.config, FIELDS[opcode]
        used = set(range(4))
        for name, f in fields.items():
            used |= set(range(f.offset, f.offset + _width(config, opcode, name, f)))
        refused = []
        if not config.epilogue:
            refused += ["target", "relu", "requant"]
        if not config.zero_points:
            refused += ["zero"]
        if not config.byte_passes:
            refused += ["unsigned"] + ["high"] * (opcode is Opcode.LMMA)
        if config.codebooks_max < 2:
            refused += ["codebooks"]
        if not config.centroid_bits:
            refused += ["buffer"]
        if not config.takes_indexes:
            refused += ["indexes", "pairs", "norm"] + ["static"] * (not config.bank)
            refused += ["high"] * (opcode is Opcode.STORE)
            refused += ["length"] * (opcode is Opcode.LOAD)
        if opcode is Opcode.TOPK:
            refused += ["length"] if config.bank else ["low", "beat"]
        used -= {fields[name].offset + i for name in refused if name in fields
                 for i in range(fields[name].width)}
        if opcode is Opcode.LOAD:
            most = Buffer.BYTE_TABLE if config.takes_indexes else \
                Buffer.ACTIVATION_CODEBOOK if not config.scaled else Buffer.CENTROIDS
            used -= {fields["buffer"].offset + i
                     for i in range(most.bit_length(), fields["buffer"].width)}
        if opcode is Opcode.TOPK and config.bank:       # starts with a bank
            low = fields["beat"].offset
            used -= set(range(low, low + (config.bank // TOKEN_BEAT - 1).bit_length()))
        if opcode is Opcode.BUILD:      # starts with a whole K tile
            low = fields["local"].offset
            used -= set(range(low, low + (config.tile_slots - 1).bit_length()))
        return set(range(INSTRUCTION_BITS)) - used

    def _check(self, m, word):
        """Whether the word is an instruction, and a legal one, three cycles later; which it is.

        Bits that the same opcodes leave unused are looked at together.
        """
        config = self.config
        unused = {opcode: self._unused(opcode) for opcode in self.opcodes}
        classes = {}
        for bit in range(INSTRUCTION_BITS):
            users = frozenset(op for op in self.opcodes if bit in unused[op])
            if users:
                classes.setdefault(users, []).append(word[bit])
        wrong = {opcode: [] for opcode in self.opcodes}
        for users, bits in classes.items():
            for i in range(0, len(bits), 16):
                some = Signal(name="unused_" + "_".join(op.name.lower() for op in sorted(users)))
                m.d.sync += some.eq(Cat(*bits[i:i + 16]).any())
                for opcode in users:
                    wrong[opcode].append(some)
        for opcode in self.opcodes:
            fields = FIELDS[opcode]
            if "columns" in fields:     # stored minus one
                low, high = fields["columns"].offset, (MIN_COLUMNS - 1).bit_length()
                count = word[low:low + fields["columns"].width]
                short = Signal()
                m.d.sync += short.eq(~(count[high:].any() | count[:high].all()))
                wrong[opcode].append(short)
        # A column's beats bring its scale and are the turns of its banks; low weights have a zero
        # point.
        if config.sparse:
            fields, other = FIELDS[Opcode.LMMA], Signal()
            planes = word[fields["planes"].offset:][:fields["planes"].width]    # minus one
            m.d.sync += other.eq((planes < config.column_beats - 1)
                                 | (planes >= config.column_beats_max)
                                 | ~word[fields["zero"].offset])
            wrong[Opcode.LMMA].append(other)
        if config.encodes and config.bank:      # stored minus one
            fields, none = FIELDS[Opcode.TOPK], Signal()
            m.d.sync += none.eq(~word[fields["low"].offset:][:fields["low"].width].any())
            wrong[Opcode.TOPK].append(none)
        if config.rows > 1:
            fields = FIELDS[Opcode.STORE]
            rows = fields["address"].offset
            unaligned = Signal()
            m.d.sync += unaligned.eq(word[fields["target"].offset]
                                     & word[rows:rows + config.rows.bit_length() - 1].any())
            wrong[Opcode.STORE].append(unaligned)
        if not config.scaled:
            what = FIELDS[Opcode.LOAD]["buffer"].offset
            unknown = Signal()
            low, high = word[what:what + 2], word[what + 2]
            m.d.sync += unknown.eq(high & low.any() if config.takes_indexes else low.all())
            wrong[Opcode.LOAD].append(unknown)
        if config.takes_indexes:
            fields, twice = FIELDS[Opcode.TOPK], Signal()
            m.d.sync += twice.eq(word[fields["static"].offset] & word[fields["norm"].offset])
            wrong[Opcode.TOPK].append(twice)
        is_op = {}
        for opcode in self.opcodes:
            is_op[opcode] = Signal(name=f"is_{opcode.name.lower()}")
            m.d.sync += is_op[opcode].eq(word[:4] == opcode)
        known = Signal()
        legal = Signal()
        bad = Signal(len(self.opcodes))
        m.d.sync += [
            bad.eq(Cat(is_op[op] & Cat(*wrong[op]).any() for op in self.opcodes)),
            known.eq(Cat(*is_op.values()).any()), legal.eq(known & ~bad.any())]
        return known, legal, is_op

    def elaborate(self, platform):
        m = Module()
        config = self.config
        address = Signal(config.address_bits)
        waiting = Signal()      # asked for an instruction
        word = Signal(INSTRUCTION_BITS)
        full = Signal()         # `word` holds an instruction
        checks = Signal(3)      # cycles of checks that are done
        m.d.comb += [
            self.o_request.valid.eq(self.running & ~waiting & ~full),
            self.o_request.p.address.eq(address),
            self.o_request.p.tag.client.eq(Client.FETCH),
            self.i_beat.ready.eq(1),
        ]
        asks = Signal()
        starts = self.starts
        m.d.comb += asks.eq(self.o_request.valid & self.o_request.ready)
        m.d.sync += starts.eq(self.start & ~self.running & ~starts)
        count_up(m, address, load=starts, value=self.program, step=asks, family=config.family)
        with m.If(asks):
            m.d.sync += waiting.eq(1)
        with m.If(waiting):     # a word without `full` is not looked at: `valid` enables one bit
            m.d.sync += word.eq(self.i_beat.payload)
        with m.If(self.i_beat.valid & waiting):
            m.d.sync += [waiting.eq(0), full.eq(1), checks.eq(0)]
        with m.If(full):
            m.d.sync += checks.eq(Cat(1, checks))

        known, legal, is_op = self._check(m, word)

        # One pending instruction per stage; the payload is shared, the valids are not.
        taken = Signal()
        pending = Signal()
        for opcode, name in self.streams.items():
            port = getattr(self, name)
            held = Signal(port.p.shape(), name=f"held_{name}", reset_less=True)
            with m.If(~port.valid):
                for field, f in FIELDS[opcode].items():
                    width = len(Value.cast(held[field]))
                    m.d.sync += held[field].eq(word[f.offset:f.offset + width])
            m.d.comb += port.payload.eq(held)
            with m.If(port.valid & port.ready):
                m.d.sync += port.valid.eq(0)
        m.d.comb += pending.eq(Cat(getattr(self, n).valid for n in self.streams.values()).any())
        # `stages_busy` is registered on its way: a stage that has just taken an instruction shows
        # it two cycles later.  `quiet` knows what was dispatched before the word came.
        recent = delay(m, pending, 1, name="pending", resettable=True)
        older = delay(m, recent, 1, name="pending_before", resettable=True)
        quiet = Signal()
        m.d.sync += quiet.eq(~(pending | recent | older | self.stages_busy))

        # The next cycle decides, the one after acts.  Instructions that share a stage: one at a
        # time, so that they stay in order.
        room = {op: ~Cat(getattr(self, name).valid for other, name in self.streams.items()
                         if STAGES[other] == STAGES[op]).any() if op in STAGES else quiet
                for op in self.opcodes}
        decide = Signal()
        m.d.comb += decide.eq(self.running & full & checks[-1] & ~taken)
        go = {op: Signal(name=f"go_{op.name.lower()}") for op in self.opcodes}
        m.d.sync += [go[op].eq(decide & legal & is_op[op] & room[op]) for op in self.opcodes]
        wrong = Signal()
        m.d.sync += wrong.eq(decide & ~legal)
        m.d.comb += taken.eq(Cat(*go.values()).any())
        with m.If(self.running):
            for opcode, name in self.streams.items():
                with m.If(go[opcode]):
                    m.d.sync += getattr(self, name).valid.eq(1)
            with m.If(go[Opcode.HALT]):
                m.d.sync += [self.done.eq(~self.unmatched), self.failed.eq(self.unmatched),
                             self.error.eq(Mux(self.unmatched, Error.DEADLOCK, Error.NONE))]
        with m.If(taken):
            m.d.sync += full.eq(0)
        m.d.comb += self.issued.eq(taken)

        # Nothing moves, nothing is owed, and there is work: nothing ever will.
        moves = Signal()
        hung = Signal()
        m.d.sync += moves.eq(~self.running | self.progress | taken | waiting
                             | self.o_request.valid)
        m.d.comb += hung.eq(count_down(m, 7, load=moves, value=QUIET_CYCLES, step=~moves & ~hung,
                                       family=self.config.family, name="quiet_for"))
        # Errors act a cycle later: what they depend on lies across the chip.
        stuck = Signal()
        fault = Signal()
        m.d.sync += [stuck.eq(hung & ~moves), fault.eq(self.memory_fault)]
        stops = Signal()
        m.d.comb += stops.eq(wrong | stuck | fault)
        with m.If(self.running & stops):
            m.d.sync += [self.failed.eq(1), self.error.eq(
                Mux(fault, Error.BAD_ADDRESS, Mux(stuck, Error.DEADLOCK, Mux(
                    known, Error.BAD_FIELD, Error.BAD_OPCODE))))]
        with m.If(stops | go[Opcode.HALT]):
            m.d.sync += self.running.eq(0)

        with m.If(starts):
            m.d.sync += [self.running.eq(1), self.done.eq(0), self.failed.eq(0),
                         self.error.eq(Error.NONE), full.eq(0), waiting.eq(0)]
        return m
