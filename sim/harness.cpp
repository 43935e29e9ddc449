// The simulated device: the Verilated top, its clock, its memory and its link, behind a C interface.
//
// The build defines Vtop and the widths of the memory port: CODE_BITS, WRITE_BITS, SIDE_BITS,
// TAG_BITS, ADDRESS_BITS; and HAS_PORT, LINK_STREAM or LINK_UART, TRACE as the configuration needs.

#include "Vtop.h"
#include "verilated.h"
#ifdef TRACE
#include "verilated_vcd_c.h"
#endif

#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

namespace {

// Verilator writes a double underscore in a name as ___05F.
#define PIN2(a, b) a##___05F##b
#define PIN3(a, b, c) a##___05F##b##___05F##c

constexpr unsigned BEAT_BYTES = CODE_BITS / 8;
constexpr unsigned SIDE_WORDS = (SIDE_BITS + 31) / 32;

template <class T> uint32_t *words(T &port) { return reinterpret_cast<uint32_t *>(&port); }

uint32_t get(const uint32_t *w, unsigned offset, unsigned width) {
    uint64_t pair = w[offset / 32];
    if (offset % 32 + width > 32) pair |= uint64_t(w[offset / 32 + 1]) << 32;
    return uint32_t(pair >> (offset % 32)) & (width == 32 ? ~0u : (1u << width) - 1);
}

void put(uint32_t *w, unsigned offset, unsigned width, uint32_t value) {
    for (unsigned done = 0; done < width;) {
        unsigned at = (offset + done) % 32;
        unsigned n = std::min(32 - at, width - done);
        uint32_t mask = (n == 32 ? ~0u : (1u << n) - 1) << at;
        uint32_t &word = w[(offset + done) / 32];
        word = (word & ~mask) | ((value >> done << at) & mask);
        done += n;
    }
}

struct Pending {
    uint32_t address, tag;
    double due;
};

struct Device {
    VerilatedContext context;
    std::unique_ptr<Vtop> top;
#ifdef TRACE
    std::unique_ptr<VerilatedVcdC> trace;
#endif
    uint64_t cycle = 0;

    // Memory: data and sideband, and when it delivers.
    std::vector<uint32_t> data, side;
    uint64_t beats = 0;
    double latency = 8, beat_cost = 0, write_cost = 0;   // in cycles
    double refresh_every = 0, refresh_cost = 0;
    double port_free = 0, refreshed = 0;
    unsigned outstanding = 256;
    uint64_t stall_seed = 0;
    unsigned stall_reads = 0, stall_room = 0;            // out of 256
    std::deque<Pending> pending;
    bool fault = false;
    uint64_t reads = 0, writes = 0;

    // Link.
    std::deque<uint8_t> to_device, from_device;
#ifdef LINK_UART
    double bit_cycles = 0;
    double tx_next = 0; int tx_bit = -1; uint16_t tx_frame = 0;     // host to device
    double rx_next = 0; int rx_bit = -1; uint8_t rx_byte = 0;       // device to host
#endif

    uint32_t random() {
        stall_seed = stall_seed * 6364136223846793005ull + 1442695040888963407ull;
        return uint32_t(stall_seed >> 56);
    }

    double take_port(double cost) {
        if (refresh_every > 0 && cycle - refreshed >= refresh_every) {
            refreshed += refresh_every;     // when it is due, however late the port is asked
            port_free = std::max(port_free, double(cycle)) + refresh_cost;
        }
        port_free = std::max(port_free, double(cycle)) + cost;
        return port_free;
    }

    void memory_before() {
#ifdef HAS_PORT
        Vtop &t = *top;
        t.PIN2(memory, read_room) = pending.size() < outstanding;
        bool stalled = stall_reads && random() < stall_reads;
        t.PIN3(memory, response, valid) = !pending.empty() && pending.front().due <= cycle && !stalled;
        if (t.PIN3(memory, response, valid)) {
            const Pending &p = pending.front();
            uint32_t *w = words(t.PIN3(memory, response, payload));
            if (p.address < beats) {
                std::memcpy(w, &data[size_t(p.address) * (BEAT_BYTES / 4)], BEAT_BYTES);
                const uint32_t *s = side.data() + size_t(p.address) * SIDE_WORDS;
                for (unsigned i = 0; i < SIDE_WORDS; i++)
                    put(w, CODE_BITS + 32 * i, std::min(32u, SIDE_BITS - 32 * i), s[i]);
            }
            put(w, CODE_BITS + SIDE_BITS, TAG_BITS, p.tag);
        }
        t.PIN2(memory, write_room) = !(stall_room && random() < stall_room);
        t.PIN2(memory, idle) = pending.empty();
        t.PIN2(memory, fault) = fault;
        fault = false;
#endif
    }

    void memory_after() {
#ifdef HAS_PORT
        Vtop &t = *top;
        if (t.PIN3(memory, response, valid) && t.PIN3(memory, response, ready)) pending.pop_front();
        if (t.PIN3(memory, request, valid)) {
            const uint32_t *w = words(t.PIN3(memory, request, payload));
            Pending p{get(w, 0, ADDRESS_BITS), get(w, ADDRESS_BITS, TAG_BITS), 0};
            p.due = std::max(cycle + latency, take_port(beat_cost));
            if (p.address >= beats) fault = true;
            pending.push_back(p);
            reads++;
        }
        if (t.PIN3(memory, write, valid)) {
            const uint32_t *w = words(t.PIN3(memory, write, payload));
            uint32_t address = get(w, 0, ADDRESS_BITS);
            if (address < beats) {
                uint32_t *to = &data[size_t(address) * (BEAT_BYTES / 4)];
                for (unsigned i = 0; i < BEAT_BYTES / 4; i++)
                    if (get(w, ADDRESS_BITS + WRITE_BITS + i, 1))
                        to[i] = get(w, ADDRESS_BITS + 32 * i % WRITE_BITS, 32);
            } else {
                fault = true;
            }
            take_port(write_cost);
            writes++;
        }
        if (t.PIN3(memory, side_write, valid)) {
            const uint32_t *w = words(t.PIN3(memory, side_write, payload));
            uint32_t address = get(w, 0, ADDRESS_BITS);
            for (unsigned i = 0; i < SIDE_WORDS; i++)
                if (address < beats && get(w, ADDRESS_BITS + 32 + i, 1))
                    side[size_t(address) * SIDE_WORDS + i] = get(w, ADDRESS_BITS, 32);
        }
#endif
    }

    void link_before() {
#ifdef LINK_STREAM
        top->PIN2(i, valid) = !to_device.empty();
        if (!to_device.empty()) top->PIN2(i, payload) = to_device.front();
        top->PIN2(o, ready) = 1;
#else
        if (tx_bit < 0 && !to_device.empty()) {
            tx_frame = uint16_t(0x200 | to_device.front() << 1);    // start, 8 data bits, stop
            to_device.pop_front();
            tx_bit = 0;
            tx_next = std::max(tx_next, double(cycle));
        }
        top->rx = tx_bit < 0 ? 1 : tx_frame >> tx_bit & 1;
        if (tx_bit >= 0 && cycle + 1 >= tx_next + bit_cycles) {
            tx_next += bit_cycles;
            if (++tx_bit == 10) tx_bit = -1;
        }
#endif
    }

    void link_after() {
#ifdef LINK_STREAM
        if (top->PIN2(i, valid) && top->PIN2(i, ready)) to_device.pop_front();
        if (top->PIN2(o, valid)) from_device.push_back(top->PIN2(o, payload));
#else
        if (rx_bit < 0) {
            if (!top->tx) { rx_bit = 0; rx_next = cycle + 1.5 * bit_cycles; rx_byte = 0; }
        } else if (cycle >= rx_next) {
            if (rx_bit < 8) rx_byte |= uint8_t(top->tx << rx_bit);
            else from_device.push_back(rx_byte);
            rx_next += bit_cycles;
            if (++rx_bit == 9) rx_bit = -1;
        }
#endif
    }

    void dump(uint64_t time) {
#ifdef TRACE
        if (trace) trace->dump(time);
#endif
    }

    void step() {
        Vtop &t = *top;
        memory_before();
        link_before();
        t.clk = 0;
        t.eval();
        dump(2 * cycle);
        memory_after();
        link_after();
        t.clk = 1;
        t.eval();
        dump(2 * cycle + 1);
        cycle++;
    }
};

}  // namespace

extern "C" {

Device *lutra_open(uint64_t beats, const char *trace) {
    auto *d = new Device;
    d->context.traceEverOn(trace != nullptr);
    d->top.reset(new Vtop(&d->context, "top"));
    d->beats = beats;
    d->data.assign(size_t(beats) * (BEAT_BYTES / 4), 0);
    d->side.assign(size_t(beats) * SIDE_WORDS, 0);
#ifdef TRACE
    if (trace) {
        d->trace.reset(new VerilatedVcdC);
        d->top->trace(d->trace.get(), 99);
        d->trace->open(trace);
    }
#endif
    d->top->rst = 1;
    for (int i = 0; i < 4; i++) d->step();
    d->top->rst = 0;
    return d;
}

void lutra_close(Device *d) {
#ifdef TRACE
    if (d->trace) d->trace->close();
#endif
    d->top->final();
    delete d;
}

uint32_t *lutra_data(Device *d) { return d->data.data(); }
uint32_t *lutra_side(Device *d) { return d->side.data(); }
uint64_t lutra_cycle(Device *d) { return d->cycle; }
uint64_t lutra_reads(Device *d) { return d->reads; }
uint64_t lutra_writes(Device *d) { return d->writes; }

void lutra_memory(Device *d, double latency, double beat_cost, double write_cost,
                  double refresh_every, double refresh_cost, unsigned outstanding) {
    d->latency = latency;
    d->beat_cost = beat_cost;
    d->write_cost = write_cost;
    d->refresh_every = refresh_every;
    d->refresh_cost = refresh_cost;
    d->outstanding = outstanding;
}

void lutra_stalls(Device *d, uint64_t seed, unsigned reads, unsigned room) {
    d->stall_seed = seed;
    d->stall_reads = reads;
    d->stall_room = room;
}

void lutra_bit_cycles(Device *d, double cycles) {
#ifdef LINK_UART
    d->bit_cycles = cycles;
#endif
}

void lutra_step(Device *d, uint64_t cycles) {
    for (uint64_t i = 0; i < cycles; i++) d->step();
}

// Steps until no program runs or the limit is reached; returns whether it still runs.
int lutra_run(Device *d, uint64_t limit) {
    for (uint64_t i = 0; i < limit && (d->top->running || i < 4); i++) d->step();
    return d->top->running;
}

void lutra_send(Device *d, const uint8_t *bytes, uint64_t count) {
    d->to_device.insert(d->to_device.end(), bytes, bytes + count);
}

// Steps until bytes have come or the limit is reached; returns how many.
uint64_t lutra_receive(Device *d, uint8_t *bytes, uint64_t most, uint64_t limit) {
    for (uint64_t i = 0; i < limit && d->from_device.empty(); i++) d->step();
    uint64_t n = 0;
    for (; n < most && !d->from_device.empty(); n++) {
        bytes[n] = d->from_device.front();
        d->from_device.pop_front();
    }
    return n;
}

void lutra_flush(Device *d) {
    d->from_device.clear();
    d->to_device.clear();
}

}  // extern "C"
