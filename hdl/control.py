"""Instruction fetch, decoding and dispatch to the three stages; errors and the end of a program."""

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hdl.beat import Client, read_request
from hdl.config import MIN_COLUMNS
from hdl.isa import FIELDS, INSTRUCTION_BITS, Opcode
from hdl.parts import count_down, delay
from hdl.registers import Error

__all__ = ["Control", "fields_of"]

QUIET_CYCLES = 64
"""Cycles without a movement after which stages that wait for each other never will move."""


def _width(config, opcode, name, field):
    """Bits of a field that this engine needs; the others must be zero."""
    if name == "address":
        return min(field.width, config.address_bits)
    if name == "columns":
        return min(field.width, config.n_tile.bit_length() - 1)
    if name == "local":
        return min(field.width, (config.activation_depth - 1).bit_length())
    if name == "tiles":
        return min(field.width, 10)
    if name == "count":
        return min(field.width, 14)
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
        Start the program at this beat address (ignored while running).
    o_request : Out(stream.Signature(read_request))
    i_beat : In(stream.Signature(128))
        The instruction asked for.
    o_load, o_build, o_lmma, o_store : Out(stream.Signature(fields))
    stages_busy : In(1)
        A stage has work or results under way.
    progress : In(1)
        Something moved in this cycle, or the memory owes an answer.
    memory_fault : In(1)
        A stage addressed a beat outside the memory (strobe).
    running, done, failed : Out(1)
    error : Out(Error)
    issued : Out(1)
        An instruction was dispatched (strobe).
    """

    STREAMS = {Opcode.LOAD: "o_load", Opcode.BUILD: "o_build", Opcode.LMMA: "o_lmma",
               Opcode.STORE: "o_store"}

    def __init__(self, config):
        self.config = config
        super().__init__({
            "start": In(1), "program": In(config.address_bits),
            "o_request": Out(stream.Signature(read_request(config))),
            "i_beat": In(stream.Signature(INSTRUCTION_BITS)),
            **{name: Out(stream.Signature(fields_of(op, config)))
               for op, name in self.STREAMS.items()},
            "stages_busy": In(1), "progress": In(1), "memory_fault": In(1),
            "running": Out(1), "done": Out(1), "failed": Out(1), "error": Out(Error),
            "issued": Out(1),
        })

    def _legal(self, opcode, word):
        """Whether the fields of `opcode` ask for what this engine has, and all else is zero."""
        config, fields = self.config, FIELDS[opcode]
        used = set(range(4))
        for name, f in fields.items():
            used |= set(range(f.offset, f.offset + _width(config, opcode, name, f)))
        refused = []
        if not config.epilogue:
            refused += ["target", "relu", "requant"]
        if not config.zero_points:
            refused += ["zero"]
        if config.activation_bits == 8:
            refused += ["high", "unsigned"]
        used -= {fields[name].offset for name in refused if name in fields}
        legal = ~Cat(word[b] for b in range(INSTRUCTION_BITS) if b not in used).any()
        if "columns" in fields:     # stored minus one
            low, high = fields["columns"].offset, (MIN_COLUMNS - 1).bit_length()
            count = word[low:low + fields["columns"].width]
            legal &= count[high:].any() | count[:high].all()
        if opcode is Opcode.STORE and config.rows > 1:
            rows = fields["address"].offset
            legal &= ~word[fields["target"].offset] | \
                ~word[rows:rows + config.rows.bit_length() - 1].any()
        return legal

    def elaborate(self, platform):
        m = Module()
        config = self.config
        address = Signal(config.address_bits)
        waiting = Signal()      # asked for an instruction
        word = Signal(INSTRUCTION_BITS)
        full = Signal()         # `word` holds an instruction
        checks = Signal(2)      # cycles of checks that are done
        m.d.comb += [
            self.o_request.valid.eq(self.running & ~waiting & ~full),
            self.o_request.p.address.eq(address),
            self.o_request.p.tag.client.eq(Client.FETCH),
            self.i_beat.ready.eq(1),
        ]
        with m.If(self.o_request.valid & self.o_request.ready):
            m.d.sync += [waiting.eq(1), address.eq(address + 1)]
        with m.If(self.i_beat.valid & waiting):
            m.d.sync += [waiting.eq(0), word.eq(self.i_beat.payload), full.eq(1), checks.eq(0)]
        with m.If(full):
            m.d.sync += checks.eq(Cat(1, checks))

        # Two cycles of checks, from registers to registers.
        known = Signal()
        legal = Signal()
        is_op, fits = {}, []
        for opcode in Opcode:
            is_op[opcode] = Signal(name=f"is_{opcode.name.lower()}")
            fit = Signal(name=f"fits_{opcode.name.lower()}")
            m.d.sync += [is_op[opcode].eq(word[:4] == opcode), fit.eq(self._legal(opcode, word))]
            fits.append(is_op[opcode] & fit)
        m.d.sync += [known.eq(Cat(*is_op.values()).any()),
                     legal.eq(Cat(*fits).any())]

        # One pending instruction per stage; the payload is shared, the valids are not.
        taken = Signal()
        pending = Signal()
        for opcode, name in self.STREAMS.items():
            port = getattr(self, name)
            held = Signal(port.p.shape(), name=f"held_{name}", reset_less=True)
            with m.If(~port.valid):
                for field, f in FIELDS[opcode].items():
                    width = len(Value.cast(held[field]))
                    m.d.sync += held[field].eq(word[f.offset:f.offset + width])
            m.d.comb += port.payload.eq(held)
            with m.If(port.valid & port.ready):
                m.d.sync += port.valid.eq(0)
        m.d.comb += pending.eq(Cat(getattr(self, n).valid for n in self.STREAMS.values()).any())
        # `stages_busy` is registered on its way: a stage that has just taken an instruction shows
        # it two cycles later.
        recent = delay(m, pending, 1, name="pending", resettable=True)
        older = delay(m, recent, 1, name="pending_before", resettable=True)
        quiet = Signal()
        m.d.sync += quiet.eq(~(pending | recent | older | self.stages_busy))

        def fail(code):
            return [self.running.eq(0), self.failed.eq(1), self.error.eq(code)]

        with m.If(self.running & full & checks[1]):
            with m.If(~known):
                m.d.sync += fail(Error.BAD_OPCODE)
            with m.Elif(~legal):
                m.d.sync += fail(Error.BAD_FIELD)
            with m.Elif(is_op[Opcode.HALT]):
                with m.If(quiet & ~pending):
                    m.d.sync += [self.running.eq(0), self.done.eq(1)]
                    m.d.comb += taken.eq(1)
            with m.Elif(is_op[Opcode.FENCE]):
                m.d.comb += taken.eq(quiet & ~pending)
            with m.Else():
                # LOAD and BUILD share a stage: one at a time, so that they stay in order.
                prepare_free = ~self.o_load.valid & ~self.o_build.valid
                for opcode, name in self.STREAMS.items():
                    port = getattr(self, name)
                    room = prepare_free if opcode in (Opcode.LOAD, Opcode.BUILD) else ~port.valid
                    with m.If(is_op[opcode] & room):
                        m.d.sync += port.valid.eq(1)
                        m.d.comb += taken.eq(1)
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
        with m.If(hung & ~moves & self.running):
            m.d.sync += fail(Error.DEADLOCK)
        with m.If(self.running & self.memory_fault):
            m.d.sync += fail(Error.BAD_ADDRESS)

        with m.If(self.start & ~self.running):
            m.d.sync += [self.running.eq(1), self.done.eq(0), self.failed.eq(0),
                         self.error.eq(Error.NONE), address.eq(self.program), full.eq(0),
                         waiting.eq(0)]
        return m
