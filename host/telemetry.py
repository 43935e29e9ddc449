"""From the states of the device's shift-register counters to numbers of events.

A state is 36 terms of a linear recurrence over GF(2) and so a power of x in GF(2**36); the number
of events is its discrete logarithm.  2**36 - 1 has only small prime factors, so that it takes a few
table look-ups (Pohlig and Hellman) put together by the Chinese remainder theorem.
"""

from functools import cache

from hdl.registers import COUNTER_BITS, COUNTER_TAPS

__all__ = ["counts"]

_WIDTH = COUNTER_BITS
_ORDER = 2**_WIDTH - 1
_FACTORS = (27, 5, 7, 13, 19, 37, 73, 109)      # coprime; their product is the order
_MODULUS = 1 << _WIDTH | sum(1 << t for t in COUNTER_TAPS)


def _multiply(a, b):
    """Product of two elements of GF(2**36), polynomials in x as bits of integers."""
    product = 0
    while b:
        if b & 1:
            product ^= a
        b >>= 1
        a <<= 1
        if a >> _WIDTH:
            a ^= _MODULUS
    return product


def _power(a, exponent):
    result = 1
    while exponent:
        if exponent & 1:
            result = _multiply(result, a)
        a = _multiply(a, a)
        exponent >>= 1
    return result


@cache
def _basis():
    """For every bit of a state, the element of GF(2**36) that it stands for."""
    # The states after 0..35 events stand for x**0..x**35; invert that matrix.
    rows = []
    state = 1
    for k in range(_WIDTH):
        rows.append((state, 1 << k))
        top = sum(state >> t & 1 for t in COUNTER_TAPS) & 1
        state = state >> 1 | top << (_WIDTH - 1)
    for bit in range(_WIDTH):
        pivot = next(i for i in range(bit, _WIDTH) if rows[i][0] >> bit & 1)
        rows[bit], rows[pivot] = rows[pivot], rows[bit]
        for i in range(_WIDTH):
            if i != bit and rows[i][0] >> bit & 1:
                rows[i] = (rows[i][0] ^ rows[bit][0], rows[i][1] ^ rows[bit][1])
    return [element for _, element in rows]


@cache
def _logarithms(factor):
    """Logarithms in the subgroup of that order."""
    generator = _power(2, _ORDER // factor)
    table = {}
    element = 1
    for n in range(factor):
        table[element] = n
        element = _multiply(element, generator)
    return table


@cache
def _count(state):
    if not 0 < state <= _ORDER:
        return 0        # no counter of a device is ever zero
    element = 0
    for bit, part in enumerate(_basis()):
        if state >> bit & 1:
            element ^= part
    total = 0
    for factor in _FACTORS:
        rest = _logarithms(factor)[_power(element, _ORDER // factor)]
        others = _ORDER // factor
        total += rest * others * pow(others, -1, factor)
    return total % _ORDER


def counts(words):
    """Numbers of events, each below 2**36 - 1, from the COUNTERS registers.

    Parameters
    ----------
    words : list of int
        Two per counter.  The high word comes shifted to the top of its 32 bits.
    """
    high = 64 - COUNTER_BITS
    return [_count(low | top >> high << 32) for low, top in zip(words[::2], words[1::2])]
